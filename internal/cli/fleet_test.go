package cli

import (
	"strings"
	"testing"
	"time"
)

// What a switch prints for these reports of the instances. They are asked until none is pending,
// and the last reports count.
func TestSwitchIsDoneWhenTheFleetIs(t *testing.T) {
	const (
		path  = "shop/instances"
		maybe = ": it may still let requests in\n"

		forget = "if web-3 has ended for good: caddy maintenance forget web-3\n"
	)
	web1, pending := instance("web-1", "confirmed", 0), instance("web-2", "pending", 0)
	web2, busy2 := instance("web-2", "confirmed", 0), instance("web-2", "confirmed", 5)
	silent, absent := instance("web-3", "silent", 0), instance("web-3", "absent", 0)
	many := strings.Fields(strings.Repeat(web2+" ", 6))
	for want, script := range map[string][]exchange{
		"done\n0":               {instances(path, 0, web1)},
		"done (2 instances)\n0": {instances(path, 0, web1, pending), instances(path, 0, web1, busy2)},
		"done on web-1, web-2; no word from web-3, last seen 1m ago" + maybe + "2":                    {instances(path, 0, web1, pending, silent), instances(path, 0, web1, web2, silent)},
		"done on 6 instances; no word from web-3, last seen 1m ago" + maybe + "2":                     {instances(path, 0, append(many, silent)...)},
		"done on web-1; the config of web-3 does not have the site: nothing blocks requests there\n2": {instances(path, 0, web1, absent)},
		"done on web-1; web-2 is stopping, 1 in flight\n2": {
			instances(path, 4*time.Second, web1, instance("web-2", "stopping", 1)),
			instances(path, 2*time.Second, web1, instance("web-2", "stopping", 1)),
		},
		"done on web-1; the state of the other instances is unknown: the storage is down\n2": {
			{request: "GET /maintenance/" + path, answer: `503 {"error":"the storage is down"}`},
		},
	} {
		f := newFakeAPI(t, append([]exchange{lists(shopOff), put("shop", with(shopOn, `"instance":"web-1"`))}, script...)...)
		got := f.run("maintenance", "on")
		stderr := ""
		if strings.Contains(want, "no word from web-3") {
			stderr = forget
		}
		if got.stdout+string(rune('0'+got.code)) != enablingShop+want || got.stderr != stderr {
			t.Errorf("got %+v, want %s", got, want)
		}
		f.close()
	}
	runs(t, "off", result{disablingShop + "done on web-1; no word from web-3, last seen 1m ago: it may still block requests\n", forget, 2},
		lists(shopOn), del("shop"), instances(path, 0, web1, silent), exchange{request: "GET /maintenance/shop", answer: shopOff})
	runs(t, "on", says(enablingShop+"done (2 instances; was already on since 2026-01-31 02:00 CET)\n"),
		lists(shopOn), patch("shop"), instances(path, 0, web1, web2))
	runs(t, "on", result{
		enablingShop + "done on web-1; no word from web-3, last seen 1m ago: it may still let requests in; no word from web-4, last seen 1m ago" + maybe,
		"if an instance has ended for good: caddy maintenance forget <instance>\n", 2,
	}, lists(shopOff), put("shop"), instances(path, 0, web1, silent, strings.ReplaceAll(silent, "web-3", "web-4")))
	// Two processes on one host are told apart.
	twin := strings.Replace(silent, `"instance":"web-3"`, `"instance":"web-1"`, 1)
	runs(t, "on", result{enablingShop + "done on web-1-1; no word from web-3-1, last seen 1m ago" + maybe, strings.ReplaceAll(forget, "web-3", "web-3-1"), 2},
		lists(shopOff), put("shop"), instances(path, 0, web1, twin))
	// Somebody else was faster.
	runs(t, "on", result{enablingShop + "failed\n", "Error: shop is off again: somebody switched it, or its maintenance ended by itself, before every instance had confirmed\n", 1},
		lists(shopOff), put("shop"), instances(path, 0, web1, web2), exchange{request: "GET /maintenance/shop", answer: shopOff})
	// A clock that is off is a warning.
	for offset, words := range map[string]string{"1h0m0s": "1h0m0s ahead of", "-45s": "45s behind"} {
		runs(t, "on", result{
			enablingShop + "done (2 instances)\n",
			"warning: the clock of web-2 is about " + words + " this instance's; each instance begins and ends maintenance by its own clock\n", 0,
		}, lists(shopOff), put("shop"), instances(path, 0, web1, with(web2, `"clock_offset":"`+offset+`"`)))
	}
}

// What is printed while the command waits for a fleet, and at the end.
func TestWaitNamesEachInstanceThatIsNotDrained(t *testing.T) {
	const path = "shop/instances?wait=1s"
	web1, pending, silent := instance("web-1", "confirmed", 0), instance("web-2", "pending", 0), instance("web-3", "silent", 0)
	at := func(n int) string { return instance("web-2", "confirmed", n) }
	runs(t, "shop --wait 10s", says("shop: web-2 has not confirmed yet\nshop: 2 in flight on web-2\nshop: no word from web-3\ndrained (2 instances)\n"),
		lists(shopOn), instances(path, time.Second, web1, pending), instances(path, time.Second, web1, at(2)),
		instances(path, time.Second, web1, at(2), silent), instances(path, time.Second, web1, at(0)))
	runs(t, "shop --wait 1s", result{"", "shop: not drained in 1s: 1 in flight on web-2; no word from web-3, last seen 1m1s ago; maintenance stays on\n", 2},
		lists(shopOn), instances(path, time.Second, web1, at(1), silent))
}

func TestInstancesAreATable(t *testing.T) {
	ask := func(list ...string) exchange { return instances("instances", 0, list...) }
	web1, web2 := instance("web-1", "confirmed", 3), with(instance("web-2", "silent", 0), `"clock_offset":"-1h0m0s"`)
	runs(t, "instances", says(""+
		"INSTANCE  STATE      LAST SEEN  SYNCS EVERY  IN FLIGHT  CLOCK\n"+
		"web-1     confirmed  1m ago     2s           3          ok\n"+
		"web-2     silent     1m ago     2s           0          -1h0m0s\n"), ask(instance("web-2", "pending", 0)), ask(web1, web2))
	runs(t, "instances --json", says("["+web1+"]\n"), ask(web1))
}

func TestInstanceIsForgotten(t *testing.T) {
	runs(t, "forget web/3", says("Forgetting web/3... done\n"), exchange{request: "DELETE /maintenance/instances/web%2F3", answer: "[]"})
	runs(t, "forget web-3", result{"Forgetting web-3... failed\n", "Error: web-3 answers\n", 1},
		exchange{request: "DELETE /maintenance/instances/web-3", answer: `409 {"error":"web-3 answers"}`})
	f := newFakeAPI(t, instances("instances", 0, instance("web-1", "confirmed", 0), instance("web-3", "silent", 0)))
	if got := f.run("__complete", "maintenance", "forget", ""); got.stdout != "web-1\nweb-3\n:4\n" {
		t.Errorf("the shell is offered %+v", got)
	}
}
