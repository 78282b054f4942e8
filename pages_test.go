package maintenance

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"

	"example.com/caddy-maintenance/internal/page"
)

// What the config says

func TestPageOfEverySourceIsShown(t *testing.T) {
	file := filepath.Join(changeDir(t), "page.html")
	writeFile(t, file, "<p>Mine.")
	host := newPageHost(t, answers("<p>Mine."))
	t.Setenv("TEST_PAGE_HOST", strings.TrimPrefix(host.URL, "http://"))
	t.Setenv("TEST_PAGE_FILE", file)
	t.Setenv("TEST_PAGE_BLANK", " \t")
	s := prepare(t)
	for location, source := range map[string]string{
		strings.ToUpper(host.URL) + "/": host.URL + "/", "http://{env.TEST_PAGE_HOST}/page": host.URL + "/page",
		" {env.TEST_PAGE_FILE} ": file, "./page.html": file,
		"": "", "{env.TEST_PAGE_BLANK}": "", "{env.TEST_PAGE_UNSET}": "",
	} {
		s.reload(shopWith(location))
		s.untilPages("shop", "ok")
		got, shown := "", defaultPage
		for _, p := range s.pages("shop") {
			got, shown = got+p.Source, "<p>Mine."
		}
		s.wantPage("/", shown)
		wantEqual(t, "source of page "+location, got, source)
	}
}

// G7
func TestWrongPageIsRefused(t *testing.T) {
	dir := changeDir(t)
	for option, want := range map[string]string{
		`page`:                                 `page takes one argument, got 0`,
		`page one.html two.html`:               `page takes one argument, got 2`,
		"page one.html {\ntwo.html\n}":         `page takes no block`,
		`page ftp://bob:hunter2@x/y?t=hunter3`: `page: invalid URL "ftp://x/y": must start with https:// or http://; for a file, give its path`,
		`page https://bob:hunter2@x:port/y`:    `page: invalid URL: cannot be parsed; in a password or query, percent-encode`,
		"page one.html\npage one.html":         `page is given twice`,
		`refresh`:                              `refresh takes one argument, got 0`,
		`refresh 1s 2s`:                        `refresh takes one argument, got 2`,
		`refresh 500ms`:                        `invalid refresh "500ms": must be at least 1s (for example 30s)`,
		`refresh often`:                        `invalid refresh "often": must be a duration with a unit (for example 30s)`,
		"refresh 2s\nrefresh 2s":               `refresh is given twice`,
	} {
		_, err := adapt(":8080 {\nmaintenance shop {\n" + option + "\n}\n}")
		wantRefusal(t, option, err, want, ", at Caddyfile:")
	}
	// Placeholders and files are checked when the config loads: it may be adapted on another
	// machine.
	const placeholder = "use a placeholder that is known when the config loads (for example {env.MAINTENANCE_PAGE_URL})"
	for location, want := range map[string]string{
		"missing.html":          "page: " + filepath.Join(dir, "missing.html") + " cannot be read: no such file or directory",
		"status.example/x.html": "; did you mean https://status.example/x.html?",
		"{maintenance.message}": placeholder,
		"/srv/{env}.html":       placeholder,
		"https://bob:hunter2@status.example/{http.request.host}?t=hunter3": placeholder,
	} {
		if _, err := adapt(":8080 {\n" + shopWith(location) + "\n}"); err != nil {
			t.Errorf("page %s is refused before it is loaded: %v", location, err)
		}
		wantRefusal(t, location, prepare(t).validate(shopWith(location)), want)
	}
}

