package maintenance

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// How a wait ends

// Time counts from when the request came, whatever is switched meanwhile.
func TestHoldEnds(t *testing.T) {
	off := func(h *Handler) { h.site.turnOff() }
	on := func(options string) func(*Handler) { return func(h *Handler) { h.site.turnOn(options) } }
	patch := func(options string) func(*Handler) { return func(h *Handler) { h.site.patch(options) } }
	until := func(after time.Duration) string {
		return fmt.Sprintf(`"until": %q`, time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Add(after).Format(time.RFC3339))
	}
	both := func(do ...func(*Handler)) func(*Handler) {
		return func(h *Handler) {
			for _, do := range do {
				do(h)
			}
		}
	}
	var leave context.CancelFunc
	var stop func()
	unload := func(*Handler) { stop() }
	type step struct {
		at time.Duration
		do func(*Handler)
	}
	for name, test := range map[string]struct {
		options      string
		writeTimeout time.Duration
		steps        []step
		want         string
	}{
		"not held":                  {`{}`, 0, nil, "503 300 after 0s"},
		"time is up":                {`{"hold": "3m"}`, 0, nil, "503 300 after 3m0s"},
		"opened":                    {`{"hold": "3m"}`, 0, []step{{time.Minute, off}}, "200 app after 1m0s"},
		"opened by the clock":       {`{"hold": "3m", ` + until(time.Minute) + `}`, 0, nil, "200 app after 1m0s"},
		"opened too late":           {`{"hold": "3m", "retry_after": "7s", ` + until(time.Hour) + `}`, 0, nil, "503 7 after 3m0s"},
		"end put off":               {`{"hold": "3m", ` + until(time.Minute) + `}`, 0, []step{{time.Second, patch(`{` + until(2*time.Minute) + `}`)}}, "200 app after 2m0s"},
		"cleared":                   {`{"hold": "3m"}`, 0, []step{{time.Minute, patch(`{"hold": null}`)}}, "503 300 after 1m0s"},
		"not given again":           {`{"hold": "3m"}`, 0, []step{{time.Minute, on(`{}`)}}, "503 300 after 1m0s"},
		"lengthened":                {`{"hold": "3m"}`, 0, []step{{time.Minute, patch(`{"hold": "4m"}`)}}, "503 300 after 4m0s"},
		"shortened":                 {`{"hold": "3m"}`, 0, []step{{time.Minute, patch(`{"hold": "2m"}`)}}, "503 300 after 2m0s"},
		"shortened to less":         {`{"hold": "3m"}`, 0, []step{{2 * time.Minute, patch(`{"hold": "1m"}`)}}, "503 300 after 2m0s"},
		"other options":             {`{"hold": "3m"}`, 0, []step{{time.Minute, patch(`{"message": "Soon."}`)}, {2 * time.Minute, off}}, "200 app after 2m0s"},
		"on again at once":          {`{"hold": "3m"}`, 0, []step{{time.Minute, both(off, on(`{"hold": "3m"}`))}}, "503 300 after 3m0s, or 200 app after 1m0s"},
		"client leaves":             {`{"hold": "3m"}`, 0, []step{{time.Minute, func(*Handler) { leave() }}}, "499  after 1m0s"},
		"config is unloaded":        {`{"hold": "3m"}`, 0, []step{{time.Minute, unload}}, "503 1 after 1m0s"},
		"was unloaded before":       {`{"hold": "3m"}`, 0, []step{{0, unload}}, "503 1 after 0s"},
		"unloaded and opened":       {`{"hold": "3m"}`, 0, []step{{time.Minute, both(unload, off)}}, "503 1 after 1m0s"},
		"write timeout":             {`{"hold": "3m"}`, time.Minute, nil, "503 300 after 30s"},
		"write timeout, long":       {`{"hold": "3m"}`, time.Hour, nil, "503 300 after 3m0s"},
		"write timeout, lengthened": {`{"hold": "10s"}`, time.Minute, []step{{time.Second, patch(`{"hold": "5m"}`)}}, "503 300 after 30s"},
	} {
		for _, body := range []string{"", "an order"} {
			synctest.Test(t, func(t *testing.T) {
				h := newClosedGate("shop", test.options)
				stopping := make(chan struct{})
				h.stopping, stop, h.writeTimeout = stopping, func() { close(stopping) }, test.writeTimeout
				ctx, cancel := context.WithCancel(t.Context())
				leave = cancel
				began := time.Now()
				go func() {
					for _, step := range test.steps {
						time.Sleep(time.Until(began.Add(step.at)))
						step.do(h)
					}
				}()
				if len(test.steps) > 0 && test.steps[0].at == 0 {
					synctest.Wait()
				}
				w := httptest.NewRecorder()
				err := serve(w, newRequest(httptest.NewRequestWithContext(ctx, http.MethodPost, "/", strings.NewReader(body))), appThatReads, h)
				got := fmt.Sprintf("%d %s after %s", w.Code, w.Header().Get("Retry-After"), time.Since(began))
				if w.Code == 200 {
					got = fmt.Sprintf("200 %s after %s", strings.TrimSuffix(w.Body.String(), body), time.Since(began))
				}
				if err != nil || !slices.Contains(strings.Split(test.want, ", or "), got) {
					t.Errorf("%s: got %s %v, want %s", name, got, err, test.want)
				}
				outcomes := [3]int64{h.site.requests[wasBlocked].Load(), h.site.requests[wasReleased].Load(), h.site.inFlight.Count()}
				if want := map[int][3]int64{200: {0, 1, 0}, 503: {1, 0, 0}}[w.Code]; outcomes != want || h.site.held.Load() != 0 {
					t.Errorf("%s: blocked, released and in flight are %d, want %d; %d are held", name, outcomes, want, h.site.held.Load())
				}
				cancel()
			})
		}
	}
}

