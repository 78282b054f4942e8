package maintenance

import (
	"context"
	"iter"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"

	"example.com/caddy-maintenance/internal/site"
	"example.com/caddy-maintenance/internal/store"
)

// notifier is the only consumer of changes of a config's sites, whether by a switch, a sync or the
// clock. It logs them, emits events, sets the timer that terminates requests, and renders and
// refreshes the pages.
type notifier struct {
	ctx     context.Context // ends with the config
	log     *zap.Logger
	memory  *memory
	renders atomic.Bool   // the config runs, and so do its pages
	drained chan struct{} // gets a value when a closed site has drained
}

func newNotifier(ctx context.Context, log *zap.Logger, m *memory) *notifier {
	return &notifier{ctx: ctx, log: log, memory: m, drained: make(chan struct{}, 1)}
}

// takeRead applies a record that was read; another instance may have switched the site.
func (n *notifier) takeRead(s *configuredSite, read site.Read) {
	s.followed.Note(read)
	n.publish(s, s.Apply(read, site.Cause{Source: site.SourceSync}, time.Now()))
}

// takeList applies the result of listing the records, once the sites with a record are in
// memory. Sites without one may leave it then.
func (n *notifier) takeList(t *configuredSite, l store.Listing) {
	n.takeRead(t, l.Read)
	for entry := range sites.All() {
		sites.Tidy(entry)
	}
}

// publish applies the changes of a site one after the other, and notifies of each.
func (n *notifier) publish(s *configuredSite, changes iter.Seq[site.Change]) {
	for change := range changes {
		n.notify(s, change)
	}
}

// notify notifies of one change. A switch may end after its config was replaced. Then the running
// config has the log and the pages.
func (n *notifier) notify(s *configuredSite, change site.Change) {
	s.setTerminateTimer()
	n, s = n.successor(s)
	n.memory.keep(s.Name, change.After)
	before, after := s.viewsOf(change)
	renders := n.renders.Load() // otherwise pages may still be missing; Start renders them
	if before.Kind() == site.Loading {
		if after.Blocks() && renders {
			s.renderPages(after)
		}
		return
	}
	unknown := !before.Known()
	switch {
	case unknown && change.Cause.Source == site.SourceSync:
		n.logChange("state of the site is known again", s, after, change.Cause)
	case after.Blocks() && before.Blocks() && !unknown:
		n.logChange("maintenance options changed", s, after, change.Cause)
	case after.Blocks():
		n.logChange("maintenance enabled", s, after, change.Cause)
		emitLater("maintenance_enabled", s.Name, after.Options(), change.Cause)
	case after.Scheduled():
		n.logChange("maintenance scheduled", s, after, change.Cause)
		emitLater("maintenance_scheduled", s.Name, after.Options(), change.Cause)
	case before.Scheduled():
		n.logChange("scheduled maintenance canceled", s, after, change.Cause)
		emitLater("maintenance_disabled", s.Name, before.Options(), change.Cause)
	case before.Blocks():
		n.logChange("maintenance disabled", s, after, change.Cause)
		emitLater("maintenance_disabled", s.Name, before.Options(), change.Cause)
	case change.Cause.Source == site.SourceAPI:
		n.logChange("maintenance stays off", s, after, change.Cause)
	}
	switch {
	case renders && after.Blocks():
		s.renderPages(after)
		s.refreshPages()
	case renders:
		s.forgetPages()
	}
	if after.Blocks() && !before.Blocks() {
		go n.logDrained(s)
	}
}

// successor returns the notifier of the config that has the site now, and its site: those of the
// running config if this one has ended.
func (n *notifier) successor(s *configuredSite) (*notifier, *configuredSite) {
	if n.ctx.Err() == nil {
		return n, s
	}
	if next, err := runningApp(); err == nil {
		if known := next.sites.lookup(s.Name); known != nil {
			return next.notifier, known
		}
	}
	return n, s
}

func (n *notifier) logChange(what string, s *configuredSite, v site.View, cause site.Cause) {
	fields := []zap.Field{
		zap.String("site", s.Name),
		zap.String("state", v.Word()),
		zap.String("source", string(cause.Source)),
	}
	if cause.Client != "" {
		fields = append(fields, zap.String("client", cause.Client))
	}
	n.log.Info(what, append(fields, stateFields(v)...)...)
}

// stateFields returns the log fields of a state.
func stateFields(v site.View) []zap.Field {
	var fields []zap.Field
	if since := v.Since(); !since.IsZero() {
		fields = append(fields, zap.String("since", since.Format(time.RFC3339)))
	}
	for name, value := range v.Options().Log() {
		fields = append(fields, zap.Any(name, value))
	}
	return fields
}

// logDrained waits for the last request in flight, then logs and signals that the site is
// drained, unless it is opened before. By then the config may be replaced and its log closed.
func (n *notifier) logDrained(s *configuredSite) {
	start := time.Now()
	if !s.awaitDrained(nil) {
		return
	}
	next, _ := n.successor(s)
	next.signalDrained()
	caddy.Log().Named("maintenance").Info("drained: no request is in flight on this instance",
		zap.String("site", s.Name), zap.Duration("after", time.Since(start)))
}

func (n *notifier) signalDrained() {
	select {
	case n.drained <- struct{}{}:
	default:
	}
}

// warnOfSitesThatAreOn warns of each site that is in maintenance, so that nobody forgets it.
func (a *App) warnOfSitesThatAreOn() {
	if a.sites.loaded(a.ctx) != nil {
		return
	}
	for _, s := range a.sites.listed() {
		if v := s.view(); v.On() && !s.isTemplate() {
			a.log.Warn("site is still in maintenance; `caddy maintenance off "+s.Name+"` ends it",
				append(stateFields(v), zap.String("site", s.Name))...)
		}
	}
}

// warnOfSitesThatAreGone warns of sites in maintenance that the next config does not have.
func (a *App) warnOfSitesThatAreGone(next *App) {
	for _, s := range a.sites.listed() {
		if v := s.view(); (v.On() || v.Scheduled()) && !s.isTemplate() && !next.sites.has(s.Name) {
			a.keepGone(s)
			a.log.Warn("site is in maintenance but no longer in the config; its requests are not blocked",
				append(stateFields(v), zap.String("site", s.Name))...)
		}
	}
}
