package maintenance

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"example.com/caddy-maintenance/internal/site"
	"example.com/caddy-maintenance/internal/store"
)

const shopKey = "maintenance/sites/shop.json"

// What an app does with a storage, without Caddy and in fake time

// A switch that still waits for the storage after its client is answered keeps its site, even
// if reloads remove the site and bring it back.
//
// G1, G3
func TestSwitchDoesNotWaitForEverAndMayTakeEffectLate(t *testing.T) {
	inTimeOfEachKind(t, func(t *testing.T, k kind) {
		storage := newTestStorage(t)
		a, _ := newTestApp(t, storage, k.of("shop", "wiki")...)
		hang, answer := hangOn("store", shopKey)
		storage.setFault(hang)
		const slow = "storing state of site shop: the storage did not answer within 10s; " +
			"the switch may still take effect if the storage was only slow: repeat it to be sure"
		const busy = "switching site shop: an earlier switch is still waiting for the storage; " +
			"nothing has changed; try again when the storage answers"
		for _, test := range []struct {
			site, want string
			after      time.Duration
		}{
			{"shop", "500 " + slow, store.Timeout},
			{"wiki", "", 0},
			{"shop", "503 " + busy, store.Timeout},
		} {
			began := time.Now()
			got := ""
			if refused := new(caddy.APIError); errors.As(asAPIError(a.put(t, test.site, "")), refused) {
				got = fmt.Sprint(refused.HTTPStatus, " ", refused.Err)
			}
			if took := time.Since(began); got != test.want || took != test.after {
				t.Errorf("%s: got %s after %s\nwant %s after %s", test.site, got, took, test.want, test.after)
			}
		}
		a.expect(t, "shop", "off")
		a.unload()
		after, _ := newTestApp(t, storage, k.of("shop")...)
		after.expect(t, "shop", "off")
		answer()
		after.expect(t, "shop", "on")
		after.unload()
		wantEqual(t, "sites left", sitesInMemory(), 0)
	})
}

// A sync leaves a record that it reads during a switch to the switch. If that fails, the
// record is read again at once, not only when all records are.
func TestSwitchThatFailsOnceItIsStoredTakesEffectSoon(t *testing.T) {
	inTimeOfEachKind(t, func(t *testing.T, k kind) {
		storage := newTestStorage(t)
		a, _ := newTestApp(t, storage, k.of("shop")...)
		go newFollower(a).run()
		time.Sleep(defaultSyncInterval)
		storage.setFault(func(_ context.Context, op, key string) error {
			if op != "store" || key != shopKey {
				return nil
			}
			var journal []site.Record // the last one begins the switch
			noError(t, json.Unmarshal([]byte(storage.get(store.JournalKey)), &journal))
			storage.set(shopKey, fmt.Sprintf(`{"version": %d, "enabled": true}`, journal[len(journal)-1].Version))
			time.Sleep(2 * defaultSyncInterval)
			a.expect(t, "shop", "off")
			return errors.New("disk full")
		})
		wantEqual(t, "switched", a.put(t, "shop", "") == nil, false)
		time.Sleep(2 * defaultSyncInterval)
		a.expect(t, "shop", "on")
	})
}

// G3, G9
func TestConfigLoadsWhileStorageHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newTestStorage(t)
		hang, answer := hangOn("load", "maintenance/sites/")
		storage.setFault(hang)
		var names []string
		for i := range 3 * store.MaxReads {
			names = append(names, fmt.Sprint("site", i))
		}
		began := time.Now()
		a, log := newTestApp(t, storage, names...)
		if took := time.Since(began); took > 2*store.Timeout {
			t.Errorf("it took %s", took)
		}
		time.Sleep(store.Timeout)
		synctest.Wait()
		for _, name := range names {
			a.expect(t, name, "unknown")
		}
		wantEqual(t, "errors logged", log.FilterMessageSnippet("state of the site cannot be read").Len(), len(names))
		answer()
		go newFollower(a).run()
		time.Sleep(2 * defaultSyncInterval)
		for _, name := range names {
			a.expect(t, name, "off")
		}
	})
}

