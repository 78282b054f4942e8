package cli

import "testing"

func TestStatusOfOneSiteIsOneWord(t *testing.T) {
	runs(t, "", says("off\n"), lists(shopOff))
	runs(t, "shop", says("on\n"), lists(shopOn, wikiOff))
	runs(t, "WIKI", says("off\n"), lists(shopOn, wikiOff))
	runs(t, "shop", says("unknown\n"), lists(`{"site":"shop","state":"unknown"}`))
}

func TestStatusOfMultipleSitesIsATable(t *testing.T) {
	wiki := with(wikiOn, `"until":"2026-01-31T03:00:00Z","in_flight":3,"message":"Back at four."`)
	runs(t, "", says(""+
		"SITE  STATE  SINCE                 UNTIL                 IN FLIGHT  MESSAGE\n"+
		"shop  off    -                     -                     0          \n"+
		"wiki  on     2026-01-31 03:00 CET  2026-01-31 04:00 CET  3          Back at four.\n"), lists(shopOff, wiki))
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
		sees      = "warning: shop: page https://p/ could not be fetched, and visitors see the default page: EOF\n"
		wouldSee  = "warning: shop: page https://p/ could not be fetched, and visitors would see the default page: EOF\n"
		yet       = "warning: shop: page https://p/ is still being fetched, and visitors see the default page until then\n"
		copied    = "warning: shop: page https://p/ could not be fetched, and visitors see the copy of 2026-01-31 00:00 CET: EOF\n"
		noMessage = "warning: shop: page /p.html does not show the message; write {maintenance.message} where it belongs\n"
	)
	shop := with(shopOn, failed)
	runs(t, "shop", result{"on\n", sees, 0}, lists(shop, wikiOff))
	runs(t, "shop", result{"off\n", wouldSee, 0}, lists(with(shopOff, failed)))
	runs(t, "shop", says("on\n"), lists(with(shopOn, noWord)))
	for fields, warning := range map[string]string{failed: sees, fetching: yet, stale: copied, mute: noMessage} {
		runs(t, "on shop", result{enabledShop, warning, 0}, lists(shopOff), put("shop", with(shopOn, fields)))
	}
	runs(t, "", result{"" +
		"SITE  STATE  SINCE                 UNTIL  IN FLIGHT  MESSAGE\n" +
		"shop  on     2026-01-31 02:00 CET  -      0          \n" +
		"wiki  off    2026-01-31 00:30 CET  -      0          \n", sees, 0}, lists(shop, wikiOff))
	// To who has the JSON they would be noise, and what is open shows no page.
	runs(t, "--json", says("["+shop+"]\n"), lists(shop), lists(shop))
	runs(t, "off shop", says("Disabling maintenance mode for shop... done\n"), lists(shop), del("shop", with(shopOff, failed)))
}

func TestShellIsOfferedTheSites(t *testing.T) {
	for _, command := range []string{"on", "off"} {
		f := newFakeAPI(t, lists(shopOff, wikiOn))
		got := f.run("__complete", "maintenance", command, "--address", f.address, "")
		if got.stdout != "shop\nwiki\n:4\n" || got.code != 0 {
			t.Errorf("%s: got %+v", command, got)
		}
	}
	f := newFakeAPI(t, lists())
	if got := f.run("__complete", "maintenance", "--address", f.address, ""); got.stdout != ":4\n" || got.code != 0 {
		t.Errorf("without sites: got %+v", got)
	}
}