// G7
func TestConfigThatFailsLeavesThePagesAsTheyAre(t *testing.T) {
	dir := changeDir(t)
	t.Setenv("TEST_PAGE", "https://bob:hunter2@x:port/y?t=hunter3")
	writeFile(t, "page.html", "<p>Old.")
	host := newPageHost(t, answers("<p>Mine."))
	s := start(t, shopWith("page.html"))
	s.untilPages("shop", "ok")
	before := fmt.Sprint(s.status("shop"))
	writeFile(t, "page.html", "<p>New.")
	expectOld := func(after string) {
		t.Helper()
		s.wantPage("/", "<p>Old.")
		wantEqual(t, after, fmt.Sprint(s.status("shop")), before)
	}
	good := shopWith("page.html") + "\n" + siteWith("wiki", host.URL+"/failed") + "\nmaintenance blog"
	for option, want := range map[string]string{
		`"refresh": "500ms"`:            `invalid refresh "500ms": must be at least 1s (for example 30s)`,
		`"refresh": -1`:                 `invalid refresh "-1ns": must be at least 1s (for example 30s)`,
		`"page": ["page.html"]`:         `cannot unmarshal array`,
		`"page": "{env.TEST_PAGE}"`:     `page: invalid URL: cannot be parsed`,
		`"page": "{http.request.host}"`: `known when the config loads`,
		`"page": "missing.html"`:        filepath.Join(dir, "missing.html") + ` cannot be read`,
	} {
		wantRefusal(t, option, s.loadWith(good, `"site":"blog"`, `"site":"blog", `+option), want)
		expectOld(option)
	}
	s.failLate(good)
	expectOld("a config that fails when its apps have started")
	noError(t, s.validate(good))
	expectOld("validation")
	s.reload(shopWith("page.html"))
	s.untilPage("/", "<p>New.")
	wantEqual(t, "fetches for configs that never ran", host.asked("/failed"), 0)
}

func TestPageOverHTTPIsWarnedOfOnce(t *testing.T) {
	s := prepare(t)
	location := "http://bob:hunter2@192.0.2.1/page?hunter3"
	noError(t, s.validate("handle /wiki/* {\n"+siteWith("wiki", location)+"\n}\n"+shopWith(location)))
	s.logged(`"warn"`, "page is fetched over plain http", `"page":"http://192.0.2.1/page"`)
	wantEqual(t, "warnings", s.countLogged("page is fetched over plain http"), 1)
	wantEqual(t, "secrets", s.countLogged("hunter"), 0)
}

// What visitors see, and when it is fetched

func TestHandlersShowPagesOfTheirOwnAndShareThem(t *testing.T) {
	host := newPageHost(t, func(w http.ResponseWriter, r *http.Request) {
		answers(r.URL.Path+" {maintenance.message}")(w, r)
	})
	directives := "handle /* {\n" + siteWith("wiki", host.URL+"/de") + "\n}"
	for path, location := range map[string]string{
		"/de/*": host.URL + "/de", "/en/*": host.URL + "/en", "/fr/*": "", "/at/*": host.URL + "/de",
	} {
		directives += "\nhandle " + path + " {\n" + shopWith(location) + "\n}"
	}
	s := start(t, directives)
	s.untilPages("shop", "ok")
	s.patch("wiki", `{"message": "of wiki"}`)
	for path, want := range map[string]string{"/de/": "/de ", "/at/": "/de ", "/en/": "/en ", "/fr/": defaultPage, "/": "/de of wiki"} {
		s.wantPage(path, want)
	}
	wantEqual(t, "pages of shop", len(s.pages("shop")), 2)
	wantEqual(t, "pages of wiki", len(s.pages("wiki")), 1)
}

func TestPageIsFetchedWhenItMayHaveChangedAndForNoVisitor(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		host := newPageHost(t, answers("<p>Mine."))
		s := k.prepare(t)
		s.options = "maintenance {\nsync_interval 100ms\n}"
		directives := "maintenance shop {\npage " + host.URL + "/page\n}"
		byOther := func(options string) func() {
			return func() {
				s.storage.set(shopKey, fmt.Sprintf(`{"version": %d, "enabled": true%s}`, time.Now().UnixMicro(), options))
				s.reread()
			}
		}
		fetches := 0
		for _, step := range []struct {
			when string
			do   func()
			more int
		}{
			{"the config has started", func() { s.reload(directives) }, 1},
			{"switched on", func() { s.put("shop", "") }, 1},
			{"message changed", func() { s.patch("shop", `{"message": "Hello."}`) }, 1},
			{"message cleared", func() { s.put("shop", "") }, 1},
			{"visitors, and a look", func() { s.visitALot(200, "<p>Mine.", "/"); s.status("shop") }, 0},
			{"switched off", func() { s.delete("shop"); s.visitALot(50, "app", "/") }, 0},
			{"switched on by another instance", byOther(""), 1},
			{"message changed by another instance", byOther(`, "message": "Hello."`), 1},
			{"config reloaded", func() { s.reload(directives) }, 1},
			{"message changed after that", func() { s.patch("shop", `{"message": "Hello again."}`) }, 1},
		} {
			step.do()
			fetches += step.more
			host.untilAsked(t, "/page", fetches)
			wantEqual(t, "fetched when "+step.when, host.asked("/page"), fetches)
			s.untilPages("shop", "ok")
		}
	})
}

