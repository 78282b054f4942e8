package maintenance

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddyserver/caddy/v2"

	"example.com/caddy-maintenance/internal/site"
	"example.com/caddy-maintenance/internal/store"
)

const shopKey = "maintenance/sites/shop.json"

// What an app does with a storage, without Caddy and in fake time

// G3
func TestSwitchDoesNotWaitForEverAndMayTakeEffectLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newTestStorage(t)
		a, _ := newTestApp(t, storage, "shop", "wiki")
		hang, answer := hangOn("store", shopKey)
		storage.setFault(hang)
		const slow = "storing state of site shop: the storage did not answer within 10s; " +
			"the switch may still take effect if the storage was only slow: repeat it to be sure"
		const busy = "switching site shop: an earlier switch is still waiting for the storage; " +
			"nothing has changed, repeat it when the storage answers"
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
		answer()
		a.expect(t, "shop", "on")
	})
}

// A switch that the storage still keeps when its client has been answered holds on to its
// site, which a reload may take away and bring back.
//
// G1
func TestSwitchIsOfTheSiteThatReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newTestStorage(t)
		before, _ := newTestApp(t, storage, "shop")
		hang, answer := hangOn("store", shopKey)
		storage.setFault(hang)
		if err := before.put(t, "shop", ""); !errors.Is(err, store.ErrSilent) {
			t.Fatal(err)
		}
		before.unload()
		after, _ := newTestApp(t, storage, "shop")
		answer()
		after.expect(t, "shop", "on")
		after.unload()
		if n := sites.Len(); n > 0 {
			t.Errorf("%d sites are left", n)
		}
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
		for _, name := range names {
			a.expect(t, name, "unknown")
		}
		if n := log.FilterMessageSnippet("state of the site cannot be read").Len(); n != len(names) {
			t.Errorf("%d errors are logged, want one for each site", n)
		}
		answer()
		go newFollower(a).run()
		time.Sleep(2 * defaultSyncInterval)
		for _, name := range names {
			a.expect(t, name, "off")
		}
	})
}

// What cannot be read stays as it is, and holds up nothing else. It is logged when that
// begins and when it is over.
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
		synctest.Test(t, func(t *testing.T) {
			storage := newTestStorage(t)
			a, log := newTestApp(t, storage, "shop", "wiki", "blog")
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
				storage.set(store.MarkerKey, other)
				time.Sleep(defaultSyncInterval)
				a.expect(t, other, test.others)
			}
			time.Sleep(time.Minute)
			if inTime := time.Since(*lastSync.Load()) <= defaultSyncInterval; inTime != (test.others == "on") {
				t.Errorf("%s: the last sync was at %s, now it is %s", name, lastSync.Load(), time.Now())
			}
			storage.setFault(nil)
			time.Sleep(time.Minute)
			for _, site := range []string{"shop", "wiki", "blog"} {
				a.expect(t, site, "on")
			}
			lines := log.FilterMessageSnippet("be read")
			expectLines(t, lines, test.logged...)
			if got := lines.All()[0].ContextMap()["sites"]; got != nil && fmt.Sprint(got) != "[shop]" {
				t.Errorf("%s: the log names %s", name, got)
			}
		})
	}
}

// A config that ends while it reads the record of a site tells nothing about it; who
// waits for the site goes on waiting.
func TestReloadDuringTheFirstReadBlocksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newTestStorage(t)
		fault, _, answer := pauseOn("load", shopKey)
		storage.setFault(fault)
		before, log := newTestApp(t, storage)
		ctx, end := context.WithCancel(t.Context())
		before.ctx.Context = ctx
		if _, err := before.join("shop", false); err != nil {
			t.Fatal(err)
		}
		after, _ := newTestApp(t, storage, "shop") // which reads it, too
		end()
		before.unload()
		if kind := after.sites["shop"].Current().Kind(); kind != site.Loading {
			t.Errorf("nobody waits for the record any more, the kind is %d", kind)
		}
		answer()
		after.expect(t, "shop", "off")
		expectLines(t, log)
	})
}

