package maintenance

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"example.com/caddy-maintenance/internal/inflight"
)

// The moment

// Time counts from when this instance began to block requests, whenever that was stored, and
// however often terminate_after changes.
func TestMomentOfTermination(t *testing.T) {
	on := func(terminateAfter string) string {
		return fmt.Sprintf(`read {"enabled": true, "since": "1970-01-01T00:00:00Z", "terminate_after": %q}`, terminateAfter)
	}
	const off = `wait 100ms; read {"enabled": false}; `
	for name, test := range map[string]struct {
		script string
		want   time.Duration // 0 for never
	}{
		"off all along": {`read {"enabled": false}`, 0},
		"not set":       {on(""), 0},
		"unreadable":    {on("-1s"), 0},
		"set":           {on("400ms"), 400 * time.Millisecond},
		"set later":     {on("") + "; wait 100ms; " + on("400ms"), 400 * time.Millisecond},
		"past":          {on("") + "; wait 200ms; " + on("1ms"), 200 * time.Millisecond},
		"put off":       {on("300ms") + "; wait 100ms; " + on("600ms"), 600 * time.Millisecond},
		"put forward":   {on("1h") + "; wait 100ms; " + on("300ms"), 300 * time.Millisecond},
		"repeated":      {on("400ms") + "; wait 200ms; " + on("400ms"), 400 * time.Millisecond},
		"cleared":       {on("300ms") + "; wait 100ms; " + on(""), 0},
		"opened":        {on("300ms") + "; " + off + "wait 1s", 0},
		"on again":      {on("300ms") + "; " + off + "wait 100ms; " + on("300ms"), 500 * time.Millisecond},
		"ends before":   {`on {"terminate_after": "1500ms", "until": "2000-01-01T00:00:01Z"}`, 0},
		"read again":    {on("400ms") + "; wait 200ms; reload", 400 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			shop := newTestSite("shop")
			shop.read(``)
			req, began, at := admitOne(shop), time.Now(), time.Duration(0)
			context.AfterFunc(req.Context(), func() { at = time.Since(began) })
			for step := range strings.SplitSeq(test.script, "; ") {
				if record, ok := strings.CutPrefix(step, "read {"); ok {
					shop.read(fmt.Sprintf(`{"version": %d, %s`, shop.Current().Version()+1, record))
				} else if step == "reload" {
					shop.Reload(time.Now())
					shop.read(``)
				} else {
					shop.turn(step)
				}
			}
			time.Sleep(2 * time.Hour)
			synctest.Wait()
			if terminated := shop.requests[wasTerminated].Load(); at != test.want || (terminated == 1) != (at > 0) {
				t.Errorf("%s: %d terminated after %s, want %s", name, terminated, at, test.want)
			}
		})
	}
}

// A timer that fires late, after the site was opened and closed again, must leave the requests
// that were admitted meanwhile alone.
func TestLateTimerLeavesTheNextMaintenanceAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shop := newClosedGate("shop", `{"terminate_after": "1ms"}`).site
		first := shop.Current().BlockedSince()
		shop.turn("wait 1s; off")
		req := admitOne(shop)
		shop.terminate(shop.inFlight.All(), first)
		shop.turn(`on {"terminate_after": "1ms"}`)
		shop.terminate(shop.inFlight.All(), shop.Current().BlockedSince()) // too early
		shop.terminateTimer.Stop()
		time.Sleep(time.Second)
		shop.terminate(shop.inFlight.All(), first)
		if req.Context().Err() != nil {
			t.Error("a request that came after the maintenance was terminated")
		}
		shop.terminate(shop.inFlight.All(), shop.Current().BlockedSince())
		if req.Context().Err() == nil {
			t.Error("a request was not terminated in its own maintenance")
		}
	})
}

// The answer

