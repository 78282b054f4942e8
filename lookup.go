package maintenance

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"example.com/caddy-maintenance/internal/site"
	"example.com/caddy-maintenance/internal/store"
)

// configSites are the sites of a config: those that a handler names, including templates, and the
// sites of templates that are in memory. The zero value has none.
type configSites struct {
	ctx       context.Context // ends with the config
	loading   *loading
	named     map[string]*configuredSite // those that handlers name
	templates []*configuredSite          // the templates among them
	ended     atomic.Bool                // the config has stopped; its last requests may still come
}

// join adds a handler to its site. The caller must release the site. If its record was never
// read, reading begins.
func (c *configSites) join(name *site.Name, initiallyOn bool) (*configuredSite, error) {
	if s, ok := c.named[name.String()]; ok {
		if s.initiallyOn != initiallyOn {
			return nil, fmt.Errorf("conflicting initial_state: one handler of site %s says on and another does not; use the same value in all of them", name)
		}
		sites.Acquire(name, time.Now())
		return s, nil
	}
	if name.IsTemplate() {
		if err := c.checkTemplate(name, initiallyOn); err != nil {
			return nil, err
		}
	}
	entry := sites.Acquire(name, time.Now())
	s := entry.Value.configs.findOrAdd(c.owns, func() *configuredSite { return c.newSite(entry, initiallyOn) })
	c.named[name.String()] = s
	if name.IsTemplate() {
		c.templates = append(c.templates, s)
	}
	return s, nil
}

// checkTemplate refuses a template that may make the same names as another one and disagrees on
// their initial state, unless one has more literal text: that one decides.
func (c *configSites) checkTemplate(name *site.Name, initiallyOn bool) error {
	for _, t := range c.templates {
		other := t.entry.Name()
		if t.initiallyOn != initiallyOn && name.Literals() == other.Literals() && name.MayYieldNameOf(other) {
			return fmt.Errorf("conflicting initial_state: handlers of sites %s and %s can make the same name, and only one of them says on; "+
				"use the same value in both, or a text that tells the names apart (for example pre-%s)", other, name, name)
		}
	}
	return nil
}

func (c *configSites) owns(s *configuredSite) bool { return s.config == c }

// newSite makes the config's site of an entry. If its record was never read, reading begins,
// even if another config is reading it: that config's storage may end with it.
func (c *configSites) newSite(entry *site.Entry[*sharedSite], initiallyOn bool) *configuredSite {
	s := &configuredSite{
		sharedSite:  entry.Value,
		config:      c,
		entry:       entry,
		followed:    &store.Followed{Site: entry.Value.Site},
		initiallyOn: initiallyOn,
	}
	if s.Current().Kind() == site.Loading && c.ctx.Err() == nil {
		c.loading.add(s)
	}
	return s
}

// siteOf returns the config's site of an entry, nil if it has none.
func (c *configSites) siteOf(entry *site.Entry[*sharedSite]) *configuredSite {
	if s := c.named[entry.Name().String()]; s != nil {
		return s
	}
	if s, ok := entry.Value.configs.find(c.owns); ok {
		return s
	}
	templates := c.yielding(entry.Name().String())
	if len(templates) == 0 {
		return nil
	}
	create := func() *configuredSite {
		s := c.newSite(entry, templates[0].initiallyOn)
		for _, t := range templates {
			for _, v := range t.views.all() {
				s.viewOf(v.page)
			}
		}
		return s
	}
	s := entry.Value.configs.findOrAdd(c.owns, func() *configuredSite {
		if c.ctx.Err() != nil {
			return nil // nothing of this config may stay
		}
		return create()
	})
	if s == nil {
		s = create()
	}
	return s
}

// leave removes the config from its sites.
func (c *configSites) leave() {
	for entry := range sites.All() {
		entry.Value.configs.remove(c.owns)
	}
}

// yielding returns the config's templates that can make a name. The one with the most literal
// text comes first: it decides the initial state.
func (c *configSites) yielding(name string) (found []*configuredSite) {
	for _, t := range c.templates {
		if t.entry.Name().Yields(name) {
			found = append(found, t)
		}
	}
	slices.SortStableFunc(found, func(x, y *configuredSite) int { return y.entry.Name().Literals() - x.entry.Name().Literals() })
	return found
}

