package store

import (
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// removeAfter is for how long each read of a report must find the same before it is removed.
	removeAfter = 10 * time.Minute

	// ObserveInterval is how often an instance looks for other instances.
	ObserveInterval = time.Minute

	// maxSkew is how far clocks may differ without a warning.
	maxSkew = 30 * time.Second

	// askAgainAfter is how long a question is reused: an instance that has answered it may be
	// gone by then.
	askAgainAfter = 10 * time.Second
)

// Standing is what is known about an instance.
type Standing int

// The standings of an instance.
const (
	Confirmed Standing = iota // it has applied everything that was stored before it was asked
	Pending                   // it has not confirmed yet
	Silent                    // it has not confirmed in time, and may be letting requests in
	Stopping                  // its process is stopping
	Absent                    // its config does not have the site
)

// Instance is an instance according to its last report.
type Instance struct {
	Name string // of the report
	Report
	Standing Standing
	Current  bool          // it has applied what was stored before it was asked
	Traffic  Traffic       // of the given site, or of all closed sites if none is given
	Seen     time.Time     // when its report last changed
	Asked    time.Time     // since when this instance knows the entry that it must apply
	Skew     time.Duration // how far its clock is ahead; 0 if the difference is within 30 s
}

// Drained reports whether a site is closed there and nothing is in flight, so nothing will be.
func (i *Instance) Drained(site string) bool {
	return i.IsClosed(site) && i.Traffic.InFlight == 0
}

// IsClosed reports whether a site is known to be closed there.
func (i *Instance) IsClosed(site string) bool {
	return i.Current && (i.Standing == Confirmed || i.Standing == Stopping) && slices.Contains(i.Closed, site)
}

// Fleet is the other instances on the storage, as this one sees them.
type Fleet struct {
	store *Store

	mu      sync.Mutex
	journal Journal
	noted   time.Time            // when the read of the journal began
	seen    map[string]time.Time // when each entry of the journal was first seen
	reports map[string]*observed // by name
	emptied int64                // Store.emptied at the last listing of reports
}

// observed is a report and when it was read and seen to change.
type observed struct {
	Report
	raw       string
	found     time.Time // when it was first read with its present Config
	changed   time.Time
	lastRead  time.Time // whether it could be read or not
	skew      time.Duration
	behind    map[string]time.Time // since when it reports each site of Behind
	lost      bool                 // it was in the storage before that was emptied
	unchanged bool                 // it was the same the last two times that it could be read

	// Since same, and until lastSame, each read has found the same, and there was one every two
	// ObserveIntervals at least: the storage was not down for long.
	same, lastSame time.Time
}

// compare notes the content of the report, and reports whether it has changed.
func (o *observed) compare(raw string, now time.Time) (changed bool) {
	changed = raw != o.raw
	if changed || now.Sub(o.lastSame) > 2*ObserveInterval {
		o.same = now
	}
	o.raw, o.lastSame, o.unchanged = raw, now, !changed
	return changed
}

// isGone reports whether the instance has not reported for removeAfter.
func (o *observed) isGone(now time.Time) bool {
	if o.lost {
		return now.Sub(o.changed) > removeAfter
	}
	return o.lastSame.Sub(o.same) > removeAfter
}

// NewFleet returns a fleet on the storage. It is empty until Observe or List.
func NewFleet(s *Store) *Fleet {
	return &Fleet{store: s, seen: make(map[string]time.Time), reports: make(map[string]*observed)}
}

// note remembers the journal, as returned by a read that began at now.
func (f *Fleet) note(j Journal, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Before(f.noted) {
		return // a later read is known
	}
	f.noted = now
	seen := make(map[string]time.Time, len(j))
	for _, e := range j {
		if seen[e.ID] = now; !f.seen[e.ID].IsZero() {
			seen[e.ID] = f.seen[e.ID]
		}
	}
	f.journal, f.seen = j, seen
}

