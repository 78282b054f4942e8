package maintenance

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

func TestAccessLogSaysWhatAMaintenanceDid(t *testing.T) {
	app := newWitness(t)
	s := startInFrontOf(t, app, "log\nmaintenance shop {\nbypass /healthz\n}")
	s.get("/open")
	s.put("shop", withSecret)
	s.get("/blocked")
	s.get("/healthz")
	link := s.get(testLink)
	cookie, _, _ := strings.Cut(link.Header.Get("Set-Cookie"), ";")
	s.do(http.MethodGet, "/cookie", http.Header{"Cookie": {cookie}})

	s.put("shop", `{"hold": "5m"}`)
	held := s.hold(1)
	s.delete("shop")
	held.expectApp(t)
	s.put("shop", `{"hold": "100ms"}`)
	s.get("/too-long")

	want := map[string][3]any{
		"/open":     {"info", 200.0, nil},
		"/blocked":  {"info", 503.0, "blocked"},
		"/healthz":  {"info", 200.0, "bypassed"},
		"/cookie":   {"info", 200.0, "bypassed"},
		"/0":        {"info", 200.0, "held"},
		"/too-long": {"info", 503.0, "blocked"},
	}
	for uri, want := range want {
		s.logged(`"http.log.access`, `"uri":"`+uri+`"`)
		if got := s.accessOf(uri); got != want {
			t.Errorf("%s is logged as %v, want %v", uri, got, want)
		}
	}
}

func TestAccessLogSaysWhoLeftWhileHeld(t *testing.T) {
	s := startInFrontOf(t, newWitness(t), "log\nmaintenance shop")
	s.put("shop", `{"hold": "5m"}`)
	conn := s.dial("GET /left HTTP/1.1\r\n\r\n")
	s.awaitHeld(1)
	conn.Close()
	s.logged(`"http.log.access`, `"uri":"/left"`)
	if got, want := s.accessOf("/left"), [3]any{"info", 499.0, "held"}; got != want {
		t.Errorf("logged as %v, want %v", got, want)
	}
}

func TestAccessLogSaysWhoWasHeldUntilAReload(t *testing.T) {
	app := newWitness(t)
	s := startInFrontOf(t, app, "log\nmaintenance shop")
	s.put("shop", `{"hold": "5m"}`)
	held := s.hold(1)
	s.reload(app.directives("log\nmaintenance shop\nheader X-Config new"))
	held.expectPage(t, "1")
	s.logged(`"http.log.access`, `"uri":"/0"`)
	if got, want := s.accessOf("/0"), [3]any{"info", 503.0, "blocked"}; got != want {
		t.Errorf("logged as %v, want %v", got, want)
	}
}

func TestAccessLogSaysWhatWasCutOff(t *testing.T) {
	s := start(t, "log\n"+slowShop(t))
	release, finished := s.slowRequest()
	defer release()
	s.put("shop", `{"terminate_after": "1ms"}`)
	if got := <-finished; got != 503 {
		t.Errorf("got %d", got)
	}
	s.logged(`"http.log.access`, `"uri":"/slow"`)
	if got, want := s.accessOf("/slow"), [3]any{"info", 503.0, "terminated"}; got != want {
		t.Errorf("logged as %v, want %v", got, want)
	}
}

func TestAccessLogSaysWhatWasCutOffInTheMiddle(t *testing.T) {
	begun := make(chan struct{})
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		close(begun)
		<-r.Context().Done()
	}))
	t.Cleanup(app.Close)
	s := start(t, "log\nmaintenance shop\nhandle {\nreverse_proxy "+strings.TrimPrefix(app.URL, "http://")+"\n}")
	go ask(t.Context(), holdClients[0], s.url+"/stream")
	<-begun
	s.put("shop", `{"terminate_after": "1ms"}`)
	s.logged(`"http.log.access`, `"uri":"/stream"`)
	if got, want := s.accessOf("/stream"), [3]any{"info", 200.0, "terminated"}; got != want {
		t.Errorf("logged as %v, want %v", got, want)
	}
}

