package maintenance

import (
	"context"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"example.com/caddy-maintenance/internal/page"
)

// What a request costs without this module, to compare the others with.
func BenchmarkNoGate(b *testing.B) {
	benchServe(b, benchApp, nil)
}

func BenchmarkGateOff(b *testing.B) {
	b.Run("NeverSwitched", func(b *testing.B) { benchServe(b, benchGate(b, ""), nil) })
	b.Run("SwitchedOff", func(b *testing.B) { benchServe(b, benchGate(b, benchOff), nil) })
}

// What a request costs if its site's name comes from a placeholder, compared with a literal name:
// medians of many short runs, in turns, so that both run on an equally busy machine. Requests are
// prepared as Caddy does it, outside of the measured time. If the site was never switched, no two
// requests have the same host.
func BenchmarkGateOfTemplate(b *testing.B) {
	for _, test := range templateCases {
		b.Run(test.name, func(b *testing.B) {
			gates := [2]caddyhttp.Handler{benchGate(b, test.record), benchTemplateGate(b, test.record)}
			var took [2][]float64
			for b.Loop() {
				for i, gate := range gates {
					took[i] = append(took[i], benchRun(gate, benchRequests(b, test.host, 64)))
				}
			}
			b.ReportMetric(0, "ns/op") // it includes the preparation
			for i, kind := range []string{"literal", "template"} {
				slices.Sort(took[i])
				b.ReportMetric(took[i][len(took[i])/2], kind+"-ns")
				b.ReportMetric(benchAllocations(b, gates[i], test.host, test.status), kind+"-allocs")
			}
		})
	}
}

var templateCases = []struct {
	name, record, host string
	status             int
}{
	{"NeverSwitched", "", "shop-*.example", 200}, // * is another number in each request
	{"SwitchedOff", benchOff, benchHost, 200},
	{"SwitchedOn", benchOn, benchHost, 503},
}

const browserAccept = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"

func BenchmarkGateOn(b *testing.B) {
	gate := benchGate(b, benchOn)
	for _, visitor := range []struct {
		name   string
		header http.Header
	}{
		{"NoAccept", nil},
		{"HTML", http.Header{"Accept": {browserAccept}}},
		{"Gzip", http.Header{"Accept": {browserAccept}, "Accept-Encoding": {"gzip, deflate, br, zstd"}}},
		{"JSON", http.Header{"Accept": {"application/json"}}},
		{"Text", http.Header{"Accept": {"text/plain"}}},
	} {
		b.Run(visitor.name, func(b *testing.B) { benchServe(b, gate, visitor.header) })
	}
}

// A custom page costs a visitor no work, whatever its size.
func BenchmarkGateOnWithCustomPage(b *testing.B) {
	for _, custom := range []struct{ name, html string }{
		{"Plain", "<!DOCTYPE html><p>Back soon.</p>"},
		{"Placeholders", "<!DOCTYPE html><p>{maintenance.message} {maintenance.until}</p>"},
		{"1MiB", strings.Repeat("x", 1<<20)},
		{"1MiBPlaceholders", strings.Repeat("x", 1<<20-len("{maintenance.message}")) + "{maintenance.message}"},
	} {
		gate := benchPageGate(b, benchOn, benchPage(custom.html))
		b.Run(custom.name, func(b *testing.B) { benchServe(b, gate, http.Header{"Accept": {browserAccept}}) })
	}
}

// G6: A load test must not see what the handler costs a request of a site that is off.
func TestGateThatIsOffAllocatesLittle(t *testing.T) {
	const limit, templateLimit = 6, 2 // the latter are Caddy's, for the value of a placeholder
	without := benchAllocations(t, benchApp, benchHost, 200)
	for _, test := range templateCases[:2] {
		for _, kind := range []struct {
			name  string
			gate  caddyhttp.Handler
			limit float64
		}{
			{"literal", benchGate(t, test.record), limit},
			{"template", benchTemplateGate(t, test.record), limit + templateLimit},
		} {
			got := benchAllocations(t, kind.gate, test.host, test.status) - without
			t.Logf("%s, %s: %v allocations for a request", test.name, kind.name, got)
			if got > kind.limit {
				t.Errorf("%s, %s: %v allocations for a request, want at most %v", test.name, kind.name, got, kind.limit)
			}
		}
	}
}

// benchAllocations returns what a request allocates that is answered with that status.
func benchAllocations(tb testing.TB, handler caddyhttp.Handler, host string, want int) float64 {
	const runs = 1000
	tb.Helper()
	requests := benchRequests(tb, host, runs+1) // of which the first one warms up
	w, r := new(benchWriter), new(http.Request)
	return testing.AllocsPerRun(runs, func() {
		w.reset()
		if err := benchVisit(handler, w, r, requests[0]); err != nil || w.status != want {
			tb.Fatalf("got %d %v, want %d", w.status, err, want)
		}
		requests = requests[1:]
	})
}

