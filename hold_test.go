package maintenance

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// How a wait ends

// Time counts from when the request came, through all switches meanwhile.
func TestHoldEnds(t *testing.T) {
	const minutes3, until1 = `{"hold": "3m"}`, `{"hold": "3m", "until": "2000-01-01T00:01:00Z"}`
	for name, test := range map[string]struct {
		options      string
		script       string
		writeTimeout time.Duration
		want         string
	}{
		"not held":                  {`{}`, "", 0, "503 300 after 0s"},
		"time is up":                {minutes3, "", 0, "503 300 after 3m0s"},
		"opened":                    {minutes3, "wait 1m; off", 0, "200 after 1m0s"},
		"opened by the clock":       {until1, "", 0, "200 after 1m0s"},
		"opened too late":           {`{"hold": "3m", "retry_after": "7s", "until": "2000-01-01T01:00:00Z"}`, "", 0, "503 7 after 3m0s"},
		"end put off":               {until1, `wait 1s; patch {"until": "2000-01-01T00:02:00Z"}`, 0, "200 after 2m0s"},
		"cleared":                   {minutes3, `wait 1m; patch {"hold": null}`, 0, "503 300 after 1m0s"},
		"not given again":           {minutes3, "wait 1m; on {}", 0, "503 300 after 1m0s"},
		"lengthened":                {minutes3, `wait 1m; patch {"hold": "4m"}`, 0, "503 300 after 4m0s"},
		"shortened":                 {minutes3, `wait 1m; patch {"hold": "2m"}`, 0, "503 300 after 2m0s"},
		"shortened to less":         {minutes3, `wait 2m; patch {"hold": "1m"}`, 0, "503 300 after 2m0s"},
		"other options":             {minutes3, `wait 1m; patch {"message": "Soon."}; wait 1m; off`, 0, "200 after 2m0s"},
		"on again at once":          {minutes3, `wait 1m; off; on ` + minutes3, 0, "503 300 after 3m0s, or 200 after 1m0s"},
		"client leaves":             {minutes3, "wait 1m; leave", 0, "499 after 1m0s"},
		"config is unloaded":        {minutes3, "wait 1m; unload", 0, "503 1 after 1m0s"},
		"was unloaded before":       {minutes3, "unload", 0, "503 1 after 0s"},
		"unloaded and opened":       {minutes3, "wait 1m; unload; off", 0, "503 1 after 1m0s"},
		"write timeout":             {minutes3, "", time.Minute, "503 300 after 30s"},
		"write timeout, long":       {minutes3, "", time.Hour, "503 300 after 3m0s"},
		"write timeout, lengthened": {`{"hold": "10s"}`, `wait 1s; patch {"hold": "5m"}`, time.Minute, "503 300 after 30s"},
	} {
		for _, body := range []string{"", "an order"} {
			synctest.Test(t, func(t *testing.T) {
				h := newClosedGate("shop", test.options)
				stopping := make(chan struct{})
				h.stopping, h.writeTimeout = stopping, test.writeTimeout
				ctx, leave := context.WithCancel(t.Context())
				defer leave()
				began := time.Now()
				go func() {
					for step := range strings.SplitSeq(test.script, "; ") {
						switch step {
						case "":
						case "leave":
							leave()
						case "unload":
							close(stopping)
						default:
							h.site.turn(step)
						}
					}
				}()
				if test.script == "unload" {
					synctest.Wait()
				}
				w := httptest.NewRecorder()
				err := serve(w, newRequest(httptest.NewRequestWithContext(ctx, http.MethodPost, "/", strings.NewReader(body))), appThatReads, h)
				got := strings.Join(strings.Fields(fmt.Sprint(w.Code, " ", w.Header().Get("Retry-After"), " after ", time.Since(began))), " ")
				if err != nil || !slices.Contains(strings.Split(test.want, ", or "), got) || w.Code == 200 && w.Body.String() != "app"+body {
					t.Errorf("%s: got %s %q %v, want %s", name, got, w.Body, err, test.want)
				}
				requests := &h.site.requests
				outcomes := [4]int64{requests[wasBlocked].Load(), requests[wasReleased].Load(), h.site.inFlight.Count(), h.site.held.Load()}
				if want := map[int][4]int64{200: {0, 1, 0, 0}, 503: {1, 0, 0, 0}}[w.Code]; outcomes != want {
					t.Errorf("%s: blocked, released, in flight and held are %d, want %d", name, outcomes, want)
				}
			})
		}
	}
}

