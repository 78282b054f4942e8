package maintenance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"example.com/caddy-maintenance/internal/site"
	"example.com/caddy-maintenance/internal/store"
)

func init() {
	caddy.RegisterModule(new(App))
}

// App keeps the maintenance state of the sites in Caddy's storage and follows
// the switches of other instances that share this storage.
//
// Caddy loads it automatically with the first `maintenance` handler; configure it
// only to change how other instances are followed. `caddy maintenance` shows the
// state of the sites, and `caddy maintenance instances` shows the instances; the
// admin API answers the same under `/maintenance` and `/maintenance/instances`.
type App struct {
	// How often to look for switches of other instances. This takes one read from
	// the storage, however many sites there are. From `100ms` to `1m`; other
	// positive values are errors. A negative value turns it off, for a single
	// instance on slow storage: the state is then read only when a config loads and
	// when a site is switched here, and other instances neither count this one nor
	// wait for it. Default: `2s`.
	SyncInterval caddy.Duration `json:"sync_interval,omitempty"`

	ctx      caddy.Context   // ends with the config
	before   context.Context // of the config that ran when this one was loaded; nil if none did
	log      *zap.Logger
	events   *caddyevents.App // may be used once the config runs
	instance instance
	store    *store.Store
	memory   *memory
	notifier *notifier
	sites    configSites
	reporter reporter
	fleet    *fleet
	pages    *configPages
	servers  map[*caddyhttp.Server]serverStop
}

const (
	defaultSyncInterval = 2 * time.Second
	minSyncInterval     = 100 * time.Millisecond
	maxSyncInterval     = store.VerifyInterval
)

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "maintenance",
		New: func() caddy.Module { return new(App) },
	}
}

// Provision sets up the app. Neither it nor the handlers write anything: the config may never
// run. But handlers begin reads as they are provisioned: of the copies of new pages at once, and
// of the records of new sites as soon as Start has announced this instance.
func (a *App) Provision(ctx caddy.Context) error {
	a.before = caddy.ActiveContext().Context
	if a.SyncInterval == 0 {
		a.SyncInterval = caddy.Duration(defaultSyncInterval)
	}
	if interval := time.Duration(a.SyncInterval); interval >= 0 {
		if err := checkSyncInterval(interval); err != nil {
			return err
		}
	}
	a.ctx, a.log = ctx, ctx.Logger()
	a.instance = instance{self: self(), host: hostName(), interval: time.Duration(a.SyncInterval)}
	a.store = store.New(ctx, ctx.Storage(), caddy.ParseDuration, a.instance.self)
	if _, ok := ctx.Storage().(*certmagic.FileStorage); ok {
		a.store.TrustAbsence()
	}
	a.memory = newMemory(ctx.Storage(), a.log)
	a.connect(processReports)
	a.pages = newConfigPages(ctx, a.log, ctx.Storage(), &a.sites)
	a.servers = make(map[*caddyhttp.Server]serverStop)

	events, err := ctx.App("events")
	if err != nil {
		return err
	}
	a.events = events.(*caddyevents.App)
	if err := registerMetrics(ctx); err != nil {
		return err
	}
	return nil
}

// connect sets up the parts of the app, each with those that it passes something on to.
func (a *App) connect(process *reportState) {
	a.notifier = newNotifier(a.ctx, a.log, a.memory)
	a.reporter = newReporter(a.ctx, a.log, a.instance, a.store, &a.sites, process)
	reads := &loading{ctx: a.ctx, log: a.log, store: a.store, memory: a.memory, notifier: a.notifier, announced: a.reporter.announced}
	a.sites = configSites{ctx: a.ctx, loading: reads, named: make(map[string]*configuredSite)}
	a.fleet = &fleet{instance: a.instance, others: store.NewFleet(a.store), store: a.store, sites: &a.sites, notifier: a.notifier}
}

// Start begins the app's work. Everything but the first report waits until the config runs.
func (a *App) Start() error {
	a.reporter.start()
	go func() {
		if !a.untilRunning() {
			return
		}
		a.notifier.renders.Store(true)
		a.pages.run()
		for s := range a.sites.inMemory() {
			if v := s.view(); v.Blocks() {
				s.renderPages(v) // so that no visitor has to
			}
		}
		f := newFollower(a)
		go f.watchClock()
		if a.reporter.enabled() {
			go a.fleet.watch(a.ctx)
		}
		go a.warnOfSitesThatAreOn()
		a.warnOfNoAdmin()
		a.sites.dropGone()
		f.run()
	}()
	return nil
}

