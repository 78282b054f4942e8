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
	put := s.put("shop", `{"message": "Back <soon>.", "retry_after": "1d", "hold": "1.5m", "bypass_secret": "0123456789-ABCDEF", "until": "`+until.In(time.FixedZone("", 3600)).Format(time.RFC3339)+`"}`)
	for field, want := range map[string]any{
		"site": "shop", "state": "on", "message": "Back <soon>.", "retry_after": "1d",
		"until": until.UTC().Format(time.RFC3339), "sync_interval": "2s", "in_flight": 0.0,
		"hold": "1.5m", "bypass_secret": true, "held": 0.0,
	} {
		if put[field] != want {
			t.Errorf("%s is %v, want %v", field, put[field], want)
		}
	}
	if since := parseTime(t, put["since"]); since.Before(before) || since.After(time.Now()) {
		t.Errorf("since is %v", since)
	}
	if put["instance"] == "" {
		t.Error("instance is empty")
	}
	for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		response := s.api(method, "/maintenance/shop", map[string]string{http.MethodPatch: "{}"}[method])
		if response.ContentLength != int64(len(response.body)) {
			t.Errorf("%s: Content-Length is %d, want %d", method, response.ContentLength, len(response.body))
		}
		if got := response.Header.Get("Content-Type"); response.StatusCode != 200 || got != "application/json" {
			t.Errorf("%s got %d %s", method, response.StatusCode, got)
		}
		if got := decode(t, response.body); got["site"] != "shop" || got["in_flight"] != 0.0 || got["held"] != 0.0 || got["bypass_secret"] == nil {
			t.Errorf("%s answers %v", method, got)
		}
	}
}

