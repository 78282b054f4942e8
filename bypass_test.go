package maintenance

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"example.com/caddy-maintenance/internal/site"
)

const (
	testSecret = "Open-Sesame_0123456789"
	testLink   = "/.maintenance/" + testSecret
	withSecret = `{"bypass_secret": "` + testSecret + `"}`
)

// cookie is that of a visitor who has opened the link.
func (h *Handler) cookie() string {
	return h.bypass.cookieName + "=" + h.site.Current().Options().Bypass.CookieValue(h.site.Name, testSecret)
}

// Getting in

// A request that is not bypassed gets what any path gets, to the byte. Package site tests which
// paths are links, and which values are secrets and cookies.
func TestWhoIsLetIn(t *testing.T) {
	h := newClosedGate("shop", withSecret)
	b, name, good := h.site.Current().Options().Bypass, h.bypass.cookieName+"=", h.cookie()
	amongBad := func(position int) string {
		cookies := slices.Repeat([]string{name + "bad"}, 20)
		cookies[position] = good
		return strings.Join(cookies, "; ")
	}
	ask := func(method, target, cookies string) (string, *http.Request) {
		w, r := httptest.NewRecorder(), newRequest(httptest.NewRequest(method, target, nil))
		w.Header().Set("Cdn-Cache-Control", "max-age=600")
		r.Header["Cookie"] = strings.Split(cookies, "\n")
		if err := serve(w, r, appThatReads, h); err != nil {
			t.Error(err)
		}
		return fmt.Sprint(w.Code, " ", w.Body, w.Header()), r
	}
	link := regexp.MustCompile(`^303  map\[Cache-Control:\[private, no-store\] Location:\[(\S*)\] Referrer-Policy:\[no-referrer\] ` +
		`Set-Cookie:\[maintenance_bypass_[0-9a-f]{8}=[0-9a-f]{64}; Path=/; HttpOnly; SameSite=Lax\]\]$`)
	for _, test := range []struct{ method, target, cookies, want string }{
		{"GET", testLink, "", "/"},
		{"HEAD", testLink, "", "/"},
		{"GET", "/a%2Fb//c" + testLink + "/?d=e", "", "/a%2Fb//c/"},
		{"GET", testLink, good, "/"}, // from a bookmark
		{"POST", testLink, "", "page"},
		{"get", testLink, "", "page"},
		{"GET", testLink + "//", "", "page"},
		{"GET", testLink + "/x", "", "page"},
		{"GET", testLink + "0", "", "page"},
		{"GET", strings.ToLower(testLink), "", "page"},
		{"GET", "/.maintenance/%4Fpen-Sesame_0123456789", "", "page"},
		{"GET", "/?" + testLink, "", "page"},
		{"GET", "/.maintenance/" + b.Secret, "", "page"},
		{"GET", "/", good, "app"},
		{"POST", testLink, good, "app"},
		{"GET", "/", "", "page"},
		{"GET", "/", name + b.Cookie, "page"},
		{"GET", "/", name + testSecret, "page"},
		{"GET", "/", strings.ToUpper(good), "page"},
		{"GET", "/", "x" + good, "page"},
		{"GET", "/", amongBad(15), "app"},
		{"GET", "/", amongBad(16), "page"},
		{"GET", "/", strings.ReplaceAll(amongBad(15), "; ", "\n"), "app"},
		{"GET", "/", strings.ReplaceAll(amongBad(16), "; ", "\n"), "page"},
	} {
		page, _ := ask(test.method, "/no/matter", "")
		got, r := ask(test.method, test.target, test.cookies)
		switch match := link.FindStringSubmatch(got); {
		case test.want == "page" && got == page, test.want == "app" && strings.HasPrefix(got, "200 app"), match != nil && match[1] == test.want:
		default:
			t.Errorf("%s %s with %q got %s, want %s", test.method, test.target, test.cookies, got, test.want)
		}
		if hidden := caddyhttp.GetVar(r.Context(), caddyhttp.LogSkipVar) == true; hidden != b.ContainsSecret(r.URL.Path) {
			t.Errorf("%s is left out of the access log: %t", test.target, hidden)
		}
	}
}

