package maintenance

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"weak"
)

// G1, G5: once a site is on and nothing is in flight, no request is let in,
// however the looks, counts and switches of many requests fall together.
func TestNoRequestSlipsInWhenNothingIsInFlight(t *testing.T) {
	shop := &member{site: newSite("shop")}
	shop.learn(nil, nil)
	var drained atomic.Bool
	var admitted atomic.Int64
	stop := make(chan struct{})
	request := httptest.NewRequest(http.MethodGet, "/", nil)
	gate := &Handler{site: shop}
	var requests sync.WaitGroup
	for range 4 * runtime.GOMAXPROCS(0) {
		requests.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, p, ok := shop.admit(gate, httptest.NewRecorder(), request); ok {
					if drained.Load() {
						t.Error("a request was let in after the site was drained")
					}
					admitted.Add(1)
					shop.leave(p)
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

// A cut that comes late, when the site has just been opened again, finds only
// requests that are none of its business.
func TestCutLeavesAloneWhatCameAfterOpening(t *testing.T) {
	shop := newSite("shop")
	shop.passages[0].mu.Lock() // the cut can look at the state, but not yet at all requests
	shop.learn(&record{Version: 1, Enabled: true, options: options{TerminateAfter: "1us"}}, nil)
	time.Sleep(50 * time.Millisecond)
	shop.learn(&record{Version: 2}, nil)
	admitted := make(chan *passage)
	const n = 100
	for range n {
		go func() {
			admitted <- admitOne(shop)
		}()
	}
	passages := []*passage{<-admitted, <-admitted}
	shop.passages[0].mu.Unlock()
	for len(passages) < n {
		passages = append(passages, <-admitted)
	}
	time.Sleep(50 * time.Millisecond)
	for _, p := range passages {
		if p.context.Err() != nil || p.writer.progress.Load() != nothingSent {
			t.Error("a request of an open site was cut off")
		}
		shop.leave(p)
	}
}

// What is outside of the gate, an access log, say, goes on with a request that a cut
// finds as it leaves.
func TestCutLeavesAloneWhatHasLeftTheGate(t *testing.T) {
	shop := newSite("shop")
	shop.learn(nil, nil)
	p := admitOne(shop)
	found := shop.passages.all()
	shop.leave(p)
	for _, p := range found {
		if p.cut() || p.cutConnection() || p.context.Err() != nil || p.writer.progress.Load() != nothingSent {
			t.Error("a request that had left the gate was cut off")
		}
	}
	if len(found) != 1 {
		t.Errorf("%d requests were found, want 1", len(found))
	}
}

func gateOf(s *site) *Handler { return &Handler{site: &member{site: s}} }

func admitOne(s *site) *passage {
	_, p, _ := s.admit(gateOf(s), httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))
	return p
}

// G10: whoever holds on to a request that has ended, by its context, say, does not
// hold on to others.
func TestEndedRequestHoldsOnToNoOther(t *testing.T) {
	shop := newSite("shop")
	shop.learn(nil, nil)
	kept := admitOne(shop)
	inFlight := []*passage{kept}
	var others []weak.Pointer[passage]
	for range 1000 {
		p := admitOne(shop)
		others = append(others, weak.Make(p))
		inFlight = append(inFlight, p)
		if len(inFlight) > 100 {
			shop.leave(inFlight[0])
			inFlight[0] = nil
			inFlight = inFlight[1:]
		}
	}
	for _, p := range inFlight {
		shop.leave(p)
	}
	clear(inFlight)
	runtime.GC()
	var left int
	for _, other := range others {
		if other.Value() != nil {
			left++
		}
	}
	if left > 0 {
		t.Errorf("%d of 1000 requests that have ended are still in memory", left)
	}
	runtime.KeepAlive(kept)
}

// The context of a passage keeps to what contexts are to keep to, whenever it is
// asked first.
func TestContextOfAPassage(t *testing.T) {
	type key struct{}
	newContext := func() (*passageContext, context.CancelFunc) {
		parent, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
		return &passageContext{parent: parent}, cancel
	}
	for name, end := range map[string]func(*passageContext, context.CancelFunc){
		"cut off":         func(c *passageContext, _ context.CancelFunc) { c.cancel() },
		"client has left": func(_ *passageContext, leave context.CancelFunc) { leave() },
	} {
		before, leaveBefore := newContext()
		defer leaveBefore()
		done := before.Done()
		child, cancelChild := context.WithCancel(before)
		defer cancelChild()
		after, leaveAfter := newContext()
		defer leaveAfter()
		if before.Err() != nil || after.Err() != nil || child.Err() != nil || after.Value(key{}) != "value" || child.Value(key{}) != "value" {
			t.Errorf("%s: before it a context says %v %v %v", name, before.Err(), after.Err(), child.Err())
		}
		end(before, leaveBefore)
		end(after, leaveAfter)
		<-done
		<-after.Done()
		<-child.Done()
		for _, c := range []context.Context{before, after, child} {
			if !errors.Is(c.Err(), context.Canceled) || !errors.Is(context.Cause(c), context.Canceled) || c.Value(key{}) != "value" {
				t.Errorf("%s: after it a context says %v %v %v", name, c.Err(), context.Cause(c), c.Value(key{}))
			}
		}
	}
}

// What comes to be known after the end of a maintenance does not hide that it has ended.
func TestEndComesBeforeWhatIsLearnedAfterIt(t *testing.T) {
	shop := newSite("shop")
	shop.learn(&record{Version: 1, Enabled: true, options: options{Until: time.Now().Add(10 * time.Millisecond)}}, nil)
	<-time.After(20 * time.Millisecond)
	if before, _ := shop.learn(&record{Version: 2, Enabled: true}, nil); before.blocks(false) {
		t.Error("the site was still closed when it was switched on again")
	}
}
