package maintenance

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	testSecret = "Open-Sesame_0123456789"
	testLink   = "/.maintenance/" + testSecret
	withSecret = `{"bypass_secret": "` + testSecret + `"}`
)

// Getting in

func TestLinkLetsItsVisitorIn(t *testing.T) {
	s := start(t, `maintenance shop`)
	if got := s.put("shop", withSecret)["bypass_secret"]; got != true {
		t.Errorf("bypass_secret is %v, want true", got)
	}
	tester := newTester(t, s)
	tester.expect("/", 503)
	if got := tester.open("/cart" + testLink); got != "/cart/" {
		t.Errorf("led to %q, want /cart/", got)
	}
	tester.expect("/", 200)
	tester.expect("/cart/", 200)
	s.wantStatus("/", 503)
	s.logged(`"bypass granted"`, `"site":"shop"`, `"client":"127.0.0.1"`)
}

func TestLinkIsForGetAndHead(t *testing.T) {
	s := start(t, `maintenance shop`)
	s.put("shop", withSecret)
	for method, want := range map[string]int{
		"GET": 303, "HEAD": 303, "POST": 503, "PUT": 503, "DELETE": 503, "OPTIONS": 503, "get": 503,
	} {
		got := s.do(method, testLink, nil)
		if got.StatusCode != want || (len(got.Cookies()) > 0) != (want == 303) {
			t.Errorf("%s got %d %v, want %d", method, got.StatusCode, got.Cookies(), want)
		}
	}
}

// Who has bookmarked the link has the cookie already.
func TestLinkThatIsOpenedAgainLeadsBackIntoTheSite(t *testing.T) {
	app := newWitness(t)
	s := startInFrontOf(t, app, "log\nmaintenance shop")
	s.put("shop", withSecret)
	tester := newTester(t, s)
	tester.open(testLink)
	tester.open(testLink)
	tester.expect("/after", 200)
	app.expect(t, "GET /after ")
	s.logged("http.log.access", "/after")
	s.expectNoLog(t, testSecret)
}

func TestCookieOfALink(t *testing.T) {
	for _, test := range []struct {
		name, options, proto string
		secure               bool
	}{
		{"cleartext", "", "", false},
		{"proxy that is trusted", "servers {\ntrusted_proxies static 127.0.0.1/8\n}", "https", true},
		{"proxy that is trusted, cleartext", "servers {\ntrusted_proxies static private_ranges 127.0.0.1/8\n}", "http", false},
		{"proxy that is not trusted", "servers {\ntrusted_proxies static 192.0.2.1\n}", "https", false},
		{"no trusted proxies", "", "https", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := prepare(t)
			s.options = test.options
			s.reload(`maintenance shop`)
			s.put("shop", withSecret)
			header := http.Header{}
			if test.proto != "" {
				header.Set("X-Forwarded-Proto", test.proto)
			}
			expectCookie(t, s.do("GET", testLink, header).Response, test.secure)
		})
	}
	t.Run("TLS", func(t *testing.T) {
		s := prepare(t)
		tls := httptest.NewTLSServer(nil)
		defer tls.Close()
		s.url = "https://" + strings.TrimPrefix(s.url, "http://")
		s.reload("tls " + certificateOf(t, tls) + "\nmaintenance shop")
		s.put("shop", withSecret)
		client := tls.Client()
		client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		response, err := client.Get(s.url + testLink)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		expectCookie(t, response, true)
	})
}

func expectCookie(t *testing.T, response *http.Response, secure bool) {
	t.Helper()
	got := strings.Join(response.Header["Set-Cookie"], " and ")
	want := `^maintenance_bypass_[0-9a-f]{8}=[0-9a-f]{64}; Path=/; HttpOnly; SameSite=Lax$`
	if secure {
		want = strings.Replace(want, "HttpOnly", "HttpOnly; Secure", 1)
	}
	if !regexp.MustCompile(want).MatchString(got) {
		t.Errorf("cookie is %q, want %s", got, want)
	}
	if got := response.Header.Get("Cache-Control"); got != "private, no-store" {
		t.Errorf("Cache-Control is %q", got)
	}
}

