package maintenance

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"example.com/caddy-maintenance/internal/inflight"
	"example.com/caddy-maintenance/internal/site"
)

// G1, G5: once a site is on and nothing is in flight, no request is let in,
// however the looks, counts and switches of many requests fall together.
func TestNoRequestSlipsInWhenNothingIsInFlight(t *testing.T) {
	shop := newTestSite("shop")
	shop.read(``)
	var drained atomic.Bool
	var admitted atomic.Int64
	stop := make(chan struct{})
	request := httptest.NewRequest(http.MethodGet, "/", nil)
	gate := &Handler{site: shop}
	var requests sync.WaitGroup
	for range 2 * runtime.GOMAXPROCS(0) {
		requests.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, req, ok := shop.admit(gate, httptest.NewRecorder(), request); ok {
					if drained.Load() {
						t.Error("a request was let in after the site was drained")
					}
					admitted.Add(1)
					req.Done()
				} else {
					runtime.Gosched()
				}
			}
		})
	}
	for version := int64(1); version < 200; version += 2 {
		shop.read(fmt.Sprintf(`{"version": %d, "enabled": true}`, version))
		if !shop.awaitDrained(nil) {
			t.Fatal("the site is open")
		}
		drained.Store(true)
		runtime.Gosched()
		drained.Store(false)
		shop.read(fmt.Sprintf(`{"version": %d, "enabled": false}`, version+1))
		before := admitted.Load()
		for admitted.Load() == before {
			runtime.Gosched()
		}
	}
	close(stop)
	requests.Wait()
	if n := shop.inFlight.Count(); n != 0 {
		t.Errorf("%d requests are counted in the end, want none", n)
	}
}

func TestDrainedIsToldOfASiteThatIsClosedAndIdle(t *testing.T) {
	off := func(s *configuredSite) { s.read(`{"version": 2, "enabled": false}`) }
	again := func(s *configuredSite) { s.read(`{"version": 2, "enabled": true}`) }
	timePasses := func(*configuredSite) { time.Sleep(time.Hour) }
	for name, test := range map[string]struct {
		meanwhile func(*configuredSite)
		want      bool
	}{
		"nothing happens":           {func(*configuredSite) {}, true},
		"its options change":        {again, true},
		"it is opened":              {off, false},
		"it is opened by the clock": {timePasses, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			shop := newTestSite("shop")
			shop.read(``)
			first, last := admitOne(shop), admitOne(shop)
			shop.read(fmt.Sprintf(`{"version": 1, "enabled": true, "until": %q}`, time.Now().Add(time.Hour).Format(time.RFC3339Nano)))
			told := make(chan bool, 1)
			go func() { told <- shop.awaitDrained(nil) }()
			synctest.Wait()
			first.Done()
			synctest.Wait()
			if len(told) > 0 {
				t.Error("told while a request is in flight")
			}
			test.meanwhile(shop)
			synctest.Wait()
			if want := name == "it is opened"; len(told) > 0 != want {
				t.Errorf("%s: told before the last request is done: %t", name, !want)
			}
			last.Done()
			if drained := <-told; drained != test.want {
				t.Errorf("%s: drained is %t, want %t", name, drained, test.want)
			}
		})
	}
}

func gateOf(s *configuredSite) *Handler {
	return &Handler{site: s, view: viewOfDefaultPage(s), RetryAfter: caddy.Duration(defaultRetryAfter), log: zap.NewNop(), cookieName: site.CookieName(s.Name)}
}

func admitOne(s *configuredSite) *inflight.Request {
	_, req, _ := s.admit(gateOf(s), httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))
	return req
}

// viewOfDefaultPage is what handlers without a page of their own show.
func viewOfDefaultPage(s *configuredSite) *siteView {
	v, _ := s.viewOf(nil)
	return v
}

// newTestSite is a site whose record has not been read yet.
func newTestSite(name string) *configuredSite {
	entry := site.NewPool(newSharedSite).Acquire(name, time.Now())
	return &configuredSite{sharedSite: entry.Value, entry: entry}
}

// read has the site take a record as a sync does, or that there is none.
func (s *configuredSite) read(record string) {
	var read site.Read
	if record != "" {
		read.Record, read.Err = site.ParseRecord([]byte(record), caddy.ParseDuration)
	}
	for range s.Apply(read, site.Cause{Source: site.SourceSync}, time.Now()) {
		s.setTerminateTimer()
	}
}

// newClosedGate is one whose site has been switched on.
func newClosedGate(name, options string) *Handler {
	s := newTestSite(name)
	s.read(``)
	s.turnOn(options)
	return gateOf(s)
}

// turnOn switches a site on with options as the admin API gets them.
func (s *configuredSite) turnOn(options string) { s.mutate(site.On{Options: given(options)}) }

func (s *configuredSite) patch(options string) { s.mutate(site.Patch{Options: given(options)}) }

func (s *configuredSite) turnOff() { s.mutate(site.Off{}) }

func (s *configuredSite) mutate(m site.Mutation) {
	record, err := s.configured().Mutate(m, time.Now())
	if err != nil {
		panic(err)
	}
	if record != nil { // else it has been like that before
		s.read(string(record.Raw()))
	}
}

func given(options string) site.Given {
	given, err := site.Parser{Durations: caddy.ParseDuration, Now: time.Now()}.Body([]byte(options))
	if err != nil {
		panic(err)
	}
	return given
}

// newRequest is one as Caddy passes it to handlers; if it comes from "@", the proxy in
// between is trusted.
func newRequest(r *http.Request) *http.Request {
	return caddyhttp.PrepareRequest(r, caddy.NewReplacer(), httptest.NewRecorder(), &caddyhttp.Server{TrustedProxiesUnix: true})
}

// serve has handlers serve a request one behind the other, and the app behind them all.
func serve(w http.ResponseWriter, r *http.Request, app caddyhttp.HandlerFunc, handlers ...caddyhttp.MiddlewareHandler) error {
	next := caddyhttp.Handler(app)
	for _, handler := range slices.Backward(handlers) {
		inner := next
		next = caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error { return handler.ServeHTTP(w, r, inner) })
	}
	return next.ServeHTTP(w, r)
}

// before is a handler that does something and passes the request on.
type before func(w http.ResponseWriter, r *http.Request)

func (f before) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	f(w, r)
	return next.ServeHTTP(w, r)
}
