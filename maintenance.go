// Package maintenance is a maintenance mode for Caddy: a handler that answers
// every request of a site with 503 Service Unavailable and a page while the
// site is in maintenance, and a switch for it in Caddy's admin API and on the
// command line (caddy maintenance on|off).
//
// A site's state is one value in memory, shared by all handlers that carry its
// name and kept across config reloads. It is stored in Caddy's storage before
// a switch is answered, and read from there before the site serves its first
// request.
package maintenance

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func init() {
	caddy.RegisterModule(Handler{})
}

// Handler answers every request with 503 Service Unavailable and a page while
// its site is in maintenance, and does nothing otherwise. A site is switched
// with `caddy maintenance on|off` or through the admin API under
// `/maintenance/`; no config reload is needed.
//
// A switch can have requests held until the maintenance is over, have those cut off
// that do not end, and let in who opens `/.maintenance/<secret>` with its secret.
//
// The page is HTML, `application/problem+json` (RFC 9457) or plain text,
// whichever the request's `Accept` header prefers. The response is never
// cached and carries `Retry-After` (RFC 9110, section 10.2.3). Put this handler
// before any `headers` handler in its route: one before it that is deferred would
// overwrite `Cache-Control`.
type Handler struct {
	// The name of the site that this handler belongs to: 1 to 64 of
	// `a-z 0-9 . - _ : *`, beginning with a letter, digit or `*`; upper case
	// is folded; not `on`, `off`, `status` or `help`. Handlers that carry the
	// same name are switched together. Required.
	Site string `json:"site"`

	// A page of one's own in place of the default one: what contains `://` or
	// begins with `//` (which is read as https) is an `https` or `http` URL,
	// anything else the path of a file, relative to Caddy's working directory.
	// Placeholders such as `{env.MAINTENANCE_PAGE_URL}` are replaced when the
	// config loads; if nothing is left, it is the default page.
	//
	// The page has to be HTML of at most 1 MiB. It is fetched when the config
	// has started, every 10 minutes, when the site is switched on, and after a
	// failure again in 5 seconds, then twice as long each time up to 10 minutes;
	// never for a visitor, who gets the last good copy, or the default page if
	// there has never been one. `{maintenance.message}` and
	// `{maintenance.until}` in it are replaced by the switch's message and end.
	// Default: none.
	Page string `json:"page,omitempty"`

	// What the `Retry-After` header says if the switch says nothing else.
	// Default: `5m`. At least `1s`.
	RetryAfter caddy.Duration `json:"retry_after,omitempty"`

	// Has browsers ask again after this time by themselves, in whole seconds,
	// with a `Refresh` header. At least `1s`. Default: none.
	Refresh caddy.Duration `json:"refresh,omitempty"`

	// Requests that are let through although the site is in maintenance: those
	// that match any of these matcher sets. An empty matcher set is an error.
	BypassRaw caddyhttp.RawMatcherSets `json:"bypass,omitempty" caddy:"namespace=http.matchers"`

	// The state of the site as long as it has never been switched: `on` or
	// `off`. All handlers of a site must agree on it. Default: `off`.
	InitialState string `json:"initial_state,omitempty"`

	site         *member
	log          *zap.Logger
	cookieName   string
	stopping     <-chan struct{} // closed when the config is unloaded
	writeTimeout time.Duration   // of the server; 0 if it has none
	page         *shownPage      // nil for the default page
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

// Provision checks the configuration and joins the handler to its site.
func (h *Handler) Provision(ctx caddy.Context) error {
	name, err := parseSiteName(h.Site)
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
	page, err := resolvePage(h.Page)
	if err != nil {
		return err
	}
	source, content, err := checkPage(page)
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
	m, err := app.(*App).join(name, h.initiallyOn)
	if err != nil {
		return err
	}
	h.site = m
	h.log = ctx.Logger()
	h.cookieName = passCookieName(name)
	if server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok {
		addErrorRoutes(server)
		h.stopping = app.(*App).stopping(server)
		h.writeTimeout = time.Duration(server.WriteTimeout)
	}
	if h.Page != "" && source.location == "" {
		h.log.Info("page is empty; visitors get the default page", zap.String("site", name), zap.String("page", h.Page))
	}
	if source.location != "" {
		h.page = app.(*App).addPage(m, source, content)
	}
	return nil
}

// Cleanup parts the handler from its site and its page.
func (h *Handler) Cleanup() error {
	if h.page != nil {
		_, _ = customPages.Delete(h.page.location) // there is nothing to destruct
	}
	if h.site != nil {
		sites.release(h.site.site)
	}
	return nil
}

// ServeHTTP lets the request through, and counts it until it ends, unless the
// site is in maintenance.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if h.site.ready(r.Context()) != nil {
		return clientLeft(w)
	}
	state, p, admitted := h.site.admit(h, w, r)
	if !admitted {
		return h.serveClosed(w, r, next, state)
	}
	if replacer, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		replacer.Map(noOutcome)
	}
	return h.enter(p, w, r, next)
}

// enter serves a request that has been admitted. One without a passage is counted by
// another gate.
func (h *Handler) enter(p *passage, w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if p == nil {
		return next.ServeHTTP(w, r)
	}
	setContext(r, &p.context)
	return h.serveAdmitted(p, r, next)
}

