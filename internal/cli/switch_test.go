package cli

import (
	"strings"
	"testing"

	"example.com/caddy-maintenance/internal/site"
)

const (
	enablingShop, enablingWiki   = "Enabling maintenance mode for shop... ", "Enabling maintenance mode for wiki... "
	disablingShop, disablingWiki = "Disabling maintenance mode for shop... ", "Disabling maintenance mode for wiki... "
	enabledShop, enabledWiki     = enablingShop + "done\n", enablingWiki + "done\n"

	unknownWiki = `{"site":"wiki","state":"unknown"}`
	busy        = `503 {"error":"busy"}`
	diskIsFull  = "Error: storing state of site shop: disk full\n"
)

func TestSitesAreSwitchedOn(t *testing.T) {
	runs(t, "on", says(enabledShop), lists(shopOff), put("shop"))
	runs(t, "on shop", says(enabledShop), lists(shopOff, wikiOff), put("shop"))
	runs(t, "on Wiki shop wiki", says(enabledWiki+enabledShop), lists(shopOff, wikiOff), put("wiki"), put("shop"))
	runs(t, "on --all", says(enabledShop+enablingWiki+"done (was already on since 2026-01-31 03:00:00 CET)\n"),
		lists(shopOff, wikiOn), put("shop"), patch("wiki"))
	// By initial_state, and before its record has been read.
	runs(t, "on", says(enablingWiki+"done (was already on)\n"), lists(`{"site":"wiki","state":"on"}`), patch("wiki"))
	runs(t, "on", says(enabledWiki), lists(unknownWiki), put("wiki"))
	// Switched off since it was listed; nothing else is tried again.
	conflict := patch("wiki", `409 {"error":"site wiki is not in maintenance"}`)
	runs(t, "on wiki", says(enabledWiki), lists(wikiOn), conflict, put("wiki"))
	runs(t, "on shop", result{enablingShop + "failed\n", diskIsFull, 1}, lists(shopOn), patch("shop", diskFull))
	// One that fails does not stop the others.
	runs(t, "on --all --wait 10s", result{enablingShop + "failed\n" + enabledWiki + "wiki " + drained, diskIsFull, 1},
		lists(shopOff, wikiOff), put("shop", diskFull), put("wiki"), waits("wiki?wait=1s", 0, 0))
	runs(t, "on --all", result{enablingShop + "failed\n" + enablingWiki + "failed\n", diskIsFull + "busy\n", 1},
		lists(shopOff, wikiOn), put("shop", diskFull), patch("wiki", busy))
}

func TestSitesAreSwitchedOff(t *testing.T) {
	runs(t, "off", says(disablingShop+"done\n"), lists(shopOn), del("shop"))
	runs(t, "off shop", says(disablingShop+"done (was already off)\n"), lists(shopOff, wikiOn), del("shop"))
	runs(t, "off --all", says(disablingShop+"done\n"+disablingWiki+"done (was already off since 2026-01-31 00:30 CET)\n"),
		lists(shopOn, wikiOff), del("shop"), del("wiki"))
	runs(t, "off", says(disablingWiki+"done\n"), lists(unknownWiki), del("wiki"))
	runs(t, "off --all", result{disablingShop + "failed\n" + disablingWiki + "done\n", diskIsFull, 1},
		lists(shopOn, wikiOn), del("shop", diskFull), del("wiki"))
}