// Each change of a page renders it ahead, so that no visitor waits for it: rendering this one
// takes almost 5 MiB of memory.
func TestSwitchRefreshAndReloadRenderThePage(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		host := newPageHost(t, answers("<p>{maintenance.message}"+strings.Repeat("x", 1<<20-24)))
		s := k.start(t, shopWith(host.URL))
		s.put("shop", "")
		s.untilPages("shop", "ok")
		host.answer(saysNothing)
		shownOf := func() *siteView { return siteNamed("shop").views.all()[0] }
		noVisitorRenders := func(when string) {
			t.Helper()
			m := siteNamed("shop")
			gate := &Handler{Site: "shop", RetryAfter: caddy.Duration(time.Minute), site: m, view: m.views.all()[0], initiallyOn: true}
			var before, after runtime.MemStats
			r := benchRequest(t, nil)
			runtime.ReadMemStats(&before)
			err := gate.ServeHTTP(new(benchWriter), r, benchApp)
			runtime.ReadMemStats(&after)
			if took := after.TotalAlloc - before.TotalAlloc; err != nil || took > 3<<20 {
				t.Errorf("%s: the first visitor took %d KiB (%v)", when, took>>10, err)
			}
		}
		asked := host.asked("/")
		shownOf().page.RefreshNow()
		host.untilAsked(t, "/", asked+1) // by then the refresh before is complete
		noVisitorRenders("refreshed")
		s.put("shop", `{"message": "New."}`)
		noVisitorRenders("switched")
		s.reload(shopWith(host.URL))
		eventuallyEqual(t, "it has taken over", func() bool { return shownOf().page.user.Load() == running(t).pages }, true)
		noVisitorRenders("reloaded")

		// The rendered page is dropped when maintenance ends.
		for when, end := range map[string]func(){
			"off": func() { s.delete("shop") },
			"until": func() {
				s.patch("shop", `{"until": "`+time.Now().Add(time.Second).Format(time.RFC3339Nano)+`"}`)
			},
		} {
			s.put("shop", `{"message": "New."}`)
			shown := func() *page.Document { return shownOf().HTML(t.Context(), page.Content{Message: "New."}, nil) }
			before := shown()
			end()
			eventuallyEqual(t, "what was rendered is kept when "+when, func() bool { return shown() == before }, false)
		}
	})
}

// A custom page replaces the default page only, and brings no header of its host.
func TestPageChangesNothingButTheHTML(t *testing.T) {
	host := newPageHost(t, func(w http.ResponseWriter, r *http.Request) {
		maps.Copy(w.Header(), http.Header{
			"Set-Cookie": {"session=evil"}, "X-Evil": {"evil"}, "Cache-Control": {"max-age=31536000, evil"}, "Etag": {`"evil"`},
			"Last-Modified": {"Mon, 02 Jan 2006 15:04:05 GMT"}, "Refresh": {"0; url=https://evil.example"}, "Retry-After": {"666"},
		})
		answers("<p>Mine.")(w, r)
	})
	s := start(t, shopWith(""))
	get := func(accept string) (headers, body string) {
		got := s.do(http.MethodGet, "/", http.Header{"Accept": {accept}})
		got.Header.Del("Date")
		if accept == "text/html" {
			got.Header.Del("Content-Length")
		}
		return fmt.Sprint(got.StatusCode, got.Header), got.body
	}
	headers, bodies := make(map[string]string), make(map[string]string)
	for _, accept := range []string{"image/*,*/*;q=0.8", "application/json", "text/plain", "text/html;q=0", "text/html"} {
		headers[accept], bodies[accept] = get(accept)
	}
	bodies["text/html"] = "<p>Mine."
	s.reload(shopWith(host.URL))
	s.untilPages("shop", "ok")
	for accept := range headers {
		header, body := get(accept)
		wantEqual(t, accept, header, headers[accept])
		wantEqual(t, accept, body, bodies[accept])
	}
}

// Hosts and pages that are no good