func TestLevelThatTheSiteSetsIsKept(t *testing.T) {
	s := start(t, "log\nvars log_level debug\nmaintenance shop")
	s.put("shop", "")
	s.get("/blocked")
	s.logged(`"http.log.access`, `"uri":"/blocked"`)
	if got, want := s.accessOf("/blocked"), [3]any{"debug", 503.0, "blocked"}; got != want {
		t.Errorf("logged as %v, want %v", got, want)
	}
}

// What fails of itself is logged as ever.
func TestFailureOfABypassedRequestIsAnError(t *testing.T) {
	s := start(t, "log\nmaintenance shop {\nbypass /dead\n}\nhandle /dead {\nreverse_proxy localhost:1\n}")
	s.put("shop", "")
	s.wantStatus("/dead", 502)
	s.logged(`"http.log.access`, `"uri":"/dead"`)
	if got, want := s.accessOf("/dead"), [3]any{"error", 502.0, "bypassed"}; got != want {
		t.Errorf("logged as %v, want %v", got, want)
	}
}

func TestPlaceholderSaysWhatAMaintenanceDid(t *testing.T) {
	s := prepare(t)
	s.reload(`
		log
		log_append outcome {http.maintenance.outcome}
		maintenance shop {
			bypass /healthz
		}
		@bypassed vars {http.maintenance.outcome} bypassed
		header @bypassed X-For testers
		respond "outcome {http.maintenance.outcome}"`)
	expect := func(path, want string) {
		t.Helper()
		if got := s.get(path).body; got != "outcome "+want {
			t.Errorf("%s got %q, want %q", path, got, want)
		}
	}
	expect("/", "")
	s.put("shop", `{"hold": "5m"}`)
	expect("/healthz", "bypassed")
	answer := make(chan string)
	go func() { answer <- s.get("/held").body }()
	s.awaitHeld(1)
	s.delete("shop")
	if got := <-answer; got != "outcome released" {
		t.Errorf("got %q", got)
	}
	s.put("shop", "")
	s.get("/blocked")
	s.logged(`"uri":"/blocked"`, `"outcome":"blocked"`)
}

// accessOf returns level, status and field of the last entry of the access log for a URI.
func (s *server) accessOf(uri string) (found [3]any) {
	s.t.Helper()
	content, err := os.ReadFile(s.log)
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		var entry struct {
			Level, Logger string
			Status        float64
			Maintenance   any
			Request       struct{ URI string }
		}
		if json.Unmarshal([]byte(line), &entry) == nil && strings.HasPrefix(entry.Logger, "http.log.access") && entry.Request.URI == uri {
			found = [3]any{entry.Level, entry.Status, entry.Maintenance}
		}
	}
	return found
}

// A client that leaves while a site is being read is no error of anybody's.
func TestClientThatLeavesWhileTheSiteLoadsIsNoError(t *testing.T) {
	s := prepare(t)
	hang, answer := hangOn("load", shopKey)
	s.storage.setFault(hang)
	s.reload("log\nmaintenance shop")
	impatient := &http.Client{Timeout: 100 * time.Millisecond, Transport: &http.Transport{DisableKeepAlives: true}}
	if response, err := impatient.Get(s.url); err == nil {
		response.Body.Close()
		t.Fatalf("got %d before the site was read", response.StatusCode)
	}
	eventually(t, func() error {
		if entries := s.accessLog(); len(entries) != 1 || !strings.Contains(entries[0], "status:499") || !strings.Contains(entries[0], "level:info") {
			return fmt.Errorf("the access log has %s, want one request with status 499", entries)
		}
		return nil
	})
	if n := s.countLogged(`"logger":"http.log.error"`); n > 0 {
		t.Errorf("%d errors are logged", n)
	}
	answer()
	s.wantStatus("/", 200)
}
