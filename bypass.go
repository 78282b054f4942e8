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

// maxBypassCookies is how many cookies of a request are looked at.
const maxBypassCookies = 16

// serveBypass serves a request that a secret lets through: one with its cookie, which
// goes on, or its link, which sets the cookie. It reports whether it was one.
func (h *Handler) serveBypass(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, v site.View) (bool, error) {
	b := v.Options().Bypass
	if b == nil {
		return false, nil
	}
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		if before, secret, ok := site.ParseBypassLink(originalURL(r)); ok && b.IsSecret(secret) {
			h.observe(r, wasBypassed)
			h.grant(w, r, before, b.CookieValue(h.site.Name, secret))
			return true, nil
		}
	}
	if !h.hasCookie(r, b) {
		return false, nil
	}
	h.observe(r, wasBypassed)
	err := h.forward(newPrivateWriter(w), r, next, v)
	if err != nil {
		forbidCaching(w.Header()) // of the answer to the error
	}
	return true, err
}

// passedKey is the key, in a request's context, of the pass by which a gate of the site
// has let it through.
type passedKey struct{ site string }

// hidesLink leaves a request with the secret in its path out of the access log, and
// reports whether it is one.
func hidesLink(r *http.Request, b *site.Bypass) bool {
	if !b.ContainsSecret(originalURL(r).Path) {
		return false
	}
	caddyhttp.SetVar(r.Context(), caddyhttp.LogSkipVar, true)
	return true
}

// hideError answers a request that has failed if its path has the secret: Caddy would log
// the path with the error, which may contain it, too.
func (h *Handler) hideError(w http.ResponseWriter, isLink bool, err error) error {
	if err == nil || !isLink {
		return err
	}
	status := http.StatusInternalServerError
	if failed := new(caddyhttp.HandlerError); errors.As(err, failed) && failed.StatusCode != 0 {
		status = failed.StatusCode
	}
	h.log.Error("request with the bypass secret in its path failed", zap.String("site", h.site.Name), zap.Int("status", status))
	w.WriteHeader(status)
	return nil
}

// hasCookie looks at several cookies: another site on the domain, or another path,
// may have set one of the name.
func (h *Handler) hasCookie(r *http.Request, b *site.Bypass) bool {
	if id, ok := r.Context().Value(passedKey{h.site.Name}).(string); ok && id == b.ID {
		return true
	}
	cookies := r.CookiesNamed(h.cookieName)
	for _, cookie := range cookies[:min(len(cookies), maxBypassCookies)] {
		if b.IsCookie(cookie.Value) {
			return true
		}
	}
	return false
}

// forward passes on a request of a site that is in maintenance. The cookie does not go
// on; the site may have another gate behind this, which has to know of it.
func (h *Handler) forward(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, v site.View) error {
	givePlaceholders(r, v)
	b := v.Options().Bypass
	if b != nil && h.hasCookie(r, b) {
		setContext(r, context.WithValue(r.Context(), passedKey{h.site.Name}, b.ID))
	}
	if lines := r.Header["Cookie"]; strings.Contains(strings.Join(lines, ";"), h.cookieName) {
		r.Header.Del("Cookie")
		for _, line := range withoutCookie(lines, h.cookieName) {
			r.Header.Add("Cookie", line)
		}
	}
	return next.ServeHTTP(w, r)
}

const whitespace = " \t\r\n" // as net/http has it in cookies

// withoutCookie leaves the other cookies as they are.
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

// grant answers a link with the cookie, and leads back into the site.
func (h *Handler) grant(w http.ResponseWriter, r *http.Request, before, cookie string) {
	client, _ := caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string)
	h.log.Info("bypass granted", zap.String("site", h.site.Name), zap.String("client", client))

	http.SetCookie(w, &http.Cookie{ //nolint:gosec // a site without TLS cannot have a secure one
		Name:     h.cookieName,
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

// originalURL is what the client asked for, whatever has been rewritten since.
func originalURL(r *http.Request) *url.URL {
	if original, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
		return original.URL
	}
	return r.URL
}

// isHTTPS reports whether the client's connection is encrypted, as far as a
// proxy in between is trusted to say so.
func isHTTPS(r *http.Request) bool {
	if r.TLS != nil {
		return true
	}
	trusted, _ := caddyhttp.GetVar(r.Context(), caddyhttp.TrustedProxyVarKey).(bool)
	return trusted && strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https")
}

// privateWriter keeps what one visitor is let through to from the caches of others.
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
