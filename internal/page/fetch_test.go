package page

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const (
	html     = "text/html; charset=utf-8"
	userinfo = "bob:hunter2@"
	query    = "?token=hunter3"

	silence     = "no complete response within 10s"
	longHeaders = "headers exceeded 65536 bytes"
	tooLarge    = "the page is larger than 1 MiB"
	ok          = "HTTP/1.1 200 OK\r\n"
)

var filler = strings.Repeat("x", 4000)

// badPages are hosts that serve no valid page, and the errors.
var badPages = map[string]struct {
	serve http.HandlerFunc
	want  string
}{
	"silent":       {saysNothing, silence},
	"silent body":  {beginsOnly, silence},
	"drip":         {hijacks(ok+"Content-Type: text/html\r\n\r\n<!DOCTYPE html>", drip), silence},
	"drip headers": {hijacks(ok, drip), silence},

	"endless headers": {hijacks(ok, repeat("X-Filler: "+filler+"\r\n")), longHeaders},
	"endless header":  {hijacks(ok+"X-Filler: ", repeat(filler)), longHeaders},
	"endless hints":   {hijacks("", repeat("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")), longHeaders},
	"endless body":    {endless, tooLarge},
	"endless chunk":   {hijacks(ok+"Transfer-Encoding: chunked\r\n\r\n", repeat("1;"+filler)), "line too long"},
	"bomb":            {bomb, tooLarge},
	"too large":       {answers(html, strings.Repeat("x", maxSize+1)), tooLarge},

	"loop":        {redirects("/page" + query), "more than 5 redirects"},
	"6 redirects": {hops(6), "more than 5 redirects"},
	"to admin": {
		redirects("http://" + userinfo + "localhost:2019/config/" + query),
		"invalid redirect to http://localhost:2019/config/: must lead to https, or to the same scheme, host and port",
	},
	"to file":         {redirects("file:///etc/passwd"), "invalid redirect to file:///etc/passwd: must"},
	"to an odd query": {redirects(`http://other.example/lost?q="a b"&token=hunter3`), "invalid redirect to http://other.example/lost: must"},
	"to nowhere":      {redirects("http://" + userinfo + "no where/" + query), "Location"},

	"blank":     {answers(html, "\ufeff \r\n\t"), "the page is empty"},
	"no text":   {status(204), "got status 204, want 200"},
	"broken":    {status(500), "got status 500, want 200"},
	"unchanged": {status(304), "got status 304, want 200"},

	"JSON":          {answers("application/json", `{"a": 1}`), `got Content-Type "application/json", want text/html`},
	"octets":        {answers("binary/octet-stream", "\x7fELF"), `"binary/octet-stream" and content that does not start like HTML`},
	"untyped":       {answers("", "Hello."), `got Content-Type "" and content that does not start like HTML, want text/html`},
	"long type":     {answers("text/"+strings.Repeat("x", 50_000), "Hello."), "want text/html"},
	"invalid UTF-8": {answers("text/html", "<p>\xfc"), "the page is not valid UTF-8"},
	"brotli":        {encodes("br", "<p>Mine."), `got Content-Encoding "br", want gzip or none`},
	"no gzip":       {encodes("gzip", "<p>Mine. It is not compressed at all."), "gzip: invalid header"},
	"full":          {answers(html, strings.Repeat(messagePlaceholder+untilPlaceholder, 51)), "the page has 102 placeholders, the limit is 100"},
	"bad charset":   {answers(`text/html; charset="utf-8 evil"`, "<p>Mine."), "invalid charset "},

	"breaks off": {hijacks(ok+"Content-Type: text/html\r\nContent-Length: 100\r\n\r\n<p>Mine.", nil), "unexpected EOF"},
	"hangs up":   {hijacks("", nil), "EOF"},
	"no HTTP":    {hijacks("SSH-2.0-"+strings.Repeat("x", 50_000)+"\r\n", nil), "malformed HTTP"},
}

