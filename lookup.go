package maintenance

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"example.com/caddy-maintenance/internal/site"
	"example.com/caddy-maintenance/internal/store"
)

// The sites of a config are those that a handler names, including templates, and the sites of
// templates that are in memory.

// join adds a handler to its site. The caller must release the site. If its record was never
// read, reading begins.
func (a *App) join(name *site.Name, initiallyOn bool) (*configuredSite, error) {
	if s, ok := a.sites[name.String()]; ok {
		if s.initiallyOn != initiallyOn {
			return nil, fmt.Errorf("conflicting initial_state: one handler of site %s says on and another does not; use the same value in all of them", name)
		}
		sites.Acquire(name, time.Now())
		return s, nil
	}
	for _, t := range a.templates {
		// Otherwise the one with more literal text decides.
		other := t.entry.Name()
		if name.IsTemplate() && t.initiallyOn != initiallyOn && name.Literals() == other.Literals() && name.MayYieldNameOf(other) {
			return nil, fmt.Errorf("conflicting initial_state: handlers of sites %s and %s can make the same name, and only one of them says on; "+
				"use the same value in both, or a text that tells the names apart (for example pre-%s)", other, name, name)
		}
	}
	entry := sites.Acquire(name, time.Now())
	s := entry.Value.configs.findOrAdd(a.owns, func() *configuredSite { return a.newSite(entry, initiallyOn) })
	a.sites[name.String()] = s
	if name.IsTemplate() {
		a.templates = append(a.templates, s)
	}
	return s, nil
}

func (a *App) owns(s *configuredSite) bool { return s.app == a }

// newSite makes the config's site of an entry. If its record was never read, reading begins,
// even if another config is reading it: that config's storage may end with it.
func (a *App) newSite(entry *site.Entry[*sharedSite], initiallyOn bool) *configuredSite {
	s := &configuredSite{
		sharedSite:  entry.Value,
		app:         a,
		entry:       entry,
		followed:    &store.Followed{Site: entry.Value.Site},
		initiallyOn: initiallyOn,
	}
	if s.Current().Kind() == site.Loading && a.ctx.Err() == nil {
		a.loading.add(s)
	}
	return s
}

// siteOf returns the config's site of an entry, nil if it has none.
func (a *App) siteOf(entry *site.Entry[*sharedSite]) *configuredSite {
	if s := a.sites[entry.Name().String()]; s != nil {
		return s
	}
	if s, ok := entry.Value.configs.find(a.owns); ok {
		return s
	}
	templates := a.yielding(entry.Name().String())
	if len(templates) == 0 {
		return nil
	}
	create := func() *configuredSite {
		s := a.newSite(entry, templates[0].initiallyOn)
		for _, t := range templates {
			for _, v := range t.views.all() {
				s.viewOf(v.page)
			}
		}
		return s
	}
	s := entry.Value.configs.findOrAdd(a.owns, func() *configuredSite {
		if a.ctx.Err() != nil {
			return nil // nothing of this config may stay
		}
		return create()
	})
	if s == nil {
		s = create()
	}
	return s
}

// leaveSites removes the config from its sites.
func (a *App) leaveSites() {
	for entry := range sites.All() {
		entry.Value.configs.remove(a.owns)
	}
}

// yielding returns the config's templates that can make a name. The one with the most literal
// text comes first: it decides the initial state.
func (a *App) yielding(name string) (found []*configuredSite) {
	for _, t := range a.templates {
		if t.entry.Name().Yields(name) {
			found = append(found, t)
		}
	}
	slices.SortStableFunc(found, func(x, y *configuredSite) int { return y.entry.Name().Literals() - x.entry.Name().Literals() })
	return found
}

// inMemory yields the config's sites that are in memory, templates included.
func (a *App) inMemory() iter.Seq[*configuredSite] {
	return func(yield func(*configuredSite) bool) {
		for entry := range sites.All() {
			if s := a.siteOf(entry); s != nil && !yield(s) {
				return
			}
		}
	}
}

// lookup returns the config's site of that name if it is in memory.
func (a *App) lookup(name string) *configuredSite {
	entry := sites.Find(name)
	if entry == nil {
		return nil
	}
	return a.siteOf(entry)
}