// Ask asks every instance to apply the stored record of a site, whose version is at least the
// given one, or the records of all sites if site is empty. It adds a question to the journal
// unless there is a recent entry that they must apply anyway.
func (f *Fleet) Ask(ctx context.Context, site string, version int64) error {
	_, err := f.ask(ctx, site, func(j Journal) bool {
		basis := j.basis(site, version)
		for i, e := range slices.Backward(j) {
			if i < basis || basis < 0 {
				break
			}
			if e.settled() && (e.concerns(site) || site == "") {
				return f.isNew(e)
			}
		}
		return false
	})
	return err
}

// AskForRecord asks every instance to read the record of a site again, and to restore it if the
// instance knows a newer one. It does nothing if there is a recent question since the last
// switch.
func (f *Fleet) AskForRecord(ctx context.Context, site string) error {
	_, err := f.ask(ctx, site, func(j Journal) bool {
		for _, e := range slices.Backward(j) {
			if e.concerns(site) && e.settled() {
				return e.Version == 0 && f.isNew(e)
			}
		}
		return false
	})
	return err
}

// AskAnew asks every instance for an answer, including those that have just given one. It
// returns the ID of the question.
func (f *Fleet) AskAnew(ctx context.Context) (id string, err error) {
	j, err := f.ask(ctx, "", func(Journal) bool { return false })
	return j.lastSettled(), err
}

// ask adds a question to the journal, unless asked says that it is there already, and returns
// the journal.
func (f *Fleet) ask(ctx context.Context, site string, asked func(Journal) bool) (Journal, error) {
	ctx, cancel := storageContext(ctx)
	defer cancel()
	j, err := f.readJournal(ctx)
	if err != nil || asked(j) {
		return j, err
	}
	var sites []string
	if site != "" {
		// Many switches, and this question, can push entries of recent ones out of the
		// journal. So the question names their sites, too.
		sites = append(f.store.addedLately(), site)
		slices.Sort(sites)
		sites = slices.Compact(sites)
	}
	j, err = f.store.add(ctx, Entry{Sites: sites})
	if err == nil {
		f.note(j, time.Now())
	}
	return j, err
}

// isNew reports whether an entry is recent.
func (f *Fleet) isNew(e Entry) bool { return time.Since(f.firstSeen(e.ID)) < askAgainAfter }

// HasApplied reports whether an instance has answered the question with that ID.
func (f *Fleet) HasApplied(name, id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.reports[name]
	return o != nil && f.journal.index(id) >= 0 && f.journal.index(o.Applied) >= f.journal.index(id)
}

// Observe lists the other instances, and reads the reports that it has not read for longest and
// those of instances that may be gone.
func (f *Fleet) Observe(ctx context.Context) error {
	if err := f.List(ctx); err != nil {
		return err
	}
	return f.readAll(ctx, f.toObserve())
}

// maxObserved is how many reports of living instances an instance reads in each ObserveInterval,
// so that the reads of the fleet do not grow with the square of its size. Tests change it.
var maxObserved = 60

func (f *Fleet) toObserve() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	names := slices.SortedFunc(maps.Keys(f.reports), func(x, y string) int {
		return f.reports[x].lastRead.Compare(f.reports[y].lastRead)
	})
	n := 0
	return slices.DeleteFunc(names, func(name string) bool {
		n++
		return n > maxObserved && !f.reports[name].unchanged
	})
}

// List lists the other instances.
func (f *Fleet) List(ctx context.Context) error {
	ctx, cancel := storageContext(ctx)
	defer cancel()
	names, err := f.store.listReports(ctx)
	if err == nil {
		f.keep(names, f.store.emptied.Load())
	}
	return err
}

// Look reads the reports of the other instances, except for those that are done and were read
// recently.
func (f *Fleet) Look(ctx context.Context, done map[string]bool) error {
	return f.readAll(ctx, f.toRead(done))
}