// appThatReads answers with what it has got.
func appThatReads(w http.ResponseWriter, r *http.Request) error {
	body, err := io.ReadAll(r.Body)
	_, _ = fmt.Fprintf(w, "app%s", body)
	return err
}

// G1, G5: of those who are released, and held again at once, none slips in.
func TestNothingSlipsInWhereMaintenanceBeginsAgainAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newClosedGate("shop", `{"hold": "5m"}`)
		var drained, over atomic.Bool
		var visitors sync.WaitGroup
		for range 100 {
			visitors.Go(func() {
				for !over.Load() {
					w := httptest.NewRecorder()
					_ = serve(w, httptest.NewRequest(http.MethodGet, "/", nil), func(http.ResponseWriter, *http.Request) error {
						if drained.Load() {
							t.Error("a request reached the app of a drained site")
						}
						runtime.Gosched()
						return nil
					}, h)
					if w.Code != 200 {
						t.Errorf("got %d, want 200", w.Code)
					}
				}
			})
		}
		for range 300 {
			synctest.Wait()
			drained.Store(false)
			h.site.turnOff()
			h.site.turnOn(`{"hold": "5m"}`)
			if !h.site.awaitDrained(nil) {
				t.Error("the site is open")
			}
			drained.Store(true)
		}
		synctest.Wait()
		drained.Store(false)
		over.Store(true)
		h.site.turnOff()
		visitors.Wait()
	})
}

// Who is held

