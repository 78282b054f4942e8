package integration

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"testing"
)

// site is a site block: a gate before a proxy.
type site struct {
	name, address, upstream string
	block                   string // of its maintenance directive
	mark                    string // header field of every response
	directives              string // further ones
}

func newSite(t *testing.T, name string, upstream *app) site {
	t.Helper()
	return site{name: name, address: freeAddress(t), upstream: upstream.address()}
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
	gate := fmt.Sprintf("maintenance %s %s", s.name, s.block)
	if s.mark != "" {
		return "route {\nheader " + s.mark + "\n" + gate + "\n}"
	}
	return gate
}

func (s site) url() string { return "http://" + s.address + "/" }

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
		response, err := visitors.Get(s.url())
		if err != nil {
			return false
		}
		defer response.Body.Close()
		return response.Header.Get("X-Config") == strconv.Itoa(want)
	})
}

// Visitors

// visitors come with a new connection for each request.
var visitors = &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}

// newKeepAliveClient returns a client that keeps to one connection, over
// HTTP/1.1 or else h2c.
func newKeepAliveClient(http1 bool) *http.Client {
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetHTTP1(http1)
	transport.Protocols.SetUnencryptedHTTP2(!http1)
	return &http.Client{Timeout: patience, Transport: transport}
}

// fetch gets a URL with a client and header fields, given as names and values.
func fetch(client *http.Client, url string, header ...string) (code int, err error) {
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	response, err := client.Do(r)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return response.StatusCode, err
}

// Ports

var ports = struct {
	mu   sync.Mutex
	next int
}{next: firstPort + rand.IntN(lastPort-firstPort)}

// Systems take the ports of outgoing connections from above this range, so
// that a port stays free while its Caddy is down.
const (
	firstPort = 20000
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

func isFree(address string) bool {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return false
	}
	return listener.Close() == nil
}