// The redirect keeps a prefix that a handler has stripped, and the cookie is Secure if the
// connection is known to be encrypted.
func TestLinkKeepsPathAndScheme(t *testing.T) {
	strip := before(func(_ http.ResponseWriter, r *http.Request) { r.URL.Path = strings.TrimPrefix(r.URL.Path, "/shop") })
	for _, test := range []struct {
		remote, proto string
		tls, secure   bool
	}{
		{"192.0.2.1:80", "", false, false},
		{"192.0.2.1:80", "", true, true},
		{"192.0.2.1:80", "https", false, false},
		{"@", "https", false, true},
		{"@", "http", false, false},
	} {
		w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/shop/cart"+testLink, nil)
		r.RemoteAddr = test.remote
		r.Header.Set("X-Forwarded-Proto", test.proto)
		if test.tls {
			r.TLS = new(tls.ConnectionState)
		}
		err := serve(w, newRequest(r), appThatReads, strip, newClosedGate("shop", withSecret))
		cookies := w.Result().Cookies()
		if err != nil || len(cookies) != 1 || cookies[0].Secure != test.secure || w.Header().Get("Location") != "/shop/cart/" {
			t.Errorf("%+v: got %v %v, and the cookies %v", test, w.Header(), err, cookies)
		}
	}
}

// How long it lasts

func TestCookieEndsWithItsMaintenanceOrSecret(t *testing.T) {
	const other = `{"bypass_secret": "Another-Secret-0123"}`
	for script, want := range map[string]int{
		"wait 1h":                            200,
		"on " + withSecret:                   200,
		"patch " + withSecret:                200,
		`patch {"message": "Hello."}`:        200,
		"on " + other:                        503,
		"patch " + other:                     503,
		"on " + other + "; on " + withSecret: 503,
		`patch {"bypass_secret": null}`:      503,
		"on {}":                              503,
		"off; on " + withSecret:              503,
		`patch {"until": "2000-01-01T00:30:00Z"}; wait 1h; on ` + withSecret: 503,
	} {
		synctest.Test(t, func(t *testing.T) {
			h := newClosedGate("shop", withSecret)
			cookie := h.cookie()
			h.site.turn(script)
			stored := string(h.site.Current().Record().Raw())
			if strings.Contains(stored, testSecret) || strings.Contains(stored, cookie) {
				t.Errorf("%s: stored is %s", script, stored)
			}
			restarted := newTestSite("shop")
			restarted.read(stored)
			for _, gate := range []*Handler{h, gateOf(restarted)} {
				if with, without := gate.visit("/", cookie).Code, gate.visit("/").Code; with != want || without != 503 {
					t.Errorf("%s: got %d with the cookie, %d without, want %d and 503", script, with, without, want)
				}
			}
		})
	}
}

// A site can have several handlers in a route. A request that one has bypassed with the cookie,
// the next handler of the site bypasses, too.
func TestSeveralGates(t *testing.T) {
	shop, wiki := newClosedGate("shop", withSecret), newClosedGate("wiki", withSecret)
	ofShop, ofWiki := shop.cookie(), wiki.cookie()
	matching := matching(shop.site, func(*http.Request) (bool, error) { return true, nil })
	change := func(site *configuredSite, script string) before {
		return func(http.ResponseWriter, *http.Request) { site.turn(script) }
	}
	for _, test := range []struct {
		name     string
		cookies  []string
		handlers []caddyhttp.MiddlewareHandler
		want     int
	}{
		{"twice", []string{ofShop}, []caddyhttp.MiddlewareHandler{shop, gateOf(shop.site)}, 200},
		{"a matcher and then the cookie", []string{ofShop}, []caddyhttp.MiddlewareHandler{matching, shop}, 200},
		{"another site", []string{ofShop}, []caddyhttp.MiddlewareHandler{shop, wiki}, 503},
		{"both sites", []string{ofShop, ofWiki}, []caddyhttp.MiddlewareHandler{shop, wiki, shop}, 200},
		{"cleared between", []string{ofShop}, []caddyhttp.MiddlewareHandler{shop, change(shop.site, `patch {"bypass_secret": null}`), shop}, 503},
		{"another maintenance", []string{ofWiki}, []caddyhttp.MiddlewareHandler{wiki, change(wiki.site, "off; on "+withSecret), wiki}, 503},
	} {
		w, r := httptest.NewRecorder(), newRequest(httptest.NewRequest(http.MethodGet, "/", nil))
		r.Header["Cookie"] = test.cookies
		if err := serve(w, r, appThatReads, test.handlers...); err != nil || w.Code != test.want {
			t.Errorf("%s: got %d %v, want %d", test.name, w.Code, err, test.want)
		}
	}
}

