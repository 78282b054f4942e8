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
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The end of a maintenance

// G1
func TestHeldRequestsReachTheAppOnceWhenMaintenanceEnds(t *testing.T) {
	const n = 500
	for round := 1; ; round++ {
		app := newWitness(t)
		s := startInFrontOf(t, app, "")
		s.put("shop", `{"hold": "5m"}`)
		answers := s.hold(n)
		app.expect(t) // nothing yet

		began := time.Now()
		s.delete("shop")
		answered := time.Now()
		for range n {
			answers.expectApp(t)
		}
		arrivals := app.arrivals()
		if len(arrivals) != n {
			t.Errorf("%d requests reached the app, want %d", len(arrivals), n)
		}
		first, last := arrivals[0].at, arrivals[len(arrivals)-1].at
		t.Logf("of %d held requests the first reached the app %s and the last %s after the switch was answered, which took %s",
			n, first.Sub(answered), last.Sub(answered), answered.Sub(began))
		if first.Before(began) {
			t.Errorf("the first reached the app %s before the switch", began.Sub(first))
		}
		s.awaitHeld(0)
		switch late := first.Sub(answered) > 50*time.Millisecond; {
		case !late:
			return
		case round == 10: // the machine cannot have been busy each time
			t.Fatal("the first was never released within 50ms")
		}
	}
}

// The maintenance ends when its time has come, not when somebody looks: with
// seldom syncs that is who logs it, once a second.
func TestEndByItselfReleasesAtOnce(t *testing.T) {
	app := newWitness(t)
	s := prepare(t)
	s.options = "maintenance {\nsync_interval 1m\n}"
	s.reload(app.directives(""))
	for round := range 10 {
		until := time.Now().Add(time.Second)
		s.put("shop", fmt.Sprintf(`{"hold": "5m", "until": %q}`, until.Format(time.RFC3339Nano)))
		s.crowd(1).expectApp(t)
		arrivals := app.arrivals()
		if len(arrivals) != round+1 {
			t.Fatalf("%d requests reached the app, want %d", len(arrivals), round+1)
		}
		late := arrivals[round].at.Sub(until)
		if late < 0 || late > 5*time.Second {
			t.Errorf("reached the app %s after the end", late)
		}
		if s.countLogged(`"maintenance disabled"`, `"source":"until"`) <= round {
			t.Logf("in round %d a request reached the app %s after the end, before that was logged", round, late)
			return
		}
	}
	t.Error("it was always logged that the maintenance had ended when the request reached the app")
}

// A maintenance that begins again

// G1, G5
func TestNothingSlipsInWhereMaintenanceBeginsAgainAtOnce(t *testing.T) {
	app := newWitness(t)
	var drained atomic.Bool
	app.onArrival = func() {
		if drained.Load() {
			t.Error("a request reached the app of a drained site")
		}
	}
	s := startInFrontOf(t, app, "")
	s.put("shop", `{"hold": "5m"}`)
	for _, crowd := range []struct{ visitors, rounds int }{{400, 10}, {40, 90}} {
		leave := s.keepVisiting(crowd.visitors)
		for range crowd.rounds {
			s.awaitHeld(crowd.visitors)
			drained.Store(false)
			s.delete("shop")
			inFlight := int(s.put("shop", `{"hold": "5m"}`)["in_flight"].(float64))
			before := len(app.arrivals())
			if got := s.status("shop?wait=30s")["in_flight"]; got != 0.0 {
				t.Fatalf("in_flight is %v after waiting", got)
			}
			drained.Store(true)
			if after := len(app.arrivals()); after-before > inFlight {
				t.Errorf("%d requests reached the app after the switch, and %d were in flight", after-before, inFlight)
			}
		}
		s.awaitHeld(crowd.visitors)
		drained.Store(false)
		leave()
		s.put("shop", `{"hold": "5m"}`)
	}
}

// keepVisiting has visitors come again and again; leave opens the site and
// returns when all have left.
func (s *server) keepVisiting(n int) (leave func()) {
	done := make(chan struct{})
	var visitors sync.WaitGroup
	for i := range n {
		visitors.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if got := visit(s.t.Context(), holdClients[i%2], s.url, i); got.code != 200 {
					s.t.Errorf("got %d %v, want 200", got.code, got.err)
				}
			}
		})
		if i%50 == 49 {
			s.awaitHeld(i + 1)
		}
	}
	return func() {
		close(done)
		s.delete("shop")
		visitors.Wait()
	}
}