// G9
func TestBadPageIsAnErrorThatTellsNoSecret(t *testing.T) {
	for name, bad := range badPages {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				host := newHost(t, bad.serve)
				began := time.Now()
				err := host.expect("", bad.want)
				if took := time.Since(began); took > fetchTimeout {
					t.Errorf("it took %s", took)
				}
				if n := len(fmt.Sprint(err)); n > maxFetchError+10 {
					t.Errorf("the error has %d bytes: %.200s", n, err)
				}
				wantEqual(t, "hosts asked", len(host.asked), 1)
			})
		})
	}
}

// G9
func TestPagesOverHTTPAndHTTPS(t *testing.T) {
	large := "<p>" + strings.Repeat("x", maxSize-3)
	asked := func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		answers(html, strings.Join([]string{user, password, r.URL.RawQuery, r.UserAgent()}, " "))(w, r)
	}
	largeHeaders := func(w http.ResponseWriter, _ *http.Request) {
		for range 20 {
			w.Header().Add("X-Filler", filler)
		}
	}
	for name, test := range map[string]struct {
		serve     http.HandlerFunc
		page, err string
		onlyHTTPS bool
	}{
		"small":         {answers(html, "<p>Mine."), "<p>Mine.", "", false},
		"largest":       {compressed(large), large, "", false},
		"redirected":    {hops(5), "<p>Mine.", "", false},
		"as asked for":  {asked, "bob hunter2 token=hunter3 caddy-maintenance", "", false},
		"endless body":  {endless, "", tooLarge, false},
		"other host":    {redirects("//other.example/hops-0"), "<p>Mine.", "", true},
		"to http":       {redirects("http://page.example/hops-0"), "", "must lead to https, or to the same scheme", true},
		"large headers": {largeHeaders, "", "header list", true},
	} {
		for protocol, start := range map[int]func(*httptest.Server){1: (*httptest.Server).Start, 2: (*httptest.Server).StartTLS} {
			if protocol == 1 && test.onlyHTTPS {
				continue
			}
			t.Run(fmt.Sprint(name, protocol), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					_ = newHost(t, func(w http.ResponseWriter, r *http.Request) {
						if r.Host == "other.example" && r.Header.Get("Authorization")+r.Header.Get("Referer")+r.URL.RawQuery != "" {
							t.Errorf("the host that was led to is told %s %s", r.URL, r.Header)
						}
						wantEqual(t, "protocol", r.ProtoMajor, protocol)
						if r.URL.Path == "/page" {
							test.serve(w, r)
						} else {
							hops(5)(w, r)
						}
					}, start).expect(test.page, test.err)
				})
			})
		}
	}
}

// A page that has not changed is not sent again, and neither is an ETag that is too long: many
// servers reject a request of more than about 8 KiB, and the ETag is kept in storage.
//
// G9
func TestWhatAHostHasSaidIsNotSentAgain(t *testing.T) {
	const modified = "Mon, 02 Jan 2006 15:04:05 GMT"
	synctest.Test(t, func(t *testing.T) {
		etag := `"v1"`
		host := newHost(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("If-None-Match") == etag && r.Header.Get("If-Modified-Since") == modified {
				w.WriteHeader(http.StatusNotModified)
				return
			}
			w.Header().Set("ETag", etag)
			w.Header().Set("Last-Modified", modified)
			answers(html, "<p>"+strings.Trim(etag, `"`))(w, r)
		})
		expect := func(last *Copy, want string) *Copy {
			t.Helper()
			c, err := host.fetch(last)
			if (c == nil) != (want == "") || err != nil || c != nil && string(c.HTML) != want {
				t.Fatalf("got %.100v (%v), want %q", c, err, want)
			}
			host.expectAllClosed()
			return c
		}
		first := expect(nil, "<p>v1")
		expect(first, "")
		etag = `"v2"`
		second := expect(first, "<p>v2")
		etag = `"` + strings.Repeat("x", 32<<10) + `"`
		second.ETag = etag
		expect(second, "<p>"+strings.Trim(etag, `"`))
	})
}

