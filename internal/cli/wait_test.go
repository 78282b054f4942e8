package cli

import (
	"bytes"
	"testing"
	"time"
)

const drained = "drained\n"

func TestWaitLastsUntilSitesAreDrained(t *testing.T) {
	const s = time.Second
	atOnce := waits("shop?wait=1s", 0, 0)
	runs(t, "on --wait 10s", says(enabledShop+drained), lists(shopOff), put("shop"), atOnce)
	runs(t, "--wait 10s", says(drained), lists(shopOn), atOnce)
	runs(t, "shop --wait 10s", says(drained), lists(shopOn, wikiOn), atOnce)
	// A number is printed when it changes.
	runs(t, "on --wait 10s", says(enabledShop+"shop: 2 in flight on web-1\nshop: 1 in flight on web-1\n"+drained), lists(shopOff), put("shop"),
		waits("shop?wait=1s", s, 2), waits("shop?wait=1s", s, 2), waits("shop?wait=1s", s, 1), waits("shop?wait=1s", s/100, 0))
	runs(t, "on --all --wait 10s", says(enabledShop+enabledWiki+"shop: 1 in flight on web-1\nshop "+drained+"wiki "+drained),
		lists(shopOff, wikiOff), put("shop"), put("wiki"),
		waits("shop?wait=1s", s, 1), waits("shop?wait=1s", s, 0), waits("wiki?wait=1s", 0, 0))
	// Standard output is the answer alone.
	runs(t, "shop --wait 10s --json", result{shopOn + "\n", "shop: 1 in flight on web-1\n", 0},
		lists(shopOn), waits("shop?wait=1s", s, 1), atOnce, exchange{request: "GET /maintenance/shop", answer: shopOn})
}

// G5: A site that is not drained in time is never called drained, and stays on.
func TestWaitThatRunsOutExitsWithItsOwnStatus(t *testing.T) {
	const left = "shop: not drained in 1.5s: 3 in flight on web-1; maintenance stays on\n"
	tooLong := waits("shop?wait=1s", 2*time.Second, 3)
	runs(t, "on --wait 1.5s", result{enabledShop + "shop: 4 in flight on web-1\n", left, 2},
		lists(shopOff), put("shop"), waits("shop?wait=1s", time.Second, 4), waits("shop?wait=500ms", 500*time.Millisecond, 3))
	// The others are asked all the same, with one deadline for all.
	runs(t, "on --all --wait 1.5s", result{enabledShop + enabledWiki + "wiki " + drained, left, 2},
		lists(shopOff, wikiOff), put("shop"), put("wiki"), tooLong, waits("wiki?wait=1ms", 0, 0))
	runs(t, "shop --wait 1.5s --json", result{shopOn + "\n", left, 2},
		lists(shopOn), tooLong, exchange{request: "GET /maintenance/shop", answer: shopOn})
	// Nothing blocks the requests of a site without a directive.
	runs(t, "shop --wait 1s", fails("shop no longer has a maintenance directive, so nothing blocks its requests; to end its maintenance: caddy maintenance off shop"),
		lists(with(shopOn, `"configured":false`)))
	// A failure decides the exit status.
	runs(t, "on --all --wait 1.5s", result{enablingWiki + "failed\n" + enabledShop, left + "Error: busy\n", 1},
		lists(wikiOff, shopOff), put("wiki", busy), put("shop"), tooLong)
}

func TestWaitEndsWhenItHasNoEnd(t *testing.T) {
	const open = "Error: shop is open: it was switched off, or its maintenance ended by itself, before it was drained\n"
	opened := exchange{request: "GET /maintenance/shop", answer: shopOff}
	runs(t, "on --wait 10s", result{enabledShop + "shop: 2 in flight on web-1\n", open, 1},
		lists(shopOff), put("shop"), waits("shop?wait=1s", time.Second, 2),
		exchange{request: "GET /maintenance/shop", answer: shopOn}, waits("shop?wait=1s", time.Second, 0), opened)
	runs(t, "on --wait 10s", result{enabledShop, "Error: waiting for shop to be drained: the storage is down\n", 1},
		lists(shopOff), put("shop"), exchange{request: "GET /maintenance/shop/instances?wait=1s", answer: `503 {"error":"the storage is down"}`})
	runs(t, "on --all --wait 10s", result{enabledShop + enabledWiki + "wiki " + drained, open, 1},
		lists(shopOff, wikiOff), put("shop"), put("wiki"), waits("shop?wait=1s", 0, 0), opened, waits("wiki?wait=1s", 0, 0))
}

func TestProgressIsWrittenAnewOnATerminal(t *testing.T) {
	var out bytes.Buffer
	p := &progress{out: &out, terminal: true}
	p.end() // nothing to clear
	for _, lines := range [][]string{{"2 on A", "1 on B"}, {"1 on A"}} {
		for _, line := range lines {
			p.add(line)
		}
		p.show()
	}
	p.end()
	p.end()
	const clear2, clear1 = "\033[2A\033[J", "\033[1A\033[J"
	if got, want := out.String(), "2 on A\n1 on B\n"+clear2+"1 on A\n"+clear1; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
