package maintenance

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"example.com/caddy-maintenance/internal/api"
	"example.com/caddy-maintenance/internal/site"
)

func TestSiteIsDescribedByAllRequests(t *testing.T) {
	s := start(t, `maintenance shop`)
	if got := s.status("shop"); got["site"] != "shop" || got["state"] != "off" || got["since"] != nil {
		t.Errorf("never switched: %v", got)
	}
	before := time.Now().Truncate(time.Second)
	until := time.Now().Add(time.Hour).Truncate(time.Second)
	put := s.put("shop", `{"message": "Back <soon>.", "retry_after": "1d", "hold": "1.5m", "bypass_secret": "0123456789-ABCDEF",
		"until": "`+until.In(time.FixedZone("", 3600)).Format(time.RFC3339)+`"}`)
	for field, want := range map[string]any{
		"site": "shop", "state": "on", "message": "Back <soon>.", "retry_after": "1d",
		"until": until.UTC().Format(time.RFC3339), "sync_interval": "2s", "in_flight": 0.0,
		"hold": "1.5m", "bypass_secret": true, "held": 0.0,
	} {
		if put[field] != want {
			t.Errorf("%s is %v, want %v", field, put[field], want)
		}
	}
	since, err := time.Parse(time.RFC3339, fmt.Sprint(put["since"]))
	if err != nil || since.Before(before) || since.After(time.Now()) || put["instance"] == "" {
		t.Errorf("since is %v %v, instance %q", since, err, put["instance"])
	}
	for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		body := map[string]string{http.MethodPatch: "{}"}[method]
		response := send(t, method, s.admin+"/maintenance/shop", body, http.Header{"Content-Type": {"text/csv"}}) // which is ignored
		if response.StatusCode != 200 || response.ContentLength != int64(len(response.body)) ||
			response.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s got %d %v", method, response.StatusCode, response.Header)
		}
		got := decode(t, response.body)
		if got["site"] != "shop" || got["in_flight"] != 0.0 || got["held"] != 0.0 || got["bypass_secret"] == nil {
			t.Errorf("%s answers %v", method, got)
		}
	}
}