// G8: body and header count together, and so does what Go takes for each field.
func TestOnlySmallRequestsOfKnownLengthAreHeld(t *testing.T) {
	fields := func(n, length int) http.Header {
		header := make(http.Header)
		for i := range n {
			header.Set(fmt.Sprintf("X-%04d", i), strings.Repeat("x", length))
		}
		return header
	}
	for name, test := range map[string]struct {
		uri    string
		header http.Header
		body   int64
		held   bool
	}{
		"no body":              {"/", nil, 0, true},
		"the largest body":     {"/", nil, 64<<10 - 1, true},
		"a body too large":     {"/", nil, 64 << 10, false},
		"a huge body":          {"/", nil, 1 << 60, false},
		"unknown length":       {"/", nil, -1, false},
		"many small fields":    {"/", fields(249, 1), 0, true},
		"too many fields":      {"/", fields(250, 1), 0, false},
		"a field too often":    {"/", http.Header{"X": make([]string, 256)}, 0, false},
		"body and fields":      {"/", fields(2, 5<<10), 50 << 10, true},
		"too much of both":     {"/", fields(2, 5<<10), 58 << 10, false},
		"a path that is long":  {"/" + strings.Repeat("x", 64<<10), nil, 0, false},
		"a path and some body": {"/" + strings.Repeat("x", 32<<10), nil, 31 << 10, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			h := newClosedGate("shop", `{"hold": "5m"}`)
			r := httptest.NewRequest(http.MethodPost, test.uri, io.LimitReader(endless{}, test.body))
			r.Header, r.ContentLength = test.header, test.body
			w := httptest.NewRecorder()
			done := make(chan error)
			go func() { done <- serve(w, r, appThatReads, h) }()
			synctest.Wait()
			if held := h.site.heldNow() == 1; held != test.held {
				t.Errorf("%s: held is %t, want %t", name, held, test.held)
			}
			h.site.turnOff()
			if err := <-done; err != nil || (w.Code == 200) != test.held || test.held && int64(w.Body.Len()) != test.body+3 {
				t.Errorf("%s: got %d and %d bytes %v", name, w.Code, w.Body.Len(), err)
			}
		})
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

// Those who find no room leave none behind, and whoever is held stays so when the options
// change, though others come meanwhile.
//
// G8
func TestNoMoreThan1024AreHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newClosedGate("shop", `{"hold": "5m"}`)
		visit := func(n int) chan int {
			codes := make(chan int, n)
			for range n {
				go func() {
					w := httptest.NewRecorder()
					_ = serve(w, httptest.NewRequest(http.MethodGet, "/", nil), appThatReads, h)
					codes <- w.Code
				}()
			}
			return codes
		}
		for round := range 3 {
			held := visit(maxHeld)
			synctest.Wait()
			for range 2 {
				surplus := visit(100)
				synctest.Wait()
				if len(held) > 0 || len(surplus) != 100 || h.site.held.Load() != maxHeld {
					t.Fatalf("round %d: of 1024 %d are held no longer, of 100 more %d are not; the count is %d", round, len(held), len(surplus), h.site.held.Load())
				}
			}
			h.site.held.Add(1) // as one does who comes meanwhile
			h.site.patch(`{"message": "Soon."}`)
			synctest.Wait()
			h.site.held.Add(-1)
			if len(held) > 0 {
				t.Errorf("%d requests are held no longer", len(held))
			}
			h.site.turnOff()
			for range maxHeld {
				if got := <-held; got != 200 {
					t.Errorf("got %d, want 200", got)
				}
			}
			synctest.Wait()
			h.site.turnOn(`{"hold": "5m"}`)
		}
	})
}

// G8: one client cannot have much memory taken, whatever it sends.
func TestHeldRequestsTakeLittleMemory(t *testing.T) {
	const n, limit = maxHeld / 8, 150 << 20 / 8
	base := "POST / HTTP/1.1\r\nAccept: text/html\r\n"
	var fields strings.Builder
	for i := range 240 {
		fmt.Fprintf(&fields, "%x:\r\n", 4096+i) // as small as they can be
	}
	for name, request := range map[string]string{
		"small fields": base + "Content-Length: 0\r\n" + fields.String() + "\r\n",
		"a large body": base + "Content-Length: 62000\r\n\r\n" + strings.Repeat("x", 62000),
		"long fields":  base + "Content-Length: 45000\r\nA: " + strings.Repeat("x", 15000) + "\r\n\r\n" + strings.Repeat("x", 45000),
	} {
		t.Run(name, func(t *testing.T) {
			s := startInFrontOf(t, newWitness(t), "")
			s.put("shop", `{"hold": "5m"}`)
			heap := func() uint64 {
				runtime.GC()
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return m.HeapAlloc
			}
			before := heap()
			for range n {
				s.dial(request)
			}
			s.awaitHeld(n)
			if took := int64(heap()) - int64(before); took > limit {
				t.Errorf("%d held requests take %d KiB, want at most %d", n, took>>10, limit>>10)
			}
		})
	}
}

// A request is held with its body, which is read once, however often the wait begins again.
func TestBodyIsReadOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newClosedGate("shop", `{"hold": "5m"}`)
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("an order"))
		w, done := httptest.NewRecorder(), make(chan error)
		go func() { done <- serve(w, r, appThatReads, h) }()
		synctest.Wait()
		body := r.Body
		for range 3 {
			h.site.patch(`{"message": "Soon."}`)
			synctest.Wait()
			if r.Body != body {
				t.Error("the body was read again")
			}
		}
		h.site.turnOff()
		if err := <-done; err != nil || w.Body.String() != "appan order" {
			t.Errorf("got %q %v", w.Body, err)
		}
	})
}

// What is released, and connections

