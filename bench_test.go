package maintenance

import (
	"context"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"example.com/caddy-maintenance/internal/page"
)

// What a request costs without a gate, as the measure for the others.
func BenchmarkNoGate(b *testing.B) {
	benchServe(b, benchApp, nil)
}

func BenchmarkGateOff(b *testing.B) {
	b.Run("NeverSwitched", func(b *testing.B) { benchServe(b, benchGate(b, ""), nil) })
	b.Run("SwitchedOff", func(b *testing.B) { benchServe(b, benchGate(b, benchOff), nil) })
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

// Whatever its size, a custom page is not worked on for a visitor.
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

// G6: What the gate costs a request of a site that is off must stay out of sight
// of a load test.
func TestGateThatIsOffAllocatesLittle(t *testing.T) {
	const limit = 6
	allocations := func(handler caddyhttp.Handler) float64 {
		w, r, fresh := new(benchWriter), new(http.Request), benchRequest(t, nil)
		n := testing.AllocsPerRun(1000, func() {
			if err := benchVisit(handler, w, r, fresh); err != nil {
				t.Fatal(err)
			}
		})
		if w.status != http.StatusOK {
			t.Errorf("status %d, want the app's answer", w.status)
		}
		return n
	}
	without := allocations(benchApp)
	for name, gate := range map[string]caddyhttp.Handler{
		"never switched": benchGate(t, ""),
		"switched off":   benchGate(t, benchOff),
	} {
		got := allocations(gate) - without
		t.Logf("a site that was %s: %v allocations for a request", name, got)
		if got > limit {
			t.Errorf("a site that was %s: %v allocations for a request, want at most %d", name, got, limit)
		}
	}
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

// benchVisit serves a fresh request, since the gate gives it another context. The
// request's own ends with it, as a server's does: what is derived from one that lasts
// would pile up.
func benchVisit(handler caddyhttp.Handler, w http.ResponseWriter, r, fresh *http.Request) error {
	ctx, cancel := context.WithCancel(fresh.Context())
	defer cancel()
	*r = *fresh.WithContext(ctx)
	return handler.ServeHTTP(w, r)
}

// benchApp stands for the app behind the gate. It notices the end of the request as
// reverse_proxy does, by a context that it derives: what the gate's own context costs
// shows only then.
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

// benchGate is a gate in front of benchApp, for a site with that record, or
// one that was never switched.
func benchGate(tb testing.TB, record string) caddyhttp.Handler {
	tb.Helper()
	return benchPageGate(tb, record, nil)
}

// benchPageGate is such a gate that shows a custom page.
func benchPageGate(tb testing.TB, record string, p *page.Page) caddyhttp.Handler {
	tb.Helper()
	s := newTestSite("shop")
	s.read(record)
	gate := &Handler{Site: "shop", RetryAfter: caddy.Duration(defaultRetryAfter), site: s, view: &siteView{View: page.NewView(p)}}
	return caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		return gate.ServeHTTP(w, r, benchApp)
	})
}

// benchPage is a custom page that has been fetched.
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

// benchWriter forgets what is written. Its header map is kept from request to
// request, so that what is measured is the handler's own work.
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
