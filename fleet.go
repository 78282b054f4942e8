package maintenance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"example.com/caddy-maintenance/internal/api"
	"example.com/caddy-maintenance/internal/site"
	"example.com/caddy-maintenance/internal/store"
)

// pollInterval is how often the reports of other instances are read while a client waits for
// them. If sync_interval is short, they are read twice in that time.
const pollInterval = 250 * time.Millisecond

// standings are the names of an instance's standings in answers and metrics.
var standings = [...]string{
	store.Confirmed: api.InstanceConfirmed,
	store.Pending:   api.InstancePending,
	store.Silent:    api.InstanceSilent,
	store.Stopping:  api.InstanceStopping,
	store.Absent:    api.InstanceAbsent,
}

// fleet is all instances on the storage of a config: this one and the others.
type fleet struct {
	instance instance
	others   *store.Fleet
	store    *store.Store
	sites    *configSites
	notifier *notifier
}

// await returns the instances as soon as all have confirmed the site's record and, if the site is
// closed, none has its requests in flight; or else after limit. If s is nil, it is about all
// sites.
func (f *fleet) await(ctx context.Context, s *configuredSite, limit time.Duration) ([]api.Instance, error) {
	deadline := time.Now().Add(limit)
	name, version := "", int64(0)
	if s != nil {
		name = s.Name
		read := f.store.Load(ctx, s.Site) // another instance may have switched the site
		f.notifier.takeRead(s, read)
		if read.Err != nil && !errors.Is(read.Err, site.ErrInvalid) {
			return nil, read.Err
		}
		version = s.Current().Version()
	}
	if err := f.others.List(ctx); err != nil {
		return nil, err
	}
	if !f.others.Alone() {
		if err := f.others.Ask(ctx, name, version); err != nil {
			return nil, err
		}
	}
	_, done, _ := f.list(s)
	for {
		if err := f.others.Look(ctx, done); err != nil {
			return nil, err
		}
		var list []api.Instance
		var drained bool
		list, done, drained = f.list(s)
		wait := min(f.pollInterval(), time.Until(deadline))
		if drained || wait <= 0 {
			return list, nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if err := f.others.List(ctx); err != nil {
			return nil, err
		}
	}
}

func (f *fleet) pollInterval() time.Duration {
	if f.instance.interval < 0 {
		return pollInterval
	}
	return min(pollInterval, f.instance.interval/2)
}

// list returns what is known of all instances, including this one, which of the others
// are done, and whether all are.
func (f *fleet) list(s *configuredSite) (list []api.Instance, done map[string]bool, all bool) {
	name, version, closed := "", int64(0), false
	if s != nil {
		v := s.view()
		name, version, closed = s.Name, v.Version(), v.Blocks()
	}
	own := f.own(s)
	list = append(list, own)
	all = own.Drained || !closed
	done = make(map[string]bool)
	for _, i := range f.others.Instances(name, version) {
		answer := answerOf(i)
		if closed {
			answer.Drained = i.Drained(name)
			done[i.Name] = answer.Drained
			if i.Standing == store.Confirmed && !i.IsClosed(name) {
				answer.State = api.InstancePending // it was switched there just now
				if time.Since(i.Asked) > i.Patience() {
					answer.State = api.InstanceSilent
				}
			}
		} else {
			done[i.Name] = i.Current
		}
		all = all && done[i.Name]
		list = append(list, answer)
	}
	slices.SortFunc(list, func(x, y api.Instance) int { return cmp.Compare(x.ID, y.ID) })
	return list, done, all
}

func answerOf(i store.Instance) api.Instance {
	answer := api.Instance{
		Instance: i.Host, ID: i.Name, State: standings[i.Standing],
		InFlight: i.Traffic.InFlight, Held: i.Traffic.Held,
		Seen: i.Seen.UTC().Truncate(time.Second), SyncInterval: i.SyncInterval.String(),
	}
	if i.Skew != 0 {
		answer.ClockOffset = i.Skew.Round(time.Second).String()
	}
	return answer
}

// own returns this instance.
func (f *fleet) own(s *configuredSite) api.Instance {
	own := api.Instance{
		Instance: f.instance.host, ID: f.instance.self.Name(), State: api.InstanceConfirmed,
		Seen: time.Now().UTC().Truncate(time.Second), SyncInterval: f.instance.syncInterval(),
	}
	if caddy.Exiting() {
		own.State = api.InstanceStopping
	}
	if s != nil {
		own.InFlight, own.Held = s.inFlight.Count(), s.heldNow()
	} else {
		for one := range f.sites.inMemory() {
			if one.view().Blocks() {
				own.InFlight += one.inFlight.Count()
				own.Held += one.heldNow()
			}
		}
	}
	own.Drained = s != nil && !s.isGone() && s.view().Blocks() && own.InFlight == 0
	return own
}

// forget removes the report of a silent instance.
func (f *fleet) forget(ctx context.Context, name string) error {
	if err := f.look(ctx); err != nil {
		return err
	}
	named := func() []store.Instance {
		return slices.DeleteFunc(f.others.Instances("", 0), func(i store.Instance) bool {
			return i.Name != name && i.Host != name
		})
	}
	switch found := named(); {
	case name == f.instance.self.Name() || name == f.instance.host && len(found) == 0:
		return conflict(fmt.Errorf("%s is this instance; only a silent instance can be forgotten", site.Truncate(name)))
	case len(found) == 0:
		return caddy.APIError{HTTPStatus: http.StatusNotFound, Err: fmt.Errorf("unknown instance %s; `caddy maintenance instances` lists all instances",
			site.Truncate(name))}
	case len(found) > 1:
		var ids []string
		for _, i := range found {
			ids = append(ids, i.Name)
		}
		return conflict(fmt.Errorf("%s names several instances; use one of: %s", name, strings.Join(ids, ", ")))
	default:
		name = found[0].Name
	}
	if err := f.awaitSilence(ctx, name); err != nil {
		return err
	}
	if err := f.store.Forget(ctx, name); err != nil {
		return err
	}
	f.others.Drop(name)
	return nil
}

// look reads the reports of all other instances.
func (f *fleet) look(ctx context.Context) error {
	if err := f.others.List(ctx); err != nil {
		return err
	}
	return f.others.Look(ctx, nil)
}

// awaitSilence asks an instance for a report, and returns an error if it answers.
func (f *fleet) awaitSilence(ctx context.Context, name string) error {
	question, err := f.others.AskAnew(ctx)
	if err != nil {
		return err
	}
	for {
		if err := f.look(ctx); err != nil {
			return err
		}
		list := f.others.Instances("", 0)
		i := slices.IndexFunc(list, func(i store.Instance) bool { return i.Name == name })
		switch {
		case i < 0 || list[i].Standing == store.Silent:
			return nil
		case f.others.HasApplied(name, question):
			return conflict(fmt.Errorf("%s answers; only a silent instance can be forgotten", name))
		}
		select {
		case <-time.After(pollInterval):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// watch reads the reports of the other instances until the config ends, and removes those of
// instances that have been gone for long.
func (f *fleet) watch(ctx context.Context) {
	ticker := time.NewTicker(store.ObserveInterval)
	defer ticker.Stop()
	for {
		if f.others.Observe(ctx) == nil {
			f.others.RemoveGone(ctx, time.Now())
		} // else the sync logs what is wrong with the storage
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

func conflict(err error) error { return caddy.APIError{HTTPStatus: http.StatusConflict, Err: err} }
