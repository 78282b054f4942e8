package site

import (
	"sync"
	"time"
)

// Pool holds a value for the name of each site that a config refers to, or that is in
// use otherwise. It is what makes state outlive a config reload.
type Pool[T reloader] struct {
	mu     sync.Mutex
	create func(name string) T
	byName map[string]*Entry[T]
}

type reloader interface{ Reload(now time.Time) }

// Entry is a place in a pool.
type Entry[T any] struct {
	Value T

	// Guarded by the pool:
	name     string
	handlers int // of loaded configs
	retained int // by what goes on for the site otherwise
}

// NewPool returns a pool whose values are made by create.
func NewPool[T reloader](create func(name string) T) *Pool[T] {
	return &Pool[T]{create: create, byName: make(map[string]*Entry[T])}
}

// Acquire returns the entry of that name for a handler, which must release it. The record
// is read again if no config has referred to the site until now: nobody has followed it.
func (p *Pool[T]) Acquire(name string, now time.Time) *Entry[T] {
	p.mu.Lock()
	defer p.mu.Unlock()
	e, ok := p.byName[name]
	if !ok {
		e = &Entry[T]{Value: p.create(name), name: name}
		p.byName[name] = e
	}
	if e.handlers == 0 {
		e.Value.Reload(now)
	}
	e.handlers++
	return e
}

// Release ends what Acquire began. Release and LetGo report whether nobody refers to the
// entry any more. It stays in the pool, and as it is, until it is forgotten.
func (p *Pool[T]) Release(e *Entry[T]) (last bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.handlers--
	return e.unused()
}

// Retain keeps an entry until it is let go. It reports false, and does nothing, if no
// config refers to the site.
func (p *Pool[T]) Retain(e *Entry[T]) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.handlers == 0 {
		return false
	}
	e.retained++
	return true
}

// Hold keeps an entry that the caller has already acquired or retained, also if no config
// refers to the site any more, until it is let go once more.
func (p *Pool[T]) Hold(e *Entry[T]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.retained++
}

// LetGo ends what Retain or Hold began.
func (p *Pool[T]) LetGo(e *Entry[T]) (last bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.retained--
	return e.unused()
}

// Forget drops an entry that nobody refers to.
func (p *Pool[T]) Forget(e *Entry[T]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.unused() && p.byName[e.name] == e {
		delete(p.byName, e.name)
	}
}

func (e *Entry[T]) unused() bool { return e.handlers+e.retained == 0 }

// Len returns the number of entries.
func (p *Pool[T]) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.byName)
}
