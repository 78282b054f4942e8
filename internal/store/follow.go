package store

import (
	"context"
	"errors"
	"hash/fnv"
	"iter"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"example.com/caddy-maintenance/internal/site"
)

const (
	// VerifyInterval is how often each record is read again by one of the instances.
	VerifyInterval = time.Minute

	// beganInterval is how long the record of a switch that has begun, but is not done, is read
	// at each tick.
	beganInterval = time.Minute
)

// Sites gives a follower access to the sites of a config. Sites of a name with placeholders that
// were never switched are not in memory. One site stands for all of them, and reading its
// record means listing all records.
type Sites interface {
	// All yields the sites that are in memory.
	All() iter.Seq[*Followed]

	// Find returns a site, nil if it is not in memory, and whether the config has it.
	Find(name string) (s *Followed, has bool)

	// ReadAgain brings a site of the config into memory, and makes the next tick read its
	// record.
	ReadAgain(name string)
}

// Followed is a site whose record is read again if another instance may have switched it.
type Followed struct {
	*site.Site
	waiting   atomic.Bool           // the first read, which is not a tick's, has not begun
	applying  atomic.Int32          // number of ticks' reads that have not been applied
	stale     atomic.Bool           // the next tick reads the record
	verifying atomic.Bool           // the next read only verifies the record
	lastError atomic.Pointer[error] // of the last read; nil if there was none
}

// Wait leaves the first read of the record to the caller, who calls Begin when it has begun.
func (f *Followed) Wait() { f.waiting.Store(true) }

// Waits reports whether the first read has not begun.
func (f *Followed) Waits() bool { return f.waiting.Load() }

// Begin notes that the first read has begun.
func (f *Followed) Begin() { f.waiting.Store(false) }

// Note notes the result of reading the record.
func (f *Followed) Note(read site.Read) {
	var why *error
	if read.Err != nil {
		why = &read.Err
	}
	f.lastError.Store(why)
}

// readError returns the error of the last read, nil if the record was read but is invalid.
func (f *Followed) readError() error {
	if err := f.Err(); !errors.Is(err, site.ErrInvalid) {
		return err
	}
	return nil
}

// Expect notes that the record will be read for a tick. The reader calls Applied afterwards.
func (f *Followed) Expect() {
	f.applying.Add(1)
	f.stale.Store(false)
}

// Err returns the error of the last read, nil if there was none.
func (f *Followed) Err() error {
	if err := f.lastError.Load(); err != nil {
		return *err
	}
	return nil
}

// Applied notes that an expected read has been applied.
func (f *Followed) Applied() { f.applying.Add(-1) }

// ReadAgain makes the next tick read the record.
func (f *Followed) ReadAgain() { f.stale.Store(true) }

// Verify notes that the next read only verifies the record.
func (f *Followed) Verify() { f.verifying.Store(true) }

// Verified reports whether the last read only verified the record, and clears that.
func (f *Followed) Verified() bool { return f.verifying.Swap(false) }

// isRead reports whether the last read succeeded and the state is known.
func (f *Followed) isRead() bool {
	return f.readError() == nil && f.Current().Known()
}

// Behind reports whether a stored record may not have been read or applied yet.
func (f *Followed) Behind() bool {
	return f.waiting.Load() || f.Current().Kind() == site.Loading || f.stale.Load() || f.readError() != nil || f.Reading.Load() > 0 ||
		f.applying.Load() > 0 || f.Current().Version() < f.StoredVersion.Load()
}

// Follower follows the switches of other instances.
type Follower struct {
	Store    *Store
	Sites    Sites
	Fleet    *Fleet
	Interval time.Duration // negative if others are not followed

	began      bool        // the first tick has marked all records to be read
	emptied    int64       // Store.emptied when all records were last marked
	journal    Journal     // as last read
	share      []*Followed // the records left to verify in this VerifyInterval
	perTick    int         // how many of them each tick verifies
	shared     time.Time   // when this VerifyInterval began
	failing    bool        // the last tick could not read the storage
	unreadable []string    // the sites whose records could not be read at the last tick
}

// Tick is the result of a tick.
type Tick struct {
	Err        error       // why the storage cannot be read
	Turned     bool        // that has changed since the last tick
	ToRead     []*Followed // the sites whose records the caller must read now
	Unreadable *Unreadable // nil if there is nothing new to report
}

// Unreadable lists the sites that keep their state because their records cannot be read. It is
// empty when all can be read again.
type Unreadable struct {
	Sites []string
	Err   error // of one of them
}

