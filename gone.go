package maintenance

import (
	"slices"
	"time"
)

// goneSites holds sites whose directive a reload has removed while they were in maintenance or
// scheduled, so that nobody forgets them. No handler blocks their requests. Each is held as the
// last config had it, until it is switched off, its directive is back, or no config runs any
// more.
var goneSites readList[*configuredSite]

// keepsGone is how long such a site can still be queried after it was switched off.
const keepsGone = time.Minute

// keepGone keeps a site whose directive has gone.
func keepGone(s *configuredSite) {
	goneSites.findOrAdd(func(other *configuredSite) bool { return other.Name == s.Name }, func() *configuredSite {
		sites.Hold(s.entry)
		return s
	})
}

// dropGone drops the gone sites that the config has again, and those that were switched off
// longer than keepsGone ago.
func (a *App) dropGone() {
	dropGoneIf(func(s *configuredSite) bool {
		v := s.view()
		return a.has(s.Name) || !v.On() && !v.Scheduled() && time.Since(v.Since()) > keepsGone
	})
}

// dropAllGone drops all gone sites.
func dropAllGone() { dropGoneIf(func(*configuredSite) bool { return true }) }

func dropGoneIf(isOver func(*configuredSite) bool) {
	for _, s := range goneSites.all() {
		if isOver(s) && goneSites.remove(func(other *configuredSite) bool { return other == s }) {
			letSiteGo(s.entry)
		}
	}
}

// goneSite returns the gone site of that name, nil if there is none.
func (a *App) goneSite(name string) *configuredSite {
	gone := goneSites.all()
	i := slices.IndexFunc(gone, func(s *configuredSite) bool { return s.Name == name })
	if i < 0 || a.has(name) {
		return nil
	}
	return gone[i]
}

// thatReaches returns the config to switch a gone site with: this one if it has the same
// storage. The storage of the old config may have ended with it.
func (a *App) thatReaches(s *configuredSite) *App {
	if a.store != nil && a.memory.storageID == s.app.memory.storageID {
		return a
	}
	return s.app
}

// isGone reports whether the site has gone from the config.
func (s *configuredSite) isGone() bool { return slices.Contains(goneSites.all(), s) }

// syncGone applies switches of gone sites by other instances.
func (f *follower) syncGone() {
	f.dropGone()
	for _, s := range goneSites.all() {
		if s.Reading.Load() > 0 {
			continue
		}
		app := f.thatReaches(s)
		reading := app.store.Read(f.ctx, s.Site)
		go func() { app.notifier.takeRead(s, <-reading) }()
	}
}
