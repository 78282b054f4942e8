package maintenance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"example.com/caddy-maintenance/internal/inflight"
)

// terminateLimit is how long after its moment a request may be terminated in a test.
const terminateLimit = 6 * time.Second

// The moment

// Time counts from when this instance began to keep requests out, whenever that was
// stored, and whenever and however often it is said how long.
func TestMomentOfTermination(t *testing.T) {
	const ms = time.Millisecond
	change := func(enabled bool, options string) func(*configuredSite) {
		return func(s *configuredSite) {
			s.read(fmt.Sprintf(`{"version": %d, "enabled": %t, "since": "1970-01-01T00:00:00Z"%s}`, s.Current().Version()+1, enabled, options))
		}
	}
	on := func(terminateAfter string) func(*configuredSite) {
		return change(true, fmt.Sprintf(`, "terminate_after": %q`, terminateAfter))
	}
	off := change(false, "")
	until := func(s *configuredSite) {
		change(true, fmt.Sprintf(`, "terminate_after": "1500ms", "until": %q`, time.Now().Add(700*ms).Format(time.RFC3339Nano)))(s)
	}
	readAgain := func(s *configuredSite) {
		s.Reload(time.Now())
		s.read(``)
	}
	type step struct {
		at time.Duration
		do func(*configuredSite)
	}
	for name, test := range map[string]struct {
		steps []step
		want  time.Duration // 0 for never
	}{
		"off all along": {},
		"not set":       {[]step{{0, on("")}}, 0},
		"unreadable":    {[]step{{0, on("-1s")}}, 0},
		"set":           {[]step{{0, on("400ms")}}, 400 * ms},
		"set later":     {[]step{{0, on("")}, {100 * ms, on("400ms")}}, 400 * ms},
		"past":          {[]step{{0, on("")}, {200 * ms, on("1ms")}}, 200 * ms},
		"put off":       {[]step{{0, on("300ms")}, {100 * ms, on("600ms")}}, 600 * ms},
		"put forward":   {[]step{{0, on("1h")}, {100 * ms, on("300ms")}}, 300 * ms},
		"repeated":      {[]step{{0, on("400ms")}, {200 * ms, on("400ms")}}, 400 * ms},
		"cleared":       {[]step{{0, on("300ms")}, {100 * ms, on("")}}, 0},
		"opened":        {[]step{{0, on("300ms")}, {100 * ms, off}}, 0},
		"on again":      {[]step{{0, on("300ms")}, {100 * ms, off}, {200 * ms, on("300ms")}}, 500 * ms},
		"ends before":   {[]step{{0, until}}, 0},
		"read again":    {[]step{{0, on("400ms")}, {200 * ms, readAgain}}, 400 * ms},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				shop := newTestSite("shop")
				shop.read(``)
				req, began, at := admitOne(shop), time.Now(), time.Duration(0)
				context.AfterFunc(req.Context(), func() { at = time.Since(began) })
				for _, step := range test.steps {
					time.Sleep(time.Until(began.Add(step.at)))
					step.do(shop)
				}
				time.Sleep(2 * time.Hour)
				synctest.Wait()
				if terminated := shop.requests[wasTerminated].Load(); at != test.want || (terminated == 1) != (at > 0) {
					t.Errorf("%d terminated after %s, want %s", terminated, at, test.want)
				}
			})
		})
	}
}

// A timer that is late, when the site has been opened and closed again, has found
// requests that are none of its business.
func TestLateTimerLeavesTheNextMaintenanceAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shop := newTestSite("shop")
		shop.read(`{"version": 1, "enabled": true, "terminate_after": "1ms"}`)
		first := shop.Current().BlockedSince()
		time.Sleep(time.Second)
		shop.read(`{"version": 2, "enabled": false}`)
		req := admitOne(shop)
		shop.terminate(shop.inFlight.All(), first)
		shop.read(`{"version": 3, "enabled": true, "terminate_after": "1ms"}`)
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

