package integration

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
)

// G7
func TestWrongCommandLineIsExplainedAndChangesNothing(t *testing.T) {
	t.Parallel()
	upstream := newApp(t, welcome)
	c := newCaddy(t)
	c.start(c.caddyfile(newSite(t, "shop", upstream), newSite(t, "wiki", upstream)))
	c.on("wiki", `{"message": "Back soon."}`)
	shop, wiki := c.status("shop"), c.status("wiki")

	for _, test := range []struct{ line, want string }{
		{"on nope", `unknown site "nope"; the sites of the running config are: shop, wiki (caddy maintenance --help shows the commands)`},
		{"on", "there are several sites; name one of: shop, wiki, or give --all"},
		{
			"on shop --until soon",
			`--until: "soon" given, a time as in RFC 3339 is accepted, such as TIME; a time of day such as 15:04 is accepted too, and --for takes a duration`,
		},
		{"on --all --hold 301s", `--hold: "301s" given, a duration above zero of at most 5m0s is accepted, such as "30s"`},
		{"on shop --secret Tell-Nobody", "--bypass-secret: what is given does not fit, 16 to 128 of A-Z a-z 0-9 - _ are accepted"},
		{"off shop --hold 30s", "unknown flag: --hold; see caddy maintenance off --help"},
		{"wiki shop", "this shows one site, or all if none is named; sites are switched with: caddy maintenance on|off <site>"},
	} {
		c.expectError(test.want, strings.Fields("maintenance "+test.line)...)
	}
	if got := c.status("shop"); got != shop {
		t.Errorf("shop has become %+v", got)
	}
	if got := c.status("wiki"); got != wiki {
		t.Errorf("wiki has become %+v", got)
	}
}

// G7
func TestCommandSaysWhatToDoWhereNothingCanBeSwitched(t *testing.T) {
	t.Parallel()
	stranger := httptest.NewServer(http.NotFoundHandler())
	defer stranger.Close()
	address := stranger.Listener.Addr().String()
	without := newCaddy(t)
	without.start(without.caddyfile())
	down := newCaddy(t)

	line := []string{"maintenance", "on", "shop"}
	down.expectError("Caddy cannot be reached at ADDRESS; start it, or say with --address or --config where its admin API listens "+
		`(performing request: Get "http://ADDRESS/maintenance": dial tcp ADDRESS: connect: connection refused)`, line...)
	without.expectError("no site of the running config can be switched; "+
		`add a directive such as "maintenance shop" to a site block and reload Caddy`, line...)
	down.expectError("the Caddy at ADDRESS was built without the maintenance module; "+
		"`caddy list-modules` shows what a Caddy was built with", append(line, "--address", address)...)
}

// What the command sends is what the admin API takes, and shows again.
func TestCommandSetsAndClearsEveryOption(t *testing.T) {
	t.Parallel()
	c := newCaddy(t)
	shop := newSite(t, "shop", newApp(t, welcome))
	c.start(c.caddyfile(shop))
	got := c.command(strings.Fields("maintenance on shop --message Soon. --retry-after 1m --until 2050-01-31T04:00:00+01:00 " +
		"--hold 1.5m --terminate-after 1d --secret " + testSecret)...)
	const done = "Enabling maintenance mode for shop... done, ends by itself 2050-01-31 03:00 UTC (in "
	if !strings.HasPrefix(got.stdout, done) || got.code != 0 || got.stderr != "" {
		t.Fatalf("got %+v, want %s", got, done)
	}
	tester := newTester(t)
	tester.open(shop, "/.maintenance/"+testSecret)
	options := map[string]any{
		"message": "Soon.", "retry_after": "1m", "until": "2050-01-31T03:00:00Z",
		"hold": "1.5m", "terminate_after": "1d", "bypass_secret": true,
	}
	answer := c.fields("/maintenance/shop")
	for name, want := range options {
		if answer[name] != want {
			t.Errorf("%s is %v, want %v", name, answer[name], want)
		}
	}
	since := c.status("shop").Since.Format("2006-01-02 15:04 MST")
	c.expect("Enabling maintenance mode for shop... done (was already on since "+since+"), does not end by itself any more\n", strings.Fields(
		"maintenance on shop --message= --retry-after= --until= --hold= --terminate-after= --secret=")...)
	tester.expect(shop, http.StatusServiceUnavailable)
	answer = c.fields("/maintenance/shop")
	for name := range options {
		if got := answer[name]; got != nil && got != false {
			t.Errorf("%s is %v, want none", name, got)
		}
	}
	expectNoLog(t, c, testSecret)
}

// expectError runs a command line that must fail with this message and no
// other output, where TIME and ADDRESS stand for any.
func (c *caddy) expectError(want string, args ...string) {
	c.t.Helper()
	got := c.command(args...)
	got.stderr = someTime.ReplaceAllString(got.stderr, "TIME")
	got.stderr = someAddress.ReplaceAllString(got.stderr, "ADDRESS")
	if got != (output{stderr: "Error: " + want + "\n", code: 1}) {
		c.t.Errorf("caddy %s: got %+v, want status 1 and the error %q", strings.Join(args, " "), got, want)
	}
}

var (
	someTime    = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`)
	someAddress = regexp.MustCompile(`127\.0\.0\.1:\d+`)
)
