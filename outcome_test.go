package maintenance

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// What is done to each request is in the access log, the placeholder and the metrics.
func TestOutcomes(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		app := newWitness(t)
		site := `
		log
		log_append outcome {http.maintenance.outcome}
		vars /debug log_level debug
		maintenance shop {
			bypass /healthz
			bypass /dead
		}
		header X-Outcome "({http.maintenance.outcome})"
		handle /dead {
			reverse_proxy localhost:1
		}`
		s := k.start(t, app.behind(site))
		seenBehind := func(got response, want string) {
			t.Helper()
			if got := got.Header.Get("X-Outcome"); got != want {
				t.Errorf("a handler behind the gate sees the outcome %s, want %s", got, want)
			}
		}
		seenBehind(s.get("/open"), "()")
		s.put("shop", withSecret)
		s.wantStatus("/blocked", 503)
		s.wantStatus("/debug", 503) // a level that the site sets is kept
		seenBehind(s.get("/healthz"), "(bypassed)")
		s.wantStatus("/dead", 502) // what fails of itself is logged as ever
		cookie, _, _ := strings.Cut(s.get(testLink).Header.Get("Set-Cookie"), ";")
		s.do(http.MethodGet, "/cookie", http.Header{"Cookie": {cookie}})

		s.put("shop", `{"hold": "5m"}`)
		held := s.hold(5)
		if got := s.metrics()["held_requests shop"]; got != 5 {
			t.Errorf("%v are held, want 5", got)
		}
		s.delete("shop")
		for range 5 {
			seenBehind(held.expectApp(t).response, "(released)")
		}
		s.await("shop", "held", 0)
		s.expectAccess("/0", "info 200 held/released")
		s.put("shop", `{"hold": "1ms"}`)
		s.wantStatus("/too-long", 503)

		s.put("shop", `{"hold": "5m"}`)
		ctx, leave := context.WithCancel(t.Context())
		left := make(visits, 4)
		for i := range 4 { // with a body, without, and of both protocols
			left.send(ctx, clients[i%2], s.url+"/left", i)
		}
		s.await("shop", "held", 4)
		leave()
		s.await("shop", "held", 0)
		for i := range 4 {
			s.expectAccess(fmt.Sprint("/left/", i), "info 499 held")
		}
		held = s.hold(1)
		s.reload(app.behind(site + "\nheader X-Config new"))
		held.expectPage(t, "1")
		s.expectAccess("/0", "info 503 blocked/blocked")

		for uri, want := range map[string]string{
			"/open":     "info 200",
			"/blocked":  "info 503 blocked/blocked",
			"/debug":    "debug 503 blocked/blocked",
			"/healthz":  "info 200 bypassed/bypassed",
			"/dead":     "error 502 bypassed/bypassed",
			"/cookie":   "info 200 bypassed/bypassed",
			"/too-long": "info 503 blocked/blocked",
		} {
			s.expectAccess(uri, want)
		}
		app.expect(t, 8) // none whose client has left
		got := s.metrics()
		for outcome, want := range map[string]float64{"blocked": 4, "bypassed": 4, "released": 5, "terminated": 0} {
			if got := got["requests_total shop "+outcome]; got != want {
				t.Errorf("%v %s, want %v", got, outcome, want)
			}
		}
	})
}

// A terminated request is counted and logged once: before its answer or in the middle of it,
// and by a config that has gone. A request that does not end stays in flight, even if the options
// change afterwards; so does a failed one whose error route does not end.
func TestOutcomeOfTermination(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		var here sync.WaitGroup
		release := make(chan struct{})
		stubborn := testApp(t, func(http.ResponseWriter, *http.Request) error {
			here.Done()
			<-release
			return nil
		})
		begun := newApp(t, func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).Flush()
			here.Done()
			<-r.Context().Done()
		})
		s := k.prepare(t)
		s.after = "handle_errors {\n" + stubborn + "\n}"
		directives := "log\n" + slowShop(t) + "\nerror /failing 502\n" +
			"handle /stream {\nreverse_proxy " + begun + "\n}\nhandle /stubborn {\n" + stubborn + "\n}"
		s.reload(directives)
		releaseSlow, slow := s.slowRequest()
		defer releaseSlow()
		here.Add(3)
		var visitors sync.WaitGroup
		for _, path := range []string{"/stream", "/stubborn", "/failing"} {
			visitors.Go(func() { ask(t.Context(), clients[0], s.url+path) })
		}
		here.Wait()
		if got := s.metrics()["in_flight_requests shop"]; !k.template && got != 4 {
			t.Errorf("%v are in flight, want 4", got)
		}
		s.put("shop", `{"terminate_after": "300ms"}`)
		s.reload(directives)
		if got := <-slow; got != 503 {
			t.Errorf("got %d, want 503", got)
		}
		s.logged("terminated requests that were still in flight", `"site":"shop"`, `"requests":4`)
		s.await("shop", "in_flight", 2)
		for i := range 3 {
			s.patch("shop", fmt.Sprintf(`{"message": "%d"}`, i))
			shop := siteNamed("shop") // terminated again by a timer, and here
			shop.terminate(shop.inFlight.All(), shop.Current().BlockedSince())
		}
		got := s.metrics()
		if got["requests_total shop terminated"] != 4 || got["requests_total shop blocked"] != 0 || got["in_flight_requests shop"] != 2 {
			t.Errorf("got %v", got)
		}
		if n := s.countLogged("terminated requests"); n != 1 {
			t.Errorf("logged %d times, want once", n)
		}
		close(release)
		visitors.Wait()
		s.expectAccess("/slow", "info 503 terminated")
		s.expectAccess("/stream", "info 200 terminated")
	})
}

// A client that leaves while its site is being read is not logged as an error.
func TestClientThatLeavesWhileTheSiteLoadsIsNoError(t *testing.T) {
	s := prepare(t)
	hang, answer := hangOn("load", shopKey)
	s.storage.setFault(hang)
	arrived := make(chan struct{}, 2)
	s.reload("log\nroute {\n" + testMiddleware(t, func(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
		arrived <- struct{}{}
		return next.ServeHTTP(w, r)
	}) + "\nmaintenance shop\n}")
	ctx, leave := context.WithCancel(t.Context())
	go func() { <-arrived; leave() }()
	if got := ask(ctx, client, s.url); got.err == nil {
		t.Fatalf("got %d before the site was read", got.StatusCode)
	}
	s.expectAccess("/", "info 499")
	if n := s.countLogged(`"logger":"http.log.error"`); n > 0 {
		t.Errorf("%d errors are logged", n)
	}
	answer()
	s.wantStatus("/", 200)
}
