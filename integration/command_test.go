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
		{
			"on nope",
			`unknown site "nope"; the sites of the running config are: shop, wiki (caddy maintenance --help shows the commands)`,
		},
		{
			"on shop nope",
			`unknown site "nope"; the sites of the running config are: shop, wiki (caddy maintenance --help shows the commands)`,
		},
		{
			"off nope",
			`unknown site "nope"; the sites of the running config are: shop, wiki (caddy maintenance --help shows the commands)`,
		},
		{
			"nope",
			`unknown site "nope"; the sites of the running config are: shop, wiki (caddy maintenance --help shows the commands)`,
		},
		{
			"on",
			"there are several sites; name one of: shop, wiki, or give --all",
		},
		{
			"off",
			"there are several sites; name one of: shop, wiki, or give --all",
		},
		{
			"on --all shop",
			"--all switches every site; name sites or give --all, not both",
		},
		{
			"off --all wiki",
			"--all switches every site; name sites or give --all, not both",
		},
		{
			"on shop --until soon",
			`--until: "soon" given, a time as in RFC 3339 is accepted, such as TIME; a time of day such as 15:04 is accepted too, and --for takes a duration`,
		},
		{
			"on shop --until 2001-01-01T00:00:00Z",
			"--until: TIME given, a time in the future is accepted; it is TIME now; a time of day such as 15:04 is accepted too, and --for takes a duration",
		},
		{
			"on shop --for 10m --until 15:00",
			"--for and --until both say when maintenance ends; give one of them",
		},
		{
			"on shop --for soon",
			`--for: "soon" given, a duration above zero is accepted, such as 30m`,
		},
		{
			"on shop --for -1m",
			`--for: "-1m" given, a duration above zero is accepted, such as 30m`,
		},
		{
			"on shop --wait soon",
			`--wait: "soon" given, a duration above zero is accepted, such as 30s`,
		},
		{
			"on shop --wait 0s",
			`--wait: "0s" given, a duration above zero is accepted, such as 30s`,
		},
		{
			"shop --wait 1x",
			`--wait: "1x" given, a duration above zero is accepted, such as 30s`,
		},
		{
			"on shop --message " + strings.Repeat("x", 1001),
			"--message: 1001 characters given, at most 1000 are accepted",
		},
		{
			"on shop --retry-after 0.5s",
			`--retry-after: "0.5s" given, a duration of at least 1s is accepted, such as "90s", "1.5h" or "1d"`,
		},
		{
			"on shop --retry-after 60",
			`--retry-after: "60" given, a duration of at least 1s is accepted, such as "90s", "1.5h" or "1d"`,
		},
		{
			"on shop --hold 0s",
			`--hold: "0s" given, a duration above zero of at most 5m0s is accepted, such as "30s"`,
		},
		{
			"on shop --hold 301s",
			`--hold: "301s" given, a duration above zero of at most 5m0s is accepted, such as "30s"`,
		},
		{
			"on shop --hold 30",
			`--hold: "30" given, a duration above zero of at most 5m0s is accepted, such as "30s"`,
		},
		{
			"on shop --secret Tell-Nobody",
			"--bypass-secret: what is given does not fit, 16 to 128 of A-Z a-z 0-9 - _ are accepted",
		},
		{
			"on shop --bypass-secret Tell-Nobody-of-this!",
			"--bypass-secret: what is given does not fit, 16 to 128 of A-Z a-z 0-9 - _ are accepted",
		},
		{
			"on shop --with-secret --secret 0123456789-ABCDEF",
			"--bypass-secret gives a secret and --with-bypass-secret makes one; give one of them",
		},
		{
			"on shop --with-bypass-secret --bypass-secret=",
			"--bypass-secret gives a secret and --with-bypass-secret makes one; give one of them",
		},
		{
			"off shop --hold 30s",
			"unknown flag: --hold; see caddy maintenance off --help",
		},
		{
			"shop wiki",
			"this shows one site, or all if none is named; sites are switched with: caddy maintenance on|off <site>",
		},
		{
			"shop on",
			"this shows one site, or all if none is named; sites are switched with: caddy maintenance on|off <site>",
		},
		{
			"shop --wait 1s",
			"shop is not in maintenance on this instance, its state is off; if another has just switched it on, try again in a moment",
		},
		{
			"--wait 1s",
			"there are several sites; name one of: shop, wiki",
		},
		{
			"off wiki --wait 1s",
			"unknown flag: --wait; see caddy maintenance off --help",
		},
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

	for _, args := range [][]string{{"on", "shop"}, {"off", "shop"}, {"shop"}, {}} {
		line := append([]string{"maintenance"}, args...)
		down.expectError("Caddy cannot be reached at ADDRESS; start it, or say with --address or --config where its admin API listens "+
			`(performing request: Get "http://ADDRESS/maintenance": dial tcp ADDRESS: connect: connection refused)`, line...)
		without.expectError("no site of the running config can be switched; "+
			`add a directive such as "maintenance shop" to a site block and reload Caddy`, line...)
		down.expectError("the Caddy at ADDRESS was built without the maintenance module; "+
			"`caddy list-modules` shows what a Caddy was built with", append(line, "--address", address)...)
	}
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
