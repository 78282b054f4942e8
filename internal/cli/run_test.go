package cli

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"example.com/caddy-maintenance/internal/api"
)

// The command runs between on and off, and its status is the exit status. What it prints
// itself goes to the terminal, and not through this command.
func TestCommandRunsInMaintenance(t *testing.T) {
	const (
		drainedShop = enabledShop + drained
		stays       = "; shop stays in maintenance; to open it: caddy maintenance off shop\n"
		disabled    = disablingShop + "done\n"
		elsewhere   = "somebody else switched shop meanwhile; it stays in maintenance; to open it: caddy maintenance off shop\n"
		unknown     = "it is not known whether shop is still in maintenance: busy; to open it: caddy maintenance off shop\n"
		changed     = `412 {"error":"site shop has changed"}`
	)
	on := put("shop")
	state := func(site string) exchange { return exchange{request: "GET /maintenance/shop", answer: site} }
	quick := waits("shop?wait=1s", 0, 0)
	version := func(e exchange, etag, match int) exchange {
		e.etag = strconv.Quote(strconv.Itoa(etag))
		if match > 0 {
			e.ifMatch = strconv.Quote(strconv.Itoa(match))
		}
		return e
	}
	again := version(state(`{"site":"shop","state":"on","since":"2026-01-31T01:00:30Z"}`), 9, 0)
	for _, test := range []struct {
		line   string
		want   result
		script []exchange
	}{
		{"run shop -- true", says(drainedShop + disabled), []exchange{on, quick, del("shop")}},
		{"run -- true", says(drainedShop + disabled), []exchange{on, quick, del("shop")}},
		{"run shop -- false", result{drainedShop, "false ended with exit status 1" + stays, 1}, []exchange{on, quick}},
		{"run shop -- sh -c exit${IFS}7", result{drainedShop, "sh ended with exit status 7" + stays, 7}, []exchange{on, quick}},
		{"run shop -- sh -c kill${IFS}-9${IFS}$$", result{drainedShop, "sh ended with signal: killed" + stays, 137}, []exchange{on, quick}},
		{
			"run shop --message Soon. --hold 30s -- true", says(drainedShop + disabled),
			[]exchange{{request: `PUT /maintenance/shop {"hold":"30s","message":"Soon."}`, answer: shopOn}, quick, del("shop")},
		},
		{
			"run shop --with-secret -- true", says(enabledShop + "To get in, open /.maintenance/SECRET-1 on the site\n" + drained + disabled),
			[]exchange{{request: `PUT /maintenance/shop {"bypass_secret":"SECRET-1"}`, answer: shopOn}, quick, del("shop")},
		},
		{
			"run shop --wait 2s -- true",
			result{
				enabledShop + "shop: 3 in flight on web-1\n" + disabled,
				"shop: not drained in 2s: 3 in flight on web-1; opening it again\nthe command was not run\n", 2,
			},
			[]exchange{on, waits("shop?wait=1s", time.Second, 3), waits("shop?wait=1s", time.Second, 3), del("shop")},
		},
		// Requests are terminated before the wait is over.
		{
			"run shop --terminate-after 2s -- true",
			result{
				enabledShop + "shop: 3 in flight on web-1\n" + disabled,
				"shop: not drained in 32s: 3 in flight on web-1; opening it again\nthe command was not run\n", 2,
			},
			[]exchange{
				{request: `PUT /maintenance/shop {"terminate_after":"2s"}`, answer: shopOn},
				waits("shop?wait=1s", 31*time.Second, 3), waits("shop?wait=1s", time.Second, 3), del("shop"),
			},
		},
		{
			"run shop -- true",
			result{enablingShop + "failed\n", "the command was not run\nError: site shop is already in maintenance\n", 1},
			[]exchange{put("shop", `412 {"error":"site shop is already in maintenance"}`)},
		},
		{"run shop -- true", result{enablingShop + "failed\n", "the command was not run\n" + strings.TrimSpace(diskIsFull) +
			"; shop may be in maintenance all the same; to open it: caddy maintenance off shop\n", 1}, []exchange{put("shop", diskFull)}},
		{"run shop -- true", result{
			drainedShop + disablingShop + "failed\n",
			"Error: the command succeeded, but switching off failed: storing state of site shop: disk full" + stays, 1,
		}, []exchange{on, quick, del("shop", diskFull)}},
		// What somebody else did meanwhile is reported and left alone. Of the requests for the
		// state, the first is made before the waiting, and the third before the command.
		{
			"run shop -- true",
			result{drainedShop, "shop is already open: its maintenance ended by itself, or somebody switched it off\n", 2},
			[]exchange{on, state(shopOn), quick, state(shopOn), state(shopOn), state(shopOff)},
		},
		{
			"run shop -- true",
			result{drainedShop, elsewhere, 2},
			[]exchange{on, state(shopOn), quick, state(shopOn), state(shopOn), again},
		},
		{ // within the second
			"run shop -- true",
			result{drainedShop, elsewhere, 2},
			[]exchange{
				version(on, 1, 0), version(state(shopOn), 1, 0), quick, version(state(shopOn), 1, 0), version(state(shopOn), 1, 0),
				version(state(with(shopOn, `"by":"bob@web-2"`)), 2, 0),
			},
		},
		{
			"run shop -- touch /nowhere/x",
			result{drainedShop, elsewhere + wasNotRun + "\n", 2},
			[]exchange{on, state(shopOn), quick, state(shopOn), again, again},
		},
		// Until every instance has confirmed, another one may have let somebody else close it, too.
		{
			"run shop -- touch /nowhere/x",
			result{enabledShop, elsewhere + wasNotRun + "\n", 2},
			[]exchange{version(on, 1, 0), version(state(shopOn), 2, 0), version(state(shopOn), 2, 0)},
		},
		// Changing the options is not a switch.
		{
			"run shop -- true", says(drainedShop + disabled),
			[]exchange{
				version(on, 1, 0), version(state(shopOn), 1, 0), quick, state(shopOn), version(state(shopOn), 2, 0),
				version(state(shopOn), 3, 0), version(del("shop"), 4, 3),
			},
		},
		{
			"run shop -- true", says(drainedShop + disabled),
			[]exchange{
				on, state(shopOn), quick, state(shopOn), state(shopOn),
				version(state(shopOn), 2, 0), version(del("shop", changed), 0, 2), version(state(shopOn), 3, 0), version(del("shop"), 4, 3),
			},
		},
		{
			"run shop -- true",
			result{drainedShop, elsewhere, 2},
			[]exchange{
				on, state(shopOn), quick, state(shopOn), state(shopOn),
				version(state(shopOn), 2, 0), version(del("shop", changed), 0, 2), again,
			},
		},
		{
			"run shop -- true",
			result{drainedShop + disablingShop + "failed\n", "Error: the command succeeded, but switching off failed: site shop has changed" + stays, 1},
			[]exchange{on, quick, del("shop", changed), del("shop", changed), del("shop", changed)},
		},
		// A site whose state cannot be read may be anybody's.
		{
			"run shop -- true",
			result{drainedShop + disablingShop + "failed\n", "Error: the command succeeded, but switching off failed: " + unknown, 1},
			[]exchange{on, state(shopOn), quick, state(shopOn), state(shopOn), state(busy)},
		},
		{
			"run shop -- true",
			result{drainedShop + disablingShop + "failed\n", "Error: the command succeeded, but switching off failed: " + unknown, 1},
			[]exchange{on, state(shopOn), quick, state(shopOn), state(shopOn), state(`{"site":"shop","state":"unknown","error":"busy"}`)},
		},
		{
			"run shop -- touch /nowhere/x",
			result{drainedShop + disablingShop + "failed\n", wasNotRun + "\nError: " + unknown, 1},
			[]exchange{on, state(shopOn), quick, state(shopOn), state(busy), state(busy)},
		},
	} {
		runs(t, test.line, test.want, append([]exchange{lists(shopOff)}, test.script...)...)
	}
	runs(t, "run --all -- true", says(enabledShop+enabledWiki+"shop drained\nwiki drained\n"+disabled+disablingWiki+"done\n"),
		lists(shopOff, wikiOff), on, put("wiki"), quick, waits("wiki?wait=1s", 0, 0), del("shop"), del("wiki"))
	runs(t, "run --all -- true", result{enabledShop + enablingWiki + "failed\n" + disabled, "the command was not run\nError: busy; wiki may be in maintenance all the same; to open it: caddy maintenance off wiki\n", 1},
		lists(shopOff, wikiOff), on, put("wiki", busy), del("shop"))
}