// certificateOf returns the files of a server's certificate and key.
func certificateOf(t *testing.T, server *httptest.Server) string {
	t.Helper()
	certificate := server.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var paths []string
	for _, block := range []pem.Block{{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]}, {Type: "PRIVATE KEY", Bytes: key}} {
		path := filepath.Join(dir, block.Type+".pem")
		if err := os.WriteFile(path, pem.EncodeToMemory(&block), 0o600); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, strconv.Quote(path))
	}
	return strings.Join(paths, " ")
}

// Where a link leads: back into the site, whatever the browser makes of it.
func TestLinkLeadsNowhereElse(t *testing.T) {
	s := start(t, `maintenance shop`)
	s.put("shop", withSecret)
	for before, want := range map[string]string{
		"":                             "/",
		"/":                            "/",
		"/a/b":                         "/a/b/",
		"/a/b/":                        "/a/b/",
		"/a//b":                        "/a//b/",
		"/%C3%A4%20b":                  "/%C3%A4%20b/",
		"/a/.maintenance/b":            "/a/.maintenance/b/",
		"//evil.example":               "/evil.example/",
		"///evil.example":              "/evil.example/",
		"////evil.example//":           "/evil.example/",
		`/\evil.example`:               "/%5Cevil.example/",
		`/\/evil.example`:              "/%5C/evil.example/",
		`//\evil.example`:              "/%5Cevil.example/",
		"/%5Cevil.example":             "/%5Cevil.example/",
		"/%5c/evil.example":            "/%5c/evil.example/",
		"/%2F%2Fevil.example":          "/%2F%2Fevil.example/",
		"/%2F/evil.example":            "/%2F/evil.example/",
		"/%09/evil.example":            "/%09/evil.example/",
		"/%0A/evil.example":            "/%0A/evil.example/",
		"/%0D%0ASet-Cookie:a=b":        "/%0D%0ASet-Cookie:a=b/",
		"/..//evil.example":            "/..//evil.example/",
		"/.//evil.example":             "/.//evil.example/",
		"/javascript:alert(1)":         "/javascript:alert(1)/",
		"/https://evil.example":        "/https://evil.example/",
		"//user@evil.example:80":       "/user@evil.example:80/",
		s.url + "//evil.example":       "/evil.example/",
		"/%3F//evil.example%23":        "/%3F//evil.example%23/",
		"/%00":                         "/%00/",
		strings.Repeat("/x", 2000):     strings.Repeat("/x", 2000) + "/",
		"/" + url.PathEscape(testLink): "/" + url.PathEscape(testLink) + "/",
	} {
		response := s.raw("GET " + before + testLink + " HTTP/1.1\r\n\r\n")
		got := response.Header.Get("Location")
		if response.StatusCode != 303 || got != want {
			t.Errorf("%q got %d and leads to %q, want %q", before, response.StatusCode, got, want)
		}
		expectLocal(t, s.url, got)
	}
	if got := s.raw("GET /a" + testLink + "?b=c HTTP/1.1\r\n\r\n").Header.Get("Location"); got != "/a/" {
		t.Errorf("with a query it leads to %q, want /a/", got)
	}
}

// expectLocal fails the test if a browser might leave the site.
func expectLocal(t *testing.T, base, location string) {
	t.Helper()
	site, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	target, err := site.Parse(location)
	if err != nil || target.Host != site.Host || target.Scheme != site.Scheme {
		t.Errorf("%q leads to %v (%v)", location, target, err)
	}
	if !strings.HasPrefix(location, "/") || strings.HasPrefix(location, "//") || strings.ContainsFunc(location, func(r rune) bool { return r <= ' ' || r == '\\' }) {
		t.Errorf("a browser may take %q for another host", location)
	}
}