// Any name may come from a placeholder.
func TestSitesByPlaceholderAreSwitchedByName(t *testing.T) {
	get := func(answer string) exchange { return exchange{request: "GET /maintenance/shop", answer: answer} }
	runs(t, "", says("No site of {host} is in maintenance\n"), listsTenants())
	runs(t, "shop", says("off\n"), listsTenants(), get(shopOff))
	runs(t, "shop", fails("unknown site shop"), listsTenants(), get(`404 {"error":"unknown site shop"}`))
	runs(t, "on shop", says(enabledShop), listsTenants(wikiOn), get(shopOff), put("shop"))
	runs(t, "off shop", says(disablingShop+"done\n"), listsTenants(shopOn), del("shop"))
	runs(t, "on", fails("there are several sites; name one of: wiki, {host}"), listsTenants(wikiOff))
	runs(t, "on", fails("name a site of {host}"), listsTenants())
	runs(t, "off", fails("name a site of {host}, or give --all"), listsTenants())
	runs(t, "--wait 1s", fails("name a site of {host}"), listsTenants())
	runs(t, "on nope/x", fails(`unknown site "nope/x"; the sites of the running config are: {host}`), listsTenants())
	runs(t, "on --all", fails("--all does not know the sites of {host} that are off; name the sites"), listsTenants(wikiOff))
	runs(t, "off --all", says(disablingShop+"done\n"), listsTenants(shopOn), del("shop"))
	runs(t, "off --all", says("No site is in maintenance\n"), listsTenants())
	runs(t, "off --all", fails("--all does not know all sites of {host} that are closed; name the sites"),
		listsTenants(`{"site":"{host}","state":"on"}`))
}

func TestOptionsAreSentAsTheyWereGiven(t *testing.T) {
	for flags, body := range map[string]string{
		"--message Soon.":                      `{"message":"Soon."}`,
		"--reason Move":                        `{"reason":"Move"}`,
		"--retry-after 10m":                    `{"retry_after":"10m"}`,
		"--until 2026-02-01T00:00:00Z":         `{"until":"2026-02-01T00:00:00Z"}`,
		"--until 15:04":                        `{"until":"2026-01-31T15:04:00+01:00"}`,
		"--for 1.5h":                           `{"until":"2026-01-31T03:30:00.001Z"}`,
		"--hold 30s":                           `{"hold":"30s"}`,
		"--terminate-after 1d":                 `{"terminate_after":"1d"}`,
		"--bypass-secret 0123456789-ABCDEF":    `{"bypass_secret":"0123456789-ABCDEF"}`,
		"--secret 0123456789-ABCDEF":           `{"bypass_secret":"0123456789-ABCDEF"}`,
		"--message= --retry-after= --until=":   `{"message":null,"retry_after":null,"until":null}`,
		"--hold= --terminate-after= --secret=": `{"bypass_secret":null,"hold":null,"terminate_after":null}`,
		"--for=":                               `{"until":null}`,
		"--message Soon. --hold=":              `{"hold":null,"message":"Soon."}`,
	} {
		line := "on shop " + flags
		runs(t, line, says(enabledShop), lists(shopOff), exchange{request: "PUT /maintenance/shop " + body, answer: shopOn})
		runs(t, line, says(enablingShop+"done (was already on since 2026-01-31 02:00 CET)\n"),
			lists(shopOn), exchange{request: "PATCH /maintenance/shop " + body, answer: shopOn})
	}
}

// Each site gets its own secret, a new one each time. It is not printed if the switch fails.
func TestSecretIsMadeForEachSite(t *testing.T) {
	runs(t, "on --all --with-secret --message Soon.", says(
		enabledShop+"To get in, open /.maintenance/SECRET-1 on the site\n"+
			enablingWiki+"done (was already on since 2026-01-31 03:00:00 CET)\nTo get in, open /.maintenance/SECRET-2 on the site\n"),
		lists(shopOff, wikiOn),
		exchange{request: `PUT /maintenance/shop {"bypass_secret":"SECRET-1","message":"Soon."}`, answer: shopOn},
		exchange{request: `PATCH /maintenance/wiki {"bypass_secret":"SECRET-2","message":"Soon."}`, answer: wikiOn})
	runs(t, "on shop --with-secret", says(enabledShop+"To get in, open http://shop.test/.maintenance/SECRET-1\n"), lists(shopOff),
		exchange{request: "GET /config/apps/http", answer: `{"servers":{"a":{"listen":[":80"],"routes":[{"match":[{"host":["shop.test"]}],"handle":[{"handler":"maintenance","site":"shop"}]}]}}}`},
		exchange{request: `PUT /maintenance/shop {"bypass_secret":"SECRET-1"}`, answer: shopOn})
	runs(t, "on shop --with-bypass-secret", result{enablingShop + "failed\n", diskIsFull, 1},
		lists(shopOff), exchange{request: `PUT /maintenance/shop {"bypass_secret":"SECRET-1"}`, answer: diskFull})
}

