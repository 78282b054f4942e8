package cli

import (
	"strings"
	"testing"
)

func TestSitesAreSwitchedOn(t *testing.T) {
	put := func(site, answer string) exchange {
		return exchange{request: "PUT /maintenance/" + site + " {}", answer: answer}
	}
	patch := func(site, answer string) exchange {
		return exchange{request: "PATCH /maintenance/" + site + " {}", answer: answer}
	}
	const shop, wiki = "Enabling maintenance mode for shop... ", "Enabling maintenance mode for wiki... "
	const conflict = `409 {"error":"site wiki is not in maintenance"}`
	runSessions(t, []session{
		{line: "on", script: []exchange{lists(shopOff), put("shop", shopOn)}, stdout: shop + "done\n"},
		{line: "on shop", script: []exchange{lists(shopOff, wikiOff), put("shop", shopOn)}, stdout: shop + "done\n"},
		{
			line: "on Wiki shop wiki", script: []exchange{lists(shopOff, wikiOff), put("wiki", wikiOn), put("shop", shopOn)},
			stdout: wiki + "done\n" + shop + "done\n",
		},
		{
			line: "on --all", script: []exchange{lists(shopOff, wikiOn), put("shop", shopOn), patch("wiki", wikiOn)},
			stdout: shop + "done\n" + wiki + "done (was already on since 2026-01-31 03:00 CET)\n",
		},
		{ // by initial_state
			line: "on", script: []exchange{lists(`{"site":"wiki","state":"on"}`), patch("wiki", wikiOn)},
			stdout: wiki + "done (was already on)\n",
		},
		{
			line: "on", script: []exchange{lists(`{"site":"wiki","state":"unknown"}`), put("wiki", wikiOn)},
			stdout: wiki + "done\n",
		},
		{ // switched off since it was listed
			line: "on wiki", script: []exchange{lists(wikiOn), patch("wiki", conflict), put("wiki", wikiOn)},
			stdout: wiki + "done\n",
		},
		{ // nothing else is tried again
			line: "on shop", script: []exchange{lists(shopOn), patch("shop", diskFull)},
			stdout: shop + "failed\n", stderr: "Error: storing state of site shop: disk full\n", code: 1,
		},
		{ // one that fails does not keep the others
			line: "on --all --wait 10s",
			script: []exchange{
				lists(shopOff, wikiOff), put("shop", diskFull), put("wiki", wikiOn),
				waits("wiki?wait=1s", 0, 0),
			},
			stdout: shop + "failed\n" + wiki + "done\nwiki drained (this instance, web-1; others on the same storage follow within 2s)\n",
			stderr: "Error: storing state of site shop: disk full\n", code: 1,
		},
		{
			line: "on --all", script: []exchange{lists(shopOff, wikiOn), put("shop", diskFull), patch("wiki", `503 {"error":"busy"}`)},
			stdout: shop + "failed\n" + wiki + "failed\n", stderr: "Error: storing state of site shop: disk full\nbusy\n", code: 1,
		},
	})
}

func TestSitesAreSwitchedOff(t *testing.T) {
	del := func(site, answer string) exchange {
		return exchange{request: "DELETE /maintenance/" + site, answer: answer}
	}
	const shop, wiki = "Disabling maintenance mode for shop... ", "Disabling maintenance mode for wiki... "
	runSessions(t, []session{
		{line: "off", script: []exchange{lists(shopOn), del("shop", shopOff)}, stdout: shop + "done\n"},
		{line: "off shop", script: []exchange{lists(shopOff, wikiOn), del("shop", shopOff)}, stdout: shop + "done (was already off)\n"},
		{
			line: "off --all", script: []exchange{lists(shopOn, wikiOff), del("shop", shopOff), del("wiki", wikiOff)},
			stdout: shop + "done\n" + wiki + "done (was already off since 2026-01-31 00:30 CET)\n",
		},
		{line: "off", script: []exchange{lists(`{"site":"wiki","state":"unknown"}`), del("wiki", wikiOff)}, stdout: wiki + "done\n"},
		{
			line: "off --all", script: []exchange{lists(shopOn, wikiOn), del("shop", diskFull), del("wiki", wikiOff)},
			stdout: shop + "failed\n" + wiki + "done\n", stderr: "Error: storing state of site shop: disk full\n", code: 1,
		},
	})
}