// What a cookie or a matcher lets through is not in flight, nor held, and the app does not
// see the cookie.
//
// G1
func TestCookieHolderIsNotInFlight(t *testing.T) {
	h := newClosedGate("shop", `{"hold": "5m", "terminate_after": "1ms", "bypass_secret": "`+testSecret+`"}`)
	b, cookie := h.site.Current().Options().Bypass, h.cookie()
	everybody := matching(h.site, func(*http.Request) (bool, error) { return true, nil })
	for _, gate := range []*Handler{h, everybody} {
		w, r := httptest.NewRecorder(), newRequest(httptest.NewRequest(http.MethodGet, "/", nil))
		r.Header["Cookie"] = []string{"a=1; " + cookie, "b=2"}
		w.Header().Set("Cdn-Cache-Control", "max-age=600")
		err := serve(w, r, func(w http.ResponseWriter, r *http.Request) error {
			if inFlight, held := h.site.inFlight.Count(), h.site.heldNow(); inFlight+held != 0 {
				t.Errorf("%d in flight and %d held, want none", inFlight, held)
			}
			seen := fmt.Sprint(r.Header["Cookie"], r.Context().Value(caddyhttp.VarsCtxKey))
			if !strings.HasPrefix(seen, "[a=1 b=2]") || strings.Contains(seen, b.ID) || strings.Contains(seen, b.Cookie) {
				t.Errorf("the app sees the cookies and variables %s", seen)
			}
			w.WriteHeader(http.StatusAccepted)
			return nil
		}, gate)
		if kept := w.Header().Get("Cdn-Cache-Control") != ""; err != nil || w.Code != http.StatusAccepted || kept != (gate == everybody) {
			t.Errorf("got %d %v, and the headers for caches are kept: %t", w.Code, err, kept)
		}
	}
	if n := h.site.requests[wasBypassed].Load(); n != 2 {
		t.Errorf("%d are counted as bypassed, want 2", n)
	}
}

// What is seen of it

func TestOtherCookiesStayAsTheyAre(t *testing.T) {
	name := site.CookieName("shop")
	good := name + "=0123456789abcdef"
	for _, test := range []struct{ sent, want []string }{
		{[]string{good}, nil},
		{[]string{good + "; a=1"}, []string{"a=1"}},
		{[]string{"a=1; " + good}, []string{"a=1"}},
		{[]string{"a=1", good, "b=2"}, []string{"a=1", "b=2"}},
		{[]string{"a=1;b=2", good + ";c=3"}, []string{"a=1;b=2", "c=3"}},
		{[]string{name + "=bad; " + good + "; " + name + "; " + name + "="}, nil},
		{[]string{"x" + good + "; " + name + "x=1; " + good}, []string{"x" + good + "; " + name + "x=1"}},
		{[]string{`q="a b"; ` + good + `; e==; f; =g; a=` + name}, []string{`q="a b"; e==; f; =g; a=` + name}},
		{[]string{`a=1;  ` + name + ` ="` + good[len(name)+1:] + `";b=2`, good}, []string{`a=1;b=2`}},
	} {
		if got := withoutCookie(test.sent, name); !slices.Equal(got, test.want) {
			t.Errorf("of %q is left %q, want %q", test.sent, got, test.want)
		}
	}
}

// Handlers need not call WriteHeader, and informational responses stay as they are.
func TestWhatACookieLetsThroughIsNotCached(t *testing.T) {
	status := func(codes ...int) func(http.ResponseWriter) error {
		return func(w http.ResponseWriter) error {
			for _, code := range codes {
				w.WriteHeader(code)
			}
			return nil
		}
	}
	h := newClosedGate("shop", withSecret)
	for name, test := range map[string]struct {
		app  func(http.ResponseWriter) error
		want string // status codes, in brackets where the app's headers are there
	}{
		"Write": {func(w http.ResponseWriter) error { _, err := io.WriteString(w, "app"); return err }, "200 <nil>"},
		"ReadFrom": {func(w http.ResponseWriter) error {
			_, err := io.Copy(w, struct{ io.Reader }{strings.NewReader("app")})
			return err
		}, "200 <nil>"},
		"Flush": {func(w http.ResponseWriter) error { return http.NewResponseController(w).Flush() }, "200 <nil>"},

		"not found":   {status(404), "404 <nil>"},
		"failure":     {status(500), "500 <nil>"},
		"unchanged":   {status(304), "304 <nil>"},
		"upgrade":     {status(101), "101 <nil>"},
		"early hints": {status(103, 200), "(103) 200 <nil>"},
		"error":       {func(http.ResponseWriter) error { return io.ErrUnexpectedEOF }, "unexpected EOF"},
	} {
		w, r := &statusRecorder{ResponseRecorder: httptest.NewRecorder()}, newRequest(httptest.NewRequest(http.MethodGet, "/", nil))
		r.Header.Set("Cookie", h.cookie())
		err := serve(w, r, func(w http.ResponseWriter, _ *http.Request) error {
			for _, name := range append(foreignCacheHeaders, "Cache-Control") {
				w.Header().Set(name, "max-age=600")
			}
			return test.app(w)
		}, h)
		if got := w.seen + fmt.Sprint(err); got != test.want || fmt.Sprint(w.Header()["Cache-Control"]) != "[private, no-store]" {
			t.Errorf("%s: got %s %v, want %s", name, got, w.Header(), test.want)
		}
		for _, header := range foreignCacheHeaders {
			if w.Header().Get(header) != "" {
				t.Errorf("%s: has %s", name, header)
			}
		}
	}
}

