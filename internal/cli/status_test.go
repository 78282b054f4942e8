package cli

import (
	"strings"
	"testing"
)

func TestStatusOfOneSiteIsOneWord(t *testing.T) {
	runs(t, "", says("off\n"), lists(shopOff))
	runs(t, "shop", says("on\n"), lists(shopOn, wikiOff))
	runs(t, "WIKI", says("off\n"), lists(shopOn, wikiOff))
	runs(t, "shop", says("unknown\n"), lists(`{"site":"shop","state":"unknown"}`))
}

func TestStatusOfMultipleSitesIsATable(t *testing.T) {
	wiki := with(wikiOn, `"until":"2026-01-31T03:00:00Z","in_flight":3,"message":"Back at four."`)
	runs(t, "", says(""+
		"SITE  STATE  SINCE                         FROM                  UNTIL                 IN FLIGHT  HELD  MESSAGE        REASON  BY\n"+
		"blog  off    2026-01-31 00:30 CET (2h30m)  2026-01-31 05:00 CET  -                     0          0     -              -       -\n"+
		"shop  off    -                             -                     -                     0          0     -              -       -\n"+
		"wiki  on     2026-01-31 03:00:00 CET (0s)  -                     2026-01-31 04:00 CET  3          2     Back at four.  -       -\n"),
		lists(strings.Replace(with(wikiOff, `"from":"2026-01-31T04:00:00Z"`), "wiki", "blog", 1), shopOff, with(wiki, `"held":2`)))
}

// On a terminal the details follow; elsewhere the word is alone, as scripts read it.
func TestDetailsFollowOnATerminal(t *testing.T) {
	for _, test := range []struct{ site, want string }{
		{with(shopOff, `"instance":"web-1"`), "off\n  in flight  0 on web-1\n"},
		{with(shopOff, `"instance":"web-1","from":"2026-01-31T04:00:00Z","message":"Soon."`), "off\n" +
			"  from       2026-01-31 05:00 CET (in 2h)\n  message    Soon.\n  in flight  0 on web-1\n"},
		{with(shopOn, `"instance":"web-1","until":"2026-01-31T02:30:00Z","message":"Soon.","reason":"Moving.","by":"eve@web-1",`+
			`"in_flight":3,"held":2,"retry_after":"10m","hold":"30s","terminate_after":"1m","bypass_secret":true,`+
			`"pages":[{"source":"https://p/","state":"ok","fetched_at":"2026-01-31T02:00:00Z","shows_message":true}]`), "on\n" +
			"  since            2026-01-31 02:00 CET (1h)\n" +
			"  until            2026-01-31 03:30 CET (in 30m)\n" +
			"  message          Soon.\n" +
			"  reason           Moving.\n" +
			"  by               eve@web-1\n" +
			"  in flight        3 on web-1\n" +
			"  held             2 on web-1\n" +
			"  retry after      10m\n" +
			"  hold             30s\n" +
			"  terminate after  1m\n" +
			"  bypass secret    set\n" +
			"  page             https://p/, ok, fetched 2026-01-31 03:00:00 CET\n"},
		{`{"site":"shop","state":"unknown","instance":"web-1","error":"disk full"}`, "unknown\n" +
			"  in flight  0 on web-1\n  error      disk full\n  blocked    until its state can be read; to open it: caddy maintenance off shop\n"},
		{with(shopOn, `"instance":"web-1","configured":false`), "on\n  since      2026-01-31 02:00 CET (1h)\n  in flight  0 on web-1\n"},
	} {
		for _, terminal := range []bool{true, false} {
			f := newFakeAPI(t, lists(test.site))
			f.terminal = terminal
			want := test.want
			if !terminal {
				want, _, _ = strings.Cut(want, "  ")
			}
			warning := ""
			if strings.Contains(test.site, "configured") {
				warning = "warning: shop no longer has a maintenance directive, so nothing blocks its requests; to end its maintenance: caddy maintenance off shop\n"
			}
			if got := f.run("maintenance", "shop"); got != (result{want, warning, 0}) {
				t.Errorf("%s got\n%s%s, want\n%s", test.site, got.stdout, got.stderr, want)
			}
			f.close()
		}
	}
}

