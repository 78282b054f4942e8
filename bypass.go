package maintenance

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"example.com/caddy-maintenance/internal/site"
)

// maxBypassCookies is how many cookies of a request are checked.
const maxBypassCookies = 16

// bypass passes on requests of a site that is in maintenance: those that a matcher of the config
// matches, and those with the secret of the switch.
type bypass struct {
	site       *configuredSite
	log        *zap.Logger
	matchers   caddyhttp.MatcherSets
	cookieName string
}

func newBypass(s *configuredSite, log *zap.Logger, matchers caddyhttp.MatcherSets) bypass {
	return bypass{site: s, log: log, matchers: matchers, cookieName: site.CookieName(s.Name)}
}

// serveMatched passes on a request that a bypass matcher matches, and reports whether it
// served the request. A matcher's error is returned; it is never a match.
func (p *bypass) serveMatched(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, v site.View) (served bool, err error) {
	matched, err := p.matchers.AnyMatchWithError(r)
	switch {
	case len(p.matchers) == 0:
		return false, nil // AnyMatchWithError matches everything then
	case err != nil:
		return true, err
	case !matched:
		return false, nil
	}
	p.site.observe(r, wasBypassed)
	return true, p.forward(w, r, next, v)
}

// serveSecret serves a request with the bypass secret, and reports whether it was one. A
// request with the cookie is passed on; one for the link gets the cookie.
func (p *bypass) serveSecret(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, v site.View) (bool, error) {
	b := v.Options().Bypass
	if b == nil {
		return false, nil
	}
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		if before, secret, ok := site.ParseBypassLink(originalURL(r)); ok && b.IsSecret(secret) {
			p.site.observe(r, wasBypassed)
			p.grant(w, r, before, b.CookieValue(p.site.Name, secret))
			return true, nil
		}
	}
	if !p.hasCookie(r, b) {
		return false, nil
	}
	p.site.observe(r, wasBypassed)
	err := p.forward(newPrivateWriter(w), r, next, v)
	if err != nil {
		forbidCaching(w.Header()) // for the error response
	}
	return true, err
}

// passedKey is the key, in a request's context, of the ID of the bypass secret with which
// another handler of the site has passed it on.
type passedKey struct{ site string }

// hidesLink reports whether the request has the secret in its path, and if so leaves it out
// of the access log.
func hidesLink(r *http.Request, b *site.Bypass) bool {
	if !b.ContainsSecret(originalURL(r).Path) {
		return false
	}
	caddyhttp.SetVar(r.Context(), caddyhttp.LogSkipVar, true)
	return true
}

// hideError answers a failed request itself if its path has the secret. Caddy would log the
// path, and the error, which may contain the secret, too.
func (p *bypass) hideError(w http.ResponseWriter, isLink bool, err error) error {
	if err == nil || !isLink {
		return err
	}
	status := http.StatusInternalServerError
	if failed := new(caddyhttp.HandlerError); errors.As(err, failed) && failed.StatusCode != 0 {
		status = failed.StatusCode
	}
	p.log.Error("request with the bypass secret in its path failed", zap.String("site", p.site.Name), zap.Int("status", status))
	w.WriteHeader(status)
	return nil
}

// hasCookie reports whether the request has the cookie of the secret. It checks several
// cookies: another site on the domain, or another path, may have set one of the same name.
func (p *bypass) hasCookie(r *http.Request, b *site.Bypass) bool {
	if id, ok := r.Context().Value(passedKey{p.site.Name}).(string); ok && id == b.ID {
		return true
	}
	cookies := r.CookiesNamed(p.cookieName)
	for _, cookie := range cookies[:min(len(cookies), maxBypassCookies)] {
		if b.IsCookie(cookie.Value) {
			return true
		}
	}
	return false
}