// serveClosed lets a request of a site that is in maintenance through, holds it
// or blocks it.
func (h *Handler) serveClosed(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, st *state) error {
	hold := hold{handler: h}
	for {
		isLink := hidesLink(r, st.options().Pass)
		if len(h.bypass) > 0 {
			bypassed, err := h.bypass.AnyMatchWithError(r)
			if err != nil && isLink {
				// Caddy would log the path with the error, which may tell it, too.
				h.log.Error("a bypass matcher has failed for a request with the secret in its path", zap.String("site", h.site.name))
				w.WriteHeader(http.StatusInternalServerError)
				return nil
			}
			if err != nil {
				return err
			}
			if bypassed {
				h.observe(r, wasBypassed)
				return h.goOn(w, r, next)
			}
		}
		if served, err := h.letIn(w, r, next, st.options().Pass); served {
			return err
		}
		switch hold.wait(w, r, st) {
		case blocked:
			h.observe(r, wasBlocked)
			h.respond(w, r, st, retryAfterSeconds(st.options(), time.Duration(h.RetryAfter)))
			return nil
		case stopped:
			h.observe(r, wasBlocked)
			h.respond(w, r, st, 1)
			return nil
		case left:
			logAs(r, "held")
			return clientLeft(w)
		case reopened:
		}
		var p *passage
		var admitted bool
		if st, p, admitted = h.site.admit(h, w, r); admitted {
			h.observe(r, wasReleased)
			return h.enter(p, w, r, next)
		}
	}
}

// statusClientLeft is what Caddy's reverse proxy logs of a client that did not
// wait for the answer.
const statusClientLeft = 499

// clientLeft ends a request that nobody waits for any more. That is no error.
func clientLeft(w http.ResponseWriter) error {
	w.WriteHeader(statusClientLeft)
	return nil
}

// serveAdmitted passes a request on, and answers it if it is cut off before anything
// has been sent.
func (h *Handler) serveAdmitted(p *passage, r *http.Request, next caddyhttp.Handler) error {
	cut, err := h.passOn(p, r, next)
	if cut {
		setContext(r, p.context.parent)
		h.observeTerminated(p)
		markAnswered(p.writer.ResponseWriter)
		h.respondCut(p.writer.ResponseWriter, r)
	}
	return err
}

// passOn counts a request until it ends, in whichever way. One that ends in an
// error goes on to the site's error routes, which may proxy it again, and ends when
// the server cancels its context, if errorRoutes does not notice it before.
func (h *Handler) passOn(p *passage, r *http.Request, next caddyhttp.Handler) (cut bool, err error) {
	returned := false
	defer func() {
		if !returned && p.writer.progress.Load() == cutAfter {
			h.observeTerminated(p)
		}
		if err != nil {
			p.handlerReturned()
			context.AfterFunc(p.serverContext(), func() { h.site.leave(p) })
		} else {
			h.site.leave(p)
		}
	}()
	body := r.Body
	err = p.serve(r, next)
	switch p.writer.progress.Load() {
	case cutBefore:
		abandon(p.writer.ResponseWriter, body)
		returned = true
		return true, nil
	case cutAfter:
		abandon(p.writer.ResponseWriter, body)
		panic(http.ErrAbortHandler) // what has been sent must not look complete
	}
	returned = true
	return false, err
}

// respondCut answers a request that was cut off before anything was sent.
func (h *Handler) respondCut(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	for _, name := range appHeaders {
		delete(header, name)
	}
	if r.ProtoMajor == 1 {
		header.Set("Connection", "close")
		if r.ContentLength != 0 {
			linger(w)
		}
	}
	st := h.site.current()
	h.respond(w, r, st, retryAfterSeconds(st.options(), time.Duration(h.RetryAfter)))
}

const (
	defaultRetryAfter = 5 * time.Minute
	minRetryAfter     = time.Second
	minRefresh        = time.Second
)

func checkRetryAfter(d time.Duration) error {
	if d < minRetryAfter {
		return fmt.Errorf("retry_after: %s given, at least %s is accepted", d, minRetryAfter)
	}
	return nil
}

func checkRefresh(d time.Duration) error {
	if d < minRefresh {
		return fmt.Errorf("refresh: %s given, at least %s is accepted", d, minRefresh)
	}
	return nil
}

// resolvePage replaces the placeholders of a page's location.
func resolvePage(page string) (string, error) {
	resolved, err := caddy.NewReplacer().ReplaceOrErr(page, false, true)
	if err != nil {
		return "", fmt.Errorf("page: %w; accepted are placeholders that are known when the config loads, such as {env.MAINTENANCE_PAGE_URL}", err)
	}
	return resolved, nil
}

func parseInitialState(s string) (on bool, err error) {
	switch s {
	case "on":
		return true, nil
	case "off", "":
		return false, nil
	}
	return false, fmt.Errorf("initial_state: %q given, on or off is accepted", s)
}

var errEmptyBypass = fmt.Errorf("bypass: an empty matcher given, which would let every request through; " +
	"name what may pass, for example: bypass /healthz")

// siteNames is what a site may be called; it is safe in a URL path, in a log
// and, percent-encoded, as a file name.
var siteNames = regexp.MustCompile(`^[a-z0-9*][a-z0-9._:*-]{0,63}$`)

// parseSiteName returns the name with ASCII upper case folded.
func parseSiteName(name string) (string, error) {
	if name == "" {
		return "", fmt.Errorf("site: no name given; name the site that is switched, for example: maintenance shop")
	}
	folded := foldASCII(name)
	if !siteNames.MatchString(folded) {
		return "", fmt.Errorf("site: %q given, accepted are 1 to 64 of a-z 0-9 . - _ : *, "+
			"beginning with a letter, digit or *; a hostname makes a good name", name)
	}
	if slices.Contains([]string{"on", "off", "status", "help"}, folded) {
		return "", fmt.Errorf("site: %q given, which would read as a command; a hostname makes a good name", name)
	}
	return folded, nil
}

func foldASCII(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddy.CleanerUpper          = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)