func TestReleasedRequestArrivesUnchanged(t *testing.T) {
	for name, test := range map[string]struct{ method, body string }{
		"GET":          {"GET", ""},
		"DELETE":       {"DELETE", ""},
		"POST":         {"POST", "a\x00b\r\n\xff"},
		"empty POST":   {"POST", ""},
		"GET and body": {"GET", "what for?"},
	} {
		inMemory(t, &http.Server{}, func(t *testing.T, s *memoryServer) {
			seen := make(chan string, 1)
			s.app = func(w http.ResponseWriter, r *http.Request) error {
				dump, err := httputil.DumpRequest(r, true)
				r.Body = io.NopCloser(strings.NewReader(test.body))
				replacer := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
				seen <- fmt.Sprintf("%s %d %v %v %s", dump, r.ContentLength, r.Body == http.NoBody, err, replacer.ReplaceAll(
					"{http.request.method} {http.request.orig_uri} {http.request.uri} {http.request.header.X-Twice} {http.request.body} {http.request.remote.host}", ""))
				return nil
			}
			for i, client := range s.clients {
				send := func() {
					request, _ := http.NewRequestWithContext(t.Context(), test.method, "http://shop/a%2Fb//c?d=%20&d=e;f", strings.NewReader(test.body))
					request.Header = http.Header{"X-Twice": {"one", "two"}, "Accept": {"text/html"}, "Cookie": {"a=1; b=2"}}
					go roundTrip(client, request)
					synctest.Wait()
				}
				s.gate.site.turnOff()
				send()
				want := <-seen
				s.gate.site.turnOn(`{"hold": "5m"}`)
				send()
				if len(seen) > 0 {
					t.Error("it was not held")
				}
				s.gate.site.turnOff()
				if got := <-seen; got != want || !strings.Contains(got, test.method+" /a%2Fb//c?d=%20&d=e;f ") {
					t.Errorf("%s HTTP/%d got\n%s\nwant\n%s", name, i+1, got, want)
				}
			}
		})
	}
}

// A server's time limits end no wait too early, and none too late for an answer.
func TestServerTimeouts(t *testing.T) {
	for name, test := range map[string]struct {
		server *http.Server
		want   int
	}{
		"read":  {&http.Server{ReadTimeout: time.Second}, 200},
		"write": {&http.Server{WriteTimeout: 3 * time.Minute}, 503},
	} {
		inMemory(t, test.server, func(t *testing.T, s *memoryServer) {
			s.gate.writeTimeout = test.server.WriteTimeout
			answers := s.visitAll(t.Context())
			time.Sleep(2 * time.Minute)
			s.gate.site.turnOff()
			for range holdVisits {
				if got := answers.next(); got.code != test.want || got.err != nil {
					t.Errorf("%s: got %d %v, want %d", name, got.code, got.err, test.want)
				}
			}
		})
	}
	// And Caddy says which they are.
	s := prepare(t)
	s.options = "servers {\nprotocols h1 h2c\ntimeouts {\nwrite 200ms\n}\n}"
	s.reload("maintenance shop")
	s.put("shop", `{"hold": "5m"}`)
	eventually(t, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if got := ask(ctx, client, s.url); got.code != 503 {
			return fmt.Errorf("got %d %v, want 503", got.code, got.err)
		}
		return nil
	})
}

func TestClientThatLeavesIsForgotten(t *testing.T) {
	inMemory(t, &http.Server{}, func(t *testing.T, s *memoryServer) {
		ctx, leave := context.WithCancel(t.Context())
		answers := s.visitAll(ctx)
		synctest.Wait()
		if n := s.gate.site.heldNow(); n != 4 {
			t.Errorf("%d are held, want 4", n)
		}
		leave()
		synctest.Wait()
		if n := s.gate.site.heldNow(); n != 0 || len(answers) != 4 {
			t.Errorf("%d are held, and %d have an answer", n, len(answers))
		}
		s.app = func(http.ResponseWriter, *http.Request) error {
			t.Error("a request of a client that has left reached the app")
			return nil
		}
		s.gate.site.turnOff()
		synctest.Wait()
	})
}