// Tick looks for switches of other instances. It reads the journal, one read regardless of the
// number of sites, and returns the sites whose records the caller must read: those with new
// entries in the journal, and this instance's share of those to verify. It returns all sites at
// the first tick, after the storage was emptied, and when none of the known entries is left in
// the journal. A tick waits for no record, so that one that cannot be read delays no other.
func (f *Follower) Tick(ctx context.Context, now time.Time) Tick {
	f.Store.stalled.Store(false)
	journal, err := f.readJournal(ctx)
	tick := Tick{Err: err, Turned: f.failing != (err != nil)}
	if f.failing = err != nil; f.failing {
		return tick
	}
	f.readSites(journal, now)
	for s := range f.Sites.All() {
		// A read that began before the switch may return what was there before it.
		if (s.stale.Load() || !s.isRead()) && s.Reading.Load() == 0 && !s.waiting.Load() {
			s.Expect()
			tick.ToRead = append(tick.ToRead, s)
		}
	}
	tick.Unreadable = f.findUnreadable()
	return tick
}

// readJournal reads the journal, unless others are not followed. If it is missing, an empty one
// is stored for the next tick to find.
func (f *Follower) readJournal(ctx context.Context) (Journal, error) {
	if f.Interval < 0 {
		return nil, nil
	}
	ctx, cancel := storageContext(ctx)
	defer cancel()
	j, err := f.Store.readJournal(ctx)
	if err == nil && j == nil {
		_, _ = f.Store.add(ctx)
	}
	return j, err
}

// readSites marks the sites whose records must be read.
func (f *Follower) readSites(j Journal, now time.Time) {
	f.Fleet.note(j, now)
	if emptied := f.Store.emptied.Load(); !f.began || emptied != f.emptied || f.hasLost(j) {
		f.emptied = emptied
		f.began, f.shared, f.share = true, now, nil
		for s := range f.Sites.All() {
			if !s.Waits() { // else its first read has not begun
				s.ReadAgain()
			}
		}
	}
	for _, e := range j {
		isKnown := f.journal.index(e.ID) >= 0
		began := !e.settled() && now.Sub(f.Fleet.firstSeen(e.ID)) < beganInterval
		for _, name := range e.names() {
			s, has := f.Sites.Find(name)
			if has && (!isKnown || began) && (s == nil || e.Version == 0 || e.Version > s.Current().Version()) {
				f.Sites.ReadAgain(name)
				s, _ = f.Sites.Find(name)
			}
			if s != nil && e.Done {
				s.NoteStored(e.Version)
			}
		}
	}
	for _, name := range j.lost(f.journal) {
		if _, has := f.Sites.Find(name); has {
			f.Sites.ReadAgain(name)
		}
	}
	f.journal = j
	f.verify(now)
}

// hasLost reports whether entries may have left the journal before they were seen here: none of
// the known ones is left.
func (f *Follower) hasLost(j Journal) bool {
	if f.journal.lastSettled() == "" {
		return len(j) == maxEntries
	}
	return !j.hasAny(f.journal)
}

// verify marks the records that this tick verifies.
func (f *Follower) verify(now time.Time) {
	if f.Interval < 0 {
		return
	}
	if now.Sub(f.shared) >= VerifyInterval {
		f.shared = now
		f.share = f.shareOf(now)
		f.perTick = 1 + int(time.Duration(len(f.share))*f.Interval/VerifyInterval)
	}
	n := min(f.perTick, len(f.share))
	for _, s := range f.share[:n] {
		s.Verify()
		s.ReadAgain()
	}
	f.share = f.share[n:]
}

// shareOf returns the sites whose records this instance verifies in a VerifyInterval. They change
// each minute, since not all instances may have the same sites.
func (f *Follower) shareOf(now time.Time) []*Followed {
	rank, count := f.Fleet.rank()
	var share []*Followed
	for s := range f.Sites.All() {
		hash := fnv.New32a()
		_, _ = hash.Write([]byte(s.Name))
		if (int64(hash.Sum32())+now.Unix()/60)%int64(count) == int64(rank) {
			share = append(share, s)
		}
	}
	return share
}

// Progress returns the last entry of the journal that this instance has applied, and which sites
// of the journal its config has (present), which of these are Behind, and which it does not
// have (absent).
func (f *Follower) Progress() (applied string, present, behind, absent []string) {
	named := make(map[string]bool)
	for _, e := range f.journal {
		for _, name := range e.names() {
			named[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(named)) {
		s, has := f.Sites.Find(name)
		if !has {
			absent = append(absent, name)
			continue
		}
		present = append(present, name)
		if s != nil && s.Behind() {
			behind = append(behind, name)
		}
	}
	return f.journal.lastSettled(), present, behind, absent
}

// findUnreadable returns the known sites whose records cannot be read, if there are new ones, or
// if there were some and there are none any more.
func (f *Follower) findUnreadable() *Unreadable {
	found := make(map[string]error)
	for s := range f.Sites.All() {
		if err := s.readError(); err != nil && s.Current().Known() {
			found[s.Name] = err
		}
	}
	before := f.unreadable
	f.unreadable = slices.Sorted(maps.Keys(found))
	switch {
	case len(found) == 0 && len(before) > 0:
		return new(Unreadable)
	case slices.ContainsFunc(f.unreadable, func(name string) bool {
		_, known := slices.BinarySearch(before, name)
		return !known
	}):
		return &Unreadable{f.unreadable, found[f.unreadable[0]]}
	}
	return nil
}
