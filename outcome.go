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

// outcome is what a maintenance did to a request. Requests of an open site have none.
type outcome int

const (
	wasBlocked  outcome = iota
	wasBypassed         // passed on by a matcher or the secret
	wasReleased         // held until the site opened, then admitted
	wasTerminated
)

// outcomes are the values in metrics, in the access log and in the placeholder.
var outcomes = [...]string{
	wasBlocked:    "blocked",
	wasBypassed:   "bypassed",
	wasReleased:   "released",
	wasTerminated: "terminated",
}

// outcomePlaceholder is for handlers after this one, and for those before it when they handle
// the response.
const outcomePlaceholder = "http.maintenance.outcome"

// givePlaceholders sets the placeholders for the handlers after this one: what is scheduled, so
// that the app can announce it, and an empty outcome. It costs requests of an open site next
// to nothing.
func givePlaceholders(r *http.Request, v site.View) {
	replacer, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if !ok {
		return
	}
	replacer.Map(noPlaceholders)
	if v.Scheduled() { // Set overrides Map
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

// observe counts and logs an outcome, and sets the placeholder.
func (s *sharedSite) observe(r *http.Request, o outcome) {
	s.requests[o].Add(1)
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

// observeTerminated logs that a request was terminated, and sets the placeholder; terminate
// has counted it. It changes a copy of the request's variables: the app's goroutines may still
// read them, as reverse_proxy does while it dials.
func observeTerminated(req *inflight.Request) {
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

// logsErrors reports whether the access log would log a 503 as an error. Ours is not a
// failure: the operator asked for it. A level that the site has set is kept.
func logsErrors(r *http.Request) bool {
	return isLogged(r) && caddyhttp.GetVar(r.Context(), caddyhttp.LogLevelVar) == nil
}

// logAs adds the outcome to the request's line in the access log.
func logAs(r *http.Request, what string) {
	if extra, ok := r.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok && isLogged(r) {
		extra.Set(zap.String("maintenance", what))
	}
}

// isLogged reports whether the server has an access log. Without one, fields for it would
// take a measurable part of a blocked request's time.
func isLogged(r *http.Request) bool {
	server, ok := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	return ok && server.Logs != nil
}