func TestRedirectsThatAreFollowed(t *testing.T) {
	for hop, follow := range map[[2]string]bool{
		{"http://a/x", "http://a/y"}:            true,
		{"http://a/x", "http://A:80/y"}:         true,
		{"http://a:80/x", "http://a/y"}:         true,
		{"http://a/x", "http://a:443/y"}:        false,
		{"http://a:8080/x", "http://a/y"}:       false,
		{"http://a/x", "http://b/y"}:            false,
		{"http://a/x", "https://b/y"}:           true,
		{"https://a/x", "https://b:8443/y"}:     true,
		{"https://a/x", "http://a/y"}:           false,
		{"https://a:8443/x", "http://a:8443/y"}: false,
		{"https://a/x", "file:///y"}:            false,
	} {
		from, to := httptest.NewRequest(http.MethodGet, hop[0], nil), httptest.NewRequest(http.MethodGet, hop[1], nil)
		wantEqual(t, fmt.Sprint(hop), checkRedirect(to, []*http.Request{from}) == nil, follow)
	}
}

// A page waits while hanging hosts use up the number of fetches at once.
func TestNoMoreThan32PagesAreFetchedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := newHost(t, saysNothing)
		const all = maxFetches + 8
		for range all {
			go func() { _, _ = host.fetch(nil) }()
		}
		for _, want := range []int{maxFetches, all} {
			synctest.Wait()
			wantEqual(t, "pages that are being fetched or have been", host.requests(), want)
			time.Sleep(fetchTimeout)
		}

		// A page that waits for its turn stops with its loop.
		full := &Fetcher{slots: make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			if _, ok := New(host.source).Next(ctx, full); ok {
				t.Error("a page was fetched out of its turn")
			}
		}()
		synctest.Wait()
		cancel()
	})
}

// host is the host of pages, in memory, so that synctest's clock is its clock. Every
// name leads to it.
type host struct {
	*Fetcher
	t      *testing.T
	source Source
	conns  chan net.Conn
	closed chan struct{}
	close  func()

	mu    sync.Mutex
	asked map[string]int // by host
	open  int            // connections, except for hijacked ones
}

func newHost(t *testing.T, serve http.HandlerFunc, start ...func(*httptest.Server)) *host {
	t.Helper()
	h := &host{Fetcher: NewFetcher(), t: t, conns: make(chan net.Conn), closed: make(chan struct{}), asked: make(map[string]int)}
	h.close = sync.OnceFunc(func() { close(h.closed) })
	var handlers sync.WaitGroup // including those that have hijacked, whose clients must hang up
	t.Cleanup(handlers.Wait)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handlers.Add(1)
		defer handlers.Done()
		h.mu.Lock()
		h.asked[r.Host]++
		h.mu.Unlock()
		serve(w, r)
	}))
	server.Listener.Close()
	server.Listener = h
	server.EnableHTTP2 = true
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		h.mu.Lock()
		defer h.mu.Unlock()
		if state == http.StateNew {
			h.open++
		}
		if state == http.StateClosed || state == http.StateHijacked {
			h.open--
		}
	}
	start = append(start, (*httptest.Server).Start)
	start[0](server)
	t.Cleanup(server.Close)
	transport := h.client.Transport.(*http.Transport)
	transport.Proxy = nil
	transport.DialContext = h.dial
	scheme := "http://"
	if server.TLS != nil {
		scheme = "https://"
		transport.TLSClientConfig = server.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
		transport.TLSClientConfig.ServerName = "example.com" // the name in the certificate
	}
	source, err := ParseSource(scheme + userinfo + "page.example/page" + query)
	noError(t, err)
	h.source = source
	return h
}