// What is held

func TestClientThatLeavesIsForgotten(t *testing.T) {
	for i, name := range holdVisits {
		t.Run(name, func(t *testing.T) {
			app := newWitness(t)
			s := startInFrontOf(t, app, "")
			s.put("shop", `{"hold": "5m"}`)
			ctx, leave := context.WithCancel(t.Context())
			answers := make(chan visited, 1)
			go func() { answers <- visit(ctx, holdClients[i%2], s.url, i) }()
			s.awaitHeld(1)
			leave()
			s.awaitHeld(0)
			s.holdsFor(100*time.Millisecond, 0)
			if got := <-answers; got.err == nil {
				t.Errorf("got %d", got.code)
			}
			s.delete("shop")
			s.put("shop", "")
			s.status("shop?wait=10s")
			app.expect(t)
		})
	}
}

// G8: body and header count together, and so does what Go takes for each field.
func TestOnlySmallRequestsOfKnownLengthAreHeld(t *testing.T) {
	body := func(n int) io.Reader { return strings.NewReader(strings.Repeat("x", n)) }
	fields := func(n, length int) http.Header {
		header := make(http.Header)
		for i := range n {
			header.Set(fmt.Sprintf("X-%04d", i), strings.Repeat("x", length))
		}
		return header
	}
	for _, test := range []struct {
		name   string
		header http.Header
		body   io.Reader
		held   bool
	}{
		{"a body of 60 KiB", nil, body(60 << 10), true},
		{"a body of 64 KiB", nil, body(64 << 10), false},
		{"a body of unknown length", nil, struct{ io.Reader }{body(1)}, false},
		{"200 small fields", fields(200, 1), body(0), true},
		{"250 small fields", fields(250, 1), body(0), false},
		{"a body of 50 KiB and fields of 10 KiB", fields(2, 5<<10), body(50 << 10), true},
		{"a body of 58 KiB and fields of 10 KiB", fields(2, 5<<10), body(58 << 10), false},
	} {
		for i, client := range holdClients {
			t.Run(fmt.Sprintf("%s HTTP/%d", test.name, i+1), func(t *testing.T) {
				app := newWitness(t)
				s := startInFrontOf(t, app, "")
				s.put("shop", `{"hold": "5m"}`)
				if seeker, ok := test.body.(io.Seeker); ok {
					_, _ = seeker.Seek(0, io.SeekStart)
				}
				answers := make(visits, 1)
				go func() {
					request, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+"/upload", test.body)
					if test.header != nil {
						request.Header = test.header
					}
					answers <- roundTrip(client, request)
				}()
				if !test.held {
					answers.expectPage(t, "300")
					s.awaitHeld(0)
					return
				}
				s.awaitHeld(1)
				s.delete("shop")
				if got := <-answers; got.code != 200 || !strings.HasPrefix(got.body, "POST /upload ") || strings.Trim(got.body[13:], "x") != "" {
					t.Errorf("got %d %.100q %v", got.code, got.body, got.err)
				}
			})
		}
	}
}

// G8: one client cannot have much memory taken, whatever it sends.
func TestHeldRequestsTakeLittleMemory(t *testing.T) {
	base := "POST / HTTP/1.1\r\nAccept: text/html\r\n"
	for name, request := range map[string]string{
		"small fields": base + "Content-Length: 0\r\n" + manyFields(240) + "\r\n",
		"a large body": base + "Content-Length: 62000\r\n\r\n" + strings.Repeat("x", 62000),
		"long fields":  base + "Content-Length: 45000\r\nA: " + strings.Repeat("x", 15000) + "\r\n\r\n" + strings.Repeat("x", 45000),
		"nothing":      "GET / HTTP/1.1\r\n\r\n",
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
			for range maxHeld {
				s.dial(request)
			}
			s.awaitHeld(maxHeld)
			took := (heap() - before) >> 20
			t.Logf("%d held requests take %d MiB", maxHeld, took)
			if took > 150 {
				t.Errorf("they take %d MiB, want at most 150", took)
			}
		})
	}
}

