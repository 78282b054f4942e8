package maintenance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"

	"example.com/caddy-maintenance/internal/page"
	"example.com/caddy-maintenance/internal/store"
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
		if got != source {
			t.Errorf("page %q comes from %q, want %q", location, got, source)
		}
	}
}

// G7
func TestWrongPageIsRefused(t *testing.T) {
	dir := changeDir(t)
	for option, want := range map[string]string{
		`page`:                                 `page takes one argument, and 0 are given`,
		`page one.html two.html`:               `page takes one argument, and 2 are given`,
		"page one.html {\ntwo.html\n}":         `page takes no block`,
		`page ftp://bob:hunter2@x/y?t=hunter3`: `page: "ftp://x/y" given, accepted are https, http, and for a file its path without a scheme`,
		`page https://bob:hunter2@x:port/y`:    `page: the URL given cannot be parsed; in a password or query, percent-encode`,
		"page one.html\npage one.html":         `page is given twice`,
		`refresh`:                              `refresh takes one argument, and 0 are given`,
		`refresh 1s 2s`:                        `refresh takes one argument, and 2 are given`,
		`refresh 500ms`:                        `refresh: 500ms given, at least 1s is accepted`,
		`refresh often`:                        `refresh: "often" given, a duration is accepted, such as "90s", "5m" or "1d"`,
		"refresh 2s\nrefresh 2s":               `refresh is given twice`,
	} {
		_, err := adapt(":8080 {\nmaintenance shop {\n" + option + "\n}\n}")
		wantRefusal(t, option, err, want, ", at Caddyfile:")
	}
	// What a placeholder stands for, and what is wrong with a file, is seen where the
	// config is loaded. It may be adapted elsewhere.
	const placeholder = "accepted are placeholders that are known when the config loads, such as {env.MAINTENANCE_PAGE_URL}"
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
	before := s.status("shop")
	writeFile(t, "page.html", "<p>New.")
	expectOld := func(after string) {
		t.Helper()
		s.wantPage("/", "<p>Old.")
		if got := s.status("shop"); fmt.Sprint(got) != fmt.Sprint(before) {
			t.Errorf("%s: the site is %v, want %v", after, got, before)
		}
	}
	good := shopWith("page.html") + "\n" + siteWith("wiki", host.URL+"/failed") + "\nmaintenance blog"
	for option, want := range map[string]string{
		`"refresh": "500ms"`:            `refresh: 500ms given, at least 1s is accepted`,
		`"refresh": -1`:                 `refresh: -1ns given, at least 1s is accepted`,
		`"page": ["page.html"]`:         `cannot unmarshal array`,
		`"page": "{env.TEST_PAGE}"`:     `page: the URL given cannot be parsed`,
		`"page": "{http.request.host}"`: `known when the config loads`,
		`"page": "missing.html"`:        filepath.Join(dir, "missing.html") + ` cannot be read`,
	} {
		wantRefusal(t, option, s.loadWith(good, `"site":"blog"`, `"site":"blog", `+option), want)
		expectOld(option)
	}
	s.failLate(good)
	expectOld("a config that fails when its apps have started")
	if err := s.validate(good); err != nil {
		t.Error(err)
	}
	expectOld("validation")
	s.reload(shopWith("page.html"))
	s.untilPage("/", "<p>New.")
	if n := host.asked("/failed"); n > 0 {
		t.Errorf("the page of configs that never ran was fetched %d times", n)
	}
}

func TestPageOverHTTPIsWarnedOfOnce(t *testing.T) {
	s := prepare(t)
	location := "http://bob:hunter2@192.0.2.1/page?hunter3"
	if err := s.validate("handle /wiki/* {\n" + siteWith("wiki", location) + "\n}\n" + shopWith(location)); err != nil {
		t.Fatal(err)
	}
	s.logged(`"warn"`, "page comes over http", `"page":"http://192.0.2.1/page"`)
	if n := s.countLogged("page comes over http"); n != 1 || s.countLogged("hunter") > 0 {
		t.Errorf("%d warnings, want one without a secret", n)
	}
}

