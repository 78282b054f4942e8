package inflight

import (
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"weak"
)

func add(s *Set) *Request { return addTo(s, "") }

func addTo(s *Set, key string) *Request {
	return s.Add(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil), nil, key)
}

func TestRequestIsInItsSetUntilItIsDone(t *testing.T) {
	var s Set
	requests := make([]*Request, 100)
	for i := range requests {
		requests[i] = add(&s)
	}
	idle := s.Idle()
	for i, q := range requests {
		left := len(requests) - i
		if all := s.All(); s.Count() != int64(left) || len(all) != left || !slices.Contains(all, q) {
			t.Fatalf("%d counted, %d found, want %d", s.Count(), len(all), left)
		}
		q.HandlerReturned()
		if !slices.Contains(s.All(), q) {
			t.Error("its handler has returned, and it is in flight no longer")
		}
		if q.Done(); isClosed(idle) != (left == 1) {
			t.Errorf("with %d left before it was done, the set is idle: %t", left, isClosed(idle))
		}
		if q.Done(); s.Count() != int64(left-1) {
			t.Fatal("a request is done twice")
		}
	}
}

// A request that signals late that it was the last must not wake those who began to wait since.
func TestIdleIsSignaledForAMomentAfterItWasAskedFor(t *testing.T) {
	var s Set
	if !isClosed(s.Idle()) {
		t.Error("an empty set is not idle")
	}
	for range 3 {
		first, second := add(&s), add(&s)
		idle := s.Idle()
		s.signalIdle()
		if first.Done(); isClosed(idle) {
			t.Error("idle while a request is in flight")
		}
		if second.Done(); !isClosed(idle) {
			t.Error("not idle after the last request")
		}
	}
}