// G9
func TestBadPageIsReportedAndHarmsNobody(t *testing.T) {
	host := newPageHost(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/silent" {
			saysNothing(w, r)
		}
		http.NotFound(w, r)
	})
	missing, silent := host.URL+"/missing", host.URL+"/silent"
	s := prepare(t)
	within(t, "the load", 2*time.Second, func() {
		s.reload("handle /missing/* {\n" + shopWith(withSecrets(missing)) + "\n}\n" + shopWith(withSecrets(silent)))
	})
	within(t, "the switch on", 2*time.Second, func() { s.put("shop", `{"message": "Hello."}`) })
	within(t, "the change of an option", 2*time.Second, func() { s.patch("shop", `{"message": null}`) })
	s.visitALot(200, defaultPage, "/silent/", "/missing/")
	const failure = "got status 404, want 200"
	want := []page.Status{
		{Source: missing, State: "failed", Error: failure, ShowsMessage: true},
		{Source: silent, State: "fetching", ShowsMessage: true},
	}
	eventuallyEqual(t, "pages", func() string { return fmt.Sprint(s.pages("shop")) }, fmt.Sprint(want))
	wantEqual(t, "failures logged", s.countLogged(`"warn"`, "page cannot be fetched", `"page":"`+missing+`"`), 1)
	host.answer(answers("<p>Good again."))
	s.put("shop", "")
	s.untilPage("/missing/", "<p>Good again.")
	s.logged(`"info"`, "page can be fetched again", `"page":"`+missing+`"`)
	s.tellsNoSecret()
}

// From config to config

// A config that starts late takes nothing from a later one.
func TestReplacedConfigTakesNoPageOver(t *testing.T) {
	host := newPageHost(t, answers("<p>Old."))
	s := start(t, shopWith(host.URL))
	s.untilStored(host.URL, "Old")
	first, oldStorage := running(t), s.storage
	s.storage = newTestStorage(t)
	s.reload(shopWith(host.URL))
	s.untilStored(host.URL, "Old")
	first.pages.run()
	host.answer(answers("<p>New."))
	s.fetchAgain(host)
	s.untilStored(host.URL, "New")
	wantEqual(t, "the replaced config still has its copy", strings.Contains(oldStorage.get(copyKeyOf(t, host.URL)), "PHA+T2xkLg"), true)
}

// A fetch under way ends with the page's last config, and the loop with it.
//
// G9, G10
func TestReloadsWithAHostThatHangsLeaveNothingBehind(t *testing.T) {
	var fetches atomic.Int64
	host := newPageHost(t, func(w http.ResponseWriter, r *http.Request) {
		fetches.Add(1)
		defer fetches.Add(-1)
		saysNothing(w, r)
	})
	s := prepare(t)
	reload := func(i int) {
		s.reload(shopWith(host.URL+"/kept") + "\n" + siteWith("wiki", fmt.Sprintf("%s/%d", host.URL, i)))
		host.untilAsked(t, fmt.Sprint("/", i), 1)
	}
	settled := func() int {
		client.CloseIdleConnections()
		runtime.GC()
		return runtime.NumGoroutine()
	}
	for i := range 5 {
		reload(i)
	}
	before := settled()
	for i := range 100 {
		reload(5 + i)
	}
	within(t, "the end of fetches", 5*time.Second, func() { // they give up after 10 s by themselves
		eventuallyEqual(t, "two are being fetched at most", func() bool { return fetches.Load() <= 2 }, true)
	})
	eventually(t, func() error {
		if after := settled(); after > before+20 {
			return fmt.Errorf("%d goroutines after 100 reloads, %d before", after, before)
		}
		return nil
	})
	wantEqual(t, "fetches that a reload has ended logged as failed", s.countLogged("page cannot be fetched", host.URL+"/1"), 0)
	noError(t, caddy.Stop())
	noPageIsLeft(t)
}

