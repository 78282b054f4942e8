package integration

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// app is an application behind Caddy that knows how many requests reached it.
type app struct {
	*httptest.Server
	requests atomic.Int64
}

func newApp(t *testing.T, handler http.HandlerFunc) *app {
	t.Helper()
	a := new(app)
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.requests.Add(1)
		handler(w, r)
	}))
	t.Cleanup(a.Close)
	return a
}

// address is where Caddy finds the app.
func (a *app) address() string { return a.Listener.Addr().String() }

func welcome(w http.ResponseWriter, _ *http.Request) {
	_, _ = io.WriteString(w, "Welcome.\n")
}

// site is a site block: a gate before a proxy.
type site struct {
	name, address, upstream string
	template                string // what its maintenance directive says, if that is not its name
	block                   string // of its maintenance directive
	mark                    string // header field of every response
	directives              string // further ones
}

func newSite(t *testing.T, name string, upstream *app) site {
	t.Helper()
	return site{name: name, address: freeAddress(t), upstream: upstream.address()}
}

// kind is a kind of site. What holds for a site that the config names holds for one whose name
// is made of each request.
type kind struct{ kind, name, template string }

var (
	literal = kind{kind: "literal", name: "shop"}
	tenant  = kind{"tenant", "acme.example", "{host}"}
)

// eachKind runs a test over both kinds of sites.
func eachKind(t *testing.T, test func(t *testing.T, k kind)) {
	t.Helper()
	t.Parallel()
	for _, k := range []kind{literal, tenant} {
		t.Run(k.kind, func(t *testing.T) {
			t.Parallel()
			test(t, k)
		})
	}
}

func (k kind) newSite(t *testing.T, upstream *app) site {
	t.Helper()
	s := newSite(t, k.name, upstream)
	if s.template = k.template; s.template != "" {
		s.address = ":" + freePort(t)
	}
	return s
}

// sites are sites of one Caddy.
type sites []site

// newSites returns a site of each kind.
func newSites(t *testing.T, upstream *app) sites {
	t.Helper()
	return sites{literal.newSite(t, upstream), tenant.newSite(t, upstream)}
}

func (l sites) expect(t *testing.T, want int) {
	t.Helper()
	for _, s := range l {
		s.expect(t, want)
	}
}

func (l sites) marked(config int) (marked sites) {
	for _, s := range l {
		marked = append(marked, s.marked(config))
	}
	return marked
}

func (l sites) awaitConfig(t *testing.T, want int) {
	t.Helper()
	for _, s := range l {
		s.awaitConfig(t, want)
	}
}

// expectFirst fails the test if the first visitors of a starting Caddy get another status.
func (l sites) expectFirst(t *testing.T, want int) {
	t.Helper()
	for _, s := range l {
		if got := s.first(t).code; got != want {
			t.Errorf("the first visitor of %s got %d, want %d", s.name, got, want)
		}
	}
}

func (l sites) expectNeighbors(t *testing.T) {
	t.Helper()
	for _, s := range l {
		s.expectNeighbor(t)
	}
}

// startSite runs a Caddy with one site before an app.
func startSite(t *testing.T, k kind, handler http.HandlerFunc) (*caddy, site) {
	t.Helper()
	upstream := newApp(t, handler) // which ends after Caddy
	c, s := newCaddy(t), k.newSite(t, upstream)
	c.start(c.caddyfile(s))
	return c, s
}

// marked returns the site with a header that tells by which config a response
// was made.
func (s site) marked(config int) site {
	s.mark = "X-Config " + strconv.Itoa(config)
	return s
}

// gate returns the maintenance directive, which a header field that the 503 is to have
// precedes in a route.
func (s site) gate() string {
	gate := fmt.Sprintf("maintenance %s %s", cmp.Or(s.template, s.name), s.block)
	if s.mark != "" {
		return "route {\nheader " + s.mark + "\n" + gate + "\n}"
	}
	return gate
}

func (s site) url() string { return "http://" + s.host() + "/" }

// host is what visitors ask for.
func (s site) host() string {
	if s.template == "" {
		return s.address
	}
	return s.name + s.address
}

// neighbor returns another site of the same template.
func (s site) neighbor() site {
	s.name = "neighbor.example"
	return s
}

// expectNeighbor fails the test if another site of the same template, if there is one, is not open.
func (s site) expectNeighbor(t *testing.T) {
	t.Helper()
	if s.template != "" {
		s.neighbor().expect(t, http.StatusOK)
	}
}

// visit returns the status that a visitor gets, 0 if there is no response.
func (s site) visit() int {
	code, _ := fetch(visitors, s.url())
	return code
}

