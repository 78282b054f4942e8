package page

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
)

var (
	messagePage = testCopy("<p>{maintenance.message}")
	hello       = Content{Message: "Hello."}
)

func wantHTML(t *testing.T, v *View, content Content, want string) {
	t.Helper()
	wantEqual(t, "what a visitor gets", string(v.HTML(t.Context(), content, nil).HTML), want)
}

// A page is rendered, and compressed, once for each content and not for each visitor.
func TestVisitorsShareOneRendering(t *testing.T) {
	for i := range 200 {
		v := NewView(nil)
		if i%2 == 0 {
			v = newTestView(messagePage)
		}
		var shown [8]*Document
		var visitors sync.WaitGroup
		begin := make(chan struct{})
		for i := range shown {
			visitors.Go(func() {
				<-begin
				shown[i] = v.HTML(t.Context(), hello, nil)
			})
		}
		close(begin)
		visitors.Wait()
		for _, document := range shown {
			if document != shown[0] {
				t.Fatal("visitors got several renderings, want one")
			}
		}
	}
}

// Visitors get what Render has rendered, even if the copy has changed since.
func TestPageIsRenderedBeforeVisitorsCome(t *testing.T) {
	v := newTestView(messagePage)
	for _, html := range []string{"<p>{maintenance.message}", "<b>{maintenance.message}"} {
		v.page.apply(testCopy(html), nil)
		if last := v.cached.Load(); last != nil {
			wantHTML(t, v, hello, "<p>Hello.") // without rendering the new copy
			wantEqual(t, "what is rendered when a visitor has come", v.cached.Load(), last)
		}
		v.Render(hello, nil)
		rendered := v.cached.Load()
		wantEqual(t, "the copy that is rendered", rendered.copy, v.page.Copy())
		v.Render(hello, nil)
		wantEqual(t, "what a visitor gets", v.HTML(t.Context(), hello, nil), rendered.render())
		wantEqual(t, "what is rendered", v.cached.Load(), rendered)
	}
	wantHTML(t, v, hello, "<b>Hello.")
	wantHTML(t, v, Content{}, "<b>")

	// A page without placeholders is rendered only once.
	v.page.apply(testCopy("<p>Mine."), nil)
	wantEqual(t, "it is to be rendered", v.page.Copy().document == nil, false)
	v.Render(hello, nil)
	wantHTML(t, v, hello, "<p>Mine.")
	wantEqual(t, "what is kept that nobody is shown", v.cached.Load(), nil)
}

// A page rendered for a maintenance is not kept after its end, even if a late visitor or refresh
// renders it.
func TestRenderingEndsWithTheMaintenance(t *testing.T) {
	over := make(chan struct{})
	v := newTestView(messagePage)
	v.Render(hello, over)
	close(over)
	v.Forget()
	v.HTML(t.Context(), hello, over)
	wantEqual(t, "what a visitor who comes late has kept", v.cached.Load(), nil)
	v.Render(hello, over)
	wantEqual(t, "what a refresh that comes late has kept", v.cached.Load(), nil)
}

func TestVisitorsWaitForTheCopyInStorage(t *testing.T) {
	stock := string(Default(Content{}).HTML)
	synctest.Test(t, func(t *testing.T) {
		for _, test := range []struct {
			end  func(*Page, context.CancelFunc)
			want string
		}{
			{func(p *Page, _ context.CancelFunc) { p.Restore(testCopy("<p>Stored.")) }, "<p>Stored."},
			{func(p *Page, _ context.CancelFunc) { p.apply(testCopy("<p>Newer."), nil) }, "<p>Newer."},
			{func(p *Page, _ context.CancelFunc) { p.Restore(nil) }, stock},
			{func(_ *Page, leave context.CancelFunc) { leave() }, stock},
		} {
			p := New(Source{})
			ctx, leave := context.WithCancel(t.Context())
			shown := make(chan string, 1)
			go func() { shown <- string(NewView(p).HTML(ctx, Content{}, nil).HTML) }()
			synctest.Wait()
			wantEqual(t, "visitors who do not wait", len(shown), 0)
			test.end(p, leave)
			wantEqual(t, "what a visitor gets", <-shown, test.want)
			leave()
		}
	})
}

// The default page is replaced as soon as there is a copy.
func TestCopyThatComesLateIsShown(t *testing.T) {
	v := newTestView(nil)
	wantHTML(t, v, hello, string(Default(hello).HTML))
	v.page.Restore(testCopy("<p>Old. {maintenance.message}"))
	wantHTML(t, v, hello, "<p>Old. Hello.")
	v.page.apply(testCopy("<p>New."), nil)
	v.page.Restore(testCopy("<p>Old."))
	wantHTML(t, v, hello, "<p>New.")
}