func TestLinkKeepsThePathThatWasStripped(t *testing.T) {
	s := start(t, `
		handle_path /shop/* {
			maintenance shop
			respond "shop {path}"
		}`)
	s.put("shop", withSecret)
	for path, want := range map[string]string{"/shop": "/shop/", "/shop/cart": "/shop/cart/"} {
		for _, slash := range []string{"", "/"} { // which chat programs and people add
			tester := newTester(t, s)
			if got := tester.open(path + testLink + slash); got != want {
				t.Errorf("%s leads to %q, want %q", path, got, want)
			}
			tester.expect(want, 200)
		}
	}
}

// Not getting in

func TestWrongSecretGetsWhatAnyPathGets(t *testing.T) {
	s := start(t, `maintenance shop`)
	s.put("shop", withSecret)
	paths := []string{
		"/.maintenance/wrong-wrong-wrong", "/.maintenance/", "/.maintenance", "/.maintenance//" + testSecret,
		testLink[:len(testLink)-1], testLink + "0", testLink + "//", testLink + "/x", testLink + "%20", testLink + "%00",
		"/.maintenance/0" + testSecret, "/.maintenance/%4Fpen-Sesame_0123456789",
		strings.ToLower(testLink), strings.ToUpper(testLink), "/x.maintenance/" + testSecret, "/%2Emaintenance/" + testSecret,
		"/.maintenance%2F" + testSecret, "/" + testSecret, "/?" + testLink, "/?secret=" + testSecret, "/.maintenance/" + strings.Repeat("x", 8000),
	}
	s.expectSame(t, "GET", paths...)
	s.expectSame(t, "HEAD", paths...)
	s.expectSame(t, "POST", append(paths, testLink)...)
	s.patch("shop", `{"bypass_secret": null}`)
	s.expectSame(t, "GET", testLink)
	s.delete("shop")
	s.expectSame(t, "GET", testLink)
}

// expectSame fails the test if one of the paths gets another response than a
// path that is of no interest, to the byte.
func (s *server) expectSame(t *testing.T, method string, paths ...string) {
	t.Helper()
	get := func(path string) string {
		conn := s.dial(method + " " + path + " HTTP/1.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		response, err := io.ReadAll(conn)
		if err != nil {
			t.Fatal(err)
		}
		return regexp.MustCompile(`Date: .*`).ReplaceAllString(string(response), "Date: now")
	}
	want := get("/no/matter/what")
	for _, path := range paths {
		if got := get(path); got != want {
			t.Errorf("%s %s got\n%s\nwant\n%s", method, path, got, want)
		}
	}
}

func TestWhatIsStoredLetsNobodyIn(t *testing.T) {
	s := start(t, `maintenance shop`)
	s.put("shop", withSecret)
	tester := newTester(t, s)
	tester.open(testLink)
	cookie := tester.cookie()
	for _, key := range []string{shopKey, switchKey} {
		record := s.storage.get(key)
		if strings.Contains(record, testSecret) || strings.Contains(record, cookie.Value) {
			t.Errorf("%s has the secret or the cookie: %s", key, record)
		}
		words := regexp.MustCompile(`[A-Za-z0-9_-]{16,}`).FindAllString(record, -1)
		if len(words) == 0 {
			t.Fatalf("%s has no word that could be a secret: %s", key, record)
		}
		for _, word := range words {
			s.wantStatus("/.maintenance/"+word, 503)
			if got := s.do("GET", "/", http.Header{"Cookie": {cookie.Name + "=" + word}}); got.StatusCode != 503 {
				t.Errorf("%s as a cookie got %d", word, got.StatusCode)
			}
		}
	}
}

func TestAtMost16CookiesAreTried(t *testing.T) {
	app := newCookieApp(t)
	s := start(t, app)
	s.put("shop", withSecret)
	tester := newTester(t, s)
	tester.open(testLink)
	cookie := tester.cookie()
	for position, want := range map[int]int{0: 200, 15: 200, 16: 503, 19: 503} {
		for _, separator := range []string{"; ", "\r\nCookie: "} {
			cookies := slices.Repeat([]string{cookie.Name + "=bad"}, 20)
			cookies[position] = cookie.Name + "=" + cookie.Value
			got := s.raw("GET / HTTP/1.1\r\nCookie: " + strings.Join(cookies, separator) + "\r\n\r\n")
			if got.StatusCode != want || got.StatusCode == 200 && got.body != "[]" {
				t.Errorf("the good one as number %d got %d, and the app saw %s", position+1, got.StatusCode, got.body)
			}
		}
	}
}

// How long it lasts

func TestCookieEndsWithItsMaintenanceOrSecret(t *testing.T) {
	const directive = `maintenance shop`
	const other = `{"bypass_secret": "Another-Secret-0123"}`
	for name, test := range map[string]struct {
		change func(s *server)
		want   int
	}{
		"same secret, PUT":   {func(s *server) { s.put("shop", withSecret) }, 200},
		"same secret, PATCH": {func(s *server) { s.patch("shop", withSecret) }, 200},
		"other option":       {func(s *server) { s.patch("shop", `{"message": "Hello."}`) }, 200},
		"reload":             {func(s *server) { s.reload(directive) }, 200},
		"restart":            {func(s *server) { s.restart(directive) }, 200},
		"restart and same secret": {func(s *server) {
			s.restart(directive)
			s.put("shop", withSecret)
		}, 200},
		"other secret, PUT":   {func(s *server) { s.put("shop", other) }, 503},
		"other secret, PATCH": {func(s *server) { s.patch("shop", other) }, 503},
		"other and back": {func(s *server) {
			s.patch("shop", other)
			s.patch("shop", withSecret)
		}, 503},
		"cleared":   {func(s *server) { s.patch("shop", `{"bypass_secret": null}`) }, 503},
		"not given": {func(s *server) { s.put("shop", "") }, 503},
		"off and on": {func(s *server) {
			s.delete("shop")
			s.put("shop", withSecret)
		}, 503},
		"end by itself and on": {func(s *server) {
			s.storage.set(shopKey, strings.Replace(s.storage.get(shopKey), `"enabled":true`, `"enabled":true,"until":"2020-01-01T00:00:00Z"`, 1))
			s.restart(directive)
			s.wantStatus("/", 200)
			s.put("shop", withSecret)
		}, 503},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, directive)
			s.put("shop", withSecret)
			tester := newTester(t, s)
			tester.open(testLink)
			tester.expect("/", 200)
			test.change(s)
			tester.expect("/", test.want)
			s.wantStatus("/", 503)
		})
	}
}

