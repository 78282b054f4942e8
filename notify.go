package maintenance

import (
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"

	"example.com/caddy-maintenance/internal/site"
)

// notify is the only consumer of changes, whether by a switch, a sync or the clock. It logs
// them, emits events, sets the timer that terminates requests, and renders and refreshes the
// pages.
//
// A switch may end after its config was replaced. Then the running config has the log and the
// pages.
func (a *App) notify(s *configuredSite, change site.Change) {
	s.setTerminateTimer()
	a, s = a.successor(s)
	a.memory.keep(s.Name, change.After)
	before, after := a.viewsOf(s, change)
	runs := a.working.Load() // otherwise pages may still be missing; Start renders them
	if before.Kind() == site.Loading {
		if after.Blocks() && runs {
			s.renderPages(after)
		}
		return
	}
	unknown := !before.Known()
	switch {
	case unknown && change.Cause.Source == site.SourceSync:
		a.logChange("state of the site is known again", s, after, change.Cause)
	case after.Blocks() && before.Blocks() && !unknown:
		a.logChange("maintenance options changed", s, after, change.Cause)
	case after.Blocks():
		a.logChange("maintenance enabled", s, after, change.Cause)
		emitLater("maintenance_enabled", s.Name, after.Options(), change.Cause)
	case after.Scheduled():
		a.logChange("maintenance scheduled", s, after, change.Cause)
		emitLater("maintenance_scheduled", s.Name, after.Options(), change.Cause)
	case before.Scheduled():
		a.logChange("scheduled maintenance canceled", s, after, change.Cause)
		emitLater("maintenance_disabled", s.Name, before.Options(), change.Cause)
	case before.Blocks():
		a.logChange("maintenance disabled", s, after, change.Cause)
		emitLater("maintenance_disabled", s.Name, before.Options(), change.Cause)
	case change.Cause.Source == site.SourceAPI:
		a.logChange("maintenance stays off", s, after, change.Cause)
	}
	switch {
	case runs && after.Blocks():
		s.renderPages(after)
		s.refreshPages()
	case runs:
		s.forgetPages()
	}
	if after.Blocks() && !before.Blocks() {
		go a.logDrained(s)
	}
}

// successor returns the config that has the site now: the running one if this one has ended.
func (a *App) successor(s *configuredSite) (*App, *configuredSite) {
	if a.ctx.Context == nil || a.ctx.Err() == nil {
		return a, s
	}
	if next, err := runningApp(); err == nil {
		if known := next.lookup(s.Name); known != nil {
			return next, known
		}
	}
	return a, s
}

func (a *App) viewsOf(s *configuredSite, change site.Change) (before, after site.View) {
	return site.View{State: change.Before, InitiallyOn: s.initiallyOn}, site.View{State: change.After, InitiallyOn: s.initiallyOn}
}

func (a *App) logChange(what string, s *configuredSite, v site.View, cause site.Cause) {
	fields := []zap.Field{
		zap.String("site", s.Name),
		zap.String("state", v.Word()),
		zap.String("source", string(cause.Source)),
	}
	if cause.Client != "" {
		fields = append(fields, zap.String("client", cause.Client))
	}
	a.log.Info(what, append(fields, stateFields(v)...)...)
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

// logDrained waits for the last request in flight, then logs and reports that the site is
// drained, unless it is opened before. By then the config may be replaced and its log closed.
func (a *App) logDrained(s *configuredSite) {
	start := time.Now()
	if !s.awaitDrained(nil) {
		return
	}
	next, _ := a.successor(s)
	next.reportSoon()
	caddy.Log().Named("maintenance").Info("drained: no request is in flight on this instance",
		zap.String("site", s.Name), zap.Duration("after", time.Since(start)))
}

// warnOfSitesThatAreOn warns of each site that is in maintenance, so that nobody forgets it.
func (a *App) warnOfSitesThatAreOn() {
	if a.loaded(a.ctx) != nil {
		return
	}
	for _, s := range a.listed() {
		if v := s.view(); v.On() && !s.isTemplate() {
			a.log.Warn("site is still in maintenance; `caddy maintenance off "+s.Name+"` ends it",
				append(stateFields(v), zap.String("site", s.Name))...)
		}
	}
}

// warnOfSitesThatAreGone warns of sites in maintenance that the next config does not have.
func (a *App) warnOfSitesThatAreGone(next *App) {
	for _, s := range a.listed() {
		if v := s.view(); (v.On() || v.Scheduled()) && !s.isTemplate() && !next.has(s.Name) {
			keepGone(s)
			a.log.Warn("site is in maintenance but no longer in the config; its requests are not blocked",
				append(stateFields(v), zap.String("site", s.Name))...)
		}
	}
}
