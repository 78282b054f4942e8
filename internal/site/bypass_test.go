package site

import (
	"net/url"
	"strings"
	"testing"
)

const (
	testSecret = "Open-Sesame_0123456789"
	testLink   = LinkPrefix + testSecret
)

// A secret and its cookie are recognized by complete hashes, and only during their maintenance
// and while the secret is set.
func TestSecretAndCookie(t *testing.T) {
	o := Options{secret: testSecret}
	o.hashSecret("shop", nil)
	b := o.Bypass
	cookie := b.CookieValue("shop", testSecret)
	wantEqual(t, "the secret is known again", b.IsSecret(testSecret), true)
	wantEqual(t, "the cookie is known again", b.IsCookie(cookie), true)
	for _, wrong := range []string{"", testSecret[:8], testSecret + "x", b.Secret, b.Cookie, b.ID, cookie, cookie[:32]} {
		wantEqual(t, wrong+" is the secret", b.IsSecret(wrong), false)
		wantEqual(t, wrong+" is the cookie", b.IsCookie(wrong), wrong == cookie)
	}
	// This would match if only the first half of a hash were compared.
	forged := *b
	forged.Secret = b.Secret[:32] + strings.Repeat("0", 32)
	wantEqual(t, "a hash is compared in part only", forged.IsSecret(testSecret), false)
	same := Options{secret: testSecret}
	same.hashSecret("shop", b)
	wantEqual(t, "the bypass, with the same secret again", same.Bypass, b)
	again := Options{secret: testSecret}
	again.hashSecret("shop", nil)
	wantEqual(t, "a cookie of another maintenance lets in", again.Bypass.IsCookie(cookie), false)
	wantEqual(t, "a cookie of another site lets in", again.Bypass.IsCookie(again.Bypass.CookieValue("wiki", testSecret)), false)
	if none := (*Bypass)(nil); none.IsSecret("") || none.IsCookie("") || none.ContainsSecret(testLink) {
		t.Error("without a secret somebody is let in")
	}
}

// Where a link leads: back into the site, whatever the browser makes of it.
func TestBypassLink(t *testing.T) {
	for before, want := range map[string]string{
		"":                       "/",
		"/":                      "/",
		"/a/b/":                  "/a/b/",
		"/a/.maintenance/b":      "/a/.maintenance/b/",
		"////evil.example//":     "/evil.example/",
		`/\evil.example`:         "/%5Cevil.example/",
		`/\/evil.example`:        "/%5C/evil.example/",
		`//\evil.example`:        "/%5Cevil.example/",
		"//user@evil.example:80": "/user@evil.example:80/",

		"/a/b": "", "/a//b": "", "/%C3%A4%20b": "", "/%5Cevil.example": "", "/%2F%2Fevil.example": "", "/%09/evil.example": "",
		"/%0D%0ASet-Cookie:a=b": "", "/..//evil.example": "", "/javascript:alert(1)": "", "/https://evil.example": "",
		"/%3F//evil.example%23": "", "/%00": "",
	} {
		if want == "" {
			want = before + "/"
		}
		for _, slash := range []string{"", "/"} {
			u, err := url.ParseRequestURI(before + testLink + slash)
			noError(t, err)
			got, secret, ok := ParseBypassLink(u)
			if !ok || got != want || secret != testSecret {
				t.Errorf("%q: got %q, secret %q, %t, want %q", before, got, secret, ok, want)
			}
			expectLocal(t, got)
		}
	}
	for _, path := range []string{"/", "/.maintenance", "/x.maintenance/y", "/.maintenance%2F" + testSecret} {
		u, _ := url.ParseRequestURI(path)
		if _, secret, ok := ParseBypassLink(u); ok {
			t.Errorf("%s is a link with the secret %q", path, secret)
		}
	}
}

// A secret is found in a path even if that is no valid link.
func TestContainsSecret(t *testing.T) {
	b := newBypass("shop", testSecret)
	for want, paths := range map[bool][]string{
		true: {
			testLink, testLink + "/", testLink + "//", testLink + "/x/y", "/a" + testLink, "/.maintenance//" + testSecret, testLink + ".",
			testLink + ")", testLink + ";v=1", testLink + " ", testLink + "/.maintenance/wrong", "/.maintenance" + testLink,
		},
		false: {"/.maintenance/", testLink + "x", "/" + testSecret, testLink[:len(testLink)-1], "/"},
	} {
		for _, path := range paths {
			wantEqual(t, path, b.ContainsSecret(path), want)
		}
	}
}

// expectLocal fails the test if a browser might leave the site.
func expectLocal(t *testing.T, location string) {
	t.Helper()
	site, _ := url.Parse("http://shop.example/here")
	target, err := site.Parse(location)
	if err != nil || target.Host != site.Host || target.Scheme != site.Scheme {
		t.Errorf("%q leads to %v (%v)", location, target, err)
	}
	isOdd := func(r rune) bool { return r <= ' ' || r == '\\' }
	if !strings.HasPrefix(location, "/") || strings.HasPrefix(location, "//") || strings.ContainsFunc(location, isOdd) {
		t.Errorf("a browser may take %q for another host", location)
	}
}

func FuzzLink(f *testing.F) {
	for _, seed := range []string{
		"", "/", "//evil.example", `/\evil.example`, `\`, "/%5C", "/%2F%2Fe", "/\t/e", "/\n", "*",
		"e:80", "/../", "/%zz", "/?#", "/\x00", "//u@e:80/",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, before string) {
		u := &url.URL{Path: before + testLink}
		if parsed, err := url.ParseRequestURI(before + testLink); err == nil && strings.HasSuffix(parsed.Path, testLink) {
			u = parsed
		}
		location, secret, ok := ParseBypassLink(u)
		if !ok || secret != testSecret {
			t.Errorf("the secret of %#v is %q (%t)", u, secret, ok)
		}
		expectLocal(t, location)
	})
}
