package integration

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// A copy that was stored is shown from the first response on, whatever has become of the
// page's host, by whichever instance on the storage.
func TestCopyOfPageIsShownAtOnceWithoutItsHost(t *testing.T) {
	t.Parallel()
	const page = "<!DOCTYPE html>\n<title>Our own page</title>\n<p>%s</p>\n"
	for _, test := range []struct {
		name   string
		silent bool // the host takes connections and never answers; or else it is down
		other  bool // another instance starts; or else the process is killed and starts again
	}{
		{name: "kill, host down"},
		{name: "kill, host silent", silent: true},
		{name: "another instance, host down", other: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			host := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "text/html; charset=utf-8")
				fmt.Fprintf(w, page, "{maintenance.message}")
			}))
			defer func() { host.Close() }()
			shop := newSite(t, "shop", newApp(t, welcome))
			c := newCaddy(t)
			shop.block = "{\n\t\tpage " + strings.Replace(host.URL, "//", "//operator:s3cret@", 1) + "/page.html?token=s3cret\n\t}"
			c.start(c.caddyfile(shop))
			c.on("shop", `{"message": "Back at <three>."}`)
			c.awaitFile("storage/maintenance/pages/*.json", "{")
			host.Close()
			if test.silent {
				listen(t, host.Listener.Addr().String())
			}

			if test.other {
				storage := c.storage
				c = newCaddy(t)
				c.storage, shop.address = storage, freeAddress(t)
			}
			c.kill()
			c.launch(c.caddyfile(shop))
			want := fmt.Sprintf(page, "Back at &lt;three&gt;.")
			if got := shop.first(t); got.code != http.StatusServiceUnavailable || got.body != want {
				t.Errorf("the first visitor got %+v, want 503 and the copy", got)
			}
			c.awaitRunning()
			if test.silent {
				return // it takes 10 seconds until the command warns of it
			}
			warning := "warning: shop: page " + host.URL + "/page.html could not be fetched: "
			eventually(t, patience, "the command warns: "+warning, func() bool {
				got := c.command("maintenance", "shop")
				return got.stdout == "on\n" && got.code == 0 && strings.HasPrefix(got.stderr, warning) && strings.Contains(got.stderr, "; visitors see the copy of ")
			})
			if got := shop.first(t); got.body != want {
				t.Errorf("a visitor got %+v, want the copy", got)
			}
			if log := c.awaitFile("caddy.log", host.URL); strings.Contains(log, "s3cret") {
				t.Errorf("a secret of the page's URL is in the log: %s", log)
			}
		})
	}
}
