package maintenance

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

const shopKey = "maintenance/sites/shop.json"

// Storage that fails

// G3
func TestSwitchThatCannotBeStoredChangesNothing(t *testing.T) {
	s := start(t, `maintenance shop`)
	s.put("shop", `{"message": "Old."}`)
	record := s.storage.get(shopKey)
	s.storage.setFault(failOn("store", shopKey))
	for method, body := range map[string]string{"PUT": "", "PATCH": "{}", "DELETE": ""} {
		response := s.api(method, "/maintenance/shop", body)
		if got := decode(t, response.body)["error"]; response.StatusCode != 500 || got != notStored {
			t.Errorf("%s got %d %v\nwant 500 %s", method, response.StatusCode, got, notStored)
		}
		s.wantStatus("/", 503)
		if got := s.status("shop"); got["message"] != "Old." || s.storage.get(shopKey) != record {
			t.Errorf("after a failed %s the site is %v, its record %s", method, got, s.storage.get(shopKey))
		}
	}
	s.storage.setFault(nil)
	s.delete("shop")
	s.wantStatus("/", 200)
}

const notStored = "storing state of site shop: disk full; the switch may still take effect if the storage was only slow: repeat it to be sure"

// G4
func TestSwitchThatOthersCannotNoticeIsNotAnsweredAsDone(t *testing.T) {
	s := start(t, `maintenance shop`)
	s.storage.setFault(failOn("store", switchKey))
	response := s.api(http.MethodPut, "/maintenance/shop", "")
	if got := decode(t, response.body)["error"]; response.StatusCode != 500 || got != notStored {
		t.Errorf("got %d %v\nwant 500 %s", response.StatusCode, got, notStored)
	}
	s.wantStatus("/", 200)
	s.storage.setFault(nil)
	s.put("shop", "")
	s.wantStatus("/", 503)
}

// G3
func TestSwitchWithoutKnowingTheRecordChangesNothing(t *testing.T) {
	s := start(t, `maintenance shop`)
	s.put("shop", "")
	record := s.storage.get(shopKey)
	s.storage.setFault(failOn("load", shopKey))
	response := s.api(http.MethodDelete, "/maintenance/shop", "")
	const want = "reading state of site shop: disk full; nothing has changed, repeat it when the storage answers"
	if got := decode(t, response.body)["error"]; response.StatusCode != 500 || got != want {
		t.Errorf("got %d %v\nwant 500 %s", response.StatusCode, got, want)
	}
	s.wantStatus("/", 503)
	if got := s.storage.get(shopKey); got != record {
		t.Errorf("the record is %s, want %s", got, record)
	}
}

// G3
func TestSwitchDoesNotWaitForEverAndMayTakeEffectLate(t *testing.T) {
	s := start(t, `
		maintenance shop
		maintenance wiki`)
	hang, answer := hangOn("store", shopKey)
	s.storage.setFault(hang)

	began := time.Now()
	response := s.api(http.MethodPut, "/maintenance/shop", "")
	const slow = "storing state of site shop: the storage did not answer within 10s; the switch may still take effect if the storage was only slow: repeat it to be sure"
	if got := decode(t, response.body)["error"]; response.StatusCode != 500 || got != slow {
		t.Errorf("got %d %v\nwant 500 %s", response.StatusCode, got, slow)
	}
	if took := time.Since(began); took < storageTimeout || took > storageTimeout+5*time.Second {
		t.Errorf("it took %s, want %s", took, storageTimeout)
	}
	s.wantStatus("/", 200)

	// Another one waits its turn in vain, and another site is not affected.
	var other sync.WaitGroup
	other.Go(func() {
		s.put("wiki", "")
		s.delete("wiki")
	})
	response = s.api(http.MethodPut, "/maintenance/shop", "")
	other.Wait()
	const busy = "switching site shop: an earlier switch is still waiting for the storage; nothing has changed, repeat it when the storage answers"
	if got := decode(t, response.body)["error"]; response.StatusCode != 503 || got != busy {
		t.Errorf("got %d %v\nwant 503 %s", response.StatusCode, got, busy)
	}
	s.wantStatus("/", 200)

	answer()
	s.storage.setFault(nil)
	eventually(t, func() error { return s.is("shop", "on") })
	s.wantStatus("/", 503)
}