// What visitors see, and when it is fetched

func TestHandlersShowPagesOfTheirOwnAndShareThem(t *testing.T) {
	host := newPageHost(t, func(w http.ResponseWriter, r *http.Request) {
		answers(r.URL.Path+" {maintenance.message}")(w, r)
	})
	s := start(t, "handle /de/* {\n"+shopWith(host.URL+"/de")+"\n}\nhandle /en/* {\n"+shopWith(host.URL+"/en")+"\n}\nhandle /fr/* {\n"+
		shopWith("")+"\n}\nhandle /at/* {\n"+shopWith(host.URL+"/de")+"\n}\nhandle {\n"+siteWith("wiki", host.URL+"/de")+"\n}")
	s.untilPages("shop", "ok")
	s.patch("wiki", `{"message": "of wiki"}`)
	for path, want := range map[string]string{"/de/": "/de ", "/at/": "/de ", "/en/": "/en ", "/fr/": defaultPage, "/": "/de of wiki"} {
		s.wantPage(path, want)
	}
	if shop, wiki := s.pages("shop"), s.pages("wiki"); len(shop) != 2 || len(wiki) != 1 {
		t.Errorf("the pages are %+v and %+v, want two and one", shop, wiki)
	}
}

func TestPageIsFetchedWhenItMayHaveChangedAndForNoVisitor(t *testing.T) {
	host := newPageHost(t, answers("<p>Mine."))
	s := prepare(t)
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
		if n := host.asked("/page"); n > fetches {
			t.Fatalf("%s: fetched %d times, want %d", step.when, n, fetches)
		}
		s.untilPages("shop", "ok")
	}
}

// Whatever makes a page look different renders it, so that no visitor has to: rendering
// this one takes more than 1 MiB.
func TestSwitchRefreshAndReloadRenderThePage(t *testing.T) {
	host := newPageHost(t, answers("<p>{maintenance.message}"+strings.Repeat("x", 1<<20-24)))
	s := start(t, shopWith(host.URL))
	s.untilPages("shop", "ok")
	host.answer(saysNothing)
	shownOf := func() *siteView { return running(t).sites["shop"].views[0] }
	noVisitorRenders := func(when string) {
		t.Helper()
		m := running(t).sites["shop"]
		gate := &Handler{Site: "shop", RetryAfter: caddy.Duration(time.Minute), site: m, view: m.views[0], initiallyOn: true}
		var before, after runtime.MemStats
		r := benchRequest(t, nil)
		runtime.ReadMemStats(&before)
		err := gate.ServeHTTP(new(benchWriter), r, benchApp)
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; err != nil || took > 512<<10 {
			t.Errorf("%s: the first visitor took %d KiB (%v)", when, took>>10, err)
		}
	}
	asked := host.asked("/")
	shownOf().page.RefreshNow()
	host.untilAsked(t, "/", asked+1) // and so all that belongs to the refresh before has been done
	noVisitorRenders("refreshed")
	s.put("shop", `{"message": "New."}`)
	noVisitorRenders("switched")
	s.reload(shopWith(host.URL))
	eventually(t, func() error {
		if shownOf().page.user.Load() != running(t).pages {
			return errors.New("the config has not taken over")
		}
		return nil
	})
	noVisitorRenders("reloaded")

	// And it is forgotten with the maintenance.
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
		eventually(t, func() error {
			if shown() == before {
				return errors.New(when + ": what was rendered is kept")
			}
			return nil
		})
	}
}