func (h *host) fetch(last *Copy) (*Copy, error) {
	return h.Fetcher.fetch(h.t.Context(), h.source, last)
}

// expect fetches the page. The result must be this page, or this error, without any secret, and
// no connection may be left.
func (h *host) expect(page, message string) error {
	h.t.Helper()
	c, err := h.fetch(nil)
	switch {
	case page != "" && (err != nil || string(c.HTML) != page):
		h.t.Errorf("got %.100v (%v), want %.100s", c, err, page)
	case page == "" && (c != nil || !strings.Contains(fmt.Sprint(err), message)):
		h.t.Errorf("got %v (%v), want %q", c, err, message)
	}
	noSecretIn(h.t, fmt.Sprint(err))
	h.expectAllClosed()
	return err
}

// requests returns how often the page was asked for.
func (h *host) requests() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.asked["page.example"]
}

// expectAllClosed fails the test if a fetch has left a connection to the host.
func (h *host) expectAllClosed() {
	h.t.Helper()
	synctest.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	wantEqual(h.t, "connections to the host that are left", h.open, 0)
}

func (h *host) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case h.conns <- there:
	case <-h.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return here, nil
}

func (h *host) Accept() (net.Conn, error) {
	select {
	case conn := <-h.conns:
		return conn, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

func (h *host) Close() error {
	h.close()
	return nil
}

func (h *host) Addr() net.Addr { return new(net.TCPAddr) }

// Responses of hosts

func answers(contentType, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Type"] = nil // or it would be guessed
		if contentType != "" {
			w.Header().Set("Content-Type", contentType)
		}
		io.WriteString(w, body)
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

func redirects(to string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", to)
		w.WriteHeader(http.StatusFound)
	}
}

// hops redirects n times from any path to /hops-0, where the page is.
func hops(n int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		left := n
		if hop, ok := strings.CutPrefix(r.URL.Path, "/hops-"); ok {
			left, _ = strconv.Atoi(hop)
		}
		if left == 0 {
			answers(html, "<p>Mine.")(w, r)
			return
		}
		redirects(fmt.Sprintf("/hops-%d", left-1))(w, r)
	}
}

func encodes(encoding, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", encoding)
		answers(html, body)(w, r)
	}
}

func compressed(body string) http.HandlerFunc {
	var packed bytes.Buffer
	writer := gzip.NewWriter(&packed)
	io.WriteString(writer, body)
	writer.Close()
	return encodes("gzip", packed.String())
}

// bomb sends 1 MiB that unpack to 1 GiB: members are joined (RFC 1952).
func bomb(w http.ResponseWriter, r *http.Request) {
	mebibyte := compressed(strings.Repeat("\x00", 1<<20))
	for range 1 << 10 {
		mebibyte(w, r)
	}
}

// saysNothing accepts a request and never answers.
func saysNothing(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// beginsOnly sends only the beginning of a page.
func beginsOnly(w http.ResponseWriter, r *http.Request) {
	answers(html, "<!DOCTYPE html>")(w, r)
	w.(http.Flusher).Flush()
	saysNothing(w, r)
}

func endless(w http.ResponseWriter, r *http.Request) {
	answers(html, "<!DOCTYPE html>")(w, r)
	repeat(filler)(w)
}

// hijacks sends invalid HTTP and hangs up.
func hijacks(beginning string, rest func(io.Writer)) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		io.WriteString(conn, beginning)
		if rest != nil {
			rest(conn)
		}
	}
}

// repeat writes a text until nobody reads it any more.
func repeat(text string) func(io.Writer) {
	return func(w io.Writer) {
		for {
			if _, err := io.WriteString(w, text); err != nil {
				return
			}
		}
	}
}

// drip writes a byte a second until nobody reads them any more.
func drip(w io.Writer) {
	for {
		if _, err := io.WriteString(w, "x"); err != nil {
			return
		}
		time.Sleep(time.Second)
	}
}