func TestNobodyWaitsForEverToBeIdle(t *testing.T) {
	var s Set
	for range 10_000 {
		q := add(&s)
		go q.Done()
		for range 2 {
			<-s.Idle()
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestSetHasARequestWhereverItMetTheGate(t *testing.T) {
	var shop, wiki, blog Set
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	outer := shop.Add(nil, r, "outer", "")
	inner := wiki.Add(nil, r.WithContext(outer.Context()), "inner", "")
	var gates []any
	for q := range Requests(inner.Context()) {
		gates = append(gates, q.Gate)
	}
	if !slices.Equal(gates, []any{"inner", "outer"}) {
		t.Errorf("the gates are %v", gates)
	}
	if ctx := inner.Context(); !shop.Has(ctx, "") || !wiki.Has(ctx, "") || blog.Has(ctx, "") || shop.Has(r.Context(), "") {
		t.Error("the wrong sets have the request")
	}
	if inner.Server() != r.Context() || inner.Outer() != outer.Context() {
		t.Error("the contexts of server and gate are confused")
	}
	if shop.Has(inner.Context(), "shop") {
		t.Error("a set has a request by a key that is not its own")
	}
	if outer.Done(); shop.Has(inner.Context(), "") || !wiki.Has(inner.Context(), "") {
		t.Error("a request is found that is done, or one that is not is not")
	}
}

// G5
func TestRequestsOfAKeyMove(t *testing.T) {
	var all, acme Set
	first, second, done, other := addTo(&all, "acme"), addTo(&all, "acme"), addTo(&all, "acme"), addTo(&all, "other")
	done.Done()
	if all.CountOf("acme") != 2 || all.CountOf("other") != 1 || all.CountOf("") != 0 {
		t.Errorf("%d are counted by their key, want 2", all.CountOf("acme"))
	}
	before, idle := acme.Idle(), all.Idle()
	acme.Take(&all, "acme")
	if all.Count() != 1 || acme.Count() != 2 || !slices.Equal(all.All(), []*Request{other}) || len(acme.All()) != 2 {
		t.Errorf("%d of %d and %d of %d have moved, want 1 and 2", all.Count(), len(all.All()), acme.Count(), len(acme.All()))
	}
	if ctx := first.Context(); !acme.Has(ctx, "acme") || acme.Has(ctx, "other") || all.Has(ctx, "acme") || !all.Has(other.Context(), "other") {
		t.Error("the wrong sets have the requests")
	}
	if first.terminate(); first.Context().Err() == nil || second.Context().Err() != nil {
		t.Error("the wrong request was terminated")
	}
	after := acme.Idle()
	if other.Done(); !isClosed(before) || isClosed(after) || !isClosed(idle) {
		t.Error("a set is idle that is not, or the other way round")
	}
	if first.Done(); isClosed(after) {
		t.Error("a set is idle while a request that it took is in flight")
	}
	if second.Done(); !isClosed(after) {
		t.Error("a set does not notice when the last request that it took is done")
	}
}

// A set that is taking over requests is not idle before it has them.
//
// G5
func TestSetThatIsHeldIsNotIdle(t *testing.T) {
	var s Set
	s.Hold()
	idle := s.Idle()
	if add(&s).Done(); isClosed(idle) {
		t.Error("idle while it is held")
	}
	q := add(&s)
	if s.Release(); isClosed(idle) {
		t.Error("idle while a request is in flight")
	}
	if q.Done(); !isClosed(idle) {
		t.Error("not idle after the last request")
	}
	s.Hold()
	idle = s.Idle()
	if s.Release(); !isClosed(idle) {
		t.Error("not idle when it is released")
	}
}

// G1, G5
func TestRequestThatMovesIsCountedAllTheTime(t *testing.T) {
	var all, acme Set
	q := addTo(&all, "acme")
	for i := range acme.shards {
		acme.shards[i].mu.Lock() // so that it stops half way
	}
	moved := make(chan struct{})
	go func() {
		acme.Take(&all, "acme")
		close(moved)
	}()
	for all.Count() > 0 {
		runtime.Gosched()
	}
	if acme.Count() == 0 || isClosed(acme.Idle()) {
		t.Error("a request is in no set while it is moved")
	}
	go q.Done()
	for i := range acme.shards {
		acme.shards[i].mu.Unlock()
	}
	<-moved
	<-acme.Idle()
}

// This is for the race detector, too.
//
// G5, G10
func TestRequestsMoveWhileTheyAreDoneAndTerminated(t *testing.T) {
	var all, acme Set
	var requests, mover sync.WaitGroup
	var over atomic.Bool
	mover.Go(func() {
		for !over.Load() {
			acme.Take(&all, "acme")
			all.Take(&acme, "acme")
		}
	})
	for range 8 {
		requests.Go(func() {
			for i := range 500 {
				q := addTo([]*Set{&all, &acme}[i%2], "acme")
				if i%3 == 0 {
					runtime.Gosched()
				}
				go q.terminate()
				q.Done()
			}
		})
	}
	requests.Wait()
	over.Store(true)
	mover.Wait()
	for _, s := range []*Set{&all, &acme} {
		if n := s.Count(); n != 0 || len(s.All()) > 0 {
			t.Errorf("%d counted, %d found, want none", n, len(s.All()))
		}
		<-s.Idle()
	}
}

// A reference to a request that is done, by its context for example, does not keep others in
// memory.
//
// G10
func TestDoneRequestHoldsOnToNoOther(t *testing.T) {
	var s Set
	kept := add(&s)
	requests := []*Request{kept}
	var others []weak.Pointer[Request]
	for range 1000 {
		q := add(&s)
		others = append(others, weak.Make(q))
		requests = append(requests, q)
		if len(requests) > 100 {
			requests[0].Done()
			requests[0], requests = nil, requests[1:]
		}
	}
	for _, q := range requests {
		q.Done()
	}
	clear(requests)
	runtime.GC()
	others = slices.DeleteFunc(others, func(other weak.Pointer[Request]) bool { return other.Value() == nil })
	if len(others) > 0 {
		t.Errorf("%d of 1000 requests that are done are still in memory", len(others))
	}
	runtime.KeepAlive(kept)
}