// Stop warns of closed sites that the next config does not have, and hands reporting over to it,
// or back to the running one if this config has failed. The app's work ends with its context.
func (a *App) Stop() error {
	a.sites.ended.Store(true)
	for _, s := range a.servers {
		s.stop() // now, before the load is answered; the server's own hook runs later
	}
	next, err := runningApp()
	if err != nil || next == a {
		return nil // Caddy is stopping
	}
	failed := !a.hasRun()
	if !failed {
		a.warnOfSitesThatAreGone(next)
	}
	switch {
	case next.reporter.enabled():
		a.reporter.leaveStorage(&next.reporter)
	case !failed:
		go a.reporter.leaveWhenIdle(slices.Collect(a.sites.inMemory()))
	}
	return nil
}

// Cleanup removes the report if no config runs any more, or if this config has failed. Caddy has
// not called Stop if it failed before or after the apps were started.
func (a *App) Cleanup() error {
	a.sites.leave()
	next, err := runningApp()
	if err != nil {
		dropAllGone()
	}
	switch failed := !a.hasRun(); {
	case err != nil:
		a.reporter.leave()
	case failed && next.reporter.enabled():
		a.reporter.leaveStorage(&next.reporter)
	case failed:
		a.reporter.handBack()
	}
	return nil
}

// runningApp returns the app of the running config, or an app without sites if it has
// none. It is for code to which Caddy gives no app: the admin API and the metrics, which
// Caddy sets up before the apps and keeps when a config fails; the queue of events, which
// outlives configs; and an app that needs to know whether its own config runs, or which
// config replaced it.
func runningApp() (*App, error) {
	ctx := caddy.ActiveContext()
	if ctx.Context == nil {
		return nil, errNoConfig
	}
	app, err := ctx.AppIfConfigured("maintenance")
	if errors.Is(err, caddy.ErrNotConfigured) {
		return new(App), nil
	}
	if err != nil {
		return nil, err
	}
	return app.(*App), nil
}

// hasRun reports whether this config, which has ended, was ever the running one. If it was, it
// replaced the one that ran when it was loaded; if it has failed, that one still runs.
func (a *App) hasRun() bool { return caddy.ActiveContext().Context != a.before }

// untilRunning waits until this is the running config, and reports whether that
// happened. A config can still fail after all its apps have started, and after Caddy has
// emitted "started"; a failed one must leave no trace.
func (a *App) untilRunning() bool {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		if app, err := runningApp(); err == nil && app == a {
			return true
		}
		select {
		case <-ticker.C:
		case <-a.ctx.Done():
			return false
		}
	}
}

func checkSyncInterval(d time.Duration) error {
	if d < minSyncInterval || d > maxSyncInterval {
		return fmt.Errorf("invalid sync_interval %q: must be 100ms to 1m, or off (for example 2s)", d)
	}
	return nil
}

// serverStop ends the holds of a server: stop closes stopping.
type serverStop struct {
	stopping <-chan struct{}
	stop     func()
}

// watchServer registers what happens when a server shuts down, once, and returns a channel that is
// closed when the config is unloaded. Cleanup and Stop would be too late: Caddy calls Cleanup when
// all requests have ended, and when it exits, it may stop this app after http.
func (a *App) watchServer(s *caddyhttp.Server) <-chan struct{} {
	known, ok := a.servers[s]
	if !ok {
		stopping := make(chan struct{})
		known = serverStop{stopping, sync.OnceFunc(func() { close(stopping) })}
		a.servers[s] = known
		s.RegisterOnShutdown(known.stop)
		s.RegisterOnStop(func(context.Context) error {
			if _, err := runningApp(); err != nil && caddy.Exiting() {
				a.exit() // Caddy closes the storage next
			}
			return nil
		})
	}
	return known.stopping
}

// exit terminates the requests of closed sites, for which no server waits any more, and removes
// the report.
func (a *App) exit() {
	a.sites.terminateClosed()
	a.reporter.leave()
}

// Switching

// switchSite switches a site. It returns when that is done, or after store.Timeout. The
// switch goes on whether or not its client waits.
func (a *App) switchSite(s *configuredSite, m site.Mutation, cause site.Cause) error {
	if err := a.store.TakeTurn(s.Site); err != nil {
		return fmt.Errorf("switching site %s: %w", s.Name, err)
	}
	sites.Hold(s.entry) // the switch may go on after its client is answered
	done := make(chan error, 1)
	go func() {
		defer func() {
			a.store.EndTurn(s.Site)
			letSiteGo(s.entry)
		}()
		done <- a.carryOut(s, m, cause)
	}()
	timer := time.NewTimer(store.Timeout)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		return &store.NotStoredError{Site: s.Name, Err: store.ErrSilent}
	}
}

func (a *App) carryOut(s *configuredSite, m site.Mutation, cause site.Cause) error {
	defer a.memory.save()
	for change, err := range a.store.Switch(s.configured(), m, cause) {
		if err != nil {
			s.followed.ReadAgain() // a read during the switch may have left the record to it
			return err
		}
		a.notifier.notify(s, change)
	}
	return nil
}

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
)