// A config of many sites loads in the time that it takes to read each record once, although
// the follower, which also reads all of them, begins meanwhile.
//
// G12
func TestManyRecordsAreReadOnceWhenAConfigLoads(t *testing.T) {
	const (
		count = 40 * store.MaxReads
		limit = count + count/4 // records that are read before the follower begins are read again
		delay = 20 * time.Millisecond
	)
	var literal []string
	for i := range count {
		literal = append(literal, fmt.Sprint("site", i))
	}
	for name, configured := range map[string][]string{"literal": literal, "template": {"{http.request.host}"}} {
		synctest.Test(t, func(t *testing.T) {
			storage := newTestStorage(t)
			for _, name := range literal {
				storage.set(store.Key(name), benchOn)
			}
			var reads atomic.Int64
			storage.setFault(func(ctx context.Context, op, key string) error {
				if op == "load" && strings.HasPrefix(key, "maintenance/sites/") {
					reads.Add(1)
				}
				select {
				case <-time.After(delay):
				case <-ctx.Done(): // the test may end while the follower reads
				}
				return nil
			})
			a, _ := newTestApp(t, storage, configured...)
			for reads.Load() == 0 {
				time.Sleep(delay)
			}
			began := time.Now()
			go newFollower(a).run()
			noError(t, a.sites.loaded(t.Context()))
			took := time.Since(began)
			time.Sleep(2 * defaultSyncInterval)
			if n := reads.Load(); n > limit || took > limit/store.MaxReads*delay {
				t.Errorf("%s: %d records were read in %s, want %d", name, n, took, count)
			}
			for _, name := range literal {
				a.expect(t, name, "on")
			}
		})
	}
}

// A site whose record cannot be read stays as it is and holds up no other site. A line is
// logged when that begins and when it ends.
//
// G3
func TestOutageOfTheStorageChangesNothingAndIsLoggedOnce(t *testing.T) {
	fails := func(context.Context) error { return errors.New("disk full") }
	hangs := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	ofAll := []string{"storage cannot be read", "storage can be read again"}
	ofOne := []string{"records of some sites cannot be read", "records of all sites can be read again"}
	for name, test := range map[string]struct {
		keys   string
		fault  func(context.Context) error
		others string // state of those that another instance switches on meanwhile
		logged []string
	}{
		"storage fails": {"maintenance/", fails, "off", ofAll},
		"storage hangs": {"maintenance/", hangs, "off", ofAll},
		"record fails":  {shopKey, fails, "on", ofOne},
		"record hangs":  {shopKey, hangs, "on", ofOne},
	} {
		inTimeOfEachKind(t, func(t *testing.T, k kind) {
			storage := newTestStorage(t)
			a, log := newTestApp(t, storage, k.of("shop", "wiki", "blog")...)
			a.turnOn(t, "shop")
			go newFollower(a).run()
			time.Sleep(defaultSyncInterval)
			storage.setFault(func(ctx context.Context, op, key string) error {
				if op == "load" && strings.HasPrefix(key, test.keys) {
					return test.fault(ctx)
				}
				return nil
			})
			for _, other := range []string{"wiki", "blog"} {
				storage.set(store.Key(other), `{"version": 1, "enabled": true}`)
				storage.tell(other)
				time.Sleep(defaultSyncInterval)
				a.expect(t, other, test.others)
			}
			time.Sleep(store.VerifyInterval + 10*defaultSyncInterval) // so that all are verified
			wantEqual(t, name+", synced in time", time.Since(*lastSync.Load()) <= defaultSyncInterval, test.others == "on")
			storage.setFault(nil)
			time.Sleep(time.Minute)
			for _, site := range []string{"shop", "wiki", "blog"} {
				a.expect(t, site, "on")
			}
			lines := log.FilterMessageSnippet("be read")
			expectLines(t, lines, test.logged...)
			for _, line := range lines.All() {
				if got := line.ContextMap()["sites"]; got != nil && fmt.Sprint(got) != "[shop]" {
					t.Errorf("%s: the log names %s", name, got)
				}
			}
		})
	}
}

// A config that ends while it reads the record of a site does not decide its state; requests
// for the site go on waiting.
func TestReloadDuringTheFirstReadBlocksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newTestStorage(t)
		fault, _, answer := pauseOn("load", shopKey)
		storage.setFault(fault)
		before, log := newTestApp(t, storage)
		ctx, end := context.WithCancel(t.Context())
		before.ctx.Context = ctx
		before.joinAll(t, "shop")
		synctest.Wait()
		end()
		before.expect(t, "shop", "unknown")
		wantEqual(t, "kind, which requests wait for", before.sites.named["shop"].Current().Kind(), site.Loading)
		after, _ := newTestApp(t, storage, "shop") // also reads the record
		before.unload()
		wantEqual(t, "kind, which requests wait for", after.sites.named["shop"].Current().Kind(), site.Loading)
		answer()
		after.expect(t, "shop", "off")
		expectLines(t, log)
	})
}

