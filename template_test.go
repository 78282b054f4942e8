package maintenance

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
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

	"example.com/caddy-maintenance/internal/api"
	"example.com/caddy-maintenance/internal/site"
	"example.com/caddy-maintenance/internal/store"
)

// What an app does with the sites of a template, without Caddy and in fake time

const switchedOn = `{"version": 1, "enabled": true}`

// remember makes the app keep the records of closed sites in a file.
func (a *App) remember(path string) { a.memory.file = store.NewMemory(path, caddy.ParseDuration) }

// followOthers makes the app follow other instances from now on.
func (a *App) followOthers() { go newFollower(a).run() }

// gate is the handler of the template.
func (a *App) gate() *Handler { return gateOf(a.sites.named[anyHost]) }

// serveHost serves a request for a host with a handler.
func (h *Handler) serveHost(ctx context.Context, host string, app func()) (status int) {
	w := httptest.NewRecorder()
	r := newRequest(httptest.NewRequestWithContext(ctx, http.MethodGet, "http://"+host, nil))
	if err := serve(w, r, func(http.ResponseWriter, *http.Request) error { app(); return nil }, h); err != nil {
		panic(err)
	}
	return w.Code
}

// wantVisits fails the test unless requests for these hosts get these statuses, such as
// "acme 503, beta 200"; "waits" is for requests without an answer yet.
func (a *App) wantVisits(t *testing.T, want string) {
	t.Helper()
	synctest.Wait()
	for visit := range strings.SplitSeq(want, ", ") {
		host, want, _ := strings.Cut(visit, " ")
		ctx, leave := context.WithCancel(t.Context())
		status := make(chan string, 1)
		go func() { status <- fmt.Sprint(a.gate().serveHost(ctx, host, func() {})) }()
		synctest.Wait()
		got := "waits"
		if len(status) > 0 {
			got = <-status
		}
		leave()
		if got != want {
			t.Errorf("a visitor of %s got %s, want %s", host, got, want)
		}
	}
}

// loads returns the names of the sites whose records were loaded, in order.
func (s *testStorage) recordLoads(takes time.Duration) (loaded func() []string) {
	var names []string
	s.setFault(func(_ context.Context, op, key string) error {
		if name, ok := strings.CutPrefix(key, "maintenance/sites/"); ok && op == "load" {
			s.mu.Lock()
			names = append(names, strings.TrimSuffix(name, ".json"))
			s.mu.Unlock()
			time.Sleep(takes)
		}
		return nil
	})
	return func() []string {
		s.mu.Lock()
		defer s.mu.Unlock()
		return slices.Clone(names)
	}
}

// Whatever the storage lists, no site opens that is on by the journal, the disk or its record. No
// site opens at all until the records can be listed.
//
// G3
func TestTemplateWhoseSitesCannotBeListedOpensNothing(t *testing.T) {
	const cannot = "sites cannot be listed; requests for sites of unknown state are blocked"
	for name, test := range map[string]struct {
		fault  error // of what lists
		loads  error // and of what loads
		visits string
		logged []string
	}{
		"fails":         {errors.New("disk full"), nil, "journaled 503, remembered 503, stored 503, new 503", []string{cannot, "known again"}},
		"hangs":         {context.DeadlineExceeded, nil, "journaled 503, remembered 503, stored 503, new 503", []string{cannot, "known again"}},
		"has nothing":   {fs.ErrNotExist, fs.ErrNotExist, "journaled 503, remembered 503, stored 503, new 503", []string{cannot, "known again"}},
		"knows no list": {fs.ErrNotExist, nil, "journaled 503, remembered 503, stored 503, new 503", []string{cannot, "known again"}},
		"lists nothing": {lists("x"), nil, "journaled 503, remembered 503, stored 503, new 503", []string{cannot, "known again"}},
		"lists half":    {lists(store.Key("stored")), nil, "journaled 503, remembered 503, stored 503, new 503", []string{cannot, "known again"}},
		"lists all":     {nil, nil, "journaled 503, remembered 503, stored 503, new 200", nil},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "last_known.json")
			synctest.Test(t, func(t *testing.T) {
				storage := newTestStorage(t)
				before, _ := newTestApp(t, storage)
				before.remember(path)
				before.joinAll(t, anyHost)
				before.turnOn(t, "remembered")
				before.unload()
				for _, name := range []string{"journaled", "stored"} {
					storage.set(store.Key(name), switchedOn)
				}
				storage.set(store.JournalKey, `[{"id": "1", "site": "journaled", "version": 1, "enabled": true, "done": true}]`)
				storage.setFault(func(ctx context.Context, op, key string) error {
					switch {
					case op == "list" && key == "maintenance/sites" && test.fault == context.DeadlineExceeded:
						<-ctx.Done()
						return ctx.Err()
					case op == "list":
						return test.fault
					case op == "load":
						return test.loads
					}
					return nil
				})
				a, log := newTestApp(t, storage)
				a.remember(path)
				a.joinAll(t, anyHost)
				a.wantVisits(t, "remembered 503")
				if test.fault == context.DeadlineExceeded {
					a.wantVisits(t, "stored waits, new waits")
				}
				time.Sleep(2 * store.Timeout)
				a.wantVisits(t, test.visits)
				storage.setFault(nil)
				a.followOthers()
				time.Sleep(2 * defaultSyncInterval)
				a.wantVisits(t, "journaled 503, remembered 503, stored 503, new 200")
				lines := log.FilterField(zap.String("site", anyHost))
				expectLines(t, lines, test.logged...)
			})
		})
	}
}

