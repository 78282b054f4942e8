// Package site describes a site without its requests: its stored record, the options of a
// maintenance, the bypass secret, and the state machine that switches it.
//
// A State never changes; a Site replaces its state as a whole. A function that replaces a
// state returns a Change, which its caller passes on. The package does no I/O, starts no
// goroutine, and knows neither Caddy nor the storage. The time and the parser of durations
// are arguments.
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

// Site holds the state of a site. All handlers with its name share it.
type Site struct {
	Name string

	state     atomic.Pointer[State]
	publishMu sync.Mutex

	// Turn holds a token while a switch of the site is under way, so that switches of one
	// site go one at a time.
	Turn chan struct{}

	// LastVersion is the highest version that a switch has tried to store. Even a store that
	// failed may still take effect. It is guarded by Turn.
	LastVersion int64

	// PendingVersion is the version that a switch is storing and will publish, 0 if there is
	// none.
	PendingVersion atomic.Int64

	// StoredVersion is the highest version that is known to have been stored by any instance.
	// An older record is outdated.
	StoredVersion atomic.Int64

	// Reading is the number of reads of the record under way.
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

// Current returns the state. It first begins or ends a maintenance whose time has come.
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

// Apply makes what was read, or what a switch stored, the state of the site. It yields the
// resulting changes: none if the state is at least as new, several if the clock has made
// changes that were not yielded yet. While the caller handles a change, no other change of
// the site is yielded, so that changes are passed on in order.
func (s *Site) Apply(read Read, cause Cause, now time.Time) iter.Seq[Change] {
	return func(yield func(Change) bool) {
		s.publishMu.Lock()
		defer s.publishMu.Unlock()
		for {
			if r := read.Record; r != nil && r.Version == s.PendingVersion.Load() && cause.Source == SourceSync {
				return // a switch on this instance stored it, and will publish it
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

// Tick yields each change that the clock has made, once.
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

// byClock returns the changes by which the clock has made st, oldest first, unless they have
// been returned before.
func (s *Site) byClock(st *State) (changes []Change) {
	for ; st.before != nil && st.reported.CompareAndSwap(false, true); st = st.before {
		changes = append(changes, Change{Site: s, Before: st.before, After: st, Cause: Cause{Source: st.source()}})
	}
	slices.Reverse(changes)
	return changes
}

// replace replaces old by next. It returns false if old is not the state any more.
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

// NoteStored notes that a record of that version is stored.
func (s *Site) NoteStored(version int64) {
	for {
		known := s.StoredVersion.Load()
		if version <= known || s.StoredVersion.CompareAndSwap(known, version) {
			return
		}
	}
}

// Remember makes a record from before the process began the last one known, while the site
// is loading.
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

// Reload makes requests wait until the record has been read again.
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

// ErrStopped says that stop was closed before the record was read.
var ErrStopped = errors.New("stopped")

// Ready waits until the record has been read or reading it has failed, or until stop is
// closed or ctx ends. It only has to wait just after a start or a reload.
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

// Change is a change of a site's state.
type Change struct {
	Site          *Site
	Before, After *State
	Cause         Cause
}

// Cause is where a change comes from.
type Cause struct {
	Source   Source
	Client   string          // address of the admin API's client
	Answered <-chan struct{} // closed when that client has its response; nil if there is no client
}

// Source names the cause of a change in metrics, the log and events.
type Source string

// The sources of changes.
const (
	SourceAPI   Source = "api"   // a switch on this instance
	SourceSync  Source = "sync"  // a switch on another instance
	SourceFrom  Source = "from"  // a scheduled maintenance has begun
	SourceUntil Source = "until" // the maintenance has ended by itself
)