// A switch is carried through when its client goes.
func TestSwitchOutlivesItsClient(t *testing.T) {
	s := start(t, `maintenance shop`)
	hang, answer := hangOn("store", shopKey)
	s.storage.setFault(hang)
	ctx, cancel := context.WithCancel(t.Context())
	request, _ := http.NewRequestWithContext(ctx, http.MethodPut, s.admin+"/maintenance/shop", nil)
	done := make(chan error)
	go func() {
		_, err := client.Do(request)
		done <- err
	}()
	eventually(t, func() error {
		if s.storage.stores.Load() == 0 {
			return errors.New("nothing is being stored")
		}
		return nil
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	answer()
	eventually(t, func() error { return s.is("shop", "on") })
}

// G3
func TestSiteWhoseRecordCannotBeReadIsBlockedUntilItCanBe(t *testing.T) {
	for name, record := range map[string]string{"off": "", "on": `{"version": 1, "enabled": true}`} {
		t.Run(name, func(t *testing.T) {
			s := prepare(t)
			if record != "" {
				s.storage.set(shopKey, record)
			}
			s.storage.setFault(failOn("load", shopKey))
			s.options = "maintenance {\nsync_interval 100ms\n}"
			s.reload(`
				maintenance /shop* shop
				maintenance /wiki* wiki`)
			s.wantStatus("/shop", 503)
			s.wantStatus("/wiki", 200)
			if err := s.is("shop", "unknown"); err != nil {
				t.Error(err)
			}
			s.logged(`"error"`, "state of the site cannot be read", `"site":"shop"`, "disk full")
			s.storage.setFault(nil)
			eventually(t, func() error { return s.is("shop", name) })
			s.logged("state of the site is known again", `"site":"shop"`)
		})
	}
}

func TestCorruptRecordThatIsRemovedOpensNothing(t *testing.T) {
	for i, corrupt := range []string{
		``, `null`, `{}`, `[]`, `{"version": 1}`, `{"version": 0, "enabled": false}`, `{"version": -1, "enabled": false}`,
		`{"version": 9223372036854775807, "enabled": false}`, `{"version": 1, "enabled": "false"}`, `{"version": 1, "enabled": false`,
		`{"version": 1, "enabled": false, "since": "yesterday"}`,
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Log(corrupt)
			s := prepare(t)
			s.options = "maintenance {\nsync_interval 100ms\n}"
			s.storage.set(shopKey, corrupt)
			s.reload(`maintenance shop`)
			s.wantStatus("/", 503)
			if err := s.is("shop", "unknown"); err != nil {
				t.Error(err)
			}
			_ = s.storage.Delete(t.Context(), shopKey)
			s.reread()
			if err := s.is("shop", "unknown"); err != nil {
				t.Errorf("removed: %v", err)
			}
			s.delete("shop")
			s.wantStatus("/", 200)
		})
	}
}

func TestUnknownFieldsOfARecordAreIgnored(t *testing.T) {
	s := prepare(t)
	s.storage.set(shopKey, `{"version": 1, "enabled": true, "since": "2026-01-31T02:00:00Z", "message": "Hello.", "retry_after": "later", "colour": {"red": 1}}`)
	s.reload(`maintenance shop`)
	response := s.get("/")
	if response.StatusCode != 503 || !strings.Contains(response.body, "Hello.") || response.Header.Get("Retry-After") != "300" {
		t.Errorf("got %d, Retry-After %s, %s", response.StatusCode, response.Header.Get("Retry-After"), response.body)
	}
}

// G3, G9
func TestConfigLoadsWhileStorageHangs(t *testing.T) {
	s := prepare(t)
	var directives strings.Builder
	for i := range 3 * maxReads {
		fmt.Fprintf(&directives, "maintenance /%d site%d\n", i, i)
	}
	hang, answer := hangOn("load", "maintenance/sites/")
	s.storage.setFault(hang)
	began := time.Now()
	s.reload(directives.String())
	for _, path := range []string{"/0", "/95"} {
		s.wantStatus(path, 503)
	}
	s.wantStatus("/ungated", 200)
	if took := time.Since(began); took > 2*storageTimeout+5*time.Second {
		t.Errorf("it took %s", took)
	}
	answer()
	s.storage.setFault(nil)
	eventually(t, func() error {
		for _, path := range []string{"/0", "/95"} {
			if got := s.get(path).StatusCode; got != 200 {
				return fmt.Errorf("%s got %d, want 200", path, got)
			}
		}
		return nil
	})
}