// A record that another instance stores again during the listing does not mean that the list is
// incomplete.
func TestRecordThatIsStoredDuringTheListClosesNoOtherSite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "last_known.json")
	synctest.Test(t, func(t *testing.T) {
		storage := newTestStorage(t)
		before, _ := newTestApp(t, storage)
		before.remember(path)
		before.joinAll(t, anyHost)
		before.turnOn(t, "acme")
		before.unload()
		record := storage.get(store.Key("acme"))
		_ = storage.Delete(t.Context(), "maintenance")
		storage.setFault(func(_ context.Context, op, key string) error {
			if op == "list" && key == "maintenance/instances" { // which comes after the sites
				storage.set(store.Key("acme"), record)
			}
			return nil
		})
		a, log := newTestApp(t, storage)
		a.remember(path)
		a.joinAll(t, anyHost)
		a.wantVisits(t, "acme 503, new 200")
		expectLines(t, log)
	})
}

// A request waits for the record of its own site only, which is read before those of others. A
// request for a site that was never switched waits for none.
//
// G3
func TestRequestWaitsForTheRecordOfItsSiteAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newTestStorage(t)
		var names []string
		for i := range 3 * store.MaxReads {
			names = append(names, fmt.Sprint("site", i))
			storage.set(store.Key(names[i]), switchedOn)
		}
		loaded := storage.recordLoads(time.Second)
		a, _ := newTestApp(t, storage, anyHost)
		time.Sleep(500 * time.Millisecond)
		unread := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return slices.Contains(loaded(), name) })
		each := func(names []string, want string) string { return strings.Join(names, want+", ") + want }
		a.wantVisits(t, "new 200, "+each(unread[:20], " waits"))
		time.Sleep(1500 * time.Millisecond)
		a.wantVisits(t, each(unread[:20], " 503"))
		time.Sleep(3 * time.Second)
		a.wantVisits(t, each(names, " 503"))
		wantEqual(t, "reads", len(loaded()), len(names))
	})
}

// A site that was never switched comes into memory when another instance switches it, even if
// the journal does not show that, and stays there as long as it has a record.
//
// G3, G4, G8
func TestSitesOfATemplateAreFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newTestStorage(t)
		a, log := newTestApp(t, storage, anyHost)
		a.followOthers()
		time.Sleep(defaultSyncInterval)
		a.wantVisits(t, "told 200, begun 200, overrun 200, lost 200, ghost 200")
		wantEqual(t, "sites in memory", sitesInMemory(), 1)

		storage.set(store.Key("told"), switchedOn)
		storage.tell("told")
		time.Sleep(defaultSyncInterval)
		a.wantVisits(t, "told 503")

		// A switch that dies half way.
		storage.set(store.JournalKey, `[{"id": "1", "site": "begun", "version": 1, "enabled": true}]`)
		time.Sleep(2 * defaultSyncInterval)
		storage.set(store.Key("begun"), switchedOn)
		time.Sleep(2 * defaultSyncInterval)
		a.wantVisits(t, "begun 503")

		// More switches than the journal keeps.
		storage.set(store.Key("overrun"), switchedOn)
		storage.set(store.JournalKey, "[]")
		for range 64 {
			storage.tell("told")
		}
		time.Sleep(2 * defaultSyncInterval)
		a.wantVisits(t, "overrun 503")

		storage.set(store.Key("lost"), switchedOn)
		time.Sleep(3 * store.VerifyInterval)
		a.wantVisits(t, "lost 503")
		wantEqual(t, "others are told of what was lost", strings.Contains(storage.get(store.JournalKey), `"lost"`), true)

		// Sites without a record leave the memory again.
		storage.tell("ghost")
		time.Sleep(2 * defaultSyncInterval)
		wantEqual(t, "a site without a record is in memory", sites.Find("ghost") != nil, false)
		a.expect(t, "ghost", "off")
		a.turnOn(t, "ghost")
		noError(t, a.switchTo(t, "ghost", func(site.Given) site.Mutation { return site.Off{} }, ""))
		a.wantVisits(t, "ghost 200")
		wantEqual(t, "a site that was switched off is in memory", sites.Find("ghost") != nil, true)
		wantEqual(t, "sites listed", len(a.sites.listed()), 4)
		wantEqual(t, "warnings", log.FilterLevelExact(zap.WarnLevel).Len(), 0)
	})
}