// A terminated request gets the page and nothing from the app. It is not in flight while the
// page is sent, so nobody waits for a client that does not read it. An outer handler that
// terminates it meanwhile does not answer again.
func TestTerminatedRequestGetsThePageAlone(t *testing.T) {
	for _, protocol := range []int{1, 2} {
		all, shop := newTestSite("all"), newTestSite("shop")
		all.read(``)
		shop.read(``)
		inner := caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			return gateOf(shop).ServeHTTP(w, r, caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				for _, name := range []string{"Set-Cookie", "Trailer", "Content-Encoding", "Content-Disposition", "Location", "Upgrade", "Etag"} {
					w.Header().Set(name, "of the app")
				}
				shop.turn(`on {"message": "Back at three."}`)
				inflight.Terminate(shop.inFlight.All())
				<-r.Context().Done()
				w.Header().Set("X-Late", "of the app")
				return r.Context().Err()
			}))
		})
		answers := 0
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.ProtoMajor = protocol
		w := &hookedRecorder{ResponseRecorder: httptest.NewRecorder(), onAnswer: func() {
			answers++
			if n := shop.inFlight.Count(); n > 0 || r.Context().Err() != nil {
				t.Errorf("%d in flight while the page is sent, and the context says %v", n, r.Context().Err())
			}
			inflight.Terminate(all.inFlight.All())
		}}
		w.Header().Set("X-Outside", "kept")
		err := gateOf(all).ServeHTTP(w, r, inner)
		got := w.Result()
		if err != nil || answers != 1 || got.StatusCode != 503 || all.inFlight.Count() != 0 ||
			!strings.Contains(w.Body.String(), "Back at three.") {
			t.Errorf("HTTP/%d: %v, %d answers, %d %q", protocol, err, answers, got.StatusCode, w.Body)
		}
		if text := fmt.Sprint(got.Header); strings.Contains(text, "of the app") || !strings.Contains(text, "X-Outside:[kept]") ||
			got.Header.Get("Retry-After") != "300" || strings.Contains(text, "Connection:[close]") != (protocol == 1) {
			t.Errorf("HTTP/%d: got %s", protocol, text)
		}
	}
}

// A failed request is terminated in its error routes, with their writer. If there are none, its
// connection may already serve another request and is left alone; the failed one is in flight
// until the server is done with it.
func TestRequestThatHasFailedIsTerminatedInItsErrorRoutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shop := newTestSite("shop")
		shop.read(``)
		w, routed := &hookedRecorder{ResponseRecorder: httptest.NewRecorder()}, httptest.NewRecorder()
		ctx, serverIsDone := context.WithCancel(context.Background())
		r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
		failing := caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return io.ErrUnexpectedEOF })
		if err := gateOf(shop).ServeHTTP(w, r, failing); err != io.ErrUnexpectedEOF {
			t.Errorf("got %v, want what the app has returned", err)
		}
		inflight.Terminate(shop.inFlight.All())
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := shop.inFlight.Count(); n != 1 || w.deadlines.Load() > 0 {
			t.Errorf("%d in flight, want 1; %d deadlines", n, w.deadlines.Load())
		}
		shop.turn("on {}")
		err := errorRoutes{}.ServeHTTP(routed, r, caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			return caddyhttp.Error(http.StatusBadGateway, r.Context().Err())
		}))
		if n := shop.inFlight.Count(); err != nil || routed.Code != 503 || n != 0 {
			t.Errorf("got %d %v, and %d in flight", routed.Code, err, n)
		}
		shop.turn("off")
		_ = gateOf(shop).ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil), failing)
		before := shop.inFlight.Count()
		serverIsDone()
		synctest.Wait()
		if n := shop.inFlight.Count(); before != 1 || n != 0 {
			t.Errorf("%d in flight, %d when the server is done, want 1 and none", before, n)
		}
	})
}

type hookedRecorder struct {
	*httptest.ResponseRecorder
	onAnswer  func()
	deadlines atomic.Int32
}

func (w *hookedRecorder) SetReadDeadline(time.Time) error { w.deadlines.Add(1); return nil }

