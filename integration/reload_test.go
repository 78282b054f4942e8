package integration

import (
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// G3
func TestSwitchedOnSiteStaysClosed(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		disturb func(t *testing.T, c *caddy, shop site)
	}{
		{"reload with the same config", func(t *testing.T, c *caddy, shop site) {
			c.reload(c.caddyfile(shop))
		}},
		{"reload with a changed config", func(t *testing.T, c *caddy, shop site) {
			c.reload(c.caddyfile(shop.marked(1)))
			shop.awaitConfig(t, 1)
		}},
		{"reload without the gate and back", func(t *testing.T, c *caddy, shop site) {
			other := shop
			other.name, other.address = "other", freeAddress(t)
			c.reload(c.caddyfile(other))
			c.reload(c.caddyfile(shop))
		}},
		{"config that fails in Provision", func(t *testing.T, c *caddy, shop site) {
			broken := shop
			broken.address = freeAddress(t)
			broken.directives = "header X-Config ( 1"
			refuse(t, c, c.caddyfile(shop, broken), "provision")
		}},
		{"config that fails in Start", func(t *testing.T, c *caddy, shop site) {
			taken, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer taken.Close()
			broken := shop
			broken.address = taken.Addr().String()
			refuse(t, c, c.caddyfile(shop, broken), "bind")
		}},
		{"record lost, reload", func(t *testing.T, c *caddy, shop site) {
			remove(t, c.recordPath("shop"))
			c.reload(c.caddyfile(shop))
			awaitRecord(t, c)
		}},
		{"record lost, then marker too", func(t *testing.T, c *caddy, shop site) {
			remove(t, c.recordPath("shop"))
			write(t, c.markerPath(), "of another instance")
			awaitRecord(t, c)

			remove(t, c.recordPath("shop"))
			remove(t, c.markerPath())
			awaitRecord(t, c)
		}},
		{"record garbled, reload", func(t *testing.T, c *caddy, shop site) {
			write(t, c.recordPath("shop"), "{")
			c.reload(c.caddyfile(shop))
			awaitRecord(t, c)
		}},
		{"older record comes back", func(t *testing.T, c *caddy, shop site) {
			write(t, c.recordPath("shop"), `{"version": 1, "enabled": false}`)
			write(t, c.markerPath(), "of another instance")
			awaitRecord(t, c)
		}},
		{"kill and restart", func(t *testing.T, c *caddy, shop site) {
			c.kill()
			c.start(c.caddyfile(shop))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			upstream := newApp(t, welcome)
			c := newCaddy(t)
			c.options = "maintenance {\n sync_interval 200ms\n}"
			shop := newSite(t, "shop", upstream)
			c.start(c.caddyfile(shop))
			switched := c.on("shop", `{"message": "Back soon."}`)

			prober := probe(t, shop)
			defer prober.stop()
			prober.more(20)
			test.disturb(t, c, shop)
			prober.more(20)
			if got := c.status("shop"); !got.sameSwitch(switched) {
				t.Errorf("state is %+v, and %+v was answered", got, switched)
			}
			if n := upstream.requests.Load(); n > 0 {
				t.Errorf("%d requests reached the app", n)
			}
		})
	}
}

// refuse loads a config that must fail with an error that names the cause.
func refuse(t *testing.T, c *caddy, caddyfile, cause string) {
	t.Helper()
	err := c.load(caddyfile)
	if err == nil || !strings.Contains(err.Error(), cause) {
		t.Fatalf("got %v, want an error that says %q", err, cause)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// awaitRecord returns when it is stored again that shop is on.
func awaitRecord(t *testing.T, c *caddy) {
	t.Helper()
	eventually(t, patience, "the record is written again", func() bool {
		record, err := readRecord(c)
		return err == nil && record.State == "on"
	})
}

// prober visits a site all the time, and fails the test for whatever is not a
// maintenance page. No response at all is what a restart looks like.
type prober struct {
	t       *testing.T
	blocked atomic.Int64
	done    chan struct{}
	running sync.WaitGroup
}

// probe visits on new connections and on one that is kept open.
func probe(t *testing.T, s site) *prober {
	p := &prober{t: t, done: make(chan struct{})}
	for _, client := range []*http.Client{visitors, newKeepAliveClient(true)} {
		p.running.Go(func() {
			defer client.CloseIdleConnections()
			repeat(p.done, func() { p.visit(client, s) })
		})
	}
	return p
}

func (p *prober) visit(client *http.Client, s site) {
	time.Sleep(2 * time.Millisecond) // leaves others something of the machine
	code, err := fetch(client, s.url())
	if err != nil {
		return
	}
	if code != http.StatusServiceUnavailable {
		p.t.Errorf("a visitor got %d, want 503", code)
	}
	p.blocked.Add(1)
}

// more returns when so many further visits have been blocked.
func (p *prober) more(n int64) {
	p.t.Helper()
	enough := p.blocked.Load() + n
	eventually(p.t, patience, "the site has been visited", func() bool { return p.blocked.Load() >= enough })
}

func (p *prober) stop() {
	close(p.done)
	p.running.Wait()
}