// A body that is not here yet keeps nobody from the app when the site is open, however
// long it takes, nor anybody held when the wait is over. A connection whose request was
// given up on does not take the rest for another one.
func TestHalfABody(t *testing.T) {
	const rest = "the rest!GET /next HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n"
	for name, test := range map[string]struct {
		do   func(s *memoryServer)
		want int
	}{
		"opened":          {func(s *memoryServer) { s.gate.site.turnOff() }, 200},
		"opened long ago": {func(s *memoryServer) { s.gate.site.turnOff(); time.Sleep(time.Hour) }, 200},
		"time is up":      {func(*memoryServer) { time.Sleep(time.Hour) }, 503},
		"cleared":         {func(s *memoryServer) { s.gate.site.patch(`{"hold": null}`) }, 503},
		"unloaded":        {func(s *memoryServer) { close(s.stopping) }, 503},
	} {
		inMemory(t, &http.Server{}, func(t *testing.T, s *memoryServer) {
			answer := make(visits, 1)
			half := sendHalf(t, s.clients[1], "http://shop", answer) // HTTP/2
			conn := s.dial()
			_, _ = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: shop\r\nExpect: 100-continue\r\nContent-Length: 17\r\n\r\n")
			reader := bufio.NewReader(conn)
			if line, err := reader.ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 100 ") {
				t.Fatalf("%s: got %q %v, want to be told to continue", name, line, err)
			}
			_, _ = reader.ReadString('\n')
			_, _ = io.WriteString(conn, "half of ")
			synctest.Wait()
			if n := s.gate.site.heldNow(); n != 2 {
				t.Errorf("%s: %d are held, want 2", name, n)
			}
			test.do(s)
			synctest.Wait()
			if n := s.gate.site.heldNow(); n != 0 && test.want == 503 {
				t.Errorf("%s: %d are held, want none", name, n)
			}
			go func() {
				_, _ = io.WriteString(conn, rest)
				_, _ = io.WriteString(half, "the rest!")
				half.Close()
			}()
			response, err := http.ReadResponse(reader, nil)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(response.Body)
			if app := string(body) == "apphalf of the rest!"; err != nil || response.StatusCode != test.want || app != (test.want == 200) {
				t.Errorf("%s: got %d %q %v, want %d", name, response.StatusCode, body, err, test.want)
			}
			if response.Close != (test.want == 503) {
				t.Errorf("%s: the connection is to be closed: %t", name, response.Close)
			}
			next, err := io.ReadAll(reader)
			if app := strings.HasPrefix(string(next), "HTTP/1.1 200 "); app == response.Close {
				t.Errorf("%s: on the same connection came %q %v", name, next, err)
			}
			if got := answer.next(); got.code != test.want {
				t.Errorf("%s HTTP/2: got %d %v, want %d", name, got.code, got.err, test.want)
			}
		})
	}
}

// The server has begun to watch the connection when the last byte comes, and is not to
// take the end of the wait for that of its client: the next request would get that.
func TestConnectionIsFineAfterABodyThatEndsWithTheWait(t *testing.T) {
	inMemory(t, &http.Server{}, func(t *testing.T, s *memoryServer) {
		s.app = func(w http.ResponseWriter, r *http.Request) error { return r.Context().Err() }
		for range 300 {
			s.gate.site.turnOn(`{"hold": "5m"}`)
			conn := s.dial()
			reader := bufio.NewReader(conn)
			go func() {
				time.Sleep(5 * time.Minute)
				_, _ = io.WriteString(conn, "x")
			}()
			_, _ = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 1\r\n\r\n")
			first, err := http.ReadResponse(reader, nil)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, first.Body)
			if !first.Close {
				s.gate.site.turnOff()
				go io.WriteString(conn, "GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
				if next, err := http.ReadResponse(reader, nil); err != nil || next.StatusCode != 200 {
					t.Errorf("the next request got %v %v", next, err)
				}
			}
			conn.Close()
		}
	})
}

// Through the front door

// G1
func TestHeldRequestsReachTheAppOnceWhenMaintenanceEnds(t *testing.T) {
	const n = 100
	app := newWitness(t)
	s := startInFrontOf(t, app, "")
	s.put("shop", `{"hold": "5m"}`)
	answers := s.hold(n)
	app.expect(t, 0)
	s.delete("shop")
	for range n {
		answers.expectApp(t)
	}
	app.expect(t, n)
	s.awaitHeld(0)
}

