package maintenance

import (
	"bufio"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"example.com/caddy-maintenance/internal/page"
)

const html = "text/html; charset=utf-8"

// Each client gets what it asks for, with all the headers of the 503. HEAD gets those of
// GET, and what asks for a part or for news gets all of it.
func TestClientGetsWhatItAccepts(t *testing.T) {
	s := start(t, "maintenance shop {\nrefresh 1500ms\n}")
	if got := s.get("/").Header.Values("Refresh"); len(got) > 0 {
		t.Errorf("Refresh is %q though the site is off", got)
	}
	s.put("shop", `{"message": "Back <b>soon</b>."}`)
	content := page.Content{Message: "Back <b>soon</b>."}
	whole, problem, text := string(page.Default(content).HTML), string(page.Problem(content, 300)), string(page.PlainText(content))
	browser := http.Header{"Accept": {"text/html,application/xhtml+xml,*/*;q=0.8"}}
	for _, test := range []struct {
		header                          http.Header
		contentType, encoding, wantBody string
	}{
		{nil, html, "", whole},
		{browser, html, "", whole},
		{http.Header{"Accept-Encoding": {"br, gzip"}}, html, "gzip", whole},
		{http.Header{"Accept": {"application/json;q=0.9", "text/html;q=0.8"}}, "application/problem+json", "", problem},
		{http.Header{"Accept": {"image/*,*/*;q=0.8"}, "Accept-Encoding": {"gzip"}}, "text/plain; charset=utf-8", "", text},
		{http.Header{"Accept": {"*/*"}, "Sec-Fetch-Dest": {"script"}}, "text/plain; charset=utf-8", "", text},
		{http.Header{"Range": {"bytes=0-9"}, "If-None-Match": {"*"}, "If-Modified-Since": {"Mon, 02 Jan 2096 15:04:05 GMT"}}, html, "", whole},
	} {
		get, head := s.do(http.MethodGet, "/", test.header), s.do(http.MethodHead, "/", test.header)
		if get.StatusCode != 503 || get.Header.Get("Content-Type") != test.contentType || get.Header.Get("Content-Encoding") != test.encoding ||
			get.Header.Get("Content-Length") != strconv.Itoa(len(get.body)) || get.Header.Get("Refresh") != "2" {
			t.Errorf("%v got %d %v", test.header, get.StatusCode, get.Header)
		}
		if body := unpacked(t, get); body != test.wantBody {
			t.Errorf("%v got %q, want %q", test.header, body, test.wantBody)
		}
		get.Header.Del("Date")
		head.Header.Del("Date")
		if head.StatusCode != 503 || head.body != "" || fmt.Sprint(head.Header) != fmt.Sprint(get.Header) {
			t.Errorf("%v: GET has %v\nHEAD has %d %v %q", test.header, get.Header, head.StatusCode, head.Header, head.body)
		}
	}
}

// foreignCacheHeaders tell caches what Cache-Control does not.
var foreignCacheHeaders = []string{
	"Expires", "Pragma", "Surrogate-Control", "X-Accel-Expires", "Edge-Control",
	"CDN-Cache-Control", "Cloudflare-CDN-Cache-Control", "Example-Cache-Control",
}

