package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// G7
func TestWrongCommandLineIsExplained(t *testing.T) {
	const (
		unknown  = `unknown site "nope"; the sites of the running config are: shop, wiki`
		commands = " (for commands, see caddy maintenance --help)"
		multiple = "there are several sites; name one of: shop, wiki"
		notBoth  = "--all switches every site; name sites or give --all, not both"
		toShow   = "; to show sites, name one site, or none for all"
		oneSite  = "too many arguments: name one site, or none to show all; to switch sites: caddy maintenance on|off <site>"
		oneEnd   = "--for and --until both say when maintenance ends; give only one of them"
		oneWay   = "--bypass-secret sets a secret and --with-bypass-secret generates one; give only one of them"
	)
	asked := []exchange{lists(shopOff, wikiOn)}
	for _, test := range []struct {
		lines  string // separated by semicolons
		script []exchange
		want   string
	}{
		{"nope", asked, unknown + commands},
		{"on nope; on shop nope; off shop nope; page nope", asked, unknown},
		{
			"status; status shop; help", nil,
			`unknown command "COMMAND"; caddy maintenance [<site>] shows sites, and caddy maintenance --help explains the commands`,
		},
		{"on; off", asked, multiple + ", or give --all"},
		{"--wait 1s", asked, multiple},
		{
			"shop --wait 1s",
			[]exchange{lists(shopOff), {request: "GET /maintenance/shop", answer: shopOff, takes: time.Second}},
			"shop is not in maintenance: its state is still off after 1s",
		},
		{"on --all shop; off --all wiki", asked, notBoth},
		{"shop wiki; shop xyz", nil, oneSite},
		{"onn shop; onn shop wiki", nil, `unknown command "onn" (did you mean on?)` + toShow},
		{"forgett web-1", nil, `unknown command "forgett" (did you mean forget?)` + toShow},
		{"of shop", nil, `unknown command "of" (did you mean off or on?)` + toShow},
		{"page shop wiki", nil, "too many arguments: page prints the page of one site"},
		{"instances web-1", nil, "too many arguments: instances takes no arguments"},
		{"forget", nil, "no instance given; caddy maintenance instances lists them"},
		{"forget web-1 web-2", nil, "too many arguments: forget takes one instance"},
		{"on shop --message Back at nope", asked, `unknown site "at"; the sites of the running config are: shop, wiki; a text with spaces needs quotes (for example --message "Back at three.")`},
		{"on shpo", asked, strings.Replace(strings.Replace(unknown, "nope", "shpo", 1), ";", " (did you mean shop?);", 1)},
		{"on shop --for 10m --until 15:00; on shop --for 10m --until=", nil, oneEnd},
		{"on shop --with-secret --secret 0123456789-ABCDEF; on shop --with-bypass-secret --bypass-secret=", nil, oneWay},
		{"on shop --json", nil, "unknown flag: --json; see caddy maintenance on --help"},
		{"off shop --hold 30s", nil, "unknown flag: --hold; see caddy maintenance off --help"},
		{"off wiki --wait 1s", nil, "unknown flag: --wait; see caddy maintenance off --help"},
	} {
		for line := range strings.SplitSeq(test.lines, ";") {
			runs(t, line, fails(strings.ReplaceAll(test.want, "COMMAND", strings.Fields(line + " x")[0])), test.script...)
		}
	}
	for _, test := range []struct{ flag, values, want string }{
		{"--for", "soon 0s -1m -30", `invalid --for "VALUE": must be a duration above zero (for example 30s)`},
		{"--wait", "soon 0s -1s", `invalid --wait "VALUE": must be a duration above zero (for example 30s)`},
	} {
		for value := range strings.FieldsSeq(test.values) {
			runs(t, "on shop "+test.flag+" "+value, fails(strings.ReplaceAll(test.want, "VALUE", value)))
		}
	}
	runs(t, "shop --wait=", fails(`invalid --wait "": must be a duration above zero (for example 30s)`))
}