// A site can have a gate for each language, and one for its error routes.
func TestCookieIsGoodForEveryGateOfItsSite(t *testing.T) {
	s := prepare(t)
	s.after = "handle_errors {\nmaintenance shop\nrespond Sorry.\n}"
	s.reload(`
		@german path /de/*
		maintenance @german shop
		maintenance shop
		handle /dead {
			reverse_proxy 127.0.0.1:1
		}`)
	s.put("shop", withSecret)
	tester := newTester(t, s)
	tester.open("/de" + testLink)
	tester.expect("/", 200)
	tester.expect("/de/", 200)
	tester.expect("/dead", 502)
}

func TestLinkSurvivesRestart(t *testing.T) {
	s := start(t, `maintenance shop`)
	s.put("shop", withSecret)
	s.restart(`maintenance shop`)
	if got := s.status("shop")["bypass_secret"]; got != true {
		t.Errorf("bypass_secret is %v, want true", got)
	}
	tester := newTester(t, s)
	tester.open(testLink)
	tester.expect("/", 200)
}

func TestSitesOnOneHostKeepTheirCookiesApart(t *testing.T) {
	s := start(t, `
		maintenance /shop/* shop
		maintenance /wiki/* wiki`)
	s.put("shop", withSecret)
	s.put("wiki", withSecret)
	tester := newTester(t, s)
	tester.open("/shop" + testLink)
	tester.expect("/shop/", 200)
	tester.expect("/wiki/", 503)
	tester.open("/wiki" + testLink)
	tester.expect("/shop/", 200)
	tester.expect("/wiki/", 200)
	s.patch("shop", `{"bypass_secret": null}`)
	tester.expect("/shop/", 503)
	tester.expect("/wiki/", 200)
}