// Requests of a config that is gone are terminated as those of the one that is there.
func TestTerminationSurvivesReloads(t *testing.T) {
	directives := slowShop(t)
	s := start(t, directives)
	release, finished := s.slowRequest()
	defer release()
	s.put("shop", `{"terminate_after": "300ms"}`)
	s.reload(directives)
	if got := <-finished; got != 503 {
		t.Errorf("got %d, want 503", got)
	}
}

// The answer

// A terminated request gets the page and nothing of the app's. It is not in flight while
// that is sent, so a client that does not read it is not waited for; and a gate further
// outside that terminates it meanwhile does not answer again.
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
				shop.read(`{"version": 1, "enabled": true, "message": "Back at three."}`)
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
		if err != nil || answers != 1 || got.StatusCode != 503 || !strings.Contains(w.Body.String(), "Back at three.") || all.inFlight.Count() != 0 {
			t.Errorf("HTTP/%d: %v, %d answers, %d %q", protocol, err, answers, got.StatusCode, w.Body)
		}
		if text := fmt.Sprint(got.Header); strings.Contains(text, "of the app") || !strings.Contains(text, "X-Outside:[kept]") ||
			got.Header.Get("Retry-After") != "300" || strings.Contains(text, "Connection:[close]") != (protocol == 1) {
			t.Errorf("HTTP/%d: got %s", protocol, text)
		}
	}
}

// A request that has failed is terminated in its error routes, with the writer that they
// get. If there are none, its connection may be another's, and is left alone.
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
		shop.read(`{"version": 1, "enabled": true}`)
		err := errorRoutes{}.ServeHTTP(routed, r, caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			return caddyhttp.Error(http.StatusBadGateway, r.Context().Err())
		}))
		if n := shop.inFlight.Count(); err != nil || routed.Code != 503 || n != 0 {
			t.Errorf("got %d %v, and %d in flight", routed.Code, err, n)
		}
		serverIsDone()
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

// HTTP/1: the server, too, waits for the rest of an upload, if it is small, before it uses
// the connection again. One that is still being sent keeps no client from reading the page.
func TestUploadIsTerminatedWhateverTheServerWaitsFor(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/early" { // begins to answer what is still being sent
			_ = http.NewResponseController(w).EnableFullDuplex()
			_, _ = io.WriteString(w, "early")
			_ = http.NewResponseController(w).Flush()
		}
		_, _ = io.Copy(io.Discard, r.Body)
	}))
	t.Cleanup(app.Close)
	for name, options := range map[string]string{
		"by default":            "",
		"full duplex":           "servers {\nenable_full_duplex\n}",
		"without idle timeouts": "servers {\ntimeouts {\nread_body_idle -1s\nwrite_idle -1s\n}\n}",
	} {
		t.Run(name, func(t *testing.T) {
			s := prepare(t)
			s.options = options
			s.reload("maintenance shop\nhandle {\nreverse_proxy " + strings.TrimPrefix(app.URL, "http://") + "\n}")
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
			s.awaitInFlight(int64(len(conns)))
			s.put("shop", `{"terminate_after": "100ms"}`)
			for request, conn := range conns {
				if strings.Contains(request, "/late?endless") && strings.Contains(request, "00000") {
					go func() {
						for err := error(nil); err == nil; {
							_, err = conn.Write(make([]byte, 16<<10))
						}
					}()
				}
				_ = conn.SetReadDeadline(time.Now().Add(terminateLimit))
				answer, err := io.ReadAll(conn)
				if err != nil {
					t.Errorf("%q: got %q %v, want the end of the connection", request, answer, err)
				}
				page := strings.HasPrefix(string(answer), "HTTP/1.1 503 ") && strings.Contains(string(answer), "\r\nConnection: close\r\n")
				if page != strings.Contains(request, "/late") || strings.HasSuffix(string(answer), "\r\n0\r\n\r\n") {
					t.Errorf("%q: got %q", request, answer)
				}
			}
			s.awaitInFlight(0)
		})
	}
}

