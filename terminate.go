package maintenance

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"example.com/caddy-maintenance/internal/inflight"
)

// setContext changes the request in place: placeholders and error routes refer to this one
// and would not see changes to a copy.
func setContext(r *http.Request, ctx context.Context) { *r = *r.WithContext(ctx) }

// serveAdmitted passes a request on, and answers it if it is terminated before a response
// has started.
func (h *Handler) serveAdmitted(req *inflight.Request, r *http.Request, next caddyhttp.Handler) error {
	unanswered, err := h.passOn(req, r, next)
	if unanswered {
		setContext(r, req.Outer())
		observeTerminated(req)
		cmp.Or(h.template, h).of(req.Key).respondTerminated(req.TakeOver(), r)
	}
	return err
}

// passOn counts a request until it is done. A request that ends in an error goes on to the
// server's error routes, which may proxy it again. It is done when errorRoutes returns, or at
// the latest when the server cancels its context.
func (h *Handler) passOn(req *inflight.Request, r *http.Request, next caddyhttp.Handler) (unanswered bool, err error) {
	defer func() {
		if err != nil {
			req.HandlerReturned()
			context.AfterFunc(req.Server(), req.Done)
			return
		}
		req.Done()
		if req.Aborted() {
			observeTerminated(req)
		}
	}()
	return req.Serve(r, next.ServeHTTP)
}

// respondTerminated answers a request that was terminated before a response had started.
func (h *Handler) respondTerminated(w http.ResponseWriter, r *http.Request) {
	for _, name := range appHeaders {
		w.Header().Del(name)
	}
	st := h.site.Current()
	h.respond(w, r, st, h.retryAfter(st.Options()))
}

// errorRoutes comes before the error routes of a server that has a Handler. A failed request
// is still in flight there, and can be terminated like any other. Caddy gives error routes the
// server's own writer, so the Handler's cannot stop their writes.
type errorRoutes struct{}

func (errorRoutes) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	for req := range inflight.Requests(r.Context()) {
		inner := next
		next = caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			req.Resume(w)
			return req.Gate.(*Handler).serveAdmitted(req, r, inner)
		})
	}
	return next.ServeHTTP(w, r)
}

// addErrorRoutes inserts errorRoutes before the error routes of the server, once. It can do
// so only while Caddy loads the handlers of the server's routes: when it loads those of the
// error routes or of named routes, it is already iterating over the error routes. Caddy drops
// the raw config of a route when it has loaded its handlers; that shows how far it is.
func addErrorRoutes(server *caddyhttp.Server) {
	if server.Errors == nil || len(server.Errors.Routes) == 0 {
		return // a failed request ends at once
	}
	if !slices.ContainsFunc(server.Routes, func(r caddyhttp.Route) bool { return len(r.HandlersRaw) > 0 }) {
		return
	}
	if handlers := server.Errors.Routes[0].Handlers; len(handlers) > 0 && handlers[0] == caddyhttp.MiddlewareHandler(errorRoutes{}) {
		return
	}
	server.Errors.Routes = slices.Insert(server.Errors.Routes, 0,
		caddyhttp.Route{Handlers: []caddyhttp.MiddlewareHandler{errorRoutes{}}})
}

// terminateClosed terminates the requests in flight of closed sites.
func (c *configSites) terminateClosed() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for s := range c.inMemory() {
		if v := s.view(); v.Blocks() && s.inFlight.Count() > 0 {
			inflight.Terminate(s.inFlight.All())
			select {
			case <-s.inFlight.Idle():
			case <-ctx.Done():
			}
		}
	}
}

// setTerminateTimer sets the timer that terminates the requests in flight.
func (s *sharedSite) setTerminateTimer() {
	s.terminateMu.Lock()
	defer s.terminateMu.Unlock()
	if s.terminateTimer != nil {
		s.terminateTimer.Stop()
		s.terminateTimer = nil
	}
	st := s.Current()
	if at := st.TerminateAt(); !at.IsZero() {
		s.terminateTimer = time.AfterFunc(time.Until(at), func() { s.terminate(s.inFlight.All(), st.BlockedSince()) })
	}
}

// terminate ends requests in flight. It does nothing if the site was opened since blockedSince,
// or if its terminate_after was extended or cleared: then some of the requests have more time.
func (s *sharedSite) terminate(requests []*inflight.Request, blockedSince time.Time) {
	st := s.Current()
	at := st.TerminateAt()
	if at.IsZero() || time.Now().Before(at) || !st.BlockedSince().Equal(blockedSince) {
		return
	}
	terminated := inflight.Terminate(requests)
	if terminated == 0 {
		return
	}
	s.requests[wasTerminated].Add(int64(terminated))
	caddy.Log().Named("maintenance").Info("terminated requests that were still in flight", zap.String("site", s.Name), zap.Int("requests", terminated))
}
