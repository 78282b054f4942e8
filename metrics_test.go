package maintenance

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestMetricsSayWhatIsInMaintenance(t *testing.T) {
	s := start(t, "maintenance shop\nhandle /wiki* {\nmaintenance wiki {\ninitial_state on\n}\n}")
	s.api(http.MethodGet, "/maintenance", "") // waits until all states are known
	s.wantMetrics(map[string]float64{
		"enabled shop": 0, "in_flight_requests shop": 0, "held_requests shop": 0,
		"enabled wiki": 1, "in_flight_requests wiki": 0, "held_requests wiki": 0,
	})
	began := time.Now().Truncate(time.Second)
	s.put("shop", fmt.Sprintf(`{"until": %q}`, time.Now().Add(300*time.Millisecond).Format(time.RFC3339Nano)))
	s.delete("wiki")
	expect := func(want float64) {
		t.Helper()
		got := s.metrics()
		if got["enabled shop"] != want || got["enabled wiki"] != 0 {
			t.Errorf("got %v", got)
		}
		for _, name := range []string{"since_timestamp_seconds shop", "since_timestamp_seconds wiki"} {
			if since := time.Unix(int64(got[name]), 0); since.Before(began) || since.After(time.Now()) {
				t.Errorf("%s is %s, want now", name, since)
			}
		}
	}
	eventually(t, func() error { return s.is("shop", "off") })
	expect(0)
	s.put("shop", "")
	expect(1)

	s.storage.setFault(failOn("load", "maintenance/"))
	wantEqual(t, "instances", fmt.Sprint(s.instances()), "map[confirmed:1 pending:0 silent:0 stopping:0]")
	s.reload("maintenance blog") // its state is unknown; the sites that have gone have no metrics
	s.wantMetrics(map[string]float64{"enabled blog": 1, "in_flight_requests blog": 0, "held_requests blog": 0})
	s.storage.setFault(nil)
	s.options = "maintenance {\nsync_interval off\n}"
	s.reload("maintenance blog")
	if at, ok := s.metrics()["last_sync_timestamp_seconds"]; ok {
		t.Errorf("without sync the last one was at %v", at)
	}
	s.reload("")
	if got := s.metrics(); len(got) > 0 {
		t.Errorf("got %v without any site", got)
	}
}

// The metrics are right however the config was loaded, on each endpoint, under all requests.
func TestMetricsAreRightAfterReloads(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		site := func(i int) string {
			return fmt.Sprintf("header X-Config %d\nhandle /metrics {\nmetrics\n}\nmaintenance shop {\nbypass /metrics\n}", i)
		}
		s := k.start(t, site(0))
		s.put("shop", "")
		since := s.metrics()["since_timestamp_seconds shop"]
		blocked := 0.0
		right := func(what string) {
			t.Helper()
			method := fmt.Sprint("METHOD", blocked)
			s.do(method, "/"+method+"?q="+method, http.Header{"Accept": {"a/" + method}, "X-Forwarded-Host": {method}})
			blocked++
			want := map[string]float64{
				"enabled shop": 1, "since_timestamp_seconds shop": since, "in_flight_requests shop": 0, "held_requests shop": 0,
				"requests_total shop blocked": blocked, "requests_total shop released": 0, "requests_total shop terminated": 0,
			}
			for name, url := range map[string]string{"admin endpoint": s.admin, "site": s.url} {
				got := s.metricsOf(url)
				if at := time.Unix(int64(got["last_sync_timestamp_seconds"]), 0); time.Since(at) > 30*time.Second {
					t.Fatalf("%s, by the %s: last sync was %s", what, name, at)
				}
				delete(got, "last_sync_timestamp_seconds")
				delete(got, "requests_total shop bypassed")
				if !maps.Equal(got, want) {
					t.Fatalf("%s, by the %s: got %v, want %v", what, name, got, want)
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
		}
	})
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

func TestLastSyncStandsStillInAnOutage(t *testing.T) {
	inTimeOfEachKind(t, func(t *testing.T, k kind) {
		storage := newTestStorage(t)
		a, _ := newTestApp(t, storage, k.of("shop")...)
		go newFollower(a).run()
		nothing := func(_ context.Context, op, _ string) error {
			if op == "load" {
				return fs.ErrNotExist // as some storages say when they fail
			}
			return nil
		}
		for _, fault := range []func(context.Context, string, string) error{nil, failOn("load", "maintenance/"), nil, nothing, nil} {
			storage.setFault(fault)
			outage := fault != nil
			began := time.Now()
			time.Sleep(time.Minute)
			if last := *lastSync.Load(); last.Before(began) != outage {
				t.Errorf("outage: %t, and after a minute the last sync was %s ago", outage, time.Since(last))
			}
		}
	})
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

var instancesLine = regexp.MustCompile(`(?m)^caddy_maintenance_instances{state="(\w+)"} (\S+)$`)

// instances are the instances by state.
func (s *server) instances() map[string]string {
	found := make(map[string]string)
	for _, match := range instancesLine.FindAllStringSubmatch(send(s.t, http.MethodGet, s.admin+"/metrics", "", nil).body, -1) {
		found[match[1]] = match[2]
	}
	return found
}

// metrics are those of this module's sites, by name and labels: "enabled shop".
func (s *server) metrics() map[string]float64 { return s.metricsOf(s.admin) }

var metricLine = regexp.MustCompile(`(?m)^caddy_maintenance_(\w+)(?:{(?:outcome="(\w+)",)?site="(\w+)"})? (\S+)$`)

// metricsOf returns the metrics of an endpoint.
func (s *server) metricsOf(url string) map[string]float64 {
	s.t.Helper()
	found := make(map[string]float64)
	for _, match := range metricLine.FindAllStringSubmatch(send(s.t, http.MethodGet, url+"/metrics", "", nil).body, -1) {
		number, err := strconv.ParseFloat(match[4], 64)
		if err != nil {
			s.t.Fatalf("%v in %q", err, match)
		}
		found[strings.TrimSpace(match[1]+" "+match[3]+" "+match[2])] = number
	}
	return found
}