// Only what would have got the default page gets another one, and no header of its host.
func TestPageChangesNothingButTheHTML(t *testing.T) {
	host := newPageHost(t, func(w http.ResponseWriter, r *http.Request) {
		maps.Copy(w.Header(), http.Header{
			"Set-Cookie": {"session=evil"}, "X-Evil": {"evil"}, "Cache-Control": {"max-age=31536000, evil"}, "Etag": {`"evil"`},
			"Last-Modified": {"Mon, 02 Jan 2006 15:04:05 GMT"}, "Refresh": {"0; url=https://evil.example"}, "Retry-After": {"666"},
		})
		answers("<p>Mine.")(w, r)
	})
	s := start(t, shopWith(""))
	get := func(accept string) (header, body string) {
		got := s.do(http.MethodGet, "/", http.Header{"Accept": {accept}})
		got.Header.Del("Date")
		if accept == "text/html" {
			got.Header.Del("Content-Length")
		}
		return fmt.Sprint(got.StatusCode, got.Header), got.body
	}
	accepts := []string{"image/*,*/*;q=0.8", "application/json", "text/plain", "text/html;q=0", "text/html"}
	before := make(map[string][2]string)
	for _, accept := range accepts {
		header, body := get(accept)
		before[accept] = [2]string{header, body}
	}
	s.reload(shopWith(host.URL))
	s.untilPages("shop", "ok")
	for _, accept := range accepts {
		header, body := get(accept)
		want := before[accept]
		if accept == "text/html" {
			want[1] = "<p>Mine."
		}
		if header != want[0] || body != want[1] {
			t.Errorf("Accept %s got %s %s\nwant %s", accept, header, body, want)
		}
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
	const failure = "it is answered with status 404, 200 is accepted"
	want := []page.Status{{Source: missing, State: "failed", Error: failure, ShowsMessage: true}, {Source: silent, State: "fetching", ShowsMessage: true}}
	eventually(t, func() error {
		if got := s.pages("shop"); !slices.Equal(got, want) {
			return fmt.Errorf("got %+v, want %+v", got, want)
		}
		return nil
	})
	if n := s.countLogged(`"warn"`, "page cannot be fetched", `"page":"`+missing+`"`); n != 1 {
		t.Errorf("the failures were logged %d times, want once", n)
	}
	host.answer(answers("<p>Good again."))
	s.put("shop", "")
	s.untilPage("/missing/", "<p>Good again.")
	s.logged(`"info"`, "page can be fetched again", `"page":"`+missing+`"`)
	s.tellsNoSecret()
}

// From config to config

// A config that is late to take over takes nothing from a later one.
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
	if got := oldStorage.get(copyKeyOf(t, host.URL)); !strings.Contains(got, "PHA+T2xkLg") {
		t.Errorf("the storage of the replaced config has %s", got)
	}
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
		eventually(t, func() error {
			if n := fetches.Load(); n > 2 {
				return fmt.Errorf("%d pages are being fetched, want two at most", n)
			}
			return nil
		})
	})
	eventually(t, func() error {
		if after := settled(); after > before+20 {
			return fmt.Errorf("%d goroutines after 100 reloads, %d before", after, before)
		}
		return nil
	})
	if n := s.countLogged("page cannot be fetched", host.URL+"/1"); n > 0 {
		t.Errorf("%d fetches were logged as failed that a reload has ended", n)
	}
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	noPageIsLeft(t)
}

