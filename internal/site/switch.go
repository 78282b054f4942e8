package site

import (
	"fmt"
	"time"
)

// A Mutation is what a switch asks for.
type Mutation interface {
	// next returns what the record of the site is to say: nil to leave it as it is, or
	// an error if the site is not in a state for it.
	next(name string, v View, now time.Time) (*draft, error)
}

// draft is a record without its version.
type draft struct {
	enabled bool
	since   time.Time
	options Options
}

// On switches the site on, with these options and no others.
type On struct{ Options Given }

// Patch changes the given options of a site that is on.
type Patch struct{ Options Given }

// Off switches the site off.
type Off struct{}

func (m On) next(name string, v View, now time.Time) (*draft, error) {
	return turnOn(name, v, m.Options.Apply(Options{}), now), nil
}

func (m Patch) next(name string, v View, now time.Time) (*draft, error) {
	if !v.On() {
		return nil, &NotOnError{name, v.Word()}
	}
	return turnOn(name, v, m.Options.Apply(*v.Options()), now), nil
}

// next changes nothing if the site has been switched off before. One whose maintenance
// has ended by itself is switched off nevertheless: by another instance's clock it may
// still be on.
func (Off) next(_ string, v View, now time.Time) (*draft, error) {
	if v.record != nil && !v.record.Enabled {
		return nil, nil
	}
	since := wholeSecond(now)
	if !v.Blocks() && !v.Since().IsZero() {
		since = v.Since()
	}
	return &draft{since: since}, nil
}

// turnOn keeps the time since when a site has been on.
func turnOn(name string, v View, o Options, now time.Time) *draft {
	o.hashSecret(name, v.Options().Bypass)
	since := wholeSecond(now)
	if v.On() && !v.Since().IsZero() {
		since = v.Since()
	}
	return &draft{enabled: true, since: since, options: o}
}

func wholeSecond(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }

// NotOnError says that a site is not in maintenance.
type NotOnError struct{ Site, State string }

func (e *NotOnError) Error() string {
	return fmt.Sprintf("site %s is not in maintenance, its state is %s; PUT switches it on", e.Site, e.State)
}

// Configured is a site as a config has it, which says how the site begins.
type Configured struct {
	*Site
	InitiallyOn bool
}

// View returns the state as the config sees it.
func (c Configured) View() View { return View{c.Current(), c.InitiallyOn} }

// Mutate returns the record that m makes of the site, nil if nothing is to change. The
// caller holds the site's Turn.
func (c Configured) Mutate(m Mutation, now time.Time) (*Record, error) {
	v := View{c.currentAt(now), c.InitiallyOn}
	d, err := m.next(c.Name, v, now)
	if d == nil || err != nil {
		return nil, err
	}
	c.LastVersion = max(now.UnixMicro(), v.Version()+1, c.LastVersion+1, c.StoredVersion.Load()+1)
	return newRecord(c.LastVersion, d.enabled, d.since, d.options)
}