// Requests for sites that were never switched cost no storage access and no memory.
//
// G8
func TestVisitorsBringNoSiteIntoMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newTestStorage(t)
		a, log := newTestApp(t, storage, anyHost, "shop-"+anyHost)
		a.followOthers()
		time.Sleep(defaultSyncInterval)
		synctest.Wait()
		loads, stores, gate := storage.loads.Load(), storage.stores.Load(), a.gate()
		for i := range 1000 {
			gate.serveHost(t.Context(), fmt.Sprintf("host%d.test", i), func() {
				if n := sitesInMemory(); n != 2 || gate.site.inFlight.Count() != 1 {
					t.Errorf("%d sites in memory, and %d requests", n, gate.site.inFlight.Count())
				}
			})
		}
		for _, host := range []string{"-x", "on", "[::1]", strings.Repeat("x", 65), "x_y:80"} {
			a.wantVisits(t, host+" 200")
		}
		wantEqual(t, "loads", storage.loads.Load(), loads)
		wantEqual(t, "stores", storage.stores.Load(), stores)
		wantEqual(t, "sites listed", len(a.sites.listed()), 0)
		wantEqual(t, "requests", gate.site.inFlight.Count(), 0)
		expectLines(t, log)
	})
}

// A request is not admitted if its site changes, or comes into memory, between the look at the
// site and the count.
//
// G1, G5
func TestRequestFindsItsSiteAgainWhenThatHasChanged(t *testing.T) {
	for name, test := range map[string]struct{ before, after bool }{
		"comes": {false, false}, "goes and comes": {true, false}, "stays": {true, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			a, _ := newTestApp(t, newTestStorage(t), anyHost)
			entry := sites.Need("acme", true)
			if !test.before {
				letSiteGo(entry)
			}
			meanwhile := sync.OnceFunc(func() {
				if test.before && !test.after {
					letSiteGo(entry)
				}
				a.turnOn(t, "acme")
				wantEqual(t, name+": drained", a.site(t, "acme").awaitDrained(nil), true)
			})
			status := a.gate().serveHost(countedContext{t.Context(), meanwhile}, "acme", func() {})
			wantEqual(t, name+": status", status, 503)
			if test.after {
				letSiteGo(entry)
			}
		})
	}
}

// terminate_after also applies to a request that was admitted while its site was in memory for a
// moment.
//
// G5
func TestRequestOutlivesTheTimeOfItsSiteInMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := newTestApp(t, newTestStorage(t), anyHost)
		entry := sites.Need("acme", true)
		w, r := httptest.NewRecorder(), newRequest(httptest.NewRequest(http.MethodGet, "http://acme", nil))
		err := serve(w, r, func(_ http.ResponseWriter, r *http.Request) error {
			letSiteGo(entry)
			wantEqual(t, "sites in memory", sitesInMemory(), 1)
			noError(t, a.put(t, "acme", `{"message": "Moving.", "retry_after": "7s", "terminate_after": "1s"}`))
			wantEqual(t, "in flight", a.site(t, "acme").inFlight.Count(), 1)
			<-r.Context().Done()
			return r.Context().Err()
		}, a.gate())
		if w.Code != 503 || w.Header().Get("Retry-After") != "7" || !strings.Contains(w.Body.String(), "Moving.") {
			t.Errorf("got %d %v %.300s %v, want what the switch says", w.Code, w.Header(), w.Body, err)
		}
		wantEqual(t, "in flight", a.site(t, "acme").inFlight.Count(), 0)
	})
}

