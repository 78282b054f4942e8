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
	// removeAfter is how long the report of an instance stays that does not report any more.
	removeAfter = 10 * time.Minute

	// ObserveInterval is how often an instance looks which others there are.
	ObserveInterval = time.Minute

	// maxSkew is how far clocks may differ without a word.
	maxSkew = 30 * time.Second

	// askAgainAfter is how long a question stands for those that are asked later: whoever has
	// answered it may have gone since.
	askAgainAfter = 10 * time.Second
)

// Standing is what is known of an instance.
type Standing int

// The standings of an instance.
const (
	Confirmed Standing = iota // it has applied everything that was stored before it was asked
	Pending                   // it has not answered yet
	Silent                    // it has not answered in time: whether it lets requests in is not known
	Stopping                  // its process ends
	Absent                    // its config does not have the site
)

// Instance is what an instance has last said of itself.
type Instance struct {
	Name string // of its report
	Report
	Standing Standing
	Current  bool          // it has applied what was stored before it was asked
	Traffic  Traffic       // of the site, or of all closed sites if no site was asked for
	Seen     time.Time     // when its report has last changed
	Asked    time.Time     // since when it is known here that it has to
	Skew     time.Duration // how far its clock is ahead, 0 if no further than 30 s
}

// Drained reports whether a site is closed there and nothing is in flight: nothing will be.
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
	noted   time.Time            // when reading it has begun
	seen    map[string]time.Time // the entries of the journal, and since when they are known here
	reports map[string]*observed // by name
	emptied int64                // how often the storage had been emptied when they were listed
}

// observed is a report, and when it was seen to change.
type observed struct {
	Report
	raw      string
	found    time.Time // when it was first read, with the config that it has
	changed  time.Time
	lastRead time.Time
	skew     time.Duration
	behind   map[string]time.Time // the sites that it could not read yet, and since when it says so
	lost     bool                 // with what else was in the storage
}

// NewFleet returns the instances on the storage. It knows none before it observes them.
func NewFleet(s *Store) *Fleet {
	return &Fleet{store: s, seen: make(map[string]time.Time), reports: make(map[string]*observed)}
}

