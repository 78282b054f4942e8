// Package maintenance is a maintenance mode for Caddy. While a site is in
// maintenance, a handler answers its requests with 503 Service Unavailable and
// a page. Operators switch sites with the command `caddy maintenance` or
// through Caddy's admin API, without a config reload.
//
// This package holds what talks to Caddy. Of the packages below it, only internal/cli does too.
// A request goes from the handler to its site (internal/site), which admits it
// (internal/inflight) or blocks it, and then the handler answers (internal/page). A switch
// goes from the admin API to the storage (internal/store) and to the site; a sync goes
// from the storage to the site. Both return changes, and notify passes them on.
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

// Handler implements a maintenance mode. While its site is in maintenance, it
// answers requests with status 503 (Service Unavailable) and a page. Otherwise
// it passes them to the next handler unchanged.
//
// Operators switch a site at run time; the config stays as it is, and no reload
// is needed. Run `caddy maintenance on <site>` and `caddy maintenance off <site>`,
// or send `PUT` and `DELETE` requests for `/maintenance/<site>` to the admin API.
// The state is kept in Caddy's storage: it survives reloads and restarts, and all
// instances that share the storage follow it.
//
// A switch can carry options: a message for visitors, a time when maintenance
// begins or ends, holding requests until it ends, terminating requests that do
// not finish, and a secret link for testers, `/.maintenance/<secret>`.
// `caddy maintenance on --help` explains each of them.
//
// The page is HTML, `application/problem+json` (RFC 9457) or plain text,
// whichever the request's `Accept` header prefers. The response carries
// `Retry-After` and `Cache-Control: no-store`. In JSON, put this handler before
// any `headers` handler in its route: a deferred one in front of it would
// overwrite `Cache-Control`. The Caddyfile directive is ordered before `header`.
//
// This handler sets the following placeholders, which can be used by the
// handlers after it. They are empty if they do not apply, such as the outcome of
// a request for a site that is open:
//
// Placeholder | Description
// ------------|-------------
// `{http.maintenance.outcome}` | What maintenance did to the request: `blocked`, `bypassed`, `released` (after a hold) or `terminated`
// `{http.maintenance.from}` | When the scheduled maintenance begins (RFC 3339)
// `{http.maintenance.until}` | When the scheduled maintenance ends (RFC 3339)
// `{http.maintenance.message}` | The message of the scheduled maintenance
type Handler struct {
	// The name of the site. Handlers with the same name are switched together.
	// Required.
	//
	// A name has 1 to 64 characters from `a-z 0-9 . - _ : *` and begins with a
	// letter, a digit or `*`. Upper case is folded to lower case. The names of
	// commands are errors: `on`, `off`, `run`, `page`, `instances`, `forget`,
	// `status` and `help`. A hostname makes a good name.
	//
	// The name can contain placeholders, such as `{http.request.host}` or
	// `shop-{http.request.host.labels.2}`; shorthands of the Caddyfile, such as
	// `{host}`, are errors in JSON. Each value is then a separate site, so
	// one handler can serve any number of tenants. Placeholders that are known when
	// the config loads, such as `{env.NAME}`, are replaced then; others are replaced
	// for each request. In values, upper case is folded, and a port and a trailing
	// dot are removed. If the result is not a valid name, the request belongs to no
	// site, and `initial_state` decides. Note that clients choose their site if they
	// control the value, such as that of a header.
	Site string `json:"site"`

	// A custom page: a URL (`https://…`, `http://…`, or `//…` for https), or a file
	// path relative to Caddy's working directory. A file that cannot be read is an
	// error. Placeholders such as `{env.MAINTENANCE_PAGE_URL}` are replaced when the
	// config loads. Default, also if the value is empty: an unstyled page.
	//
	// The page must be HTML of at most 1 MiB. It is fetched when the config starts,
	// every 10 minutes, and when the site is switched on. After a failure it is
	// fetched again in 5 seconds, then at doubling intervals of up to 10 minutes.
	// No visitor waits for that: visitors get the last good copy, or the default
	// page if there is none. `{maintenance.message}` and `{maintenance.until}` in
	// the page are replaced with the message and the end of the maintenance.
	Page string `json:"page,omitempty"`

	// The value of the `Retry-After` header, in whole seconds. A switch with a
	// `retry_after` overrides it; for a switch with only an end, the header counts
	// down to that. At least `1s`. Default: `5m`.
	RetryAfter caddy.Duration `json:"retry_after,omitempty"`

	// If set, adds a `Refresh` header to the 503, so that browsers reload the page
	// by themselves after this time, in whole seconds. At least `1s`. Default: no
	// `Refresh` header.
	Refresh caddy.Duration `json:"refresh,omitempty"`

	// Requests that match any of these matcher sets reach the next handler even
	// while the site is in maintenance. An empty matcher set is an error. Default:
	// none.
	BypassRaw caddyhttp.RawMatcherSets `json:"bypass,omitempty" caddy:"namespace=http.matchers"`

	// The state of a site that was never switched: `on` or `off`. All handlers with
	// the same name must have the same value. If a site's name can come from several
	// handlers with placeholders, the one with the most literal text counts.
	// Default: `off`.
	InitialState string `json:"initial_state,omitempty"`

	template     *Handler        // the original, if this is a copy for one site of a template
	site         *configuredSite // for a template, the site that stands for those not in memory
	log          *zap.Logger
	stopping     <-chan struct{} // closed when the config is unloaded
	writeTimeout time.Duration   // of the server; 0 if it has none
	view         *siteView
	pageKey      string // of the custom page in the pool; empty for the default page
	initiallyOn  bool
	bypass       bypass
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
	if err := checkShorthands(name); err != nil {
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
	var matchers caddyhttp.MatcherSets
	if err := matchers.FromInterface(matcherSets); err != nil {
		return fmt.Errorf("loading bypass matchers: %w", err)
	}
	app, err := ctx.App("maintenance")
	if err != nil {
		return err
	}
	if h.site, err = app.(*App).sites.join(name, h.initiallyOn); err != nil {
		return err
	}
	h.log = ctx.Logger()
	h.bypass = newBypass(h.site, h.log, matchers)
	if server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok {
		addErrorRoutes(server)
		h.stopping = app.(*App).watchServer(server)
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
		_, _ = pages.Delete(h.pageKey) // Destruct never fails
	}
	if h.site != nil {
		releaseSite(h.site.entry)
	}
	return nil
}

// ServeHTTP passes the request on and counts it until it ends. If the site is in
// maintenance, it calls serveClosed instead.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	name := h.site.nameOf(r, h.log)
	for {
		own := h.of(name)
		switch err := own.ready(r.Context()); {
		case errors.Is(err, site.ErrStopped):
			return own.block(w, r, own.site.view(), 1)
		case err != nil:
			return clientLeft(w)
		}
		v, req, admitted := own.site.admit(own, name, w, r)
		if req != nil && h.site.config.ended.Load() {
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
		h.site.config.loading.hurry(h.site)
	}
	return h.site.Ready(ctx, h.stopping)
}

// enter serves an admitted request. req is nil if another handler of the site counts it.
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
//  2. bypassed, if it carries the cookie of the bypass secret; a request for the secret
//     link is redirected into the site and gets that cookie;
//  3. held, if the maintenance has a hold. When the site opens, the request is admitted;
//     if the site is closed again by then, it starts over;
//  4. blocked.
func (h *Handler) serveClosed(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, v site.View) error {
	hold := hold{handler: h}
	for {
		isLink := hidesLink(r, v.Options().Bypass)
		if served, err := h.bypass.serveMatched(w, r, next, v); served {
			return h.bypass.hideError(w, isLink, err)
		}
		if served, err := h.bypass.serveSecret(w, r, next, v); served {
			return h.bypass.hideError(w, isLink, err)
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
			h.site.observe(r, wasReleased)
			return h.enter(req, v, w, r, next)
		}
	}
}

// block answers a request with the 503.
func (h *Handler) block(w http.ResponseWriter, r *http.Request, v site.View, retryAfter int64) error {
	h.site.observe(r, wasBlocked)
	h.respond(w, r, v.State, retryAfter)
	return nil
}

// statusClientLeft is the status that Caddy's reverse proxy logs if the client left
// before the response.
const statusClientLeft = 499

// clientLeft ends a request whose client has left. That is not an error.
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

// checkPage replaces placeholders and returns the source of a custom page, with its content
// if it is a file. For the default page the source is the zero value.
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