// countedContext calls a function when a handler is about to count a request.
type countedContext struct {
	context.Context
	counted func()
}

func (c countedContext) Value(key any) any {
	if fmt.Sprintf("%T", key) == "inflight.contextKey" {
		c.counted()
	}
	return c.Context.Value(key)
}

// Once a site that was never switched is on and has nothing in flight, no request is admitted,
// however looks, counts and switches interleave.
//
// G1, G5
func TestNoRequestSlipsInWhileASiteComesIntoMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := newTestApp(t, newTestStorage(t), anyHost)
		gate := a.gate()
		var current, drained, admitted atomic.Int64
		current.Store(1)
		run, stop := startWorkers()
		for range 2 * runtime.GOMAXPROCS(0) {
			run(func(int) {
				i := current.Load()
				gate.serveHost(t.Context(), fmt.Sprint("host", i), func() {
					if drained.Load() >= i {
						t.Error("a request was let in after the site was drained")
					}
					admitted.Add(1)
					runtime.Gosched()
				})
				runtime.Gosched()
			})
		}
		for i := range int64(100) {
			current.Store(i + 1)
			for before := admitted.Load(); admitted.Load() < before+3; {
				runtime.Gosched()
				a.site(t, fmt.Sprint("host", i+1)) // comes and goes
			}
			a.turnOn(t, fmt.Sprint("host", i+1))
			a.site(t, fmt.Sprint("host", i+1)).awaitDrained(nil)
			drained.Store(i + 1)
			runtime.Gosched()
		}
		current.Store(1000)
		stop()
		wantEqual(t, "requests of the template", gate.site.inFlight.Count(), 0)
		for s := range a.sites.inMemory() {
			wantEqual(t, "requests of "+s.Name, s.inFlight.Count(), 0)
		}
		wantEqual(t, "sites", sitesInMemory(), 101)
	})
}

// Templates, as Caddy knows them

// serveHosts runs a Caddy whose site is for all hosts.
func serveHosts(t *testing.T, before, directives string) *server {
	t.Helper()
	s := prepare(t)
	s.before, s.address = before, "http://:"+s.url[strings.LastIndex(s.url, ":")+1:]
	s.reload(directives)
	return s
}

// wantVisits fails the test unless such requests, separated by commas, get that status.
func (s *server) wantVisits(status int, visits string) {
	s.t.Helper()
	for visit := range strings.SplitSeq(visits, ", ") {
		if got := s.visit(visit).StatusCode; got != status {
			s.t.Errorf("%s got %d, want %d", visit, got, status)
		}
	}
}

// Which requests are blocked when the site of that name is on, or admitted when it is off.
func TestTemplateMakesTheSiteOfARequest(t *testing.T) {
	for _, test := range []struct{ before, directives, site, blocked, open string }{
		{"", "maintenance {host}", "acme.test", "acme.test/, ACME.Test./x, acme.test:8443/, POST acme.test/", "acme/, beta.test/, [::1]/, a..test/"},
		{"", "maintenance shop-{labels.2}", "shop-acme", "acme.shop.test/, ACME.shop.test.:80/", "shop.test/, beta.shop.test/, shop-acme/"},
		{
			"", "@tenant path_regexp tenant ^/t/([^/]+)\nmaintenance @tenant {re.tenant.1}", "acme",
			"x/t/acme, y/t/ACME/z", "x/t/beta, x/, x/t/, x/t/a%20b, acme/",
		},
		{"", "maintenance {header.X-Tenant}", "acme", "x/ acme, x/ ACME.", "x/, x/ acme acme, acme/, x/ beta, x/ a/b, x/ off"},
		{"", "maintenance {host}_{header.X-Tenant}", "acme_eu", "acme/ eu, ACME.:80/ EU.", "acme/, eu/ acme, acme_eu/"},
		{"(gate) {\nmaintenance {args[0]}-{host}\n}", "import gate shop", "shop-acme", "acme/", "shop-acme/, beta/"},
		{"&(gate) {\nmaintenance {host}\n}", "invoke gate", "acme", "acme/", "beta/"},
		{"", "vars tenant Acme\nmaintenance {vars.tenant}", "acme", "x/", ""},
		{"", "@writes method POST\nmaintenance @writes {host}", "acme", "POST acme/", "acme/, POST beta/"},
		{"", "maintenance {host} {\nbypass /healthz\n}", "acme", "acme/", "acme/healthz, beta/"},
		{"", "maintenance {host} {\ninitial_state on\n}", "-acme", "beta/, [::1]/, -acme/", "acme/, ACME./"},
		{"", "maintenance /a* shop\nmaintenance /b* {host}", "shop", "x/a, shop/b", "x/b, shop/c"},
		{"", "maintenance {host}\nmaintenance {header.X-Tenant}", "acme", "acme/, x/ acme, acme/ acme", "x/, x/ beta"},
		{"", "maintenance {unknown}\nmaintenance {system.os}", "acme", "", "acme/"},
	} {
		t.Run(strings.NewReplacer("{", "(", "}", ")").Replace(test.directives), func(t *testing.T) {
			s := serveHosts(t, test.before, test.directives)
			if name, off := strings.CutPrefix(test.site, "-"); off {
				s.delete(name)
			} else {
				s.put(name, `{"message": "Moving."}`)
			}
			for _, load := range []func(string){func(string) {}, s.reload, s.restart} {
				load(test.directives)
				if test.blocked != "" {
					s.wantVisits(503, test.blocked)
				}
				if test.open != "" {
					s.wantVisits(200, test.open)
				}
			}
		})
	}
}

