package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// G7
func TestWrongCommandLineIsExplained(t *testing.T) {
	const (
		unknown  = `unknown site "nope"; the sites of the running config are: shop, wiki (caddy maintenance --help shows the commands)`
		multiple = "there are several sites; name one of: shop, wiki"
		notBoth  = "--all switches every site; name sites or give --all, not both"
		oneSite  = "this shows one site, or all if none is named; sites are switched with: caddy maintenance on|off <site>"
		oneEnd   = "--for and --until both say when maintenance ends; give one of them"
		oneWay   = "--bypass-secret gives a secret and --with-bypass-secret makes one; give one of them"
	)
	for _, test := range []struct {
		line  string
		lists bool // the admin API is asked for its sites, and for nothing else in any case
		want  string
	}{
		{"nope", true, unknown},
		{"on nope", true, unknown},
		{"on shop nope", true, unknown},
		{"off shop nope", true, unknown},
		{"on", true, multiple + ", or give --all"},
		{"off", true, multiple + ", or give --all"},
		{"--wait 1s", true, multiple},
		{"on --all shop", true, notBoth},
		{"off --all wiki", true, notBoth},
		{"shop wiki", false, oneSite},
		{"shop on", false, oneSite},
		{"on shop --message a\u202eb", false, "--message: a control character (U+202E) given, one line of plain text is accepted"},
		{"on shop --retry-after bad", false, `--retry-after: "bad" given, a duration of at least 1s is accepted, such as "90s", "1.5h" or "1d"`},
		{"on shop --until bad", false, `--until: "bad" given, a time as in RFC 3339 is accepted, such as 2026-01-31T03:00:00Z; a time of day such as 15:04 is accepted too, and --for takes a duration`},
		{"on shop --hold bad", false, `--hold: "bad" given, a duration above zero of at most 5m0s is accepted, such as "30s"`},
		{"on shop --terminate-after bad", false, `--terminate-after: "bad" given, a duration above zero is accepted, such as "30s"`},
		{"on shop --secret bad", false, "--bypass-secret: what is given does not fit, 16 to 128 of A-Z a-z 0-9 - _ are accepted"},
		{"on shop --for 10m --until 15:00", false, oneEnd},
		{"on shop --for 10m --until=", false, oneEnd},
		{"on shop --for soon", false, `--for: "soon" given, a duration above zero is accepted, such as 30m`},
		{"on shop --for 0s", false, `--for: "0s" given, a duration above zero is accepted, such as 30m`},
		{"on shop --for -1m", false, `--for: "-1m" given, a duration above zero is accepted, such as 30m`},
		{"on shop --wait soon", false, `--wait: "soon" given, a duration above zero is accepted, such as 30s`},
		{"on shop --wait 0s", false, `--wait: "0s" given, a duration above zero is accepted, such as 30s`},
		{"on shop --wait=", false, `--wait: "" given, a duration above zero is accepted, such as 30s`},
		{"shop --wait -1s", false, `--wait: "-1s" given, a duration above zero is accepted, such as 30s`},
		{"on shop --with-secret --secret 0123456789-ABCDEF", false, oneWay},
		{"on shop --with-bypass-secret --bypass-secret=", false, oneWay},
		{"on shop --json", false, "unknown flag: --json; see caddy maintenance on --help"},
		{"off shop --hold 30s", false, "unknown flag: --hold; see caddy maintenance off --help"},
		{"off wiki --wait 1s", false, "unknown flag: --wait; see caddy maintenance off --help"},
		{"shop --wait 1s", true, "shop is not in maintenance on this instance, its state is off; if another has just switched it on, try again in a moment"},
	} {
		var script []exchange
		if test.lists {
			script = []exchange{lists(shopOff, wikiOn)}
		}
		runSessions(t, []session{{line: test.line, script: script, stderr: "Error: " + test.want + "\n", code: 1}})
	}
}

// G7
func TestFailedRequestIsExplained(t *testing.T) {
	const absent = "the Caddy at ADDRESS was built without the maintenance module; `caddy list-modules` shows what a Caddy was built with"
	for answer, want := range map[string]string{
		"[]":                                    `no site of the running config can be switched; add a directive such as "maintenance shop" to a site block and reload Caddy`,
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
			script := []exchange{{request: "GET /maintenance", answer: answer}}
			runSessions(t, []session{{line: line, script: script, stderr: "Error: " + want + "\n", code: 1}})
		}
	}
}

func TestAddressIsTakenFromTheConfig(t *testing.T) {
	f := newFakeAPI(t, lists(shopOn))
	config := filepath.Join(t.TempDir(), "caddy.json")
	if err := os.WriteFile(config, []byte(`{"admin":{"listen":"`+f.address+`"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := f.run("maintenance", "--config", config), (result{stdout: "on\n"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	missing := config + ".missing"
	got := f.run("maintenance", "--config", missing)
	if !strings.HasPrefix(got.stderr, "Error: finding the address of Caddy's admin API: ") || !strings.Contains(got.stderr, missing) || got.code != 1 {
		t.Errorf("got %+v", got)
	}
}

func TestCaddyThatIsNotRunningIsSaidToBe(t *testing.T) {
	f := newFakeAPI(t)
	socket := filepath.Join(t.TempDir(), "admin.sock")
	got := f.run("maintenance", "--address", "unix/"+socket)
	if !strings.HasPrefix(got.stderr, "Error: Caddy cannot be reached at unix/"+socket+"; start it, or say with --address or --config where its admin API listens (performing request: ") || got.code != 1 {
		t.Errorf("got %+v", got)
	}
}
