package maintenance

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"example.com/caddy-maintenance/internal/store"
)

// G1, G5, G10: Reloads disturb nothing, and leave nothing behind, while requests are let
// in, held and blocked, a page is fetched, and another instance switches a site.
func TestReloadsUnderLoad(t *testing.T) {
	reloads := 200
	if n, err := strconv.Atoi(os.Getenv("MAINTENANCE_TEST_RELOADS")); err == nil {
		reloads = n // of a soak
	}
	var appRequests, answered, refused atomic.Int64
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		appRequests.Add(1)
		select { // some last over several reloads
		case <-time.After(rand.N(30 * time.Millisecond)):
		case <-r.Context().Done():
		}
		_, _ = io.WriteString(w, "app")
	}))
	t.Cleanup(app.Close)
	pages := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, "<!DOCTYPE html><p>Back soon.</p>")
	}))
	t.Cleanup(pages.Close)
	s := prepare(t)
	s.options = "grace_period 10s\nmaintenance {\nsync_interval 100ms\n}"
	directives := func(n int) string {
		// Connections to the app that are kept would outlive their config.
		proxy := "reverse_proxy " + strings.TrimPrefix(app.URL, "http://") + " {\ntransport http {\nkeepalive off\n}\n}"
		return fmt.Sprintf(`
			header X-Config %d
			handle /closed {
				maintenance closed {
					page %s
				}
				%s
			}
			handle /held {
				maintenance held
				%[3]s
			}
			handle /other {
				maintenance other
				%[3]s
			}
			handle {
				maintenance shop
				%[3]s
			}`, n, pages.URL+"/"+strconv.Itoa(n%3), proxy)
	}
	s.reload(directives(0))
	s.put("closed", "")

	// left is what there is, while it may still become less.
	left := func() (goroutines int, heap uint64) {
		client.CloseIdleConnections()
		runtime.GC()
		var memory runtime.MemStats
		runtime.ReadMemStats(&memory)
		return runtime.NumGoroutine(), memory.HeapAlloc
	}
	visitor := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	loaded := 0
	// storm reloads so many times under load, and returns what is left when that has ended.
	storm := func(reloads int) (goroutines int, heap uint64) {
		s.put("held", `{"hold": "5m"}`)
		var ending atomic.Bool
		var workers sync.WaitGroup
		run := func(work func(i int)) {
			workers.Go(func() {
				for i := 0; !ending.Load(); i++ {
					work(i)
				}
			})
		}
		visit := func(path string, accepted ...int) {
			got := ask(t.Context(), visitor, s.url+path)
			if got.err != nil {
				refused.Add(1) // a connection that the closing listener had not accepted; see send
				return
			}
			if got.body == "app" {
				answered.Add(1)
			}
			for _, code := range accepted {
				if got.code == code && (code == http.StatusOK) == (got.body == "app") {
					return
				}
			}
			if !ending.Load() {
				t.Errorf("%s got %d %.50q", path, got.code, got.body)
			}
		}
		for range 3 {
			run(func(int) { visit("/", http.StatusOK) })
			run(func(int) { visit("/held", http.StatusServiceUnavailable) }) // at each reload
		}
		run(func(int) { visit("/closed", http.StatusServiceUnavailable) })
		run(func(int) { visit("/other", http.StatusOK, http.StatusServiceUnavailable) })
		run(func(i int) {
			s.storage.set(store.Key("other"), fmt.Sprintf(`{"version": %d, "enabled": %t}`, time.Now().UnixMicro(), i%2 == 0))
			s.storage.set(store.MarkerKey, fmt.Sprint(i))
			<-time.After(20 * time.Millisecond)
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
		workers.Wait()
		for _, site := range []string{"shop", "closed", "held", "other"} {
			eventually(t, func() error {
				if got := s.status(site); got["in_flight"] != 0.0 || got["held"] != 0.0 {
					return fmt.Errorf("%v", got)
				}
				return nil
			})
		}
		return left()
	}
	goroutines, heap := storm(reloads / 4)
	goroutinesAfter, heapAfter := storm(reloads - reloads/4)
	t.Logf("%d reloads, %d requests to the app, %d not accepted; goroutines %d, then %d; heap %d KiB, then %d",
		reloads, appRequests.Load(), refused.Load(), goroutines, goroutinesAfter, heap>>10, heapAfter>>10)
	if appRequests.Load() != answered.Load() {
		t.Errorf("%d requests reached the app, and %d were answered", appRequests.Load(), answered.Load())
	}
	eventually(t, func() error {
		goroutinesAfter, heapAfter := left()
		if goroutinesAfter > goroutines+20 {
			return fmt.Errorf("%d goroutines, %d after a quarter of the reloads", goroutinesAfter, goroutines)
		}
		if heapAfter > heap+heap/2+4<<20 {
			return fmt.Errorf("a heap of %d bytes, %d after a quarter of the reloads", heapAfter, heap)
		}
		return nil
	})
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	noSiteIsLeft(t)
	noPageIsLeft(t)
}
