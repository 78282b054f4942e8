package inflight

import (
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"testing"
	"weak"
)

func add(s *Set) *Request {
	return s.Add(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil), nil)
}

func TestRequestIsInItsSetUntilItIsDone(t *testing.T) {
	var s Set
	requests := make([]*Request, 100)
	for i := range requests {
		requests[i] = add(&s)
	}
	for i, q := range requests {
		left := len(requests) - i
		if all := s.All(); s.Count() != int64(left) || len(all) != left || !slices.Contains(all, q) {
			t.Fatalf("%d counted, %d found, want %d", s.Count(), len(all), left)
		}
		q.HandlerReturned()
		if !slices.Contains(s.All(), q) {
			t.Error("its handler has returned, and it is in flight no longer")
		}
		if last := q.Done(); last != (left == 1) {
			t.Errorf("with %d left Done says that it is the last: %t", left, last)
		}
		if q.Done() || s.Count() != int64(left-1) {
			t.Fatal("a request is done twice")
		}
	}
}

// A request that is late to say that it was the last must not wake those who have begun
// to wait since.
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
	outer := shop.Add(nil, r, "outer")
	inner := wiki.Add(nil, r.WithContext(outer.Context()), "inner")
	var gates []any
	for q := range Requests(inner.Context()) {
		gates = append(gates, q.Gate)
	}
	if !slices.Equal(gates, []any{"inner", "outer"}) {
		t.Errorf("the gates are %v", gates)
	}
	if ctx := inner.Context(); !shop.Has(ctx) || !wiki.Has(ctx) || blog.Has(ctx) || shop.Has(r.Context()) {
		t.Error("the wrong sets have the request")
	}
	if inner.Server() != r.Context() || inner.Outer() != outer.Context() {
		t.Error("the contexts of server and gate are confused")
	}
	if outer.Done(); shop.Has(inner.Context()) || !wiki.Has(inner.Context()) {
		t.Error("a request is found that is done, or one that is not is not")
	}
}

// Whoever holds on to a request that is done, by its context, say, does not hold on to
// others.
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
