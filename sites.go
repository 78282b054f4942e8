package maintenance

import (
	"iter"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"example.com/caddy-maintenance/internal/inflight"
	"example.com/caddy-maintenance/internal/site"
	"example.com/caddy-maintenance/internal/store"
)

// sites holds every site that a loaded config refers to, of those that a placeholder names
// the ones that are not just never switched, and every site that has a request in flight and
// no such template. It is what makes state outlive a config reload.
var sites = site.NewPool(newSharedSite)

// sharedSite is what all handlers of one name share, whichever config they belong to.
type sharedSite struct {
	*site.Site
	inFlight inflight.Set
	held     atomic.Int64                // requests that wait for the end of a maintenance
	requests [len(outcomes)]atomic.Int64 // how many, by what has been done to them
	configs  readList[*configuredSite]   // the site as loaded configs have it

	terminateMu    sync.Mutex
	terminateTimer *time.Timer // until what is in flight is terminated, if it is to be; guarded by terminateMu
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

// Idles reports whether nothing is to be known of the site, but that it has no record.
func (s *sharedSite) Idles() bool {
	// In this order: a record that is being read may be applied in between.
	return !slices.ContainsFunc(s.configs.all(), func(c *configuredSite) bool { return c.followed.Behind() }) && s.IsUnset()
}

// Take takes over the requests of a site from another one.
func (s *sharedSite) Take(from *sharedSite, name string) { s.inFlight.Take(&from.inFlight, name) }

// Complete says that the site has all requests that were let in before it was there.
func (s *sharedSite) Complete() { s.inFlight.Release() }

// heldNow is how many requests are held.
func (s *sharedSite) heldNow() int64 {
	return min(s.held.Load(), maxHeld) // one that finds no place is counted for a moment
}

// configuredSite is a site as a config has it.
type configuredSite struct {
	*sharedSite
	app         *App
	entry       *site.Entry[*sharedSite]
	followed    *store.Followed
	initiallyOn bool
	views       readList[*siteView] // of all its handlers
	hurried     atomic.Bool         // a request waits for the record to be read
	warned      atomic.Bool         // of a placeholder that is not known
	gates       sync.Map            // its handlers, by those of a template that they are copies of
}

// isTemplate reports whether it stands for the sites of a template that were never switched.
func (s *configuredSite) isTemplate() bool { return s.entry.Name().IsTemplate() }

func (s *configuredSite) configured() site.Configured {
	return site.Configured{Site: s.Site, InitiallyOn: s.initiallyOn}
}

// view is the site's state as the config sees it.
func (s *configuredSite) view() site.View { return s.configured().View() }

// readList is a list that is seldom changed, and read without a lock.
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

// find returns the item that is so. It looks at one state of the list.
func (l *readList[T]) find(is func(T) bool) (item T, ok bool) {
	items := l.all()
	if i := slices.IndexFunc(items, is); i >= 0 {
		return items[i], true
	}
	return item, false
}

// findOrAdd returns the item that is so, or adds one. It adds nothing if that is nil.
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

// remove reports whether there was such an item.
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

// letSiteGo ends what sites.Retain or Need began.
func letSiteGo(entry *site.Entry[*sharedSite]) { forgetWhenIdle(sites.LetGo(entry)) }

// keepCounted has a request counted that has come late, when its config has ended: the site may
// have been forgotten.
func keepCounted(entry *site.Entry[*sharedSite], name string) {
	forgetWhenIdle(sites.Restore(entry, name))
}

// forgetWhenIdle keeps sites that nobody refers to until their last requests have ended.
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

// admit lets a request in unless the site is in maintenance; one that was let in is to be
// done. The site is looked at twice: with a look only before the count, a switch could
// report that nothing is in flight while a request slips through between the two; with a
// look only after it, blocked requests would show up in the count.
//
// A request that another gate of the site has let in, and counts, is none of its own.
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

// awaitDrained returns true as soon as the site is closed and nothing is in flight, and
// false if it is opened or stop is closed before.
func (s *configuredSite) awaitDrained(stop <-chan struct{}) bool {
	for {
		v := s.view()
		if !v.Blocks() {
			return false
		}
		select {
		case <-s.inFlight.Idle():
			// If the site is still in that state, nothing has been let in since.
			if s.Current() == v.State {
				return true
			}
		case <-v.Changed():
		case <-stop:
			return false
		}
	}
}

// publish tells all who watch the site of its changes, one after the other.
func (a *App) publish(s *configuredSite, changes iter.Seq[site.Change]) {
	for change := range changes {
		a.notify(s, change)
	}
}