// statusRecorder notes status codes as they are sent.
type statusRecorder struct {
	*httptest.ResponseRecorder
	seen string
}

func (w *statusRecorder) WriteHeader(status int) {
	if w.Header().Get("Cache-Control") == "private, no-store" {
		w.seen += fmt.Sprintf("%d ", status)
	} else {
		w.seen += fmt.Sprintf("(%d) ", status)
	}
}

// Caddy logs the path of a request with its error, and a matcher may put the path into the
// error. So a request with the secret in its path returns no error, however it was bypassed and
// whatever has failed.
func TestErrorDoesNotTellTheSecret(t *testing.T) {
	failure, plain := caddyhttp.Error(http.StatusBadGateway, errors.New("no answer")), errors.New("no path is a number")
	fails := func(http.ResponseWriter, *http.Request) error { return failure }
	h := matching(newClosedGate("shop", withSecret).site, func(r *http.Request) (bool, error) {
		if strings.HasPrefix(r.URL.Path, "/broken") {
			return false, plain
		}
		return strings.HasPrefix(r.URL.Path, "/wide"), nil
	})
	for _, test := range []struct {
		method, path, cookie string
		status               int // 0 if the error is returned
	}{
		{"GET", "/wide" + testLink, "", 502},
		{"GET", "/broken" + testLink, "", 500},
		{"GET", "/broken" + testLink + "/y", "", 500},
		{"POST", testLink, h.cookie(), 502},
		{"GET", testLink + "/more", h.cookie(), 502},
		{"GET", testLink + ".", h.cookie(), 502},
		{"GET", "/wide/x", "", 0},
		{"GET", "/broken", "", 0},
		{"GET", "/", h.cookie(), 0},
	} {
		w, r := httptest.NewRecorder(), newRequest(httptest.NewRequest(test.method, test.path, nil))
		r.Header.Set("Cookie", test.cookie)
		err := serve(w, r, fails, h)
		if hidden := test.status != 0; (err == nil) != hidden || hidden && w.Code != test.status {
			t.Errorf("%s %s: got %d and the error %v, want %d", test.method, test.path, w.Code, err, test.status)
		}
		if skipped := caddyhttp.GetVar(r.Context(), caddyhttp.LogSkipVar) == true; skipped != (test.status != 0) {
			t.Errorf("%s %s is left out of the access log: %t", test.method, test.path, skipped)
		}
	}
}

// Through the front door

func TestLinkLetsItsVisitorIn(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		app := newApp(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Upgrade") == "" {
				panic(http.ErrAbortHandler)
			}
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
		})
		s := k.prepare(t)
		s.after = "handle_errors {\nmaintenance shop\nheader Cache-Control public\nrespond Sorry. {err.status_code}\n}"
		s.reload("log\nmaintenance shop\nheader {\n-Server\nCache-Control public\n}\nhandle /proxied {\nreverse_proxy " + app + "\n}")
		if got := s.put("shop", withSecret)["bypass_secret"]; got != true {
			t.Errorf("bypass_secret is %v, want true", got)
		}
		s.wantStatus("/", 503)
		link := s.get("/cart" + testLink)
		if got := link.Header.Get("Location"); link.StatusCode != 303 || got != "/cart/" {
			t.Errorf("got %d %q, want 303 /cart/", link.StatusCode, got)
		}
		s.logged(`"bypass granted"`, `"site":"shop"`, `"client":"127.0.0.1"`)
		cookie, _, _ := strings.Cut(link.Header.Get("Set-Cookie"), ";")
		for path, want := range map[string]int{"/": 200, "/proxied": 502} {
			got := s.do(http.MethodGet, path, http.Header{"Cookie": {cookie}})
			if got.StatusCode != want || got.Header.Get("Cache-Control") != "private, no-store" {
				t.Errorf("%s got %d %v", path, got.StatusCode, got.Header)
			}
		}
		conn := s.dial("GET /proxied HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nCookie: " + cookie + "\r\n\r\n")
		got, err := io.ReadAll(conn)
		if err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 101 ") || !strings.HasSuffix(string(got), "hello") {
			t.Errorf("got %q %v", got, err)
		}
		s.wantStatus("/", 503)
	})
}

