package maintenance

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"example.com/caddy-maintenance/internal/store"
)

// A single instance answers for the fleet at once, without asking others.
func TestInstanceThatIsAloneIsConfirmed(t *testing.T) {
	s := start(t, `maintenance shop`)
	s.put("shop", "")
	journal := s.storage.get(store.JournalKey)
	for _, path := range []string{"/maintenance/shop/instances", "/maintenance/shop/instances?wait=30s", "/maintenance/instances?wait=30s"} {
		var list []map[string]any
		got := s.api(http.MethodGet, path, "")
		noError(t, json.Unmarshal([]byte(got.body), &list))
		if len(list) != 1 || list[0]["state"] != "confirmed" || list[0]["drained"] != strings.Contains(path, "shop") || list[0]["id"] != self().Name() {
			t.Errorf("GET %s got %s", path, got.body)
		}
	}
	wantEqual(t, "journal", s.storage.get(store.JournalKey), journal)
}

func TestWrongRequestsForInstancesAreRefused(t *testing.T) {
	s := start(t, `maintenance shop`)
	for _, test := range []struct {
		method, path string
		status       int
		want         string
	}{
		{"POST", "/maintenance/instances", 405, "method POST is not allowed here; allowed methods: GET"},
		{"DELETE", "/maintenance/shop/instances", 405, "method DELETE is not allowed here; allowed methods: GET"},
		{"GET", "/maintenance/instances/x", 405, "method GET is not allowed here; allowed methods: DELETE"},
		{"GET", "/maintenance/wiki/instances", 404, "unknown site wiki; the sites of the running config are: shop"},
		{"GET", "/maintenance/shop/instances?wait=1h", 400, `invalid wait "1h": must be a duration of at most 30s (for example 10s)`},
		{"DELETE", "/maintenance/instances/nobody", 404, "unknown instance nobody; `caddy maintenance instances` lists all instances"},
		{"DELETE", "/maintenance/instances/" + self().Name(), 409, self().Name() + " is this instance; only a silent instance can be forgotten"},
	} {
		got := s.api(test.method, test.path, "")
		if message := decode(t, got.body)["error"]; got.StatusCode != test.status || message != test.want {
			t.Errorf("%s %s got %d %v, want %d %s", test.method, test.path, got.StatusCode, message, test.status, test.want)
		}
	}
	s.storage.setFault(failOn("list", "maintenance/"))
	got := s.api(http.MethodGet, "/maintenance/shop/instances", "")
	if got.StatusCode != 503 || !strings.Contains(got.body, "reading the reports of other instances: disk full") {
		t.Errorf("got %d %s", got.StatusCode, got.body)
	}
	s.reload("")
	got = s.api(http.MethodGet, "/maintenance/instances", "")
	wantEqual(t, "status without a site", got.StatusCode, 404)
}

// A request of a replaced config is in flight, though the running one has no directive, and though
// another one fails that has.
//
// G11
func TestReportStaysWhileARequestOfAReplacedConfigIsInFlight(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		s := k.start(t, slowShop(t))
		release, finished := s.slowRequest()
		s.put("shop", "")
		report := func() string { return s.storage.get("maintenance/instances/" + self().Name() + ".json") }
		s.reload("")
		s.failLate("maintenance other")
		s.failEarly("maintenance other")
		if report() == "" {
			t.Error("the report is gone while a request is in flight")
		}
		release()
		<-finished
		eventuallyEqual(t, "the report", report, "")
	})
}

