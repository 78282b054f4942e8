package cli

import "testing"

func TestStatusOfOneSiteIsOneWord(t *testing.T) {
	runSessions(t, []session{
		{line: "", script: []exchange{lists(shopOff)}, stdout: "off\n"},
		{line: "shop", script: []exchange{lists(shopOn, wikiOff)}, stdout: "on\n"},
		{line: "WIKI", script: []exchange{lists(shopOn, wikiOff)}, stdout: "off\n"},
		{line: "shop", script: []exchange{lists(`{"site":"shop","state":"unknown"}`)}, stdout: "unknown\n"},
	})
}

func TestStatusOfMultipleSitesIsATable(t *testing.T) {
	wiki := with(wikiOn, `"until":"2026-01-31T03:00:00Z","in_flight":3,"message":"Back at four."`)
	runSessions(t, []session{{line: "", script: []exchange{lists(shopOff, wiki)}, stdout: "" +
		"SITE  STATE  SINCE                 UNTIL                 IN FLIGHT  MESSAGE\n" +
		"shop  off    -                     -                     0          \n" +
		"wiki  on     2026-01-31 03:00 CET  2026-01-31 04:00 CET  3          Back at four.\n"}})
}

// A script may read fields that this version of the command does not know.
func TestJSONIsTheAnswerOfTheAdminAPI(t *testing.T) {
	newer := with(shopOn, `"colour": "red"`)
	one := exchange{request: "GET /maintenance/shop", answer: newer}
	runSessions(t, []session{
		{line: "--json", script: []exchange{lists(newer), lists(newer)}, stdout: "[" + newer + "]\n"},
		{line: "--json", script: []exchange{lists(newer, wikiOff), lists(newer, wikiOff)}, stdout: "[" + newer + "," + wikiOff + "]\n"},
		{line: "shop --json", script: []exchange{lists(newer), one}, stdout: newer + "\n"},
		{line: "SHOP --json", script: []exchange{lists(newer), one}, stdout: newer + "\n"},
	})
}

func TestWarningsTellWhatVisitorsDoNotSee(t *testing.T) {
	const (
		failed   = `"pages":[{"source":"https://p/","state":"failed","error":"EOF","shows_message":true}]`
		fetching = `"pages":[{"source":"https://p/","state":"fetching","shows_message":true}]`
		stale    = `"pages":[{"source":"https://p/","state":"stale","fetched_at":"2026-01-30T23:00:00Z","error":"EOF","shows_message":true}]`
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
	switched := func(fields string) []exchange {
		return []exchange{lists(shopOff), {request: "PUT /maintenance/shop {}", answer: with(shopOn, fields)}}
	}
	const done = "Enabling maintenance mode for shop... done\n"
	runSessions(t, []session{
		{line: "shop", script: []exchange{lists(with(shopOn, failed), wikiOff)}, stdout: "on\n", stderr: sees},
		{line: "shop", script: []exchange{lists(with(shopOff, failed))}, stdout: "off\n", stderr: wouldSee},
		{line: "shop", script: []exchange{lists(with(shopOn, noWord))}, stdout: "on\n"},
		{line: "on shop", script: switched(failed), stdout: done, stderr: sees},
		{line: "on shop", script: switched(fetching), stdout: done, stderr: yet},
		{line: "on shop", script: switched(stale), stdout: done, stderr: copied},
		{line: "on shop", script: switched(mute), stdout: done, stderr: noMessage},
		{
			line: "", script: []exchange{lists(with(shopOn, failed), wikiOff)}, stderr: sees,
			stdout: "SITE  STATE  SINCE                 UNTIL  IN FLIGHT  MESSAGE\n" +
				"shop  on     2026-01-31 02:00 CET  -      0          \n" +
				"wiki  off    2026-01-31 00:30 CET  -      0          \n",
		},
		{ // to who has the JSON they would be noise
			line: "--json", script: []exchange{lists(with(shopOn, failed)), lists(with(shopOn, failed))},
			stdout: "[" + with(shopOn, failed) + "]\n",
		},
		{ // what is open shows no page
			line:   "off shop",
			script: []exchange{lists(with(shopOn, failed)), {request: "DELETE /maintenance/shop", answer: with(shopOff, failed)}},
			stdout: "Disabling maintenance mode for shop... done\n",
		},
	})
}

func TestShellIsOfferedTheSites(t *testing.T) {
	for _, command := range []string{"on", "off"} {
		f := newFakeAPI(t, lists(shopOff, wikiOn))
		if got := f.run("__complete", "maintenance", command, "--address", f.address, ""); got.stdout != "shop\nwiki\n:4\n" || got.code != 0 {
			t.Errorf("%s: got %+v", command, got)
		}
	}
	f := newFakeAPI(t, lists())
	if got := f.run("__complete", "maintenance", "--address", f.address, ""); got.stdout != ":4\n" || got.code != 0 {
		t.Errorf("without sites: got %+v", got)
	}
}