func TestInvalidOptionIsExplained(t *testing.T) {
	for flag, want := range map[string]string{
		"--message a\u202eb":     `invalid --message "a\u202eb": must be one line of plain text, contains the control character U+202E`,
		"--retry-after 60":       `invalid --retry-after "60": a unit is missing (for example 60s)`,
		"--retry-after 10ms":     `invalid --retry-after "10ms": must be a duration of at least 1s (for example 90s, 1.5h or 1d)`,
		"--from noon":            `invalid --from "noon": must be 15:04, or an RFC 3339 time (for example 2026-01-31T02:00:00Z)`,
		"--until noon":           `invalid --until "noon": must be 15:04, or an RFC 3339 time (for example 2026-01-31T03:00:00Z); for a duration, use --for`,
		"--hold 6m":              `invalid --hold "6m": must be a duration above zero, at most 5m (for example 30s)`,
		"--terminate-after soon": `invalid --terminate-after "soon": must be a duration above zero (for example 30s)`,
		"--bypass-secret short":  `invalid --bypass-secret: must be 16 to 128 characters from A-Z a-z 0-9 - _`,
		"--for 30":               `invalid --for "30": a unit is missing (for example 30s)`,
		"--until " + typed.Add(-time.Minute).Format(time.RFC3339): fmt.Sprintf("invalid --until %q: must be in the future; it is now %s",
			typed.Add(-time.Minute).Format(time.RFC3339), typed.UTC().Format(time.RFC3339)),
	} {
		runs(t, "on shop "+flag, fails(want))
	}
}

// G7
func TestFailedRequestIsExplained(t *testing.T) {
	const none = "the running config has no maintenance directive; " +
		"add one to a site block (for example maintenance shop) and reload Caddy"
	const absent = "the Caddy at ADDRESS was built without the maintenance module; if you have installed another one, restart the service (a reload keeps the old binary)"
	for answer, want := range map[string]string{
		"[]":                                    none,
		`503 {"error":"no config is running"}`:  "no config is running",
		`403 {"error":"host not allowed"}`:      "host not allowed",
		`404 {"error":"unknown site"}`:          "unknown site",
		"404 404 page not found":                absent,
		"404 {}":                                absent,
		"502 <html>":                            "caddy responded with error: HTTP 502: <html>",
		"500 HTTP 404: not the status that was": "caddy responded with error: HTTP 500: HTTP 404: not the status that was",
		"<html>":                                "reading the admin API's answer: invalid character '<' looking for beginning of value",
	} {
		for _, line := range []string{"", "shop", "on shop", "off shop"} {
			runs(t, line, fails(want), exchange{request: "GET /maintenance", answer: answer})
		}
	}
}