// Everything at once: switches, also by another instance, reloads, fetches, and visitors that
// get the app or a whole page.
//
// G1, G10
func TestConcurrentSwitchesReloadsAndRequests(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		filler := strings.Repeat("x", 100<<10)
		host := newPageHost(t, func(w http.ResponseWriter, r *http.Request) {
			answers("<p>"+r.URL.Path+" {maintenance.message}"+filler+"</p>")(w, r)
		})
		whole := map[string]bool{"app": true}
		for _, message := range []string{"", "one", "two"} {
			whole[string(page.Default(page.Content{Message: message}).HTML)] = true
			for _, path := range []string{"/a", "/b"} {
				whole["<p>"+path+" "+message+filler+"</p>"] = true
			}
		}
		s := k.prepare(t)
		s.options = "maintenance {\nsync_interval 100ms\n}"
		s.reload(shopWith(host.URL + "/a"))
		var over atomic.Bool
		var workers sync.WaitGroup
		run := func(work func(i int)) {
			workers.Go(func() {
				for i := 0; !over.Load(); i++ {
					work(i)
				}
			})
		}
		run(func(i int) { s.api([]string{"PUT", "PATCH", "DELETE"}[i%3], "/maintenance/shop", `{"message": "one"}`) })
		run(func(i int) { s.api([]string{"PATCH", "DELETE"}[i%2], "/maintenance/shop", `{"message": "two"}`) })
		run(func(i int) { s.api("GET", []string{"/maintenance", "/maintenance/shop?wait=10ms"}[i%2], "") })
		run(func(i int) {
			s.storage.set(shopKey, fmt.Sprintf(`{"version": %d, "enabled": %t}`, time.Now().UnixMicro(), i%2 == 0))
			s.storage.tell("shop")
			<-time.After(time.Millisecond)
		})
		for i := range 4 {
			run(func(int) {
				got, err := try(http.MethodGet, s.url, "", http.Header{"Accept-Encoding": {[]string{"", "gzip"}[i%2]}})
				if err != nil {
					return // it met the server of a replaced config
				}
				if body := unpacked(t, got); !whole[body] {
					t.Errorf("a visitor got %d with %d bytes: %.100q", got.StatusCode, len(body), body)
				}
			})
		}
		for i := range 30 {
			s.reload(shopWith(host.URL + []string{"/b", "/a"}[i%2]))
		}
		over.Store(true)
		workers.Wait()
		s.put("shop", `{"message": "one"}`)
		s.untilPages("shop", "ok")
		s.untilPage("/", "<p>/a one"+filler+"</p>")
		wantEqual(t, "in_flight", s.status("shop?wait=10s")["in_flight"], 0.0)
	})
}

// The copy in storage

func TestLastGoodCopyIsShownAtOnceAfterReloadAndRestart(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		host := newPageHost(t, answers("<p>Mine. {maintenance.message}"))
		location := withSecrets(host.URL + "/page")
		s := k.start(t, shopWith(location))
		s.untilStored(location, "{maintenance.message}")
		fetchedAt := s.pages("shop")[0].FetchedAt
		s.put("shop", `{"message": "Hello."}`)
		host.Close()
		stored := s.storage
		s.storage = newTestStorage(t)
		s.reload(shopWith(location)) // keeps the copy, whatever is in storage
		s.wantPage("/", "<p>Mine. Hello.")
		s.untilPages("shop", "stale")
		s.storage.set(shopKey, stored.get(shopKey))
		s.storage.set(copyKeyOf(t, location), stored.get(copyKeyOf(t, location)))
		s.restart(shopWith(location))
		s.wantPage("/", "<p>Mine. Hello.")
		eventually(t, func() error {
			got := s.pages("shop")[0]
			if got.State != "stale" || !strings.Contains(got.Error, "refused") || !got.FetchedAt.Equal(fetchedAt) {
				return fmt.Errorf("the page is %+v, want it stale and fetched at %s", got, fetchedAt)
			}
			return nil
		})
		s.wantPage("/", "<p>Mine. Hello.")
		s.tellsNoSecret()
	})
}

// G9
func TestCopyThatCannotBeReadIsWarnedOf(t *testing.T) {
	for stored, want := range map[string]string{`{"html": "`: "unexpected end of JSON", "": "disk full"} {
		host := newPageHost(t, http.NotFound)
		s := prepare(t)
		s.storage.set(copyKeyOf(t, host.URL), stored)
		if stored == "" {
			s.storage.setFault(failOn("load", "maintenance/pages/"))
		}
		s.reload(shopWith(host.URL))
		s.wantPage("/", defaultPage)
		s.logged(`"warn"`, "copy of the page cannot be read from storage", `"page":"`+host.URL+`"`, want)
		s.storage.setFault(nil)
		s.storage.set(copyKeyOf(t, host.URL), oldCopy)
		s.put("shop", "") // fetches the page in vain, and reads the copy again
		s.untilPage("/", "<p>Old.")
	}
}

