package integration

import (
	"crypto/rand"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// G3
func TestSwitchedOnSiteStaysClosed(t *testing.T) {
	t.Parallel()
	upstream := newApp(t, welcome)
	c := newCaddy(t)
	c.options = "maintenance {\n sync_interval 200ms\n}"
	shop := newSite(t, "shop", upstream)
	c.start(c.caddyfile(shop))
	switched := c.on("shop", `{"message": "Back soon."}`)
	elsewhere, broken, unbound := shop, shop, shop
	elsewhere.name, elsewhere.address = "other", freeAddress(t)
	broken.address, broken.directives = freeAddress(t), "header X-Config ( 1"
	unbound.address = listen(t, "127.0.0.1:0").Addr().String()
	loseRecord := func() { remove(t, c.recordPath("shop")) }
	reload := func() { c.reload(c.caddyfile(shop)) }
	journal := filepath.Join(c.storage, "maintenance", "journal.json")
	otherSwitches := func() { write(t, journal, `[{"id":"`+rand.Text()+`","site":"shop"}]`) }

	prober := probe(t, shop)
	defer prober.stop()
	for _, disturbance := range []struct {
		name  string
		steps []func()
	}{
		{"reload with the same config", []func(){reload}},
		{"reload with a changed config", []func(){func() {
			c.reload(c.caddyfile(shop.marked(1)))
			shop.awaitConfig(t, 1)
		}}},
		{"reload without the gate and back", []func(){func() { c.reload(c.caddyfile(elsewhere)) }, reload}},
		{"config that fails in Provision", []func(){func() { refuse(t, c, c.caddyfile(shop, broken), "provision") }}},
		{"config that fails in Start", []func(){func() { refuse(t, c, c.caddyfile(shop, unbound), "bind") }}},
		{"record lost, reload", []func(){loseRecord, reload}},
		{"record lost, switch elsewhere", []func(){loseRecord, otherSwitches}},
		{"record lost with the journal", []func(){loseRecord, func() { remove(t, journal) }}},
		{"everything lost", []func(){func() { remove(t, filepath.Join(c.storage, "maintenance")) }}},
		{"record garbled, reload", []func(){func() { write(t, c.recordPath("shop"), "{") }, reload}},
		{"older record comes back", []func(){
			func() { write(t, c.recordPath("shop"), `{"version": 1, "enabled": false}`) }, otherSwitches,
		}},
		{"kill and restart", []func(){c.kill, func() { c.start(c.caddyfile(shop)) }}},
	} {
		t.Log(disturbance.name)
		for _, step := range disturbance.steps {
			step()
		}
		eventually(t, patience, "the record says on", func() bool {
			record, err := readRecord(c)
			return err == nil && record.State == "on"
		})
		prober.more(20)
		if got := c.status("shop"); !got.sameSwitch(switched) {
			t.Errorf("%s: state is %+v, and %+v was answered", disturbance.name, got, switched)
		}
		if n := upstream.requests.Load(); n > 0 {
			t.Fatalf("%s: %d requests reached the app", disturbance.name, n)
		}
	}
}

// refuse loads a config that must fail with an error that names the cause.
func refuse(t *testing.T, c *caddy, caddyfile, cause string) {
	t.Helper()
	if err := c.load(caddyfile); err == nil || !strings.Contains(err.Error(), cause) {
		t.Fatalf("got %v, want an error that says %q", err, cause)
	}
}

// remove removes a file or a directory, at once.
func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Rename(path, filepath.Join(t.TempDir(), "removed")); err != nil {
		t.Fatal(err)
	}
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
			repeat(p.done, func() {
				time.Sleep(2 * time.Millisecond) // leaves others something of the machine
				code, err := fetch(client, s.url())
				if err == nil && code != http.StatusServiceUnavailable {
					p.t.Errorf("a visitor got %d, want 503", code)
				} else if err == nil {
					p.blocked.Add(1)
				}
			})
		})
	}
	return p
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
