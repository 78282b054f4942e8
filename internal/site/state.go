package site

import (
	"errors"
	"sync/atomic"
	"time"
)

// State is what is known of a site at one moment. It never changes what it says.
type State struct {
	kind         Kind
	record       *Record       // as stored, of Stored; of Loading, the last one known
	phase        phase         // of a record that is enabled
	before       *State        // if the clock has made this one of it
	reported     atomic.Bool   // the change by the clock has been yielded
	blockedSince time.Time     // since when this instance lets nobody in, if it does not
	changed      chan struct{} // closed when another state takes its place
}

// phase is how far a maintenance is. It does not go back if the clock is set back.
type phase int

const (
	scheduled phase = iota // until the record's from
	running                // until its until
	over
)

// Kind is how much is known of a site.
type Kind int

// In the order of what is known: from Unset on, the state is.
const (
	Loading Kind = iota // being read
	Unknown             // could not be read
	Invalid             // there is a record that nothing can be learned from
	Unset               // there is no record: the site was never switched
	Stored              // what the record says
)

// Read is what reading a record has come to.
type Read struct {
	Record    *Record // nil if there is none
	Err       error   // why it could not be read; ErrInvalid or ErrOutdated if it tells nothing
	Tentative bool    // another read is under way: that this one has failed tells nothing
}

func newState(kind Kind) *State { return &State{kind: kind, changed: make(chan struct{})} }

// newStoredState returns the state of a record. What the clock has made of it before has been
// told by whoever was there then.
func newStoredState(r *Record, now time.Time) *State {
	st := newState(Stored)
	st.record = r
	if r.From.IsZero() {
		st.phase = running
	}
	for st.due(now) {
		st.phase++
	}
	return st
}

// next returns the state after a read, or nil if that tells no more than st does. Where
// there was an invalid record, its absence tells nothing: whoever removed it has not said
// that the site may open.
func (st *State) next(read Read, now time.Time) *State {
	var kind Kind
	switch r := read.Record; {
	case read.Tentative && read.Err != nil && !errors.Is(read.Err, ErrInvalid):
		return nil
	case errors.Is(read.Err, ErrOutdated):
		kind = Unknown
	case r != nil && (st.record == nil || r.NewerThan(st.record)):
		return newStoredState(r, now)
	case st.kind == Loading && st.record != nil:
		return newStoredState(st.record, now)
	case r != nil:
		return nil
	case errors.Is(read.Err, ErrInvalid):
		kind = Invalid
	case read.Err != nil:
		kind = Unknown
	default:
		kind = Unset
	}
	if st.kind >= Invalid || kind <= st.kind {
		return nil
	}
	return newState(kind)
}

// deadline is when the clock makes another state of this one, zero if it does not.
func (st *State) deadline() time.Time {
	switch {
	case st.kind != Stored || !st.record.Enabled:
		return time.Time{}
	case st.phase == scheduled:
		return st.record.From
	case st.phase == running:
		return st.record.Until
	}
	return time.Time{}
}

// due reports whether the clock has to make another state of this one.
func (st *State) due(now time.Time) bool {
	deadline := st.deadline()
	return !deadline.IsZero() && !now.Before(deadline)
}

// advance returns the state that the clock makes of this one.
func (st *State) advance() *State {
	next := newState(Stored)
	next.record, next.phase, next.before = st.record, st.phase+1, st
	return next
}

// source is what has made this state, if the clock has.
func (st *State) source() Source {
	if st.phase == running {
		return SourceFrom
	}
	return SourceUntil
}

// Unreported reports whether the clock has made this state and nobody has been told.
func (st *State) Unreported() bool { return st.before != nil && !st.reported.Load() }

// Kind returns how much is known.
func (st *State) Kind() Kind { return st.kind }

// Known reports whether the state is known.
func (st *State) Known() bool { return st.kind >= Unset }

// Record returns the record, nil if there is none.
func (st *State) Record() *Record { return st.record }

// Changed returns a channel that is closed when another state takes the place of this one.
func (st *State) Changed() <-chan struct{} { return st.changed }

// Expired reports whether the maintenance has ended by itself.
func (st *State) Expired() bool { return st.phase == over }

// NewerThan reports whether the state is of a newer record than r, which may be nil.
func (st *State) NewerThan(r *Record) bool {
	return st.record != nil && (r == nil || st.record.NewerThan(r))
}

// Version is that of the record, 0 if there is none.
func (st *State) Version() int64 {
	if st.record == nil {
		return 0
	}
	return st.record.Version
}

// closed reports whether requests are blocked whatever the site's initial state.
func (st *State) closed() bool { return st.kind != Unset && View{State: st}.Blocks() }

// BlockedSince is since when this instance blocks requests, if it does.
func (st *State) BlockedSince() time.Time { return st.blockedSince }

// TerminateAt is when what is in flight is to be terminated, zero if it is not.
func (st *State) TerminateAt() time.Time {
	after := st.Options().TerminateAfter.Value
	if after == 0 || st.phase != running {
		return time.Time{}
	}
	return st.blockedSince.Add(after)
}

// Since is when the state began, zero if the site was never switched or is unknown.
func (st *State) Since() time.Time {
	switch {
	case st.kind != Stored:
		return time.Time{}
	case st.phase == over:
		return st.record.Until
	case st.phase == running && !st.record.From.IsZero():
		return st.record.From
	default:
		return st.record.Since
	}
}

// noOptions are those of a site that is open.
var noOptions Options

// Options are those of the maintenance that is on, or scheduled. They must not be changed.
func (st *State) Options() *Options {
	if st.kind != Stored || !st.record.Enabled || st.phase == over {
		return &noOptions
	}
	return &st.record.Options
}

// View is a state as a config sees it, which says how the site begins.
type View struct {
	*State
	InitiallyOn bool
}

// Blocks reports whether requests are blocked.
func (v View) Blocks() bool {
	switch v.kind {
	case Stored:
		return v.record.Enabled && v.phase == running
	case Unset:
		return v.InitiallyOn
	default:
		return true
	}
}

// On reports whether the site is known to be in maintenance.
func (v View) On() bool { return v.Known() && v.Blocks() }

// Scheduled reports whether the site is open, and to go into maintenance.
func (v View) Scheduled() bool { return v.kind == Stored && v.record.Enabled && v.phase == scheduled }

// Word is how the state is called in answers.
func (v View) Word() string {
	switch {
	case !v.Known():
		return "unknown"
	case v.Blocks():
		return "on"
	default:
		return "off"
	}
}
