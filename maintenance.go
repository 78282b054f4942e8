// Package maintenance is a maintenance mode for Caddy: a handler that answers
// every request of a site with 503 Service Unavailable and a page while the
// site is in maintenance, and a switch for it in Caddy's admin API and on the
// command line (caddy maintenance on|off, and run for a command meanwhile).
//
// This package holds what talks to Caddy; what can be understood without it is in the
// packages below. A request goes from the handler to its site (internal/site), which
// admits it (internal/inflight) or has it answered (internal/page). A switch goes from the
// admin API to the storage (internal/store) and to the site; a sync, from the storage to
// the site. Both come back as changes, and notify passes those on.
package maintenance

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"example.com/caddy-maintenance/internal/inflight"
	"example.com/caddy-maintenance/internal/page"
	"example.com/caddy-maintenance/internal/site"
)

func init() {
	caddy.RegisterModule(Handler{})
}

// Handler answers every request with 503 Service Unavailable and a page while
// its site is in maintenance, and does nothing otherwise. A site is switched
// with `caddy maintenance on|off` or through the admin API under
// `/maintenance/`; no config reload is needed.
//
// A switch can be scheduled. Until then, the placeholders `{http.maintenance.from}`,
// `{http.maintenance.until}` and `{http.maintenance.message}` tell the handlers behind this one
// what is to come. It can also hold requests until the maintenance is over, terminate those that do
// not finish, and issue a bypass link, `/.maintenance/<secret>`.
//
// The page is HTML, `application/problem+json` (RFC 9457) or plain text,
// whichever the request's `Accept` header prefers. The response is never
// cached and carries `Retry-After` (RFC 9110, section 10.2.3). Put this handler before
// any `headers` handler in its route: a deferred one in front of it would overwrite
// `Cache-Control`.
type Handler struct {
	// The name of the site that this handler belongs to: 1 to 64 of
	// `a-z 0-9 . - _ : *`, beginning with a letter, digit or `*`; upper case
	// is folded; not `on`, `off`, `run`, `page`, `instances`, `forget`, `status` or
	// `help`, which are commands. Handlers that carry the same name are switched
	// together. Required.
	//
	// It may contain placeholders, as in `{http.request.host}` or
	// `shop-{http.request.host.labels.2}`: each value makes a site of its own, so that one
	// handler serves any number of tenants. What is known when the config loads, such as
	// `{env.NAME}`, is replaced then. Upper case in a value is folded, and a port and a
	// trailing dot are removed. A request whose values make no valid name is one for a site
	// that was never switched. Whoever sends a value, such as that of a header, chooses the
	// site.
	Site string `json:"site"`

	// A custom page. A value that contains `://` or begins with `//` (which is read
	// as https) is an `https` or `http` URL; any other value is the path of a file,
	// relative to Caddy's working directory. Placeholders such as
	// `{env.MAINTENANCE_PAGE_URL}` are replaced when the config loads; an empty value
	// means the default page.
	//
	// The page must be HTML of at most 1 MiB. It is fetched when the config starts,
	// every 10 minutes, and when the site is switched on; after a failure again in 5
	// seconds, then twice as long each time up to 10 minutes. It is never fetched for
	// a visitor: visitors get the last good copy, or the default page if there has
	// never been one. `{maintenance.message}` and `{maintenance.until}` in the page
	// are replaced by the message and the end of the maintenance.
	// Default: the default page.
	Page string `json:"page,omitempty"`

	// The value of the `Retry-After` header, unless the switch sets another one.
	// Default: `5m`. At least `1s`.
	RetryAfter caddy.Duration `json:"retry_after,omitempty"`

	// Sets a `Refresh` header, so that browsers reload by themselves after this time,
	// in whole seconds. At least `1s`. Default: no such header.
	Refresh caddy.Duration `json:"refresh,omitempty"`

	// Requests that match any of these matcher sets get through while the site is in
	// maintenance. An empty matcher set is an error. Default: none.
	BypassRaw caddyhttp.RawMatcherSets `json:"bypass,omitempty" caddy:"namespace=http.matchers"`

	// The state of a site that has never been switched: `on` or `off`. All handlers with the
	// same name must agree on it. If several with placeholders can make the name of a site, the
	// one with the most literal text counts. Default: `off`.
	InitialState string `json:"initial_state,omitempty"`

	template     *Handler        // of which this is a copy, if it is one
	site         *configuredSite // of a template, that which stands for the ones not in memory
	log          *zap.Logger
	cookieName   string
	stopping     <-chan struct{} // closed when the config is unloaded
	writeTimeout time.Duration   // of the server; 0 if it has none
	view         *siteView
	pageKey      string // of the custom page in the pool, if there is one
	initiallyOn  bool
	bypass       caddyhttp.MatcherSets
}