// G1
func TestReloadEndsWhatTheOldConfigHolds(t *testing.T) {
	const n = 8
	app := newWitness(t)
	s := startInFrontOf(t, app, "")
	s.put("shop", `{"hold": "5m"}`)
	answers := s.hold(n)
	slow := s.halfBodies(n)
	s.awaitHeld(2 * n)

	s.reload("header X-Config new\n" + app.directives(""))
	for range n {
		answers.expectPage(t, "1")
		slow.expectPage(t, "1")
	}
	s.awaitHeld(0)
	for _, client := range holdClients {
		client.CloseIdleConnections() // to the server that has shut down
	}
	answers = s.hold(n) // the new config holds its own
	app.expect(t, 0)
	s.delete("shop")
	for range n {
		if got := answers.expectApp(t); got.header.Get("X-Config") != "new" {
			t.Error("a held request was released through a config that had been unloaded")
		}
	}
}

// Harness

// memoryServer is a gate of a site that is on, and holds, behind a server whose
// connections are in memory, and so have the time of a test.
type memoryServer struct {
	gate     *Handler
	app      caddyhttp.HandlerFunc
	stopping chan struct{}
	conns    chan net.Conn
	clients  [2]*http.Client // as holdClients
}

func inMemory(t *testing.T, server *http.Server, test func(t *testing.T, s *memoryServer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &memoryServer{newClosedGate("shop", `{"hold": "5m"}`), appThatReads, make(chan struct{}), make(chan net.Conn), [2]*http.Client{}}
		s.gate.stopping = s.stopping
		server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := serve(w, newRequest(r), s.app, s.gate); err != nil {
				w.WriteHeader(http.StatusBadGateway)
			}
		})
		server.Protocols = new(http.Protocols)
		server.Protocols.SetHTTP1(true)
		server.Protocols.SetUnencryptedHTTP2(true)
		go server.Serve(s)
		for i := range s.clients {
			s.clients[i] = newHoldClient(i == 1)
			s.clients[i].Timeout = 0
			s.clients[i].Transport.(*http.Transport).DialContext = func(context.Context, string, string) (net.Conn, error) { return s.dial(), nil }
			defer s.clients[i].CloseIdleConnections()
		}
		defer server.Close()
		test(t, s)
	})
}

func (s *memoryServer) Accept() (net.Conn, error) {
	if conn, ok := <-s.conns; ok {
		return conn, nil
	}
	return nil, net.ErrClosed
}

func (s *memoryServer) Close() error   { close(s.conns); return nil }
func (s *memoryServer) Addr() net.Addr { return &net.TCPAddr{} }

func (s *memoryServer) dial() net.Conn {
	here, there := net.Pipe()
	s.conns <- there
	return here
}

// visitAll sends one request of each kind.
func (s *memoryServer) visitAll(ctx context.Context) visits {
	answers := make(visits, len(holdVisits))
	for i := range holdVisits {
		go func() { answers <- visit(ctx, s.clients[i%2], "http://shop", i) }()
	}
	return answers
}

// witness is an app that counts what has reached it, and answers with it.
type witness struct {
	*httptest.Server
	arrived atomic.Int64
}

func newWitness(t *testing.T) *witness {
	t.Helper()
	w := new(witness)
	w.Server = httptest.NewServer(http.HandlerFunc(func(writer http.ResponseWriter, r *http.Request) {
		w.arrived.Add(1)
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(writer, "%s %s %s", r.Method, r.RequestURI, body)
	}))
	t.Cleanup(w.Close)
	return w
}

// expect fails the test if another number of requests has reached the app.
func (w *witness) expect(t *testing.T, n int64) {
	t.Helper()
	if got := w.arrived.Load(); got != n {
		t.Errorf("%d requests have reached the app, want %d", got, n)
	}
}

// directives are those of a site in front of the app.
func (w *witness) directives(gate string) string {
	if gate == "" {
		gate = "maintenance shop"
	}
	return gate + "\nhandle {\nreverse_proxy " + w.Listener.Addr().String() + " {\ntransport http {\ndial_timeout 1m\n}\n}\n}"
}

func startInFrontOf(t *testing.T, app *witness, gate string) *server {
	t.Helper()
	s := prepare(t)
	s.options = "servers {\nprotocols h1 h2c\n}"
	s.reload(app.directives(gate))
	return s
}