// expect fails the test if a visitor gets another status.
func (s site) expect(t *testing.T, want int) {
	t.Helper()
	if got := s.visit(); got != want {
		t.Errorf("a visitor of %s got %d, want %d", s.name, got, want)
	}
}

// awaitConfig returns when responses are made by the config that the site was
// marked with. The server of the one before may answer a last connection.
func (s site) awaitConfig(t *testing.T, want int) {
	t.Helper()
	eventually(t, patience, fmt.Sprintf("config %d runs", want), func() bool {
		return ask(visitors, http.MethodGet, s.url(), nil).header.Get("X-Config") == strconv.Itoa(want)
	})
}

// first returns what the first visitor of a starting Caddy gets.
func (s site) first(t *testing.T) (got answer) {
	t.Helper()
	eventually(t, patience, s.name+" answers", func() bool {
		got = ask(visitors, http.MethodGet, s.url(), nil)
		return got.code != 0
	})
	return got
}

// open sends the beginning of a request, without its Host, on a connection of its own.
func (s site) open(t *testing.T, request string) net.Conn {
	t.Helper()
	conn, err := dial(t.Context(), "tcp", s.host())
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(patience))
		_, _ = io.WriteString(conn, s.addHost(request))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func (s site) addHost(request string) string {
	return strings.Replace(request, "\r\n", "\r\nHost: "+s.host()+"\r\n", 1)
}

// Visitors

// visitors come with a new connection for each request, and follow no redirect.
var visitors = &http.Client{
	Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// dial connects to a site. No name server knows a tenant.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	if host, port, err := net.SplitHostPort(address); err == nil && strings.HasSuffix(host, ".example") {
		address = "127.0.0.1:" + port
	}
	return new(net.Dialer).DialContext(ctx, network, address)
}

// newKeepAliveClient returns a client that keeps to one connection, over
// HTTP/1.1 or else h2c.
func newKeepAliveClient(http1 bool) *http.Client {
	transport := &http.Transport{Protocols: new(http.Protocols), DialContext: dial}
	transport.Protocols.SetHTTP1(http1)
	transport.Protocols.SetUnencryptedHTTP2(!http1)
	return &http.Client{Timeout: patience, Transport: transport}
}

// answer is what a client has got in the end.
type answer struct {
	code   int
	header http.Header
	body   string
	err    error
}

func answerOf(response *http.Response, err error) answer {
	if err != nil {
		return answer{err: err}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return answer{response.StatusCode, response.Header, string(body), err}
}

// ask sends a request with header fields, given as names and values.
func ask(client *http.Client, method, url string, body io.Reader, header ...string) answer {
	r, err := http.NewRequest(method, url, body)
	if err != nil {
		return answer{err: err}
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return answerOf(client.Do(r))
}

// fetch gets a URL.
func fetch(client *http.Client, url string, header ...string) (code int, err error) {
	got := ask(client, http.MethodGet, url, nil, header...)
	return got.code, got.err
}

// send gets a URL in the background.
func send(client *http.Client, url string) <-chan answer {
	result := make(chan answer, 1)
	go func() { result <- ask(client, http.MethodGet, url, nil) }()
	return result
}

func expectWelcome(t *testing.T, got answer) {
	t.Helper()
	if got.code != http.StatusOK || got.body != "Welcome.\n" || got.err != nil {
		t.Errorf("got %+v, want the app's welcome", got)
	}
}

// Ports

var ports = struct {
	mu   sync.Mutex
	next int
}{next: firstPort + rand.IntN(lastPort-firstPort)}

// Systems take the ports of outgoing connections from above this range, so
// that a port stays free while its Caddy is down. None begins with 2019, which stands for
// the admin endpoint in the documentation.
const (
	firstPort = 21000
	lastPort  = 32000
)

// freeAddress returns an address that nothing listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	return "127.0.0.1:" + freePort(t)
}

// freePort returns a port that nothing listens on and that is given out only
// once.
func freePort(t *testing.T) string {
	t.Helper()
	ports.mu.Lock()
	defer ports.mu.Unlock()
	for range lastPort - firstPort {
		if ports.next++; ports.next > lastPort {
			ports.next = firstPort
		}
		port := strconv.Itoa(ports.next)
		if isFree(":"+port) && isFree("127.0.0.1:"+port) {
			return port
		}
	}
	t.Fatal("no port is free")
	return ""
}

// listen takes an address.
func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener
}

func isFree(address string) bool {
	listener, err := net.Listen("tcp", address)
	return err == nil && listener.Close() == nil
}
