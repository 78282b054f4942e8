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

// setContext changes the request in place: placeholders and error routes stay with
// this one, and would not see what is done to another.
func setContext(r *http.Request, ctx context.Context) { *r = *r.WithContext(ctx) }

// serveAdmitted passes a request on, and answers it if it is terminated before anything
// has been sent.
func (h *Handler) serveAdmitted(req *inflight.Request, r *http.Request, next caddyhttp.Handler) error {
	unanswered, err := h.passOn(req, r, next)
	if unanswered {
		setContext(r, req.Outer())
		h.observeTerminated(req)
		cmp.Or(h.template, h).of(req.Key).respondTerminated(req.TakeOver(), r)
	}
	return err
}

// passOn counts a request until it is done, in whichever way. One that ends in an error
// goes on to the site's error routes, which may proxy it again, and is done when the
// server cancels its context, if errorRoutes does not notice it before.
func (h *Handler) passOn(req *inflight.Request, r *http.Request, next caddyhttp.Handler) (unanswered bool, err error) {
	defer func() {
		if err != nil {
			req.HandlerReturned()
			context.AfterFunc(req.Server(), func() { req.Done() })
			return
		}
		req.Done()
		if req.Aborted() {
			h.observeTerminated(req)
		}
	}()
	return req.Serve(r, next.ServeHTTP)
}

// respondTerminated answers a request that was terminated before anything was sent.
func (h *Handler) respondTerminated(w http.ResponseWriter, r *http.Request) {
	for _, name := range appHeaders {
		w.Header().Del(name)
	}
	st := h.site.Current()
	h.respond(w, r, st, h.retryAfter(st.Options()))
}

// errorRoutes comes before the error routes of a server that has a gate. A request that
// has failed is still in flight there, and is terminated as any other. Caddy gives error
// routes the server's own writer, which no gate could keep from writing.
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

// addErrorRoutes puts errorRoutes before those of the server, once, while Caddy loads the
// handlers of the server's routes. It is too late when Caddy loads those of the error
// routes, for it goes through them then, or of named routes. Caddy drops the raw config of a
// route when its handlers are loaded, and so tells how far it is.
func addErrorRoutes(server *caddyhttp.Server) {
	if server.Errors == nil || len(server.Errors.Routes) == 0 {
		return // a request that fails ends at once
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

// setTerminateTimer has what is in flight terminated when its time has come.
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

// terminate ends requests that were found in flight in the maintenance that began to
// keep requests out at that time, unless they are not to be ended any more. If the site
// has been opened since, some of them may have been admitted then.
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
