package maintenance

import (
	"slices"
	"time"
)

// goneSites holds the sites that were in maintenance, or scheduled, when a reload took their
// directive away, as the config had them that had it last, so that nobody forgets them: until they are
// switched off, are back, or no config runs any more. No gate keeps their requests out.
var goneSites readList[*configuredSite]

// keepsGone is for how long one that was switched off can still be asked for, by who has done
// that.
const keepsGone = time.Minute

// keepGone keeps a site whose directive has gone.
func keepGone(s *configuredSite) {
	goneSites.findOrAdd(func(other *configuredSite) bool { return other.Name == s.Name }, func() *configuredSite {
		sites.Hold(s.entry)
		return s
	})
}

// dropGone drops those of these sites that the config has, and those that are off.
func (a *App) dropGone() {
	dropGoneIf(func(s *configuredSite) bool {
		v := s.view()
		return a.has(s.Name) || !v.On() && !v.Scheduled() && time.Since(v.Since()) > keepsGone
	})
}

// dropAllGone drops all of them, when no config runs any more.
func dropAllGone() { dropGoneIf(func(*configuredSite) bool { return true }) }

func dropGoneIf(isOver func(*configuredSite) bool) {
	for _, s := range goneSites.all() {
		if isOver(s) && goneSites.remove(func(other *configuredSite) bool { return other == s }) {
			letSiteGo(s.entry)
		}
	}
}

// goneSite returns a site that has gone from the config, nil if there is none of that name.
func (a *App) goneSite(name string) *configuredSite {
	gone := goneSites.all()
	i := slices.IndexFunc(gone, func(s *configuredSite) bool { return s.Name == name })
	if i < 0 || a.has(name) {
		return nil
	}
	return gone[i]
}

// thatReaches returns the config by which to switch a site that has gone: this one if it has the
// storage, for that of the other has ended with it, or may have.
func (a *App) thatReaches(s *configuredSite) *App {
	if a.store != nil && a.storageID == s.app.storageID {
		return a
	}
	return s.app
}

// isGone reports whether the site has gone from the config.
func (s *configuredSite) isGone() bool { return slices.Contains(goneSites.all(), s) }

// syncGone looks whether sites that have gone from the config have been switched off elsewhere.
func (f *follower) syncGone() {
	f.dropGone()
	for _, s := range goneSites.all() {
		if s.Reading.Load() > 0 {
			continue
		}
		app := f.thatReaches(s)
		reading := app.store.Read(f.ctx, s.Site)
		go func() { app.takeRead(s, <-reading) }()
	}
}
