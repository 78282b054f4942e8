package integration

import (
	"net/http"
	"net/http/cookiejar"
	"regexp"
	"strings"
	"testing"
)

const testSecret = "Open-Sesame_0123456789"

func TestLinkAndCookieAreGoodForEveryInstance(t *testing.T) {
	t.Parallel()
	fleet := newFleet(t, 2)
	fleet[0].on("shop", `{"bypass_secret": "`+testSecret+`"}`)
	eventually(t, patience, "the other instance follows", func() bool {
		return siteAnswer(t, fleet[1].caddy, "shop")["bypass_secret"] == true
	})
	for i := range fleet {
		here, there := fleet[i].shop, fleet[1-i].shop
		tester := newTester(t)
		tester.open(here, "/.maintenance/"+testSecret)
		tester.expect(here, http.StatusOK)
		tester.expect(there, http.StatusOK)
		here.expect(t, http.StatusServiceUnavailable)
		fleet[i].kill()
		fleet[i].start(fleet[i].caddyfile(here))
		tester.expect(here, http.StatusOK)
	}
}

func TestCommandMakesALink(t *testing.T) {
	t.Parallel()
	c := newCaddy(t)
	shop := newSite(t, "shop", newApp(t, welcome))
	c.start(c.caddyfile(shop))
	said := regexp.MustCompile(`^Enabling maintenance mode for shop\.\.\. done( \(was already on since .*\))?\n` +
		`To get in, open (/\.maintenance/[A-Za-z0-9_-]{16,128}) on the site\n$`)
	var before *tester
	seen := make(map[string]bool)
	for _, flag := range []string{"--with-bypass-secret", "--with-secret", "--with-secret"} {
		got := c.command("maintenance", "on", "shop", flag)
		words := said.FindStringSubmatch(got.stdout)
		if words == nil || got.code != 0 || got.stderr != "" {
			t.Fatalf("%s: got %+v", flag, got)
		}
		link := words[2]
		if seen[link] {
			t.Errorf("%s makes %s again", flag, link)
		}
		seen[link] = true
		if before != nil {
			before.expect(shop, http.StatusServiceUnavailable)
		}
		before = newTester(t)
		before.open(shop, link)
		before.expect(shop, http.StatusOK)
		expectNoLog(t, c, strings.TrimPrefix(link, "/.maintenance/"))
	}
	shop.expect(t, http.StatusServiceUnavailable)
}

// A tester of one site does not get into another.
func TestCommandMakesALinkForEachSite(t *testing.T) {
	t.Parallel()
	c := newCaddy(t)
	upstream := newApp(t, welcome)
	shop, wiki := newSite(t, "shop", upstream), newSite(t, "wiki", upstream)
	c.start(c.caddyfile(shop, wiki))
	got := c.command("maintenance", "on", "--all", "--with-secret")
	links := regexp.MustCompile(`(?m)^To get in, open (/.*) on the site$`).FindAllStringSubmatch(got.stdout, -1)
	if got.code != 0 || len(links) != 2 || links[0][1] == links[1][1] {
		t.Fatalf("got %+v", got)
	}
	for i, site := range []site{shop, wiki} {
		tester := newTester(t)
		tester.open(site, links[i][1])
		tester.expect(site, http.StatusOK)
	}
}

func TestCommandTakesASecret(t *testing.T) {
	t.Parallel()
	c := newCaddy(t)
	shop := newSite(t, "shop", newApp(t, welcome))
	c.start(c.caddyfile(shop))
	for _, flag := range []string{"--bypass-secret", "--secret"} {
		c.expect("Enabling maintenance mode for shop... done\n", "maintenance", "on", "shop", flag, testSecret)
		tester := newTester(t)
		tester.open(shop, "/.maintenance/"+testSecret)
		again := "Enabling maintenance mode for shop... done (was already on since " + c.status("shop").Since.Format("2006-01-02 15:04 MST") + ")\n"
		c.expect(again, "maintenance", "on", "shop", "--message", "Back soon.")
		c.expect(again, "maintenance", "on", "shop", flag+"="+testSecret)
		tester.expect(shop, http.StatusOK)
		c.expect(again, "maintenance", "on", "shop", flag, "")
		tester.expect(shop, http.StatusServiceUnavailable)
		if got := siteAnswer(t, c, "shop")["bypass_secret"]; got != false {
			t.Errorf("bypass_secret is %v, want false", got)
		}
		c.off("shop")
	}
	expectNoLog(t, c, testSecret)
}

func TestHelpTellsOfHoldAndSecrets(t *testing.T) {
	t.Parallel()
	expectHelp(t, newCaddy(t),
		"--hold string", "Hold each request up to this long before it gets the page, at most 5m\n",
		"--bypass-secret string", "Let in who opens /.maintenance/<secret>, 16 to 128 of A-Z a-z 0-9 - _ (also --secret)\n",
		"--with-bypass-secret", "Make such a secret, and print what to open (also --with-secret)\n")
}

// tester is a visitor with a cookie jar, which does not tell ports apart.
type tester struct {
	t      *testing.T
	client *http.Client
}

func newTester(t *testing.T) *tester {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browser := *visitors
	browser.Jar = jar
	return &tester{t, &browser}
}

// open opens a link, which must lead to the app.
func (v *tester) open(s site, link string) {
	v.t.Helper()
	if got, err := fetch(v.client, strings.TrimSuffix(s.url(), "/")+link); got != http.StatusOK {
		v.t.Errorf("%s on %s leads to %d %v, want the app", link, s.name, got, err)
	}
}

func (v *tester) expect(s site, want int) {
	v.t.Helper()
	if got, err := fetch(v.client, s.url()); got != want {
		v.t.Errorf("who has opened the link got %d %v, want %d", got, err, want)
	}
}