// Restoring a lost record overwrites neither a record that another instance has stored since,
// nor one that a switch here is about to store.
//
// G3, G4
func TestLostRecordIsWrittenAgain(t *testing.T) {
	inTimeOfEachKind(t, func(t *testing.T, k kind) {
		storage := newTestStorage(t)
		a, log := newTestApp(t, storage, k.of("shop")...)
		go newFollower(a).run()
		synctest.Wait() // otherwise its first sync may meet a half-done switch
		a.turnOn(t, "shop")
		time.Sleep(2 * defaultSyncInterval)
		record, marker := storage.get(shopKey), storage.get(store.JournalKey)
		_ = storage.Delete(t.Context(), "maintenance")
		time.Sleep(store.VerifyInterval + defaultSyncInterval)
		a.expect(t, "shop", "on")
		wantEqual(t, "stored", storage.get(shopKey), record)
		wantEqual(t, "others are told", storage.get(store.JournalKey) != marker, true)
		expectLines(t, log, "maintenance enabled", "it was written again")

		shop := a.site(t, "shop")
		foundLost := func() {
			reading := make(chan site.Read, 1)
			reading <- site.Read{}
			newFollower(a).applyRead(shop, <-reading)
		}
		newer := fmt.Sprintf(`{"version": %d, "enabled": true, "message": "Newer."}`, time.Now().Add(time.Hour).UnixMicro())
		storage.set(shopKey, newer)
		foundLost()
		wantEqual(t, "stored", storage.get(shopKey), newer)
		wantEqual(t, "message", shop.Current().Options().Message, "Newer.")

		shop.Turn <- struct{}{} // as a switch does
		_ = storage.Delete(t.Context(), shopKey)
		foundLost()
		time.Sleep(2 * defaultSyncInterval)
		wantEqual(t, "stored during a switch", storage.get(shopKey), "")
		<-shop.Turn
		time.Sleep(2 * defaultSyncInterval)
		wantEqual(t, "stored when the switch is over", storage.get(shopKey), newer)
	})
}

// While a lost record is being written again, a reload that removes the site and one that
// brings it back do not change its state.
//
// G3
func TestSiteThatIsBeingRestoredIsNotForgotten(t *testing.T) {
	inTimeOfEachKind(t, func(t *testing.T, k kind) {
		storage := newTestStorage(t)
		before, _ := newTestApp(t, storage, k.of("shop")...)
		before.turnOn(t, "shop")
		record := storage.get(shopKey)
		_ = storage.Delete(t.Context(), shopKey)
		hang, answer := hangOn("load", shopKey)
		storage.setFault(hang)
		go newFollower(before).restore(before.site(t, "shop"))
		synctest.Wait()
		before.unload()
		storage.setFault(nil)
		after, _ := newTestApp(t, storage, k.of("shop")...)
		after.expect(t, "shop", "on")
		answer()
		after.expect(t, "shop", "on")
		wantEqual(t, "stored", storage.get(shopKey), record)
	})
}

func TestMaintenanceEndsByItself(t *testing.T) {
	inTimeOfEachKind(t, func(t *testing.T, k kind) {
		a, log := newTestApp(t, newTestStorage(t), k.of("shop", "wiki")...)
		go newFollower(a).watchClock()
		until := time.Now().Add(time.Minute)
		options := fmt.Sprintf(`{"until": %q}`, until.Format(time.RFC3339Nano))
		noError(t, errors.Join(a.put(t, "shop", options), a.put(t, "wiki", options)))
		clear := func(g site.Given) site.Mutation { return site.Patch{Options: g} }
		noError(t, a.switchTo(t, "wiki", clear, `{"until": null}`))
		time.Sleep(time.Minute - 1)
		a.expect(t, "shop", "on")
		time.Sleep(time.Nanosecond)
		a.expect(t, "shop", "off")
		time.Sleep(time.Second)
		a.expect(t, "wiki", "on") // its end was cleared
		expectLines(t, log, "maintenance enabled", "maintenance enabled", "maintenance options changed", "maintenance disabled")
		wantEqual(t, "off since", a.site(t, "shop").Current().Since().String(), until.UTC().String())
		wantEqual(t, "cause", log.All()[3].ContextMap()["source"], "until")
	})
}

