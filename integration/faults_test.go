package integration

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// What the operator sees of a storage that fails, and what visitors see: that of a site
// in maintenance never opens by itself. Each line is a fault, what a switch on and a
// switch off are answered while it lasts, and how the site is after a restart into it:
// on this machine, and on one that has nothing but the storage.
var storageFaults = []struct {
	fault              string
	on, off            string // in the answer to a switch; nothing: the process has ended
	restart, elsewhere string // the state of a site that was on, while the fault lasts
}{
	{"slow load, slow store", `"state":"on"`, `"state":"off"`, "on", "on"},
	{"fail load", nothingChanged, nothingChanged, "on", "unknown"},
	{"hang load", notAnswered, notAnswered, "on", "unknown"},
	{"fail store", mayTakeEffect, mayTakeEffect, "on", "on"},
	{"hang store", notAnswered, notAnswered, "on", "on"},
	{"report store", mayTakeEffect, mayTakeEffect, "on", "on"},      // it has been stored all the same
	{"lose store", `"state":"on"`, `"state":"off"`, "on", "on"},     // it says so, and has not stored it
	{"lose load", nothingThere, nothingThere, "on", "unknown"},      // it says that nothing is there
	{"previous load", `"state":"on"`, `"state":"off"`, "on", "off"}, // all of it has fallen behind, which nobody else can know
	{"exit store 1", "", "", "on", "on"},
	{"exit store 2", "", "", "on", "on"},
	{"exit store 3", "", "", "on", "on"},
}

const (
	nothingChanged = "the disk is on fire; nothing has changed"
	nothingThere   = "it is taken to be down; nothing has changed"
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
			{"restart", func(c *faultyCaddy) { c.restartUnder(f.fault, f.restart) }},
			{"restart elsewhere", func(c *faultyCaddy) {
				c.forgets = true
				c.restartUnder(f.fault, f.elsewhere)
			}},
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
func (c *faultyCaddy) restartUnder(fault, during string) {
	c.t.Helper()
	c.switchOn("")
	c.kill()
	c.begin(fault)
	if c.forgets {
		remove(c.t, filepath.Join(c.dir, "data"))
	}
	if during != "off" {
		c.keepsClosed()
	}
	c.restart()
	c.awaitState("shop", during)
	c.heal()
	c.awaitState("shop", "on")
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
	shop    site
	forgets bool        // a restart is on another machine
	closed  atomic.Bool // visitors must not get in
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

// What the storage has lost, or has of an earlier time, opens nothing, though all instances
// are restarted at once; it gets the records again.
//
// G3
func TestStorageThatHasForgottenOpensNothing(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		forget func(f *fleetOf, before string)
	}{
		{"emptied", func(f *fleetOf, _ string) {}},
		{"an old snapshot", func(f *fleetOf, before string) {
			if err := os.CopyFS(filepath.Join(f.shared, "maintenance"), os.DirFS(before)); err != nil {
				f.t.Fatal(err)
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newNamedFleet(t, 3)
			a := f.all[0]
			a.on("shop", "")
			a.off("shop")
			before := t.TempDir()
			if err := os.CopyFS(before, os.DirFS(filepath.Join(f.shared, "maintenance"))); err != nil {
				t.Fatal(err)
			}
			f.expect("maintenance on shop --message Migrating.", enabling+"done (3 instances)\n0")
			for _, i := range f.all {
				i.kill()
			}
			remove(t, filepath.Join(f.shared, "maintenance"))
			test.forget(f, before)
			for _, i := range f.all {
				i.launch(i.caddyfile(i.shop))
			}
			for _, i := range f.all {
				if got := i.shop.first(t).code; got != http.StatusServiceUnavailable {
					t.Errorf("the first visitor got %d", got)
				}
			}
			eventually(t, patience, "the record is back", func() bool {
				record, err := readRecord(a.caddy)
				return err == nil && record.State == "on" && record.Message == "Migrating."
			})
			for _, i := range f.all {
				i.shop.expect(t, http.StatusServiceUnavailable)
			}
		})
	}
}

// A write that the network has delayed lands after a newer one of another instance. Neither
// an instance that is restarted nor a new one opens the site, and the newer record comes back.
//
// G3
func TestLateWriteOpensNothing(t *testing.T) {
	t.Parallel()
	for _, isNew := range []bool{false, true} {
		t.Run(map[bool]string{false: "restarted", true: "new"}[isNew], func(t *testing.T) {
			t.Parallel()
			f := newNamedFleet(t, 2)
			a, b := f.all[0], f.all[1]
			a.on("shop", "")
			a.off("shop")
			late, err := os.ReadFile(a.recordPath("shop"))
			if err != nil {
				t.Fatal(err)
			}
			f.expect("maintenance on shop", enabling+"done (2 instances)\n0")
			b.kill()
			write(t, a.recordPath("shop"), string(late))
			if isNew {
				remove(t, filepath.Join(b.dir, "data"))
			}
			b.launch(b.caddyfile(b.shop))
			if got := b.shop.first(t).code; got != http.StatusServiceUnavailable {
				t.Errorf("the first visitor got %d", got)
			}
			b.awaitState("shop", "on")
			eventually(t, patience, "the record is back", func() bool {
				record, err := readRecord(a.caddy)
				return err == nil && record.State == "on"
			})
			for _, i := range f.all {
				i.shop.expect(t, http.StatusServiceUnavailable)
			}
		})
	}
}

// An instance ends in the middle of a switch that nobody has been answered: the others come
// to what is stored within two intervals, whatever that is.
//
// G2, G4
func TestSwitchThatDiesHalfWayLeavesNobodySplit(t *testing.T) {
	t.Parallel()
	for fault, want := range map[string]string{"exit store 1": "off", "exit store 2": "off", "exit store 3": "on"} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			f := newNamedFleet(t, 3)
			f.fault(1, fault)
			if _, err := f.all[1].try(http.MethodPut, "shop", ""); err == nil {
				t.Fatal("the switch was answered")
			}
			died := time.Now()
			f.all[1].kill()
			f.fault(1, "")
			f.all[1].start(f.all[1].caddyfile(f.all[1].shop))
			for _, i := range f.all {
				i.awaitState("shop", want)
			}
			if took := time.Since(died); took > 2*syncInterval+2*time.Second { // a busy machine
				t.Errorf("it took %s", took)
			}
		})
	}
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