// A request that has failed is one request, also where the site's gate is among the error
// routes, or comes twice.
//
// G5
func TestRequestThatMeetsSeveralGatesOfASiteIsCountedOnce(t *testing.T) {
	s := prepare(t)
	s.after = "handle_errors {\nroute {\nmaintenance shop\nreverse_proxy " + upstream(t) + "\n}\n}"
	s.reload("route {\nmaintenance shop\nmaintenance wiki\nmaintenance shop\nerror 502\n}")
	release, finished := s.slowRequest()
	for _, site := range []string{"shop", "wiki"} {
		if got := s.put(site, "")["in_flight"]; got != 1.0 {
			t.Errorf("%s: in_flight is %v, want 1", site, got)
		}
	}
	release()
	<-finished
	s.status("shop?wait=10s")
	if left := append(siteNamed("shop").inFlight.All(), siteNamed("wiki").inFlight.All()...); len(left) > 0 {
		t.Errorf("%d are left", len(left))
	}
	s.delete("wiki")
	s.wantStatus("/slow", 503)
}

// A gate that stands among the error routes only leaves them as they are, however many
// sites have some.
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
				request.Host, want = fmt.Sprintf("other%d.test%s", i, port), fmt.Sprintf("other%d", i)
			}
			if got := roundTrip(client, request); got.code != 404 || got.body != want {
				t.Errorf("%d other sites: %s got %d %q, want %q", others, request.Host, got.code, got.body, want)
			}
		}
		s.put("shop", "")
		s.wantStatus("/", 503)
		s.delete("shop")
		if err := caddy.Stop(); err != nil {
			t.Fatal(err)
		}
	}
}