// newTestApp returns an app without Caddy. Reading the records of its sites has at least begun.
func newTestApp(t *testing.T, storage *testStorage, names ...string) (*App, *observer.ObservedLogs) {
	t.Helper()
	core, log := observer.New(zap.InfoLevel)
	a := &App{
		SyncInterval: caddy.Duration(defaultSyncInterval),
		log:          zap.New(core),
		instance:     instance{self: store.NewSelf("web-1"), interval: defaultSyncInterval},
		memory:       &memory{file: store.NewMemory("", caddy.ParseDuration), log: zap.New(core)},
		ctx:          caddy.Context{Context: t.Context()},
	}
	a.store = store.New(t.Context(), storage, caddy.ParseDuration, a.instance.self)
	a.connect(newReportState())
	a.reporter.process.by = &a.reporter
	if err := a.store.Report(t.Context(), store.Report{}); err != nil {
		t.Fatal(err)
	}
	synced := lastSync.Load()
	t.Cleanup(func() {
		a.unload()
		synctest.Wait()
		lastSync.Store(synced)
	})
	if len(names) > 0 {
		a.joinAll(t, names...)
	}
	synctest.Wait()
	return a, log
}

// joinAll adds sites, as the handlers of a config do before it starts.
func (a *App) joinAll(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := a.sites.join(parseName(name), false); err != nil {
			t.Fatal(err)
		}
	}
	a.reporter.setAnnounced()
}

// unload releases the sites, as the handlers of a config do when it ends.
func (a *App) unload() {
	synctest.Wait()
	a.sites.leave()
	for _, s := range a.sites.named {
		releaseSite(s.entry)
	}
	clear(a.sites.named)
	a.sites.templates = nil
}

// site returns a site as it is for now. For a template's site that was never switched, each
// call returns another one.
func (a *App) site(t *testing.T, name string) *configuredSite {
	t.Helper()
	entry := sites.Need(name, true)
	if entry == nil {
		t.Fatalf("no site %s", name)
	}
	return a.sites.follow(entry, func(*store.Followed) {})
}

func (a *App) put(t *testing.T, name, options string) error {
	t.Helper()
	return a.switchTo(t, name, func(g site.Given) site.Mutation { return site.On{Options: g} }, options)
}

func (a *App) turnOn(t *testing.T, name string) {
	t.Helper()
	noError(t, a.put(t, name, ""))
}

func (a *App) switchTo(t *testing.T, name string, mutation func(site.Given) site.Mutation, options string) error {
	t.Helper()
	given, err := optionParser().Body([]byte("{" + strings.Trim(options, "{}") + "}"))
	noError(t, err)
	if entry := sites.Need(name, true); entry != nil {
		defer letSiteGo(entry) // as the admin API does
	}
	return a.switchSite(a.site(t, name), mutation(given), site.Cause{Source: site.SourceAPI})
}

// expect fails the test unless the site is in that state when all is quiet.
func (a *App) expect(t *testing.T, name, want string) {
	t.Helper()
	synctest.Wait()
	s := a.site(t, name)
	synctest.Wait() // it may have been brought into memory
	if v := s.view(); v.Word() != want {
		t.Errorf("site %s is %s, want %s", name, v.Word(), want)
	}
}

// expectLines fails the test unless these are the lines of the log, by a part of each.
func expectLines(t *testing.T, log *observer.ObservedLogs, parts ...string) {
	t.Helper()
	synctest.Wait()
	var lines []string
	for _, entry := range log.All() {
		lines = append(lines, entry.Message)
	}
	if !slices.EqualFunc(lines, parts, strings.Contains) {
		t.Errorf("the log has %q\nwant %q", lines, parts)
	}
}

// Failures of the storage in the admin API and the log

// G3, G4
func TestSwitchThatFailsSaysSoAndChangesNothing(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		const (
			perhaps = "storing state of site shop: disk full; " +
				"the switch may still take effect if the storage was only slow: repeat it to be sure"
			nothing = "reading state of site shop: disk full; nothing has changed; try again when the storage answers"
		)
		s := k.start(t, `maintenance shop`)
		s.put("shop", `{"message": "Old."}`)
		for _, test := range []struct{ method, body, op, key, want string }{
			{"PUT", "", "load", shopKey, nothing},
			{"PUT", "", "store", shopKey, perhaps},
			{"PATCH", "{}", "store", shopKey, perhaps},
			{"DELETE", "", "load", shopKey, nothing},
			{"DELETE", "", "store", shopKey, perhaps},
			{"DELETE", "", "store", store.JournalKey, perhaps}, // other instances could not notice the switch
		} {
			s.storage.setFault(failOn(test.op, test.key))
			response := s.api(test.method, "/maintenance/shop", test.body)
			wantEqual(t, test.method, fmt.Sprint(response.StatusCode, decode(t, response.body)["error"]), "500"+test.want)
			s.wantStatus("/", 503)
			wantEqual(t, "message", s.status("shop")["message"], "Old.")
			if record := s.storage.get(shopKey); test.key == shopKey && !strings.Contains(record, "Old.") {
				t.Errorf("after a failed %s the record is %s", test.op, record)
			}
		}
		s.storage.setFault(nil)
		s.delete("shop")
		s.wantStatus("/", 200)
	})
}