var enabledMetric = regexp.MustCompile(`(?m)^caddy_maintenance_enabled{site="(.+)"}`)

// Answers, metrics and lists show names that operators have switched, and none that only
// visitors sent.
//
// G8
func TestOnlySitesOfATemplateThatAreNotOffAreListed(t *testing.T) {
	const gates = "maintenance {host}\nmaintenance /literal* shop"
	s := serveHosts(t, "", gates)
	expect := func(sites ...string) {
		t.Helper()
		for i := range 10 {
			s.visit(fmt.Sprintf("visitor%d/", i))
		}
		got := s.api(http.MethodGet, "/maintenance", "")
		var list []api.Site
		noError(t, json.Unmarshal([]byte(got.body), &list))
		var listed, measured []string
		for _, site := range list {
			listed = append(listed, site.Site)
		}
		for _, match := range enabledMetric.FindAllStringSubmatch(send(t, http.MethodGet, s.admin+"/metrics", "", nil).body, -1) {
			measured = append(measured, match[1])
		}
		slices.Sort(measured)
		if !slices.Equal(listed, sites) || !slices.Equal(measured, sites) || !slices.Equal(got.Header["Maintenance-Template"], []string{"{http.request.host}"}) {
			t.Errorf("listed are %q, measured %q, want %q; the header is %v", listed, measured, sites, got.Header)
		}
	}
	expect("shop")
	wantEqual(t, "never switched", fmt.Sprint(s.status("acme")["state"]), "off")
	wantEqual(t, "the site", fmt.Sprint(s.put("ACME.:443", "")["site"]), "acme")
	expect("acme", "shop")
	s.reload(gates)
	s.wantVisits(503, "acme/")
	wantEqual(t, "blocked", s.metrics()["requests_total acme blocked"], 1)
	s.delete("acme")
	s.put("shop", "")
	s.wantVisits(503, "shop/") // the literal one
	s.delete("shop")
	expect("shop")
	for path, want := range map[string]string{
		"/a%20b":                   `invalid site "a b": must be 1 to 64 of a-z 0-9 . - _ : *, start with a letter, digit or *, and may contain placeholders such as {host} (for example shop.example.com)`,
		"/status":                  `invalid site "status": reserved for a command; choose another name (for example shop.example.com)`,
		"/%7Bhttp.request.host%7D": "{http.request.host} stands for many sites; name one of them",
	} {
		got := s.api(http.MethodPut, "/maintenance"+path, "")
		wantEqual(t, path, fmt.Sprint(got.StatusCode, decode(t, got.body)["error"]), "404"+want)
	}
	s.reload("maintenance {host} {\ninitial_state on\n}") // for all that were never switched, in memory or not
	expect("{http.request.host}")
	wantEqual(t, "never switched", fmt.Sprint(s.status("new")["state"]), "on")
	s.reload("maintenance shop-{host}")
	got := s.api(http.MethodPut, "/maintenance/acme", "")
	wantEqual(t, "another template", fmt.Sprint(got.StatusCode, decode(t, got.body)["error"]),
		"404unknown site acme; the sites of the running config are: shop-{http.request.host}")
}