// forward passes on a request of a site that is in maintenance. It removes the cookie, and
// notes it in the context for another handler of the site further down the route.
func (p *bypass) forward(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, v site.View) error {
	givePlaceholders(r, v)
	b := v.Options().Bypass
	if b != nil && p.hasCookie(r, b) {
		setContext(r, context.WithValue(r.Context(), passedKey{p.site.Name}, b.ID))
	}
	if lines := r.Header["Cookie"]; strings.Contains(strings.Join(lines, ";"), p.cookieName) {
		r.Header.Del("Cookie")
		for _, line := range withoutCookie(lines, p.cookieName) {
			r.Header.Add("Cookie", line)
		}
	}
	return next.ServeHTTP(w, r)
}

const whitespace = " \t\r\n" // what net/http trims in cookies

// withoutCookie returns the lines without the cookie of that name. Other cookies stay as they
// are.
func withoutCookie(lines []string, name string) []string {
	var kept []string
	for _, line := range lines {
		var pairs []string
		for pair := range strings.SplitSeq(line, ";") {
			if key, _, _ := strings.Cut(pair, "="); strings.Trim(key, whitespace) != name {
				pairs = append(pairs, pair)
			}
		}
		if line = strings.Trim(strings.Join(pairs, ";"), whitespace); line != "" {
			kept = append(kept, line)
		}
	}
	return kept
}

// grant answers a request for the link: it sets the cookie and redirects into the site.
func (p *bypass) grant(w http.ResponseWriter, r *http.Request, before, cookie string) {
	client, _ := caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string)
	p.log.Info("bypass granted", zap.String("site", p.site.Name), zap.String("client", client))

	http.SetCookie(w, &http.Cookie{ //nolint:gosec // a site without TLS cannot have a secure cookie
		Name:     p.cookieName,
		Value:    cookie,
		Path:     "/",
		HttpOnly: true,
		Secure:   isHTTPS(r),
		SameSite: http.SameSiteLaxMode,
	})
	forbidCaching(w.Header())
	w.Header().Set("Referrer-Policy", "no-referrer")
	w.Header().Set("Location", before)
	w.WriteHeader(http.StatusSeeOther)
}

// originalURL returns the URL that the client asked for, before any rewrite.
func originalURL(r *http.Request) *url.URL {
	if original, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
		return original.URL
	}
	return r.URL
}

// isHTTPS reports whether the client's connection is encrypted. A proxy in between may say
// so if it is trusted.
func isHTTPS(r *http.Request) bool {
	if r.TLS != nil {
		return true
	}
	trusted, _ := caddyhttp.GetVar(r.Context(), caddyhttp.TrustedProxyVarKey).(bool)
	return trusted && strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https")
}

// privateWriter forbids caching of a bypassed response, which is for one visitor only.
type privateWriter struct {
	*caddyhttp.ResponseWriterWrapper
	wroteHeader bool
}

func newPrivateWriter(w http.ResponseWriter) *privateWriter {
	return &privateWriter{ResponseWriterWrapper: &caddyhttp.ResponseWriterWrapper{ResponseWriter: w}}
}

func forbidCaching(header http.Header) {
	deleteCacheHeaders(header)
	header.Set("Cache-Control", "private, no-store")
}

func (w *privateWriter) WriteHeader(status int) {
	if !w.wroteHeader && (status >= 200 || status == http.StatusSwitchingProtocols) {
		w.wroteHeader = true
		forbidCaching(w.Header())
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *privateWriter) Write(b []byte) (int, error) {
	w.begin()
	return w.ResponseWriter.Write(b)
}

func (w *privateWriter) ReadFrom(r io.Reader) (int64, error) {
	w.begin()
	return w.ResponseWriterWrapper.ReadFrom(r)
}

func (w *privateWriter) FlushError() error {
	w.begin()
	return http.NewResponseController(w.ResponseWriter).Flush()
}

func (w *privateWriter) begin() {
	if !w.wroteHeader {
		w.WriteHeader(http.StatusOK)
	}
}