// A switch goes on when its client leaves, and when a reload replaces its config.
func TestSwitchUnderWayIsCarriedThrough(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		s := k.start(t, `maintenance shop`)
		for _, meanwhile := range []func(leave func()){
			func(leave func()) { leave() },
			func(func()) { s.reload("maintenance shop\nheader X-Config new") },
		} {
			fault, storing, answer := pauseOn("store", shopKey)
			s.storage.setFault(fault)
			ctx, leave := context.WithCancel(t.Context())
			request := httptest.NewRequestWithContext(ctx, http.MethodPut, "/maintenance/shop", nil)
			var switching sync.WaitGroup
			switching.Go(func() { _ = (adminAPI{}).serve(httptest.NewRecorder(), request) })
			<-storing
			meanwhile(leave)
			answer()
			switching.Wait()
			s.wantState("shop", "on")
			s.storage.setFault(nil)
			leave()
			s.delete("shop")
		}
	})
}

// G3
func TestSiteWhoseRecordCannotBeReadIsBlockedUntilItCanBe(t *testing.T) {
	s := prepare(t)
	s.storage.set(store.Key("wiki"), "corrupt")
	s.storage.setFault(failOn("load", shopKey))
	s.options = "maintenance {\nsync_interval 100ms\n}"
	s.reload(`
		maintenance /shop* shop
		maintenance /wiki* wiki
		maintenance /blog* blog`)
	for path, want := range map[string]int{"/shop": 503, "/wiki": 503, "/blog": 200} {
		s.wantStatus(path, want)
	}
	s.wantState("shop", "unknown")
	s.wantState("wiki", "unknown")
	s.logged(`"error"`, "state of the site cannot be read", `"site":"shop"`, "disk full")
	s.storage.setFault(nil)
	eventually(t, func() error { return s.is("shop", "off") })
	s.logged("state of the site is known again", `"site":"shop"`)
	_ = s.storage.Delete(t.Context(), store.Key("wiki"))
	s.reread()
	s.wantState("wiki", "unknown")
	s.delete("wiki")
	s.wantStatus("/wiki", 200)
}

// Reloads

// A changed config keeps the state, and so does one that fails, before its apps have started
// or after. A config with another storage takes the state along.
//
// G2, G3
func TestStateSurvivesReloads(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		s := k.start(t, `maintenance shop`)
		s.put("shop", `{"message": "Hello."}`)
		before, record := s.status("shop"), s.storage.get(shopKey)
		s.reload(`maintenance shop`)
		s.reload("header X-Changed yes\nmaintenance shop {\nretry_after 7m\ninitial_state off\n}")
		s.wantStatus("/", 503)
		if err := s.load("maintenance shop\nreverse_proxy {\nlb_policy nonsense\n}"); err == nil {
			t.Fatal("a wrong config was loaded")
		}
		other := newTestStorage(t) // takes the place of the first one
		other.set(shopKey, `{"version": 9000000000000000, "enabled": false}`)
		for range 5 {
			s.failLate(`maintenance shop`)
			s.wantStatus("/", 503)
		}
		if n := other.stores.Load(); strings.Contains(other.get(shopKey), "true") {
			t.Errorf("the failed config has stored %d values, among them %s", n, other.get(shopKey))
		}
		if left, err := other.List(t.Context(), "maintenance/instances", true); len(left) > 0 {
			t.Errorf("the failed config has left its report %q %v", left, err)
		}
		wantEqual(t, "Retry-After, as the last good config says", s.get("/").Header.Get("Retry-After"), "420")
		s.storage = newTestStorage(t)
		s.reload(`maintenance shop`)
		wantEqual(t, "the state", fmt.Sprint(s.status("shop")), fmt.Sprint(before))
		s.wantStatus("/", 503)
		eventuallyEqual(t, "the record in the new storage", func() string { return s.storage.get(shopKey) }, record)
	})
}

