package store

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"example.com/caddy-maintenance/internal/site"
)

// VerifyInterval is how often all records are read again.
const VerifyInterval = time.Minute

// Followed is a site whose record is read again when another instance may have switched it.
type Followed struct {
	*site.Site
	stale     atomic.Bool           // the record is to be read at the next tick
	readError atomic.Pointer[error] // why the record could not be read last time, nil if it could
}

// Note notes what reading the record has come to.
func (f *Followed) Note(read site.Read) {
	if read.Err == nil || errors.Is(read.Err, site.ErrInvalid) {
		f.readError.Store(nil)
	} else {
		f.readError.Store(&read.Err)
	}
}

// ReadAgain has the record read at the next tick.
func (f *Followed) ReadAgain() { f.stale.Store(true) }

// isRead reports whether the record could be read last time, and told something.
func (f *Followed) isRead() bool {
	return f.readError.Load() == nil && f.Current().Known()
}

// Follower is how far an instance has followed the others.
type Follower struct {
	Store    *Store
	Sites    map[string]*Followed
	Interval time.Duration // negative: others are not followed

	marker     string    // whose switches are known
	verified   time.Time // when all records were last read
	failing    bool      // the storage could not be read last time
	unreadable []string  // the sites whose record could not be read last time, as told
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

// Tick looks for switches of other instances: one read, however many sites there are. All
// records are to be read if another instance has switched a site, or once in
// VerifyInterval; else only those that could not be read before. A tick waits for no record,
// so that one that cannot be read holds up no other.
func (f *Follower) Tick(ctx context.Context, now time.Time) Tick {
	f.Store.stalled.Store(false)
	marker, err := f.readMarker(ctx)
	tick := Tick{Err: err, Turned: f.failing != (err != nil)}
	if f.failing = err != nil; f.failing {
		return tick
	}
	all := f.verified.IsZero()
	if f.Interval > 0 {
		all = all || marker != f.marker || now.Sub(f.verified) >= VerifyInterval
	}
	if all {
		f.verified, f.marker = now, marker
	}
	for _, s := range f.Sites {
		if all {
			s.ReadAgain()
		}
		// A read that began before the switch may return what was there before it.
		if (s.stale.Load() || !s.isRead()) && s.Reading.Load() == 0 {
			s.stale.Store(false)
			tick.ToRead = append(tick.ToRead, s)
		}
	}
	tick.Unreadable = f.findUnreadable()
	return tick
}

// readMarker reads what changes with each switch, unless others are not followed.
func (f *Follower) readMarker(ctx context.Context) (string, error) {
	if f.Interval < 0 {
		return "", nil
	}
	ctx, cancel := storageContext(ctx)
	defer cancel()
	marker, err := await(ctx, f.Store.begin(ctx, MarkerKey))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // nothing was ever switched
	}
	return string(marker), err
}

// findUnreadable returns which known sites stay as they are because their records cannot
// be read, if there are others than before, or none any more.
func (f *Follower) findUnreadable() *Unreadable {
	found := make(map[string]error)
	for name, s := range f.Sites {
		if err := s.readError.Load(); err != nil && s.Current().Known() {
			found[name] = *err
		}
	}
	before := f.unreadable
	f.unreadable = slices.Sorted(maps.Keys(found))
	switch {
	case len(found) == 0 && len(before) > 0:
		return new(Unreadable)
	case slices.ContainsFunc(f.unreadable, func(name string) bool { return !slices.Contains(before, name) }):
		return &Unreadable{f.unreadable, found[f.unreadable[0]]}
	}
	return nil
}
