package integration

import (
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// G1, G5
func TestSwitchHoldsFromItsAnswerOn(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		h := newHammer(t, k)
		h.run(func(int) {})
		if n := h.errors.Load(); n > 0 {
			t.Errorf("%d requests got no response", n)
		}
	})
}

// G1, G5
func TestSwitchHoldsFromItsAnswerOnDuringReloads(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		h := newHammer(t, k)
		h.run(func(n int) {
			if err := h.caddy.load(h.config(n)); err != nil {
				t.Error(err)
			}
		})
		// A server that a reload shuts down may close a connection under a request.
		t.Logf("%d requests got no response", h.errors.Load())
	})
}

// hammer is a site under load.
type hammer struct {
	t     *testing.T
	caddy *caddy
	site  site

	// phase counts the phases of the site; see the constants. Only requests
	// that begin and end in the same one are judged.
	phase   atomic.Int64
	judged  atomic.Int64
	errors  atomic.Int64
	drained atomic.Bool // nothing is in flight, it was said
}

// What phase modulo phases says. A phase ends before the switch is sent, and
// the next but one begins when it has been answered.
const (
	isOff = iota
	turningOn
	isOn
	turningOff
	phases
)

const (
	cycles      = 40 // each of them meets all connections with a request under way
	connections = 32 // half of them HTTP/1.1, half h2c
	phaseHeader = "X-Phase"
)

func newHammer(t *testing.T, k kind) *hammer {
	h := &hammer{t: t}
	upstream := newApp(t, h.serveApp)
	h.caddy = newCaddy(t)
	h.caddy.options = "servers {\n protocols h1 h2c\n}"
	h.site = k.newSite(t, upstream)
	h.caddy.start(h.config(0))
	return h
}

func (h *hammer) config(n int) string {
	return h.caddy.caddyfile(h.site.marked(n))
}

// run turns the site on and off again and again under load, each time with a
// disturbance while it is turned on or, in turns, off.
func (h *hammer) run(disturb func(n int)) {
	var clients sync.WaitGroup
	done := make(chan struct{})
	for i := range connections {
		clients.Go(func() { h.client(i%2 == 0, done) })
	}
	if h.site.template != "" {
		clients.Go(func() { h.neighbor(done) })
	}
	defer clients.Wait()
	defer close(done)

	for n := range cycles {
		h.cycle(n+1, disturb)
	}
}

func (h *hammer) cycle(n int, disturb func(n int)) {
	h.t.Helper()
	var disturbance sync.WaitGroup
	defer disturbance.Wait()
	for i, method := range []string{http.MethodPut, http.MethodDelete} {
		if i == n%2 {
			disturbance.Go(func() { disturb(n) })
		}
		h.turn(method)
	}
}

// turn switches the site and stays in the phase that follows until enough
// requests have been judged.
func (h *hammer) turn(method string) {
	h.t.Helper()
	h.drained.Store(false)
	h.phase.Add(1)
	h.caddy.must(method, h.site.name, "")
	h.phase.Add(1)
	enough := h.judged.Load() + connections
	if method == http.MethodPut {
		h.drained.Store(h.caddy.must(http.MethodGet, h.site.name+"?wait=20s", "").InFlight == 0)
	}
	eventually(h.t, patience, "enough requests have been answered", func() bool {
		return h.judged.Load() >= enough
	})
}

// client sends requests on one connection, as fast as they are answered.
func (h *hammer) client(http1 bool, done <-chan struct{}) {
	client := newKeepAliveClient(http1)
	defer client.CloseIdleConnections()
	repeat(done, func() {
		before := h.phase.Load()
		code, err := fetch(client, h.site.url(), phaseHeader, strconv.FormatInt(before, 10))
		switch {
		case err != nil:
			h.errors.Add(1)
		case before == h.phase.Load():
			h.judge(before, code)
		}
	})
}

// neighbor sends requests to another site of the template, which is open all the time.
func (h *hammer) neighbor(done <-chan struct{}) {
	client := newKeepAliveClient(true)
	defer client.CloseIdleConnections()
	repeat(done, func() {
		time.Sleep(2 * time.Millisecond) // leaves others something of the machine
		if code, err := fetch(client, h.site.neighbor().url()); err == nil && code != http.StatusOK {
			h.t.Errorf("a visitor of another tenant got %d", code)
		}
	})
}

// judge checks the answer to a request that lies within a phase.
func (h *hammer) judge(phase int64, code int) {
	want := http.StatusOK
	switch phase % phases {
	case isOn:
		want = http.StatusServiceUnavailable
	case turningOn, turningOff:
		return
	}
	h.judged.Add(1)
	if code != want {
		h.t.Errorf("phase %d: a visitor got %d, want %d", phase, code, want)
	}
}

// serveApp checks that no request that was sent after the site was turned on
// arrives before it is turned off, and none at all once it is drained.
func (h *hammer) serveApp(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.Host, "neighbor.") {
		welcome(w, r)
		return
	}
	phase, err := strconv.ParseInt(r.Header.Get(phaseHeader), 10, 64)
	if err != nil {
		h.t.Error(err)
	}
	if phase%phases == isOn && phase == h.phase.Load() {
		h.t.Errorf("phase %d: a request reached the app", phase)
	}
	if h.drained.Load() && !abandoned(r) {
		h.t.Errorf("phase %d: a request of phase %d reached the app of a drained site", h.phase.Load(), phase)
	}
	welcome(w, r)
}

// abandoned reports whether Caddy no longer waits for the answer: its client had
// gone, as happens when a reload closes the connection under a request that is
// just arriving. The app may come to such a request late.
func abandoned(r *http.Request) bool {
	select {
	case <-r.Context().Done():
		return true
	case <-time.After(patience):
		return false
	}
}