func TestPageThatCannotBeStoredIsShownNevertheless(t *testing.T) {
	host := newPageHost(t, answers("<p>Mine."))
	s := prepare(t)
	s.storage.setFault(failOn("store", "maintenance/pages/"))
	s.reload(shopWith(withSecrets(host.URL)))
	s.untilPages("shop", "ok")
	s.wantPage("/", "<p>Mine.")
	s.logged(`"warn"`, "copy of the page cannot be written to storage", `"page":"`+host.URL+`"`, "disk full")
	s.fetchAgain(host)
	s.fetchAgain(host) // when the copy before is about to be stored in vain
	s.storage.setFault(nil)
	s.put("shop", "")
	s.untilStored(withSecrets(host.URL), "Mine")
	wantEqual(t, "failures logged", s.countLogged("cannot be written to storage"), 1)
	s.tellsNoSecret()
}

// A copy is stored when it has changed, and again when the storage has lost it, even if the
// page's host says that it has not changed. Files are not stored.
func TestCopyIsStoredWhenTheStorageHasAnother(t *testing.T) {
	host := newPageHost(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("If-None-Match") == `"v1"` {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		w.Header().Set("ETag", `"v1"`)
		answers("<p>One.")(w, r)
	})
	s := prepare(t)
	var loads, stores atomic.Int64
	s.storage.setFault(func(_ context.Context, op, key string) error {
		if strings.HasPrefix(key, "maintenance/pages/") {
			map[string]*atomic.Int64{"load": &loads, "store": &stores}[op].Add(1)
		}
		return nil
	})
	file := filepath.Join(t.TempDir(), "page.html")
	writeFile(t, file, "<p>File.")
	s.reload(shopWith(file))
	s.untilPages("shop", "ok")
	writeFile(t, file, "<p>Another.")
	s.put("shop", "")
	s.untilPage("/", "<p>Another.")
	wantEqual(t, "times that the copy of a file is looked for or stored", loads.Load()+stores.Load(), 0)
	s.reload(shopWith(host.URL))
	s.untilStored(host.URL, "One")
	for i, change := range []func(){
		func() { _ = s.storage.Delete(t.Context(), copyKeyOf(t, host.URL)) },
		func() { s.storage.set(copyKeyOf(t, host.URL), `{"html": "`) },
		func() { host.answer(answers("<p>Two.")) },
		func() {}, // not stored again
	} {
		change()
		looked, want := loads.Load(), int64(min(i+2, 4))
		s.put("shop", "")
		eventuallyEqual(t, "it is looked for, and stored", func() bool { return loads.Load() > looked && stores.Load() >= want }, true)
		s.untilIdle()
		wantEqual(t, fmt.Sprint("times stored after step ", i), stores.Load(), want)
	}
	s.untilStored(host.URL, "Two")
}

// G9
func TestStorageThatHangsHoldsUpOnlyTheFirstVisitors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := &testStorage{values: make(map[string][]byte)}
		c := newConfigPages(t.Context(), zap.NewNop(), storage, new(configSites))
		use := func(location string) *siteView {
			source, _ := page.ParseSource(location)
			t.Cleanup(func() { _, _ = pages.Delete(location) })
			return c.use(newTestSite("shop"), source, nil)
		}
		shows := func(v *siteView, want string, after time.Duration) {
			t.Helper()
			began := time.Now()
			wantEqual(t, "page", string(v.HTML(t.Context(), page.Content{}, nil).HTML), want)
			wantEqual(t, "time that its visitor waits", time.Since(began), after)
		}
		shows(use("http://page.example/not-stored"), defaultPage, 0)
		hang, release := hangOn("load", "")
		storage.setFault(hang)
		hanging := use("http://page.example/hangs")
		shows(hanging, defaultPage, restorePatience)
		shows(hanging, defaultPage, 0)
		// A copy that comes late is shown, too.
		storage.set(copyKey(hanging.page.Source()), oldCopy)
		release()
		synctest.Wait()
		shows(hanging, "<p>Old.", 0)
	})
}

