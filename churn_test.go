package maintenance

import (
	"encoding/json"
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
)

// repeats returns how often something is done in a test that a soak has last longer.
func repeats(variable string, usually int) int {
	if n, err := strconv.Atoi(os.Getenv(variable)); err == nil {
		return n
	}
	return usually
}

// G1, G5, G10: Reloads disturb nothing, and leave nothing behind, while requests are let
// in, held and blocked, a page is fetched, and another instance switches a site.
func TestReloadsUnderLoad(t *testing.T) {
	reloads := repeats("MAINTENANCE_TEST_RELOADS", 200)
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
			s.storage.set(recordKey("other"), fmt.Sprintf(`{"version": %d, "enabled": %t}`, time.Now().UnixMicro(), i%2 == 0))
			s.storage.set(switchKey, fmt.Sprint(i))
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
		least := func() int {
			client.CloseIdleConnections()
			runtime.GC()
			return runtime.NumGoroutine()
		}
		goroutines = least()
		for end := time.Now().Add(2 * time.Second); time.Now().Before(end); <-time.After(10 * time.Millisecond) {
			goroutines = min(goroutines, least())
		}
		var memory runtime.MemStats
		runtime.ReadMemStats(&memory)
		return goroutines, memory.HeapAlloc
	}
	goroutines, heap := storm(reloads / 4)
	goroutinesAfter, heapAfter := storm(reloads - reloads/4)
	t.Logf("%d reloads, %d requests to the app, %d not accepted; goroutines %d, then %d; heap %d KiB, then %d",
		reloads, appRequests.Load(), refused.Load(), goroutines, goroutinesAfter, heap>>10, heapAfter>>10)
	if appRequests.Load() != answered.Load() {
		t.Errorf("%d requests reached the app, and %d were answered", appRequests.Load(), answered.Load())
	}
	if goroutinesAfter > goroutines+20 {
		t.Errorf("%d goroutines, %d after a quarter of the reloads", goroutinesAfter, goroutines)
	}
	if heapAfter > heap+heap/2+4<<20 {
		t.Errorf("a heap of %d bytes, %d after a quarter of the reloads", heapAfter, heap)
	}
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	noSiteIsLeft(t)
	noPageIsLeft(t)
}

// model is what a site has to be after some switches, by the design's table of states.
type model struct {
	State, Message string
	Since          time.Time
}

// G2, G3, G4: Whatever is done at whichever instance, and whichever of them is killed,
// the site is what the table of states says.
func TestRandomSwitchesFollowTheTableOfStates(t *testing.T) {
	seed := uint64(repeats("MAINTENANCE_TEST_SEED", int(time.Now().UnixNano()&0xffffff)))
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("MAINTENANCE_TEST_SEED=%d", seed)

	storage := t.TempDir()
	fleet := make([]*process, 3)
	for i := range fleet {
		fleet[i] = newProcess(t)
		fleet[i].options = fmt.Sprintf("storage file_system %s\nmaintenance {\nsync_interval 100ms\n}", storage)
		fleet[i].start()
	}
	is := func(p *process, want model) error {
		got, err := p.try(http.MethodGet, "")
		if err != nil {
			return err
		}
		var m model
		if err := json.Unmarshal([]byte(got.body), &m); err != nil {
			return err
		}
		if m.State != want.State || m.Message != want.Message || !m.Since.Equal(want.Since) {
			return fmt.Errorf("the site is %+v, want %+v", m, want)
		}
		visit, err := try(http.MethodGet, p.url, "", nil)
		if err != nil {
			return err
		}
		if open := visit.StatusCode == http.StatusOK; open != (want.State == "off") {
			return fmt.Errorf("a visitor got %d of a site that is %s", visit.StatusCode, want.State)
		}
		return nil
	}
	now := model{State: "off"}
	var done []string
	for n := range repeats("MAINTENANCE_TEST_SWITCHES", 200) {
		i := random.IntN(len(fleet))
		p := fleet[i]
		operation := []string{"PUT", "PATCH", "DELETE", "PUT", "PATCH", "DELETE", "kill", "reload"}[random.IntN(8)]
		done = append(done, fmt.Sprintf("%s at %d", operation, i))
		failed := func(err error) {
			t.Helper()
			t.Fatalf("%v\nafter %s", err, strings.Join(done[max(0, len(done)-10):], ", "))
		}
		switch operation {
		case "kill":
			p.kill()
			p.start()
			if err := is(p, now); err != nil {
				failed(err)
			}
		case "reload":
			if err := p.reload(fmt.Sprint(n)); err != nil {
				failed(err)
			}
		default:
			message := fmt.Sprintf("Migration %d.", n)
			before := now
			code := http.StatusOK
			switch {
			case operation == "PUT", operation == "PATCH" && now.State == "on":
				now.State, now.Message = "on", message
			case operation == "PATCH":
				code = http.StatusConflict
			case now.State == "on" || now.Since.IsZero():
				now = model{State: "off"}
			}
			began := time.Now().Truncate(time.Second)
			got, err := p.try(operation, map[bool]string{true: fmt.Sprintf(`{"message": %q}`, message)}[operation != "DELETE"])
			if err != nil || got.StatusCode != code {
				failed(fmt.Errorf("%s got %v %d %s, want %d", operation, err, got.StatusCode, got.body, code))
			}
			if code == http.StatusOK && (now.State != before.State || now.Since.IsZero()) {
				var m model
				if err := json.Unmarshal([]byte(got.body), &m); err != nil {
					failed(err)
				}
				if now.Since = m.Since; now.Since.Before(began) || now.Since.After(time.Now()) {
					failed(fmt.Errorf("since %s, want now", now.Since))
				}
			}
			if err := is(p, now); err != nil {
				failed(err)
			}
		}
		if random.IntN(2) == 0 {
			continue // the others may not know yet
		}
		for _, p := range fleet {
			eventually(t, func() error { return is(p, now) })
		}
	}
}
