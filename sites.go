package maintenance

import (
	"iter"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"example.com/caddy-maintenance/internal/inflight"
	"example.com/caddy-maintenance/internal/site"
	"example.com/caddy-maintenance/internal/store"
)

// sites holds every site that a loaded config refers to or that has a request in flight.
// It is what makes state outlive a config reload.
var sites = site.NewPool(newSharedSite)

// sharedSite is what all handlers of one name share, whichever config they belong to.
type sharedSite struct {
	*site.Site
	inFlight inflight.Set
	held     atomic.Int64                // requests that wait for the end of a maintenance
	requests [len(outcomes)]atomic.Int64 // how many, by what has been done to them

	terminateMu    sync.Mutex
	terminateTimer *time.Timer // until what is in flight is terminated, if it is to be; guarded by terminateMu
}

func newSharedSite(name string) *sharedSite { return &sharedSite{Site: site.New(name, time.Now())} }

// heldNow is how many requests are held.
func (s *sharedSite) heldNow() int64 {
	return min(s.held.Load(), maxHeld) // one that finds no place is counted for a moment
}

// configuredSite is a site as a config has it.
type configuredSite struct {
	*sharedSite
	entry       *site.Entry[*sharedSite]
	followed    *store.Followed
	initiallyOn bool
	views       []*siteView // of all its handlers
}

func (s *configuredSite) configured() site.Configured {
	return site.Configured{Site: s.Site, InitiallyOn: s.initiallyOn}
}

// view is the site's state as the config sees it.
func (s *configuredSite) view() site.View { return s.configured().View() }

// releaseSite ends the reference of a handler.
func releaseSite(entry *site.Entry[*sharedSite]) {
	if sites.Release(entry) {
		forgetWhenIdle(entry)
	}
}

// letSiteGo ends what sites.Retain began.
func letSiteGo(entry *site.Entry[*sharedSite]) {
	if sites.LetGo(entry) {
		forgetWhenIdle(entry)
	}
}

// forgetWhenIdle keeps a site that nobody refers to until its last request has ended.
func forgetWhenIdle(entry *site.Entry[*sharedSite]) {
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

// admit lets a request in unless the site is in maintenance; one that was let in is to be
// done. The site is looked at twice: with a look only before the count, a switch could
// report that nothing is in flight while a request slips through between the two; with a
// look only after it, blocked requests would show up in the count.
//
// A request that another gate of the site has let in, and counts, is none of its own.
func (s *configuredSite) admit(h *Handler, w http.ResponseWriter, r *http.Request) (v site.View, req *inflight.Request, admitted bool) {
	if v = s.view(); v.Blocks() {
		return v, nil, false
	}
	if s.inFlight.Has(r.Context()) {
		return v, nil, true
	}
	req = s.inFlight.Add(w, r, h)
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