func TestOptionsAreSentAsTheyWereGiven(t *testing.T) {
	const shop = "Enabling maintenance mode for shop... done"
	for _, test := range []struct{ flags, body string }{
		{"--message Soon.", `{"message":"Soon."}`},
		{"--retry-after 10m", `{"retry_after":"10m"}`},
		{"--until 2026-02-01T00:00:00Z", `{"until":"2026-02-01T00:00:00Z"}`},
		{"--until 15:04", `{"until":"2026-01-31T15:04:00+01:00"}`},
		{"--for 1.5h", `{"until":"2026-01-31T03:30:00.001Z"}`},
		{"--hold 30s", `{"hold":"30s"}`},
		{"--terminate-after 1d", `{"terminate_after":"1d"}`},
		{"--bypass-secret 0123456789-ABCDEF", `{"bypass_secret":"0123456789-ABCDEF"}`},
		{"--secret 0123456789-ABCDEF", `{"bypass_secret":"0123456789-ABCDEF"}`},
		{
			"--message= --retry-after= --until= --hold= --terminate-after= --secret=",
			`{"bypass_secret":null,"hold":null,"message":null,"retry_after":null,"terminate_after":null,"until":null}`,
		},
		{"--for=", `{"until":null}`},
		{"--message Soon. --hold=", `{"hold":null,"message":"Soon."}`},
	} {
		runSessions(t, []session{
			{
				line:   "on shop " + test.flags,
				script: []exchange{lists(shopOff), {request: "PUT /maintenance/shop " + test.body, answer: shopOn}},
				stdout: shop + "\n",
			},
			{
				line:   "on shop " + test.flags,
				script: []exchange{lists(shopOn), {request: "PATCH /maintenance/shop " + test.body, answer: shopOn}},
				stdout: shop + " (was already on since 2026-01-31 02:00 CET)\n",
			},
		})
	}
}

// A secret that is made is another one for each site, and each time.
func TestSecretIsMadeForEachSite(t *testing.T) {
	runSessions(t, []session{{
		line: "on --all --with-secret --message Soon.",
		script: []exchange{
			lists(shopOff, wikiOn),
			{request: `PUT /maintenance/shop {"bypass_secret":"SECRET-1","message":"Soon."}`, answer: shopOn},
			{request: `PATCH /maintenance/wiki {"bypass_secret":"SECRET-2","message":"Soon."}`, answer: wikiOn},
		},
		stdout: "Enabling maintenance mode for shop... done\nTo get in, open /.maintenance/SECRET-1 on the site\n" +
			"Enabling maintenance mode for wiki... done (was already on since 2026-01-31 03:00 CET)\nTo get in, open /.maintenance/SECRET-2 on the site\n",
	}, {
		line: "on shop --with-bypass-secret", // which is not told if nobody gets in by it
		script: []exchange{
			lists(shopOff),
			{request: `PUT /maintenance/shop {"bypass_secret":"SECRET-1"}`, answer: diskFull},
		},
		stdout: "Enabling maintenance mode for shop... failed\n",
		stderr: "Error: storing state of site shop: disk full\n", code: 1,
	}})
}

func TestEndOfMaintenanceIsSaidBack(t *testing.T) {
	ending := func(site string) string { return with(site, `"until":"2026-01-31T03:00:00Z"`) }
	const shop, already = "Enabling maintenance mode for shop... done", " (was already on since 2026-01-31 02:00 CET)"
	const ends = ", ends by itself 2026-01-31 04:00 CET (in 1h0m)\n"
	for _, test := range []struct{ before, method, after, stdout string }{
		{shopOff, "PUT", ending(shopOn), shop + ends},
		{shopOn, "PATCH", ending(shopOn), shop + already + ends},
		{ending(shopOn), "PATCH", ending(shopOn), shop + already + ends},
		{ending(shopOn), "PATCH", shopOn, shop + already + ", does not end by itself any more\n"},
		{ending(shopOff), "PUT", shopOn, shop + "\n"}, // the last one has ended
	} {
		runSessions(t, []session{{
			line:   "on",
			script: []exchange{lists(test.before), {request: test.method + " /maintenance/shop {}", answer: test.after}},
			stdout: test.stdout,
		}})
	}
}

func TestHelpTellsOfOptions(t *testing.T) {
	got := newFakeAPI(t).run("maintenance", "on", "--help")
	for _, want := range []string{
		"--hold string", "Hold each request up to this long before it gets the page, at most 5m\n",
		"--bypass-secret string", "Let in who opens /.maintenance/<secret>, 16 to 128 of A-Z a-z 0-9 - _ (also --secret)\n",
		"--with-bypass-secret", "Make such a secret, and print what to open (also --with-secret)\n",
	} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("the help lacks %q:\n%s", want, got.stdout)
		}
	}
}
