package maintenance

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

func TestMetricsSayWhatIsInMaintenance(t *testing.T) {
	s := start(t, "maintenance shop\nhandle /wiki* {\nmaintenance wiki {\ninitial_state on\n}\n}")
	s.wantMetrics(map[string]float64{
		"enabled shop": 0, "in_flight_requests shop": 0, "held_requests shop": 0,
		"enabled wiki": 1, "in_flight_requests wiki": 0, "held_requests wiki": 0,
	})
	began := time.Now().Add(-time.Second)
	s.put("shop", "")
	s.delete("wiki")
	got := s.metrics()
	if got["enabled shop"] != 1 || got["enabled wiki"] != 0 {
		t.Errorf("got %v", got)
	}
	for _, name := range []string{"since_timestamp_seconds shop", "since_timestamp_seconds wiki"} {
		since := time.Unix(int64(got[name]), 0)
		if since.Before(began.Truncate(time.Second)) || since.After(time.Now()) {
			t.Errorf("%s is %s, want now", name, since)
		}
	}

	s.put("shop", fmt.Sprintf(`{"until": %q}`, time.Now().Add(300*time.Millisecond).Format(time.RFC3339Nano)))
	eventually(t, func() error { return s.is("shop", "off") })
	if got := s.metrics(); got["enabled shop"] != 0 || got["since_timestamp_seconds shop"] == 0 {
		t.Errorf("after the end got %v", got)
	}
}

func TestMetricsSayThatAnUnknownSiteIsBlocked(t *testing.T) {
	s := prepare(t)
	s.storage.setFault(failOn("load", "maintenance/"))
	s.reload("maintenance shop")
	s.wantMetrics(map[string]float64{"enabled shop": 1, "in_flight_requests shop": 0, "held_requests shop": 0})
}

func TestMetricsCountWhatAMaintenanceDoesToRequests(t *testing.T) {
	app := newWitness(t)
	s := startInFrontOf(t, app, "maintenance shop {\nbypass /healthz\n}")
	s.get("/") // those of an open site are not counted
	s.put("shop", `{"bypass_secret": "0123456789abcdef"}`)
	for range 3 {
		s.wantStatus("/", 503)
	}
	s.wantStatus("/healthz", 200)
	link := s.get("/.maintenance/0123456789abcdef")
	cookie, _, _ := strings.Cut(link.Header.Get("Set-Cookie"), ";")
	if got := s.do(http.MethodGet, "/", http.Header{"Cookie": {cookie}}); got.StatusCode != 200 {
		t.Fatalf("got %d with a cookie", got.StatusCode)
	}
	s.put("shop", `{"hold": "5m"}`)
	held := s.hold(5)
	if got := s.metrics()["held_requests shop"]; got != 5 {
		t.Errorf("%v are held, want 5", got)
	}
	s.delete("shop")
	for range 5 {
		held.expectApp(t)
	}
	s.awaitHeld(0)
	s.put("shop", `{"hold": "100ms"}`)
	s.wantStatus("/", 503)
	want := map[string]float64{"blocked": 4, "bypassed": 3, "released": 5, "terminated": 0}
	got := s.metrics()
	for outcome, n := range want {
		if got := got["requests_total shop "+outcome]; got != n {
			t.Errorf("%v %s, want %v", got, outcome, n)
		}
	}
}

func TestMetricsCountWhatIsCutOff(t *testing.T) {
	s := start(t, slowShop(t))
	release, first := s.slowRequest()
	defer release()
	release, second := s.slowRequest()
	defer release()
	if got := s.metrics()["in_flight_requests shop"]; got != 2 {
		t.Errorf("%v are in flight, want 2", got)
	}
	s.put("shop", `{"terminate_after": "1ms"}`)
	<-first
	<-second
	s.logged(`cut off what was still in flight`, `"site":"shop"`, `"requests":2`)
	if got := s.metrics(); got["requests_total shop terminated"] != 2 || got["requests_total shop blocked"] != 0 || got["in_flight_requests shop"] != 0 {
		t.Errorf("got %v", got)
	}
	s.reload(slowShop(t))
	if n := s.countLogged("cut off what was"); n != 1 {
		t.Errorf("logged %d times, want once", n)
	}
}