// CaddyModule returns the Caddy module information.
func (Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.maintenance",
		New: func() caddy.Module { return new(Handler) },
	}
}

// Provision checks the config and joins the handler to its site.
func (h *Handler) Provision(ctx caddy.Context) error {
	name, err := site.ParseName(caddy.NewReplacer().ReplaceKnown(h.Site, ""))
	if err != nil {
		return err
	}
	if h.RetryAfter == 0 {
		h.RetryAfter = caddy.Duration(defaultRetryAfter)
	}
	if err := checkRetryAfter(time.Duration(h.RetryAfter)); err != nil {
		return err
	}
	if h.Refresh != 0 {
		if err := checkRefresh(time.Duration(h.Refresh)); err != nil {
			return err
		}
	}
	source, content, err := checkPage(h.Page)
	if err != nil {
		return err
	}
	if h.initiallyOn, err = parseInitialState(h.InitialState); err != nil {
		return err
	}
	for _, matcherSet := range h.BypassRaw {
		if len(matcherSet) == 0 {
			return errEmptyBypass
		}
	}
	matcherSets, err := ctx.LoadModule(h, "BypassRaw")
	if err != nil {
		return fmt.Errorf("loading bypass matchers: %w", err)
	}
	if err := h.bypass.FromInterface(matcherSets); err != nil {
		return fmt.Errorf("loading bypass matchers: %w", err)
	}
	app, err := ctx.App("maintenance")
	if err != nil {
		return err
	}
	if h.site, err = app.(*App).join(name, h.initiallyOn); err != nil {
		return err
	}
	h.log = ctx.Logger()
	h.cookieName = site.CookieName(name.String())
	if server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok {
		addErrorRoutes(server)
		h.stopping = app.(*App).stopping(server)
		h.writeTimeout = time.Duration(server.WriteTimeout)
	}
	if h.pageKey = source.Location(); h.pageKey != "" {
		h.view = app.(*App).pages.use(h.site, source, content)
		return nil
	}
	h.view = h.site.viewOf(nil)
	if h.Page != "" {
		h.log.Warn("page is empty; visitors get the default page", zap.String("site", name.String()), zap.String("page", h.Page))
	}
	return nil
}

// Cleanup releases the handler's site and page.
func (h *Handler) Cleanup() error {
	if h.pageKey != "" {
		_, _ = pages.Delete(h.pageKey) // which does not fail
	}
	if h.site != nil {
		releaseSite(h.site.entry)
	}
	return nil
}

// ServeHTTP lets the request through, and counts it until it ends, unless the
// site is in maintenance.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	name := h.nameOf(r)
	for {
		own := h.of(name)
		switch err := own.ready(r.Context()); {
		case errors.Is(err, site.ErrStopped):
			return own.block(w, r, own.site.view(), 1)
		case err != nil:
			return clientLeft(w)
		}
		v, req, admitted := own.site.admit(own, name, w, r)
		if req != nil && h.site.app.ended.Load() {
			keepCounted(own.site.entry, name)
		}
		switch {
		case !h.serves(name, own):
			if req != nil {
				req.Done()
			}
			continue
		case !admitted:
			return own.serveClosed(w, r, next, v)
		}
		return own.enter(req, v, w, r, next)
	}
}

// ready waits until the state of the site is known, or cannot be.
func (h *Handler) ready(ctx context.Context) error {
	if h.site.followed.Waits() {
		h.site.app.hurry(h.site)
	}
	return h.site.Ready(ctx, h.stopping)
}

// enter serves a request that has been admitted: req, or nil for one that another gate
// counts.
func (h *Handler) enter(req *inflight.Request, v site.View, w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	givePlaceholders(r, v)
	if req == nil {
		return next.ServeHTTP(w, r)
	}
	setContext(r, req.Context())
	return h.serveAdmitted(req, r, next)
}