func TestEndOfMaintenanceIsSaidBack(t *testing.T) {
	ending := func(site string) string { return with(site, `"until":"2026-01-31T03:00:00Z"`) }
	const done, already = enablingShop + "done", enablingShop + "done (was already on since 2026-01-31 02:00 CET)"
	const ends = ", ends by itself 2026-01-31 04:00 CET (in 1h)\n"
	soon := with(shopOn, `"until":"2026-01-31T02:00:14Z"`)
	runs(t, "on", says(done+", ends by itself 2026-01-31 03:00:14 CET (in 14s)\n"), lists(shopOff), put("shop", soon))
	runs(t, "on", says(done+ends), lists(shopOff), put("shop", ending(shopOn)))
	runs(t, "on", says(already+ends), lists(shopOn), patch("shop", ending(shopOn)))
	runs(t, "on", says(already+ends), lists(ending(shopOn)), patch("shop", ending(shopOn)))
	runs(t, "on", says(already+", does not end by itself any more\n"), lists(ending(shopOn)), patch("shop"))
	runs(t, "on", says(done+"\n"), lists(ending(shopOff)), put("shop")) // the last one has ended
}

func TestScheduledMaintenanceIsSaidBack(t *testing.T) {
	scheduled := with(shopOff, `"from":"2026-01-31T04:00:00Z"`)
	body := `{"from":"2026-01-31T05:00:00+01:00","until":"2026-01-31T04:30:00Z"}`
	ending := with(scheduled, `"until":"2026-01-31T04:30:00Z"`)
	const words = "Scheduling maintenance mode for shop... done"
	const begins = ", begins by itself 2026-01-31 05:00 CET (in 2h), ends by itself 2026-01-31 05:30 CET (in 2h30m)\n"
	put := exchange{request: "PUT /maintenance/shop " + body, answer: ending}
	fleet := instances("shop/instances", 0, instance("web-1", "confirmed", 0), instance("web-2", "confirmed", 0))
	runs(t, "on shop --from 5:00 --for 30m", says(words+begins), lists(shopOff), put)
	runs(t, "on shop --from 5:00 --for 30m", says(words+" (2 instances; was scheduled for 2026-01-31 05:00 CET)"+begins),
		lists(scheduled), exchange{request: "PATCH /maintenance/shop " + body, answer: ending}, fleet)
	runs(t, "on shop --message Soon.", result{enablingShop + "failed\n", "Error: shop is scheduled to go into maintenance at 2026-01-31T04:00:00Z; " +
		"give --from with a time to change that, or --from \"\" to begin now\n", 1}, lists(scheduled))
	runs(t, "on shop --from= --message Soon.", says(enablingShop+"done (was scheduled for 2026-01-31 05:00 CET)\n"),
		lists(scheduled), exchange{request: `PATCH /maintenance/shop {"by":"eve@web-1","from":null,"message":"Soon."}`, answer: shopOn})
	runs(t, "on shop --wait 1s --from 5:00", fails("--wait is for a site that goes into maintenance now; leave out --from or --wait"), lists(shopOff))
	runs(t, "on", says(enablingShop+"done (was scheduled for 2026-01-31 05:00 CET)\n"), lists(scheduled), exchange{request: `PATCH /maintenance/shop {"by":"eve@web-1","from":null}`, answer: shopOn})
	runs(t, "off", says(disablingShop+"done (was scheduled for 2026-01-31 05:00 CET)\n"), lists(scheduled), del("shop"))
}

func TestHelpTellsOfOptions(t *testing.T) {
	got := newFakeAPI(t).run("maintenance", "on", "--help")
	lines := []string{"--with-bypass-secret", "Make a secret link, and print it (also --with-secret)\n"}
	for _, option := range site.Table {
		if option.Flag != "" {
			lines = append(lines, "--"+option.Flag+" string", option.Usage+"\n")
		}
	}
	for _, want := range lines {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("the help lacks %q:\n%s", want, got.stdout)
		}
	}
}
