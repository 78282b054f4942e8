// Package page provides what visitors read while a site is in maintenance. It picks the
// representation that a client prefers and renders it. It fetches custom pages and keeps the
// last good copy of each.
//
// A loop around [Page.Next] fetches a custom page. Visitors never cause a fetch and never wait
// for one: a [View] shows them the last good copy, or the default page if there is none.
//
// The package does not know sites, requests, storage or logs. It returns results, and its
// caller stores, logs and serves them.
package page

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

const (
	refreshInterval = 10 * time.Minute
	minRetry        = 5 * time.Second
)

// Page is a custom page: its source and its last good copy.
type Page struct {
	source     Source
	copy       atomic.Pointer[Copy]
	loaded     chan struct{} // closed when there is a copy, or it is known that none is stored
	refreshNow chan struct{}

	// Used only by the loop around Next.
	pause    time.Duration
	failures int

	mu        sync.Mutex
	fetchedAt time.Time // when the copy was last known to be current
	refreshed bool      // an attempt to refresh has ended
	failure   error     // of the last attempt
	isLoaded  bool
	begun     int           // number of attempts begun
	ended     int           // number of attempts ended
	hasEnded  chan struct{} // closed when the next attempt ends
}

// New returns a page without a copy. Visitors wait until there is one, or until Restore has
// been called.
func New(source Source) *Page {
	return &Page{
		source:     source,
		loaded:     make(chan struct{}),
		refreshNow: make(chan struct{}, 1),
		hasEnded:   make(chan struct{}),
	}
}

// Source returns the source of the page.
func (p *Page) Source() Source { return p.source }

// Copy returns the last good copy, nil if there is none.
func (p *Page) Copy() *Copy { return p.copy.Load() }

// Restore shows a stored copy, unless there is a copy already. If c is nil and there is none,
// visitors stop waiting and get the default page.
func (p *Page) Restore(c *Copy) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c != nil && p.copy.Load() == nil {
		p.fetchedAt = c.FetchedAt
		p.show(c)
	}
	p.markLoaded()
}

// Result is the result of an attempt to refresh a page.
type Result struct {
	Err          error // nil if the copy is current
	FailedBefore bool  // the previous attempt failed
}

// Next waits until the page is due, refreshes it, and returns the result. It returns false if
// ctx ends first.
//
// A page is due at once the first time, then every 10 minutes and whenever RefreshNow is
// called. After a failure it is due in 5 seconds, then after twice as long each time, up to
// 10 minutes. Calls must not overlap.
func (p *Page) Next(ctx context.Context, f *Fetcher) (Result, bool) {
	if !p.awaitDue(ctx) {
		return Result{}, false
	}
	p.begin()
	c, err := f.fetch(ctx, p.source, p.copy.Load())
	if ctx.Err() != nil {
		return Result{}, false // the error says nothing about the page
	}
	p.pause = refreshInterval
	if err != nil {
		p.pause = retryPause(p.failures)
		p.failures++
	} else {
		p.failures = 0
	}
	return p.apply(c, err), true
}

// RefreshNow makes the page due at once.
func (p *Page) RefreshNow() {
	select {
	case p.refreshNow <- struct{}{}:
	default:
	}
}

// Refresh makes the page due at once, and waits until an attempt that began after the call has
// ended. It returns false if ctx ends first.
func (p *Page) Refresh(ctx context.Context) bool {
	p.mu.Lock()
	attempt := p.begun + 1
	p.mu.Unlock()
	p.RefreshNow()
	for {
		p.mu.Lock()
		ended, hasEnded := p.ended, p.hasEnded
		p.mu.Unlock()
		if ended >= attempt {
			return true
		}
		select {
		case <-hasEnded:
		case <-ctx.Done():
			return false
		}
	}
}

func (p *Page) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.begun++
}

func (p *Page) awaitDue(ctx context.Context) bool {
	timer := time.NewTimer(p.pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.refreshNow:
		p.failures = 0
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// retryPause returns how long to wait after a failure that follows n others.
func retryPause(n int) time.Duration {
	return min(minRetry<<min(n, 10), refreshInterval)
}

// apply applies what fetch returned: a copy, nil if the page has not changed, or an error.
func (p *Page) apply(c *Copy, err error) Result {
	p.mu.Lock()
	defer p.mu.Unlock()
	result := Result{Err: err, FailedBefore: p.failure != nil}
	p.refreshed, p.failure = true, err
	p.ended++
	close(p.hasEnded)
	p.hasEnded = make(chan struct{})
	if err != nil {
		return result
	}
	p.fetchedAt = now()
	if last := p.copy.Load(); c != nil && (last == nil || !c.SameAs(last)) {
		p.show(c)
		p.markLoaded()
	}
	return result
}

// show prepares a copy and shows it.
func (p *Page) show(c *Copy) {
	c.prepare()
	p.copy.Store(c)
}

func (p *Page) markLoaded() {
	if !p.isLoaded {
		p.isLoaded = true
		close(p.loaded)
	}
}

// Status is the status of a custom page in the admin API.
type Status struct {
	Source       string    `json:"source"`
	State        string    `json:"state"` // ok, stale, fetching or failed
	FetchedAt    time.Time `json:"fetched_at,omitzero"`
	Error        string    `json:"error,omitempty"`
	ShowsMessage bool      `json:"shows_message"`
}

// Status returns the status of the page.
func (p *Page) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Status{Source: p.source.String(), ShowsMessage: true}
	if p.failure != nil {
		s.Error = p.failure.Error()
	}
	c := p.copy.Load()
	if c != nil {
		s.FetchedAt, s.ShowsMessage = p.fetchedAt, c.count(messagePlaceholder) > 0
	}
	switch {
	case c != nil && p.refreshed && p.failure == nil:
		s.State = "ok"
	case c != nil:
		s.State = "stale"
	case p.failure != nil:
		s.State = "failed"
	default:
		s.State = "fetching"
	}
	return s
}