// An app may go on with a request that was terminated in goroutines of its own, as
// reverse_proxy does when it dials, and these read the request's variables.
//
// G10: this is for the race detector.
func TestTerminationDoesNotRaceWithADial(t *testing.T) {
	arrived, over := make(chan struct{}), make(chan struct{})
	var dials sync.WaitGroup
	var reads atomic.Int64
	s := start(t, "log\nmaintenance shop\n"+testApp(t, func(_ http.ResponseWriter, r *http.Request) error {
		ctx := r.Context()
		dials.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
					caddyhttp.GetVar(ctx, "reverse_proxy.dial_info")
					reads.Add(1)
				}
			}
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
	eventually(t, func() error {
		if entries := s.accessLog(); len(entries) != 1 || !strings.Contains(entries[0], "terminated") || !strings.Contains(entries[0], "level:info") {
			return fmt.Errorf("the access log has %s, want one request that was terminated, at level info", entries)
		}
		return nil
	})
	for before := reads.Load(); reads.Load() < before+1000; {
		runtime.Gosched() // as the race detector has to see some
	}
	close(over)
	dials.Wait()
}

// What is behind the gate

// Who is in front of the gate sees what is done to the request behind it.
func TestRequestIsTheSameWithAndWithoutGate(t *testing.T) {
	const seen = `{http.request.method} {http.request.uri} {http.request.host} {http.request.header.X-Added} {http.request.orig_uri} {http.vars.behind}`
	s := prepare(t)
	s.options = "servers {\nprotocols h1 h2c\n}"
	s.after = "handle_errors {\nrespond `{err.status_code} " + seen + "` 404\n}"
	var got [2]string
	for i, gate := range []string{"", "maintenance shop"} {
		s.reload(`
			log
			log_append method {http.request.method}
			log_append uri {http.request.uri}
			log_append host {http.request.host}
			log_append added {http.request.header.X-Added}
			` + gate + `
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
		for _, client := range holdClients {
			for _, path := range []string{"/", "/old", "/failing"} {
				answer := ask(t.Context(), client, s.url+path)
				got[i] += fmt.Sprintln(path, answer.code, answer.body, answer.err)
			}
		}
		eventually(t, func() error {
			logged := s.accessLog()[before:]
			if len(logged) != 6 {
				return fmt.Errorf("%d requests are logged, want 6", len(logged))
			}
			got[i] += strings.Join(logged, "\n")
			return nil
		})
	}
	if got[0] != got[1] || !strings.Contains(got[0], "404 418 GET") {
		t.Errorf("without a gate\n%s\nbehind one\n%s", got[0], got[1])
	}
}

// G10
func TestRequestsLeaveNothingBehind(t *testing.T) {
	s := start(t, slowShop(t)+`
		error /failing 502
		handle /proxied {
			reverse_proxy `+upstream(t)+`
		}`)
	visit := func() {
		for i, path := range []string{"/", "/failing", "/proxied"} {
			if got := s.get(path).StatusCode; got != []int{200, 502, 200}[i] {
				t.Errorf("%s got %d", path, got)
			}
		}
	}
	visit()
	settled := func() int {
		client.CloseIdleConnections()
		runtime.GC()
		return runtime.NumGoroutine()
	}
	before := settled()
	for range 334 {
		visit()
	}
	eventually(t, func() error {
		if n, after := len(siteNamed("shop").inFlight.All()), settled(); n > 0 || after > before+10 {
			return fmt.Errorf("%d requests are remembered, and there are %d goroutines, %d before", n, after, before)
		}
		return nil
	})
}

// Everything at once

// G5, G10: whatever is switched meanwhile, a client gets all of the app's answer, a 503, or
// an error.
func TestConcurrentTerminationsSwitchesReloadsAndRequests(t *testing.T) {
	const whole = "the first half, the second half"
	serve := func(w http.ResponseWriter, r *http.Request) error {
		pause := func() error {
			select {
			case <-r.Context().Done():
				return context.Canceled
			case <-time.After(rand.N(4 * time.Millisecond)):
				return nil
			}
		}
		if r.URL.Query().Has("length") {
			w.Header().Set("Content-Length", strconv.Itoa(len(whole)))
		}
		if pause() != nil {
			return nil
		}
		_, _ = io.WriteString(w, whole[:16])
		if r.URL.Query().Has("flush") {
			_ = http.NewResponseController(w).Flush()
		}
		if pause() != nil {
			panic(http.ErrAbortHandler)
		}
		_, _ = io.WriteString(w, whole[16:])
		return nil
	}
	proxied := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _ = serve(w, r) }))
	t.Cleanup(proxied.Close)
	s := prepare(t)
	s.options = "servers {\nprotocols h1 h2c\n}"
	s.after = "handle_errors {\nrespond Sorry. 502\n}"
	directives := "maintenance shop\nencode\nerror /failing 502\n" +
		"handle /proxied {\nreverse_proxy " + proxied.Listener.Addr().String() + "\n}\n" +
		"handle /here {\n" + testApp(t, serve) + "\n}"
	s.reload(directives)

	ctx, stop := context.WithCancel(t.Context())
	var workers sync.WaitGroup
	run := func(work func()) {
		workers.Go(func() {
			for ctx.Err() == nil {
				work()
			}
		})
	}
	var terminated, served atomic.Int64
	for i, path := range []string{"/here", "/proxied?flush", "/proxied?length", "/here?flush", "/here?length&flush", "/failing"} {
		run(func() {
			got := ask(t.Context(), holdClients[i%2], s.url+path)
			switch {
			case got.err != nil || got.code == 502 && path == "/failing":
			case got.code == 503 && strings.Contains(got.body, "Down for maintenance"):
				terminated.Add(1)
			case got.code == 200 && got.body == whole && path != "/failing":
				served.Add(1)
			default:
				t.Errorf("%s got %d %q", path, got.code, got.body)
			}
		})
	}
	awaitMore := func(count *atomic.Int64) {
		before := count.Load()
		eventually(t, func() error {
			if ctx.Err() == nil && count.Load() == before {
				return errors.New("no request has got so far")
			}
			return nil
		})
	}
	run(func() {
		s.api("PUT", "/maintenance/shop", fmt.Sprintf(`{"terminate_after": "%dms"}`, 1+rand.N(4)))
		s.api("PATCH", "/maintenance/shop", fmt.Sprintf(`{"terminate_after": "%dus"}`, 1+rand.N(4000)))
		s.api("GET", "/maintenance/shop?wait=10s", "")
		s.api("DELETE", "/maintenance/shop", "")
		awaitMore(&served)
	})
	for range 15 {
		s.reload(directives)
		awaitMore(&terminated)
	}
	stop()
	workers.Wait()
	s.delete("shop")
	s.awaitInFlight(0)
	s.wantStatus("/", 200)
}
