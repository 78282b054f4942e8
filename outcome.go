package maintenance

import (
	"context"
	"maps"
	"net/http"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"example.com/caddy-maintenance/internal/inflight"
	"example.com/caddy-maintenance/internal/site"
)

// outcome is what a maintenance has done to a request. Requests of a site that is
// open have none.
type outcome int

const (
	wasBlocked  outcome = iota
	wasBypassed         // let through by a matcher or the secret
	wasReleased         // held until the site was opened, and then let through
	wasTerminated
)

// outcomes are called so in metrics and in the placeholder.
var outcomes = [...]string{
	wasBlocked:    "blocked",
	wasBypassed:   "bypassed",
	wasReleased:   "released",
	wasTerminated: "terminated",
}

// outcomePlaceholder is for handlers that come after this one, and for those before
// it when they look at the response.
const outcomePlaceholder = "http.maintenance.outcome"

// givePlaceholders gives handlers that come after this one what is scheduled, so that the app
// can announce it, and the outcome of a request that has none, or none yet. It costs requests of
// an open site next to nothing.
func givePlaceholders(r *http.Request, v site.View) {
	replacer, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if !ok {
		return
	}
	replacer.Map(noPlaceholders)
	if v.Scheduled() { // and what is set counts more
		o := v.Options()
		replacer.Set("http.maintenance.from", formatTime(o.From))
		replacer.Set("http.maintenance.until", formatTime(o.Until))
		replacer.Set("http.maintenance.message", o.Message)
	}
}

func noPlaceholders(key string) (any, bool) {
	switch key {
	case outcomePlaceholder, "http.maintenance.from", "http.maintenance.until", "http.maintenance.message":
		return "", true
	}
	return "", false
}

// observe makes known what has been done to a request.
func (h *Handler) observe(r *http.Request, o outcome) {
	h.site.requests[o].Add(1)
	setOutcome(r, o)
	if o == wasReleased {
		logAs(r, "held")
		return
	}
	logAs(r, outcomes[o])
	if o == wasBlocked && logsErrors(r) {
		caddyhttp.SetVar(r.Context(), caddyhttp.LogLevelVar, "info")
	}
}

// observeTerminated makes known that a request has been terminated; it was counted then.
// The app may still be at work for it in goroutines of its own, as reverse_proxy is when
// it dials, and these read the request's variables. So a copy is changed.
func (h *Handler) observeTerminated(req *inflight.Request) {
	r := req.HTTP
	setOutcome(r, wasTerminated)
	logAs(r, outcomes[wasTerminated])
	if vars, ok := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any); ok && logsErrors(r) {
		vars = maps.Clone(vars)
		vars[caddyhttp.LogLevelVar] = "info"
		setContext(r, context.WithValue(r.Context(), caddyhttp.VarsCtxKey, vars))
	}
}

func setOutcome(r *http.Request, o outcome) {
	if replacer, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		replacer.Set(outcomePlaceholder, outcomes[o])
	}
}

// logsErrors reports whether the access log would call a 503 an error. One of ours was
// asked for, and is no failure; a level that the site has set is kept.
func logsErrors(r *http.Request) bool {
	return isLogged(r) && caddyhttp.GetVar(r.Context(), caddyhttp.LogLevelVar) == nil
}

// logAs has the access log say what has been done to a request.
func logAs(r *http.Request, what string) {
	if extra, ok := r.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok && isLogged(r) {
		extra.Set(zap.String("maintenance", what))
	}
}

// isLogged reports whether the server has an access log; without one, a request that is
// blocked would take a measurable part of its time for what nobody reads.
func isLogged(r *http.Request) bool {
	server, ok := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	return ok && server.Logs != nil
}