// manyFields are n header fields, as small as they can be.
func manyFields(n int) string {
	var fields strings.Builder
	for i := range n {
		fmt.Fprintf(&fields, "%x:\r\n", 4096+i)
	}
	return fields.String()
}

// G8
func TestNoMoreThan1024AreHeld(t *testing.T) {
	const limit, surplus = 1024, 100
	app := newWitness(t)
	s := startInFrontOf(t, app, "")
	s.put("shop", `{"hold": "5m"}`)
	held, others := s.hold(limit), s.crowd(surplus)
	for range surplus {
		others.expectPage(t, "300")
	}
	s.awaitHeld(limit)
	app.expect(t)
	s.delete("shop")
	for range limit {
		held.expectApp(t)
	}
}

// Whoever is held stays so when the options change, and makes no room for others.
func TestChangedOptionsCostNobodyHisPlace(t *testing.T) {
	const limit = 1024
	app := newWitness(t)
	s := startInFrontOf(t, app, "")
	s.put("shop", `{"hold": "5m"}`)
	held := s.hold(limit)
	ctx, leave := context.WithCancel(t.Context())
	var newcomers sync.WaitGroup
	for i := range 4 {
		newcomers.Go(func() {
			for ctx.Err() == nil {
				visit(ctx, holdClients[i%2], s.url, 0)
			}
		})
	}
	for i := range 20 {
		s.patch("shop", fmt.Sprintf(`{"message": "%d"}`, i))
	}
	leave()
	newcomers.Wait()
	if n := len(held); n > 0 {
		t.Errorf("%d requests are held no longer", n)
	}
	s.delete("shop")
	for range limit {
		held.expectApp(t)
	}
}

func TestBypassedRequestsAreNotHeld(t *testing.T) {
	app := newWitness(t)
	s := startInFrontOf(t, app, "maintenance shop {\nbypass /healthz\n}")
	s.put("shop", `{"hold": "5m"}`)
	if got := s.get("/healthz"); got.StatusCode != 200 || got.body != "GET /healthz " {
		t.Errorf("got %d %s", got.StatusCode, got.body)
	}
}

// The end of the wait

func TestWaitThatIsOverEndsWithThePage(t *testing.T) {
	app := newWitness(t)
	s := startInFrontOf(t, app, "")
	s.put("shop", `{"hold": "300ms"}`)
	for i, name := range holdVisits {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			answers := make(visits, 1)
			answers <- visit(t.Context(), holdClients[i%2], s.url, i)
			answers.expectPage(t, "300")
			if took := time.Since(began); took < 300*time.Millisecond {
				t.Errorf("it took %s", took)
			}
		})
	}
	t.Run("half a body", func(t *testing.T) {
		const n = 20
		began := time.Now()
		answers := s.halfBodies(n)
		for range n {
			answers.expectPage(t, "300")
		}
		if took := time.Since(began); took < 300*time.Millisecond {
			t.Errorf("it took %s", took)
		}
	})
	s.awaitHeld(0)
	s.delete("shop")
	app.expect(t)
}

func TestHoldThatIsClearedBlocksAtOnce(t *testing.T) {
	for name, send := range map[string]func(s *server) visits{
		"whole requests": func(s *server) visits { return s.crowd(4) },
		"half a body":    func(s *server) visits { return s.halfBodies(4) },
	} {
		for _, method := range []string{http.MethodPatch, http.MethodPut} {
			t.Run(name+" "+method, func(t *testing.T) {
				s := startInFrontOf(t, newWitness(t), "")
				s.put("shop", `{"hold": "5m"}`)
				answers := send(s)
				s.awaitHeld(4)
				s.change(method, "shop", `{"hold": null}`)
				s.awaitHeld(0)
				for range 4 {
					answers.expectPage(t, "300")
				}
			})
		}
	}
}

