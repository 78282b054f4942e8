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
	both := newSites(t, upstream)
	c.start(c.caddyfile(both...))
	switched := make(map[string]status)
	for _, s := range both {
		switched[s.name] = c.on(s.name, `{"message": "Back soon."}`)
	}
	elsewhere, broken, unbound, named := both[0], both[0], both[0], both[1]
	elsewhere.name, elsewhere.address = "other", freeAddress(t)
	broken.address, broken.directives = freeAddress(t), "header X-Config ( 1"
	unbound.address = listen(t, "127.0.0.1:0").Addr().String()
	named.template = ""
	ofEach := func(do func(s site)) func() {
		return func() {
			for _, s := range both {
				do(s)
			}
		}
	}
	loseRecords := ofEach(func(s site) { remove(t, c.recordPath(s.name)) })
	garbleRecords := ofEach(func(s site) { write(t, c.recordPath(s.name), "{") })
	olderRecords := ofEach(func(s site) { write(t, c.recordPath(s.name), `{"version": 1, "enabled": false}`) })
	reload := func() { c.reload(c.caddyfile(both...)) }
	journal := filepath.Join(c.storage, "maintenance", "journal.json")
	otherSwitches := func() {
		write(t, journal, `[{"id":"`+rand.Text()+`","site":"shop"},{"id":"`+rand.Text()+`","site":"acme.example"}]`)
	}

	var probers []*prober
	for _, s := range both {
		prober := probe(t, s)
		defer prober.stop()
		probers = append(probers, prober)
	}
	for _, disturbance := range []struct {
		name  string
		steps []func()
	}{
		{"reload with the same config", []func(){reload}},
		{"reload with a changed config", []func(){func() {
			c.reload(c.caddyfile(both.marked(1)...))
			both.awaitConfig(t, 1)
		}}},
		{"reload without the gate and back", []func(){func() { c.reload(c.caddyfile(elsewhere)) }, reload}},
		{"reload with the tenant named in place of the template", []func(){func() { c.reload(c.caddyfile(both[0], named)) }}},
		{"reload with the template", []func(){reload}},
		{"config that fails in Provision", []func(){func() { refuse(t, c, c.caddyfile(append(both, broken)...), "provision") }}},
		{"config that fails in Start", []func(){func() { refuse(t, c, c.caddyfile(append(both, unbound)...), "bind") }}},
		{"records lost, reload", []func(){loseRecords, reload}},
		{"records lost, switch elsewhere", []func(){loseRecords, otherSwitches}},
		{"records lost with the journal", []func(){loseRecords, func() { remove(t, journal) }}},
		{"everything lost", []func(){func() { remove(t, filepath.Join(c.storage, "maintenance")) }}},
		{"records garbled, reload", []func(){garbleRecords, reload}},
		{"older records come back", []func(){olderRecords, otherSwitches}},
		{"kill and restart", []func(){c.kill, func() { c.start(c.caddyfile(both...)) }}},
	} {
		t.Log(disturbance.name)
		for _, step := range disturbance.steps {
			step()
		}
		for i, s := range both {
			eventually(t, patience, "the record of "+s.name+" says on", func() bool {
				record, err := readRecord(c, s.name)
				return err == nil && record.State == "on"
			})
			probers[i].more(20)
			if got := c.status(s.name); !got.sameSwitch(switched[s.name]) {
				t.Errorf("%s: state is %+v, and %+v was answered", disturbance.name, got, switched[s.name])
			}
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
