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
	got := c.command("maintenance", "on", "shop", "--with-secret")
	said := regexp.MustCompile(`^Enabling maintenance mode for shop\.\.\. done\nTo get in, open (/\.maintenance/([A-Za-z0-9_-]{16,128})) on the site\n$`)
	words := said.FindStringSubmatch(got.stdout)
	if words == nil || got.code != 0 || got.stderr != "" {
		t.Fatalf("got %+v", got)
	}
	tester := newTester(t)
	tester.open(shop, words[1])
	tester.expect(shop, http.StatusOK)
	shop.expect(t, http.StatusServiceUnavailable)
	expectNoLog(t, c, words[2])
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
