package integration

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// What the operator sees of a storage that fails, and what visitors see: that of a site
// in maintenance never opens by itself. Each line is a fault, what a switch on and a
// switch off are answered while it lasts, and how the site is after a restart into it
// and after a reload.
var storageFaults = []struct {
	fault             string
	on, off           string // in the answer to a switch; nothing: the process has ended
	restart, restored string // the state of a site that was on, while the fault lasts and afterwards
}{
	{"slow load, slow store", `"state":"on"`, `"state":"off"`, "on", "on"},
	{"fail load", nothingChanged, nothingChanged, "unknown", "on"},
	{"hang load", notAnswered, notAnswered, "unknown", "on"},
	{"fail store", mayTakeEffect, mayTakeEffect, "on", "on"},
	{"hang store", notAnswered, notAnswered, "on", "on"},
	{"report store", mayTakeEffect, mayTakeEffect, "on", "on"},      // it has been stored all the same
	{"lose store", `"state":"on"`, `"state":"off"`, "on", "on"},     // it says so, and has not stored it
	{"lose load", `"state":"on"`, `"state":"off"`, "off", "on"},     // a storage without the record knows of no switch
	{"previous load", `"state":"on"`, `"state":"off"`, "off", "on"}, // so does one that has fallen behind
	{"exit store 1", "", "", "on", "on"},
	{"exit store 2", "", "", "on", "on"},
}

const (
	nothingChanged = "the disk is on fire; nothing has changed"
	mayTakeEffect  = "the disk is on fire; the switch may still take effect"
	notAnswered    = "the storage did not answer within 10s; the switch may still take effect"
)

// G1, G2, G3
func TestNoFaultOfTheStorageOpensASite(t *testing.T) {
	t.Parallel()
	for _, f := range storageFaults {
		for _, test := range []struct {
			name string
			run  func(c *faultyCaddy)
		}{
			{"on", func(c *faultyCaddy) { c.switchUnder(f.fault, http.MethodPut, f.on) }},
			{"off", func(c *faultyCaddy) {
				c.on("shop", "")
				c.keepsClosed()
				c.switchUnder(f.fault, http.MethodDelete, f.off)
			}},
			{"restart", func(c *faultyCaddy) { c.restartUnder(f.fault, f.restart, f.restored) }},
			{"reload", func(c *faultyCaddy) { c.reloadUnder(f.fault) }},
			{"sync", func(c *faultyCaddy) { c.syncUnder(f.fault) }},
		} {
			t.Run(f.fault+"/"+test.name, func(t *testing.T) {
				t.Parallel()
				test.run(newFaultyCaddy(t, t.TempDir()))
			})
		}
	}
}

// switchUnder switches while a fault lasts, and again afterwards if that has failed.
func (c *faultyCaddy) switchUnder(fault, method, answer string) {
	c.t.Helper()
	c.begin(fault)
	c.closed.Store(false)
	code, got, err := c.request(method, "/maintenance/shop", "")
	switch {
	case answer == "":
		if err == nil {
			c.t.Errorf("%s got %d %s from a process that has ended", method, code, got)
		}
		c.kill()
		c.heal()
		c.restart()
	case err != nil || !strings.Contains(got, answer):
		c.t.Errorf("%s got %v %s, want %s", method, err, got, answer)
	}
	want := map[string]int{http.MethodPut: http.StatusServiceUnavailable, http.MethodDelete: http.StatusOK}[method]
	done := strings.Contains(answer, `"state"`)
	if done {
		c.expectVisitor(want)
	}
	c.heal()
	if !done || strings.HasPrefix(fault, "lose store") {
		eventually(c.t, patience, "it is switched", func() bool { // an earlier one may be waiting for the storage
			_, err := c.try(method, "shop", "{}")
			return err == nil
		})
		c.expectVisitor(want)
	}
	if fault == "lose store" && method == http.MethodDelete {
		return // nothing has changed, and so nothing has been stored
	}
	c.kill()
	c.restart()
	c.expectVisitor(want)
}

// switchOn leaves a site that is on, and of which there are records before.
func (c *faultyCaddy) switchOn(options string) {
	c.t.Helper()
	c.on("shop", "")
	c.off("shop")
	c.on("shop", options)
}

// restartUnder restarts the process of a site that is on while a fault lasts.
func (c *faultyCaddy) restartUnder(fault, during, afterwards string) {
	c.t.Helper()
	c.switchOn("")
	c.kill()
	c.begin(fault)
	if during != "off" {
		c.keepsClosed()
	}
	c.restart()
	c.awaitState("shop", during)
	c.heal()
	c.awaitState("shop", afterwards)
	c.expectVisitor(http.StatusServiceUnavailable)
}