// G3
func TestLostRecordIsWrittenAgain(t *testing.T) {
	for name, damage := range map[string]func(*testStorage){
		"lost":    func(s *testStorage) { _ = s.Delete(t.Context(), shopKey) },
		"older":   func(s *testStorage) { s.set(shopKey, `{"version": 1, "enabled": false}`) },
		"corrupt": func(s *testStorage) { s.set(shopKey, `{"version": 1, `) },
		"all":     func(s *testStorage) { _ = s.Delete(t.Context(), "maintenance") },
	} {
		synctest.Test(t, func(t *testing.T) {
			storage := newTestStorage(t)
			a, log := newTestApp(t, storage, "shop")
			go newFollower(a).run()
			a.turnOn(t, "shop")
			time.Sleep(2 * defaultSyncInterval)
			record, marker := storage.get(shopKey), storage.get(store.MarkerKey)
			damage(storage)
			time.Sleep(store.VerifyInterval + defaultSyncInterval)
			a.expect(t, "shop", "on")
			if got := storage.get(shopKey); got != record || storage.get(store.MarkerKey) == marker {
				t.Errorf("%s: the record is %q, and others are told: %t", name, got, storage.get(store.MarkerKey) != marker)
			}
			expectLines(t, log, "maintenance enabled", "it has been written again")
		})
	}
}

// What another instance has stored since the record was lost stays, and so does what a
// switch here is about to store.
//
// G3, G4
func TestNothingIsRestoredOverASwitch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newTestStorage(t)
		a, _ := newTestApp(t, storage, "shop")
		go newFollower(a).run()
		a.turnOn(t, "shop")
		time.Sleep(2 * defaultSyncInterval)
		shop := a.sites["shop"]
		foundLost := func() {
			reading := make(chan site.Read, 1)
			reading <- site.Read{}
			newFollower(a).readAgain(shop, reading)
		}
		newer := fmt.Sprintf(`{"version": %d, "enabled": true, "message": "Newer."}`, time.Now().Add(time.Hour).UnixMicro())
		storage.set(shopKey, newer)
		foundLost()
		if got := storage.get(shopKey); got != newer || shop.Current().Options().Message != "Newer." {
			t.Errorf("stored is %s, in memory %+v", got, shop.Current().Options())
		}

		shop.Turn <- struct{}{} // as a switch does
		_ = storage.Delete(t.Context(), shopKey)
		foundLost()
		time.Sleep(2 * defaultSyncInterval)
		if got := storage.get(shopKey); got != "" {
			t.Errorf("%s was stored during a switch", got)
		}
		<-shop.Turn
		time.Sleep(2 * defaultSyncInterval)
		if got := storage.get(shopKey); got != newer {
			t.Errorf("stored is %q when the switch is over", got)
		}
	})
}

// While a record that was lost is being written again, a config without the site and one
// that brings it back find it as it was.
//
// G3
func TestSiteThatIsBeingRestoredIsNotForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newTestStorage(t)
		before, _ := newTestApp(t, storage, "shop")
		before.turnOn(t, "shop")
		record := storage.get(shopKey)
		_ = storage.Delete(t.Context(), shopKey)
		hang, answer := hangOn("load", shopKey)
		storage.setFault(hang)
		go newFollower(before).restore(before.sites["shop"])
		synctest.Wait()
		before.unload()
		storage.setFault(nil)
		after, _ := newTestApp(t, storage, "shop")
		after.expect(t, "shop", "on")
		answer()
		after.expect(t, "shop", "on")
		if got := storage.get(shopKey); got != record {
			t.Errorf("stored is %q, want %s", got, record)
		}
	})
}

func TestMaintenanceEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, log := newTestApp(t, newTestStorage(t), "shop", "wiki")
		go newFollower(a).watchClock()
		until := time.Now().Add(time.Minute)
		options := fmt.Sprintf(`{"until": %q}`, until.Format(time.RFC3339Nano))
		if err := errors.Join(a.put(t, "shop", options), a.put(t, "wiki", options)); err != nil {
			t.Fatal(err)
		}
		if err := a.switchTo(t, "wiki", func(g site.Given) site.Mutation { return site.Patch{Options: g} }, `{"until": null}`); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute - 1)
		a.expect(t, "shop", "on")
		time.Sleep(time.Nanosecond)
		a.expect(t, "shop", "off")
		time.Sleep(time.Second)
		a.expect(t, "wiki", "on") // its end was cleared
		expectLines(t, log, "maintenance enabled", "maintenance enabled", "maintenance options changed", "maintenance disabled")
		if got := log.All()[3].ContextMap(); got["source"] != "until" || got["site"] != "shop" || !a.sites["shop"].Current().Since().Equal(until) {
			t.Errorf("logged %v, off since %s", got, a.sites["shop"].Current().Since())
		}
	})
}