func TestWaitCountsFromWhenItBegan(t *testing.T) {
	app := newWitness(t)
	s := startInFrontOf(t, app, "")
	s.put("shop", `{"hold": "4s"}`)
	began := time.Now()
	answers := s.hold(1)
	s.patch("shop", `{"hold": "5m"}`)
	s.holdsFor(time.Until(began.Add(4500*time.Millisecond)), 1)
	patched := time.Now()
	s.patch("shop", `{"hold": "4s"}`)
	answers.expectPage(t, "300")
	if took := time.Since(patched); took > 3*time.Second {
		t.Errorf("blocked %s after the wait was shortened to less than its age", took)
	}
	app.expect(t)
}

// A config that ends

// G1
func TestReloadEndsWhatTheOldConfigHolds(t *testing.T) {
	const n = 40
	app := newWitness(t)
	s := startInFrontOf(t, app, "")
	s.put("shop", `{"hold": "5m"}`)
	answers := s.hold(n)
	slow := s.halfBodies(n)
	s.awaitHeld(2 * n)

	began := time.Now()
	s.reload("header X-Config new\n" + app.directives(""))
	for range n {
		answers.expectPage(t, "1")
		slow.expectPage(t, "1")
	}
	t.Logf("all held requests were answered %s after the reload began", time.Since(began))
	s.awaitHeld(0)
	for _, client := range holdClients {
		client.CloseIdleConnections() // to the server that has shut down
	}
	answers = s.hold(n) // the new config holds its own
	app.expect(t)
	s.delete("shop")
	for range n {
		if got := answers.expectApp(t); got.header.Get("X-Config") != "new" {
			t.Error("a held request was released through a config that had been unloaded")
		}
	}
}

// What is released

func TestReleasedRequestArrivesUnchanged(t *testing.T) {
	seen := make(chan string, 1)
	app := newWitness(t)
	app.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Del("X-Forwarded-For")
		r.Header.Del("Via")
		var dump strings.Builder
		fmt.Fprintf(&dump, "%s %s %s %d %q\n", r.Method, r.RequestURI, r.Host, r.ContentLength, r.TransferEncoding)
		_ = r.Header.Write(&dump)
		body, err := io.ReadAll(r.Body)
		fmt.Fprintf(&dump, "%q %v", body, err)
		seen <- dump.String()
	})
	s := startInFrontOf(t, app, "")
	for name, test := range map[string]struct{ method, body string }{
		"GET":          {"GET", ""},
		"DELETE":       {"DELETE", ""},
		"POST":         {"POST", "a\x00b\r\n\xff"},
		"empty POST":   {"POST", ""},
		"GET and body": {"GET", "what for?"},
	} {
		for i, client := range holdClients {
			t.Run(fmt.Sprintf("%s HTTP/%d", name, i+1), func(t *testing.T) {
				get := func() string {
					request, _ := http.NewRequestWithContext(t.Context(), test.method, s.url+"/a%2Fb//c?d=%20&d=e;f", strings.NewReader(test.body))
					request.Header = http.Header{"X-Twice": {"one", "two"}, "Accept": {"text/html"}, "Cookie": {"a=1; b=2"}}
					go roundTrip(client, request)
					return ""
				}
				s.delete("shop")
				get()
				want := <-seen
				s.put("shop", `{"hold": "5m"}`)
				get()
				s.awaitHeld(1)
				s.delete("shop")
				if got := <-seen; got != want {
					t.Errorf("got\n%s\nwant\n%s", got, want)
				}
			})
		}
	}
}

func TestReleasedRequestHasItsPlaceholders(t *testing.T) {
	s := prepare(t)
	s.options = "servers {\nprotocols h1 h2c\n}"
	s.reload(`
		maintenance shop
		rewrite /old* /new?{query}
		respond "{method} {orig_uri} {uri} {header.X-Test} {http.request.body} {http.request.duration_ms} {http.request.remote.host}"`)
	s.put("shop", `{"hold": "5m"}`)
	for i, client := range holdClients {
		answers := make(visits, 1)
		go func() {
			request, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+"/old?q=1", strings.NewReader("the body"))
			request.Header.Set("X-Test", "yes")
			answers <- roundTrip(client, request)
		}()
		s.awaitHeld(1)
		s.delete("shop")
		got := <-answers
		s.put("shop", `{"hold": "5m"}`)
		fields := strings.Fields(got.body)
		const want = "POST /old?q=1 /new?q=1 yes the body"
		if len(fields) != 8 || strings.Join(fields[:6], " ") != want || fields[7] != "127.0.0.1" {
			t.Errorf("HTTP/%d got %d %q, want %q", i+1, got.code, got.body, want)
		}
	}
}

