package maintenance

import (
	"net/http"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// outcome is what a maintenance has done to a request. Requests of a site that is
// open have none.
type outcome int

const (
	wasBlocked    outcome = iota
	wasBypassed           // let through by a matcher or the secret
	wasReleased           // held until the site was opened, and then let through
	wasTerminated         // cut off
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

// noOutcome gives the placeholder of a request that has no outcome, or none yet, its
// empty value. It costs requests of an open site next to nothing.
func noOutcome(key string) (any, bool) { return "", key == outcomePlaceholder }

// observe makes known what has been done to a request.
func (h *Handler) observe(r *http.Request, o outcome) {
	if o != wasTerminated { // those are counted when they are cut off
		h.site.requests[o].Add(1)
	}
	if replacer, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		replacer.Set(outcomePlaceholder, outcomes[o])
	}
	switch o {
	case wasReleased:
		logAs(r, "held")
	case wasBlocked, wasTerminated:
		// That was asked for, and is no failure; a level that the site has set is kept.
		if isLogged(r) && caddyhttp.GetVar(r.Context(), caddyhttp.LogLevelVar) == nil {
			caddyhttp.SetVar(r.Context(), caddyhttp.LogLevelVar, "info")
		}
		fallthrough
	default:
		logAs(r, outcomes[o])
	}
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