// A config that ends while it reads the record of a site tells nothing about it; who
// waits for the site goes on waiting.
func TestReloadDuringTheFirstReadBlocksNobody(t *testing.T) {
	s := prepare(t)
	read, answer := make(chan struct{}, 10), make(chan struct{})
	s.storage.setFault(func(ctx context.Context, op, key string) error {
		if op != "load" || key != shopKey {
			return nil
		}
		read <- struct{}{}
		select {
		case <-answer:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	arrived := make(chan struct{}, 1)
	directives := "route {\n" + testMiddleware(t, func(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
		arrived <- struct{}{}
		return next.ServeHTTP(w, r)
	}) + "\nmaintenance shop\n}"
	s.reload(directives)
	<-read
	visitor := make(chan int)
	go func() { visitor <- s.get("/").StatusCode }()
	<-arrived
	s.reload(directives)
	<-read                                            // the config that runs now reads it, too
	s.logged("servers shutting down", "grace period") // and the one before has ended
	close(answer)
	if got := <-visitor; got != 200 {
		t.Errorf("the visitor who waited got %d, want 200", got)
	}
	s.wantStatus("/", 200)
	if n := s.countLogged("cannot be read"); n > 0 {
		t.Errorf("%d lines of the log say that something cannot be read", n)
	}
}

// Other instances on the same storage, which are played by the test

// G4
func TestSwitchOfAnotherInstanceIsFollowed(t *testing.T) {
	s := prepare(t)
	s.options = "maintenance {\nsync_interval 100ms\n}"
	s.reload(`maintenance shop`)
	s.wantStatus("/", 200)
	version := time.Now().UnixMicro()
	for _, test := range []struct {
		record, state string
		version       int64
	}{
		{`"enabled": true, "message": "Hello."`, "on", version},
		{`"enabled": false`, "on", version - 1}, // a stale replica
		{`"enabled": false`, "off", version + 1},
		{`"enabled": true`, "on", version + 3_600_000_000}, // a clock that is an hour ahead
		{`"enabled": false`, "on", version + 2},
	} {
		s.storage.set(shopKey, fmt.Sprintf(`{"version": %d, %s}`, test.version, test.record))
		s.storage.set(switchKey, fmt.Sprint(test.version, test.record))
		s.reread()
		if err := s.is("shop", test.state); err != nil {
			t.Errorf("after %s in version %+d: %v", test.record, test.version-version, err)
		}
	}
	s.logged(`"maintenance enabled"`, `"site":"shop"`, `"source":"sync"`, `"message":"Hello."`)

	// A switch here counts on from the clock that is ahead.
	s.delete("shop")
	s.reread()
	if err := s.is("shop", "off"); err != nil {
		t.Error(err)
	}
}

// G4
func TestSwitchReadsWhatAnotherInstanceHasSwitched(t *testing.T) {
	s := prepare(t)
	s.options = "maintenance {\nsync_interval 1m\n}"
	s.reload(`maintenance shop`)
	s.wantStatus("/", 200)
	s.storage.set(shopKey, `{"version": 9000000000000000, "enabled": true, "since": "2026-01-31T02:00:00Z", "message": "Hello.", "retry_after": "7s"}`)
	got := s.patch("shop", `{"message": "Changed."}`)
	if got["state"] != "on" || got["since"] != "2026-01-31T02:00:00Z" || got["message"] != "Changed." || got["retry_after"] != "7s" {
		t.Errorf("got %v", got)
	}
	s.storage.set(shopKey, strings.Replace(s.storage.get(shopKey), "900000000000000", "910000000000000", 1))
	s.delete("shop")
	s.restart(`maintenance shop`)
	s.wantStatus("/", 200)
}

// G4
func TestFollowingCostsOneReadPerInterval(t *testing.T) {
	for _, count := range []int{1, 1000} {
		s := prepare(t)
		s.options = "maintenance {\nsync_interval 100ms\n}"
		var directives strings.Builder
		for i := range count {
			fmt.Fprintf(&directives, "maintenance /%d site%d\n", i, i)
		}
		var mu sync.Mutex
		loads := make(map[string]int)
		s.storage.setFault(func(_ context.Context, op, key string) error {
			mu.Lock()
			defer mu.Unlock()
			loads[op+" "+key]++
			return nil
		})
		s.reload(directives.String())
		polls := func() int {
			mu.Lock()
			defer mu.Unlock()
			return loads["load "+switchKey]
		}
		eventually(t, func() error {
			if polls() < 10 {
				return errors.New("not polled 10 times")
			}
			return nil
		})
		mu.Lock()
		for key, n := range loads {
			// Once when the config loads and once when it runs.
			if strings.HasPrefix(key, "load maintenance/sites/") && n > 2 || strings.HasPrefix(key, "store maintenance/") {
				t.Errorf("%d sites: %s %d times while nothing was switched", count, key, n)
			}
		}
		mu.Unlock()
	}
}

func TestOnlyWhatCouldNotBeReadIsPolled(t *testing.T) {
	s := prepare(t)
	s.options = "maintenance {\nsync_interval 100ms\n}"
	s.storage.set(shopKey, "corrupt")
	s.reload(`
		maintenance shop
		maintenance wiki`)
	s.polled()
	var wiki, shop atomic.Int64
	s.storage.setFault(func(_ context.Context, _, key string) error {
		switch key {
		case shopKey:
			shop.Add(1)
		case recordKey("wiki"):
			wiki.Add(1)
		}
		return nil
	})
	eventually(t, func() error {
		if n := shop.Load(); n < 5 {
			return fmt.Errorf("shop was read %d times", n)
		}
		return nil
	})
	if n := wiki.Load(); n > 0 {
		t.Errorf("wiki was read %d times", n)
	}
}

// One record that cannot be read is tried again by itself: neither are the others read
// each time, nor do they wait for it.
func TestRecordThatCannotBeReadHoldsUpNoOther(t *testing.T) {
	const count = 100
	for name, fault := range map[string]func(ctx context.Context) error{
		"fails": func(context.Context) error { return errors.New("disk full") },
		"hangs": func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	} {
		t.Run(name, func(t *testing.T) {
			s := prepare(t)
			s.options = "maintenance {\nsync_interval 100ms\n}"
			var directives strings.Builder
			directives.WriteString("maintenance shop\n")
			for i := range count {
				fmt.Fprintf(&directives, "maintenance /%d site%d\n", i, i)
			}
			s.reload(directives.String())
			s.polled()
			var polls, reads, failures atomic.Int64
			s.storage.setFault(func(ctx context.Context, op, key string) error {
				switch {
				case op != "load":
				case key == switchKey:
					polls.Add(1)
				case key == shopKey:
					failures.Add(1)
					return fault(ctx)
				case strings.HasPrefix(key, "maintenance/sites/"):
					reads.Add(1)
				}
				return nil
			})
			// Another instance switches a site, and later one more.
			for i := range 2 {
				s.storage.set(recordKey(fmt.Sprintf("site%d", i)), `{"version": 1, "enabled": true}`)
				s.storage.set(switchKey, fmt.Sprint("switch", i))
				eventually(t, func() error { return s.is(fmt.Sprintf("site%d", i), "on") })
			}
			before := polls.Load()
			eventually(t, func() error {
				if n := polls.Load(); n < before+10 {
					return fmt.Errorf("looked %d times", n-before)
				}
				return nil
			})
			if n := reads.Load(); n > 2*count {
				t.Errorf("%d records were read for two switches on %d sites", n, count)
			}
			if n := failures.Load(); name == "fails" && n < 10 {
				t.Errorf("the record that cannot be read was tried %d times", n)
			}
			if n := s.countLogged("other instances are not followed"); n != 0 {
				t.Errorf("logged %d times that others are not followed", n)
			}
			if last := sites.lastSync.Load(); time.Since(*last) > 5*time.Second {
				t.Errorf("last_sync is %s, and others are followed", last)
			}
			s.wantStatus("/ungated", 200)
			if name == "hangs" {
				return // it would have to be waited for
			}
			const line = "records of some sites cannot be read"
			s.logged(line, `"sites":["shop"]`)
			s.storage.setFault(nil)
			s.logged("records of all sites can be read again")
			if n := s.countLogged(line); n != 1 {
				t.Errorf("logged %d times that a record cannot be read, want once", n)
			}
		})
	}
}

// G4: both have read the storage before either has stored, so that the older
// record is stored last.
func TestSwitchThatIsOvertakenIsStoredAgain(t *testing.T) {
	s := prepare(t)
	s.options = "maintenance {\nsync_interval 100ms\n}"
	s.reload(`maintenance shop`)
	s.put("shop", "")
	record, marker := s.storage.get(shopKey), s.storage.get(switchKey)
	s.storage.set(shopKey, fmt.Sprintf(`{"version": %d, "enabled": false}`, time.Now().Add(-time.Second).UnixMicro()))
	s.storage.set(switchKey, "another")
	eventually(t, func() error {
		if s.storage.get(shopKey) != record || s.storage.get(switchKey) == "another" {
			return fmt.Errorf("storage has %s, and the marker %s", s.storage.get(shopKey), s.storage.get(switchKey))
		}
		return nil
	})
	if s.storage.get(switchKey) == marker {
		t.Error("the other instance is not told")
	}
}

// G3
func TestOutageOfTheStorageChangesNothingAndIsLoggedOnce(t *testing.T) {
	s := prepare(t)
	s.options = "maintenance {\nsync_interval 100ms\n}"
	s.reload(`maintenance shop`)
	s.put("shop", "")
	s.storage.setFault(failOn("load", "maintenance/"))
	before := s.storage.loads.Load()
	eventually(t, func() error {
		if s.storage.loads.Load() < before+5 {
			return errors.New("not read 5 times")
		}
		return nil
	})
	s.wantStatus("/", 503)
	s.storage.setFault(nil)
	s.logged(`"storage can be read again`)
	s.wantStatus("/", 503)
	content, err := os.ReadFile(s.log)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(content), "storage cannot be read"); n != 1 {
		t.Errorf("the outage was logged %d times, want once", n)
	}
}

// G3
func TestLostRecordIsWrittenAgain(t *testing.T) {
	for name, damage := range map[string]func(s *server){
		"lost":    func(s *server) { _ = s.storage.Delete(t.Context(), shopKey) },
		"older":   func(s *server) { s.storage.set(shopKey, `{"version": 1, "enabled": false}`) },
		"corrupt": func(s *server) { s.storage.set(shopKey, `{"version": 1, `) },
		"all":     func(s *server) { _ = s.storage.Delete(t.Context(), "maintenance") },
	} {
		t.Run(name, func(t *testing.T) {
			s := prepare(t)
			s.options = "maintenance {\nsync_interval 100ms\n}"
			s.reload(`maintenance shop`)
			s.put("shop", "")
			record := s.storage.get(shopKey)
			s.polled()
			damage(s)
			if name != "all" {
				s.reload(`maintenance shop`)
			}
			eventually(t, func() error {
				if got := s.storage.get(shopKey); got != record {
					return fmt.Errorf("the record is %q, want %s", got, record)
				}
				return nil
			})
			s.wantStatus("/", 503)
			s.logged("it has been written again", `"site":"shop"`)
		})
	}
}

// G2, G3
func TestReloadWithAnotherStorageTakesTheStateAlong(t *testing.T) {
	s := start(t, `maintenance shop`)
	s.put("shop", "")
	record := s.storage.get(shopKey)
	s.storage = newTestStorage(t)
	s.reload(`maintenance shop`)
	s.wantStatus("/", 503)
	eventually(t, func() error {
		if got := s.storage.get(shopKey); got != record {
			return fmt.Errorf("the new storage has %q, want %s", got, record)
		}
		return nil
	})
}

func TestWithoutSyncNothingIsPolled(t *testing.T) {
	s := prepare(t)
	s.options = "maintenance {\nsync_interval off\n}"
	s.reload(`maintenance shop`)
	if got := s.put("shop", "")["sync_interval"]; got != "off" {
		t.Errorf("sync_interval is %v, want off", got)
	}
	s.wantStatus("/", 503)
	s.restart(`maintenance shop`)
	s.wantStatus("/", 503)
	// What could not be read is tried again nevertheless, and shows how time
	// goes by.
	s.storage.set(recordKey("wiki"), "corrupt")
	s.reload(`
		maintenance shop
		maintenance wiki`)
	var tries atomic.Int64
	s.storage.setFault(func(_ context.Context, op, key string) error {
		switch key {
		case recordKey("wiki"):
			tries.Add(1)
		case switchKey:
			t.Errorf("%s of %s", op, key)
		}
		return nil
	})
	eventually(t, func() error {
		if n := tries.Load(); n < 2 {
			return fmt.Errorf("tried %d times", n)
		}
		return nil
	})
	s.storage.setFault(nil)
}

// Reloads

// G3
func TestStateSurvivesReloads(t *testing.T) {
	s := start(t, `maintenance shop`)
	s.put("shop", `{"message": "Hello."}`)
	before := s.status("shop")
	s.reload(`maintenance shop`)
	s.reload(`
		header X-Changed yes
		maintenance shop {
			retry_after 7m
			initial_state off
		}`)
	s.wantStatus("/", 503)
	if err := s.load(`maintenance shop
		reverse_proxy {
			lb_policy nonsense
		}`); err == nil {
		t.Fatal("a wrong config was loaded")
	}
	s.wantStatus("/", 503)
	if got := s.status("shop"); fmt.Sprint(got) != fmt.Sprint(before) {
		t.Errorf("the site is %v, want %v", got, before)
	}
	if got := s.get("/").Header.Get("Retry-After"); got != "420" {
		t.Errorf("Retry-After is %s, want 420 as the last good config says", got)
	}
}

func TestSiteThatReturnsToTheConfigIsReadAgain(t *testing.T) {
	s := start(t, `maintenance shop`)
	s.put("shop", "")
	eventually(t, func() error {
		if app, err := runningApp(); err != nil || !app.running.Load() {
			return fmt.Errorf("the app has not begun its work: %v", err)
		}
		return nil
	})
	s.reload(``)
	s.logged(`"warn"`, "has gone from the config", `"site":"shop"`)
	eventually(t, func() error { // the server of the old config may still take a connection
		if got := s.get("/").StatusCode; got != 200 {
			return fmt.Errorf("GET / got %d, want 200", got)
		}
		return nil
	})
	if got := s.api(http.MethodGet, "/maintenance", "").body; got != "[]\n" {
		t.Errorf("the sites are %s", got)
	}
	s.reload(`maintenance shop`)
	s.wantStatus("/", 503)
	s.logged(`"warn"`, "site is still in maintenance; `caddy maintenance off shop` ends it", `"site":"shop"`, `"since":`)
}

// G5
func TestRequestInFlightIsCountedThoughItsConfigHasGone(t *testing.T) {
	directives := slowShop(t)
	s := start(t, directives)
	release, finished := s.slowRequest()
	s.reload(``)
	s.reload(directives)
	if got := s.put("shop", "")["in_flight"]; got != 1.0 {
		t.Errorf("in_flight is %v, want 1", got)
	}
	release()
	if got := <-finished; got != 200 {
		t.Errorf("the request in flight got %d, want 200", got)
	}
	if got := s.status("shop?wait=10s")["in_flight"]; got != 0.0 {
		t.Errorf("in_flight is %v, want 0", got)
	}
}

// G10
func TestSiteIsForgottenWithItsLastRequest(t *testing.T) {
	s := start(t, slowShop(t))
	release, finished := s.slowRequest()
	s.reload(``)
	release()
	<-finished
	noSiteIsLeft(t)
}

// The site is looked up when the body has been read, and cannot become another one
// between that and the answer.
//
// G1
func TestSwitchWithSlowBodyIsAboutTheSiteThatIsThere(t *testing.T) {
	s := start(t, "maintenance shop")
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.admin, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "PUT /maintenance/shop HTTP/1.1\r\nHost: %s\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n", conn.RemoteAddr())
	reader := bufio.NewReader(conn)
	if line, err := reader.ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 100 ") {
		t.Fatalf("got %q %v", line, err) // else the body is being waited for
	}
	s.reload("")
	noSiteIsLeft(t)
	s.reload("maintenance shop")
	fmt.Fprint(conn, "{}")
	_, _ = reader.ReadString('\n') // the empty line after 100
	response, err := http.ReadResponse(reader, nil)
	if err != nil || response.StatusCode != 200 {
		t.Fatalf("PUT got %v %v, want 200", response, err)
	}
	s.wantStatus("/", 503)
}