// Everything at once: switches, also of another instance, reloads, fetches and visitors,
// who get the app or a whole page.
//
// G1, G10
func TestConcurrentSwitchesReloadsAndRequests(t *testing.T) {
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
	s := prepare(t)
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
		s.storage.set(store.MarkerKey, fmt.Sprint(i))
		<-time.After(time.Millisecond)
	})
	for i := range 4 {
		run(func(int) {
			got, err := try(http.MethodGet, s.url, "", http.Header{"Accept-Encoding": {[]string{"", "gzip"}[i%2]}})
			if err != nil {
				return // met the server of a config that has just been replaced
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
	if got := s.status("shop?wait=10s")["in_flight"]; got != 0.0 {
		t.Errorf("in_flight is %v, want 0", got)
	}
}

// The copy in storage

func TestLastGoodCopyIsShownAtOnceAfterReloadAndRestart(t *testing.T) {
	host := newPageHost(t, answers("<p>Mine. {maintenance.message}"))
	location := withSecrets(host.URL + "/page")
	s := start(t, shopWith(location))
	s.untilStored(location, "{maintenance.message}")
	fetchedAt := s.pages("shop")[0].FetchedAt
	s.put("shop", `{"message": "Hello."}`)
	host.Close()
	stored := s.storage
	s.storage = newTestStorage(t)
	s.reload(shopWith(location)) // which keeps it, whatever is in storage
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
		s.logged(`"warn"`, "the copy of a page cannot be read from storage", `"page":"`+host.URL+`"`, want)
		s.storage.setFault(nil)
		s.storage.set(copyKeyOf(t, host.URL), oldCopy)
		s.put("shop", "") // which fetches it in vain, and looks for the copy again
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
	s.logged(`"warn"`, "the copy of a page cannot be written to storage", `"page":"`+host.URL+`"`, "disk full")
	s.storage.setFault(nil)
	s.put("shop", "")
	s.untilStored(withSecrets(host.URL), "Mine")
	s.tellsNoSecret()
}

// A copy is stored when it has changed, and again when the storage has lost it, though
// its host says that it has not changed. A file is no business of the storage.
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
	if n := loads.Load() + stores.Load(); n > 0 {
		t.Errorf("the copy of a file is looked for or stored %d times", n)
	}
	s.reload(shopWith(host.URL))
	s.untilStored(host.URL, "One")
	for i, change := range []func(){
		func() { _ = s.storage.Delete(t.Context(), copyKeyOf(t, host.URL)) },
		func() { s.storage.set(copyKeyOf(t, host.URL), `{"html": "`) },
		func() { host.answer(answers("<p>Two.")) },
		func() {}, // after which it is stored no more
	} {
		change()
		looked, want := loads.Load(), int64(min(i+2, 4))
		s.put("shop", "")
		eventually(t, func() error {
			if loads.Load() == looked || stores.Load() < want {
				return fmt.Errorf("step %d: stored %d times, want %d", i, stores.Load(), want)
			}
			return nil
		})
		s.untilIdle()
		if n := stores.Load(); n != want {
			t.Errorf("step %d: stored %d times, want %d", i, n, want)
		}
	}
	s.untilStored(host.URL, "Two")
}

// G9
func TestStorageThatHangsHoldsUpOnlyTheFirstVisitors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := &testStorage{values: make(map[string][]byte)}
		c := newConfigPages(t.Context(), zap.NewNop(), storage)
		var source page.Source
		var v *siteView
		hang, release := hangOn("load", "")
		for _, test := range []struct {
			location string
			fault    func(context.Context, string, string) error
			waits    []time.Duration // of one visitor after the other
		}{
			{"http://page.example/not-stored", nil, []time.Duration{0}},
			{"http://page.example/hangs", hang, []time.Duration{restorePatience, 0}},
		} {
			storage.setFault(test.fault)
			source, _ = page.ParseSource(test.location)
			v = c.use(newTestSite("shop"), source, nil)
			defer pages.Delete(source.Location())
			for _, want := range test.waits {
				began := time.Now()
				if got := string(v.HTML(t.Context(), page.Content{}, nil).HTML); got != defaultPage || time.Since(began) != want {
					t.Errorf("%s: a visitor gets %q after %s, want the default page after %s", source, got, time.Since(began), want)
				}
			}
		}
		// A copy that comes late is shown, too.
		storage.set(copyKey(source), oldCopy)
		release()
		synctest.Wait()
		if got := string(v.HTML(t.Context(), page.Content{}, nil).HTML); got != "<p>Old." {
			t.Errorf("a visitor gets %q, want the copy", got)
		}
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
			c := newConfigPages(ctx, zap.NewNop(), storage)
			before := storage.loads.Load()
			for range maxCopyAccesses + 8 {
				go c.restore(test.pageOf())
			}
			synctest.Wait()
			if n := storage.loads.Load() - before; n != test.want {
				t.Errorf("%d copies are read at once, want %d", n, test.want)
			}
			end()
			synctest.Wait()
			if n := len(c.accesses); n > 0 || test.pageOf().storageFailed {
				t.Errorf("when the config has ended %d copies are still read, or that it has is taken for a failure", n)
			}
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

// oldCopy is what is stored of "<p>Old.".
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
	requests sync.Map // how many, by path
}

func newPageHost(t *testing.T, serve http.HandlerFunc) *pageHost {
	t.Helper()
	h := new(pageHost)
	h.answer(serve)
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := h.requests.LoadOrStore(r.URL.Path, new(atomic.Int64))
		n.(*atomic.Int64).Add(1)
		(*h.serve.Load())(w, r)
	}))
	t.Cleanup(h.Close)
	return h
}

