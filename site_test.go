package maintenance

import (
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// Once a site is on and nothing is in flight, no request is admitted, however the looks, counts
// and switches of many requests interleave.
//
// G1, G5
func TestNoRequestSlipsInWhenNothingIsInFlight(t *testing.T) {
	shop := newTestSite("shop")
	shop.read(``)
	gate, w, r := gateOf(shop), httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil)
	var drained atomic.Bool
	var admitted atomic.Int64
	run, stop := startWorkers()
	for range 2 * runtime.GOMAXPROCS(0) {
		run(func(int) {
			if _, req, ok := shop.admit(gate, shop.Name, w, r); ok {
				if drained.Load() {
					t.Error("a request was let in after the site was drained")
				}
				admitted.Add(1)
				req.Done()
			} else {
				runtime.Gosched()
			}
		})
	}
	for range 100 {
		shop.turn("on {}")
		drained.Store(shop.awaitDrained(nil))
		runtime.Gosched()
		drained.Store(false)
		shop.turn("off")
		for before := admitted.Load(); admitted.Load() == before; {
			runtime.Gosched()
		}
	}
	stop()
	if n := shop.inFlight.Count(); n != 0 {
		t.Errorf("%d requests are counted in the end, want none", n)
	}
}

func TestDrainedIsToldOfASiteThatIsClosedAndIdle(t *testing.T) {
	for script, want := range map[string]bool{
		`patch {"until": null}`:   true,
		`on {"message": "Again"}`: true,
		"off":                     false,
		"wait 1h":                 false, // it is opened by the clock
	} {
		synctest.Test(t, func(t *testing.T) {
			shop := newTestSite("shop")
			shop.read(``)
			first, last := admitOne(shop), admitOne(shop)
			shop.turn(`on {"until": "2000-01-01T01:00:00Z"}`)
			told := make(chan bool, 1)
			go func() { told <- shop.awaitDrained(nil) }()
			synctest.Wait()
			first.Done()
			synctest.Wait()
			if len(told) > 0 {
				t.Error("told while a request is in flight")
			}
			shop.turn(script)
			synctest.Wait()
			if opened := script == "off"; len(told) > 0 != opened {
				t.Errorf("%s: told before the last request is done: %t", script, !opened)
			}
			last.Done()
			if drained := <-told; drained != want {
				t.Errorf("%s: drained is %t, want %t", script, drained, want)
			}
		})
	}
}

// G10
func TestListIsReadWhileItChanges(t *testing.T) {
	var list readList[string]
	find := func(name string, meanwhile func()) string {
		return list.findOrAdd(func(item string) bool {
			if item == name {
				meanwhile()
			}
			return item == name
		}, func() string { return name })
	}
	find("old", nil)
	find("new", nil)
	got := find("new", func() { list.remove(func(item string) bool { return item == "old" }) })
	wantEqual(t, "found", got, "new")
	wantEqual(t, "left", len(list.all()), 1)
}