// No request slips in between its release and the next hold.
//
// G1, G5
func TestNothingSlipsInWhereMaintenanceBeginsAgainAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newClosedGate("shop", `{"hold": "5m"}`)
		var drained atomic.Bool
		run, stop := startWorkers()
		for range 100 {
			run(func(int) {
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
			})
		}
		for range 300 {
			synctest.Wait()
			drained.Store(false)
			h.site.turn(`off; on {"hold": "5m"}`)
			drained.Store(h.site.awaitDrained(nil))
		}
		synctest.Wait()
		drained.Store(false)
		h.site.turn("off")
		stop()
	})
}

// Which requests are held

// Body and header count together, with what Go needs for each field. A request is held with its
// body, which is read once, however often the wait begins again.
//
// G8
func TestOnlySmallRequestsOfKnownLengthAreHeld(t *testing.T) {
	fields := func(n, length int) http.Header {
		header := make(http.Header)
		for i := range n {
			header.Set(fmt.Sprintf("X-%04d", i), strings.Repeat("x", length))
		}
		return header
	}
	long := strings.Repeat("x", 32<<10)
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
		"a path that is long":  {"/" + long + long, nil, 0, false},
		"a path and some body": {"/" + long, nil, 31 << 10, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			h := newClosedGate("shop", `{"hold": "5m"}`)
			r := httptest.NewRequest(http.MethodPost, test.uri, io.LimitReader(endless{}, test.body))
			r.Header, r.ContentLength = test.header, test.body
			w, done := httptest.NewRecorder(), make(chan error)
			go func() { done <- serve(w, r, appThatReads, h) }()
			synctest.Wait()
			if held := h.site.heldNow() == 1; held != test.held {
				t.Errorf("%s: held is %t, want %t", name, held, test.held)
			}
			body := r.Body
			h.site.turn(`patch {"message": "Soon."}`)
			synctest.Wait()
			if r.Body != body {
				t.Errorf("%s: the body was read again", name)
			}
			h.site.turn("off")
			if err := <-done; err != nil || (w.Code == 200) != test.held || test.held && int64(w.Body.Len()) != test.body+3 {
				t.Errorf("%s: got %d and %d bytes %v", name, w.Code, w.Body.Len(), err)
			}
		})
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

// Requests that find no room take none, and a held request stays held when the options change,
// even if others come meanwhile.
//
// G8
func TestNoMoreThan1024AreHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newClosedGate("shop", `{"hold": "5m"}`)
		visit := func(n int) chan int {
			codes := make(chan int, n)
			for range n {
				go func() { codes <- h.visit("/").Code }()
			}
			synctest.Wait()
			return codes
		}
		for round := range 3 {
			held := visit(maxHeld)
			for range 2 {
				if surplus := visit(100); len(held) > 0 || len(surplus) != 100 || h.site.held.Load() != maxHeld {
					t.Fatalf("round %d: of 1024 %d are held no longer, of 100 more %d are not; the count is %d",
						round, len(held), len(surplus), h.site.held.Load())
				}
			}
			h.site.held.Add(1) // as a request does that comes meanwhile
			h.site.turn(`patch {"message": "Soon."}`)
			synctest.Wait()
			h.site.held.Add(-1)
			if len(held) > 0 {
				t.Errorf("%d requests are held no longer", len(held))
			}
			h.site.turn("off")
			for range maxHeld {
				if got := <-held; got != 200 {
					t.Errorf("got %d, want 200", got)
				}
			}
			synctest.Wait()
			h.site.turn(`on {"hold": "5m"}`)
		}
	})
}

