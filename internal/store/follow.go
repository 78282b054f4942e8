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
	// VerifyInterval is how often the instances together read each record again.
	VerifyInterval = time.Minute

	// beganInterval is how long the record of a switch that has begun is looked at.
	beganInterval = time.Minute
)

// Sites is the sites of a config, as a follower knows them. A config can have sites that it
// keeps nothing of: those that were never switched, of a name with placeholders. In place of
// their records the list of all records is read, as the record of a site that stands for them.
type Sites interface {
	// All yields the sites that are in memory.
	All() iter.Seq[*Followed]

	// Find returns a site that is in memory, nil if it is not, and whether the config has it.
	Find(name string) (s *Followed, has bool)

	// ReadAgain brings a site into memory that the config has, and has its record read at the
	// next tick.
	ReadAgain(name string)
}

// Followed is a site whose record is read again when another instance may have switched it.
type Followed struct {
	*site.Site
	waiting   atomic.Bool           // the first read has still to begin, and not by a tick
	applying  atomic.Int32          // how many reads of ticks have not been applied yet
	stale     atomic.Bool           // the record is to be read at the next tick
	verifying atomic.Bool           // and nobody has told of a switch
	lastError atomic.Pointer[error] // why the record told nothing last time, nil if it did
}

// Wait leaves the first read of the record to whoever calls Begin.
func (f *Followed) Wait() { f.waiting.Store(true) }

// Waits reports whether the first read has still to begin.
func (f *Followed) Waits() bool { return f.waiting.Load() }

// Begin is called when the first read has begun.
func (f *Followed) Begin() { f.waiting.Store(false) }

// Note notes what reading the record has come to.
func (f *Followed) Note(read site.Read) {
	var why *error
	if read.Err != nil {
		why = &read.Err
	}
	f.lastError.Store(why)
}

// readError returns why the record could not be read last time, nil if it could.
func (f *Followed) readError() error {
	if err := f.Err(); !errors.Is(err, site.ErrInvalid) {
		return err
	}
	return nil
}

// Expect says that the record is read as a tick has asked for. Whoever reads it calls Applied.
func (f *Followed) Expect() {
	f.applying.Add(1)
	f.stale.Store(false)
}

// Err returns why the record tells nothing, nil if it does or has not been read.
func (f *Followed) Err() error {
	if err := f.lastError.Load(); err != nil {
		return *err
	}
	return nil
}

// Applied is called when a read that was expected has been applied.
func (f *Followed) Applied() { f.applying.Add(-1) }

// ReadAgain has the record read at the next tick.
func (f *Followed) ReadAgain() { f.stale.Store(true) }

// Verify says that the next read is only to verify the record.
func (f *Followed) Verify() { f.verifying.Store(true) }

// Verified reports whether the record was read only to verify it, the first time.
func (f *Followed) Verified() bool { return f.verifying.Swap(false) }

// isRead reports whether the record could be read last time, and told something.
func (f *Followed) isRead() bool {
	return f.readError() == nil && f.Current().Known()
}

// Behind reports whether the record has still to be read, or to be applied.
func (f *Followed) Behind() bool {
	return f.waiting.Load() || f.Current().Kind() == site.Loading || f.stale.Load() || f.readError() != nil || f.Reading.Load() > 0 ||
		f.applying.Load() > 0 || f.Current().Version() < f.StoredVersion.Load()
}

// Follower is how far an instance has followed the others.
type Follower struct {
	Store    *Store
	Sites    Sites
	Fleet    *Fleet
	Interval time.Duration // negative: others are not followed

	began      bool        // all records have been read once
	emptied    int64       // how often the storage had been emptied then
	journal    Journal     // as it was last read
	share      []*Followed // the records to verify in this minute
	perTick    int         // how many of them at each tick
	shared     time.Time   // when this minute began
	failing    bool        // the storage could not be read last time
	unreadable []string    // the sites whose record could not be read last time, as told
}

// Tick is what a look at the storage has come to.
type Tick struct {
	Err        error       // why the storage cannot be read
	Turned     bool        // it could be read before and cannot now, or the other way round
	ToRead     []*Followed // the sites whose record is to be read now
	Unreadable *Unreadable // nil if that is no news
}

// Unreadable are sites that stay as they are, since their records cannot be read; none if
// all can be read again.
type Unreadable struct {
	Sites []string
	Err   error // of one of them
}

// Tick looks for switches of other instances: one read, however many sites there are. To
// be read are then the records of the sites that the journal has new entries of, and this
// instance's share of those to verify; all records, if it is the first tick, or if what the
// journal said before is not in it any more. A tick waits for no record, so that one that
// cannot be read holds up no other.
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

// readJournal reads the journal, unless others are not followed. One that is missing is
// stored, so that the next tick finds one.
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

// readSites marks the sites whose records are to be read.
func (f *Follower) readSites(j Journal, now time.Time) {
	f.Fleet.note(j, now)
	if emptied := f.Store.emptied.Load(); !f.began || emptied != f.emptied || f.hasLost(j) {
		f.emptied = emptied
		f.began, f.shared, f.share = true, now, nil
		for s := range f.Sites.All() {
			if !s.Waits() { // else its first read is still to come
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
	f.journal = j
	f.verify(now)
}

// hasLost reports whether the journal may have had entries that were never seen here: none of
// those that were is left.
func (f *Follower) hasLost(j Journal) bool {
	if f.journal.lastSettled() == "" {
		return len(j) == maxEntries
	}
	return !j.hasAny(f.journal)
}

// verify marks what is to be verified at this tick.
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

// shareOf returns the sites whose records this instance verifies in a minute. Each minute
// they are others, for the instances need not have the same sites.
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

// Progress returns how far this instance has come: the last entry of the journal that it has
// applied, and the sites of the journal: those that it has, of these those that it could not
// read yet, and those that it does not have.
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

// findUnreadable returns which known sites stay as they are because their records cannot
// be read, if there are others than before, or none any more.
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
