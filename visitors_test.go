package maintenance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"example.com/caddy-maintenance/internal/store"
)

// Visitors choose names of sites that come from placeholders. A site that was never switched
// costs no access to the storage, and no memory that stays.
//
// G8, G10
func TestNamesOfVisitorsLeaveNothingBehind(t *testing.T) {
	visits := 50_000 // and a million in .ci/run
	if given := os.Getenv("MAINTENANCE_TEST_NAMES"); given != "" {
		var err error
		visits, err = strconv.Atoi(given)
		noError(t, err)
	}
	s := prepare(t)
	s.options += "maintenance {\nsync_interval off\n}" // so that no sync reads anything
	_, port, _ := net.SplitHostPort(freeAddress(t))
	s.before = fmt.Sprintf("http://:%s {\nmaintenance {host}\nrespond 200\n}", port)
	s.storage.set(store.Key("acme.example"), benchOn)
	used := make(chan string, 100)
	s.storage.setFault(func(_ context.Context, _, key string) error {
		select {
		case used <- key:
		default: // enough to fail
		}
		return nil
	})
	synced := lastSync.Load()
	s.reload("")
	app, err := runningApp()
	noError(t, err)
	eventually(t, func() error {
		if lastSync.Load() == synced {
			return errors.New("the follower has not begun")
		}
		for s := range app.sites.inMemory() {
			if s.followed.Behind() {
				return fmt.Errorf("%s has still to be read", s.Name)
			}
		}
		for len(used) > 0 {
			<-used
		}
		return nil
	})
	server := serverOn(t, ":"+port)

	visit := func(visits int) {
		var n atomic.Int64
		var workers sync.WaitGroup
		for range runtime.GOMAXPROCS(0) {
			workers.Go(func() {
				r, w := httptest.NewRequest(http.MethodGet, "/", nil), new(benchWriter)
				for i := n.Add(1); i <= int64(visits); i = n.Add(1) {
					visitor := *r
					host, want := nameOfVisitor(i)
					visitor.Host = host
					w.reset()
					if server.ServeHTTP(w, &visitor); w.status != want {
						t.Errorf("%s got %d, want %d", host, w.status, want)
					}
				}
			})
		}
		workers.Wait()
	}
	left := func() (heap uint64, what string) {
		what = fmt.Sprint(sitesInMemory(), " sites in memory, listed: ", s.api(http.MethodGet, "/maintenance", "").body)
		for line := range strings.Lines(s.api(http.MethodGet, "/metrics", "").body) {
			if series, _, _ := strings.Cut(line, " "); strings.HasPrefix(series, "caddy_maintenance") {
				what += "\n" + series
			}
		}
		client.CloseIdleConnections()
		runtime.GC()
		runtime.GC() // what pools held on to
		var memory runtime.MemStats
		runtime.ReadMemStats(&memory)
		return memory.HeapAlloc, what
	}

	visit(visits / 100) // so that pools are filled
	heapBefore, before := left()
	visit(visits)
	wantEqual(t, "accesses to the storage", len(used), 0)
	heapAfter, after := left()
	wantEqual(t, "what is left", after, before)
	t.Logf("%d names: heap of %.0f KiB before, %.0f KiB after", visits, float64(heapBefore)/1024, float64(heapAfter)/1024)
	if heapAfter > heapBefore+300<<10 {
		t.Errorf("the heap has grown from %d to %d bytes", heapBefore, heapAfter)
	}
}

// nameOfVisitor returns another host for each number, some of which name no site, and the
// status that its request gets. One is in maintenance.
func nameOfVisitor(i int64) (host string, want int) {
	switch i % 5 {
	case 0:
		return fmt.Sprintf("SHOP-%d.Example.:8443", i), 200
	case 1:
		return fmt.Sprintf("shop~%d.example", i), 200
	case 2:
		return fmt.Sprintf("%064d.example", i), 200
	}
	if i%1000 == 3 {
		return "acme.example", 503
	}
	return fmt.Sprintf("shop-%d.example", i), 200
}

// serverOn returns the server of the running config that listens there.
func serverOn(t *testing.T, address string) *caddyhttp.Server {
	t.Helper()
	app, err := caddy.ActiveContext().App("http")
	noError(t, err)
	for _, server := range app.(*caddyhttp.App).Servers {
		if slices.Contains(server.Listen, address) {
			return server
		}
	}
	t.Fatalf("nothing listens on %s", address)
	return nil
}
