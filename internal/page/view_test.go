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
	if got := string(v.HTML(t.Context(), content, nil).HTML); got != want {
		t.Errorf("a visitor gets %.200q, want %.200q", got, want)
	}
}

// A page is rendered, and compressed, once for each content and not for each visitor.
func TestVisitorsShareOneRendering(t *testing.T) {
	for name, v := range map[string]*View{"custom page": newTestView(messagePage), "default page": NewView(nil)} {
		var shown [64]*Document
		var visitors sync.WaitGroup
		for i := range shown {
			visitors.Go(func() { shown[i] = v.HTML(t.Context(), hello, nil) })
		}
		visitors.Wait()
		for _, document := range shown {
			if document != shown[0] {
				t.Fatalf("%s: visitors got several renderings, want one", name)
			}
		}
	}
}

// What Render has rendered is what visitors get, also when the copy has changed.
func TestPageIsRenderedBeforeVisitorsCome(t *testing.T) {
	v := newTestView(messagePage)
	for _, html := range []string{"<p>{maintenance.message}", "<b>{maintenance.message}"} {
		v.page.apply(testCopy(html), nil)
		if last := v.cached.Load(); last != nil {
			wantHTML(t, v, hello, "<p>Hello.") // without rendering the new copy
			if v.cached.Load() != last {
				t.Error("a visitor has rendered the new copy")
			}
		}
		v.Render(hello, nil)
		rendered := v.cached.Load()
		if rendered == nil || rendered.copy != v.page.Copy() {
			t.Fatal("Render has not rendered the copy")
		}
		v.Render(hello, nil)
		if v.HTML(t.Context(), hello, nil) != rendered.render() || v.cached.Load() != rendered {
			t.Error("a visitor has rendered the page again")
		}
	}
	wantHTML(t, v, hello, "<b>Hello.")
	wantHTML(t, v, Content{}, "<b>")

	v.page.apply(testCopy("<p>Mine."), nil)
	if v.page.Copy().document == nil {
		t.Error("a page without placeholders is not rendered before visitors come")
	}
	v.Render(hello, nil)
	wantHTML(t, v, hello, "<p>Mine.")
	if v.cached.Load() != nil {
		t.Error("a rendering is kept that nobody is shown")
	}
}

// What is rendered for a maintenance is not kept after it, also not for a visitor or a
// refresh that comes late.
func TestRenderingEndsWithTheMaintenance(t *testing.T) {
	over := make(chan struct{})
	v := newTestView(messagePage)
	v.Render(hello, over)
	close(over)
	v.Forget()
	if v.HTML(t.Context(), hello, over); v.cached.Load() != nil {
		t.Error("a visitor who comes late has the page kept")
	}
	if v.Render(hello, over); v.cached.Load() != nil {
		t.Error("a refresh that comes late has the page kept")
	}
}

func TestVisitorsWaitForTheCopyInStorage(t *testing.T) {
	stock := string(Default(Content{}).HTML)
	synctest.Test(t, func(t *testing.T) {
		for name, end := range map[string]func(*Page, context.CancelFunc){
			"there is one":        func(p *Page, _ context.CancelFunc) { p.Restore(testCopy("<p>Mine.")) },
			"there is none":       func(p *Page, _ context.CancelFunc) { p.Restore(nil) },
			"a newer one is here": func(p *Page, _ context.CancelFunc) { p.apply(testCopy("<p>Mine."), nil) },
			"the visitor leaves":  func(_ *Page, leave context.CancelFunc) { leave() },
		} {
			p := New(Source{})
			v := NewView(p)
			ctx, leave := context.WithCancel(t.Context())
			var shown *Document
			go func() { shown = v.HTML(ctx, Content{}, nil) }()
			synctest.Wait()
			if shown != nil {
				t.Fatalf("%s: a visitor does not wait", name)
			}
			end(p, leave)
			synctest.Wait()
			want := stock
			if p.Copy() != nil {
				want = "<p>Mine."
			}
			if shown == nil || string(shown.HTML) != want {
				t.Errorf("%s: a visitor gets %v, want %s", name, shown, want)
			}
			leave()
		}
	})
}

// The default page that was shown for want of a copy does not stay.
func TestCopyThatComesLateIsShown(t *testing.T) {
	v := newTestView(nil)
	wantHTML(t, v, hello, string(Default(hello).HTML))
	v.page.Restore(testCopy("<p>Old. {maintenance.message}"))
	wantHTML(t, v, hello, "<p>Old. Hello.")
	v.page.apply(testCopy("<p>New."), nil)
	v.page.Restore(testCopy("<p>Old."))
	wantHTML(t, v, hello, "<p>New.")
}