// awaitHeld returns when so many requests are held.
func (s *server) awaitHeld(n int) {
	s.t.Helper()
	eventually(s.t, func() error {
		if got := s.status("shop")["held"]; got != float64(n) {
			return fmt.Errorf("held is %v, want %d", got, n)
		}
		return nil
	})
}

// holdClients speak HTTP/1.1 and HTTP/2.
var holdClients = [2]*http.Client{newHoldClient(false), newHoldClient(true)}

func newHoldClient(http2 bool) *http.Client {
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetHTTP1(!http2)
	transport.Protocols.SetUnencryptedHTTP2(http2)
	transport.MaxIdleConnsPerHost = 1000
	transport.IdleConnTimeout = time.Second
	return &http.Client{Timeout: time.Minute, Transport: transport}
}

// visited is what a visitor has got.
type visited struct {
	code   int
	header http.Header
	body   string
	want   string // what the app answers
	err    error
}

// holdVisits are the kinds of requests that visit sends.
var holdVisits = []string{"GET HTTP/1", "GET HTTP/2", "POST HTTP/1", "POST HTTP/2"}

// visit sends a request that is told from others by its number.
func visit(ctx context.Context, client *http.Client, url string, i int) visited {
	method, body := http.MethodGet, ""
	if i%4 >= 2 {
		method, body = http.MethodPost, fmt.Sprintf("order %d", i)
	}
	request, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("%s/%d", url, i), strings.NewReader(body))
	if err != nil {
		return visited{err: err}
	}
	got := roundTrip(client, request)
	got.want = fmt.Sprintf("%s /%d %s", method, i, body)
	return got
}

func roundTrip(client *http.Client, request *http.Request) visited {
	response, err := client.Do(request)
	if err != nil {
		return visited{err: err}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return visited{code: response.StatusCode, header: response.Header, body: string(body), err: err}
}

// visits are the answers to requests under way.
type visits chan visited

// hold has requests of all kinds held, and no others. They do not come all at once:
// servers limit the time that a connection takes to begin.
func (s *server) hold(n int) visits {
	s.t.Helper()
	answers := make(visits, n)
	for i := range n {
		go func() { answers <- visit(s.t.Context(), holdClients[i%2], s.url, i) }()
		if i%50 == 49 {
			s.awaitHeld(i + 1)
		}
	}
	s.awaitHeld(n)
	return answers
}

func (v visits) next() visited {
	select {
	case got := <-v:
		return got
	case <-time.After(20 * time.Second):
		return visited{err: errors.New("no answer")}
	}
}

// expectApp fails the test if the next answer is not the app's.
func (v visits) expectApp(t *testing.T) visited {
	t.Helper()
	got := v.next()
	if got.code != 200 || got.body != got.want {
		t.Errorf("got %d %.100q %v, want %q of the app", got.code, got.body, got.err, got.want)
	}
	return got
}

// expectPage fails the test if the next answer is not the page.
func (v visits) expectPage(t *testing.T, retryAfter string) {
	t.Helper()
	got := v.next()
	if got.code != 503 || got.header.Get("Retry-After") != retryAfter || !strings.Contains(got.body, "Down for maintenance") {
		t.Errorf("got %d, Retry-After %q, %.100q %v, want the page and Retry-After %s", got.code, got.header.Get("Retry-After"), got.body, got.err, retryAfter)
	}
}

// dial sends a request, or a part of it, as it is but for its Host.
func (s *server) dial(request string) net.Conn {
	s.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err == nil {
		_, err = io.WriteString(conn, strings.Replace(request, "\r\n", "\r\nHost: "+strings.TrimPrefix(s.url, "http://")+"\r\n", 1))
	}
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(20 * time.Second))
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return conn
}

// halfBodies sends requests of which half of a small body comes, and no more.
func (s *server) halfBodies(n int) visits {
	answers := make(visits, n)
	for i := range n {
		sendHalf(s.t, holdClients[i%2], s.url, answers)
	}
	return answers
}

// sendHalf sends a request with half of its body, and returns where the rest is to go.
func sendHalf(t *testing.T, client *http.Client, url string, answers visits) (rest *io.PipeWriter) {
	t.Helper()
	body, rest := io.Pipe()
	t.Cleanup(func() { rest.Close() })
	go io.WriteString(rest, "half of ")
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/half", body)
	if err != nil {
		t.Fatal(err)
	}
	request.ContentLength = 17
	go func() { answers <- roundTrip(client, request) }()
	return rest
}
