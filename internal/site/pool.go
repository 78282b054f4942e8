package site

import (
	"iter"
	"slices"
	"sync"
	"time"
)

// Pool holds a value for the name of each site that a config refers to, or that is
// otherwise in use. State outlives a config reload in it.
//
// A handler refers to a name or to a template. The value of a template stands for all its
// sites that are not in the pool: those that were never switched. A site enters the pool
// when there is something to know about it, never because of a request. A site that enters
// takes over its requests from the templates; one that leaves hands them to a template.
type Pool[T member[T]] struct {
	create func(name string, unset bool) T
	byName sync.Map // *Entry[T]; written under mu

	mu        sync.Mutex
	templates []*Entry[T]
}

// member is what a pool needs from its values.
type member[T any] interface {
	// Reload marks the record as not read: it may have changed while no config followed it.
	Reload(now time.Time)

	// IsUnset reports whether the site is known to have no record.
	IsUnset() bool

	// Idles reports whether the only thing to know about the site is that it has no record.
	Idles() bool

	// Take takes over the requests of a site from another value. The pool calls Complete when
	// it has taken all that existed before.
	Take(from T, name string)
	Complete()
}

// Entry is a place in a pool.
type Entry[T any] struct {
	Value T

	name *Name

	// Guarded by the pool:
	handlers int // of loaded configs
	retained int // by other work on the site
}

// Name returns the name or the template.
func (e *Entry[T]) Name() *Name { return e.name }

// NewPool returns a pool that makes its values with create. Unset says that the site is known
// to have no record.
func NewPool[T member[T]](create func(name string, unset bool) T) *Pool[T] {
	return &Pool[T]{create: create}
}

// Find returns the entry of that name, nil if there is none. Requests call it, so it takes
// no lock.
func (p *Pool[T]) Find(name string) *Entry[T] {
	e, _ := p.byName.Load(name)
	found, _ := e.(*Entry[T])
	return found
}

// All yields the entries.
func (p *Pool[T]) All() iter.Seq[*Entry[T]] {
	return func(yield func(*Entry[T]) bool) {
		p.byName.Range(func(_, e any) bool { return yield(e.(*Entry[T])) })
	}
}

// Acquire returns the entry of that name for a handler, which must release it. If no config
// referred to the site until now, Acquire reloads it.
func (p *Pool[T]) Acquire(name *Name, now time.Time) *Entry[T] {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.entry(name, true)
	for other := range p.of(e) {
		if !p.isNamed(other) {
			other.Value.Reload(now)
		}
	}
	e.handlers++
	return e
}

// Need returns the entry of a site that a config refers to, and retains it until LetGo. It
// returns nil if no config does. For trusting, see entry.
func (p *Pool[T]) Need(name string, trusting bool) *Entry[T] {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.Find(name)
	if e == nil {
		if len(p.yielding(name)) == 0 {
			return nil
		}
		e = p.entry(&Name{text: name}, trusting)
	}
	if !p.isNamed(e) {
		return nil
	}
	e.retained++
	return e
}

// entry returns the entry of that name. If trusting, a new site is known to have no record if
// one of its templates knows that about all its sites.
func (p *Pool[T]) entry(name *Name, trusting bool) *Entry[T] {
	if e := p.Find(name.text); e != nil {
		return e
	}
	e := &Entry[T]{Value: p.create(name.text, trusting && p.isUnset(name.text)), name: name}
	p.byName.Store(name.text, e)
	if name.IsTemplate() {
		p.templates = append(p.templates, e)
		e.Value.Complete()
		return e
	}
	for _, t := range p.templates {
		e.Value.Take(t.Value, name.text)
	}
	e.Value.Complete()
	return e
}

// yielding returns the templates that can yield a name and that handlers refer to.
func (p *Pool[T]) yielding(name string) (found []*Entry[T]) {
	for _, t := range p.templates {
		if t.handlers > 0 && t.name.text != name && t.name.Yields(name) {
			found = append(found, t)
		}
	}
	return found
}

func (p *Pool[T]) isUnset(name string) bool {
	return slices.ContainsFunc(p.yielding(name), func(t *Entry[T]) bool { return t.Value.IsUnset() })
}

// isNamed reports whether a config refers to the site.
func (p *Pool[T]) isNamed(e *Entry[T]) bool {
	return e.handlers > 0 || len(p.yielding(e.name.text)) > 0
}

// of yields e and, if it is a template without handlers, the sites that it can yield: those
// come into use with its first handler and go out of use with its last.
func (p *Pool[T]) of(e *Entry[T]) iter.Seq[*Entry[T]] {
	return func(yield func(*Entry[T]) bool) {
		if !yield(e) || !e.name.IsTemplate() || e.handlers > 0 {
			return
		}
		for other := range p.All() {
			if e.name.Yields(other.name.text) && !yield(other) {
				return
			}
		}
	}
}

// Release undoes Acquire. Release and LetGo return the entries that are no longer in use.
// These stay in the pool unchanged until Forget.
func (p *Pool[T]) Release(e *Entry[T]) (unused []*Entry[T]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.handlers--
	for other := range p.of(e) {
		unused = append(unused, p.tidy(other)...)
	}
	return unused
}

// Retain keeps an entry until LetGo. It does nothing and returns false if no config refers to
// the site.
func (p *Pool[T]) Retain(e *Entry[T]) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.Find(e.name.text) != e || !p.isNamed(e) {
		return false
	}
	e.retained++
	return true
}

// Hold keeps an entry that the caller has already acquired or retained until another LetGo,
// even if no config refers to the site any more.
func (p *Pool[T]) Hold(e *Entry[T]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.retained++
}

// LetGo undoes Need, Retain or Hold.
func (p *Pool[T]) LetGo(e *Entry[T]) (unused []*Entry[T]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.retained--
	return p.tidy(e)
}

// Tidy drops an entry if there is nothing left to know about its site.
func (p *Pool[T]) Tidy(e *Entry[T]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tidy(e)
}

// tidy returns the entry if it is not in use. If only templates refer to it and they know as
// much without it, tidy drops it.
func (p *Pool[T]) tidy(e *Entry[T]) (unused []*Entry[T]) {
	switch {
	case e.handlers+e.retained > 0 || p.Find(e.name.text) != e:
	case !p.isNamed(e):
		return []*Entry[T]{e}
	case e.Value.Idles() && p.isUnset(e.name.text):
		p.drop(e)
	}
	return nil
}

// Forget drops an entry that is not in use.
func (p *Pool[T]) Forget(e *Entry[T]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.handlers+e.retained == 0 && p.Find(e.name.text) == e && !p.isNamed(e) {
		p.drop(e)
	}
}

// Restore puts back a forgotten entry that has a request of the named site again. If the pool
// has another entry of that name by now, that entry takes over the request. Like Release, it
// returns what is not in use.
func (p *Pool[T]) Restore(e *Entry[T], name string) (unused []*Entry[T]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch known := p.Find(e.name.text); known {
	case e:
		return nil
	case nil:
		p.byName.Store(e.name.text, e)
		if e.name.IsTemplate() {
			p.templates = append(p.templates, e)
		}
		return p.tidy(e)
	default:
		known.Value.Take(e.Value, name)
		return nil
	}
}

func (p *Pool[T]) drop(e *Entry[T]) {
	p.byName.Delete(e.name.text)
	p.templates = slices.DeleteFunc(p.templates, func(t *Entry[T]) bool { return t == e })
	if templates := p.yielding(e.name.text); len(templates) > 0 {
		templates[0].Value.Take(e.Value, e.name.text)
	}
}