// G1: what a cookie lets through is not in flight.
func TestCookieHolderIsNotInFlight(t *testing.T) {
	s := start(t, slowShop(t))
	s.put("shop", withSecret)
	tester := newTester(t, s)
	tester.open(testLink)
	finished := make(chan int)
	go func() { finished <- tester.visit("/slow") }()
	request := <-slowRequests
	if got := s.status("shop")["in_flight"]; got != 0.0 {
		t.Errorf("in_flight is %v, want 0", got)
	}
	close(request.released)
	if got := <-finished; got != 200 {
		t.Errorf("got %d, want 200", got)
	}
}

// What is seen of it

// G8
func TestNeitherSecretNorCookieIsTold(t *testing.T) {
	const marker = "Tell-Nobody"
	app := newWitness(t)
	s := startInFrontOf(t, app, "log\nmaintenance shop\nhandle /dead {\nreverse_proxy 127.0.0.1:1\n}")
	answers := s.api("PUT", "/maintenance/shop", withSecret).body
	tester := newTester(t, s)
	tester.open("/x" + testLink)
	cookie := tester.cookie()
	tester.expect("/", 200)
	tester.expect("/dead", 502)
	s.do("HEAD", testLink, nil)
	for _, method := range []string{"PUT", "PATCH"} {
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
	s.reload(app.directives("log\nmaintenance shop"))
	answers += s.api("DELETE", "/maintenance/shop", "").body

	for _, secret := range []string{testSecret, cookie.Value, marker, "1234567890123456789"} {
		if strings.Contains(answers, secret) {
			t.Errorf("the API has answered %s", answers)
		}
		s.expectNoLog(t, secret)
	}
}

// expectNoLog fails the test if a line of the log has the word.
func (s *server) expectNoLog(t *testing.T, word string) {
	t.Helper()
	log, err := os.ReadFile(s.log)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, word) {
			t.Errorf("%s is in the log: %s", word, line)
		}
	}
}

// Who mistypes the link, or opens it with another method, gets the page, and leaves the
// secret in no log either.
func TestMistypedLinkIsLeftOutOfTheAccessLog(t *testing.T) {
	s := start(t, "log\nmaintenance shop")
	s.put("shop", withSecret)
	for _, request := range []struct{ method, path string }{
		{"POST", testLink},
		{"OPTIONS", "/wiki" + testLink},
		{"GET", testLink + "//"},
		{"GET", testLink + "/x/y"},
		{"GET", strings.Replace(testLink, "/.maintenance/", "/.maintenance//", 1)},
		{"GET", strings.Replace(testLink, testSecret, testSecret[:15]+fmt.Sprintf("%%%x", testSecret[15])+testSecret[16:], 1)},
	} {
		if got := s.do(request.method, request.path, nil); got.StatusCode != 503 {
			t.Errorf("%s %s got %d", request.method, request.path, got.StatusCode)
		}
	}
	s.wantStatus("/.maintenance/wrong-0123456789", 503)
	s.logged(`"uri":"/.maintenance/wrong-`)
	s.expectNoLog(t, testSecret[:15])
}

func TestLinkIsLeftOutOfTheAccessLog(t *testing.T) {
	s := start(t, "log\nmaintenance shop")
	s.put("shop", withSecret)
	conn := s.dial("GET " + testLink + " HTTP/1.1\r\n\r\n")
	reader := bufio.NewReader(conn)
	if _, err := http.ReadResponse(reader, nil); err != nil {
		t.Fatal(err)
	}
	// A connection's requests are logged one after the other.
	_, _ = io.WriteString(conn, "GET /after HTTP/1.1\r\nHost: "+strings.TrimPrefix(s.url, "http://")+"\r\n\r\n")
	s.logged("http.log.access", `"uri":"/after"`)
	s.logged(`"bypass granted"`, `"site":"shop"`, `"client":"127.0.0.1"`)
	s.expectNoLog(t, `"uri":"/.maintenance/`)
}