func TestResponseIsNeverCachedNorTakenForTheAppsOwn(t *testing.T) {
	s := start(t, `
		route {
			header {
				ETag "v1"
				Last-Modified "Mon, 02 Jan 2006 15:04:05 GMT"
				`+strings.Join(foreignCacheHeaders, " max-age=600\n")+` max-age=600
				Cache-Control max-age=600
				Vary Origin
			}
			maintenance shop
		}`)
	s.put("shop", "")
	response := s.get("/")
	for _, name := range append([]string{"ETag", "Last-Modified"}, foreignCacheHeaders...) {
		if got := response.Header.Values(name); len(got) > 0 {
			t.Errorf("%s is %q, want none", name, got)
		}
	}
	for name, want := range map[string][]string{
		"Cache-Control":          {"no-store"},
		"Retry-After":            {"300"},
		"Content-Type":           {html},
		"Content-Length":         {strconv.Itoa(len(response.body))},
		"X-Content-Type-Options": {"nosniff"},
		"Referrer-Policy":        {"no-referrer"},
		"Vary":                   {"Origin", "Accept, Accept-Encoding"},
	} {
		if got := response.Header.Values(name); !slices.Equal(got, want) {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	s.delete("shop")
	if got := s.get("/").Header.Get("ETag"); got != `v1` {
		t.Errorf("ETag of the app is %q", got)
	}
}

// Caddy applies a header directive that deletes anything when the response is written.
func TestDeferredHeadersDoNotReachThe503(t *testing.T) {
	s := start(t, `
		header {
			-Server
			Cache-Control "public, max-age=3600"
			`+strings.Join(foreignCacheHeaders, " max-age=600\n")+` max-age=600
		}
		header >ETag "v1"
		header ?Last-Modified "Mon, 02 Jan 2006 15:04:05 GMT"
		maintenance shop`)
	if got := s.get("/").Header.Get("Cache-Control"); got != "public, max-age=3600" {
		t.Errorf("Cache-Control of the app is %q", got)
	}
	s.put("shop", "")
	response := s.get("/")
	for name, want := range map[string]string{"Cache-Control": "no-store", "Server": "Caddy"} {
		if got := response.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	for _, name := range append([]string{"ETag", "Last-Modified"}, foreignCacheHeaders...) {
		if got := response.Header.Values(name); len(got) > 0 {
			t.Errorf("%s is %q, want none", name, got)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	s := start(t, `maintenance shop {
		retry_after 90s
	}`)
	retryAfter := func(body string) int {
		t.Helper()
		s.put("shop", body)
		seconds, err := strconv.Atoi(s.get("/").Header.Get("Retry-After"))
		if err != nil {
			t.Fatal(err)
		}
		return seconds
	}
	in := func(d time.Duration) string { return time.Now().Add(d).Format(time.RFC3339Nano) }

	if got := retryAfter(`{}`); got != 90 {
		t.Errorf("as configured: got %d, want 90", got)
	}
	if got := retryAfter(`{"retry_after": "1500ms"}`); got != 2 {
		t.Errorf("overridden: got %d, want 2, rounded up", got)
	}
	if got := retryAfter(`{"retry_after": "1d", "until": "` + in(time.Hour) + `"}`); got != 86400 {
		t.Errorf("overridden with an end: got %d, want 86400", got)
	}
	if got := retryAfter(`{"until": "` + in(time.Hour) + `"}`); got < 3590 || got > 3960 {
		t.Errorf("counting down: got %d, want 3600 and up to a tenth more", got)
	}
	if got := retryAfter(`{"until": "` + in(300*time.Millisecond) + `"}`); got != 1 {
		t.Errorf("about to end: got %d, want 1", got)
	}
	if got := retryAfter(`{"until": "9999-01-01T00:00:00Z"}`); got < 1<<33 {
		t.Errorf("in the far future: got %d", got)
	}
}

// The body of a request that expects to be asked for it is never read.
func TestRequestThatExpectsIsAnsweredAtOnce(t *testing.T) {
	s := start(t, `maintenance shop`)
	s.put("shop", "")
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n", conn.RemoteAddr())
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != 503 || !response.Close {
		t.Errorf("got %d, closing %t; want 503 and a connection that is closed", response.StatusCode, response.Close)
	}
	if _, err := io.ReadAll(response.Body); err != nil {
		t.Errorf("reading the page: %v", err)
	}
}

// unpacked returns the body of a response without its Content-Encoding.
func unpacked(t *testing.T, r response) string {
	t.Helper()
	if r.Header.Get("Content-Encoding") != "gzip" {
		return r.body
	}
	reader, err := gzip.NewReader(strings.NewReader(r.body))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(reader)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}