// inMemory yields the config's sites that are in memory, templates included.
func (c *configSites) inMemory() iter.Seq[*configuredSite] {
	return func(yield func(*configuredSite) bool) {
		for entry := range sites.All() {
			if s := c.siteOf(entry); s != nil && !yield(s) {
				return
			}
		}
	}
}

// lookup returns the config's site of that name if it is in memory.
func (c *configSites) lookup(name string) *configuredSite {
	entry := sites.Find(name)
	if entry == nil {
		return nil
	}
	return c.siteOf(entry)
}

// blockedBy returns the state by which requests of a site are blocked, nil if they are not. For a
// site that is not in memory its template decides.
func (c *configSites) blockedBy(name string) *site.State {
	s := c.lookup(name)
	if s == nil {
		templates := c.yielding(name)
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
func (c *configSites) inFlightBeside(name string) (n int64) {
	for _, t := range c.yielding(name) {
		n += t.inFlight.CountOf(name)
	}
	return n
}

// has reports whether the config has a site of that name.
func (c *configSites) has(name string) bool {
	return c.named[name] != nil || len(c.yielding(name)) > 0
}

// find returns the name of the config's site that a client means by called.
func (c *configSites) find(called string) (name string, err error) {
	name = site.Fold(called)
	if s := c.named[name]; s != nil && !s.isTemplate() || len(c.yielding(name)) > 0 {
		return name, nil
	}
	if name = site.Normalize(called); len(c.yielding(name)) > 0 {
		return name, nil
	}
	if _, ok := c.gone(site.Fold(called)); ok {
		return site.Fold(called), nil
	}
	if t := c.named[called]; t != nil {
		return "", fmt.Errorf("%s stands for many sites; name one of them", t.Name)
	}
	if _, err := site.ParseName(name); err != nil && len(c.templates) > 0 {
		return "", err
	}
	if len(c.named) == 0 {
		return "", fmt.Errorf("unknown site %s; no site of the running config has a maintenance directive; "+
			"add one (for example maintenance shop) and reload Caddy", site.Truncate(called))
	}
	known := strings.Join(slices.Sorted(maps.Keys(c.named)), ", ")
	return "", fmt.Errorf("unknown site %s; the sites of the running config are: %s", site.Truncate(called), known)
}

// loaded waits until the records of all sites are read, or known to be unreadable.
func (c *configSites) loaded(ctx context.Context) error {
	for _, t := range c.templates {
		if err := t.Ready(ctx, nil); err != nil {
			return err
		}
	}
	for s := range c.inMemory() {
		if err := s.Ready(ctx, nil); err != nil {
			return err
		}
	}
	return nil
}

// listed returns the config's sites, sorted by name. Sites of templates are listed if they are
// not off, or scheduled. A template itself is listed if its sites that were never switched are
// not off.
func (c *configSites) listed() []*configuredSite {
	var list []*configuredSite
	for s := range c.inMemory() {
		if v := s.view(); c.named[s.Name] == s && !s.isTemplate() || v.Blocks() || v.Scheduled() {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(x, y *configuredSite) int { return strings.Compare(x.Name, y.Name) })
	return list
}

// templateNames returns the templates of the config, sorted.
func (c *configSites) templateNames() (names []string) {
	for _, t := range c.templates {
		names = append(names, t.Name)
	}
	slices.Sort(names)
	return names
}

// followedSites are the config's sites as a store.Follower needs them.
type followedSites struct{ sites *configSites }

func (f followedSites) All() iter.Seq[*store.Followed] {
	return func(yield func(*store.Followed) bool) {
		for s := range f.sites.inMemory() {
			if !yield(s.followed) {
				return
			}
		}
	}
}

func (f followedSites) Find(name string) (*store.Followed, bool) {
	if s := f.sites.lookup(name); s != nil {
		return s.followed, true
	}
	return nil, f.sites.has(name)
}

func (f followedSites) ReadAgain(name string) {
	if entry := sites.Need(name, true); entry != nil {
		f.sites.follow(entry, (*store.Followed).ReadAgain)
	}
}

// follow calls how for the config's site of an entry, releases the entry, and returns the site;
// nil if the config does not have it.
func (c *configSites) follow(entry *site.Entry[*sharedSite], how func(*store.Followed)) *configuredSite {
	defer letSiteGo(entry)
	s := c.siteOf(entry)
	if s != nil {
		how(s.followed)
	}
	return s
}
