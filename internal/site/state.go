package site

import (
	"errors"
	"sync/atomic"
	"time"
)

// State is what is known about a site at one moment. It is immutable.
type State struct {
	kind         Kind
	record       *Record       // if Stored, the stored one; if Loading, the last one known
	phase        phase         // of an enabled record
	before       *State        // the previous state, if the clock made this one
	reported     atomic.Bool   // the change by the clock has been yielded
	blockedSince time.Time     // since when this instance blocks requests, if it does
	changed      chan struct{} // closed when another state replaces this one
}

// phase is the phase of a maintenance. It does not go back if the clock is set back.
type phase int

const (
	scheduled phase = iota // until the record's from
	running                // until its until
	over
)

// Kind is how much is known about a site.
type Kind int

// The kinds, ordered by how much is known. From Unset on, the state is known.
const (
	Loading Kind = iota // the record is being read
	Unknown             // the record could not be read
	Invalid             // the record cannot be parsed
	Unset               // there is no record: the site was never switched
	Stored              // the record says what the state is
)

// Read is the result of reading a record.
type Read struct {
	Record    *Record // nil if there is none
	Err       error   // why it could not be read, or is not usable (ErrInvalid, ErrOutdated)
	Tentative bool    // another read is under way, so that a failure of this one does not count
}

func newState(kind Kind) *State { return &State{kind: kind, changed: make(chan struct{})} }

// newStoredState returns the state of a record. Changes that the clock made before are not
// reported: whoever ran then has reported them.
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

// next returns the state after a read, or nil if the read adds nothing to st. If there was an
// invalid record and it is gone now, that adds nothing: whoever removed it has not said that
// the site may open.
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

// deadline returns when the clock ends this state, zero if it does not.
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

// due reports whether the deadline has passed.
func (st *State) due(now time.Time) bool {
	deadline := st.deadline()
	return !deadline.IsZero() && !now.Before(deadline)
}

// advance returns the state after the deadline.
func (st *State) advance() *State {
	next := newState(Stored)
	next.record, next.phase, next.before = st.record, st.phase+1, st
	return next
}

// source returns the source of this state, if the clock made it.
func (st *State) source() Source {
	if st.phase == running {
		return SourceFrom
	}
	return SourceUntil
}

// Unreported reports whether the clock made this state and the change has not been yielded.
func (st *State) Unreported() bool { return st.before != nil && !st.reported.Load() }

// Kind returns how much is known about the site.
func (st *State) Kind() Kind { return st.kind }

// Known reports whether the state is known.
func (st *State) Known() bool { return st.kind >= Unset }

// Record returns the record, nil if there is none.
func (st *State) Record() *Record { return st.record }

// Changed returns a channel that is closed when another state replaces this one.
func (st *State) Changed() <-chan struct{} { return st.changed }

// Expired reports whether the maintenance has ended by itself.
func (st *State) Expired() bool { return st.phase == over }

// NewerThan reports whether the state has a newer record than r, which may be nil.
func (st *State) NewerThan(r *Record) bool {
	return st.record != nil && (r == nil || st.record.NewerThan(r))
}

// Version returns the version of the record, 0 if there is none.
func (st *State) Version() int64 {
	if st.record == nil {
		return 0
	}
	return st.record.Version
}

// closed reports whether requests are blocked regardless of the site's initial state.
func (st *State) closed() bool { return st.kind != Unset && View{State: st}.Blocks() }

// BlockedSince returns since when this instance blocks requests, if it does.
func (st *State) BlockedSince() time.Time { return st.blockedSince }

// TerminateAt returns when to terminate requests in flight, zero for never.
func (st *State) TerminateAt() time.Time {
	after := st.Options().TerminateAfter.Value
	if after == 0 || st.phase != running {
		return time.Time{}
	}
	return st.blockedSince.Add(after)
}

// Since returns when the state began, zero if the site was never switched or is unknown.
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

// noOptions are the options of an open site.
var noOptions Options

// Options returns the options of the current or scheduled maintenance. They must not be
// changed.
func (st *State) Options() *Options {
	if st.kind != Stored || !st.record.Enabled || st.phase == over {
		return &noOptions
	}
	return &st.record.Options
}

// View is a state as seen by a config, which sets the initial state of the site.
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

// Scheduled reports whether the site is open and maintenance is scheduled.
func (v View) Scheduled() bool { return v.kind == Stored && v.record.Enabled && v.phase == scheduled }

// Word returns the state as the admin API names it: on, off or unknown.
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
