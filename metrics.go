package maintenance

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddyserver/caddy/v2"

	"example.com/caddy-maintenance/internal/api"
	"example.com/caddy-maintenance/internal/site"
)

// metrics are those of the running config's sites, whichever config's registry collects
// them: after a failed reload, Caddy's admin endpoint has the registry of the failed config.
type metrics struct {
	enabled, since, scheduled, inFlight, held, requests, lastSync, instances *prometheus.Desc
}

// registerMetrics adds the metrics to the config's registry, unless they are already there.
func registerMetrics(ctx caddy.Context) error {
	registry := ctx.GetMetricsRegistry()
	if registry == nil {
		return nil
	}
	labels := []string{"site"}
	err := registry.Register(&metrics{
		enabled: prometheus.NewDesc("caddy_maintenance_enabled",
			"Whether the site's requests are blocked: 1 if it is in maintenance or its state is unknown, 0 if not.", labels, nil),
		since: prometheus.NewDesc("caddy_maintenance_since_timestamp_seconds",
			"Unix time when the site's maintenance began, or ended. Absent if the site was never switched or its state is unknown.", labels, nil),
		scheduled: prometheus.NewDesc("caddy_maintenance_scheduled_timestamp_seconds",
			"Unix time when the site's scheduled maintenance begins. Absent if none is scheduled.", labels, nil),
		inFlight: prometheus.NewDesc("caddy_maintenance_in_flight_requests",
			"Requests that were admitted and have not finished.", labels, nil),
		held: prometheus.NewDesc("caddy_maintenance_held_requests",
			"Requests that wait for the end of maintenance.", labels, nil),
		requests: prometheus.NewDesc("caddy_maintenance_requests_total",
			"Requests that were blocked, bypassed, released from hold or terminated.", []string{"site", "outcome"}, nil),
		lastSync: prometheus.NewDesc("caddy_maintenance_last_sync_timestamp_seconds",
			"Unix time of the last successful sync with the storage. Absent if sync is off.", nil, nil),
		instances: prometheus.NewDesc("caddy_maintenance_instances",
			"Instances on the storage by state, including this one, checked once a minute. Absent if sync is off.",
			[]string{"state"}, nil),
	})
	if known := (prometheus.AlreadyRegisteredError{}); errors.As(err, &known) {
		return nil
	}
	return err
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{m.enabled, m.since, m.scheduled, m.inFlight, m.held, m.requests, m.lastSync, m.instances} {
		descs <- desc
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(values chan<- prometheus.Metric) {
	app, err := runningApp()
	if err != nil {
		return // Caddy is starting
	}
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		values <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	for _, s := range app.sites.listed() {
		v := s.view()
		if v.Kind() == site.Loading {
			continue
		}
		enabled := 0.0
		if v.Blocks() {
			enabled = 1
		}
		gauge(m.enabled, enabled, s.Name)
		if since := v.Since(); !since.IsZero() {
			gauge(m.since, seconds(since), s.Name)
		}
		if v.Scheduled() {
			gauge(m.scheduled, seconds(v.Options().From), s.Name)
		}
		gauge(m.inFlight, float64(s.inFlight.Count()), s.Name)
		gauge(m.held, float64(s.heldNow()), s.Name)
		for o, name := range outcomes {
			values <- prometheus.MustNewConstMetric(m.requests, prometheus.CounterValue,
				float64(s.requests[o].Load()), s.Name, name)
		}
	}
	if !app.reporter.enabled() {
		return
	}
	if last := lastSync.Load(); last != nil {
		gauge(m.lastSync, seconds(*last))
	}
	counts := map[string]int{api.InstanceConfirmed: 0, api.InstancePending: 0, api.InstanceSilent: 0, api.InstanceStopping: 0}
	list, _, _ := app.fleet.list(nil)
	for _, i := range list {
		counts[i.State]++
	}
	for state, n := range counts {
		gauge(m.instances, float64(n), state)
	}
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// Interface guard
var _ prometheus.Collector = (*metrics)(nil)
