package site

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"net/url"
	"regexp"
	"strings"
)

// LinkPrefix comes before the secret at the end of a secret link's path.
const LinkPrefix = "/.maintenance/"

// Bypass is the stored form of a bypass secret. Its hashes are enough to recognize the secret
// and the cookie, but reveal neither.
type Bypass struct {
	ID     string `json:"id"` // new for each maintenance and secret, so that the cookie expires with either
	Secret string `json:"secret_hash"`
	Cookie string `json:"cookie_hash"`
}

func newBypass(site, secret string) *Bypass {
	b := &Bypass{ID: rand.Text()}
	b.Secret = b.hash(secret)
	b.Cookie = b.hash(b.CookieValue(site, secret))
	return b
}

// CookieValue returns the value of the bypass cookie.
func (b *Bypass) CookieValue(site, secret string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(site + "\n" + b.ID))
	return hex.EncodeToString(mac.Sum(nil))
}

func (b *Bypass) hash(s string) string {
	sum := sha256.Sum256([]byte(b.ID + "\n" + s))
	return hex.EncodeToString(sum[:])
}

// IsSecret reports whether s is the secret. A nil Bypass has none.
func (b *Bypass) IsSecret(s string) bool { return b != nil && equal(b.hash(s), b.Secret) }

// IsCookie reports whether s is the value of the cookie.
func (b *Bypass) IsCookie(s string) bool { return b != nil && equal(b.hash(s), b.Cookie) }

// maxLinks limits how many occurrences of LinkPrefix in a path are checked, from the last.
const maxLinks = 8

// ContainsSecret reports whether a path contains the secret after LinkPrefix, even if it is
// not a valid secret link: it may have an extra slash, or a full stop from the text around it.
func (b *Bypass) ContainsSecret(path string) bool {
	for range maxLinks {
		i := strings.LastIndex(path, LinkPrefix)
		if b == nil || i < 0 {
			return false
		}
		secret := strings.TrimLeft(path[i+len(LinkPrefix):], "/")
		if end := strings.IndexFunc(secret, isNotOfSecret); end >= 0 {
			secret = secret[:end]
		}
		if b.IsSecret(secret) {
			return true
		}
		path = path[:i+1] // with the slash, which may end another prefix
	}
	return false
}

func isNotOfSecret(r rune) bool {
	return !strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", r)
}

func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// CookieName returns the name of a site's bypass cookie. It differs between sites, since two
// of them can share a host.
func CookieName(site string) string {
	sum := sha256.Sum256([]byte(site))
	return "maintenance_bypass_" + hex.EncodeToString(sum[:4])
}

var secretSyntax = regexp.MustCompile(`^[A-Za-z0-9_-]{16,128}$`)

// parseSecret returns an error that does not contain the secret.
func parseSecret(s string) (string, error) {
	if !secretSyntax.MatchString(s) {
		return "", errors.New("must be 16 to 128 characters from A-Z a-z 0-9 - _")
	}
	return s, nil
}

// hashSecret replaces the secret by its stored form. If the secret has not changed, it keeps
// the form from before, so that cookies stay valid.
func (o *Options) hashSecret(site string, before *Bypass) {
	switch {
	case o.secret == "":
		return
	case before.IsSecret(o.secret):
		o.Bypass = before
	default:
		o.Bypass = newBypass(site, o.secret)
	}
	o.secret = ""
}

// ParseBypassLink returns the secret at the end of a secret link, which may end in a slash,
// and the path before it, to redirect to. That path never leads to another host.
func ParseBypassLink(u *url.URL) (before, secret string, ok bool) {
	path := u.EscapedPath()
	i := strings.LastIndex(path, LinkPrefix)
	if i < 0 {
		return "", "", false
	}
	before = "/" + strings.Trim(path[:i], `/\`) + "/"
	if before == "//" {
		before = "/"
	}
	return before, strings.TrimSuffix(path[i+len(LinkPrefix):], "/"), true
}