// A script may read fields that this version of the command does not know.
func TestJSONIsTheAnswerOfTheAdminAPI(t *testing.T) {
	newer := with(shopOn, `"colour": "red"`)
	one := exchange{request: "GET /maintenance/shop", answer: newer}
	runs(t, "--json", says("["+newer+"]\n"), lists(newer), lists(newer))
	runs(t, "--json", says("["+newer+","+wikiOff+"]\n"), lists(newer, wikiOff), lists(newer, wikiOff))
	runs(t, "shop --json", says(newer+"\n"), lists(newer), one)
	runs(t, "SHOP --json", says(newer+"\n"), lists(newer), one)
}

func TestWarningsTellWhatVisitorsDoNotSee(t *testing.T) {
	const (
		failed   = `"pages":[{"source":"https://p/","state":"failed","error":"EOF","shows_message":true}]`
		fetching = `"pages":[{"source":"https://p/","state":"fetching","shows_message":true}]`
		stale    = `"pages":[{"source":"https://p/","state":"stale","fetched_at":"2026-01-30T23:00:00Z","error":"EOF"}]`
		mute     = `"message":"Soon.","pages":[{"source":"/p.html","state":"ok"},{"source":"/q.html","state":"ok","shows_message":true}]`
		noWord   = `"pages":[{"source":"/p.html","state":"ok"}]`
	)
	const (
		sees      = "warning: shop: page https://p/ could not be fetched: EOF; visitors see the default page\n"
		wouldSee  = "warning: shop: page https://p/ could not be fetched: EOF; visitors would see the default page\n"
		yet       = "warning: shop: page https://p/ is still being fetched; visitors see the default page until then\n"
		copied    = "warning: shop: page https://p/ could not be fetched: EOF; visitors see the copy of 2026-01-31 00:00 CET\n"
		noMessage = "warning: shop: page /p.html does not show the message; put {maintenance.message} where it should appear\n"
	)
	shop := with(shopOn, failed)
	runs(t, "shop", result{"on\n", sees, 0}, lists(shop, wikiOff))
	runs(t, "shop", result{"off\n", wouldSee, 0}, lists(with(shopOff, failed)))
	runs(t, "shop", says("on\n"), lists(with(shopOn, noWord)))
	for fields, warning := range map[string]string{failed: sees, fetching: yet, stale: copied, mute: noMessage} {
		runs(t, "on shop", result{enabledShop, warning, 0}, lists(shopOff), put("shop", with(shopOn, fields)))
	}
	runs(t, "", result{"" +
		"SITE  STATE  SINCE                         FROM  UNTIL  IN FLIGHT  HELD  MESSAGE  REASON  BY\n" +
		"shop  on     2026-01-31 02:00 CET (1h)     -     -      0          0     -        -       -\n" +
		"wiki  off    2026-01-31 00:30 CET (2h30m)  -     -      0          0     -        -       -\n", sees, 0}, lists(shop, wikiOff))
	// JSON has the same fields, and an open site shows no page.
	runs(t, "--json", says("["+shop+"]\n"), lists(shop), lists(shop))
	runs(t, "off shop", says("Disabling maintenance mode for shop... done\n"), lists(shop), del("shop", with(shopOff, failed)))
}

// For off, those that are not off, or are to be on; for run, the others, and files.
func TestShellIsOfferedTheSites(t *testing.T) {
	blog := strings.Replace(with(wikiOff, `"from":"2026-01-31T04:00:00Z"`), "wiki", "blog", 1)
	for command, want := range map[string]string{"on": "blog\nshop\nwiki\n:4\n", "off": "blog\nwiki\n:4\n", "run": "shop\n:0\n"} {
		f := newFakeAPI(t, lists(blog, shopOff, wikiOn))
		got := f.run("__complete", "maintenance", command, "")
		if got.stdout != want || got.code != 0 {
			t.Errorf("%s: got %+v, want %s", command, got, want)
		}
	}
	f := newFakeAPI(t, lists())
	if got := f.run("__complete", "maintenance", "--address", f.address, ""); got.stdout != ":4\n" || got.code != 0 {
		t.Errorf("without sites: got %+v", got)
	}
}