// Who retains a site keeps nobody from reading its record when a config brings it back,
// before that serves a request.
//
// G1
func TestRetainedSiteThatReturnsIsReadAgain(t *testing.T) {
	s := start(t, "maintenance shop")
	s.delete("shop")
	shop := siteNamed("shop")
	if !sites.retain(shop) { // as a request of the admin API does that waits
		t.Fatal("no config refers to the site")
	}
	s.reload("")
	s.storage.set(shopKey, fmt.Sprintf(`{"version": %d, "enabled": true}`, time.Now().Add(time.Hour).UnixMicro()))
	hang, answer := hangOn("load", shopKey)
	s.storage.setFault(hang)
	s.reload("maintenance shop")
	impatient := &http.Client{Timeout: 200 * time.Millisecond, Transport: &http.Transport{DisableKeepAlives: true}}
	if response, err := impatient.Get(s.url); err == nil {
		response.Body.Close()
		t.Errorf("a request got %d before the record was read", response.StatusCode)
	}
	answer()
	s.wantStatus("/", 503)
	sites.letGo(shop)
	s.wantStatus("/", 503)
}

// While a record that was lost is being written again, a reload that removes the site
// and one that brings it back find it as it was.
//
// G3
func TestSiteThatIsBeingRestoredIsNotForgotten(t *testing.T) {
	s := prepare(t)
	s.options = "maintenance {\nsync_interval 100ms\n}"
	s.reload("maintenance shop")
	s.put("shop", "")
	s.polled()
	_ = s.storage.Delete(t.Context(), shopKey)
	var loads atomic.Int64
	restoring, answer := make(chan struct{}), make(chan struct{})
	s.storage.setFault(func(_ context.Context, op, key string) error {
		if op == "load" && key == shopKey && loads.Add(1) == 2 { // the first has found that it is lost
			close(restoring)
			<-answer
		}
		return nil
	})
	s.storage.set(switchKey, "another instance")
	<-restoring
	s.reload("")
	s.reload("maintenance shop")
	close(answer)
	s.wantStatus("/", 503)
	eventually(t, func() error {
		if s.storage.get(shopKey) == "" {
			return errors.New("the record has not been written again")
		}
		return nil
	})
	s.wantStatus("/", 503)
}