func (w *hookedRecorder) WriteHeader(status int) {
	w.ResponseRecorder.WriteHeader(status)
	w.onAnswer()
}

// On HTTP/1, the server waits for the rest of a small upload before it uses the connection again.
// An upload that is still being sent does not keep its client from reading the page.
func TestUploadIsTerminatedWhateverTheServerWaitsFor(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		app := newApp(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/early" { // answers before it has read the body
				_ = http.NewResponseController(w).EnableFullDuplex()
				_, _ = io.WriteString(w, "early")
				_ = http.NewResponseController(w).Flush()
			}
			_, _ = io.Copy(io.Discard, r.Body)
		})
		for name, options := range map[string]string{
			"by default":                        "",
			"full duplex without idle timeouts": "servers {\nenable_full_duplex\ntimeouts {\nread_body_idle -1s\nwrite_idle -1s\n}\n}",
		} {
			t.Run(name, func(t *testing.T) {
				s := k.prepare(t)
				s.options = options
				s.reload("maintenance shop\nhandle {\nreverse_proxy " + app + "\n}")
				conns := make(map[string]net.Conn)
				for _, path := range []string{"/late", "/early", "/late?endless"} {
					for _, upload := range []string{
						"Content-Length: 1000\r\n\r\nnot all of it",
						"Content-Length: 1000000000000\r\n\r\nnot all of it",
						"Transfer-Encoding: chunked\r\n\r\nd\r\nnot all of it\r\n",
					} {
						request := "POST " + path + " HTTP/1.1\r\n" + upload
						conns[request] = s.dial(request)
					}
				}
				s.await("shop", "in_flight", len(conns))
				s.put("shop", `{"terminate_after": "100ms"}`)
				for request, conn := range conns {
					if strings.Contains(request, "/late?endless") && strings.Contains(request, "00000") {
						go func() {
							for err := error(nil); err == nil; {
								_, err = conn.Write(make([]byte, 16<<10))
							}
						}()
					}
					answer, err := io.ReadAll(conn)
					if err != nil {
						t.Errorf("%q: got %q %v, want the end of the connection", request, answer, err)
					}
					page := strings.HasPrefix(string(answer), "HTTP/1.1 503 ") && strings.Contains(string(answer), "\r\nConnection: close\r\n")
					if page != strings.Contains(request, "/late") || strings.HasSuffix(string(answer), "\r\n0\r\n\r\n") {
						t.Errorf("%q: got %q", request, answer)
					}
				}
				s.await("shop", "in_flight", 0)
			})
		}
	})
}

// A failed request counts once, even if a handler of the site is among the error routes, or
// comes twice.
//
// G5
func TestRequestThatMeetsSeveralGatesOfASiteIsCountedOnce(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		s := k.prepare(t)
		s.after = "handle_errors {\nroute {\nmaintenance shop\nreverse_proxy " + upstream(t) + "\n}\n}"
		s.reload("route {\nmaintenance shop\nmaintenance wiki\nmaintenance shop\nerror 502\n}")
		release, finished := s.slowRequest()
		for _, site := range []string{"shop", "wiki"} {
			if got := s.put(site, "")["in_flight"]; got != 1.0 {
				t.Errorf("%s: in_flight is %v, want 1", site, got)
			}
		}
		began := time.Now()
		if got := s.status("shop?wait=50ms")["in_flight"]; got != 1.0 || time.Since(began) < 50*time.Millisecond {
			t.Errorf("after a wait of %s that runs out in_flight is %v, want 1", time.Since(began), got)
		}
		waited := make(chan any)
		go func() { waited <- s.status("shop?wait=30s")["in_flight"] }()
		release()
		<-finished
		if got := <-waited; got != 0.0 {
			t.Errorf("after a wait in_flight is %v, want 0", got)
		}
		s.logged(`"drained: no request is in flight on this instance"`, `"site":"shop"`, `"after":`)
		if left := append(siteNamed("shop").inFlight.All(), siteNamed("wiki").inFlight.All()...); len(left) > 0 {
			t.Errorf("%d are left", len(left))
		}
		s.delete("wiki")
		s.wantStatus("/slow", 503)
	})
}