func TestSitesAreListedByName(t *testing.T) {
	s := start(t, `
		maintenance wiki
		maintenance *.example.com:8080
		maintenance shop
		maintenance shop`)
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

func TestConfigWithoutSitesHasAnEmptyList(t *testing.T) {
	s := start(t, ``)
	if got := s.api(http.MethodGet, "/maintenance", ""); got.StatusCode != 200 || got.body != "[]\n" {
		t.Errorf("got %d %q", got.StatusCode, got.body)
	}
	const want = `{"error":"unknown site shop; no site of the running config has a maintenance directive, such as: maintenance shop"}` + "\n"
	if got := s.api(http.MethodPut, "/maintenance/shop", ""); got.StatusCode != 404 || got.body != want {
		t.Errorf("got %d %s, want 404 %s", got.StatusCode, got.body, want)
	}
}

// G7
func TestWrongRequestIsRefusedAndChangesNothing(t *testing.T) {
	s := start(t, `
		maintenance shop
		maintenance wiki`)
	s.put("shop", `{"message": "Back at three."}`)
	record := s.storage.get("maintenance/sites/shop.json")
	const options = `message, retry_after, until, hold, terminate_after, bypass_secret`
	const holds = `a duration above zero of at most 5m0s is accepted, such as "30s"`

	for _, test := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"PUT", "/shop", `[]`, 400, `the body is not one JSON object, such as {"message": "Back at three."}`},
		{"PATCH", "/shop", ``, 400, `the body is not one JSON object, such as {"message": "Back at three."}`},
		{"PUT", "/shop", `{"colour": "red"}`, 400, `unknown option colour; the options are ` + options},
		{"PUT", "/shop", `{"retry_after": 300}`, 400, `retry_after: 300 given, a string is accepted, such as "300s"`},
		{"PUT", "/shop", `{"until": "2020-01-01T00:00:00Z"}`, 400, `until: 2020-01-01T00:00:00Z given, a time in the future is accepted; it is `},
		{"PUT", "/shop", `{"hold": "301s"}`, 400, `hold: "301s" given, ` + holds},
		{"PUT", "/shop", `{"bypass_secret": 1234567890123456}`, 400, `bypass_secret: a string is accepted`},
		{"PATCH", "/shop", `{"message": null, "colour": "red"}`, 400, `unknown option colour; the options are ` + options},
		{"PATCH", "/wiki", `{"message": "x"}`, 409, `site wiki is not in maintenance, its state is off; PUT switches it on`},
		{"GET", "/wiki?wait=1s", ``, 409, `site wiki is not in maintenance, its state is off; PUT switches it on`},
		{"GET", "/shop?wait=31s", ``, 400, `wait: 31s given, a duration of at most 30s is accepted, such as 10s`},
		{"GET", "/shop?wait=0", ``, 400, `wait: 0 given, a duration of at most 30s is accepted, such as 10s`},
		{"GET", "/shop?wait", ``, 400, `wait:  given, a duration of at most 30s is accepted, such as 10s`},
		{"GET", "/shop?wiat=1s", ``, 400, `unknown parameter wiat; GET of a site takes wait, and options go into the body`},
		{"PUT", "/shop?wait=1s", ``, 400, `unknown parameter wait; GET of a site takes wait, and options go into the body`},
		{"PUT", "/shop?message=x", ``, 400, `unknown parameter message; GET of a site takes wait, and options go into the body`},
		{"GET", "?wait=1s", ``, 400, `wait is for one site, such as /maintenance/shop?wait=10s`},
		{"PUT", "/shop", `{"message": "` + strings.Repeat("x", 64<<10) + `"}`, 413, `the body is larger than 65536 bytes`},
		{"PUT", "/blog", ``, 404, `unknown site blog; the sites of the running config are: shop, wiki`},
		{"PUT", "/shop/x", ``, 404, `unknown site shop/x; the sites of the running config are: shop, wiki`},
		{"DELETE", "/" + strings.Repeat("x", 100), ``, 404, `unknown site ` + strings.Repeat("x", 80) + `…; the sites of the running config are: shop, wiki`},
		{"POST", "/shop", ``, 405, `method POST is not allowed here; allowed are GET, PUT, PATCH, DELETE`},
		{"PUT", "", ``, 405, `method PUT is not allowed here; allowed are GET`},
		{"DELETE", "/", ``, 405, `method DELETE is not allowed here; allowed are GET`},
	} {
		response := s.api(test.method, "/maintenance"+test.path, test.body)
		if response.StatusCode != test.status || response.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s %s got %d %s, want %d in JSON", test.method, test.path, site.Truncate(test.body), response.StatusCode, response.body, test.status)
			continue
		}
		message, _ := decode(t, response.body)["error"].(string)
		if message != test.want && (!strings.HasPrefix(test.body, `{"until"`) || !strings.HasPrefix(message, test.want)) {
			t.Errorf("%s %s %s\ngot  %s\nwant %s", test.method, test.path, site.Truncate(test.body), message, test.want)
		}
		if allow := response.Header.Get("Allow"); (test.status == 405) != (allow != "") || !strings.HasSuffix(message, allow) {
			t.Errorf("%s %s has Allow %q", test.method, test.path, allow)
		}
		if got := s.storage.get("maintenance/sites/shop.json"); got != record {
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

func TestContentTypeIsNotLookedAt(t *testing.T) {
	s := start(t, `maintenance shop`)
	response := send(t, http.MethodPut, s.admin+"/maintenance/shop", `{"message": "Hello."}`, http.Header{"Content-Type": {"text/csv"}})
	if response.StatusCode != 200 {
		t.Errorf("got %d %s", response.StatusCode, response.body)
	}
}

func TestWaitReturnsWhenSiteIsDrained(t *testing.T) {
	s := start(t, slowShop(t))
	release, finished := s.slowRequest()
	if got := s.put("shop", "")["in_flight"]; got != 1.0 {
		t.Fatalf("in_flight is %v, want 1", got)
	}
	if got := s.status("shop?wait=50ms")["in_flight"]; got != 1.0 {
		t.Errorf("after a wait that runs out in_flight is %v, want 1", got)
	}
	waited := make(chan any)
	go func() { waited <- s.status("shop?wait=30s")["in_flight"] }()
	release()
	if got := <-waited; got != 0.0 {
		t.Errorf("after a wait in_flight is %v, want 0", got)
	}
	if got := <-finished; got != 200 {
		t.Errorf("the request in flight got %d, want 200", got)
	}
	s.logged(`"drained: nothing is in flight on this instance any more"`, `"site":"shop"`, `"after":`)
}

func parseTime(t *testing.T, v any) time.Time {
	t.Helper()
	parsed, err := time.Parse(time.RFC3339, fmt.Sprint(v))
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}
