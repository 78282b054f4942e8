package maintenance

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// G1, G5: once a site is on and nothing is in flight, no request is let in,
// however the looks, counts and switches of many requests fall together.
func TestNoRequestSlipsInWhenNothingIsInFlight(t *testing.T) {
	shop := &member{site: newSite("shop")}
	shop.learn(nil, nil)
	var drained atomic.Bool
	var admitted atomic.Int64
	stop := make(chan struct{})
	var requests sync.WaitGroup
	for range 4 * runtime.GOMAXPROCS(0) {
		requests.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, ok := shop.admit(false); ok {
					if drained.Load() {
						t.Error("a request was let in after the site was drained")
					}
					admitted.Add(1)
					shop.leave()
				} else {
					runtime.Gosched()
				}
			}
		})
	}
	deadline := time.Now().Add(2 * time.Second)
	for version := int64(1); time.Now().Before(deadline); version += 2 {
		shop.learn(&record{Version: version, Enabled: true}, nil)
		if !shop.awaitDrained(nil) {
			t.Fatal("the site is open")
		}
		drained.Store(true)
		runtime.Gosched()
		drained.Store(false)
		shop.learn(&record{Version: version + 1}, nil)
		before := admitted.Load()
		for admitted.Load() == before {
			runtime.Gosched()
		}
	}
	close(stop)
	requests.Wait()
	if n := shop.inFlight.Load(); n != 0 {
		t.Errorf("%d requests are counted in the end, want none", n)
	}
}
