package integration

import (
	"net/http"
	"net/http/cookiejar"
	"testing"
)

const testSecret = "Open-Sesame_0123456789"

func TestLinkAndCookieAreGoodForEveryInstance(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		fleet := newFleet(t, k, 2)
		fleet[0].on(k.name, `{"bypass_secret": "`+testSecret+`"}`)
		eventually(t, patience, "the other instance follows", func() bool {
			return fleet[1].fields("/maintenance/" + k.name)["bypass_secret"] == true
		})
		for i := range fleet {
			here, there := fleet[i].site, fleet[1-i].site
			tester := newTester()
			expectCode(t, tester, here.url()+".maintenance/"+testSecret, http.StatusOK)
			expectCode(t, tester, here.url(), http.StatusOK)
			expectCode(t, tester, there.url(), http.StatusOK)
			here.expect(t, http.StatusServiceUnavailable)
			here.expectNeighbor(t)
			fleet[i].kill()
			fleet[i].start(fleet[i].caddyfile(here))
			expectCode(t, tester, here.url(), http.StatusOK)
		}
	})
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