// G9
func TestStorageThatHangsIsUsedByNoMoreThan32(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := &testStorage{values: make(map[string][]byte)}
		storage.setFault(func(ctx context.Context, _, _ string) error {
			<-ctx.Done()
			return ctx.Err()
		})
		for _, test := range []struct {
			pageOf func() *pooledPage
			want   int64
		}{
			{func() *pooledPage { return newPooledPage(page.Source{}) }, maxCopyAccesses},
			{sync.OnceValue(func() *pooledPage { return newPooledPage(page.Source{}) }), 1},
		} {
			ctx, end := context.WithCancel(t.Context())
			c := newConfigPages(ctx, zap.NewNop(), storage, new(configSites))
			before := storage.loads.Load()
			for range maxCopyAccesses + 8 {
				go c.restore(test.pageOf())
			}
			synctest.Wait()
			wantEqual(t, "copies read at once", storage.loads.Load()-before, test.want)
			end()
			synctest.Wait()
			wantEqual(t, "copies still read when the config has ended", len(c.accesses), 0)
			wantEqual(t, "its end is a failure", test.pageOf().storageFailed, false)
		}
	})
}

// G9
func TestStorageThatHangsHoldsUpNoLoadAndNoFetch(t *testing.T) {
	host := newPageHost(t, answers("<p>Mine."))
	s := prepare(t)
	hang, release := hangOn("load", "maintenance/pages/")
	defer release()
	s.storage.setFault(hang)
	directives := shopWith(host.URL)
	for i := range maxCopyAccesses + 2 {
		directives += fmt.Sprintf("\nhandle /%d {\n%s\n}", i, shopWith(fmt.Sprintf("%s/%d", host.URL, i)))
	}
	within(t, "the load", 5*time.Second, func() { s.reload(directives) })
	within(t, "an answer that is no page", 2*time.Second, func() {
		s.do(http.MethodGet, "/", http.Header{"Accept": {"application/json"}})
	})
	within(t, "the pages", 5*time.Second, func() { s.untilPages("shop", "ok") })
	within(t, "two more fetches", 5*time.Second, func() { s.fetchAgain(host); s.fetchAgain(host) })
	s.wantPage("/", "<p>Mine.")
}

// Harness

var defaultPage = string(page.Default(page.Content{}).HTML)

// oldCopy is the stored copy of "<p>Old.".
const oldCopy = `{"html": "PHA+T2xkLg==", "charset": "utf-8"}`

// siteWith is the directive of a site that is in maintenance from the beginning
// and has a page.
func siteWith(site, location string) string {
	return "maintenance " + site + " {\npage \"" + location + "\"\ninitial_state on\n}"
}

func shopWith(location string) string { return siteWith("shop", location) }

// pageHost is the host of a page, which answers as a test wants it to.
type pageHost struct {
	*httptest.Server
	serve    atomic.Pointer[http.HandlerFunc]
	mu       sync.Mutex
	requests map[string]int // by path
}

func newPageHost(t *testing.T, serve http.HandlerFunc) *pageHost {
	t.Helper()
	h := &pageHost{requests: make(map[string]int)}
	h.answer(serve)
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		h.requests[r.URL.Path]++
		h.mu.Unlock()
		(*h.serve.Load())(w, r)
	}))
	t.Cleanup(h.Close)
	return h
}

// answer changes what the host answers from now on.
func (h *pageHost) answer(serve http.HandlerFunc) { h.serve.Store(&serve) }

// asked returns how often a path was requested.
func (h *pageHost) asked(path string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.requests[path]
}

func (h *pageHost) untilAsked(t *testing.T, path string, n int) {
	t.Helper()
	eventuallyEqual(t, fmt.Sprint(path, " is fetched ", n, " times"), func() bool { return h.asked(path) >= n }, true)
}

func answers(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", html)
		io.WriteString(w, body)
	}
}

// saysNothing takes a request and leaves it at that.
func saysNothing(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// withSecrets adds secrets to a URL.
func withSecrets(url string) string {
	return strings.Replace(url, "://", "://bob:hunter2@", 1) + "?token=hunter3"
}

// wantRefusal fails the test unless an error says all that is wanted, and no secret.
func wantRefusal(t *testing.T, of string, err error, want ...string) {
	t.Helper()
	for _, want := range want {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%s\ngot  %v\nwant %s", of, err, want)
		}
	}
	noSecretIn(t, fmt.Sprint(err))
}