func (f *Fleet) readAll(ctx context.Context, names []string) error {
	ctx, cancel := storageContext(ctx)
	defer cancel()
	var group errgroup.Group
	group.SetLimit(MaxReads)
	for _, name := range names {
		group.Go(func() error { return f.read(ctx, name) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return f.catchUp(ctx)
}

func (f *Fleet) toRead(done map[string]bool) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for name, o := range f.reports {
		if !done[name] || time.Since(o.lastRead) > askAgainAfter {
			names = append(names, name)
		}
	}
	return names
}

// catchUp reads the journal again if an instance has applied an entry that is not known here.
func (f *Fleet) catchUp(ctx context.Context) error {
	f.mu.Lock()
	behind := false
	for _, o := range f.reports {
		behind = behind || o.Applied != "" && f.journal.index(o.Applied) < 0
	}
	f.mu.Unlock()
	if !behind {
		return nil
	}
	_, err := f.readJournal(ctx)
	return err
}

func (f *Fleet) readJournal(ctx context.Context) (Journal, error) {
	began := time.Now()
	j, err := f.store.readJournal(ctx)
	if err == nil {
		f.note(j, began)
	}
	return j, err
}

// Alone reports whether there is no other instance.
func (f *Fleet) Alone() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.reports) == 0
}

func (f *Fleet) read(ctx context.Context, name string) error {
	began := time.Now()
	raw, err := await(ctx, f.store.begin(ctx, reportKey(name)))
	var r Report
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil || json.Unmarshal(raw, &r) != nil:
		f.missed(name, raw, began) // it is being written, or was removed, or cannot be read
	default:
		f.take(name, r, string(raw), began)
	}
	return nil
}

// take notes a report, as returned by a read that began at now.
func (f *Fleet) take(name string, r Report, raw string, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.reports[name]
	if o == nil || now.Before(o.lastRead) {
		return // it has been removed, or a later read is known
	}
	if r.Host == "" {
		r.Host = name
	}
	if o.compare(raw, now) {
		from := o.lastRead
		if from.IsZero() {
			from = r.Clock
		}
		if o.found.IsZero() || o.Config != r.Config {
			o.found = now // its time to apply what is stored starts now
			o.behind = nil
		}
		behind := make(map[string]time.Time, len(r.Behind))
		for _, site := range r.Behind {
			if behind[site] = now; !o.behind[site].IsZero() {
				behind[site] = o.behind[site]
			}
		}
		o.Report, o.changed, o.behind = r, now, behind
		o.skew = skew(r.Clock, from, now)
	}
	o.lastRead = now
}

// missed notes that a report could not be read: that there was raw, or nothing if raw is nil. An
// instance whose report was never read is known only by its name.
func (f *Fleet) missed(name string, raw []byte, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.reports[name]
	if o == nil || now.Before(o.lastRead) {
		return
	}
	if o.found.IsZero() {
		o.found, o.changed, o.Host = now, now, name
	}
	if raw != nil {
		o.compare(string(raw), now)
	}
	o.lastRead = now
}

// skew returns how far a clock is ahead that showed clock at some moment between from and to,
// 0 if the difference is within maxSkew.
func skew(clock, from, to time.Time) time.Duration {
	switch {
	case clock.Sub(to) > maxSkew:
		return clock.Sub(to)
	case from.Sub(clock) > maxSkew:
		return clock.Sub(from)
	}
	return 0
}

// keep adds new instances and drops those that are not listed. If the storage was emptied, it
// keeps them: they must still answer.
func (f *Fleet) keep(names []string, emptiedTimes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	emptied := emptiedTimes != f.emptied
	f.emptied = emptiedTimes
	there := make(map[string]bool, len(names))
	for _, name := range names {
		there[name] = true
	}
	maps.DeleteFunc(f.reports, func(name string, o *observed) bool {
		switch {
		case there[name]:
			o.lost = false
		case emptied && !o.lost && !o.Stopping:
			o.lost, o.changed = true, time.Now() // its time to answer starts now
		}
		return !o.lost && !there[name]
	})
	for _, name := range names {
		if f.reports[name] == nil && name != f.store.self.Name() {
			f.reports[name] = new(observed)
		}
	}
}

