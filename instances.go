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

// serveFleet serves the instances on the storage: GET lists them, and DELETE of a named one
// forgets it.
func (a adminAPI) serveFleet(w http.ResponseWriter, r *http.Request, name string) error {
	app, err := runningApp()
	if err != nil {
		return err
	}
	if len(app.sites.named) == 0 {
		return caddy.APIError{HTTPStatus: http.StatusNotFound, Err: errors.New("no site of the running config has a maintenance directive; add one (for example maintenance shop) and reload Caddy")}
	}
	switch {
	case name != "" && r.Method == http.MethodDelete:
		return app.forget(r.Context(), w, name)
	case name != "":
		return methodNotAllowed(w, r, "DELETE")
	case r.Method != http.MethodGet:
		return methodNotAllowed(w, r, "GET")
	}
	return app.serveInstances(w, r, nil)
}

// serveInstances answers with the instances as soon as all have confirmed the site's record
// and, if the site is closed, none has its requests in flight; or else after the time in the
// request's wait parameter. If s is nil, it is about all sites.
func (a *App) serveInstances(w http.ResponseWriter, r *http.Request, s *configuredSite) error {
	if r.Method != http.MethodGet {
		return methodNotAllowed(w, r, "GET")
	}
	limit, err := waitLimit(r)
	if err != nil {
		return err
	}
	list, err := a.awaitInstances(r.Context(), s, limit)
	if err != nil {
		return caddy.APIError{
			HTTPStatus: http.StatusServiceUnavailable,
			Err:        fmt.Errorf("reading the reports of other instances: %w; their state is unknown; try again when the storage answers", err),
		}
	}
	return writeJSON(w, list)
}

func (a *App) awaitInstances(ctx context.Context, s *configuredSite, limit time.Duration) ([]api.Instance, error) {
	deadline := time.Now().Add(limit)
	name, version := "", int64(0)
	if s != nil {
		name = s.Name
		read := a.store.Load(ctx, s.Site) // another instance may have switched the site
		a.notifier.takeRead(s, read)
		if read.Err != nil && !errors.Is(read.Err, site.ErrInvalid) {
			return nil, read.Err
		}
		version = s.Current().Version()
	}
	if err := a.fleet.List(ctx); err != nil {
		return nil, err
	}
	if !a.fleet.Alone() {
		if err := a.fleet.Ask(ctx, name, version); err != nil {
			return nil, err
		}
	}
	_, done, _ := a.instances(s)
	for {
		if err := a.fleet.Look(ctx, done); err != nil {
			return nil, err
		}
		var list []api.Instance
		var drained bool
		list, done, drained = a.instances(s)
		wait := min(a.pollInterval(), time.Until(deadline))
		if drained || wait <= 0 {
			return list, nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if err := a.fleet.List(ctx); err != nil {
			return nil, err
		}
	}
}

func (a *App) pollInterval() time.Duration {
	if a.instance.interval < 0 {
		return pollInterval
	}
	return min(pollInterval, a.instance.interval/2)
}

// instances returns what is known of all instances, including this one, which of the others
// are done, and whether all are.
func (a *App) instances(s *configuredSite) (list []api.Instance, done map[string]bool, all bool) {
	name, version, closed := "", int64(0), false
	if s != nil {
		v := s.view()
		name, version, closed = s.Name, v.Version(), v.Blocks()
	}
	own := a.ownInstance(s)
	list = append(list, own)
	all = own.Drained || !closed
	done = make(map[string]bool)
	for _, i := range a.fleet.Instances(name, version) {
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

// ownInstance returns this instance.
func (a *App) ownInstance(s *configuredSite) api.Instance {
	own := api.Instance{
		Instance: a.instance.host, ID: a.instance.self.Name(), State: api.InstanceConfirmed,
		Seen: time.Now().UTC().Truncate(time.Second), SyncInterval: a.instance.syncInterval(),
	}
	if caddy.Exiting() {
		own.State = api.InstanceStopping
	}
	if s != nil {
		own.InFlight, own.Held = s.inFlight.Count(), s.heldNow()
	} else {
		for one := range a.sites.inMemory() {
			if one.view().Blocks() {
				own.InFlight += one.inFlight.Count()
				own.Held += one.heldNow()
			}
		}
	}
	own.Drained = s != nil && s.view().Blocks() && own.InFlight == 0
	return own
}

// forget removes the report of a silent instance.
func (a *App) forget(ctx context.Context, w http.ResponseWriter, name string) error {
	if err := a.look(ctx); err != nil {
		return err
	}
	named := func() []store.Instance {
		return slices.DeleteFunc(a.fleet.Instances("", 0), func(i store.Instance) bool {
			return i.Name != name && i.Host != name
		})
	}
	switch found := named(); {
	case name == a.instance.self.Name() || name == a.instance.host && len(found) == 0:
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
	if err := a.awaitSilence(ctx, name); err != nil {
		return err
	}
	if err := a.store.Forget(ctx, name); err != nil {
		return err
	}
	a.fleet.Drop(name)
	list, _, _ := a.instances(nil)
	return writeJSON(w, list)
}

// look reads the reports of all other instances.
func (a *App) look(ctx context.Context) error {
	if err := a.fleet.List(ctx); err != nil {
		return err
	}
	return a.fleet.Look(ctx, nil)
}

// awaitSilence asks an instance for a report, and returns an error if it answers.
func (a *App) awaitSilence(ctx context.Context, name string) error {
	question, err := a.fleet.AskAnew(ctx)
	if err != nil {
		return err
	}
	for {
		if err := a.look(ctx); err != nil {
			return err
		}
		list := a.fleet.Instances("", 0)
		i := slices.IndexFunc(list, func(i store.Instance) bool { return i.Name == name })
		switch {
		case i < 0 || list[i].Standing == store.Silent:
			return nil
		case a.fleet.HasApplied(name, question):
			return conflict(fmt.Errorf("%s answers; only a silent instance can be forgotten", name))
		}
		select {
		case <-time.After(pollInterval):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func conflict(err error) error { return caddy.APIError{HTTPStatus: http.StatusConflict, Err: err} }
