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

// cachedView is what a view shows of a content. It is immutable, and rendered once.
type cachedView struct {
	content  Content
	copy     *Copy // nil if document is the default page
	document func() *Document
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
	c := v.lastGood(ctx)
	if c != nil && c.document != nil {
		return c.document
	}
	last := v.cached.Load()
	if last.shows(content, c) {
		return last.document()
	}
	fresh := newCachedView(content, c)
	if !v.cached.CompareAndSwap(last, fresh) {
		if last = v.cached.Load(); last.shows(content, c) {
			return last.document()
		}
	}
	document := fresh.document()
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
			last.document()
			return
		}
		fresh := newCachedView(content, c)
		fresh.document()
		if v.cached.CompareAndSwap(last, fresh) {
			v.dropIfEnded(fresh, ended)
			return
		}
	}
}

// Forget drops what has been rendered.
func (v *View) Forget() { v.cached.Store(nil) }

// lastGood returns the last good copy of a custom page, nil if there is none.
func (v *View) lastGood(ctx context.Context) *Copy {
	if v.page == nil {
		return nil
	}
	if c := v.page.copy.Load(); c != nil {
		return c
	}
	select {
	case <-v.page.loaded:
	case <-ctx.Done():
	}
	return v.page.copy.Load()
}

// dropIfEnded keeps nothing that was rendered too late for Forget.
func (v *View) dropIfEnded(fresh *cachedView, ended <-chan struct{}) {
	select {
	case <-ended:
		v.cached.CompareAndSwap(fresh, nil)
	default:
	}
}

func newCachedView(content Content, c *Copy) *cachedView {
	return &cachedView{content, c, sync.OnceValue(func() *Document {
		if c == nil {
			return Default(content)
		}
		return c.render(content)
	})}
}

// shows reports whether the view shows the content, if with an older copy. A refresh
// renders the newer one.
func (cached *cachedView) shows(content Content, c *Copy) bool {
	return cached != nil && cached.content.equal(content) && (c == nil || cached.copy != nil)
}
