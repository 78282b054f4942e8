package e2e

import (
	"context"
	"fmt"
	"testing"

	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
)

// visitor is a tab of the browser. What it keeps is not shared with those of
// other tests, as each site has a port of its own.
type visitor struct {
	t   *testing.T
	tab context.Context
}

func newVisitor(t *testing.T) *visitor {
	t.Helper()
	tab, leave := chromedp.NewContext(browser)
	t.Cleanup(leave)
	// Without a deadline, which would be that of the tab.
	if err := chromedp.Run(tab); err != nil {
		t.Fatal(err)
	}
	v := &visitor{t, tab}
	t.Cleanup(v.report)
	// A tab behind another is not painted, so these tests cannot be parallel.
	if err := v.run(page.BringToFront()); err != nil {
		t.Fatal(err)
	}
	return v
}

// opens has the visitor open a page, with all that it loads, and fails the test
// if its status is another.
func (v *visitor) opens(url string, want int) {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.tab, patience)
	defer cancel()
	response, err := chromedp.RunResponse(ctx, chromedp.Navigate(url))
	if err != nil {
		v.t.Fatalf("opening %s: %s", url, err)
	}
	if response.Status != int64(want) {
		v.t.Fatalf("%s: got %d %s, want %d", url, response.Status, response.StatusText, want)
	}
}

// sees waits until an element of the page shows this text.
func (v *visitor) sees(selector, text string) {
	v.t.Helper()
	v.awaits(fmt.Sprintf("document.querySelector(%q)?.innerText === %q", selector, text))
}

// awaits waits until a JavaScript condition holds.
func (v *visitor) awaits(condition string) {
	v.t.Helper()
	eventually(v.t, "the browser has "+condition, func() bool {
		holds, err := v.evaluate(condition)
		// The page that is asked may be on its way out.
		return err == nil && holds
	})
}

// has fails the test if a JavaScript condition does not hold now.
func (v *visitor) has(condition string) {
	v.t.Helper()
	if holds, err := v.evaluate(condition); err != nil || !holds {
		v.t.Errorf("the browser does not have %s (%v)", condition, err)
	}
}

func (v *visitor) evaluate(condition string) (holds bool, err error) {
	err = v.run(chromedp.Evaluate(condition, &holds))
	return holds, err
}

func (v *visitor) run(actions ...chromedp.Action) error {
	ctx, cancel := context.WithTimeout(v.tab, patience)
	defer cancel()
	return chromedp.Run(ctx, actions...)
}

// report shows the source of what the visitor of a test that failed sees.
func (v *visitor) report() {
	if v.t.Failed() {
		var url, source string
		err := v.run(chromedp.Location(&url), chromedp.Evaluate("document.documentElement.outerHTML", &source))
		v.t.Logf("the visitor is at %s (%v):\n%s", url, err, source)
	}
}
