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
)

const html, problemJSON, plainText = "text/html; charset=utf-8", "application/problem+json", "text/plain; charset=utf-8"

func TestRepresentationFollowsAccept(t *testing.T) {
	s := start(t, `maintenance shop`)
	s.put("shop", "")
	for _, test := range []struct {
		accept []string
		want   string
	}{
		{nil, html},
		{[]string{""}, html},
		{[]string{"*/*"}, html},
		{[]string{"text/*, */*;q=0.1"}, html},
		{[]string{"text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8"}, html},
		{[]string{"application/xhtml+xml"}, html},
		{[]string{"TEXT/HTML"}, html},
		{[]string{"application/json"}, problemJSON},
		{[]string{"application/json, text/plain, */*"}, problemJSON},
		{[]string{"application/vnd.api+json"}, problemJSON},
		{[]string{"text/html;q=0.5, application/json"}, problemJSON},
		{[]string{"text/html;q=0.5", "application/json"}, problemJSON},
		{[]string{"application/json;q=0.9, text/html;q=0.9"}, html},
		{[]string{"text/plain;q=0.9, application/json;q=0.8"}, plainText},
		{[]string{"text/plain"}, plainText},
		{[]string{"image/avif,image/webp,image/*,*/*;q=0.8"}, plainText},
		{[]string{"image/*"}, plainText},
		{[]string{"text/css,*/*;q=0.1"}, plainText},
		{[]string{"text/event-stream"}, plainText},
		{[]string{"text/html;q=0"}, plainText},
		{[]string{"text/html;q=0, application/json;q=0.1"}, problemJSON},
		{[]string{"text/html;q=nan, application/json;q=0.1"}, problemJSON},
		{[]string{"text/html;level=1;q=0.2, application/json;q=0.3"}, problemJSON},
		{[]string{strings.Repeat("image/png,", 32-1) + "text/html"}, html},
		{[]string{strings.Repeat("image/png,", 32) + "text/html"}, plainText},
		{[]string{"nonsense"}, plainText},
		{[]string{",,;q=1"}, html},
	} {
		header := http.Header{}
		if test.accept != nil {
			header["Accept"] = test.accept
		}
		response := s.do(http.MethodGet, "/", header)
		if got := response.Header.Get("Content-Type"); response.StatusCode != 503 || got != test.want {
			t.Errorf("Accept %q got %d %s, want 503 %s", test.accept, response.StatusCode, got, test.want)
		}
	}
}

// Browsers ask for scripts and fonts with Accept: */*.
func TestPartsOfAPageAreNotReplacedByAPage(t *testing.T) {
	s := start(t, `maintenance shop`)
	s.put("shop", "")
	for destination, want := range map[string]string{
		"document": html, "iframe": html, "empty": html,
		"script": plainText, "font": plainText, "style": plainText, "image": plainText, "worker": plainText,
	} {
		response := s.do(http.MethodGet, "/", http.Header{"Accept": {"*/*"}, "Sec-Fetch-Dest": {destination}})
		if got := response.Header.Get("Content-Type"); response.StatusCode != 503 || got != want {
			t.Errorf("Sec-Fetch-Dest %s got %d %s, want 503 %s", destination, response.StatusCode, got, want)
		}
	}
}

func TestPageShowsMessageAndEndEscaped(t *testing.T) {
	s := start(t, `maintenance shop`)
	until := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	s.put("shop", fmt.Sprintf(`{"message": "Back <b>soon</b> & well.", "until": %q}`, until.Format(time.RFC3339)))
	shown := until.Format("2006-01-02 15:04 UTC")

	page := s.get("/").body
	for _, want := range []string{
		"<title>Down for maintenance</title>",
		"<h1>Down for maintenance</h1>",
		"<p>Back &lt;b&gt;soon&lt;/b&gt; &amp; well.</p>",
		`<time datetime="` + until.Format(time.RFC3339) + `">` + shown + `</time>`,
	} {
		if !strings.Contains(page, want) {
			t.Errorf("page lacks %s:\n%s", want, page)
		}
	}
	text := s.do(http.MethodGet, "/", http.Header{"Accept": {"text/plain"}}).body
	if want := "Down for maintenance. Back <b>soon</b> & well.\nIt is expected back at " + shown + ".\n"; text != want {
		t.Errorf("plain text is %q, want %q", text, want)
	}

	response := s.do(http.MethodGet, "/", http.Header{"Accept": {"application/json"}})
	got := decode(t, response.body)
	retryAfter, _ := strconv.Atoi(response.Header.Get("Retry-After"))
	for field, want := range map[string]any{
		"title": "Service Unavailable", "status": 503.0, "detail": "Back <b>soon</b> & well.",
		"retry_after": float64(retryAfter), "until": until.Format(time.RFC3339), "maintenance": true,
	} {
		if got[field] != want {
			t.Errorf("%s is %v, want %v", field, got[field], want)
		}
	}

	s.patch("shop", `{"message": null, "until": null}`)
	if page := s.get("/").body; strings.Contains(page, "soon</b>") || strings.Contains(page, "<time") || !strings.Contains(page, "will be back soon.") {
		t.Errorf("after the options were cleared the page is\n%s", page)
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

func TestConditionalAndRangeRequestsGetTheWholePage(t *testing.T) {
	s := start(t, `maintenance shop`)
	s.put("shop", "")
	response := s.do(http.MethodGet, "/", http.Header{
		"Range": {"bytes=0-9"}, "If-None-Match": {"*"}, "If-Modified-Since": {"Mon, 02 Jan 2096 15:04:05 GMT"},
	})
	if response.StatusCode != 503 || response.body != s.get("/").body {
		t.Errorf("got %d %q, want 503 and the page", response.StatusCode, response.body)
	}
}

func TestHeadGetsTheHeadersOfGet(t *testing.T) {
	s := start(t, `maintenance shop`)
	s.put("shop", "")
	for _, accept := range []string{"text/html", "application/json", "text/plain"} {
		header := http.Header{"Accept": {accept}}
		get, head := s.do(http.MethodGet, "/", header), s.do(http.MethodHead, "/", header)
		if head.StatusCode != 503 || head.body != "" {
			t.Errorf("HEAD got %d %q, want 503 and no body", head.StatusCode, head.body)
		}
		get.Header.Del("Date")
		head.Header.Del("Date")
		if fmt.Sprint(get.Header) != fmt.Sprint(head.Header) {
			t.Errorf("GET has %v\nHEAD has %v", get.Header, head.Header)
		}
	}
}

func TestPageIsCompressedForWhoAcceptsIt(t *testing.T) {
	s := start(t, `maintenance shop`)
	s.put("shop", "")
	whole := s.get("/").body
	for accept, want := range map[string]string{
		"gzip": "gzip", "br, GZIP ;q=0.5": "gzip", "": "", "gzip;q=0": "", "br": "", "identity": "",
	} {
		response := s.do(http.MethodGet, "/", http.Header{"Accept-Encoding": {accept}})
		if got := response.Header.Get("Content-Encoding"); got != want {
			t.Errorf("Accept-Encoding %q got %q, want %q", accept, got, want)
			continue
		}
		body := io.Reader(strings.NewReader(response.body))
		if want == "gzip" {
			var err error
			if body, err = gzip.NewReader(body); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := io.ReadAll(body); err != nil || string(got) != whole {
			t.Errorf("Accept-Encoding %q got %q (%v), want the page", accept, got, err)
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