func TestSitesAreListedByName(t *testing.T) {
	s := start(t, ``)
	if got := s.api(http.MethodGet, "/maintenance", ""); got.StatusCode != 200 || got.body != "[]\n" {
		t.Errorf("got %d %q", got.StatusCode, got.body)
	}
	const want = `{"error":"unknown site shop; no site of the running config has a maintenance directive; add one (for example maintenance shop) and reload Caddy"}` + "\n"
	if got := s.api(http.MethodPut, "/maintenance/shop", ""); got.StatusCode != 404 || got.body != want {
		t.Errorf("got %d %s, want 404 %s", got.StatusCode, got.body, want)
	}
	s.reload("maintenance wiki\nmaintenance *.example.com:8080\nmaintenance shop\nmaintenance shop")
	var list []api.Site
	if err := json.Unmarshal([]byte(s.api(http.MethodGet, "/maintenance", "").body), &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 3 || list[0].Site != "*.example.com:8080" || list[1].Site != "shop" || list[2].Site != "wiki" {
		t.Errorf("got %v", list)
	}
	s.put("*.example.com:8080", "")
	if s.storage.get("maintenance/sites/%2A.example.com%3A8080.json") == "" {
		t.Error("the record is not stored under the percent-encoded name")
	}
}

// Package site tests which bodies are wrong; one of each of its errors is here.
//
// G7
func TestWrongRequestIsRefusedAndChangesNothing(t *testing.T) {
	s := start(t, `
		maintenance shop
		maintenance wiki`)
	s.put("shop", `{"message": "Back at three."}`)
	record := s.storage.get(shopKey)
	const (
		unknown = `unknown option colour; the options are message, reason, by, retry_after, from, until, hold, terminate_after, bypass_secret`
		wait    = `": must be a duration of at most 30s (for example 10s)`
		off     = `site wiki is not in maintenance, its state is off; PUT switches it on`
		one     = `: GET of a site or of instances takes wait, GET of a page takes source; options belong in the body`
		sites   = `; the sites of the running config are: shop, wiki`
	)
	for _, test := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"PATCH", "/shop", ``, 400, `invalid body: must be one JSON object (for example {"message": "Back at three."})`},
		{"PUT", "/shop", `{"colour": "red"}`, 400, unknown},
		{"PATCH", "/shop", `{"message": null, "colour": "red"}`, 400, unknown},
		{"PUT", "/shop", `{"hold": "301s"}`, 400, `invalid hold "301s": must be a duration above zero, at most 5m (for example 30s)`},
		{"PUT", "/shop", `{"until": "2020-01-01T00:00:00Z"}`, 400, `invalid until "2020-01-01T00:00:00Z": must be in the future`},
		{"PUT", "/shop", `{"message": "` + strings.Repeat("x", 64<<10) + `"}`, 413, `the body is larger than 65536 bytes`},
		{"PATCH", "/wiki", `{"message": "x"}`, 409, off},
		{"GET", "/wiki?wait=1s", ``, 409, off},
		{"GET", "/shop?wait=31s", ``, 400, `invalid wait "31s` + wait},
		{"GET", "/shop?wait=0", ``, 400, `invalid wait "0` + wait},
		{"GET", "/shop?wait", ``, 400, `invalid wait "` + wait},
		{"GET", "/shop?wiat=1s", ``, 400, `unknown parameter "wiat"` + one},
		{"PUT", "/shop?wait=1s", ``, 400, `unknown parameter "wait"` + one},
		{"GET", "?wait=1s", ``, 400, `wait needs one site (for example /maintenance/shop?wait=10s)`},
		{"PUT", "/blog", ``, 404, `unknown site blog` + sites},
		{"PUT", "/shop/x", ``, 404, `unknown site shop/x` + sites},
		{"DELETE", "/" + strings.Repeat("x", 100), ``, 404, `unknown site ` + strings.Repeat("x", 80) + `…` + sites},
		{"POST", "/shop", ``, 405, `method POST is not allowed here; allowed methods: GET, PUT, PATCH, DELETE`},
		{"GET", "/shop/page/instances", ``, 404, `unknown site shop/page` + sites},
		{"GET", "/shop?wait=5s;", ``, 400, `invalid query "wait=5s;": invalid semicolon separator in query`},
		{"GET", "/shop?wait=%zz", ``, 400, `invalid query "wait=%zz": invalid URL escape "%zz"`},
		{"PUT", "", ``, 405, `method PUT is not allowed here; allowed methods: GET`},
		{"DELETE", "/", ``, 405, `method DELETE is not allowed here; allowed methods: GET`},
	} {
		response := s.api(test.method, "/maintenance"+test.path, test.body)
		message, _ := decode(t, response.body)["error"].(string)
		message, _, _ = strings.Cut(message, "; it is now 20") // now
		if response.StatusCode != test.status || response.Header.Get("Content-Type") != "application/json" || message != test.want {
			t.Errorf("%s %s %s\ngot  %d %s\nwant %d %s in JSON", test.method, test.path, site.Truncate(test.body),
				response.StatusCode, response.body, test.status, test.want)
		}
		if allow := response.Header.Get("Allow"); (test.status == 405) != (allow != "") || !strings.HasSuffix(message, allow) {
			t.Errorf("%s %s has Allow %q", test.method, test.path, allow)
		}
		if got := s.storage.get(shopKey); got != record {
			t.Fatalf("%s %s %s changed the record to %s", test.method, test.path, test.body, got)
		}
	}
	if got := s.status("shop"); got["state"] != "on" || got["message"] != "Back at three." {
		t.Errorf("in the end the site is %v", got)
	}
	if s.storage.get("maintenance/sites/wiki.json") != "" {
		t.Error("a record was stored for the other site")
	}
}