func TestAddressIsTakenFromTheConfig(t *testing.T) {
	f := newFakeAPI(t, lists(shopOn))
	config := filepath.Join(t.TempDir(), "caddy.json")
	if err := os.WriteFile(config, []byte(`{"admin":{"listen":"`+f.address+`"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := f.run("maintenance", "--config", config); got != says("on\n") {
		t.Errorf("got %+v, want on", got)
	}
	missing := config + ".missing"
	got := f.run("maintenance", "--config", missing)
	const want = "Error: finding the address of Caddy's admin API: "
	if !strings.HasPrefix(got.stderr, want) || !strings.Contains(got.stderr, missing) || got.code != 1 {
		t.Errorf("got %+v", got)
	}
}

// A command line that is printed to be pasted reaches the same Caddy.
func TestHintsRepeatTheFlagsThatSayWhereCaddyIs(t *testing.T) {
	const flags = ` --address ADDRESS --config 'it'\''s here.json' --adapter json`
	gone := with(shopOn, `"configured":false`)
	silent := instances("shop/instances", 0, instance("web-1", "confirmed", 0), instance("web-3", "silent", 0))
	for _, test := range []struct {
		line, hint string
		script     []exchange
	}{
		{"on shop", "caddy maintenance forget web-3", []exchange{lists(shopOff), put("shop"), silent}},
		{"on shop", "caddy maintenance off shop", []exchange{lists(gone)}},
		{"shop", "caddy maintenance off shop", []exchange{lists(gone)}},
		{"shop", "caddy maintenance off shop", []exchange{lists(`{"site":"shop","state":"unknown"}`)}},
		{"forget", "caddy maintenance instances", nil},
		{"run shop -- false", "caddy maintenance off shop", []exchange{lists(shopOff), put("shop"), waits("shop?wait=1s", 0, 0)}},
		{"run shop -- true", "caddy maintenance off shop", []exchange{lists(shopOff), put("shop", diskFull)}},
		{"run shop -- true", "caddy maintenance off shop", []exchange{lists(shopOn)}},
		{"run shop -- true", "caddy maintenance off shop", []exchange{lists(gone)}},
		{"run shop -- true", "caddy maintenance off shop", []exchange{lists(shopOff), put("shop"), waits("shop?wait=1s", 0, 0), del("shop", diskFull)}},
		{
			"run shop -- true", "caddy maintenance off shop",
			[]exchange{
				lists(shopOff), put("shop"), waits("shop?wait=1s", 0, 0),
				{request: "GET /maintenance/shop", answer: shopOn},
				{request: "GET /maintenance/shop", answer: gone},
				{request: "GET /maintenance/shop", answer: gone},
			},
		},
	} {
		f := newFakeAPI(t, test.script...)
		f.terminal = true
		words := strings.Fields(test.line)
		args := append([]string{"maintenance", words[0], "--address", f.address, "-c", "it's here.json", "--adapter", "json"}, words[1:]...)
		if got := f.run(args...); !strings.Contains(got.stdout+got.stderr, test.hint+flags) {
			t.Errorf("%s got\n%+v, want %s", test.line, got, test.hint+flags)
		}
		f.close()
	}
}

func TestCaddyThatIsNotRunningIsSaidToBe(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "admin.sock")
	got := newFakeAPI(t).run("maintenance", "--address", "unix/"+socket)
	want := "Error: Caddy cannot be reached at unix/" + socket +
		"; start it, or say with --address or --config where its admin API listens (performing request: "
	if !strings.HasPrefix(got.stderr, want) || got.code != 1 {
		t.Errorf("got %+v", got)
	}
}

func TestWrongAddressIsExplained(t *testing.T) {
	const (
		socket  = "a socket is written as unix/ and its path (for example unix//run/caddy/admin.sock)"
		port    = "the port is missing (for example localhost:2019)"
		address = "must be a host and a port, or a socket (for example localhost:2019 or unix//run/caddy/admin.sock)"
	)
	for given, want := range map[string]string{
		"unix:/run/caddy/admin.sock":   socket,
		"unix:///run/caddy/admin.sock": socket,
		"unix/":                        socket,
		"localhost":                    port,
		"http://localhost/":            port,
		"[::1]":                        port,
		"2019":                         port,
		"localhost:2019/":              address,
		"localhost:http":               address,
		"localhost:2019-2020":          address,
		"https://localhost:2019":       address,
		"fd/3":                         address,
	} {
		got := newFakeAPI(t).run("maintenance", "shop", "--address", given)
		if want := fails(fmt.Sprintf("invalid --address %q: %s", given, want)); got != want {
			t.Errorf("%s got\n%+v, want\n%+v", given, got, want)
		}
	}
	got := newFakeAPI(t).run("maintenance", "--address", "unix/run/caddy/admin.sock")
	if !strings.Contains(got.stderr, "an absolute path begins with a second slash: unix//run/caddy/admin.sock") || got.code != 1 {
		t.Errorf("got %+v", got)
	}
}