// No client can make a hold take much memory.
//
// G8
func TestHeldRequestsTakeLittleMemory(t *testing.T) {
	const n, limit = maxHeld / 8, 150 << 20 / 8
	var fields strings.Builder
	for i := range 240 {
		fmt.Fprintf(&fields, "%x:\r\n", 4096+i) // as small as they can be
	}
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for name, request := range map[string]string{
		"small fields": "Content-Length: 0\r\n" + fields.String() + "\r\n",
		"a large body": "Content-Length: 62000\r\n\r\n" + strings.Repeat("x", 62000),
		"long fields":  "Content-Length: 45000\r\nA: " + strings.Repeat("x", 15000) + "\r\n\r\n" + strings.Repeat("x", 45000),
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, newWitness(t).behind("maintenance shop"))
			s.put("shop", `{"hold": "5m"}`)
			before := heap()
			for range n {
				s.dial("POST / HTTP/1.1\r\nAccept: text/html\r\n" + request)
			}
			s.await("shop", "held", n)
			if took := int64(heap()) - int64(before); took > limit {
				t.Errorf("%d held requests take %d KiB, want at most %d", n, took>>10, limit>>10)
			}
		})
	}
}

// What is released, and connections

func TestReleasedRequestArrivesUnchanged(t *testing.T) {
	for _, test := range []struct{ method, body string }{
		{"GET", ""}, {"DELETE", ""}, {"POST", "a\x00b\r\n\xff"}, {"POST", ""}, {"GET", "what for?"},
	} {
		inMemory(t, &http.Server{}, func(t *testing.T, s *memoryServer) {
			seen := make(chan string, 1)
			s.app = func(_ http.ResponseWriter, r *http.Request) error {
				dump, err := httputil.DumpRequest(r, true)
				r.Body = io.NopCloser(strings.NewReader(test.body))
				replacer := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
				seen <- fmt.Sprintf("%s %d %v %v %s", dump, r.ContentLength, r.Body == http.NoBody, err, replacer.ReplaceAll("{http.request.method} "+
					"{http.request.orig_uri} {http.request.uri} {http.request.header.X-Twice} {http.request.body} {http.request.remote.host}", ""))
				return nil
			}
			for i, client := range s.clients {
				send := func() {
					request, _ := http.NewRequestWithContext(t.Context(), test.method, "http://shop/a%2Fb//c?d=%20&d=e;f", strings.NewReader(test.body))
					request.Header = http.Header{"X-Twice": {"one", "two"}, "Accept": {"text/html"}, "Cookie": {"a=1; b=2"}}
					go roundTrip(client, request)
					synctest.Wait()
				}
				s.gate.site.turn("off")
				send()
				want := <-seen
				s.gate.site.turn(`on {"hold": "5m"}`)
				send()
				if len(seen) > 0 {
					t.Error("it was not held")
				}
				s.gate.site.turn("off")
				if got := <-seen; got != want || !strings.Contains(got, test.method+" /a%2Fb//c?d=%20&d=e;f ") {
					t.Errorf("%v HTTP/%d got\n%s\nwant\n%s", test, i+1, got, want)
				}
			}
		})
	}
}

// A server's read timeout may end long before the wait. Its write timeout, which Caddy tells the
// handler, counts from when the request came.
func TestServerTimeouts(t *testing.T) {
	inMemory(t, &http.Server{ReadTimeout: time.Second}, func(t *testing.T, s *memoryServer) {
		answers := make(visits, 4)
		for i := range 4 {
			answers.send(t.Context(), s.clients[i%2], "http://shop", i)
		}
		s.gate.site.turn("wait 2m; off")
		for range 4 {
			if got := answers.next(); got.StatusCode != 200 || got.err != nil {
				t.Errorf("got %d %v, want 200", got.StatusCode, got.err)
			}
		}
	})
	s := prepare(t)
	s.options = "servers {\ntimeouts {\nwrite 500ms\n}\n}"
	s.reload("maintenance shop")
	s.put("shop", `{"hold": "5m"}`)
	eventually(t, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if got := ask(ctx, client, s.url); got.StatusCode != 503 {
			return fmt.Errorf("got %d %v, want 503", got.StatusCode, got.err)
		}
		return nil
	})
}

// readAnswer reads a response from a connection, and its body.
func readAnswer(t *testing.T, reader *bufio.Reader) (answer *http.Response, body string) {
	t.Helper()
	answer, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Error(err)
	}
	return answer, string(content)
}