// Caddy logs the request with the error, and a matcher may put the path into that.
func TestFailingMatcherDoesNotTellTheLink(t *testing.T) {
	s := start(t, "log\nmaintenance shop {\n bypass {\n expression `int({http.request.uri.path}) > 1`\n}\n}")
	s.put("shop", withSecret)
	for _, path := range []string{testLink, testLink + "/", "/after"} {
		s.wantStatus(path, 500)
	}
	s.logged(`"uri":"/after"`)
	s.logged("a bypass matcher has failed for a request with the secret in its path", `"site":"shop"`)
	s.expectNoLog(t, testSecret)
}

// A second gate of the site knows whom the first has let in; others are not told how.
func TestVariablesTellNoHash(t *testing.T) {
	s := start(t, `
		maintenance shop
		respond "{http.vars.`+passCookieName("shop")+`}"`)
	s.put("shop", withSecret)
	tester := newTester(t, s)
	tester.open(testLink)
	if got := tester.do("GET", "/"); got.StatusCode != 200 || got.body != "" {
		t.Errorf("got %d %q, want nothing", got.StatusCode, got.body)
	}
}

func TestAppDoesNotSeeTheCookie(t *testing.T) {
	s := start(t, "@office header X-Office yes\n"+strings.Replace(newCookieApp(t), "maintenance shop", "maintenance shop {\nbypass @office\n}", 1))
	s.put("shop", withSecret)
	tester := newTester(t, s)
	tester.open(testLink)
	cookie := tester.cookie()
	name, good := cookie.Name, cookie.Name+"="+cookie.Value
	for _, test := range []struct{ sent, want []string }{
		{[]string{good}, nil},
		{[]string{"a=1; " + good + "; b=2"}, []string{"a=1; b=2"}},
		{[]string{good + "; a=1"}, []string{"a=1"}},
		{[]string{"a=1; " + good}, []string{"a=1"}},
		{[]string{"a=1", good, "b=2"}, []string{"a=1", "b=2"}},
		{[]string{"a=1;b=2", good + ";c=3"}, []string{"a=1;b=2", "c=3"}},
		{[]string{name + "=bad; " + good + "; " + name + "; " + name + "="}, nil},
		{[]string{"x" + good + "; " + name + "x=1; " + good}, []string{"x" + good + "; " + name + "x=1"}},
		{[]string{`q="a b"; ` + good + `; e==; f; =g; a=` + name}, []string{`q="a b"; e==; f; =g; a=` + name}},
		{[]string{`a=1;  ` + name + ` ="` + cookie.Value + `";b=2`, good}, []string{`a=1;b=2`}},
	} {
		for _, header := range []string{"", "X-Office: yes\r\n"} {
			request := "GET / HTTP/1.1\r\n" + header
			for _, line := range test.sent {
				request += "Cookie: " + line + "\r\n"
			}
			got := s.raw(request + "\r\n")
			if want := fmt.Sprintf("%q", test.want); got.StatusCode != 200 || got.body != want {
				t.Errorf("%s%q got %d, and the app saw %s, want %s", header, test.sent, got.StatusCode, got.body, want)
			}
		}
	}
}

// newCookieApp returns the directives of a site in front of an app that answers
// with the cookies that it sees.
func newCookieApp(t *testing.T) string {
	t.Helper()
	app := newWitness(t)
	app.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%q", r.Header["Cookie"])
	})
	return app.directives("")
}