// One that does not end is counted once, though the options change after the cut; so is
// one that has failed, and whose error route does not end.
func TestMetricsCountOnceWhatIsCutOff(t *testing.T) {
	var here sync.WaitGroup
	here.Add(2)
	release := make(chan struct{})
	wait := func(http.ResponseWriter, *http.Request) error {
		here.Done()
		<-release
		return nil
	}
	s := prepare(t)
	s.after = "handle_errors {\n" + testApp(t, wait) + "\n}"
	s.reload("maintenance shop\nerror /failing 502\n" + testApp(t, wait))
	var visitors sync.WaitGroup
	for _, path := range []string{"/", "/failing"} {
		visitors.Go(func() { ask(t.Context(), holdClients[0], s.url+path) })
	}
	here.Wait()
	s.put("shop", `{"terminate_after": "1ms"}`)
	s.logged("cut off what was still in flight", `"requests":2`)
	for i := range 3 {
		s.patch("shop", fmt.Sprintf(`{"message": "%d"}`, i))
	}
	s.holdsInFlight(100*time.Millisecond, 2)
	if got, n := s.metrics()["requests_total shop terminated"], s.countLogged("cut off what was"); got != 2 || n != 1 {
		t.Errorf("%v terminated, logged %d times, want 2 and once", got, n)
	}
	close(release)
	visitors.Wait()
}

// However the config has come to be, and from which endpoint one looks.
func TestMetricsAreRightAfterReloads(t *testing.T) {
	site := func(i int) string {
		return fmt.Sprintf("header X-Config %d\nhandle /metrics {\nmetrics\n}\nmaintenance shop {\nbypass /metrics\n}", i)
	}
	s := start(t, site(0))
	s.put("shop", "")
	since := s.metrics()["since_timestamp_seconds shop"]
	blocked := 0.0
	right := func(what string) {
		t.Helper()
		s.wantStatus("/", 503)
		blocked++
		want := map[string]float64{
			"enabled shop": 1, "since_timestamp_seconds shop": since, "in_flight_requests shop": 0, "held_requests shop": 0,
			"requests_total shop blocked": blocked,
		}
		for name, url := range map[string]string{"admin endpoint": s.admin, "site": s.url} {
			got := s.metricsOf(url)
			for key, value := range want {
				if got[key] != value {
					t.Fatalf("%s, by the %s: %s is %v, want %v", what, name, key, got[key], value)
				}
			}
			if at := time.Unix(int64(got["last_sync_timestamp_seconds"]), 0); time.Since(at) > 30*time.Second {
				t.Fatalf("%s, by the %s: last sync was %s", what, name, at)
			}
		}
	}
	eventually(t, func() error {
		if s.metrics()["last_sync_timestamp_seconds"] == 0 {
			return fmt.Errorf("storage has not been looked at")
		}
		return nil
	})
	right("at first")
	for i := range 10 {
		s.reload(site(i + 1))
		right(fmt.Sprintf("after reload %d", i+1))
	}
	for i := range 3 {
		if err := s.load("root ../{unknown\n" + "maintenance 'no name'"); err == nil {
			t.Fatal("the config was loaded")
		}
		right(fmt.Sprintf("after a config that cannot be read, %d", i))
		if err := s.load("maintenance other\nhandle {\nmaintenance other {\ninitial_state on\n}\n}"); err == nil {
			t.Fatal("the config was loaded")
		}
		right(fmt.Sprintf("after a config that cannot be provisioned, %d", i))
		s.failEarly("maintenance other")
		right(fmt.Sprintf("after a config that failed before its sites, %d", i))
		s.failLate("header X-Config late\nmaintenance other")
		right(fmt.Sprintf("after a config that failed late, %d", i))
		if names := slices.Collect(maps.Keys(s.metrics())); slices.ContainsFunc(names, func(n string) bool { return strings.Contains(n, "other") }) {
			t.Errorf("a site of the failed config has metrics: %q", names)
		}
	}
}

func TestSiteHasMetricsWithoutAnAdminEndpoint(t *testing.T) {
	s := prepare(t)
	if err := s.loadWith("handle /metrics {\nmetrics\n}\nmaintenance shop", `"admin":{`, `"admin":{"disabled":true,`); err != nil {
		t.Fatal(err)
	}
	if got := s.metricsOf(s.url); got["in_flight_requests shop"] != 1 { // the one that asks
		t.Errorf("got %v", got)
	}
}

func TestSiteThatLeavesTheConfigHasNoMetrics(t *testing.T) {
	s := start(t, "maintenance shop")
	s.put("shop", "")
	s.wantStatus("/", 503)
	s.reload("maintenance wiki")
	for name := range s.metrics() {
		if strings.Contains(name, "shop") {
			t.Errorf("there is %q", name)
		}
	}
	s.reload("")
	if got := s.metrics(); len(got) > 0 {
		t.Errorf("got %v without any site", got)
	}
}