// G10: a config that was replaced does not stay in memory.
func TestReplacedConfigIsForgotten(t *testing.T) {
	s := start(t, `maintenance shop`)
	first := weak.Make(running(t))
	for n := range 2 {
		s.reload(fmt.Sprintf("header X-Config %d\nmaintenance shop", n))
	}
	eventuallyEqual(t, "the first config is in memory", func() bool {
		runtime.GC()
		return first.Value() != nil
	}, false)
}

func TestSiteThatReturnsToTheConfigIsReadAgain(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		s := k.start(t, `maintenance shop`)
		s.put("shop", "")
		eventuallyEqual(t, "the app works", running(t).notifier.renders.Load, true)
		s.reload(``)
		s.logged(`"warn"`, "no longer in the config", `"site":"shop"`)
		// The server of the old config may still take a connection.
		eventuallyEqual(t, "status", func() int { return s.get("/").StatusCode }, 200)
		// The site is not forgotten; it can be switched off, and nothing else.
		const gone = `"site":"shop","state":"on"`
		if answer := s.api(http.MethodGet, "/maintenance/shop/instances", "").body; strings.Contains(answer, `"drained":true`) {
			t.Errorf("what nothing blocks is said to be drained: %s", answer)
		}
		list := s.api(http.MethodGet, "/maintenance", "").body
		if !strings.Contains(list, gone) || !strings.Contains(list, `"configured":false`) {
			t.Errorf("the list is %s", list)
		}
		wantEqual(t, "status of a switch", s.api(http.MethodPut, "/maintenance/shop", "").StatusCode, 409)
		s.reload(`maintenance shop`)
		wantEqual(t, "configured", s.status("shop")["configured"], nil)
		s.wantStatus("/", 503)
		s.logged(`"warn"`, "site is still in maintenance; `caddy maintenance off shop` ends it", `"site":"shop"`, `"since":`)
		others := []string{""}
		if !k.template { // which has each name
			others = append(others, "maintenance wiki")
		}
		for _, config := range others {
			s.reload(config)
			s.logged(`"warn"`, "no longer in the config", `"site":"shop"`)
			s.delete("shop")
			if list := s.api(http.MethodGet, "/maintenance", "").body; strings.Contains(list, `"shop"`) {
				t.Errorf("after off the list is %s", list)
			}
			s.reload(`maintenance shop`)
			wantEqual(t, "state when it is back", s.status("shop")["state"], "off")
			s.put("shop", "")
		}
	})
}

// G5, G10
func TestRequestInFlightIsCountedThoughItsConfigHasGone(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		directives := slowShop(t)
		s := k.start(t, directives)
		release, finished := s.slowRequest()
		s.reload(``)
		s.reload(directives)
		s.drains(release, finished)

		// And the site is forgotten with its last request.
		s.delete("shop")
		release, finished = s.slowRequest()
		s.reload(``)
		release()
		<-finished
		noSiteIsLeft(t)
	})
}

// A client that waits for the fleet gets its answer from the config that it asked, which still
// knows what is in flight after a reload.
//
// G5, G11
func TestReloadDrainsNothing(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		s := k.start(t, slowShop(t))
		release, finished := s.slowRequest()
		s.put("shop", "")
		replaced := running(t)
		answer := make(chan response, 1)
		go func() {
			got, _ := try(http.MethodGet, s.admin+"/maintenance/shop/instances?wait=1s", "", nil)
			answer <- got
		}()
		s.reload("")
		eventuallyEqual(t, "the config has ended", func() bool { return replaced.ctx.Err() != nil }, true)
		if got := <-answer; strings.Contains(got.body, `"drained":true`) {
			t.Errorf("while a request is in flight: %s", got.body)
		}
		release()
		<-finished
	})
}

// A request that reaches the handler of an ended config late is counted by the site that is in
// memory by then.
//
// G5
func TestLateRequestIsCounted(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		arrived, goOn := make(chan struct{}), make(chan struct{})
		early := testMiddleware(t, func(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
			if r.URL.Path == "/slow" {
				close(arrived)
				<-goOn
			}
			return next.ServeHTTP(w, r)
		})
		directives := "route {\n" + early + "\n" + slowShop(t) + "\n}"
		s := k.start(t, directives)
		got := make(chan int, 1)
		go func() { got <- ask(context.Background(), client, s.url+"/slow").StatusCode }()
		<-arrived
		s.api(http.MethodGet, "/maintenance", "") // which waits until the state is known
		s.reload("")
		noSiteIsLeft(t)
		s.reload(slowShop(t))
		close(goOn)
		release := <-slowRequests
		s.put("shop", "")
		s.await("shop", "in_flight", 1)
		close(release)
		wantEqual(t, "its status", <-got, 200)
		s.await("shop", "in_flight", 0)
	})
}

