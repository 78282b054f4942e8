package maintenance

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// linkPrefix, with the secret behind it, ends the path that gets a visitor in.
const linkPrefix = "/.maintenance/"

// maxPassCookies is how many cookies of a request are looked at.
const maxPassCookies = 16

// pass is what is stored of a bypass secret: enough to know the secret and the
// cookie again, and nothing that is either.
type pass struct {
	ID     string `json:"id"` // of a maintenance and a secret, so that the cookie ends with either
	Secret string `json:"secret_hash"`
	Cookie string `json:"cookie_hash"`
}

func newPass(site, secret string) *pass {
	p := &pass{ID: rand.Text()}
	p.Secret = p.hash(secret)
	p.Cookie = p.hash(p.cookie(site, secret))
	return p
}

// cookie is the value of the cookie that lets through.
func (p *pass) cookie(site, secret string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(site + "\n" + p.ID))
	return hex.EncodeToString(mac.Sum(nil))
}

func (p *pass) hash(s string) string {
	sum := sha256.Sum256([]byte(p.ID + "\n" + s))
	return hex.EncodeToString(sum[:])
}

func (p *pass) isSecret(s string) bool { return p != nil && equal(p.hash(s), p.Secret) }
func (p *pass) isCookie(s string) bool { return p != nil && equal(p.hash(s), p.Cookie) }

// isIn reports whether the secret is in a path, though that may be no link: a slash
// too many, or another method.
func (p *pass) isIn(path string) bool {
	i := strings.LastIndex(path, linkPrefix)
	if i < 0 {
		return false
	}
	secret, _, _ := strings.Cut(strings.TrimLeft(path[i+len(linkPrefix):], "/"), "/")
	return p.isSecret(secret)
}

func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// passCookieName differs from site to site, for two of them can share a host.
func passCookieName(site string) string {
	sum := sha256.Sum256([]byte(site))
	return "maintenance_bypass_" + hex.EncodeToString(sum[:4])
}

var secretSyntax = regexp.MustCompile(`^[A-Za-z0-9_-]{16,128}$`)

// parseSecret does not say in its error what was given.
func parseSecret(s string) (string, error) {
	if !secretSyntax.MatchString(s) {
		return "", errors.New("what is given does not fit, 16 to 128 of A-Z a-z 0-9 - _ are accepted")
	}
	return s, nil
}

// letIn serves a request that a secret lets through: one with its cookie, which
// goes on, or its link, which sets the cookie. It reports whether it was one.
func (h *Handler) letIn(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, p *pass) (bool, error) {
	if p == nil {
		return false, nil
	}
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		if before, secret, ok := splitLink(originalURL(r)); ok && p.isSecret(secret) {
			h.observe(r, wasBypassed)
			h.grant(w, r, before, p.cookie(h.site.name, secret))
			return true, nil
		}
	}
	if !h.hasPass(r, p) {
		return false, nil
	}
	h.observe(r, wasBypassed)
	// The cookie does not go on, and the site may have another gate behind this.
	setContext(r, context.WithValue(r.Context(), passedKey{h.site.name}, p.ID))
	err := h.goOn(newUncached(w), r, next)
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
func hidesLink(r *http.Request, p *pass) bool {
	if p == nil || !p.isIn(originalURL(r).Path) {
		return false
	}
	caddyhttp.SetVar(r.Context(), caddyhttp.LogSkipVar, true)
	return true
}

// hasPass looks at several cookies: another site on the domain, or another path,
// may have set one of the name.
func (h *Handler) hasPass(r *http.Request, p *pass) bool {
	if id, ok := r.Context().Value(passedKey{h.site.name}).(string); ok && id == p.ID {
		return true
	}
	cookies := r.CookiesNamed(h.cookieName)
	for _, cookie := range cookies[:min(len(cookies), maxPassCookies)] {
		if p.isCookie(cookie.Value) {
			return true
		}
	}
	return false
}

// goOn passes on a request of a site that is in maintenance, without the cookie
// that may have let it through.
func (h *Handler) goOn(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
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
	h.log.Info("bypass granted", zap.String("site", h.site.name), zap.String("client", client))

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

// splitLink returns the secret at the end of a link, which a slash may follow, and the path to go to: what
// stands before it, on this host in any case.
func splitLink(u *url.URL) (before, secret string, ok bool) {
	path := u.EscapedPath()
	i := strings.LastIndex(path, linkPrefix)
	if i < 0 {
		return "", "", false
	}
	before = "/" + strings.Trim(path[:i], `/\`) + "/"
	if before == "//" {
		before = "/"
	}
	return before, strings.TrimSuffix(path[i+len(linkPrefix):], "/"), true
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

// uncached keeps what one visitor is let through to from the caches of others.
type uncached struct {
	*caddyhttp.ResponseWriterWrapper
	wroteHeader bool
}

func newUncached(w http.ResponseWriter) *uncached {
	return &uncached{ResponseWriterWrapper: &caddyhttp.ResponseWriterWrapper{ResponseWriter: w}}
}

func forbidCaching(header http.Header) {
	deleteCacheHeaders(header)
	header.Set("Cache-Control", "private, no-store")
}

func (w *uncached) WriteHeader(status int) {
	if !w.wroteHeader && (status >= 200 || status == http.StatusSwitchingProtocols) {
		w.wroteHeader = true
		forbidCaching(w.Header())
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *uncached) Write(b []byte) (int, error) {
	w.begin()
	return w.ResponseWriter.Write(b)
}

func (w *uncached) ReadFrom(r io.Reader) (int64, error) {
	w.begin()
	return w.ResponseWriterWrapper.ReadFrom(r)
}

func (w *uncached) FlushError() error {
	w.begin()
	return http.NewResponseController(w.ResponseWriter).Flush()
}

func (w *uncached) begin() {
	if !w.wroteHeader {
		w.WriteHeader(http.StatusOK)
	}
}