// serveClosed serves a request of a site that is in maintenance. The request is
//
//  1. bypassed, if a bypass matcher matches it;
//  2. bypassed, if it carries the cookie of the bypass secret; if it opens the link with
//     the secret, it is sent back into the site with that cookie;
//  3. held, if the maintenance says so. When the site opens, the request is admitted;
//     if the site is closed again by then, it starts over;
//  4. blocked.
func (h *Handler) serveClosed(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, v site.View) error {
	hold := hold{handler: h}
	for {
		isLink := hidesLink(r, v.Options().Bypass)
		if served, err := h.serveMatched(w, r, next, v); served {
			return h.hideError(w, isLink, err)
		}
		if served, err := h.serveBypass(w, r, next, v); served {
			return h.hideError(w, isLink, err)
		}
		switch hold.wait(w, r, v) {
		case released:
		case canceled:
			logAs(r, "held")
			return clientLeft(w)
		case shutdown:
			return h.block(w, r, v, 1)
		case blocked:
			return h.block(w, r, v, h.retryAfter(v.Options()))
		}
		var req *inflight.Request
		var admitted bool
		if v, req, admitted = h.site.admit(h, h.site.Name, w, r); admitted {
			h.observe(r, wasReleased)
			return h.enter(req, v, w, r, next)
		}
	}
}

// serveMatched passes on a request that a bypass matcher matches, and reports whether it
// has served the request. A matcher's error is never taken for a match.
func (h *Handler) serveMatched(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, v site.View) (served bool, err error) {
	matched, err := h.bypass.AnyMatchWithError(r)
	switch {
	case len(h.bypass) == 0:
		return false, nil // where AnyMatchWithError says that everything matches
	case err != nil:
		return true, err
	case !matched:
		return false, nil
	}
	h.observe(r, wasBypassed)
	return true, h.forward(w, r, next, v)
}

// block answers a request with the 503.
func (h *Handler) block(w http.ResponseWriter, r *http.Request, v site.View, retryAfter int64) error {
	h.observe(r, wasBlocked)
	h.respond(w, r, v.State, retryAfter)
	return nil
}

// statusClientLeft is what Caddy's reverse proxy logs of a client that did not
// wait for the answer.
const statusClientLeft = 499

// clientLeft ends a request that nobody waits for any more. That is no error.
func clientLeft(w http.ResponseWriter) error {
	w.WriteHeader(statusClientLeft)
	return nil
}

const (
	defaultRetryAfter = 5 * time.Minute
	minRetryAfter     = time.Second
	minRefresh        = time.Second
)

func checkRetryAfter(d time.Duration) error {
	if d < minRetryAfter {
		return fmt.Errorf("invalid retry_after %q: must be at least %s (for example 5m)", d, minRetryAfter)
	}
	return nil
}

func checkRefresh(d time.Duration) error {
	if d < minRefresh {
		return fmt.Errorf("invalid refresh %q: must be at least %s (for example 30s)", d, minRefresh)
	}
	return nil
}

// checkPage returns the source of a custom page, with placeholders replaced, and what a
// file holds. For the default page the source is the zero value.
func checkPage(configured string) (page.Source, *page.Copy, error) {
	location, err := caddy.NewReplacer().ReplaceOrErr(configured, false, true)
	if err != nil {
		return page.Source{}, nil, fmt.Errorf("page: %w; use a placeholder that is known when the config loads (for example {env.MAINTENANCE_PAGE_URL})", err)
	}
	if location = strings.TrimSpace(location); location == "" {
		return page.Source{}, nil, nil
	}
	source, content, err := page.Check(location)
	if err != nil {
		return page.Source{}, nil, fmt.Errorf("page: %w", err)
	}
	return source, content, nil
}

func parseInitialState(s string) (on bool, err error) {
	switch s {
	case "on":
		return true, nil
	case "off", "":
		return false, nil
	}
	return false, invalidInitialState(s)
}

func invalidInitialState(s string) error {
	return fmt.Errorf("invalid initial_state %q: must be on or off", s)
}

var errEmptyBypass = errors.New("invalid bypass: an empty matcher would let every request through; " +
	"name what may pass (for example bypass /healthz)")

// Interface guards
var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddy.CleanerUpper          = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)