// A site that was not in the config while another instance switched it does not
// serve a single request because this one remembers it as off.
func TestSiteThatReturnsWhileInFlightIsReadAgain(t *testing.T) {
	directives := slowShop(t)
	s := start(t, directives)
	s.delete("shop")
	release, finished := s.slowRequest()
	s.reload(``)
	s.storage.set(shopKey, fmt.Sprintf(`{"version": %d, "enabled": true}`, time.Now().UnixMicro()))
	hang, answer := hangOn("load", shopKey)
	s.storage.setFault(hang)
	s.reload(directives)
	impatient := &http.Client{Timeout: 200 * time.Millisecond, Transport: &http.Transport{DisableKeepAlives: true}}
	if response, err := impatient.Get(s.url); err == nil {
		response.Body.Close()
		t.Errorf("a request got %d before the record was read", response.StatusCode)
	}
	answer()
	s.wantStatus("/", 503)
	release()
	<-finished
}

// G3, G5
func TestSiteThatReturnsWhileInFlightStaysAsItWasIfItCannotBeRead(t *testing.T) {
	directives := slowShop(t)
	s := start(t, directives)
	release, finished := s.slowRequest()
	s.put("shop", "")
	s.reload(``)
	s.storage.setFault(failOn("load", shopKey))
	s.reload(directives)
	s.wantStatus("/", 503)
	if got := s.status("shop"); got["state"] != "on" || got["in_flight"] != 1.0 {
		t.Errorf("the site is %v, want on with one request in flight", got)
	}
	release()
	<-finished
}

