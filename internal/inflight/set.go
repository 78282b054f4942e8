// Package inflight keeps track of a site's requests in flight. It counts them, signals when
// none is left, and terminates those that do not end.
//
// Three things can happen to a [Request], in any order. Its handler returns: from then on the
// connection may serve another request. It is done: it is no longer in flight, and is left
// alone. It is terminated: its context is canceled, nothing more is sent for it, and if its
// handler still waits for the client, the connection is broken.
//
// The package promises that a [Set] counts a request from Add to Done, that Idle is not
// signaled while there is always a request in flight, and that what a terminated request has
// sent is either nothing or visibly incomplete.
//
// It depends only on net/http. It does not know what a site is, why and when requests are
// terminated, or how they are answered.
package inflight

import (
	"context"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
)

// Set is a set of requests in flight. The zero value is an empty set. It must not be copied.
type Set struct {
	// There are several, so that requests rarely wait for each other's lock.
	shards [16]shard

	// The padding keeps the count, which every request writes, off the cache lines of what
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

// Add adds a request to the set, which counts it until it is done. The caller must serve it by
// [Request.Serve], with [Request.Context]. Take moves requests by their key.
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

// Hold keeps the set from being idle until Release: it adds one to the count.
func (s *Set) Hold() { s.count.Add(1) }

// Release undoes Hold.
func (s *Set) Release() {
	if s.count.Add(-1) == 0 {
		s.signalIdle()
	}
}

// take removes the request from the set.
func (s *Set) take(q *Request) {
	s.shards[q.shard].remove(q)
	if s.count.Add(-1) == 0 {
		s.signalIdle()
	}
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

// Take moves the requests with that key from another set into this one. Two calls must not move
// the same request at the same time.
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

// remove also clears the request's pointers, so that a reference to it, by its context for
// example, does not keep other requests in memory.
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

// Has reports whether a gate further outside has added the request with that context to the set,
// with that key.
func (s *Set) Has(ctx context.Context, key string) bool {
	for q := range Requests(ctx) {
		if q.Key == key && q.isIn(s) {
			return true
		}
	}
	return false
}

// Idle returns a channel that is closed at the first moment, from the call on, at which
// nothing is in flight.
func (s *Set) Idle() <-chan struct{} {
	idle := s.waitIdle()
	s.signalIdle() // if nothing is in flight, no request will do it
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

// signalIdle closes the channel of Idle if nothing is in flight. A request may call it long
// after it brought the count to 0. So signalIdle reads the count again under the lock: a
// channel from a later call of Idle must not be closed for an earlier moment.
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