func TestRequestsCannotMakeMetricsGrow(t *testing.T) {
	s := start(t, "maintenance shop")
	s.put("shop", "")
	s.wantStatus("/", 503)
	before := len(s.metrics())
	for i := range 50 {
		s.do("METHOD"+strconv.Itoa(i), fmt.Sprintf("/%d?q=%d", i, i), http.Header{"Accept": {fmt.Sprint("a/", i)}, "X-Forwarded-Host": {fmt.Sprint(i)}})
	}
	got := s.metrics()
	if len(got) != before || got["requests_total shop blocked"] != 51 {
		t.Errorf("got %v", got)
	}
}

func TestMetricsAreNamedAsIsUsual(t *testing.T) {
	s := prepare(t)
	s.options = "maintenance {\nsync_interval 100ms\n}"
	s.reload("maintenance shop")
	s.put("shop", "")
	s.polled()
	var ours strings.Builder
	for line := range strings.Lines(send(t, http.MethodGet, s.admin+"/metrics", "", nil).body) {
		if strings.Contains(line, "caddy_maintenance_") {
			ours.WriteString(line)
		}
	}
	if n := strings.Count(ours.String(), "# TYPE"); n != 6 {
		t.Errorf("%d metrics, want 6", n)
	}
	problems, err := promlint.New(strings.NewReader(ours.String())).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}

func TestLastSyncStandsStillInAnOutage(t *testing.T) {
	s := prepare(t)
	s.options = "maintenance {\nsync_interval 100ms\n}"
	s.reload("maintenance shop")
	last := func() float64 { return s.metrics()["last_sync_timestamp_seconds"] }
	grows := func() {
		t.Helper()
		at := last()
		eventually(t, func() error {
			if last() <= at {
				return fmt.Errorf("the last sync was at %v", at)
			}
			return nil
		})
	}
	grows()
	var failed atomic.Int64
	s.storage.setFault(func(context.Context, string, string) error {
		failed.Add(1)
		return errors.New("disk full")
	})
	s.logged("storage cannot be read")
	at := last()
	failed.Store(0)
	eventually(t, func() error {
		if n := failed.Load(); n < 3 {
			return fmt.Errorf("failed %d times", n)
		}
		return nil
	})
	if got := last(); got != at {
		t.Errorf("the last sync was at %v, and at %v in the outage", at, got)
	}
	s.storage.setFault(nil)
	grows()
	if at == 0 {
		t.Error("it was forgotten in the outage")
	}
	s.options = "maintenance {\nsync_interval off\n}"
	s.reload("maintenance shop")
	if got, ok := s.metrics()["last_sync_timestamp_seconds"]; ok {
		t.Errorf("it is %v without sync", got)
	}
}

// wantMetrics fails the test if the metrics of sites, but those of requests, are not these.
func (s *server) wantMetrics(want map[string]float64) {
	s.t.Helper()
	got := s.metrics()
	maps.DeleteFunc(got, func(name string, _ float64) bool {
		return strings.HasPrefix(name, "requests_total") || strings.HasPrefix(name, "last_sync")
	})
	if !maps.Equal(got, want) {
		s.t.Errorf("got %v, want %v", got, want)
	}
}

// metrics are those of this module, by name and labels: "enabled shop".
func (s *server) metrics() map[string]float64 { return s.metricsOf(s.admin) }

// metricsOf are those that an endpoint says.
func (s *server) metricsOf(url string) map[string]float64 {
	s.t.Helper()
	found := map[string]float64{}
	for line := range strings.Lines(send(s.t, http.MethodGet, url+"/metrics", "", nil).body) {
		rest, ok := strings.CutPrefix(line, "caddy_maintenance_")
		if !ok {
			continue
		}
		name, value, _ := strings.Cut(strings.TrimSpace(rest), " ")
		name, labels, _ := strings.Cut(strings.TrimSuffix(name, "}"), "{")
		byName := map[string]string{}
		for label := range strings.SplitSeq(labels, ",") {
			key, value, _ := strings.Cut(label, "=")
			byName[key] = strings.Trim(value, `"`)
		}
		number, err := strconv.ParseFloat(value, 64)
		if err != nil {
			s.t.Fatalf("%v in %q", err, line)
		}
		found[strings.TrimSpace(name+" "+byName["site"]+" "+byName["outcome"])] = number
	}
	return found
}
