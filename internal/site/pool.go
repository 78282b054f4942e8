package site

import (
	"iter"
	"slices"
	"sync"
	"time"
)

// Pool holds a value for the name of each site that a config refers to, or that is in
// use otherwise. It is what makes state outlive a config reload.
//
// A handler refers to a name or to a template, whose value stands for all sites of the
// template that are not in the pool: those that were never switched. Sites come into the
// pool when there is something to know of them, never because of a request. One that comes
// takes over its requests from the templates, and one that goes leaves them to a template.
type Pool[T member[T]] struct {
	create func(name string, unset bool) T
	byName sync.Map // *Entry[T]; written under mu

	mu        sync.Mutex
	templates []*Entry[T]
}

// member is what a pool has to know of its values.
type member[T any] interface {
	// Reload has the record read again: nobody has followed it.
	Reload(now time.Time)

	// IsUnset reports whether the site is known to have no record.
	IsUnset() bool

	// Idles reports whether nothing is to be known of the site, but that it has no record.
	Idles() bool

	// Take takes over the requests of a site from another value. Complete is called when it
	// has all that were there before.
	Take(from T, name string)
	Complete()
}

// Entry is a place in a pool.
type Entry[T any] struct {
	Value T

	name *Name

	// Guarded by the pool:
	handlers int // of loaded configs
	retained int // by what goes on for the site otherwise
}

// Name returns the name or the template.
func (e *Entry[T]) Name() *Name { return e.name }

// NewPool returns a pool whose values are made by create, for sites that are known to have
// no record or for others.
func NewPool[T member[T]](create func(name string, unset bool) T) *Pool[T] {
	return &Pool[T]{create: create}
}

// Find returns the entry of that name, nil if there is none. It takes no lock, as requests
// ask for it.
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

// Acquire returns the entry of that name for a handler, which must release it. The record
// is read again if no config has referred to the site until now.
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

// Need returns the entry of a site that a config refers to, and keeps it until it is let go;
// nil if no config does. Trusting says that a new one has no record if templates know so.
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

// entry returns the entry of that name. A new one is known to have no record if one of its
// templates knows that of its sites, and is trusted.
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

// yielding returns the templates of a name that handlers refer to.
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

// of yields the entries that a handler of e refers to.
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

// Release ends what Acquire began. Release and LetGo return the entries that nobody refers to
// any more. They stay in the pool, and as they are, until they are forgotten.
func (p *Pool[T]) Release(e *Entry[T]) (unused []*Entry[T]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.handlers--
	for other := range p.of(e) {
		unused = append(unused, p.tidy(other)...)
	}
	return unused
}

// Retain keeps an entry until it is let go. It reports false, and does nothing, if no
// config refers to the site.
func (p *Pool[T]) Retain(e *Entry[T]) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.Find(e.name.text) != e || !p.isNamed(e) {
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

// LetGo ends what Need, Retain or Hold began.
func (p *Pool[T]) LetGo(e *Entry[T]) (unused []*Entry[T]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.retained--
	return p.tidy(e)
}

// Tidy drops an entry of which there is nothing to know any more.
func (p *Pool[T]) Tidy(e *Entry[T]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tidy(e)
}

// tidy returns the entry if nobody refers to it. It drops one that only templates refer to, if
// they know as much without it.
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

// Forget drops an entry that nobody refers to.
func (p *Pool[T]) Forget(e *Entry[T]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.handlers+e.retained == 0 && p.Find(e.name.text) == e && !p.isNamed(e) {
		p.drop(e)
	}
}

// Restore puts an entry back that has been forgotten, since it has a request of a site again;
// if there is another one of its name, that takes over the request. Like Release, it returns
// what nobody refers to.
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

// Len returns the number of entries.
func (p *Pool[T]) Len() (n int) {
	for range p.All() {
		n++
	}
	return n
}