func TestWhatACookieLetsThroughIsNotCached(t *testing.T) {
	app := newWitness(t)
	app.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, name := range foreignCacheHeaders {
			w.Header().Set(name, "max-age=600")
		}
		w.Header().Set("Cache-Control", "public, max-age=600")
		w.Header().Set("X-App", "yes")
		switch r.URL.Path {
		case "/304":
			w.WriteHeader(http.StatusNotModified)
		case "/500":
			w.WriteHeader(http.StatusInternalServerError)
		case "/stream":
			_, _ = io.WriteString(w, "one")
			_ = http.NewResponseController(w).Flush()
			_, _ = io.WriteString(w, "two")
		case "/large":
			_, _ = io.WriteString(w, strings.Repeat("x", 1<<20))
		case "/hints":
			w.Header().Set("Link", "</style.css>; rel=preload")
			w.WriteHeader(http.StatusEarlyHints)
		case "/abort":
			panic(http.ErrAbortHandler)
		}
	})
	s := prepare(t)
	s.after = `
		handle_errors {
			respond "Sorry." {err.status_code}
		}`
	s.reload("route {" + app.directives(`
		header Cache-Control "public, max-age=600"
		header X-Accel-Expires 600
		maintenance shop
		header {
			-Server
			Cache-Control "public, max-age=600"
			Edge-Control max-age=600
		}
		handle /dead {
			reverse_proxy 127.0.0.1:1
		}
		handle /failing {
			header Cache-Control "public, max-age=600"
			error 500
		}
		handle /respond {
			header Cache-Control "public, max-age=600"
			respond "Hello."
		}`) + "\n}")
	s.put("shop", withSecret)
	tester := newTester(t, s)
	tester.open(testLink)
	for path, want := range map[string]int{
		"/": 200, "/304": 304, "/500": 500, "/stream": 200, "/large": 200, "/hints": 200,
		"/abort": 502, "/dead": 502, "/failing": 500, "/respond": 200,
	} {
		for _, method := range []string{"GET", "HEAD", "POST"} {
			got := tester.do(method, path)
			if got.StatusCode != want {
				t.Errorf("%s %s got %d, want %d", method, path, got.StatusCode, want)
			}
			if got := got.Header.Values("Cache-Control"); !slices.Equal(got, []string{"private, no-store"}) {
				t.Errorf("%s %s has Cache-Control %q", method, path, got)
			}
			for _, name := range foreignCacheHeaders {
				if got := got.Header.Values(name); len(got) > 0 {
					t.Errorf("%s %s has %s %q", method, path, name, got)
				}
			}
		}
	}
	if got := tester.do("GET", "/large").body; len(got) != 1<<20 {
		t.Errorf("%d bytes arrived, want 1 MiB", len(got))
	}
}

func TestWhatAMatcherLetsThroughKeepsItsCacheHeaders(t *testing.T) {
	s := start(t, `
		maintenance shop {
			bypass /assets/*
		}
		header {
			Cache-Control "public, max-age=600"
			CDN-Cache-Control max-age=600
		}`)
	s.put("shop", "")
	got := s.get("/assets/style.css")
	for name, want := range map[string]string{"Cache-Control": "public, max-age=600", "CDN-Cache-Control": "max-age=600"} {
		if got := got.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

// Handlers need not call WriteHeader.
func TestResponseThatBeginsByItselfIsNotCached(t *testing.T) {
	for name, begin := range map[string]func(w http.ResponseWriter) error{
		"Write": func(w http.ResponseWriter) error {
			_, err := w.Write([]byte("app"))
			return err
		},
		"ReadFrom": func(w http.ResponseWriter) error {
			_, err := w.(io.ReaderFrom).ReadFrom(strings.NewReader("app"))
			return err
		},
		"Flush": func(w http.ResponseWriter) error { return http.NewResponseController(w).Flush() },
	} {
		recorder := httptest.NewRecorder()
		w := newUncached(recorder)
		w.Header().Set("Cache-Control", "public, max-age=600")
		err := begin(w)
		if got := recorder.Result(); err != nil || got.StatusCode != 200 || got.Header.Get("Cache-Control") != "private, no-store" {
			t.Errorf("%s: %d, Cache-Control %q (%v)", name, got.StatusCode, got.Header.Get("Cache-Control"), err)
		}
	}
}

func TestEarlyHintsComeThrough(t *testing.T) {
	app := newWitness(t)
	release := make(chan struct{})
	app.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		<-release
		_, _ = io.WriteString(w, "app")
	})
	s := startInFrontOf(t, app, "")
	s.put("shop", withSecret)
	tester := newTester(t, s)
	tester.open(testLink)
	var hints []string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
			hints = append(hints, fmt.Sprint(code, " ", header.Get("Link")))
			close(release)
			return nil
		},
	})
	got := tester.send(ctx, "GET", "/")
	if want := "103 </style.css>; rel=preload"; !slices.Equal(hints, []string{want}) || got.body != "app" || got.StatusCode != 200 {
		t.Errorf("got %q and %d %q", hints, got.StatusCode, got.body)
	}
}