// What a signal meets when the command has ended, and only the switching off is left.
func TestInterruptedOpeningNamesTheSitesThatMayBeClosed(t *testing.T) {
	shop, wiki := closedSite{Site: api.Site{Site: "shop"}}, closedSite{Site: api.Site{Site: "wiki"}}
	w := &signalWatch{call: &call{address: "localhost:2020"}}
	w.finishing("the command has ended", []closedSite{shop, wiki})
	for _, want := range []string{
		"the command has ended; shop, wiki may still be in maintenance; to open them: caddy maintenance off shop wiki --address localhost:2020",
		"the command has ended; wiki may still be in maintenance; to open it: caddy maintenance off wiki --address localhost:2020",
		"the command has ended; caddy maintenance --address localhost:2020 shows which sites are open",
	} {
		if got, ends := w.take(os.Interrupt); got != want || !ends {
			t.Errorf("got %t %s, want %s", ends, got, want)
		}
		if len(w.sites) > 0 {
			w.finished(w.sites[0])
		}
	}
}

// A site that somebody else switched is left alone, and a command that does not exist is noticed
// before the switch.
func TestCommandThatCannotRunChangesNothing(t *testing.T) {
	scheduled := with(wikiOff, `"from":"2026-01-31T04:00:00Z"`)
	for _, test := range []struct {
		line, want string
		sites      []string
	}{
		{"run shop", "no command given; write it after -- (for example caddy maintenance run shop -- ./migrate.sh)", nil},
		{"run shop --", "no command given; write it after -- (for example caddy maintenance run shop -- ./migrate.sh)", nil},
		{"run shop -- no-such-command", `exec: "no-such-command": executable file not found in $PATH; nothing has changed`, nil},
		{"run shop -- ./no-such-command", `exec: "./no-such-command": stat ./no-such-command: no such file or directory; nothing has changed`, nil},
		{"run shop --from 5:00 -- true", "--from schedules maintenance, but run begins now; leave out --from", nil},
		{"run shop --terminate-after 10s --wait 10s -- true", `invalid --wait "10s": must be longer than --terminate-after 10s (for example 40s)`, nil},
		{"run nope -- true", `unknown site "nope"; the sites of the running config are: shop, wiki`, []string{shopOff, wikiOff}},
		{"run -- true", "there are several sites; name one of: shop, wiki, or give --all", []string{shopOff, wikiOff}},
		{"run --all -- true", "site shop is already in maintenance; nothing has changed; after a run that failed, finish its work by hand, then: caddy maintenance off shop", []string{shopOn, wikiOff}},
		{"run shop wiki -- true", "site wiki is scheduled to go into maintenance at 2026-01-31T04:00:00Z; nothing has changed", []string{shopOff, scheduled}},
		{"run wiki -- true", "site wiki is not open: its state is unknown; nothing has changed", []string{unknownWiki}},
	} {
		var script []exchange
		if test.sites != nil {
			script = append(script, lists(test.sites...))
		}
		f := newFakeAPI(t, script...)
		args := append([]string{"maintenance"}, strings.Fields(test.line)...)
		if got := f.run(args...); got != fails(test.want) {
			t.Errorf("%s got\n%+v, want\n%s", test.line, got, test.want)
		}
		f.close()
	}
}