// newTestApp is an app that no Caddy runs, with sites whose records have been read, or
// begin to be.
func newTestApp(t *testing.T, storage *testStorage, names ...string) (*App, *observer.ObservedLogs) {
	t.Helper()
	core, log := observer.New(zap.InfoLevel)
	a := &App{
		SyncInterval: caddy.Duration(defaultSyncInterval),
		log:          zap.New(core),
		store:        store.New(storage, caddy.ParseDuration),
		sites:        make(map[string]*configuredSite),
		ctx:          caddy.Context{Context: t.Context()},
	}
	synced := lastSync.Load()
	t.Cleanup(func() {
		a.unload()
		synctest.Wait()
		lastSync.Store(synced)
	})
	for _, name := range names {
		if _, err := a.join(name, false); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Wait()
	return a, log
}

// unload releases the sites, as the handlers of a config that goes do.
func (a *App) unload() {
	synctest.Wait()
	for _, s := range a.sites {
		releaseSite(s.entry)
	}
	clear(a.sites)
}

func (a *App) put(t *testing.T, name, options string) error {
	t.Helper()
	return a.switchTo(t, name, func(g site.Given) site.Mutation { return site.On{Options: g} }, options)
}

func (a *App) turnOn(t *testing.T, name string) {
	t.Helper()
	if err := a.put(t, name, ""); err != nil {
		t.Fatal(err)
	}
}

func (a *App) switchTo(t *testing.T, name string, mutation func(site.Given) site.Mutation, options string) error {
	t.Helper()
	given, err := optionParser().Body([]byte("{" + strings.Trim(options, "{}") + "}"))
	if err != nil {
		t.Fatal(err)
	}
	return a.switchSite(a.sites[name], mutation(given), site.Cause{Source: site.SourceAPI})
}

// expect fails the test unless the site is in that state when all is quiet.
func (a *App) expect(t *testing.T, name, want string) {
	t.Helper()
	synctest.Wait()
	if v := a.sites[name].view(); v.Word() != want {
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

// Storage that fails, as the admin API and the log tell it

// G3, G4
func TestSwitchThatFailsSaysSoAndChangesNothing(t *testing.T) {
	const (
		perhaps = "storing state of site shop: disk full; the switch may still take effect if the storage was only slow: repeat it to be sure"
		nothing = "reading state of site shop: disk full; nothing has changed, repeat it when the storage answers"
	)
	s := start(t, `maintenance shop`)
	s.put("shop", `{"message": "Old."}`)
	for _, test := range []struct{ method, op, key, want string }{
		{"PUT", "load", shopKey, nothing},
		{"PATCH", "load", shopKey, nothing},
		{"DELETE", "load", shopKey, nothing},
		{"PUT", "store", shopKey, perhaps},
		{"PATCH", "store", shopKey, perhaps},
		{"DELETE", "store", shopKey, perhaps},
		{"DELETE", "store", store.MarkerKey, perhaps}, // others could not notice
	} {
		record := s.storage.get(shopKey)
		s.storage.setFault(failOn(test.op, test.key))
		response := s.api(test.method, "/maintenance/shop", map[string]string{"PATCH": "{}"}[test.method])
		if got := decode(t, response.body)["error"]; response.StatusCode != 500 || got != test.want {
			t.Errorf("%s got %d %v\nwant 500 %s", test.method, response.StatusCode, got, test.want)
		}
		s.wantStatus("/", 503)
		if got := s.status("shop"); got["message"] != "Old." || test.key == shopKey && s.storage.get(shopKey) != record {
			t.Errorf("after a failed %s the site is %v, its record %s", test.op, got, s.storage.get(shopKey))
		}
	}
	s.storage.setFault(nil)
	s.delete("shop")
	s.wantStatus("/", 200)
}

// A switch is carried through when its client goes, and when a reload takes its config.
func TestSwitchUnderWayIsCarriedThrough(t *testing.T) {
	s := start(t, `maintenance shop`)
	for _, meanwhile := range []func(cancel func(), done <-chan error){
		func(cancel func(), done <-chan error) {
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		},
		func(func(), <-chan error) { s.reload("maintenance shop\nheader X-Config new") },
	} {
		fault, storing, answer := pauseOn("store", shopKey)
		s.storage.setFault(fault)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- askToSwitchOn(ctx, s.admin) }()
		<-storing
		meanwhile(cancel, done)
		answer()
		eventually(t, func() error { return s.is("shop", "on") })
		s.storage.setFault(nil)
		cancel()
		s.delete("shop")
	}
}

func askToSwitchOn(ctx context.Context, admin string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPut, admin+"/maintenance/shop", nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err == nil {
		response.Body.Close()
	}
	return err
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
	if err := errors.Join(s.is("shop", "unknown"), s.is("wiki", "unknown")); err != nil {
		t.Error(err)
	}
	s.logged(`"error"`, "state of the site cannot be read", `"site":"shop"`, "disk full")
	s.storage.setFault(nil)
	eventually(t, func() error { return s.is("shop", "off") })
	s.logged("state of the site is known again", `"site":"shop"`)
	_ = s.storage.Delete(t.Context(), store.Key("wiki"))
	s.reread()
	if err := s.is("wiki", "unknown"); err != nil {
		t.Errorf("removed: %v", err)
	}
	s.delete("wiki")
	s.wantStatus("/wiki", 200)
}

// Reloads

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

// Neither a config that is changed, nor one that fails, before its apps have started or
// after, has another state.
//
// G3
func TestStateSurvivesReloads(t *testing.T) {
	s := start(t, `maintenance shop`)
	s.put("shop", `{"message": "Hello."}`)
	before := s.status("shop")
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
		if !running(t).running.Load() {
			return errors.New("the app has not begun its work")
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

// G5, G10
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

	// And the site is forgotten with its last request.
	s.delete("shop")
	release, finished = s.slowRequest()
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

// From its look at the site to its answer, no reload makes a switch one of another site:
// here, one that takes the site away and one that brings it back.
//
// G1
func TestReloadDoesNotReplaceTheSiteOfASwitch(t *testing.T) {
	s := start(t, "maintenance shop")
	shop := siteNamed("shop")
	reloads := sync.OnceFunc(func() {
		s.reload("")
		eventually(t, func() error {
			if sites.Retain(shop.entry) {
				letSiteGo(shop.entry)
				return errors.New("the old config still refers to the site")
			}
			return nil
		})
		s.reload("maintenance shop")
	})
	request := httptest.NewRequest(http.MethodPut, "/maintenance/shop", nil)
	answer := httptest.NewRecorder()
	if err := (adminAPI{}).serve(answer, request.WithContext(askedContext{t.Context(), reloads})); err != nil || answer.Code != 200 {
		t.Errorf("got %d %v", answer.Code, err)
	}
	if now := siteNamed("shop"); now.Site != shop.Site {
		t.Error("the switch was one of a site that is not there any more")
	}
	s.wantStatus("/", 503)
}

// askedContext calls a function when it is asked when it is done, as a switch does that
// has found its site and is about to begin.
type askedContext struct {
	context.Context
	asked func()
}

func (c askedContext) Done() <-chan struct{} {
	c.asked()
	return c.Context.Done()
}

// A site that was not in the config while another instance switched it serves no request
// because this one remembers it as off, and stays as it was if it cannot be read.
//
// G1, G3, G5
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
	if kind := siteNamed("shop").Current().Kind(); kind != site.Loading {
		t.Errorf("requests do not wait for the record, the kind is %d", kind)
	}
	answer()
	s.wantStatus("/", 503)

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

// A config that is only looked at stores nothing and starts nothing.
func TestValidationHasNoSideEffects(t *testing.T) {
	s := prepare(t)
	s.storage.set(shopKey, `{"version": 1, "enabled": true}`)
	if err := s.validate(`maintenance shop`); err != nil {
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
	s.storage.set(store.MarkerKey, time.Now().String())
	s.polled()
}

// polled returns when the instance has looked for switches and acted on what
// it has found, that is, when it looks for the second time again.
func (s *server) polled() {
	s.t.Helper()
	var polls atomic.Int64
	s.storage.setFault(func(_ context.Context, op, key string) error {
		if op == "load" && key == store.MarkerKey {
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