// A client that has looked at a site can switch it on condition that nobody else has meanwhile.
//
// G7
func TestSwitchOfWhatHasChangedIsRefused(t *testing.T) {
	s := start(t, "maintenance shop")
	with := func(method, body, tag string) response {
		return send(t, method, s.admin+"/maintenance/shop", body, http.Header{"If-Match": {tag}})
	}
	tag := func() string { return s.api(http.MethodGet, "/maintenance/shop", "").Header.Get("Etag") }
	before := tag()
	wantEqual(t, "a switch of one that was never switched", with(http.MethodPut, "", before).StatusCode, 200)
	on := tag()
	wantEqual(t, "a change of it", with(http.MethodPatch, `{"message": "One."}`, on).StatusCode, 200)
	record := s.storage.get(shopKey)
	for _, method := range []string{http.MethodPut, http.MethodPatch, http.MethodDelete} {
		for _, outdated := range []string{before, on} {
			got := with(method, `{"message": "Two."}`, outdated)
			if got.StatusCode != 412 || !strings.Contains(got.body, "site shop was switched meanwhile") {
				t.Errorf("%s: got %d %s", method, got.StatusCode, got.body)
			}
		}
		for _, invalid := range []string{"*", "1", `W/"1"`, `"one"`, ""} {
			got := with(method, "{}", invalid)
			if got.StatusCode != 400 || !strings.Contains(got.body, "invalid If-Match ") {
				t.Errorf("%s with %s: got %d %s", method, invalid, got.StatusCode, got.body)
			}
		}
	}
	wantEqual(t, "a condition that DELETE does not have", send(t, http.MethodDelete, s.admin+"/maintenance/shop", "", http.Header{"If-None-Match": {"*"}}).StatusCode, 400)
	wantEqual(t, "the record", s.storage.get(shopKey), record)
	wantEqual(t, "a switch of what has not changed", with(http.MethodDelete, "", tag()).StatusCode, 200)
	s.wantStatus("/", 200)
}

// Operators see the page without closing the site, in each form that visitors can ask for.
func TestPageIsShownToOperators(t *testing.T) {
	host := newPageHost(t, answers("<p>First. {maintenance.message}"))
	s := start(t, "maintenance shop {\npage "+host.URL+"\n}\nmaintenance shop {\npage "+host.URL+"/de\n}\nmaintenance wiki")
	s.untilPages("shop", "ok")
	show := func(path, accept string) response {
		return send(t, http.MethodGet, s.admin+"/maintenance/"+path, "", http.Header{"Accept": {accept}})
	}
	first := "shop/page?source=" + host.URL
	for _, test := range []struct{ path, accept, contentType, body string }{
		{first, "text/html", html, "<p>First. "},
		{first, "text/plain", "text/plain; charset=utf-8", "This site is down for maintenance and will be back soon.\n"},
		{first, "application/json", "application/problem+json", `{"title":"Service Unavailable","status":503,"retry_after":300,"maintenance":true}` + "\n"},
		{"wiki/page", "*/*", html, defaultPage},
		{"shop/page", "text/html", "application/json", `{"error":"site shop has several pages; give one as source: ` +
			host.URL + ", " + host.URL + `/de"}` + "\n"},
		{"wiki/page?source=x", "text/html", "application/json", `{"error":"unknown source \"x\": site wiki has no custom page"}` + "\n"},
	} {
		got := show(test.path, test.accept)
		if got.body != test.body || got.Header.Get("Content-Type") != test.contentType || got.StatusCode != map[bool]int{true: 200, false: 400}[!strings.Contains(test.body, "error")] {
			t.Errorf("%s as %s: got %d %s\n%s\nwant %s\n%s", test.path, test.accept, got.StatusCode, got.Header.Get("Content-Type"), got.body, test.contentType, test.body)
		}
	}
	wantEqual(t, "the state", s.status("shop")["state"], "off")
	s.put("shop", `{"message": "Soon."}`)
	wantEqual(t, "the page of one that is on", show(first, "text/html").body, "<p>First. Soon.")

	// POST fetches the page, and answers with what is wrong.
	host.answer(answers("<p>Second."))
	s.api(http.MethodPost, "/maintenance/shop/page", "")
	wantEqual(t, "the page that was fetched", show(first, "text/html").body, "<p>Second.")
	host.answer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	if answer := s.api(http.MethodPost, "/maintenance/shop/page", ""); !strings.Contains(answer.body, "418") || answer.StatusCode != 200 {
		t.Errorf("a page that cannot be fetched: got %d %s", answer.StatusCode, answer.body)
	}
	wantEqual(t, "the last good copy", show(first, "text/html").body, "<p>Second.")
	wantEqual(t, "Allow", s.api(http.MethodPut, "/maintenance/shop/page", "").Header.Get("Allow"), "GET, POST")
}

