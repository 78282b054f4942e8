package site

import (
	"fmt"
	"time"
)

// A Mutation is a change that a switch requests.
type Mutation interface {
	// next returns the new record of the site: nil to keep the present one, or an error if
	// the mutation does not apply to the site's state.
	next(name string, v View, now time.Time) (*draft, error)
}

// draft is a record without its version.
type draft struct {
	enabled bool
	since   time.Time
	options Options
}

// On switches the site on, or schedules that. It replaces all options.
type On struct {
	Options Given
	OnlyOff bool // fail if the site is on or scheduled
}

// Patch changes the given options of a site that is on or scheduled. Clearing from begins a
// scheduled maintenance at once.
type Patch struct{ Options Given }

// Off switches the site off, or cancels a scheduled maintenance.
type Off struct{}

func (m On) next(name string, v View, now time.Time) (*draft, error) {
	o, err := m.Options.apply(Options{})
	switch {
	case err != nil:
		return nil, err
	case m.OnlyOff && (v.Blocks() || v.Scheduled()):
		return nil, &NotOffError{name, v}
	case v.On() && !o.From.IsZero():
		return nil, errBegun(name)
	}
	return enable(name, v, o, now), nil
}

func (m Patch) next(name string, v View, now time.Time) (*draft, error) {
	o, err := m.Options.apply(*v.Options())
	switch {
	case !v.On() && !v.Scheduled():
		return nil, &NotOnError{name, v.Word()}
	case err != nil:
		return nil, err
	case v.On() && !m.Options.values.From.IsZero():
		return nil, errBegun(name)
	}
	return enable(name, v, o, now), nil
}

// next changes nothing if the site has already been switched off. It does switch off a site
// whose maintenance has ended by itself: by another instance's clock it may still be on.
func (Off) next(_ string, v View, now time.Time) (*draft, error) {
	if v.record != nil && !v.record.Enabled {
		return nil, nil
	}
	if !v.Blocks() {
		return &draft{since: v.Since()}, nil // zero if it was never switched
	}
	return &draft{since: wholeSecond(now)}, nil
}

// IfVersion is a mutation of a site whose record still has that version.
type IfVersion struct {
	Mutation
	Version int64
}

func (m IfVersion) next(name string, v View, now time.Time) (*draft, error) {
	if v.Version() != m.Version {
		return nil, &ChangedError{name}
	}
	return m.Mutation.next(name, v, now)
}

func errBegun(name string) error {
	return &ConflictError{fmt.Errorf("site %s is already in maintenance; leave out from, which is only for maintenance that has not begun", name)}
}

// enable returns an enabled record. It keeps since if the state does not change now.
func enable(name string, v View, o Options, now time.Time) *draft {
	o.hashSecret(name, v.Options().Bypass)
	d := &draft{enabled: true, since: v.Since(), options: o}
	switch {
	case v.On():
		d.options.From = time.Time{} // it has passed
	case !o.From.IsZero():
		return d
	}
	if !v.On() || d.since.IsZero() {
		d.since = wholeSecond(now)
	}
	return d
}

func wholeSecond(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }

// NotOnError says that a site is not in maintenance.
type NotOnError struct{ Site, State string }

func (e *NotOnError) Error() string {
	return fmt.Sprintf("site %s is not in maintenance, its state is %s; PUT switches it on", e.Site, e.State)
}

// ConflictError says that a switch does not apply to the state of the site.
type ConflictError struct{ Err error }

func (e *ConflictError) Error() string { return e.Err.Error() }

// NotOffError says that a site is in maintenance, or scheduled to go into it.
type NotOffError struct {
	Site string
	View View
}

func (e *NotOffError) Error() string {
	switch {
	case e.View.Scheduled():
		return fmt.Sprintf("site %s is scheduled to go into maintenance at %s", e.Site, e.View.Options().From.Format(time.RFC3339))
	case !e.View.Known():
		return fmt.Sprintf("the state of site %s is unknown", e.Site)
	}
	return fmt.Sprintf("site %s is already in maintenance", e.Site)
}

// ChangedError says that a site was switched since its client looked.
type ChangedError struct{ Site string }

func (e *ChangedError) Error() string {
	return fmt.Sprintf("site %s was switched meanwhile, so its ETag is another one; nothing has changed; look at the site again", e.Site)
}

// Configured is a site as part of a config, which sets the initial state of the site.
type Configured struct {
	*Site
	InitiallyOn bool
}

// View returns the state as seen by the config.
func (c Configured) View() View { return View{c.Current(), c.InitiallyOn} }

// Mutate returns the record that m results in, nil if nothing changes. The caller must hold
// the site's Turn.
func (c Configured) Mutate(m Mutation, now time.Time) (*Record, error) {
	v := View{c.currentAt(now), c.InitiallyOn}
	d, err := m.next(c.Name, v, now)
	if d == nil || err != nil {
		return nil, err
	}
	c.LastVersion = max(now.UnixMicro(), v.Version()+1, c.LastVersion+1, c.StoredVersion.Load()+1)
	return newRecord(c.LastVersion, d.enabled, d.since, d.options)
}