func TestWebSocketIsUpgraded(t *testing.T) {
	app := newWitness(t)
	app.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, _ = io.Copy(conn, buffered)
	})
	s := startInFrontOf(t, app, "")
	s.put("shop", withSecret)
	tester := newTester(t, s)
	tester.open(testLink)
	conn := s.dial("GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nCookie: " + tester.cookie().String() + "\r\n\r\n")
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, nil)
	if err != nil || response.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("no upgrade: %v %v", response, err)
	}
	_, _ = io.WriteString(conn, "x")
	if got, err := reader.ReadByte(); got != 'x' || err != nil {
		t.Errorf("got %q %v", got, err)
	}
}

// Whatever a visitor sends

func FuzzLink(f *testing.F) {
	for _, seed := range []string{"", "/", "//evil.example", `/\evil.example`, `\`, "/%5C", "/%2F%2Fe", "/\t/e", "/\n", "*", "e:80", "/../", "/%zz", "/?#", "/\x00", "//u@e:80/"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, before string) {
		u := &url.URL{Path: before + testLink}
		if parsed, err := url.ParseRequestURI(before + testLink); err == nil && strings.HasSuffix(parsed.Path, testLink) {
			u = parsed
		}
		location, secret, ok := splitLink(u)
		if !ok || secret != testSecret {
			t.Errorf("the secret of %#v is %q (%t)", u, secret, ok)
		}
		expectLocal(t, "http://shop.example/here", location)
	})
}

func FuzzCookies(f *testing.F) {
	name := passCookieName("shop")
	for _, seed := range []string{"a=1; " + name + "=x; b=2", name, name + "=", ";;", `a="` + name + `=1;"`, name + " = x;b", "=;" + name + "x=1", "0\v "} {
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

// Harness

// tester is a visitor with a cookie jar.
type tester struct {
	*server
	client *http.Client
}

func newTester(t *testing.T, s *server) *tester {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browser := *client
	browser.Jar = jar
	return &tester{s, &browser}
}

// open opens a link and returns where it leads.
func (v *tester) open(link string) (location string) {
	v.t.Helper()
	got := v.do("GET", link)
	if got.StatusCode != 303 || got.body != "" {
		v.t.Errorf("%s got %d %q, want 303", link, got.StatusCode, got.body)
	}
	return got.Header.Get("Location")
}

func (v *tester) visit(path string) int { return v.do("GET", path).StatusCode }

func (v *tester) expect(path string, want int) {
	v.t.Helper()
	if got := v.visit(path); got != want {
		v.t.Errorf("who has opened the link got %d for %s, want %d", got, path, want)
	}
}

// cookie is the one that lets through.
func (v *tester) cookie() *http.Cookie {
	v.t.Helper()
	site, err := url.Parse(v.url)
	if err != nil {
		v.t.Fatal(err)
	}
	cookies := v.client.Jar.Cookies(site)
	if len(cookies) != 1 {
		v.t.Fatalf("the cookies are %v, want one", cookies)
	}
	return cookies[0]
}

func (v *tester) do(method, path string) response {
	v.t.Helper()
	return v.send(v.t.Context(), method, path)
}

func (v *tester) send(ctx context.Context, method, path string) (got response) {
	v.t.Helper()
	eventually(v.t, func() error {
		request, err := http.NewRequestWithContext(ctx, method, v.url+path, nil)
		if err != nil {
			return err
		}
		answer, err := v.client.Do(request)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		content, err := io.ReadAll(answer.Body)
		got = response{answer, string(content)}
		return err
	})
	return got
}

// raw sends a request as it is but for its Host.
func (s *server) raw(request string) response {
	s.t.Helper()
	conn := s.dial(request)
	defer conn.Close()
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		s.t.Fatalf("%q: %v", request, err)
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return response{answer, string(content)}
}