// G3: a config can still fail when all its apps have started.
func TestStateSurvivesReloadThatFailsLate(t *testing.T) {
	s := start(t, `maintenance shop`)
	s.put("shop", "")
	other := newTestStorage(t) // takes the place of the first one
	other.set(shopKey, `{"version": 9000000000000000, "enabled": false}`)
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(s.caddyfile(`maintenance shop`)), nil)
	if err != nil {
		t.Fatal(err)
	}
	broken := strings.Replace(string(config), `"admin":{`,
		`"admin":{"identity":{"identifiers":["localhost"],"issuers":[{"module":"internal"}]},"remote":{"access_control":[{"public_keys":["broken"]}]},`, 1)
	for range 20 {
		if err := caddy.Load([]byte(broken), true); err == nil || !strings.Contains(err.Error(), "remote admin") {
			t.Fatalf("got %v, want an error of the remote admin endpoint", err)
		}
		eventually(t, func() error {
			got, err := try(http.MethodGet, s.url, "", nil)
			if err == nil && got.StatusCode != 503 {
				t.Errorf("got %d, want 503", got.StatusCode)
			}
			return err // a failed config drops the connections that it has accepted
		})
	}
	if n := other.stores.Load(); strings.Contains(other.get(shopKey), "true") {
		t.Errorf("the failed config has stored %d values, among them %s", n, other.get(shopKey))
	}
}

// G5
func TestErrorRoutesAreInFlightToo(t *testing.T) {
	s := prepare(t)
	s.after = `handle_errors {
		reverse_proxy ` + upstream(t) + `
	}`
	s.reload(`
		maintenance shop
		error /slow 502`)
	release, finished := s.slowRequest()
	if got := s.put("shop", "")["in_flight"]; got != 1.0 {
		t.Errorf("in_flight is %v while the error is handled, want 1", got)
	}
	release()
	<-finished
	if got := s.status("shop?wait=10s")["in_flight"]; got != 0.0 {
		t.Errorf("in_flight is %v, want 0", got)
	}
}