// answer changes what the host answers from now on.
func (h *pageHost) answer(serve http.HandlerFunc) { h.serve.Store(&serve) }

// asked returns how often a path was requested.
func (h *pageHost) asked(path string) int {
	n, ok := h.requests.Load(path)
	if !ok {
		return 0
	}
	return int(n.(*atomic.Int64).Load())
}

func (h *pageHost) untilAsked(t *testing.T, path string, n int) {
	t.Helper()
	eventually(t, func() error {
		if got := h.asked(path); got < n {
			return fmt.Errorf("%s is fetched %d times, want %d", path, got, n)
		}
		return nil
	})
}

func answers(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", html)
		io.WriteString(w, body)
	}
}

// saysNothing takes a request and leaves it at that.
func saysNothing(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// withSecrets adds to a URL what nobody may be told.
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

// tellsNoSecret looks at all that the server has said.
func (s *server) tellsNoSecret() {
	s.t.Helper()
	content, err := os.ReadFile(s.log)
	if err != nil {
		s.t.Fatal(err)
	}
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
	if err != nil {
		t.Fatal(err)
	}
	return app
}

// pages is how the pages of a site stand.
func (s *server) pages(site string) []page.Status {
	s.t.Helper()
	var got struct{ Pages []page.Status }
	if err := json.Unmarshal([]byte(s.api(http.MethodGet, "/maintenance/"+site, "").body), &got); err != nil {
		s.t.Fatal(err)
	}
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

// fetchAgain has the page of shop fetched, and waits until the host is asked.
func (s *server) fetchAgain(host *pageHost) {
	s.t.Helper()
	asked := host.asked("/")
	s.put("shop", "")
	host.untilAsked(s.t, "/", asked+1)
}

func (s *server) shows(path, want string) error {
	s.t.Helper()
	got := s.do(http.MethodGet, path, http.Header{"Accept": {"text/html"}})
	if got.StatusCode != 503 || got.body != want {
		return fmt.Errorf("%s shows %d and %d bytes: %.200q\nwant %d bytes: %.200q", path, got.StatusCode, len(got.body), got.body, len(want), want)
	}
	return nil
}

func (s *server) wantPage(path, want string) {
	s.t.Helper()
	if err := s.shows(path, want); err != nil {
		s.t.Error(err)
	}
}

func (s *server) untilPage(path, want string) {
	s.t.Helper()
	eventually(s.t, func() error { return s.shows(path, want) })
}

// visitALot has visitors come, several at a time, who all must get the same.
func (s *server) visitALot(visitors int, want string, paths ...string) {
	s.t.Helper()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range visitors / 8 {
				if got, err := try(http.MethodGet, s.url+paths[i%len(paths)], "", nil); err != nil || got.body != want {
					s.t.Errorf("%s shows %.200q (%v)", paths[i%len(paths)], got.body, err)
					return
				}
			}
		})
	}
	wg.Wait()
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
	if err != nil {
		t.Fatal(err)
	}
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
	eventually(s.t, func() error {
		for p := range running(s.t).pages.views {
			if len(p.storage) > 0 {
				return fmt.Errorf("the copy of %s is being read or stored", p.Source())
			}
		}
		return nil
	})
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
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
