package maintenance

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"example.com/caddy-maintenance/internal/store"
)

// Reloads disturb nothing, and leave nothing behind, while requests are let in, held,
// blocked and terminated, a page is fetched, and another instance switches a site.
// Through all switches, a client gets all of the app's answer, a 503, or an error.
//
// G1, G5, G10
func TestReloadsUnderLoad(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		reloads := 80
		if n, err := strconv.Atoi(os.Getenv("MAINTENANCE_TEST_RELOADS")); err == nil {
			reloads = n // of a soak
		}
		var appRequests, answered, refused, whole, terminated atomic.Int64
		app := newApp(t, func(w http.ResponseWriter, r *http.Request) {
			appRequests.Add(1)
			select { // some last over several reloads
			case <-time.After(rand.N(30 * time.Millisecond)):
			case <-r.Context().Done():
			}
			_, _ = io.WriteString(w, "app")
		})
		pages := newApp(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, "<!DOCTYPE html><p>Back soon.</p>")
		})
		s := k.prepare(t)
		s.options += "grace_period 10s\nmaintenance {\nsync_interval 100ms\n}"
		s.after = "handle_errors {\nrespond Sorry. 502\n}"
		here := testApp(t, serveInHalves)
		proxied := newApp(t, func(w http.ResponseWriter, r *http.Request) { _ = serveInHalves(w, r) })
		directives := func(n int) string {
			proxy := func(app string) string { // connections that are kept would outlive their config
				return "reverse_proxy " + app + " {\ntransport http {\nkeepalive off\n}\n}\n}\n"
			}
			return fmt.Sprintf("header X-Config %d\nhandle /closed {\nmaintenance closed {\npage http://%s/%d\n}\n", n, pages, n%3) + proxy(app) +
				"handle /cut/* {\nmaintenance cut\nencode\nerror /cut/failing 502\nhandle /cut/here {\n" + here + "\n}\n" + proxy(proxied) +
				"handle /held {\nmaintenance held\n" + proxy(app) + "handle /other {\nmaintenance other\n" + proxy(app) +
				"handle {\nmaintenance shop\n" + proxy(app)
		}
		s.reload(directives(0))
		s.put("closed", "")

		// left returns how many goroutines and how much memory are in use.
		left := func() (goroutines int, heap uint64) {
			clients[0].CloseIdleConnections()
			clients[1].CloseIdleConnections()
			runtime.GC()
			var memory runtime.MemStats
			runtime.ReadMemStats(&memory)
			return runtime.NumGoroutine(), memory.HeapAlloc
		}
		loaded := 0
		// storm reloads under load, and returns what is left afterwards.
		storm := func(reloads int) (goroutines int, heap uint64) {
			s.put("held", `{"hold": "5m"}`)
			var ending atomic.Bool
			run, stop := startWorkers()
			visit := func(path string, accepted ...int) func(int) {
				return func(int) {
					got := ask(t.Context(), client, s.url+path)
					if got.err != nil {
						refused.Add(1) // a connection that the closing listener had not accepted; see send
						return
					}
					fromApp := got.body == "app"
					if fromApp {
						answered.Add(1)
					}
					if (!slices.Contains(accepted, got.StatusCode) || fromApp != (got.StatusCode == 200)) && !ending.Load() {
						t.Errorf("%s got %d %.50q", path, got.StatusCode, got.body)
					}
				}
			}
			for range 3 {
				run(visit("/", 200))
				run(visit("/held", 503)) // at each reload
			}
			run(visit("/closed", 503))
			run(visit("/other", 200, 503))
			run(func(i int) {
				s.storage.set(store.Key("other"), fmt.Sprintf(`{"version": %d, "enabled": %t}`, time.Now().UnixMicro(), i%2 == 0))
				s.storage.tell("shop")
				<-time.After(20 * time.Millisecond)
			})
			for i, path := range []string{"here", "proxied?flush", "proxied?length", "here?flush", "here?length&flush", "failing"} {
				run(func(int) {
					got := ask(t.Context(), clients[i%2], s.url+"/cut/"+path)
					switch {
					case got.err != nil || got.StatusCode == 502 && path == "failing":
					case got.StatusCode == 503 && strings.Contains(got.body, "Down for maintenance"):
						terminated.Add(1)
					case got.StatusCode == 200 && got.body == halves && path != "failing":
						whole.Add(1)
					default:
						t.Errorf("/cut/%s got %d %q", path, got.StatusCode, got.body)
					}
				})
			}
			run(func(int) {
				s.api("PUT", "/maintenance/cut", fmt.Sprintf(`{"terminate_after": "%dms"}`, 1+rand.N(4)))
				s.api("PATCH", "/maintenance/cut", fmt.Sprintf(`{"terminate_after": "%dus"}`, 1+rand.N(4000)))
				s.api("GET", "/maintenance/cut?wait=10s", "")
				s.api("DELETE", "/maintenance/cut", "")
				before := whole.Load()
				eventually(t, func() error {
					if !ending.Load() && whole.Load() == before {
						return errors.New("no request has got so far")
					}
					return nil
				})
			})
			for n := range reloads {
				loaded++
				s.reload(directives(loaded))
				eventually(t, func() error {
					got, err := try(http.MethodGet, s.url+"/closed", "", nil)
					if err == nil && got.Header.Get("X-Config") != strconv.Itoa(loaded) {
						err = fmt.Errorf("the config is %s, want %d", got.Header.Get("X-Config"), loaded)
					}
					return err
				})
				if n%10 == 9 {
					s.failLate(directives(0))
					s.failEarly(directives(0))
					if err := s.load("maintenance shop\nreverse_proxy {\nlb_policy nonsense\n}"); err == nil {
						t.Error("a wrong config was loaded")
					}
				}
			}
			ending.Store(true)
			s.delete("held")
			stop()
			for _, site := range []string{"shop", "closed", "held", "other", "cut"} {
				s.await(site, "in_flight", 0)
				s.await(site, "held", 0)
			}
			return left()
		}
		goroutines, heap := storm(reloads / 4)
		goroutinesAfter, heapAfter := storm(reloads - reloads/4)
		t.Logf("%d reloads, %d requests to the app, %d not accepted; goroutines %d, then %d; heap %d KiB, then %d",
			reloads, appRequests.Load(), refused.Load(), goroutines, goroutinesAfter, heap>>10, heapAfter>>10)
		if terminated.Load() == 0 || whole.Load() == 0 {
			t.Errorf("%d requests got the page of /cut, and %d the app's answer", terminated.Load(), whole.Load())
		}
		if appRequests.Load() != answered.Load() {
			t.Errorf("%d requests reached the app, and %d were answered", appRequests.Load(), answered.Load())
		}
		eventually(t, func() error {
			goroutinesAfter, heapAfter := left()
			if goroutinesAfter > goroutines+15 || heapAfter > heap+heap/2+4<<20 {
				return fmt.Errorf("%d goroutines and a heap of %d bytes, %d and %d after a quarter of the reloads",
					goroutinesAfter, heapAfter, goroutines, heap)
			}
			return nil
		})
		s.stop()
	})
}

const halves = "the first half, the second half"

// serveInHalves is an app that takes its time, and heeds its context.
func serveInHalves(w http.ResponseWriter, r *http.Request) error {
	isOver := func() bool {
		select {
		case <-r.Context().Done():
			return true
		case <-time.After(rand.N(4 * time.Millisecond)):
			return false
		}
	}
	if r.URL.Query().Has("length") {
		w.Header().Set("Content-Length", strconv.Itoa(len(halves)))
	}
	if isOver() {
		return nil
	}
	_, _ = io.WriteString(w, halves[:16])
	if r.URL.Query().Has("flush") {
		_ = http.NewResponseController(w).Flush()
	}
	if isOver() {
		panic(http.ErrAbortHandler)
	}
	_, _ = io.WriteString(w, halves[16:])
	return nil
}