// A request that waits for a record does not depend on a config that was replaced before it
// had read anything.
func TestRequestDoesNotWaitForAConfigThatHasGone(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		s := k.prepare(t)
		answer := make(chan struct{})
		s.storage.setFault(func(_ context.Context, _, key string) error {
			if strings.HasPrefix(key, "maintenance") { // Caddy's own reads would block a reload
				<-answer // nothing is read before
			}
			return nil
		})
		s.reload("maintenance shop")
		got := make(chan visited, 1)
		go func() { got <- ask(context.Background(), client, s.url+"/") }()
		waits := func() bool {
			for stack := range strings.SplitSeq(stacks(), "\n\n") { // of each goroutine
				if strings.Contains(stack, "(*Site).Ready") && strings.Contains(stack, "(*Handler).ServeHTTP") {
					return true
				}
			}
			return false
		}
		eventuallyEqual(t, "a request waits", waits, true)
		s.reload("")
		if v := <-got; v.StatusCode != 503 || v.Header.Get("Retry-After") != "1" {
			t.Errorf("got %d %v", v.StatusCode, v.Header)
		}
		close(answer)
	})
}

func stacks() string {
	all := make([]byte, 1<<22)
	return string(all[:runtime.Stack(all, true)])
}

// The site is looked up after the body is read, and no reload replaces it before the answer.
//
// G1
func TestSwitchWithSlowBodyIsAboutTheSiteThatIsThere(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		s := k.start(t, "maintenance shop")
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.admin, "http://"))
		noError(t, err)
		defer conn.Close()
		fmt.Fprintf(conn, "PUT /maintenance/shop HTTP/1.1\r\nHost: %s\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n", conn.RemoteAddr())
		reader := bufio.NewReader(conn)
		if line, err := reader.ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 100 ") {
			t.Fatalf("got %q %v", line, err) // on success, Caddy waits for the body
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
	})
}

// From its look at the site to its answer, a switch keeps the same site: here, through a reload
// that removes the site and one that brings it back.
//
// G1
func TestReloadDoesNotReplaceTheSiteOfASwitch(t *testing.T) {
	s := start(t, "maintenance shop")
	shop := siteNamed("shop")
	reloads := sync.OnceFunc(func() {
		s.reload("")
		eventuallyEqual(t, "the old config refers to the site", func() bool {
			retained := sites.Retain(shop.entry)
			if retained {
				letSiteGo(shop.entry)
			}
			return retained
		}, false)
		s.reload("maintenance shop")
	})
	request := httptest.NewRequest(http.MethodPut, "/maintenance/shop", nil)
	answer := httptest.NewRecorder()
	if err := (adminAPI{}).serve(answer, request.WithContext(askedContext{t.Context(), reloads})); err != nil || answer.Code != 200 {
		t.Errorf("got %d %v", answer.Code, err)
	}
	wantEqual(t, "the site", siteNamed("shop").Site, shop.Site)
	s.wantStatus("/", 503)
}

// askedContext calls a function when its Done is called. A switch does that when it has found
// its site and is about to begin.
type askedContext struct {
	context.Context
	asked func()
}

func (c askedContext) Done() <-chan struct{} {
	c.asked()
	return c.Context.Done()
}

// Another instance switches a site on while it is not in the config here. When it is back, no
// request is admitted because this instance remembers it as off; it stays as it was if its
// record cannot be read.
//
// G1, G3, G5
func TestSiteThatReturnsWhileInFlightIsReadAgain(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		directives := slowShop(t)
		s := k.start(t, directives)
		s.delete("shop")
		release, finished := s.slowRequest()
		s.reload(``)
		s.storage.set(shopKey, fmt.Sprintf(`{"version": %d, "enabled": true}`, time.Now().UnixMicro()))
		hang, answer := hangOn("load", shopKey)
		s.storage.setFault(hang)
		s.reload(directives)
		wantEqual(t, "kind, which requests wait for", siteNamed("shop").Current().Kind(), site.Loading)
		answer()
		s.wantStatus("/", 503)

		s.reload(``)
		s.storage.setFault(failOn("load", shopKey))
		s.reload(directives)
		s.wantStatus("/", 503)
		s.wantState("shop", "on")
		wantEqual(t, "in_flight", s.status("shop")["in_flight"], 1.0)
		release()
		<-finished
	})
}

