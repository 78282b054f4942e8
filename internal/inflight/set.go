// Package inflight keeps the requests of a site that are in flight: it counts
// them, tells when none is left, and terminates those that do not end.
//
// Three things happen to a [Request], in any order. Its handler returns: the
// connection may be another request's from then on. It is done: it is in flight
// no longer, and left alone. It is terminated: its context is canceled, nothing
// more is sent for it, and if its handler waits for the client all the same, the
// connection is broken.
//
// The package promises that a [Set] counts a request from Add to Done, that its
// Idle is not signaled while a request is in flight all the time, and that
// what a terminated request has sent is either nothing or visibly incomplete.
//
// It knows net/http and no more. It must not know what a site is, why and when
// requests are terminated, or what they are answered with.
package inflight

import (
	"context"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
)

// Set is the requests of a site that are in flight. Its zero value is an empty
// set. It must not be copied.
type Set struct {
	// In several parts, so that requests seldom wait for one another.
	shards [16]shard

	// Every request writes the count, which therefore keeps a distance from what
	// every request reads.
	_     [64]byte
	count atomic.Int64
	_     [56]byte

	idleMu sync.Mutex
	idle   atomic.Pointer[chan struct{}] // nil while nobody waits; written under idleMu
}

// shard is a list of requests.
type shard struct {
	mu    sync.Mutex
	first *Request
	_     [48]byte
}

// Add puts a request into the set, which counts it until it is done. The request
// is to be served by [Request.Serve], with [Request.Context]. Requests with the same key
// stay together; see Take.
func (s *Set) Add(w http.ResponseWriter, r *http.Request, gate any, key string) *Request {
	q := newRequest(w, r, gate)
	q.Key = key
	s.put(q)
	return q
}

func (s *Set) put(q *Request) {
	q.set = s
	q.shard = uint8(rand.Uint32() % uint32(len(s.shards))) //nolint:gosec // no secret
	s.shards[q.shard].add(q)
	s.count.Add(1)
}

// Hold keeps the set from being idle until Release is called: it counts one more.
func (s *Set) Hold() { s.count.Add(1) }

// Release ends what Hold began.
func (s *Set) Release() {
	if s.count.Add(-1) == 0 {
		s.signalIdle()
	}
}

// take takes the request out of the set, and reports whether it was the last one.
func (s *Set) take(q *Request) (last bool) {
	s.shards[q.shard].remove(q)
	if s.count.Add(-1) > 0 {
		return false
	}
	s.signalIdle()
	return true
}

// CountOf returns how many requests with that key are in flight.
func (s *Set) CountOf(key string) (n int64) {
	for _, q := range s.All() {
		if q.Key == key {
			n++
		}
	}
	return n
}

// Take moves the requests with that key from another set into this one. No request may be
// moved by two at once.
func (s *Set) Take(from *Set, key string) {
	for _, q := range from.All() {
		if q.Key == key {
			q.move(s)
		}
	}
}

func (sh *shard) add(q *Request) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	q.next, sh.first = sh.first, q
	if q.next != nil {
		q.next.prev = q
	}
}

// remove leaves the request without a pointer to others: whoever holds on to it,
// by its context, say, must not hold on to them.
func (sh *shard) remove(q *Request) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if q.prev != nil {
		q.prev.next = q.next
	} else {
		sh.first = q.next
	}
	if q.next != nil {
		q.next.prev = q.prev
	}
	q.prev, q.next = nil, nil
}

// Count returns how many requests are in flight.
func (s *Set) Count() int64 { return s.count.Load() }

// All returns the requests that are in flight, in no order.
func (s *Set) All() []*Request {
	var all []*Request
	for i := range s.shards {
		all = s.shards[i].appendTo(all)
	}
	return all
}

func (sh *shard) appendTo(all []*Request) []*Request {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for q := sh.first; q != nil; q = q.next {
		all = append(all, q)
	}
	return all
}

// Has reports whether the request with that context is in the set by that key, where
// another gate further outside has put it.
func (s *Set) Has(ctx context.Context, key string) bool {
	for q := range Requests(ctx) {
		if q.Key == key && q.isIn(s) {
			return true
		}
	}
	return false
}

// Idle returns a channel that is closed once nothing is in flight, be it for a
// moment: one that came after Idle was called.
func (s *Set) Idle() <-chan struct{} {
	idle := s.waitIdle()
	s.signalIdle() // if nothing is in flight, nobody else does
	return idle
}

func (s *Set) waitIdle() <-chan struct{} {
	s.idleMu.Lock()
	defer s.idleMu.Unlock()
	idle := s.idle.Load()
	if idle == nil {
		fresh := make(chan struct{})
		idle = &fresh
		s.idle.Store(idle)
	}
	return *idle
}

// signalIdle wakes those who wait if nothing is in flight. A request that brought
// the count to 0 may be late to say so. So the count is looked at again, while
// nobody can begin to wait: who begins later must not be woken by what was before.
func (s *Set) signalIdle() {
	if s.idle.Load() == nil {
		return
	}
	s.idleMu.Lock()
	defer s.idleMu.Unlock()
	if idle := s.idle.Load(); idle != nil && s.count.Load() == 0 {
		s.idle.Store(nil)
		close(*idle)
	}
}