func noSecretIn(t *testing.T, text string) {
	t.Helper()
	for _, secret := range []string{"hunter", "bob"} {
		if i := strings.Index(text, secret); i >= 0 {
			t.Errorf("%q is told: %q", secret, text[max(0, i-100):min(len(text), i+100)])
		}
	}
}

// tellsNoSecret fails the test if the server has logged or answered with a secret.
func (s *server) tellsNoSecret() {
	s.t.Helper()
	content, err := os.ReadFile(s.log)
	noError(s.t, err)
	noSecretIn(s.t, string(content))
	noSecretIn(s.t, s.api(http.MethodGet, "/maintenance", "").body)
	s.storage.mu.Lock()
	defer s.storage.mu.Unlock()
	for key, value := range s.storage.values {
		noSecretIn(s.t, key+string(value))
	}
}

func running(t *testing.T) *App {
	t.Helper()
	app, err := runningApp()
	noError(t, err)
	return app
}

// pages returns the states of a site's pages.
func (s *server) pages(site string) []page.Status {
	s.t.Helper()
	var got struct{ Pages []page.Status }
	noError(s.t, json.Unmarshal([]byte(s.api(http.MethodGet, "/maintenance/"+site, "").body), &got))
	return got.Pages
}

// untilPages waits until all pages of a site are in a state.
func (s *server) untilPages(site, state string) {
	s.t.Helper()
	eventually(s.t, func() error {
		for _, p := range s.pages(site) {
			if p.State != state {
				return fmt.Errorf("page %s is %s, want %s; its error is %q", p.Source, p.State, state, p.Error)
			}
		}
		return nil
	})
}

// fetchAgain starts a fetch of the page of shop, and waits until the host is asked.
func (s *server) fetchAgain(host *pageHost) {
	s.t.Helper()
	asked := host.asked("/")
	s.put("shop", "")
	host.untilAsked(s.t, "/", asked+1)
}

// shown is what a browser gets.
func (s *server) shown(path string) string {
	s.t.Helper()
	got := s.do(http.MethodGet, path, http.Header{"Accept": {"text/html"}})
	return fmt.Sprint(got.StatusCode, " ", got.body)
}

func (s *server) wantPage(path, want string) {
	s.t.Helper()
	wantEqual(s.t, path, s.shown(path), "503 "+want)
}

func (s *server) untilPage(path, want string) {
	s.t.Helper()
	eventuallyEqual(s.t, path, func() string { return s.shown(path) }, "503 "+want)
}

// visitALot sends visitors. All of them must get the same.
func (s *server) visitALot(visitors int, want string, paths ...string) {
	s.t.Helper()
	for i := range visitors {
		path := paths[i%len(paths)]
		wantEqual(s.t, path, s.get(path).body, want)
	}
}

// within fails the test if something takes too long.
func within(t *testing.T, what string, limit time.Duration, do func()) {
	t.Helper()
	began := time.Now()
	do()
	if took := time.Since(began); took > limit {
		t.Errorf("%s took %s, want at most %s", what, took, limit)
	}
}

func copyKeyOf(t *testing.T, location string) string {
	t.Helper()
	source, err := page.ParseSource(location)
	noError(t, err)
	return copyKey(source)
}

// untilStored waits until the copy of a page is stored and has a text in it.
func (s *server) untilStored(location, text string) {
	s.t.Helper()
	eventually(s.t, func() error {
		raw := s.storage.get(copyKeyOf(s.t, location))
		if c, err := page.ParseCopy([]byte(raw)); err != nil || !strings.Contains(string(c.HTML), text) {
			return fmt.Errorf("the copy is %.200q (%v), want one with %s", raw, err, text)
		}
		return nil
	})
	s.untilIdle()
}

// untilIdle waits until no copy is being read or stored.
func (s *server) untilIdle() {
	s.t.Helper()
	for p := range running(s.t).pages.used {
		eventuallyEqual(s.t, "accesses to the copy of "+p.Source().String(), func() int { return len(p.storage) }, 0)
	}
}

// changeDir makes an empty directory the working one.
func changeDir(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	t.Chdir(dir)
	return dir
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	noError(t, os.WriteFile(path, []byte(content), 0o600))
}