// note notes the journal as it was read, which has begun now.
func (f *Fleet) note(j Journal, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Before(f.noted) {
		return // a newer one is known
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

// Ask has every instance apply what is stored of a site, of which a record of that version
// is known, or of any site if none is named. It adds a question to the journal unless there is
// an entry that they have to apply anyway.
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

// AskForRecord has every instance read the record of a site again, and store it if it is
// older than what it knows. It does nothing if that has just been asked since the last switch.
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

// AskAnew has every instance answer, also those that have just done so, and returns the
// question.
func (f *Fleet) AskAnew(ctx context.Context) (id string, err error) {
	j, err := f.ask(ctx, "", func(Journal) bool { return false })
	return j.lastSettled(), err
}

// ask adds a question to the journal, if it was not asked already, and returns the journal.
func (f *Fleet) ask(ctx context.Context, site string, asked func(Journal) bool) (Journal, error) {
	ctx, cancel := storageContext(ctx)
	defer cancel()
	j, err := f.readJournal(ctx)
	if err != nil || asked(j) {
		return j, err
	}
	var sites []string
	if site != "" {
		// Many switches push others out of the journal, and so does a question: it is
		// about all of them.
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

// isNew reports whether an entry has just been seen for the first time.
func (f *Fleet) isNew(e Entry) bool { return time.Since(f.firstSeen(e.ID)) < askAgainAfter }

// HasApplied reports whether an instance has answered a question.
func (f *Fleet) HasApplied(name, id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.reports[name]
	return o != nil && f.journal.index(id) >= 0 && f.journal.index(o.Applied) >= f.journal.index(id)
}

// Observe finds out which other instances there are, and reads the reports of some: those
// that it has not read for longest.
func (f *Fleet) Observe(ctx context.Context) error {
	if err := f.List(ctx); err != nil {
		return err
	}
	return f.readAll(ctx, f.longestUnread(maxObserved))
}

// maxObserved is how many reports an instance reads once in ObserveInterval, so that what all
// of them read does not grow with the square of their number.
const maxObserved = 60

func (f *Fleet) longestUnread(limit int) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	names := slices.SortedFunc(maps.Keys(f.reports), func(x, y string) int {
		return f.reports[x].lastRead.Compare(f.reports[y].lastRead)
	})
	return names[:min(limit, len(names))]
}

// List finds out which other instances there are.
func (f *Fleet) List(ctx context.Context) error {
	ctx, cancel := storageContext(ctx)
	defer cancel()
	names, err := f.store.listReports(ctx)
	if err == nil {
		f.keep(names, f.store.emptied.Load())
	}
	return err
}

// Look reads the reports of the other instances, but of those that are done and were read
// a short time ago.
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

// catchUp reads the journal again if an instance has applied what is not in it as it was
// read last.
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

// Alone reports whether no other instance was found.
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
		f.missed(name, began) // it is being written or removed, or cannot be read
	default:
		f.take(name, r, string(raw), began)
	}
	return nil
}

// take takes a report as it was read.
func (f *Fleet) take(name string, r Report, raw string, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.reports[name]
	if o == nil || now.Before(o.lastRead) {
		return // it has gone meanwhile, or a newer one is known
	}
	if r.Host == "" {
		r.Host = name
	}
	if o.raw != raw {
		from := o.lastRead
		if from.IsZero() {
			from = r.Clock
		}
		if o.found.IsZero() || o.Config != r.Config {
			o.found = now // and it has as long as any to read what is stored
			o.behind = nil
		}
		behind := make(map[string]time.Time, len(r.Behind))
		for _, site := range r.Behind {
			if behind[site] = now; !o.behind[site].IsZero() {
				behind[site] = o.behind[site]
			}
		}
		o.Report, o.raw, o.changed, o.behind = r, raw, now, behind
		o.skew = skew(r.Clock, from, now)
	}
	o.lastRead = now
}

// missed notes that a report could not be read. An instance whose report never could is
// known by its name alone.
func (f *Fleet) missed(name string, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.reports[name]
	if o == nil || now.Before(o.lastRead) {
		return
	}
	if o.found.IsZero() {
		o.found, o.changed, o.Host = now, now, name
	}
	o.lastRead = now
}

// skew is how far a clock is ahead that has shown clock between two moments, 0 if no
// further than maxSkew.
func skew(clock, from, to time.Time) time.Duration {
	switch {
	case clock.Sub(to) > maxSkew:
		return clock.Sub(to)
	case from.Sub(clock) > maxSkew:
		return clock.Sub(from)
	}
	return 0
}

// keep keeps what was observed of the instances that are there, and drops that of others. If
// the storage was emptied, those that were there have to answer all the same.
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
			o.lost, o.changed = true, time.Now() // it has as long as any to answer
		}
		return !o.lost && !there[name]
	})
	for _, name := range names {
		if f.reports[name] == nil && name != f.store.self.Name() {
			f.reports[name] = new(observed)
		}
	}
}

// Drop drops what was observed of an instance.
func (f *Fleet) Drop(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.reports, name)
}

// firstSeen returns since when an entry of the journal is known here.
func (f *Fleet) firstSeen(id string) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen[id]
}

// rank returns the place of this instance among all, and how many there are.
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

// RemoveGone removes the reports of instances that have not reported for long.
func (f *Fleet) RemoveGone(ctx context.Context, now time.Time) {
	f.mu.Lock()
	var gone []string
	for name, o := range f.reports {
		if !o.lastRead.IsZero() && now.Sub(o.changed) > removeAfter {
			gone = append(gone, name)
		}
	}
	f.mu.Unlock()
	for _, name := range gone {
		if f.store.Forget(ctx, name) == nil { // else the next minute comes
			f.Drop(name)
		}
	}
}

// Instances returns what the other instances have last said, of a site, of which a record of
// that version is known, or of all.
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
			i.Seen = o.Clock // it may have been there for long
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

// standing says what is known of an instance by its report as it was last read.
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

// waitedInVain reports whether an instance has had an entry of the journal before it for
// longer than it may take, and has not applied it.
func (f *Fleet) waitedInVain(o *observed, site string, applied int) bool {
	since := o.found
	if applied < 0 {
		since = o.changed // what it has applied is not in the journal any more; it has just been there
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