// G8
func TestNeitherSecretNorCookieIsTold(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		const marker, directives = "Tell-Nobody", "log\nmaintenance shop\nhandle /dead {\nreverse_proxy 127.0.0.1:1\n}"
		s := k.start(t, directives)
		answers := s.api("PUT", "/maintenance/shop", withSecret).body
		cookie := s.get("/x" + testLink).Cookies()[0]
		for _, path := range []string{"/", "/dead"} {
			s.do("GET", path, http.Header{"Cookie": {cookie.Name + "=" + cookie.Value}})
		}
		s.do("HEAD", testLink, nil)
		s.do("POST", "/x"+testLink+"//y", nil)
		s.logged("http.log.access", `"uri":"/dead"`)
		for _, bad := range []string{
			`{"bypass_secret": "` + marker + `"}`,
			`{"bypass_secret": "` + strings.Repeat(marker, 20) + `"}`,
			`{"bypass_secret": "` + marker + ` with spaces!"}`,
			`{"bypass_secret": ["` + marker + `"]}`,
			`{"bypass_secret": {"` + marker + `": 1}}`,
			`{"bypass_secret": 1234567890123456789}`,
			`{"bypass_secret": "` + marker + `", "colour": "red"}`,
			`{"bypass_secret": "` + marker + `-0123456789", "hold": 5}`,
			`{"secret": "` + marker + `-0123456789"}`,
			`{"bypass_secret": "` + marker + `-0123456789"`,
			`"` + marker + `-0123456789"`,
			`{"bypass_secret": "` + marker + "\xff" + `"}`,
		} {
			for _, method := range []string{"PUT", "PATCH"} {
				answer := s.api(method, "/maintenance/shop", bad)
				if answer.StatusCode != 400 {
					t.Errorf("%s %s got %d", method, bad, answer.StatusCode)
				}
				answers += answer.body
			}
		}
		s.storage.setFault(failOn("store", shopKey))
		answers += s.api("PUT", "/maintenance/shop", withSecret).body
		s.storage.setFault(nil)
		answers += s.api("GET", "/maintenance", "").body
		answers += s.api("GET", "/metrics", "").body
		s.reload(directives + "\nheader X-Config new")
		answers += s.api("DELETE", "/maintenance/shop", "").body

		for _, secret := range []string{testSecret, cookie.Value, marker, "1234567890123456789"} {
			if strings.Contains(answers, secret) || s.countLogged(secret) > 0 {
				t.Errorf("%s is in the log, or the API has answered it: %s", secret, answers)
			}
		}
	})
}

// Whatever a visitor sends

func FuzzCookies(f *testing.F) {
	name := site.CookieName("shop")
	for _, seed := range []string{
		"a=1; " + name + "=x; b=2", name, name + "=", ";;", `a="` + name + `=1;"`, name + " = x;b", "=;" + name + "x=1", "0\v ",
	} {
		f.Add(seed, "a=1;"+seed)
	}
	f.Fuzz(func(t *testing.T, one, two string) {
		parse := func(lines []string) []string {
			var list []string
			for _, cookie := range (&http.Request{Header: http.Header{"Cookie": lines}}).Cookies() {
				list = append(list, fmt.Sprintf("%q=%q %t", cookie.Name, cookie.Value, cookie.Quoted))
			}
			return list
		}
		lines := []string{one, two}
		want := slices.DeleteFunc(parse(lines), func(cookie string) bool { return strings.HasPrefix(cookie, fmt.Sprintf("%q=", name)) })
		if got := parse(withoutCookie(lines, name)); !slices.Equal(got, want) {
			t.Errorf("%q has %q left, want %q", lines, got, want)
		}
	})
}