// G10
func TestReloadsLeaveNothingBehind(t *testing.T) {
	directives := `
		maintenance shop
		maintenance /wiki wiki {
			bypass /healthz
		}`
	s := start(t, directives)
	s.put("shop", "")
	settled := func() int {
		client.CloseIdleConnections()
		runtime.GC()
		return runtime.NumGoroutine()
	}
	for range 5 {
		s.reload(directives)
	}
	before := settled()
	for range 100 {
		s.reload(directives)
		if err := s.load(`maintenance shop
			reverse_proxy {
				lb_policy nonsense
			}`); err == nil {
			t.Fatal("a wrong config was loaded")
		}
	}
	eventually(t, func() error {
		if after := settled(); after > before+20 {
			return fmt.Errorf("%d goroutines after 100 reloads, %d before", after, before)
		}
		return nil
	})
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	noSiteIsLeft(t)
}

// A config that is only looked at stores nothing and starts nothing.
func TestValidationHasNoSideEffects(t *testing.T) {
	s := prepare(t)
	s.storage.set(shopKey, `{"version": 1, "enabled": true}`)
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(s.caddyfile(`maintenance shop`)), nil)
	if err != nil {
		t.Fatal(err)
	}
	var parsed *caddy.Config
	if err := caddy.StrictUnmarshalJSON(config, &parsed); err != nil {
		t.Fatal(err)
	}
	if err := caddy.Validate(parsed); err != nil {
		t.Fatal(err)
	}
	if n := s.storage.stores.Load(); n != 0 {
		t.Errorf("%d values were stored", n)
	}
	noSiteIsLeft(t)
}

func TestAdminAPIWithoutConfigSaysSo(t *testing.T) {
	s := start(t, `maintenance shop`)
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	const want = "no config is running; Caddy is still loading one, or was started without: try again"
	if got := s.api(http.MethodGet, "/maintenance", ""); got.StatusCode != 503 || decode(t, got.body)["error"] != want {
		t.Errorf("got %d %s, want 503 %s", got.StatusCode, got.body, want)
	}
}

// The end of a maintenance

func TestMaintenanceEndsByItself(t *testing.T) {
	s := start(t, `maintenance shop`)
	until := time.Now().Add(time.Second)
	s.put("shop", `{"until": "`+until.Format(time.RFC3339Nano)+`"}`)
	for {
		asked := time.Now()
		got := s.get("/").StatusCode
		answered := time.Now()
		switch {
		case got == 503 && asked.After(until):
			t.Fatalf("still blocked %s after the end", asked.Sub(until))
		case got == 200 && answered.Before(until):
			t.Fatalf("open %s before the end", until.Sub(answered))
		}
		if got == 200 {
			break
		}
	}
	got := s.status("shop")
	if got["state"] != "off" || got["until"] != nil || !parseTime(t, got["since"]).Equal(until) {
		t.Errorf("after its end the site is %v, want off since %v", got, until)
	}
	s.logged(`"maintenance disabled"`, `"site":"shop"`, `"source":"until"`)
	s.reload(`maintenance shop`)
	s.wantStatus("/", 200)
	s.restart(`maintenance shop`)
	s.wantStatus("/", 200)
}

func TestEndThatIsPutOffOrClearedDoesNotCome(t *testing.T) {
	s := start(t, `maintenance shop`)
	soon := time.Now().Add(500 * time.Millisecond)
	s.put("shop", `{"until": "`+soon.Format(time.RFC3339Nano)+`"}`)
	s.patch("shop", `{"until": null}`)
	<-time.After(time.Until(soon) + 100*time.Millisecond)
	s.wantStatus("/", 503)
}

// A clock that is set back does not begin a maintenance again that has ended.
func TestEndLatches(t *testing.T) {
	shop := newSite("shop")
	r, err := newRecord(1, true, time.Now(), options{Until: time.Now().Add(time.Millisecond)})
	if err != nil {
		t.Fatal(err)
	}
	shop.learn(r, nil)
	eventually(t, func() error {
		if shop.current().blocks(false) {
			return errors.New("still on")
		}
		return nil
	})
	later := *r
	later.Until = time.Now().Add(time.Hour) // as a clock that is set back sees it
	shop.state.Load().record = &later
	if shop.current().blocks(false) {
		t.Error("the maintenance has begun again")
	}
	if before, _ := shop.learn(r, nil); before != nil {
		t.Error("reading the same record again has changed the state")
	}
}

// Log

func TestChangesAreLogged(t *testing.T) {
	s := start(t, `maintenance shop`)
	s.put("shop", `{"message": "Hello.", "retry_after": "7s", "until": "2999-01-01T00:00:00Z"}`)
	s.logged(`"info"`, `"logger":"maintenance"`, `"maintenance enabled"`, `"site":"shop"`, `"source":"api"`, `"client":"127.0.0.1`,
		`"message":"Hello."`, `"retry_after":"7s"`, `"until":`)
	s.patch("shop", `{"message": null}`)
	s.logged(`"maintenance options changed"`, `"site":"shop"`)
	s.delete("shop")
	s.logged(`"maintenance disabled"`, `"site":"shop"`, `"source":"api"`)
}