// The report is stored before records are read, and removed with the last handler. A config
// that fails leaves it unchanged.
//
// G11
func TestReportIsThereAsLongAsThereIsAGate(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		s := k.prepare(t)
		var mu sync.Mutex
		var order []string
		s.storage.setFault(func(_ context.Context, op, key string) error {
			mu.Lock()
			defer mu.Unlock()
			if kind := op + " " + strings.Split(key, "/")[1]; !slices.Contains(order, kind) {
				order = append(order, kind)
			}
			return nil
		})
		s.reload(`maintenance shop`)
		s.wantStatus("/", 200)
		mu.Lock()
		reported, read := slices.Index(order, "store instances"), slices.Index(order, map[bool]string{false: "load sites", true: "list sites"}[k.template])
		mu.Unlock()
		if reported < 0 || read < reported {
			t.Errorf("the storage was asked for %v", order)
		}
		there := func() int {
			keys, err := s.storage.List(t.Context(), "maintenance/instances", false)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			return len(keys)
		}
		wantEqual(t, "reports", there(), 1)
		s.failLate("maintenance other")
		wantEqual(t, "reports after a config that failed", there(), 1)
		s.put("shop", "") // the running config still reports
		var journal []store.Entry
		noError(t, json.Unmarshal([]byte(s.storage.get(store.JournalKey)), &journal))
		eventually(t, func() error {
			report := s.storage.get("maintenance/instances/" + self().Name() + ".json")
			if !strings.Contains(report, journal[len(journal)-1].ID) {
				return fmt.Errorf("the report is %s", report)
			}
			return nil
		})
		s.delete("shop")
		s.reload("")
		eventually(t, func() error {
			if n := there(); n > 0 {
				return fmt.Errorf("%d reports are there without a gate", n)
			}
			return nil
		})
		s.reload("maintenance shop")
		s.wantStatus("/", 200)
		wantEqual(t, "reports with a gate again", there(), 1)
		noError(t, caddy.Stop())
		wantEqual(t, "reports when Caddy has stopped", there(), 0)
	})
}

// A config that has run leaves its storage when it is replaced, however soon that is.
//
// G11
func TestReportLeavesTheStorageOfAConfigThatHardlyRan(t *testing.T) {
	s := start(t, `maintenance shop`)
	for range 5 {
		s.status("shop") // it runs, and waits for the report
		before := s.storage
		reports := func() int {
			keys, _ := before.List(t.Context(), "maintenance/instances", false)
			return len(keys)
		}
		wantEqual(t, "reports", reports(), 1)
		s.storage = newTestStorage(t)
		s.reload(`maintenance shop`)
		eventuallyEqual(t, "reports in the storage before", reports, 0)
	}
}

// When a switch is answered, a site that is on has its record on disk, and one that is off has
// none.
//
// G3
func TestClosedSitesAreKeptOnDisk(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		s := k.start(t, `maintenance shop`)
		path := filepath.Join(os.Getenv("XDG_DATA_HOME"), "caddy", "maintenance", "last_known.json")
		for _, test := range []struct{ method, want string }{{"PUT", `"enabled":true`}, {"PATCH", `"message":"Hello."`}, {"DELETE", `"site":"shop"}`}} {
			s.api(test.method, "/maintenance/shop", `{"message": "Hello."}`)
			if raw, err := os.ReadFile(path); err != nil || !strings.Contains(string(raw), test.want) {
				t.Errorf("after %s: %s %v", test.method, raw, err)
			}
		}
		noError(t, os.Remove(path))
		noError(t, os.Mkdir(path, 0o700)) // so that nobody can write it
		s.put("shop", "")
		s.wantStatus("/", 503)
		s.delete("shop")
		wantEqual(t, "warnings that the disk cannot be written", s.countLogged("cannot be kept on disk"), 1)
	})
}

// A process that starts with an empty storage blocks the sites that were closed when it ended, and
// stores their records again.
//
// G3
func TestDiskKnowsWhatTheStorageHasLost(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		s := k.prepare(t)
		s.options += "maintenance {\nsync_interval 100ms\n}"
		s.reload(`maintenance shop`)
		s.put("shop", `{"message": "Hello."}`)
		for name, fault := range map[string]func(context.Context, string, string) error{
			"emptied": nil,
			"says that nothing is there": func(_ context.Context, op, _ string) error {
				if op == "load" {
					return fs.ErrNotExist
				}
				return nil
			},
			"fails": failOn("load", "maintenance/"),
		} {
			s.stop()
			_ = s.storage.Delete(t.Context(), "maintenance")
			s.storage.setFault(fault)
			s.reload(`maintenance shop`)
			s.wantStatus("/", 503)
			wantEqual(t, name, fmt.Sprint(s.status("shop")["message"]), "Hello.")
			s.storage.setFault(nil)
			eventually(t, func() error {
				if s.storage.get(shopKey) == "" {
					return fmt.Errorf("%s: the record is not stored again", name)
				}
				return nil
			})
		}
	})
}

// tell makes followers read the record of a site again, as another instance does.
func (s *testStorage) tell(site string) {
	var journal []any
	_ = json.Unmarshal([]byte(s.get(store.JournalKey)), &journal)
	journal = append(journal, map[string]string{"id": rand.Text(), "site": site})
	raw, _ := json.Marshal(journal)
	s.set(store.JournalKey, string(raw))
}
