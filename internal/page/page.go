// Package page is what visitors read while a site is in maintenance: which
// representation a client prefers, what is in it, and, for a custom page, where it comes
// from, when it is fetched, and its last good copy.
//
// A custom page is fetched by a loop around [Page.Next]. Visitors never wait for that,
// nor cause it: a [View] shows them the last good copy, or the default page as long as
// there is none.
//
// The package does not know of sites, requests, storage or logs. It returns what it has
// found, and its caller stores, logs and answers it.
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

// Page is a custom page: where it comes from, and its last good copy.
type Page struct {
	source     Source
	copy       atomic.Pointer[Copy]
	loaded     chan struct{} // closed when there is a copy, or it is known that none is stored
	refreshNow chan struct{}

	// Of the loop around Next alone.
	pause    time.Duration
	failures int

	mu        sync.Mutex
	fetchedAt time.Time // when the copy was last known to be the page
	refreshed bool      // an attempt to refresh has ended
	failure   error     // of the last attempt
	isLoaded  bool
	begun     int           // attempts
	ended     int           // of these
	hasEnded  chan struct{} // closed when one more has
}

// New returns a page without a copy. Visitors wait until Restore has been called.
func New(source Source) *Page {
	return &Page{
		source:     source,
		loaded:     make(chan struct{}),
		refreshNow: make(chan struct{}, 1),
		hasEnded:   make(chan struct{}),
	}
}

// Source returns where the page comes from.
func (p *Page) Source() Source { return p.source }

// Copy returns the last good copy, nil if there is none.
func (p *Page) Copy() *Copy { return p.copy.Load() }

// Restore shows a copy that is not fresh, unless there is one already. Without one (c is
// nil) visitors get the default page, and do not wait any longer.
func (p *Page) Restore(c *Copy) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c != nil && p.copy.Load() == nil {
		p.fetchedAt = c.FetchedAt
		p.show(c)
	}
	p.markLoaded()
}

// Result is how an attempt to refresh a page ended.
type Result struct {
	Err          error // nil if the copy is the page as it is now
	FailedBefore bool  // the attempt before this one failed
}

// Next waits until the page is due, refreshes it, and returns how that ended. It
// returns false if ctx ends before.
//
// A page is due at once for the first time, every 10 minutes and whenever RefreshNow
// asks for it; after a failure in 5 seconds, and then after twice as long each time, up
// to 10 minutes. Calls must not overlap.
func (p *Page) Next(ctx context.Context, f *Fetcher) (Result, bool) {
	if !p.awaitDue(ctx) {
		return Result{}, false
	}
	p.begin()
	c, err := f.fetch(ctx, p.source, p.copy.Load())
	if ctx.Err() != nil {
		return Result{}, false // and the error says nothing about the page
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

// RefreshNow makes the page due.
func (p *Page) RefreshNow() {
	select {
	case p.refreshNow <- struct{}{}:
	default:
	}
}

// Refresh makes the page due, and returns when an attempt that has begun since has ended. It
// returns false if ctx ends before.
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

// retryPause returns how long to wait after n failures and another one.
func retryPause(n int) time.Duration {
	return min(minRetry<<min(n, 10), refreshInterval)
}

// apply applies what an attempt to refresh the page returned: a copy, nil if it has not
// changed, or an error.
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

// show shows a copy that is ready to be shown.
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

// Status is a custom page as the admin API answers it.
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
