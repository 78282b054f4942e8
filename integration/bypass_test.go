package integration

import (
	"net/http"
	"net/http/cookiejar"
	"testing"
)

const testSecret = "Open-Sesame_0123456789"

func TestLinkAndCookieAreGoodForEveryInstance(t *testing.T) {
	t.Parallel()
	fleet := newFleet(t, 2)
	fleet[0].on("shop", `{"bypass_secret": "`+testSecret+`"}`)
	eventually(t, patience, "the other instance follows", func() bool {
		return fleet[1].fields("/maintenance/shop")["bypass_secret"] == true
	})
	for i := range fleet {
		here, there := fleet[i].shop, fleet[1-i].shop
		tester := newTester()
		expectCode(t, tester, here.url()+".maintenance/"+testSecret, http.StatusOK)
		expectCode(t, tester, here.url(), http.StatusOK)
		expectCode(t, tester, there.url(), http.StatusOK)
		here.expect(t, http.StatusServiceUnavailable)
		fleet[i].kill()
		fleet[i].start(fleet[i].caddyfile(here))
		expectCode(t, tester, here.url(), http.StatusOK)
	}
}

// newTester returns a visitor with a cookie jar, which does not tell ports apart.
func newTester() *http.Client {
	jar, _ := cookiejar.New(nil)
	return &http.Client{Timeout: patience, Transport: visitors.Transport, Jar: jar}
}

func expectCode(t *testing.T, client *http.Client, url string, want int) {
	t.Helper()
	if got, err := fetch(client, url); got != want {
		t.Errorf("%s got %d %v, want %d", url, got, err, want)
	}
}
