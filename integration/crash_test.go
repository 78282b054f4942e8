package integration

import (
	"fmt"
	"net/http"
	"testing"
	"time"
)

// G2
func TestAnsweredSwitchSurvivesKill(t *testing.T) {
	t.Parallel()
	c := newCaddy(t)
	shop := newSite(t, "shop", newApp(t, welcome))
	c.start(c.caddyfile(shop))
	for n := range 20 {
		var answered status
		want := http.StatusOK
		if n%2 == 0 {
			until := time.Now().Add(time.Duration(n+1) * time.Hour).Format(time.RFC3339)
			answered = c.on("shop", fmt.Sprintf(`{"message": "Migration %d.", "until": %q}`, n, until))
			want = http.StatusServiceUnavailable
		} else {
			answered = c.off("shop")
		}
		c.kill()

		c.launch(c.caddyfile(shop))
		if got := shop.first(t).code; got != want {
			t.Fatalf("restart %d: the first visitor got %d, want %d", n, got, want)
		}
		eventually(t, patience, "the admin API answers", func() bool {
			got, err := c.try(http.MethodGet, "shop", "")
			if err == nil && !got.sameSwitch(answered) {
				t.Fatalf("restart %d: state is %+v, and %+v was answered before", n, got, answered)
			}
			return err == nil
		})
	}
}

// G2, G3
func TestMaintenanceEndsWhileCaddyIsDown(t *testing.T) {
	t.Parallel()
	c := newCaddy(t)
	shop := newSite(t, "shop", newApp(t, welcome))
	c.start(c.caddyfile(shop))
	until := time.Now().Add(2 * time.Second).UTC()
	c.on("shop", fmt.Sprintf(`{"until": %q}`, until.Format(time.RFC3339Nano)))
	shop.expect(t, http.StatusServiceUnavailable)
	c.kill()
	eventually(t, patience, "its time has passed", func() bool { return time.Now().After(until) })

	c.launch(c.caddyfile(shop))
	if got := shop.first(t).code; got != http.StatusOK {
		t.Errorf("the first visitor got %d, want 200", got)
	}
	eventually(t, patience, "the admin API answers", func() bool {
		_, err := c.try(http.MethodGet, "shop", "")
		return err == nil
	})
	if got := c.status("shop"); got.State != "off" || !got.Since.Equal(until) {
		t.Errorf("got %+v, want off since %s", got, until)
	}
}

// G3: A site whose record cannot be read stays closed, alone, and can be
// switched either way.
func TestSiteWithCorruptRecordIsBlockedUntilSwitched(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		method, state string
		code          int
	}{
		{http.MethodPut, "on", http.StatusServiceUnavailable},
		{http.MethodDelete, "off", http.StatusOK},
	} {
		t.Run(test.method, func(t *testing.T) {
			t.Parallel()
			upstream := newApp(t, welcome)
			c := newCaddy(t)
			shop, wiki := newSite(t, "shop", upstream), newSite(t, "wiki", upstream)
			write(t, c.recordPath("shop"), `{"version": 1, "enab`)
			c.start(c.caddyfile(shop, wiki))

			c.expect("unknown\n", "maintenance", "shop")
			shop.expect(t, http.StatusServiceUnavailable)
			wiki.expect(t, http.StatusOK)

			if got := c.must(test.method, "shop", ""); got.State != test.state || got.Since.IsZero() {
				t.Errorf("%s answered %+v, want %s since now", test.method, got, test.state)
			}
			shop.expect(t, test.code)
			c.kill()
			c.start(c.caddyfile(shop, wiki))
			shop.expect(t, test.code)
		})
	}
}