// The secret and the cookie of one site do not work for another.
//
// G1
func TestCookieIsGoodForOneSiteOfATemplate(t *testing.T) {
	s := serveHosts(t, "", "maintenance {host}")
	for _, name := range []string{"acme", "beta"} {
		s.put(name, withSecret)
	}
	s.put("gamma", "")
	link := s.visit("acme" + testLink)
	wantEqual(t, "status of the link", link.StatusCode, 303)
	cookie, _, _ := strings.Cut(link.Header.Get("Set-Cookie"), ";")
	_, value, _ := strings.Cut(cookie, "=")
	for visit, want := range map[string]int{"acme/": 200, "ACME.:80/": 200, "beta/": 503, "gamma/": 503, "gamma" + testLink: 503, "delta" + testLink: 200} {
		cookies := []string{cookie, site.CookieName("beta") + "=" + value, site.CookieName("gamma") + "=" + value}
		wantEqual(t, visit, s.visit(visit, cookies...).StatusCode, want)
	}
}

// Requests that were admitted before their site was in memory are in flight when it is switched
// on: proxied ones, upgraded connections, and across a reload.
//
// G1, G5
func TestRequestsOfNeverSwitchedSitesAreInFlight(t *testing.T) {
	upgraded := newApp(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/socket" {
			conn, _, _ := http.NewResponseController(w).Hijack()
			_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n")
			_, _ = io.Copy(io.Discard, conn)
			conn.Close()
		}
	})
	gates := "maintenance {header.X-Tenant}\nhandle /slow {\nreverse_proxy " + upstream(t) + "\n}\n" +
		"handle /socket {\nreverse_proxy " + upgraded + " {\nstream_close_delay 1h\n}\n}"
	for name, meanwhile := range map[string]func(s *server){
		"at once":               func(*server) {},
		"after a reload":        func(s *server) { s.reload(gates) },
		"with others asked for": func(s *server) { s.status("acme"); s.status("beta") },
		"with a name":           func(s *server) { s.reload("maintenance /acme acme\n" + gates) },
		"away and back":         func(s *server) { s.reload(""); s.reload(gates) },
	} {
		t.Run(name, func(t *testing.T) {
			s := serveHosts(t, "", gates)
			socket := s.dial("GET /socket HTTP/1.1\r\nX-Tenant: acme\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n")
			reader := bufio.NewReader(socket)
			if line, err := reader.ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 101 ") {
				t.Fatalf("got %q %v", line, err)
			}
			slow := map[string]chan response{"acme": make(chan response, 1), "beta": make(chan response, 1)}
			for tenant, answer := range slow {
				go func() { answer <- s.visit("x/slow " + tenant) }()
			}
			releases := []chan struct{}{<-slowRequests, <-slowRequests}
			meanwhile(s)
			wantEqual(t, "in_flight", s.put("acme", "")["in_flight"], 2.0)
			wantEqual(t, "in_flight of another", s.status("beta")["in_flight"], 1.0)
			s.patch("acme", `{"message": "Moving.", "terminate_after": "1ms"}`)
			if got := <-slow["acme"]; got.StatusCode != 503 || !strings.Contains(got.body, "Moving.") {
				t.Errorf("what is terminated got %d %s", got.StatusCode, got.body)
			}
			_, _ = io.Copy(io.Discard, reader) // until it is terminated, too
			wantEqual(t, "in_flight when all are terminated", s.status("acme?wait=10s")["in_flight"], 0.0)
			for _, release := range releases {
				close(release)
			}
			wantEqual(t, "status of another", (<-slow["beta"]).StatusCode, 200)
			s.await("beta", "in_flight", 0)
			s.wantVisits(503, "x/ acme")
			s.wantVisits(200, "x/ beta")
			s.delete("acme")
			s.wantVisits(200, "x/ acme")
		})
	}
}

// A placeholder whose value is known when the config loads names one site, as any name does.
func TestNameFromTheEnvironmentIsALiteralOne(t *testing.T) {
	t.Setenv("TEST_SITE", "Shop")
	s := start(t, "maintenance {env.TEST_SITE}")
	got := s.api(http.MethodGet, "/maintenance", "")
	if !strings.Contains(got.body, `"site":"shop"`) || got.Header["Maintenance-Template"] != nil {
		t.Errorf("got %s with %v", got.body, got.Header)
	}
	t.Setenv("TEST_SITE", "")
	if err := s.load("maintenance {env.TEST_SITE}"); err == nil || !strings.Contains(err.Error(), `invalid site ""`) {
		t.Errorf("without a value: got %v", err)
	}
}
