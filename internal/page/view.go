package page

import (
	"context"
	"sync"
	"sync/atomic"
)

// View is a page as one site shows it. It renders the page once for each content and
// not for each visitor.
type View struct {
	page   *Page
	cached atomic.Pointer[cachedView]
}

// cachedView is what a view shows of a content, rendered once.
type cachedView struct {
	content Content
	copy    *Copy // nil for the default page

	once     sync.Once
	document *Document
}

// NewView returns a view of a custom page, or of the default page if p is nil.
func NewView(p *Page) *View { return &View{page: p} }

// HTML returns the custom page, or the default page as long as there is no copy of it.
// It waits for the copy in storage while that is being read, but not longer than ctx.
//
// If nobody has rendered this content yet, the first visitor does, and the others wait
// for that. ended is closed when the content is over: what is rendered after that is
// not kept.
func (v *View) HTML(ctx context.Context, content Content, ended <-chan struct{}) *Document {
	var c *Copy
	if v.page != nil {
		if c = v.page.awaitCopy(ctx); c != nil && c.document != nil {
			return c.document
		}
	}
	last := v.cached.Load()
	if last.shows(content, c) {
		return last.render()
	}
	fresh := &cachedView{content: content, copy: c}
	if !v.cached.CompareAndSwap(last, fresh) {
		if last = v.cached.Load(); last.shows(content, c) {
			return last.render()
		}
	}
	document := fresh.render()
	v.dropIfEnded(fresh, ended)
	return document
}

// Render renders the page if it has changed, or the content has, so that no visitor
// has to. Visitors get what there was of this content until it is done.
func (v *View) Render(content Content, ended <-chan struct{}) {
	for {
		var c *Copy
		if v.page != nil {
			c = v.page.copy.Load()
		}
		if c != nil && c.document != nil {
			v.Forget()
			return
		}
		last := v.cached.Load()
		if last.shows(content, c) && last.copy == c {
			last.render()
			return
		}
		fresh := &cachedView{content: content, copy: c}
		fresh.render()
		if v.cached.CompareAndSwap(last, fresh) {
			v.dropIfEnded(fresh, ended)
			return
		}
	}
}

// Forget drops what has been rendered.
func (v *View) Forget() { v.cached.Store(nil) }

// awaitCopy returns the last good copy, nil if there is none. It waits for the one in
// storage.
func (p *Page) awaitCopy(ctx context.Context) *Copy {
	if c := p.copy.Load(); c != nil {
		return c
	}
	select {
	case <-p.loaded:
	case <-ctx.Done():
	}
	return p.copy.Load()
}

// dropIfEnded keeps nothing that was rendered too late for Forget.
func (v *View) dropIfEnded(fresh *cachedView, ended <-chan struct{}) {
	select {
	case <-ended:
		v.cached.CompareAndSwap(fresh, nil)
	default:
	}
}

// render returns the page, which it renders for whoever comes first.
func (cached *cachedView) render() *Document {
	cached.once.Do(func() {
		if cached.copy == nil {
			cached.document = Default(cached.content)
		} else {
			cached.document = cached.copy.render(cached.content)
		}
	})
	return cached.document
}

// shows reports whether the view shows the content, if with an older copy. A refresh
// renders the newer one.
func (cached *cachedView) shows(content Content, c *Copy) bool {
	return cached != nil && cached.content == content && (c == nil || cached.copy != nil)
}