func TestHeldClientIsToldToContinue(t *testing.T) {
	app := newWitness(t)
	s := startInFrontOf(t, app, "")
	s.put("shop", `{"hold": "5m"}`)
	conn := s.dial("POST /upload HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	reader := bufio.NewReader(conn)
	if line, err := reader.ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 100 ") {
		t.Fatalf("got %q %v", line, err)
	}
	_, _ = reader.ReadString('\n')
	_, _ = io.WriteString(conn, "hello")
	s.awaitHeld(1)
	s.delete("shop")
	response, err := http.ReadResponse(reader, nil)
	for err == nil && response.StatusCode == http.StatusContinue { // the app's
		response, err = http.ReadResponse(reader, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(response.Body); response.StatusCode != 200 || string(body) != "POST /upload hello" {
		t.Errorf("got %d %q %v", response.StatusCode, body, err)
	}
}

// A body that is not here yet keeps nobody from the app when the site is open,
// however long it takes.
func TestHalfABodyIsReleasedWithTheRest(t *testing.T) {
	for name, hold := range map[string]time.Duration{"in time": maxHold, "after the wait": 2 * time.Second} {
		t.Run(name, func(t *testing.T) {
			s := startInFrontOf(t, newWitness(t), "")
			began := time.Now()
			s.put("shop", fmt.Sprintf(`{"hold": %q}`, hold))
			conn := s.dial("POST /half HTTP/1.1\r\nContent-Length: 17\r\n\r\nhalf of ")
			s.awaitHeld(1)
			s.delete("shop")
			if hold < maxHold {
				<-time.After(time.Until(began.Add(hold + time.Second)))
			}
			_, _ = io.WriteString(conn, "the rest!")
			response, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			if body, err := io.ReadAll(response.Body); response.StatusCode != 200 || string(body) != "POST /half half of the rest!" {
				t.Errorf("got %d %q %v", response.StatusCode, body, err)
			}
		})
	}
}

// What comes late is not taken for another request, nor does a connection whose
// request was given up on spoil the next one.
func TestConnectionIsFineAfterHalfABody(t *testing.T) {
	app := newWitness(t)
	s := startInFrontOf(t, app, "")
	s.put("shop", `{"hold": "300ms"}`)
	conn := s.dial("POST /half HTTP/1.1\r\nContent-Length: 17\r\n\r\nhalf of ")
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(response.Body); response.StatusCode != 503 || err != nil {
		t.Errorf("got %d %v", response.StatusCode, err)
	}
	s.delete("shop")
	_, _ = io.WriteString(conn, "the rest!GET /next HTTP/1.1\r\nHost: "+strings.TrimPrefix(s.url, "http://")+"\r\n\r\n")
	response, err = http.ReadResponse(reader, nil)
	switch {
	case err == nil && response.StatusCode == 200:
		app.expect(t, "GET /next ")
	case err == nil:
		t.Errorf("the next request got %d", response.StatusCode)
	default: // the connection was closed
		app.expect(t)
	}
}

// The server has begun to watch the connection when the last byte comes, and is not to
// take the end of the wait for that of its client: the next request would get that.
func TestConnectionIsFineAfterABodyThatEndsWithTheWait(t *testing.T) {
	s := start(t, "maintenance shop\n"+testApp(t, func(w http.ResponseWriter, r *http.Request) error {
		if r.Context().Err() != nil {
			w.WriteHeader(statusClientLeft)
		}
		return nil
	}))
	const hold = 20 * time.Millisecond
	s.put("shop", `{"hold": "20ms"}`)
	var clients sync.WaitGroup
	for i := range 16 {
		clients.Go(func() {
			for j := range 100 {
				conn := s.dial("POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\n")
				<-time.After(hold + time.Duration((i+j)%40-20)*20*time.Microsecond)
				_, _ = io.WriteString(conn, "x")
				reader := bufio.NewReader(conn)
				first, err := http.ReadResponse(reader, nil)
				if err == nil && !first.Close {
					_, _ = io.Copy(io.Discard, first.Body)
					_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+strings.TrimPrefix(s.url, "http://")+"\r\n\r\n")
					next, err := http.ReadResponse(reader, nil)
					if err == nil && next.StatusCode == statusClientLeft {
						t.Error("the next request was taken for one whose client had left")
					}
				}
				conn.Close()
			}
		})
	}
	clients.Wait()
}

// A server's time limit for a request's body does not end the wait.
func TestReadTimeoutDoesNotEndTheWait(t *testing.T) {
	app := newWitness(t)
	s := prepare(t)
	s.options = "servers {\nprotocols h1 h2c\ntimeouts {\nread_body 300ms\n}\n}"
	s.reload(app.directives(""))
	s.put("shop", `{"hold": "5m"}`)
	answers := s.hold(4)
	s.holdsFor(time.Second, 4)
	s.delete("shop")
	for range 4 {
		answers.expectApp(t)
	}
}

// A server's time limit for an answer ends the wait in time for one: what the app got
// later it would carry out, and its client never know.
func TestWriteTimeoutShortensTheWait(t *testing.T) {
	app := newWitness(t)
	s := prepare(t)
	s.options = "servers {\nprotocols h1 h2c\ntimeouts {\nwrite 3s\n}\n}"
	s.reload(app.directives(""))
	s.put("shop", `{"hold": "5m"}`)
	began := time.Now()
	answers := s.hold(4)
	for range 4 {
		answers.expectPage(t, "300")
	}
	if took := time.Since(began); took < 1500*time.Millisecond {
		t.Errorf("it took %s", took)
	}
	s.delete("shop")
	app.expect(t)
}

// Harness

// witness is an app that remembers what has reached it, and answers with it.
type witness struct {
	*httptest.Server
	onArrival func()

	mu   sync.Mutex
	seen []arrival
}

type arrival struct {
	at      time.Time
	request string
}

func newWitness(t *testing.T) *witness {
	t.Helper()
	w := &witness{onArrival: func() {}}
	w.Server = httptest.NewServer(http.HandlerFunc(w.serve))
	t.Cleanup(w.Close)
	return w
}

func (w *witness) serve(writer http.ResponseWriter, r *http.Request) {
	at := time.Now()
	w.onArrival()
	body, _ := io.ReadAll(r.Body)
	request := fmt.Sprintf("%s %s %s", r.Method, r.RequestURI, body)
	w.mu.Lock()
	w.seen = append(w.seen, arrival{at, request})
	w.mu.Unlock()
	_, _ = io.WriteString(writer, request)
}

// arrivals are in the order of their time.
func (w *witness) arrivals() []arrival {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := slices.Clone(w.seen)
	slices.SortFunc(seen, func(x, y arrival) int { return x.at.Compare(y.at) })
	return seen
}

// expect fails the test if other requests than these have reached the app.
func (w *witness) expect(t *testing.T, requests ...string) {
	t.Helper()
	var seen []string
	for _, a := range w.arrivals() {
		seen = append(seen, a.request)
	}
	if !slices.Equal(seen, requests) {
		t.Errorf("%q reached the app, want %q", seen, requests)
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

// holdsFor fails the test if another number of requests is held before that time
// has passed.
func (s *server) holdsFor(d time.Duration, n int) {
	s.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); <-time.After(10 * time.Millisecond) {
		if got := s.status("shop")["held"]; got != float64(n) {
			s.t.Fatalf("held is %v, want %d", got, n)
		}
	}
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

// crowd sends requests of all kinds.
func (s *server) crowd(n int) visits {
	answers := make(visits, n)
	for i := range n {
		go func() { answers <- visit(s.t.Context(), holdClients[i%2], s.url, i) }()
	}
	return answers
}

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
		body, rest := io.Pipe()
		s.t.Cleanup(func() { rest.Close() })
		go io.WriteString(rest, "half of ")
		request, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, s.url+"/half", body)
		if err != nil {
			s.t.Fatal(err)
		}
		request.ContentLength = 17
		go func() { answers <- roundTrip(holdClients[i%2], request) }()
	}
	return answers
}