// blockedBy returns the state by which requests of a site are blocked, nil if they are not. For a
// site that is not in memory its template decides.
func (a *App) blockedBy(name string) *site.State {
	s := a.lookup(name)
	if s == nil {
		templates := a.yielding(name)
		if len(templates) == 0 {
			return nil
		}
		s = templates[0]
	}
	if v := s.view(); v.Blocks() {
		return v.State
	}
	return nil
}

// inFlightBeside returns how many requests of a site the templates count. They do that while
// the site is not in memory.
func (a *App) inFlightBeside(name string) (n int64) {
	for _, t := range a.yielding(name) {
		n += t.inFlight.CountOf(name)
	}
	return n
}

// has reports whether the config has a site of that name.
func (a *App) has(name string) bool {
	return a.sites[name] != nil || len(a.yielding(name)) > 0
}

// find returns the name of the config's site that a client means by called.
func (a *App) find(called string) (name string, err error) {
	name = site.Fold(called)
	if s := a.sites[name]; s != nil && !s.isTemplate() || len(a.yielding(name)) > 0 {
		return name, nil
	}
	if name = site.Normalize(called); len(a.yielding(name)) > 0 {
		return name, nil
	}
	if a.goneSite(site.Fold(called)) != nil {
		return site.Fold(called), nil
	}
	if t := a.sites[called]; t != nil {
		return "", fmt.Errorf("%s stands for many sites; name one of them", t.Name)
	}
	if _, err := site.ParseName(name); err != nil && len(a.templates) > 0 {
		return "", err
	}
	if len(a.sites) == 0 {
		return "", fmt.Errorf("unknown site %s; no site of the running config has a maintenance directive; "+
			"add one (for example maintenance shop) and reload Caddy", site.Truncate(called))
	}
	known := strings.Join(slices.Sorted(maps.Keys(a.sites)), ", ")
	return "", fmt.Errorf("unknown site %s; the sites of the running config are: %s", site.Truncate(called), known)
}

// loaded waits until the records of all sites are read, or known to be unreadable.
func (a *App) loaded(ctx context.Context) error {
	for _, t := range a.templates {
		if err := t.Ready(ctx, nil); err != nil {
			return err
		}
	}
	for s := range a.inMemory() {
		if err := s.Ready(ctx, nil); err != nil {
			return err
		}
	}
	return nil
}

// listed returns the config's sites, sorted by name. Sites of templates are listed if they are
// not off, or scheduled. A template itself is listed if its sites that were never switched are
// not off.
func (a *App) listed() []*configuredSite {
	var list []*configuredSite
	for s := range a.inMemory() {
		if v := s.view(); a.sites[s.Name] == s && !s.isTemplate() || v.Blocks() || v.Scheduled() {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(x, y *configuredSite) int { return strings.Compare(x.Name, y.Name) })
	return list
}

// templateNames returns the templates of the config, sorted.
func (a *App) templateNames() (names []string) {
	for _, t := range a.templates {
		names = append(names, t.Name)
	}
	slices.Sort(names)
	return names
}

// followedSites are the config's sites as a store.Follower needs them.
type followedSites struct{ *App }

func (f followedSites) All() iter.Seq[*store.Followed] {
	return func(yield func(*store.Followed) bool) {
		for s := range f.inMemory() {
			if !yield(s.followed) {
				return
			}
		}
	}
}

func (f followedSites) Find(name string) (*store.Followed, bool) {
	if s := f.lookup(name); s != nil {
		return s.followed, true
	}
	return nil, f.has(name)
}

func (f followedSites) ReadAgain(name string) {
	if entry := sites.Need(name, true); entry != nil {
		f.follow(entry, (*store.Followed).ReadAgain)
	}
}

// follow calls how for the config's site of an entry, releases the entry, and returns the site;
// nil if the config does not have it.
func (a *App) follow(entry *site.Entry[*sharedSite], how func(*store.Followed)) *configuredSite {
	defer letSiteGo(entry)
	s := a.siteOf(entry)
	if s != nil {
		how(s.followed)
	}
	return s
}
