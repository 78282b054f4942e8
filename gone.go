package maintenance

import "time"

// goneSites holds sites whose directive a reload has removed while they were in maintenance or
// scheduled, so that nobody forgets them. No handler blocks their requests. Each is held as the
// last config had it, until it is switched off, its directive is back, or no config runs any
// more.
var goneSites readList[goneSite]

// goneSite is such a site, with the app of its config.
type goneSite struct {
	site *configuredSite
	app  *App
}

// keepsGone is how long such a site can still be queried after it was switched off.
const keepsGone = time.Minute

// keepGone keeps a site whose directive has gone.
func (a *App) keepGone(s *configuredSite) {
	goneSites.findOrAdd(func(g goneSite) bool { return g.site.Name == s.Name }, func() goneSite {
		sites.Hold(s.entry)
		return goneSite{s, a}
	})
}

// dropGone drops the gone sites that the config has again, and those that were switched off
// longer than keepsGone ago.
func (c *configSites) dropGone() {
	dropGoneIf(func(s *configuredSite) bool {
		v := s.view()
		return c.has(s.Name) || !v.On() && !v.Scheduled() && time.Since(v.Since()) > keepsGone
	})
}

// dropAllGone drops all gone sites.
func dropAllGone() { dropGoneIf(func(*configuredSite) bool { return true }) }

func dropGoneIf(isOver func(*configuredSite) bool) {
	for _, g := range goneSites.all() {
		if isOver(g.site) && goneSites.remove(func(other goneSite) bool { return other == g }) {
			letSiteGo(g.site.entry)
		}
	}
}

// gone returns the gone site of that name, unless the config has it again.
func (c *configSites) gone(name string) (g goneSite, ok bool) {
	if c.has(name) {
		return g, false
	}
	return goneSites.find(func(g goneSite) bool { return g.site.Name == name })
}

// thatReaches returns the config to switch a gone site with: this one if it has the same
// storage. The storage of the old config may have ended with it.
func (a *App) thatReaches(g goneSite) *App {
	if a.store != nil && a.memory.storageID == g.app.memory.storageID {
		return a
	}
	return g.app
}

// isGone reports whether the site has gone from the config.
func (s *configuredSite) isGone() bool {
	_, gone := goneSites.find(func(g goneSite) bool { return g.site == s })
	return gone
}

// syncGone applies switches of gone sites by other instances.
func (a *App) syncGone() {
	a.sites.dropGone()
	for _, g := range goneSites.all() {
		s := g.site
		if s.Reading.Load() > 0 {
			continue
		}
		app := a.thatReaches(g)
		reading := app.store.Read(a.ctx, s.Site)
		go func() { app.notifier.takeRead(s, <-reading) }()
	}
}