// A handler that is only among the error routes does not change them, however many sites have
// some.
func TestGateAmongErrorRoutesLeavesThemAlone(t *testing.T) {
	for others := range 4 {
		s := prepare(t)
		port := s.url[strings.LastIndex(s.url, ":"):]
		for i := range others {
			s.before += fmt.Sprintf("http://other%d.test%s {\nerror 404\nhandle_errors {\nrespond \"other%[1]d\" 404\n}\n}\n", i, port)
		}
		s.after = "handle_errors {\nmaintenance shop\nrespond \"mine\" 404\n}"
		s.reload("error 404")
		for i := range others + 1 {
			request, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url, nil)
			want := "mine"
			if i < others {
				want = fmt.Sprint("other", i)
				request.Host = want + ".test" + port
			}
			if got := roundTrip(client, request); got.StatusCode != 404 || got.body != want {
				t.Errorf("%d other sites: %s got %d %q, want %q", others, request.Host, got.StatusCode, got.body, want)
			}
		}
		s.put("shop", "")
		s.wantStatus("/", 503)
		s.stop()
	}
}

// An app's goroutines may go on with a terminated request and read its variables, as those of
// reverse_proxy do while it dials.
//
// G10: this is for the race detector.
func TestTerminationDoesNotRaceWithADial(t *testing.T) {
	arrived := make(chan struct{})
	run, stop := startWorkers()
	var reads atomic.Int64
	s := start(t, "log\nmaintenance shop\n"+testApp(t, func(_ http.ResponseWriter, r *http.Request) error {
		ctx := r.Context()
		run(func(int) {
			caddyhttp.GetVar(ctx, "reverse_proxy.dial_info")
			reads.Add(1)
		})
		close(arrived)
		<-ctx.Done()
		return ctx.Err()
	}))
	answers := make(visits, 1)
	go func() { answers <- ask(t.Context(), client, s.url) }()
	<-arrived
	s.put("shop", `{"terminate_after": "1ms"}`)
	answers.expectPage(t, "300")
	s.expectAccess("/", "info 503 terminated")
	for before := reads.Load(); reads.Load() < before+1000; {
		runtime.Gosched() // so that the race detector sees some
	}
	stop()
}

// What is behind the gate

// Handlers before this one see changes to the request by those after it.
func TestRequestIsTheSameWithAndWithoutGate(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		const seen = "{http.request.method} {http.request.uri} {http.request.host} {http.request.header.X-Added} " +
			"{http.request.orig_uri} {http.vars.behind}"
		s := k.prepare(t)
		s.after = "handle_errors {\nrespond `{err.status_code} " + seen + "` 404\n}"
		var got [2]string
		for i, gate := range []string{"", "maintenance shop"} {
			s.reload(`
			log
			log_append seen ` + "`" + seen + "`\n" + gate + `
			method PUT
			rewrite /old /new?changed=1
			route {
				vars behind yes
				request_header X-Added yes
				request_header /new Host other.example
				error /failing 418
				respond ` + "`" + seen + "`" + `
			}`)
			before := len(s.accessLog())
			for _, client := range clients {
				for _, path := range []string{"/", "/old", "/failing"} {
					answer := ask(t.Context(), client, s.url+path)
					got[i] += fmt.Sprintln(path, answer.StatusCode, answer.body, answer.err)
				}
			}
			eventually(t, func() error {
				logged := s.accessLog()[before:]
				if len(logged) != 6 {
					return fmt.Errorf("%d requests are logged, want 6", len(logged))
				}
				got[i] += fmt.Sprint(logged)
				return nil
			})
		}
		if got[0] != got[1] || !strings.Contains(got[0], "404 418 GET") {
			t.Errorf("without a gate\n%s\nbehind one\n%s", got[0], got[1])
		}
	})
}
