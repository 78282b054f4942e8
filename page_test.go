package maintenance

import (
	"bufio"
	"compress/gzip"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"

	"example.com/caddy-maintenance/internal/page"
)

const html = "text/html; charset=utf-8"

// Each client gets what it asks for, with all the headers of the 503. HEAD gets those of GET;
// range and conditional requests get the whole page.
func TestClientGetsWhatItAccepts(t *testing.T) {
	s := start(t, "maintenance shop {\nrefresh 1500ms\n}")
	if got := s.get("/").Header.Values("Refresh"); len(got) > 0 {
		t.Errorf("Refresh is %q though the site is off", got)
	}
	s.put("shop", `{"message": "Back <b>soon</b>."}`)
	content := page.Content{Message: "Back <b>soon</b>."}
	whole, problem, text := string(page.Default(content).HTML), string(page.Problem(content, 300)), string(page.PlainText(content))
	for _, test := range []struct {
		header                          http.Header
		contentType, encoding, wantBody string
	}{
		{nil, html, "", whole},
		{http.Header{"Accept": {"text/html,application/xhtml+xml,*/*;q=0.8"}}, html, "", whole},
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

// foreignCacheHeaders tell caches something else than Cache-Control.
var foreignCacheHeaders = []string{
	"Expires", "Pragma", "Surrogate-Control", "X-Accel-Expires", "Edge-Control",
	"CDN-Cache-Control", "Cloudflare-CDN-Cache-Control", "Example-Cache-Control",
}

// Headers that describe the app's response, or tell caches to store it, do not reach the 503:
// neither from a handler before this one, whose other headers do, nor from a deferred one after
// it.
func TestResponseIsNeverCachedNorTakenForTheAppsOwn(t *testing.T) {
	const lastModified = "Last-Modified \"Mon, 02 Jan 2006 15:04:05 GMT\"\n"
	fields := strings.Join(foreignCacheHeaders, " max-age=600\n") + " max-age=600\nCache-Control max-age=600\n"
	for name, test := range map[string]struct {
		directives string
		want       http.Header
	}{
		"in a route, at once": {
			"route {\nheader {\nETag v1\n" + lastModified + fields + "Vary Origin\nX-From-Site yes\n}\nmaintenance shop\n}",
			http.Header{"Vary": {"Origin", "Accept, Accept-Encoding"}, "X-From-Site": {"yes"}, "Server": {"Caddy"}},
		},
		"in a route, deferred": {
			"route {\nheader {\n-Server\nX-From-Site yes\n}\nmaintenance shop\nheader {\nETag v1\n" + lastModified + fields + "}\n}",
			http.Header{"Vary": {"Accept, Accept-Encoding"}, "X-From-Site": {"yes"}, "Server": nil},
		},
		"not in a route, deferred": {
			"header {\n-Server\nX-From-Site yes\n" + fields + "}\nheader >ETag v1\nheader ?" + lastModified + "maintenance shop",
			http.Header{"Vary": {"Accept, Accept-Encoding"}, "X-From-Site": nil, "Server": {"Caddy"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, test.directives)
			if got := s.get("/").Header; got.Get("Cache-Control") != "max-age=600" || got.Get("ETag") != "v1" || got.Get("X-From-Site") != "yes" {
				t.Errorf("the headers of the app are %v", got)
			}
			s.put("shop", "")
			response := s.get("/")
			maps.Copy(test.want, http.Header{
				"Cache-Control":          {"no-store"},
				"Retry-After":            {"300"},
				"Content-Type":           {html},
				"Content-Length":         {strconv.Itoa(len(response.body))},
				"X-Content-Type-Options": {"nosniff"},
				"Referrer-Policy":        {"no-referrer"},
			})
			for _, name := range append([]string{"ETag", "Last-Modified"}, foreignCacheHeaders...) {
				test.want[name] = nil
			}
			for name, want := range test.want {
				if got := response.Header.Values(name); !slices.Equal(got, want) {
					t.Errorf("%s is %q, want %q", name, got, want)
				}
			}
		})
	}
}

// Package page tests how seconds are rounded, and how a countdown is spread.
func TestRetryAfter(t *testing.T) {
	for options, want := range map[string]int64{
		`{}`:                        90,
		`{"retry_after": "1500ms"}`: 2,
		`{"retry_after": "1d", "until": "2000-01-01T01:00:00Z"}`: 86400,
		`{"until": "2000-01-01T00:00:01Z"}`:                      1,
		`{"until": "2000-01-01T01:00:00Z"}`:                      3600,
		`{"until": "9999-01-01T00:00:00Z"}`:                      9223372037, // as far as a duration reaches, rounded up
	} {
		synctest.Test(t, func(t *testing.T) {
			h := newClosedGate("shop", options)
			h.RetryAfter = caddy.Duration(90 * time.Second)
			got, err := strconv.ParseInt(h.visit("/").Header().Get("Retry-After"), 10, 64)
			if late := got - want; err != nil || late < 0 || late > min(60, want/10) {
				t.Errorf("%s: got %d %v, want %d or up to a tenth more", options, got, err, want)
			}
		})
	}
}

// The body of a request that expects to be asked for it is never read.
func TestRequestThatExpectsIsAnsweredAtOnce(t *testing.T) {
	s := start(t, `maintenance shop`)
	s.put("shop", "")
	conn := s.dial("POST / HTTP/1.1\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n")
	response, body := readAnswer(t, bufio.NewReader(conn))
	if response.StatusCode != 503 || !response.Close || !strings.Contains(body, "Down for maintenance") {
		t.Errorf("got %d %q, closing %t; want the page and a connection that is closed", response.StatusCode, body, response.Close)
	}
}
