// Package site is what a site is, apart from its requests: the record that is stored of
// it, the options of a maintenance, the bypass secret, and the state machine that
// switches it.
//
// A State never changes; a Site replaces its state as a whole. What replaces one returns
// a Change, and its caller passes that on. The package does no I/O, starts nothing, and
// knows neither Caddy nor where records are stored: the time is an argument of whatever
// depends on it, and so is the parser of durations.
package site

import (
	"context"
	"errors"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Site is the state of a site, shared by all that refer to its name.
type Site struct {
	Name string

	state     atomic.Pointer[State]
	publishMu sync.Mutex

	// Turn holds a token while a switch of the site is under way, so that switches of one
	// site go one at a time.
	Turn chan struct{}

	// LastVersion is the highest version that a switch has tried to store, which may still
	// come to be stored after a failure. It is guarded by Turn.
	LastVersion int64

	// PendingVersion is the version that a switch is about to store and to publish, 0 if
	// none is.
	PendingVersion atomic.Int64

	// StoredVersion is the highest version that is known to have been stored, by whichever
	// instance. A record that is older is outdated.
	StoredVersion atomic.Int64

	// Reading is how many reads of the record are under way.
	Reading atomic.Int32
}

// New returns a site whose record has not been read yet.
func New(name string, now time.Time) *Site { return newSite(name, Loading, now) }

// NewUnset returns a site that is known to have no record.
func NewUnset(name string, now time.Time) *Site { return newSite(name, Unset, now) }

func newSite(name string, kind Kind, now time.Time) *Site {
	s := &Site{Name: name, Turn: make(chan struct{}, 1)}
	st := newState(kind)
	st.blockedSince = now
	s.state.Store(st)
	return s
}

// Current returns the state. It begins and ends a maintenance whose time has come.
func (s *Site) Current() *State {
	st := s.state.Load()
	if st.deadline().IsZero() {
		return st
	}
	return s.currentAt(time.Now())
}

func (s *Site) currentAt(now time.Time) *State {
	for {
		st := s.state.Load()
		if !st.due(now) {
			return st
		}
		s.replace(st, st.advance(), now)
	}
}

// Apply takes what was read, or stored by a switch, as the state of the site. It yields
// the changes that this makes: none if it was no news, since a newer record is in memory;
// several if the clock has made some before. While its caller is at work with a change,
// no other one of the site is yielded, so that all are told of changes in their order.
func (s *Site) Apply(read Read, cause Cause, now time.Time) iter.Seq[Change] {
	return func(yield func(Change) bool) {
		s.publishMu.Lock()
		defer s.publishMu.Unlock()
		for {
			if r := read.Record; r != nil && r.Version == s.PendingVersion.Load() && cause.Source == SourceSync {
				return // what a switch here has just stored is not another instance's
			}
			st := s.currentAt(now)
			next := st.next(read, now)
			if next == nil {
				return
			}
			if !s.replace(st, next, now) {
				continue
			}
			for _, change := range s.byClock(st) {
				if !yield(change) {
					return
				}
			}
			yield(Change{Site: s, Before: st, After: next, Cause: cause})
			return
		}
	}
}

// Tick yields the changes that the clock has made, each once.
func (s *Site) Tick(now time.Time) iter.Seq[Change] {
	return func(yield func(Change) bool) {
		s.publishMu.Lock()
		defer s.publishMu.Unlock()
		for _, change := range s.byClock(s.currentAt(now)) {
			if !yield(change) {
				return
			}
		}
	}
}

// byClock returns the changes to a state that the clock has made, in their order, the first
// time.
func (s *Site) byClock(st *State) (changes []Change) {
	for ; st.before != nil && st.reported.CompareAndSwap(false, true); st = st.before {
		changes = append(changes, Change{Site: s, Before: st.before, After: st, Cause: Cause{Source: st.source()}})
	}
	slices.Reverse(changes)
	return changes
}

// replace puts next in the place of old, unless another state has done so.
func (s *Site) replace(old, next *State, now time.Time) bool {
	if next.closed() {
		next.blockedSince = old.blockedSince
		if !old.closed() {
			next.blockedSince = now
		}
	}
	if !s.state.CompareAndSwap(old, next) {
		return false
	}
	close(old.changed)
	return true
}

// NoteStored notes that a record of that version has been stored.
func (s *Site) NoteStored(version int64) {
	for {
		known := s.StoredVersion.Load()
		if version <= known || s.StoredVersion.CompareAndSwap(known, version) {
			return
		}
	}
}

// Remember takes a record that was known before the process began. It counts as the last
// one known, while the site is loading.
func (s *Site) Remember(r *Record, now time.Time) {
	for {
		st := s.state.Load()
		if st.kind != Loading || st.record != nil && !r.NewerThan(st.record) {
			return
		}
		next := newState(Loading)
		next.record = r
		if s.replace(st, next, now) {
			return
		}
	}
}

// Reload has requests wait until the record has been read again.
func (s *Site) Reload(now time.Time) {
	for {
		st := s.currentAt(now)
		next := newState(Loading)
		next.record = st.record
		if s.replace(st, next, now) {
			return
		}
	}
}

// ErrStopped says that nobody waits for the record any more.
var ErrStopped = errors.New("stopped")

// Ready waits until the record has been read, or cannot be, or until stop is closed. It has
// been unless the process has only just begun.
func (s *Site) Ready(ctx context.Context, stop <-chan struct{}) error {
	for {
		st := s.state.Load()
		if st.kind != Loading {
			return nil
		}
		select {
		case <-st.changed:
		case <-stop:
			return ErrStopped
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Change is what has become of a site.
type Change struct {
	Site          *Site
	Before, After *State
	Cause         Cause
}

// Cause is where a change comes from.
type Cause struct {
	Source   Source
	Client   string          // of the admin API: its address
	Answered <-chan struct{} // closed when that client has its answer; nil if there is none
}

// Source is how metrics, log and events call the cause of a change.
type Source string

// The sources of changes.
const (
	SourceAPI   Source = "api"   // this instance was told
	SourceSync  Source = "sync"  // another instance was
	SourceFrom  Source = "from"  // a scheduled maintenance has begun
	SourceUntil Source = "until" // the maintenance is over by itself
)