// The status of an unreadable record says why, and a warning is logged if the admin endpoint
// is off.
func TestWhatStandsInTheWayIsSaid(t *testing.T) {
	s := prepare(t)
	s.storage.set(shopKey, "{")
	s.reload("maintenance shop")
	if got, _ := s.status("shop")["error"].(string); !strings.Contains(got, "the record is corrupt") {
		t.Errorf("the error is %q", got)
	}
	s.put("shop", "")
	wantEqual(t, "the error of one that is known", s.status("shop")["error"], nil)
	wantEqual(t, "warnings while the admin endpoint is on", s.countLogged("admin endpoint is off"), 0)
	noError(t, s.loadWith("maintenance shop", `"admin":{`, `"admin":{"disabled":true,`))
	s.logged(`"warn"`, "admin endpoint is off")
}

// The app sees a schedule before it begins, and not after.
//
// G1
func TestScheduledMaintenance(t *testing.T) {
	const directives = "maintenance shop\nrespond \"{http.maintenance.from}|{http.maintenance.until}|{http.maintenance.message}\""
	s := start(t, directives)
	wantEqual(t, "what the app is told", s.get("/").body, "||")
	answer := s.put("shop", `{"from": "2998-01-01T00:00:00Z", "until": "2999-01-01T00:00:00Z", "message": "Soon.", "reason": "Moving.", "by": "eve@web-1"}`)
	for field, want := range map[string]any{"state": "off", "from": "2998-01-01T00:00:00Z", "message": "Soon.", "reason": "Moving.", "by": "eve@web-1", "since": nil} {
		wantEqual(t, field, answer[field], want)
	}
	wantEqual(t, "what the app is told", s.get("/").body, "2998-01-01T00:00:00Z|2999-01-01T00:00:00Z|Soon.")
	if metrics := s.api(http.MethodGet, "/metrics", "").body; !strings.Contains(metrics, "caddy_maintenance_scheduled_timestamp_seconds{site=\"shop\"} 3.2") {
		t.Errorf("metrics lack what is scheduled:\n%s", metrics)
	}
	from := time.Now().Add(3 * time.Second).UTC().Truncate(time.Millisecond)
	s.patch("shop", fmt.Sprintf(`{"from": %q}`, from.Format(time.RFC3339Nano)))
	s.restart(directives)
	eventuallyEqual(t, "the status of a request", func() int { return s.get("/").StatusCode }, 503)
	if time.Now().Before(from) {
		t.Error("it has begun before its time")
	}
	for _, accept := range []string{"text/html", "application/json", "text/plain"} {
		page := send(t, http.MethodGet, s.url, "", http.Header{"Accept": {accept}})
		for _, secret := range []string{"Moving.", "eve@web-1"} {
			if strings.Contains(page.body, secret) || strings.Contains(fmt.Sprint(page.Header), secret) {
				t.Errorf("visitors see %s as %s", secret, accept)
			}
		}
	}
	if status := s.status("shop"); status["since"] != from.Format(time.RFC3339Nano) || status["from"] != nil {
		t.Errorf("its status is %v", status)
	}
	s.logged("maintenance enabled", `"source":"from"`)
}