// benchRun returns how many nanoseconds the handler takes for one of these requests.
func benchRun(handler caddyhttp.Handler, requests []*http.Request) float64 {
	w, r := new(benchWriter), new(http.Request)
	began := time.Now()
	for _, fresh := range requests {
		w.reset()
		_ = benchVisit(handler, w, r, fresh)
	}
	return float64(time.Since(began).Nanoseconds()) / float64(len(requests))
}

// benchServe runs the handler on one core and on all of them.
func benchServe(b *testing.B, handler caddyhttp.Handler, header http.Header) {
	b.Run("Serial", func(b *testing.B) {
		b.ReportAllocs()
		w, r, fresh := new(benchWriter), new(http.Request), benchRequest(b, header)
		for b.Loop() {
			w.reset()
			_ = benchVisit(handler, w, r, fresh)
		}
	})
	b.Run("Parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			w, r, fresh := new(benchWriter), new(http.Request), benchRequest(b, header)
			for pb.Next() {
				w.reset()
				_ = benchVisit(handler, w, r, fresh)
			}
		})
	})
}

// benchVisit serves a fresh copy of the request, because the handler replaces its context. The
// copy's context ends with it, as a server's does: contexts derived from a lasting one would
// pile up.
func benchVisit(handler caddyhttp.Handler, w http.ResponseWriter, r, fresh *http.Request) error {
	ctx, cancel := context.WithCancel(fresh.Context())
	defer cancel()
	*r = *fresh.WithContext(ctx)
	return handler.ServeHTTP(w, r)
}

// benchApp stands for the app. It derives a context from the request's, as reverse_proxy does:
// only then does the cost of the handler's context show.
var benchApp = caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	select {
	case <-ctx.Done():
	default:
		w.WriteHeader(http.StatusOK)
	}
	return nil
})

// benchGate returns a handler in front of benchApp, for a site with that record, or one that was
// never switched.
func benchGate(tb testing.TB, record string) caddyhttp.Handler {
	tb.Helper()
	return benchPageGate(tb, record, nil)
}

// benchPageGate returns such a handler with a custom page.
func benchPageGate(tb testing.TB, record string, p *page.Page) caddyhttp.Handler {
	tb.Helper()
	s := newTestSite("shop")
	s.read(record)
	gate := &Handler{Site: "shop", RetryAfter: caddy.Duration(defaultRetryAfter), site: s, view: &siteView{View: page.NewView(p)}}
	return caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		return gate.ServeHTTP(w, r, benchApp)
	})
}

// benchTemplateGate returns a handler of a template for hosts, where benchHost has that record.
func benchTemplateGate(tb testing.TB, record string) caddyhttp.Handler {
	tb.Helper()
	gate := gateOf(newTestTemplate(tb, "{http.request.host}"))
	if record != "" {
		entry := sites.Need(benchHost, true)
		gate.site.config.siteOf(entry).read(record)
		letSiteGo(entry)
	}
	return caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		return gate.ServeHTTP(w, r, benchApp)
	})
}

// newTestTemplate returns a template whose sites were never switched.
func newTestTemplate(tb testing.TB, text string) *configuredSite {
	tb.Helper()
	c := &configSites{ctx: tb.Context(), loading: &loading{ctx: tb.Context()}, named: make(map[string]*configuredSite)}
	t, err := c.join(parseName(text), false)
	if err != nil {
		tb.Fatal(err)
	}
	t.followed.Begin()
	t.read("")
	tb.Cleanup(func() {
		c.leave()
		releaseSite(t.entry)
	})
	return t
}

// benchPage returns a custom page with a copy.
func benchPage(html string) *page.Page {
	p := page.New(page.Source{})
	p.Restore(&page.Copy{HTML: []byte(html), Charset: "utf-8"})
	return p
}

// The records of a site that was switched.
const (
	benchOn  = `{"version": 1, "enabled": true, "since": "2026-01-31T02:00:00Z"}`
	benchOff = `{"version": 1, "enabled": false, "since": "2026-01-31T02:00:00Z"}`
)

func benchRequest(tb testing.TB, header http.Header) *http.Request {
	tb.Helper()
	r := httptest.NewRequest(http.MethodGet, "http://shop.example/cart", nil)
	maps.Copy(r.Header, header)
	return r
}

const benchHost = "shop.example"

// benchRequests are requests as Caddy passes them on, with a number in place of each * in the
// host that no other request has.
func benchRequests(tb testing.TB, host string, n int) []*http.Request {
	tb.Helper()
	requests := make([]*http.Request, n)
	for i := range requests {
		r := benchRequest(tb, nil)
		r.Host = strings.ReplaceAll(host, "*", strconv.FormatInt(benchHosts.Add(1), 10))
		requests[i] = newRequest(r)
	}
	return requests
}

var benchHosts atomic.Int64

// benchWriter discards what is written. It keeps its header map from request to request, so that
// only the handler's work is measured.
type benchWriter struct {
	header http.Header
	status int
}

func (w *benchWriter) reset() { clear(w.header) }

func (w *benchWriter) Header() http.Header {
	if w.header == nil {
		w.header = make(http.Header)
	}
	return w.header
}

func (w *benchWriter) WriteHeader(status int) { w.status = status }

func (w *benchWriter) Write(b []byte) (int, error) { return len(b), nil }