// reloadUnder reloads the config of a site that is on while a fault lasts.
func (c *faultyCaddy) reloadUnder(fault string) {
	c.t.Helper()
	c.switchOn("")
	c.keepsClosed()
	c.begin(fault)
	for n := range 3 {
		c.reload(c.caddyfile(c.shop.marked(n)))
		c.shop.awaitConfig(c.t, n)
		c.awaitState("shop", "on")
	}
	c.heal()
	c.awaitState("shop", "on")
	c.expectVisitor(http.StatusServiceUnavailable)
}

// syncUnder has another instance switch while a fault lasts at this one.
func (c *faultyCaddy) syncUnder(fault string) {
	c.t.Helper()
	other := newFaultyCaddy(c.t, c.storage)
	other.switchOn(`{"message": "The last."}`)
	eventually(c.t, patience, "the instance follows", func() bool {
		got, err := c.try(http.MethodGet, "shop", "")
		return err == nil && got.Message == "The last."
	})
	c.keepsClosed()
	c.begin(fault)
	asked, want := c.asked(), int64(3)
	if strings.HasPrefix(fault, "hang load") {
		want = 1
	}
	eventually(c.t, patience, "the storage is asked", func() bool { return c.asked()-asked >= want })
	c.expectVisitor(http.StatusServiceUnavailable)
	c.heal()
	c.awaitState("shop", "on")
	c.closed.Store(false)
	other.awaitState("shop", "on")
	other.off("shop")
	c.awaitState("shop", "off")
	c.expectVisitor(http.StatusOK)
	c.begin(fault)
	other.on("shop", "")
	other.expectVisitor(http.StatusServiceUnavailable)
	c.heal()
	c.awaitState("shop", "on")
	c.expectVisitor(http.StatusServiceUnavailable)
}

// faultyCaddy is a Caddy whose storage fails as it is told to, and its site.
type faultyCaddy struct {
	*caddy
	shop   site
	closed atomic.Bool // visitors must not get in
}

// newFaultyCaddy starts one, whose storage does not fail yet.
func newFaultyCaddy(t *testing.T, storage string) *faultyCaddy {
	t.Helper()
	c := &faultyCaddy{caddy: newTestCaddy(t), shop: newSite(t, "shop", newApp(t, welcome))}
	c.storage, c.storageModule = storage, "maintenance_faulty"
	c.options = "maintenance {\n sync_interval 100ms\n}"
	c.restart()
	return c
}

func (c *faultyCaddy) restart() {
	c.t.Helper()
	c.start(c.caddyfile(c.shop))
}

func (c *faultyCaddy) begin(fault string) {
	c.t.Helper()
	path := filepath.Join(c.dir, "fault")
	write(c.t, path+".new", fault)
	if err := os.Rename(path+".new", path); err != nil {
		c.t.Fatal(err)
	}
}

func (c *faultyCaddy) heal() { c.begin("") }

// asked is how often the storage has been.
func (c *faultyCaddy) asked() int64 {
	info, err := os.Stat(filepath.Join(c.dir, "asked"))
	if err != nil {
		return 0
	}
	return info.Size()
}

func (c *faultyCaddy) expectVisitor(want int) {
	c.t.Helper()
	c.shop.expect(c.t, want)
}

// keepsClosed has visitors come from now on, whom nothing must let in.
func (c *faultyCaddy) keepsClosed() {
	c.closed.Store(true)
	var clients sync.WaitGroup
	clients.Go(func() {
		for c.closed.Load() {
			if c.shop.visit() == http.StatusOK && c.closed.Load() {
				c.t.Error("a visitor got in")
				return
			}
		}
	})
	c.t.Cleanup(func() {
		c.closed.Store(false)
		clients.Wait()
	})
}

// A data directory that cannot be written is named to the operator.
func TestDirectoryThatCannotBeWrittenIsNamed(t *testing.T) {
	t.Parallel()
	c := newCaddy(t)
	shop := newSite(t, "shop", newApp(t, welcome))
	c.start(c.caddyfile(shop))
	if err := os.RemoveAll(c.storage); err != nil {
		t.Fatal(err)
	}
	write(t, c.storage, "") // so that not even root can
	code, answer, err := c.request(http.MethodPut, "/maintenance/shop", "")
	if err != nil || code != http.StatusInternalServerError || !strings.Contains(answer, c.storage) {
		t.Errorf("PUT got %v %d %s, want 500 and %s", err, code, answer, c.storage)
	}
	shop.expect(t, http.StatusOK)
	remove(t, c.storage)
	c.on("shop", "")
	shop.expect(t, http.StatusServiceUnavailable)
}
