package cli

import (
	"bytes"
	"testing"
	"time"
)

const (
	enabledShop = "Enabling maintenance mode for shop... done\n"
	drained     = "drained (this instance, web-1; others on the same storage follow within 2s)\n"
)

func TestWaitLastsUntilSitesAreDrained(t *testing.T) {
	put := exchange{request: "PUT /maintenance/shop {}", answer: shopOn}
	putWiki := exchange{request: "PUT /maintenance/wiki {}", answer: wikiOn}
	runSessions(t, []session{
		{line: "on --wait 10s", script: []exchange{lists(shopOff), put, waits("shop?wait=1s", 0, 0)}, stdout: enabledShop + drained},
		{
			line: "on --wait 10s", // a number is said when it is another one
			script: []exchange{
				lists(shopOff), put, waits("shop?wait=1s", time.Second, 2), waits("shop?wait=1s", time.Second, 2),
				waits("shop?wait=1s", time.Second, 1), waits("shop?wait=1s", 10*time.Millisecond, 0),
			},
			stdout: enabledShop + "shop: 2 in flight\nshop: 1 in flight\n" + drained,
		},
		{
			line: "on --wait 10s",
			script: []exchange{lists(shopOff), put, {
				request: "GET /maintenance/shop?wait=1s",
				answer:  `{"state":"on","instance":"web-1","sync_interval":"off"}`,
			}},
			stdout: enabledShop + "drained (this instance, web-1; others on the same storage follow when they reload)\n",
		},
		{
			line: "on --all --wait 10s",
			script: []exchange{
				lists(shopOff, wikiOff), put, putWiki, waits("shop?wait=1s", time.Second, 1),
				waits("shop?wait=1s", time.Second, 0), waits("wiki?wait=1s", 0, 0),
			},
			stdout: enabledShop + "Enabling maintenance mode for wiki... done\nshop: 1 in flight\nshop " + drained + "wiki " + drained,
		},
		{line: "--wait 10s", script: []exchange{lists(shopOn), waits("shop?wait=1s", 0, 0)}, stdout: drained},
		{line: "shop --wait 10s", script: []exchange{lists(shopOn, wikiOn), waits("shop?wait=1s", 0, 0)}, stdout: drained},
		{
			line: "shop --wait 10s --json", // standard output is the answer alone
			script: []exchange{
				lists(shopOn), waits("shop?wait=1s", time.Second, 1), waits("shop?wait=1s", 0, 0),
				{request: "GET /maintenance/shop", answer: shopOn},
			},
			stdout: shopOn + "\n", stderr: "shop: 1 in flight\n",
		},
	})
}

// G5: A site that is not drained in time is never called drained, and stays on.
func TestWaitThatRunsOutExitsWithItsOwnStatus(t *testing.T) {
	put := exchange{request: "PUT /maintenance/shop {}", answer: shopOn}
	putWiki := exchange{request: "PUT /maintenance/wiki {}", answer: wikiOn}
	const left = "shop: not drained in 1.5s, 3 still in flight on web-1; maintenance stays on\n"
	runSessions(t, []session{
		{
			line: "on --wait 1.5s",
			script: []exchange{
				lists(shopOff), put, waits("shop?wait=1s", time.Second, 4), waits("shop?wait=500ms", 500*time.Millisecond, 3),
			},
			stdout: enabledShop + "shop: 4 in flight\n", stderr: left, code: 2,
		},
		{ // the others are asked all the same, and one time is for all
			line: "on --all --wait 1.5s",
			script: []exchange{
				lists(shopOff, wikiOff), put, putWiki,
				waits("shop?wait=1s", 2*time.Second, 3), waits("wiki?wait=1ms", 0, 0),
			},
			stdout: enabledShop + "Enabling maintenance mode for wiki... done\nwiki " + drained, stderr: left, code: 2,
		},
		{
			line:   "shop --wait 1.5s --json",
			script: []exchange{lists(shopOn), waits("shop?wait=1s", 2*time.Second, 3), {request: "GET /maintenance/shop", answer: shopOn}},
			stdout: shopOn + "\n", stderr: left, code: 2,
		},
		{ // what has failed counts for more
			line: "on --all --wait 1.5s",
			script: []exchange{
				lists(wikiOff, shopOff),
				{request: "PUT /maintenance/wiki {}", answer: `503 {"error":"busy"}`},
				put,
				waits("shop?wait=1s", 2*time.Second, 3),
			},
			stdout: "Enabling maintenance mode for wiki... failed\n" + enabledShop, stderr: left + "Error: busy\n", code: 1,
		},
	})
}

func TestWaitEndsWhenItHasNoEnd(t *testing.T) {
	put := exchange{request: "PUT /maintenance/shop {}", answer: shopOn}
	runSessions(t, []session{
		{
			line:   "on --wait 10s",
			script: []exchange{lists(shopOff), put, waits("shop?wait=1s", time.Second, 2), {request: "GET /maintenance/shop?wait=1s", answer: shopOff}},
			stdout: enabledShop + "shop: 2 in flight\n", code: 1,
			stderr: "Error: shop is open: while this waited for it to be drained, it was switched off or its maintenance ended by itself\n",
		},
		{
			line:   "on --wait 10s",
			script: []exchange{lists(shopOff), put, {request: "GET /maintenance/shop?wait=1s", answer: `409 {"error":"site shop is not in maintenance"}`}},
			stdout: enabledShop, stderr: "Error: waiting for shop to be drained: site shop is not in maintenance\n", code: 1,
		},
		{
			line: "on --all --wait 10s",
			script: []exchange{
				lists(shopOff, wikiOff),
				put,
				{request: "PUT /maintenance/wiki {}", answer: wikiOn},
				{request: "GET /maintenance/shop?wait=1s", answer: shopOff},
				waits("wiki?wait=1s", 0, 0),
			},
			stdout: enabledShop + "Enabling maintenance mode for wiki... done\nwiki " + drained, code: 1,
			stderr: "Error: shop is open: while this waited for it to be drained, it was switched off or its maintenance ended by itself\n",
		},
	})
}

func TestProgressIsOneLineOfATerminal(t *testing.T) {
	var out bytes.Buffer
	p := &progressLine{out: &out, terminal: true}
	p.end() // nothing to clear
	for _, line := range []string{"2 in flight", "2 in flight", "1 in flight"} {
		p.show(line)
	}
	p.end()
	p.end()
	p.show("1 in flight") // of the next site
	const clear = "\r\033[K"
	if got, want := out.String(), clear+"2 in flight"+clear+"1 in flight"+clear+clear+"1 in flight"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
