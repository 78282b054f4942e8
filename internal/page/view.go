package page

import (
	"context"
	"sync"
	"sync/atomic"
)

// View shows a page for one site. It renders the page once for each content, not for each
// visitor.
type View struct {
	page   *Page
	cached atomic.Pointer[cachedView]
}

// cachedView is a page with its content, rendered once.
type cachedView struct {
	content Content
	copy    *Copy // nil for the default page

	once     sync.Once
	document *Document
}

// NewView returns a view of a custom page, or of the default page if p is nil.
func NewView(p *Page) *View { return &View{page: p} }

// HTML returns the custom page, or the default page if there is no copy of it. While the
// stored copy is being read, HTML waits for it, but no longer than ctx.
//
// If the content has not been rendered yet, the first caller renders it and the others wait.
// ended is closed when the content is no longer shown: what is rendered later is not kept.
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

// Render renders the page if the page or the content has changed, so that no visitor has to
// wait for it. Until it is done, visitors get the older copy with this content, if there is
// one.
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

// Forget drops the rendered page.
func (v *View) Forget() { v.cached.Store(nil) }

// awaitCopy returns the last good copy, nil if there is none. It waits until the stored one
// has been read.
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

// dropIfEnded drops what was rendered too late for Forget.
func (v *View) dropIfEnded(fresh *cachedView, ended <-chan struct{}) {
	select {
	case <-ended:
		v.cached.CompareAndSwap(fresh, nil)
	default:
	}
}

// render returns the page. The first call renders it.
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

// shows reports whether the view shows the content, possibly with an older copy: Render
// replaces that.
func (cached *cachedView) shows(content Content, c *Copy) bool {
	return cached != nil && cached.content == content && (c == nil || cached.copy != nil)
}