// Drop forgets an instance.
func (f *Fleet) Drop(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.reports, name)
}

// firstSeen returns when an entry of the journal was first seen here.
func (f *Fleet) firstSeen(id string) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen[id]
}

// rank returns the position of this instance among all by name, and how many there are.
func (f *Fleet) rank() (rank, count int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name := range f.reports {
		if name < f.store.self.Name() {
			rank++
		}
	}
	return rank, len(f.reports) + 1
}

// RemoveGone removes the reports of instances that have not reported for removeAfter.
func (f *Fleet) RemoveGone(ctx context.Context, now time.Time) {
	f.mu.Lock()
	var gone []string
	for name, o := range f.reports {
		if o.isGone(now) {
			gone = append(gone, name)
		}
	}
	f.mu.Unlock()
	for _, name := range gone {
		if f.store.Forget(ctx, name) == nil { // else the next call tries again
			f.Drop(name)
		}
	}
}

// Instances returns the other instances, by name, with regard to a site whose known record has
// that version, or to all sites if site is empty.
func (f *Fleet) Instances(site string, version int64) []Instance {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []Instance
	for name, o := range f.reports {
		i := Instance{Name: name, Report: o.Report, Seen: o.changed, Skew: o.skew}
		i.Standing, i.Current = f.standing(o, site, version)
		if basis := f.journal.basis(site, version); basis >= 0 {
			i.Asked = f.seen[f.journal[basis].ID]
		}
		if o.changed.Equal(o.found) && !o.Clock.IsZero() && o.Clock.Before(o.changed) {
			i.Seen = o.Clock // the report may be older than its first read
		}
		for closed, traffic := range o.Sites {
			if site == "" || closed == site {
				i.Traffic.InFlight += traffic.InFlight
				i.Traffic.Held += traffic.Held
			}
		}
		list = append(list, i)
	}
	slices.SortFunc(list, func(x, y Instance) int { return cmp.Compare(x.Name, y.Name) })
	return list
}

// standing returns the standing of an instance according to its report as last read.
func (f *Fleet) standing(o *observed, site string, version int64) (standing Standing, current bool) {
	if o.lastRead.IsZero() {
		return Pending, false
	}
	applied, basis := f.journal.index(o.Applied), f.journal.basis(site, version)
	behind := slices.Contains(o.Behind, site)
	if f.waitedInVain(o, site, applied) || behind && o.lastRead.Sub(o.behind[site]) > o.Patience() || o.lastRead.Sub(o.changed) > ReportInterval+o.Patience() {
		return Silent, false
	}
	current = !behind && applied >= basis && (basis >= 0 || site == "")
	if site == "" && basis >= 0 && f.seen[f.journal[basis].ID].After(o.lastRead) {
		current = true // as far as it was asked
	}
	switch {
	case o.Stopping:
		return Stopping, current
	case !current:
		return Pending, false
	case slices.Contains(o.Absent, site):
		return Absent, true
	}
	return Confirmed, true
}

// waitedInVain reports whether there is an entry of the journal that an instance has not applied
// within its Patience.
func (f *Fleet) waitedInVain(o *observed, site string, applied int) bool {
	since := o.found
	if applied < 0 {
		since = o.changed // its last applied entry has left the journal, but was there then
	}
	for i, e := range f.journal {
		if !e.settled() || site != "" && !e.concerns(site) || i <= applied {
			continue
		}
		if o.lastRead.Sub(f.seen[e.ID]) > o.Patience() && o.lastRead.Sub(since) > o.Patience() {
			return true
		}
	}
	return false
}