// G5
func TestErrorRoutesAreInFlightToo(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		s := k.prepare(t)
		s.after = `handle_errors {
		reverse_proxy ` + upstream(t) + `
	}`
		s.reload(`
		maintenance shop
		error /slow 502`)
		release, finished := s.slowRequest()
		s.drains(release, finished)
	})
}

// drains switches shop on, and fails the test unless its slow request is in flight until it
// ends.
func (s *server) drains(release func(), finished <-chan int) {
	s.t.Helper()
	wantEqual(s.t, "in_flight", s.put("shop", "")["in_flight"], 1.0)
	release()
	wantEqual(s.t, "status of the request", <-finished, 200)
	wantEqual(s.t, "in_flight", s.status("shop?wait=10s")["in_flight"], 0.0)
}

// A config that is only validated stores nothing and starts nothing.
func TestValidationHasNoSideEffects(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		s := k.prepare(t)
		s.storage.set(shopKey, `{"version": 1, "enabled": true}`)
		noError(t, s.validate(`maintenance shop`))
		wantEqual(t, "values stored", s.storage.stores.Load(), 0)
		noSiteIsLeft(t)
	})
}

func TestAdminAPIWithoutConfigSaysSo(t *testing.T) {
	s := start(t, `maintenance shop`)
	noError(t, caddy.Stop())
	const want = "no config is running: Caddy is still loading it, or was started without one; try again in a moment"
	got := s.api(http.MethodGet, "/maintenance", "")
	wantEqual(t, "status", got.StatusCode, 503)
	wantEqual(t, "error", decode(t, got.body)["error"], want)
}

// Harness

// failOn returns a fault that fails an operation on keys with that prefix.
func failOn(op, prefix string) func(context.Context, string, string) error {
	return func(_ context.Context, o, key string) error {
		if o == op && strings.HasPrefix(key, prefix) {
			return errors.New("disk full")
		}
		return nil
	}
}

// hangOn returns a fault that ignores deadlines, as a file system may, and a function that ends
// it.
func hangOn(op, prefix string) (fault func(context.Context, string, string) error, answer func()) {
	answered := make(chan struct{})
	return func(_ context.Context, o, key string) error {
		if o == op && strings.HasPrefix(key, prefix) {
			<-answered
		}
		return nil
	}, sync.OnceFunc(func() { close(answered) })
}

// pauseOn returns a fault that says when an operation has begun, and waits there until it
// is told to go on, or its context ends.
func pauseOn(op, key string) (fault func(context.Context, string, string) error, begun <-chan struct{}, answer func()) {
	operations, answered := make(chan struct{}, 10), make(chan struct{})
	return func(ctx context.Context, o, k string) error {
		if o != op || k != key {
			return nil
		}
		operations <- struct{}{}
		select {
		case <-answered:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}, operations, func() { close(answered) }
}

// noError ends the test if there is an error.
func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantEqual fails the test unless something is as wanted.
func wantEqual[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %.500s, want %.500s", what, fmt.Sprint(got), fmt.Sprint(want))
	}
}

// eventuallyEqual waits until something is as wanted.
func eventuallyEqual[T comparable](t *testing.T, what string, get func() T, want T) {
	t.Helper()
	eventually(t, func() error {
		if got := get(); got != want {
			return fmt.Errorf("%s: got %.500s, want %.500s", what, fmt.Sprint(got), fmt.Sprint(want))
		}
		return nil
	})
}

func (s *server) wantState(site, want string) {
	s.t.Helper()
	wantEqual(s.t, "state of "+site, s.status(site)["state"], any(want))
}

// is returns an error unless the site's state is as wanted.
func (s *server) is(site, want string) error {
	s.t.Helper()
	if got := s.status(site)["state"]; got != want {
		return fmt.Errorf("site %s is %v, want %s", site, got, want)
	}
	return nil
}

// reread returns when the instance has read what is in storage at the time of the call.
func (s *server) reread() {
	s.t.Helper()
	s.storage.tell("shop")
	s.polled()
}

// polled returns when the instance has looked for switches and acted on what
// it has found, that is, when it looks for the second time again.
func (s *server) polled() {
	s.t.Helper()
	var polls atomic.Int64
	s.storage.setFault(func(_ context.Context, op, key string) error {
		if op == "load" && key == store.JournalKey {
			polls.Add(1)
		}
		return nil
	})
	defer s.storage.setFault(nil)
	eventuallyEqual(s.t, "looked three times", func() bool { return polls.Load() >= 3 }, true)
}
