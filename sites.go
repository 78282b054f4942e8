package maintenance

import (
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"example.com/caddy-maintenance/internal/inflight"
	"example.com/caddy-maintenance/internal/site"
	"example.com/caddy-maintenance/internal/store"
)

// sites holds the sites in memory, across config reloads: every site that a loaded config
// names, sites of templates unless they were never switched, and sites with requests in flight
// that no template counts.
var sites = site.NewPool(newSharedSite)

// sharedSite is shared by all handlers of one name, whichever config they belong to.
type sharedSite struct {
	*site.Site
	inFlight inflight.Set
	held     atomic.Int64                // requests that wait for the end of maintenance
	requests [len(outcomes)]atomic.Int64 // counted by outcome
	configs  readList[*configuredSite]   // the site in each loaded config

	terminateMu    sync.Mutex
	terminateTimer *time.Timer // terminates requests in flight; nil if that is not set; guarded by terminateMu
}

func newSharedSite(name string, unset bool) *sharedSite {
	s := &sharedSite{Site: site.New(name, time.Now())}
	if unset {
		s.Site = site.NewUnset(name, time.Now())
	}
	s.inFlight.Hold()
	return s
}

// IsUnset reports whether the site is known to have no record.
func (s *sharedSite) IsUnset() bool { return s.Current().Kind() == site.Unset }

// Idles reports whether the site is known to have no record, and no config has to read it.
func (s *sharedSite) Idles() bool {
	// The order matters: a record that is being read may be applied between the two.
	return !slices.ContainsFunc(s.configs.all(), func(c *configuredSite) bool { return c.followed.Behind() }) && s.IsUnset()
}

// Take takes over the requests of the named site from another entry.
func (s *sharedSite) Take(from *sharedSite, name string) { s.inFlight.Take(&from.inFlight, name) }

// Complete marks that the site has taken over all requests admitted before it was in memory.
func (s *sharedSite) Complete() { s.inFlight.Release() }

// heldNow returns how many requests are held.
func (s *sharedSite) heldNow() int64 {
	return min(s.held.Load(), maxHeld) // a request that finds no room is counted for a moment
}

// configuredSite is a site in a config.
type configuredSite struct {
	*sharedSite
	config      *configSites // that has the site
	entry       *site.Entry[*sharedSite]
	followed    *store.Followed
	initiallyOn bool
	views       readList[*siteView] // of all its handlers
	hurried     atomic.Bool         // a request waits for the record to be read
	warned      atomic.Bool         // of an unknown placeholder
	gates       sync.Map            // of a template's site: copies of the template's handlers, by original
}

// isTemplate reports whether s stands for the sites of a template that were never switched.
func (s *configuredSite) isTemplate() bool { return s.entry.Name().IsTemplate() }

func (s *configuredSite) configured() site.Configured {
	return site.Configured{Site: s.Site, InitiallyOn: s.initiallyOn}
}

// view returns the site's state as the config sees it.
func (s *configuredSite) view() site.View { return s.configured().View() }

// viewsOf returns the states of a change as the config sees them.
func (s *configuredSite) viewsOf(change site.Change) (before, after site.View) {
	return site.View{State: change.Before, InitiallyOn: s.initiallyOn}, site.View{State: change.After, InitiallyOn: s.initiallyOn}
}

// readList is a list that changes seldom and is read without a lock.
type readList[T comparable] struct {
	mu    sync.Mutex
	items atomic.Pointer[[]T]
}

func (l *readList[T]) all() []T {
	if items := l.items.Load(); items != nil {
		return *items
	}
	return nil
}

// find returns the first item for which is returns true. It looks at one state of the list.
func (l *readList[T]) find(is func(T) bool) (item T, ok bool) {
	items := l.all()
	if i := slices.IndexFunc(items, is); i >= 0 {
		return items[i], true
	}
	return item, false
}

// findOrAdd returns the first item for which is returns true. If there is none, it adds what
// create returns, unless that is nil.
func (l *readList[T]) findOrAdd(is func(T) bool, create func() T) (item T) {
	if item, ok := l.find(is); ok {
		return item
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if item, ok := l.find(is); ok {
		return item
	}
	if item = create(); item != *new(T) {
		items := append(slices.Clip(l.all()), item)
		l.items.Store(&items)
	}
	return item
}

// remove removes the items for which is returns true, and reports whether there were any.
func (l *readList[T]) remove(is func(T) bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.ContainsFunc(l.all(), is) {
		return false
	}
	items := slices.DeleteFunc(slices.Clone(l.all()), is)
	l.items.Store(&items)
	return true
}

// releaseSite ends the reference of a handler.
func releaseSite(entry *site.Entry[*sharedSite]) { forgetWhenIdle(sites.Release(entry)) }

// letSiteGo ends a reference that sites.Hold, Retain or Need began.
func letSiteGo(entry *site.Entry[*sharedSite]) { forgetWhenIdle(sites.LetGo(entry)) }

// keepCounted keeps a site in memory for a request that came after its config had ended: the
// site may be forgotten already.
func keepCounted(entry *site.Entry[*sharedSite], name string) {
	forgetWhenIdle(sites.Restore(entry, name))
}

// forgetWhenIdle forgets unused sites when their last requests have ended.
func forgetWhenIdle(unused []*site.Entry[*sharedSite]) {
	for _, entry := range unused {
		select {
		case <-entry.Value.inFlight.Idle():
			sites.Forget(entry)
		default:
			go func() {
				<-entry.Value.inFlight.Idle()
				sites.Forget(entry)
			}()
		}
	}
}

// admit admits a request unless the site is in maintenance. The caller must call Done of req.
// admit looks at the site twice. With a look only before the count, a switch could report that
// nothing is in flight while a request slips through between the two. With a look only after
// it, blocked requests would show up in the count.
//
// req is nil if another handler of the site has admitted the request and counts it.
func (s *configuredSite) admit(h *Handler, name string, w http.ResponseWriter, r *http.Request) (v site.View, req *inflight.Request, admitted bool) {
	if v = s.view(); v.Blocks() {
		return v, nil, false
	}
	if s.inFlight.Has(r.Context(), name) {
		return v, nil, true
	}
	req = s.inFlight.Add(w, r, h, name)
	if v = s.view(); v.Blocks() {
		req.Done()
		return v, nil, false
	}
	return v, req, true
}

// awaitDrained returns true as soon as the site is closed and nothing is in flight. It returns
// false if the site is opened or stop is closed before.
func (s *configuredSite) awaitDrained(stop <-chan struct{}) bool {
	for {
		v := s.view()
		if !v.Blocks() {
			return false
		}
		select {
		case <-s.inFlight.Idle():
			// If the site is still in that state, no request was admitted since.
			if s.Current() == v.State {
				return true
			}
		case <-v.Changed():
		case <-stop:
			return false
		}
	}
}
