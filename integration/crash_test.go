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
	both := newSites(t, newApp(t, welcome))
	c.start(c.caddyfile(both...))
	for n := range 20 {
		answered := make(map[string]status)
		want := http.StatusOK
		for _, s := range both {
			if n%2 == 0 {
				until := time.Now().Add(time.Duration(n+1) * time.Hour).Format(time.RFC3339)
				answered[s.name] = c.on(s.name, fmt.Sprintf(`{"message": "Migration %d.", "until": %q}`, n, until))
				want = http.StatusServiceUnavailable
			} else {
				answered[s.name] = c.off(s.name)
			}
		}
		c.kill()

		c.launch(c.caddyfile(both...))
		both.expectFirst(t, want)
		c.awaitRunning()
		for _, s := range both {
			if got := c.status(s.name); !got.sameSwitch(answered[s.name]) {
				t.Fatalf("restart %d: state is %+v, and %+v was answered before", n, got, answered[s.name])
			}
		}
		both[1].neighbor().expect(t, http.StatusOK)
	}
}

// G2, G3
func TestMaintenanceEndsWhileCaddyIsDown(t *testing.T) {
	t.Parallel()
	c := newCaddy(t)
	both := newSites(t, newApp(t, welcome))
	c.start(c.caddyfile(both...))
	until := time.Now().Add(2 * time.Second).UTC()
	for _, s := range both {
		c.on(s.name, fmt.Sprintf(`{"until": %q}`, until.Format(time.RFC3339Nano)))
	}
	both.expect(t, http.StatusServiceUnavailable)
	c.kill()
	eventually(t, patience, "its time has passed", func() bool { return time.Now().After(until) })

	c.launch(c.caddyfile(both...))
	both.expectFirst(t, http.StatusOK)
	c.awaitRunning()
	for _, s := range both {
		if got := c.status(s.name); got.State != "off" || !got.Since.Equal(until) {
			t.Errorf("%s: got %+v, want off since %s", s.name, got, until)
		}
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
			both, wiki := newSites(t, upstream), newSite(t, "wiki", upstream)
			for _, s := range both {
				write(t, c.recordPath(s.name), `{"version": 1, "enab`)
			}
			c.start(c.caddyfile(append(both, wiki)...))

			for _, s := range both {
				c.expect("unknown\n", "maintenance", s.name)
			}
			both.expect(t, http.StatusServiceUnavailable)
			sites{wiki, both[1].neighbor()}.expect(t, http.StatusOK)

			for _, s := range both {
				if got := c.must(test.method, s.name, ""); got.State != test.state || got.Since.IsZero() {
					t.Errorf("%s of %s answered %+v, want %s since now", test.method, s.name, got, test.state)
				}
			}
			both.expect(t, test.code)
			c.kill()
			c.start(c.caddyfile(append(both, wiki)...))
			both.expect(t, test.code)
		})
	}
}