// A body that is still being sent does not keep its request from the app when the site opens,
// and does not make a hold longer. If the request is blocked, its connection does not take the
// rest of the body for the next request.
func TestHalfABody(t *testing.T) {
	for script, want := range map[string]int{
		"off": 200, "off; wait 1h": 200, "wait 1h": 503, `patch {"hold": null}`: 503, "unload": 503,
	} {
		inMemory(t, &http.Server{}, func(t *testing.T, s *memoryServer) {
			answer := make(visits, 1)
			half := answer.sendHalf(t, s.clients[1], "http://shop") // HTTP/2
			conn := s.dial()
			_, _ = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: shop\r\nExpect: 100-continue\r\nContent-Length: 17\r\n\r\n")
			reader := bufio.NewReader(conn)
			if line, err := reader.ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 100 ") {
				t.Fatalf("%s: got %q %v, want to be told to continue", script, line, err)
			}
			_, _ = reader.ReadString('\n')
			_, _ = io.WriteString(conn, "half of ")
			synctest.Wait()
			before := s.gate.site.heldNow()
			if script == "unload" {
				close(s.stopping)
			} else {
				s.gate.site.turn(script)
			}
			synctest.Wait()
			if after := s.gate.site.heldNow(); before != 2 || after != 0 && want == 503 {
				t.Errorf("%s: %d were held, and %d are", script, before, after)
			}
			go func() {
				_, _ = io.WriteString(conn, "the rest!GET /next HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")
				_, _ = io.WriteString(half, "the rest!")
				half.Close()
			}()
			got, body := readAnswer(t, reader)
			if app := body == "apphalf of the rest!"; got.StatusCode != want || app != (want == 200) || got.Close != (want == 503) {
				t.Errorf("%s: got %d %q, closing: %t, want %d", script, got.StatusCode, body, got.Close, want)
			}
			next, err := io.ReadAll(reader)
			if app := strings.HasPrefix(string(next), "HTTP/1.1 200 "); app == got.Close {
				t.Errorf("%s: on the same connection came %q %v", script, next, err)
			}
			if got := answer.next(); got.StatusCode != want {
				t.Errorf("%s HTTP/2: got %d %v, want %d", script, got.StatusCode, got.err, want)
			}
		})
	}
}

// When the last byte comes, the server has begun to watch the connection. It must not take the
// end of the wait for the end of its client: the next request would suffer.
func TestConnectionIsFineAfterABodyThatEndsWithTheWait(t *testing.T) {
	inMemory(t, &http.Server{}, func(t *testing.T, s *memoryServer) {
		s.app = func(_ http.ResponseWriter, r *http.Request) error { return r.Context().Err() }
		for range 300 {
			s.gate.site.turn(`on {"hold": "5m"}`)
			conn := s.dial()
			reader := bufio.NewReader(conn)
			go func() {
				time.Sleep(5 * time.Minute)
				_, _ = io.WriteString(conn, "x")
			}()
			_, _ = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 1\r\n\r\n")
			if first, _ := readAnswer(t, reader); !first.Close {
				s.gate.site.turn("off")
				go io.WriteString(conn, "GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
				if next, _ := readAnswer(t, reader); next.StatusCode != 200 {
					t.Errorf("the next request got %v", next)
				}
			}
			conn.Close()
		}
	})
}

// Through the front door

// A reload ends what the old config holds. What the new one holds reaches the app once,
// when the maintenance ends.
//
// G1
func TestHeldRequestsReachTheAppOnceThroughTheConfigThatRuns(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		const old, n = 8, 100
		app := newWitness(t)
		s := k.start(t, app.behind("maintenance shop"))
		s.put("shop", `{"hold": "5m"}`)
		answers, slow := s.hold(old), make(visits, old)
		for i := range old {
			slow.sendHalf(t, clients[i%2], s.url)
		}
		s.await("shop", "held", 2*old)

		s.reload("header X-Config new\n" + app.behind("maintenance shop"))
		for range old {
			answers.expectPage(t, "1")
			slow.expectPage(t, "1")
		}
		s.await("shop", "held", 0)
		for _, client := range clients {
			client.CloseIdleConnections() // to the server that has shut down
		}
		answers = s.hold(n)
		app.expect(t, 0)
		s.delete("shop")
		for range n {
			if got := answers.expectApp(t); got.Header.Get("X-Config") != "new" {
				t.Error("a held request was released through a config that had been unloaded")
			}
		}
		app.expect(t, n)
		s.await("shop", "held", 0)
	})
}