// Though the storage has taken longer than the maintenance.
func TestMaintenanceThatIsOverAtOnceIsLogged(t *testing.T) {
	s := start(t, "maintenance shop")
	s.storage.setFault(func(_ context.Context, op, _ string) error {
		if op == "store" {
			<-time.After(100 * time.Millisecond)
		}
		return nil
	})
	s.put("shop", fmt.Sprintf(`{"until": %q}`, time.Now().Add(50*time.Millisecond).Format(time.RFC3339Nano)))
	s.logged("maintenance stays off", `"source":"api"`, `"client":"127.0.0.1`)
	s.wantStatus("/", 200)
}

func TestOpeningAnUnknownSiteIsLogged(t *testing.T) {
	s := prepare(t)
	s.storage.set(shopKey, "corrupt")
	s.reload(`maintenance shop`)
	s.delete("shop")
	s.logged(`"maintenance disabled"`, `"site":"shop"`, `"source":"api"`, `"client":"127.0.0.1`)
}

// A sync that finds the record of a switch before that is answered leaves it
// to the switch.
func TestSwitchIsNotTakenForAnotherInstances(t *testing.T) {
	s := prepare(t)
	s.options = "maintenance {\nsync_interval 100ms\n}"
	s.reload(`maintenance shop`)
	hang, answer := hangOn("store", switchKey)
	var reads atomic.Int64
	s.storage.setFault(func(ctx context.Context, op, key string) error {
		if op == "load" && key == shopKey {
			reads.Add(1)
		}
		return hang(ctx, op, key)
	})
	done := make(chan map[string]any)
	go func() { done <- s.put("shop", "") }()
	eventually(t, func() error {
		if s.storage.get(shopKey) == "" {
			return errors.New("nothing is stored")
		}
		return nil
	})
	before := reads.Load()
	s.storage.set(switchKey, "of another switch")
	eventually(t, func() error {
		if reads.Load() == before {
			return errors.New("the record was not read")
		}
		return nil
	})
	s.wantStatus("/", 200)
	answer()
	if got := (<-done)["state"]; got != "on" {
		t.Errorf("state is %v, want on", got)
	}
	s.logged(`"maintenance enabled"`, `"source":"api"`)
}

// Everything at once

// G1, G10
func TestConcurrentSwitchesReloadsAndRequests(t *testing.T) {
	s := prepare(t)
	s.options = "maintenance {\nsync_interval 100ms\n}"
	s.reload(`maintenance shop`)
	stop := make(chan struct{})
	var workers sync.WaitGroup
	run := func(work func(i int)) {
		workers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					work(i)
				}
			}
		})
	}
	run(func(i int) {
		s.api([]string{"PUT", "PATCH", "DELETE"}[i%3], "/maintenance/shop", "{}")
	})
	run(func(i int) {
		s.api([]string{"PUT", "DELETE"}[i%2], "/maintenance/shop", fmt.Sprintf(`{"message": "%d"}`, i))
	})
	run(func(int) { s.api("GET", "/maintenance/shop?wait=10ms", "") })
	run(func(i int) {
		s.storage.set(shopKey, fmt.Sprintf(`{"version": %d, "enabled": %t}`, time.Now().UnixMicro(), i%2 == 0))
		s.storage.set(switchKey, fmt.Sprint(i))
		<-time.After(time.Millisecond)
	})
	for range 4 {
		run(func(int) { _, _ = try("GET", s.url, "", nil) })
	}
	for range 30 {
		s.reload(`maintenance shop`)
	}
	close(stop)
	workers.Wait()

	s.put("shop", "")
	s.wantStatus("/", 503)
	if got := s.status("shop?wait=10s")["in_flight"]; got != 0.0 {
		t.Errorf("in_flight is %v, want 0", got)
	}
}

// failOn returns a fault that fails an operation on keys with that prefix.
func failOn(op, prefix string) func(context.Context, string, string) error {
	return func(_ context.Context, o, key string) error {
		if o == op && strings.HasPrefix(key, prefix) {
			return errors.New("disk full")
		}
		return nil
	}
}

// hangOn returns a fault that takes no notice of any deadline, as a file
// system may, and a function that ends it.
func hangOn(op, prefix string) (fault func(context.Context, string, string) error, answer func()) {
	answered := make(chan struct{})
	return func(_ context.Context, o, key string) error {
		if o == op && strings.HasPrefix(key, prefix) {
			<-answered
		}
		return nil
	}, sync.OnceFunc(func() { close(answered) })
}

// is returns an error unless the site's state is as wanted.
func (s *server) is(site, want string) error {
	s.t.Helper()
	if got := s.status(site)["state"]; got != want {
		return fmt.Errorf("site %s is %v, want %s", site, got, want)
	}
	return nil
}

// reread returns when the instance has read again whatever is in storage at
// the time of the call.
func (s *server) reread() {
	s.t.Helper()
	s.storage.set(switchKey, time.Now().String())
	s.polled()
}

// polled returns when the instance has looked for switches and acted on what
// it has found, that is, when it looks for the second time again.
func (s *server) polled() {
	s.t.Helper()
	var polls atomic.Int64
	s.storage.setFault(func(_ context.Context, op, key string) error {
		if op == "load" && key == switchKey {
			polls.Add(1)
		}
		return nil
	})
	defer s.storage.setFault(nil)
	eventually(s.t, func() error {
		if n := polls.Load(); n < 3 {
			return fmt.Errorf("looked %d times", n)
		}
		return nil
	})
}
