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
	{"hang load", notAnswered, notAnswered, "on", "unknown"}, // takes longest, so it comes first
	{"slow load, slow store", `"state":"on"`, `"state":"off"`, "on", "on"},
	{"fail load", nothingChanged, nothingChanged, "on", "unknown"},
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
	nothingThere   = "it finds nothing, not even what this instance has just stored; nothing has changed"
	mayTakeEffect  = "the disk is on fire; the switch may still take effect"
	notAnswered    = "the storage did not answer within 10s; the switch may still take effect"
)

// G1, G2, G3
func TestNoFaultOfTheStorageOpensASite(t *testing.T) {
	t.Parallel()
	both := []kind{literal, tenant}
	for _, f := range storageFaults {
		for _, test := range []struct {
			name  string
			kinds []kind
			run   func(c *faultyCaddy)
		}{
			// Each alone, as a journal that has fallen behind knows of all switches but the last.
			{"restart elsewhere, tenant", both[1:], func(c *faultyCaddy) { c.restartElsewhereUnder(f.fault, f.elsewhere) }},
			{"on", both, func(c *faultyCaddy) { c.switchUnder(f.fault, http.MethodPut, f.on) }},
			{"off", both, func(c *faultyCaddy) {
				c.switchAll(http.MethodPut, "")
				c.keepsClosed()
				c.switchUnder(f.fault, http.MethodDelete, f.off)
			}},
			{"restart", both, func(c *faultyCaddy) { c.restartUnder(f.fault, f.restart) }},
			{"restart elsewhere", both[:1], func(c *faultyCaddy) { c.restartElsewhereUnder(f.fault, f.elsewhere) }},
			{"reload", both, func(c *faultyCaddy) { c.reloadUnder(f.fault) }},
			{"sync", both, func(c *faultyCaddy) { c.syncUnder(f.fault) }},
		} {
			t.Run(f.fault+"/"+test.name, func(t *testing.T) {
				t.Parallel()
				test.run(newFaultyCaddy(t, t.TempDir(), test.kinds))
			})
		}
	}
}

// switchUnder switches while a fault lasts, and again afterwards if that has failed.
func (c *faultyCaddy) switchUnder(fault, method, answer string) {
	c.t.Helper()
	c.begin(fault)
	c.closed.Store(false)
	var switches sync.WaitGroup
	for _, s := range c.sites {
		if answer == "" {
			c.begin(fault)
			if code, got, err := c.request(method, "/maintenance/"+s.name, ""); err == nil {
				c.t.Errorf("%s of %s got %d %s from a process that has ended", method, s.name, code, got)
			}
			c.kill()
			c.heal()
			c.restart()
			continue
		}
		switches.Go(func() {
			if _, got, err := c.request(method, "/maintenance/"+s.name, ""); err != nil || !strings.Contains(got, answer) {
				c.t.Errorf("%s of %s got %v %s, want %s", method, s.name, err, got, answer)
			}
		})
	}
	switches.Wait()
	want := map[string]int{http.MethodPut: http.StatusServiceUnavailable, http.MethodDelete: http.StatusOK}[method]
	done := strings.Contains(answer, `"state"`)
	if done {
		c.expectVisitors(want)
	}
	c.heal()
	if !done || strings.HasPrefix(fault, "lose store") {
		for _, s := range c.sites {
			eventually(c.t, patience, s.name+" is switched", func() bool { // an earlier one may be waiting for the storage
				_, err := c.try(method, s.name, "{}")
				return err == nil
			})
		}
		c.expectVisitors(want)
	}
	if fault == "lose store" && method == http.MethodDelete {
		return // nothing has changed, and so nothing has been stored
	}
	c.kill()
	c.restart()
	c.expectVisitors(want)
	c.expectNeighbors(c.t)
}

// switchAll switches all sites.
func (c *faultyCaddy) switchAll(method, options string) {
	c.t.Helper()
	for _, s := range c.sites {
		c.must(method, s.name, options)
	}
}

// switchOn leaves sites that are on, and of which there are records before.
func (c *faultyCaddy) switchOn(options string) {
	c.t.Helper()
	c.switchAll(http.MethodPut, "")
	c.switchAll(http.MethodDelete, "")
	c.switchAll(http.MethodPut, options)
}

// awaitStates returns when all sites are in that state.
func (c *faultyCaddy) awaitStates(want string) {
	c.t.Helper()
	for _, s := range c.sites {
		c.awaitState(s.name, want)
	}
}

// restartUnder restarts the process of sites that are on while a fault lasts.
func (c *faultyCaddy) restartUnder(fault, during string) {
	c.t.Helper()
	c.switchOn("")
	c.kill()
	c.comeBackUnder(fault, during)
}

// restartElsewhereUnder does so on another machine.
func (c *faultyCaddy) restartElsewhereUnder(fault, during string) {
	c.t.Helper()
	c.switchOn("")
	c.kill()
	remove(c.t, filepath.Join(c.dir, "data"))
	c.comeBackUnder(fault, during)
}

func (c *faultyCaddy) comeBackUnder(fault, during string) {
	c.t.Helper()
	c.begin(fault)
	if during != "off" {
		c.keepsClosed()
	}
	c.restart()
	c.awaitStates(during)
	c.heal()
	c.awaitStates("on")
	c.expectVisitors(http.StatusServiceUnavailable)
	for _, s := range c.sites {
		eventually(c.t, patience, "other tenants are let in", func() bool {
			return s.template == "" || s.neighbor().visit() == http.StatusOK
		})
	}
}

// reloadUnder reloads the config of sites that are on while a fault lasts.
func (c *faultyCaddy) reloadUnder(fault string) {
	c.t.Helper()
	c.switchOn("")
	c.keepsClosed()
	c.begin(fault)
	for n := range 3 {
		c.reload(c.caddyfile(c.marked(n)...))
		c.awaitConfig(c.t, n)
		c.awaitStates("on")
		c.expectNeighbors(c.t)
	}
	c.heal()
	c.awaitStates("on")
	c.expectVisitors(http.StatusServiceUnavailable)
}

// syncUnder has another instance switch while a fault lasts at this one.
func (c *faultyCaddy) syncUnder(fault string) {
	c.t.Helper()
	other := newFaultyCaddy(c.t, c.storage, c.kinds)
	other.switchOn(`{"message": "The last."}`)
	for _, s := range c.sites {
		eventually(c.t, patience, "the instance follows", func() bool {
			got, err := c.try(http.MethodGet, s.name, "")
			return err == nil && got.Message == "The last."
		})
	}
	c.keepsClosed()
	c.begin(fault)
	asked, want := c.asked(), int64(3)
	if strings.HasPrefix(fault, "hang load") {
		want = 1
	}
	eventually(c.t, patience, "the storage is asked", func() bool { return c.asked()-asked >= want })
	c.expectVisitors(http.StatusServiceUnavailable)
	c.expectNeighbors(c.t)
	c.heal()
	c.awaitStates("on")
	c.closed.Store(false)
	other.awaitStates("on")
	other.switchAll(http.MethodDelete, "")
	c.awaitStates("off")
	c.expectVisitors(http.StatusOK)
	c.begin(fault)
	other.switchAll(http.MethodPut, "")
	other.expectVisitors(http.StatusServiceUnavailable)
	c.heal()
	c.awaitStates("on")
	c.expectVisitors(http.StatusServiceUnavailable)
}

// faultyCaddy is a Caddy whose storage fails as it is told to, and its sites.
type faultyCaddy struct {
	*caddy
	sites
	kinds  []kind      // of the sites
	closed atomic.Bool // visitors must not get in
}

// newFaultyCaddy starts one, whose storage does not fail yet.
func newFaultyCaddy(t *testing.T, storage string, kinds []kind) *faultyCaddy {
	t.Helper()
	c := &faultyCaddy{caddy: newTestCaddy(t), kinds: kinds}
	upstream := newApp(t, welcome)
	for _, k := range kinds {
		c.sites = append(c.sites, k.newSite(t, upstream))
	}
	c.storage, c.storageModule = storage, "maintenance_faulty"
	c.options = "maintenance {\n sync_interval 100ms\n}"
	c.restart()
	return c
}

func (c *faultyCaddy) restart() {
	c.t.Helper()
	c.start(c.caddyfile(c.sites...))
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

func (c *faultyCaddy) expectVisitors(want int) {
	c.t.Helper()
	c.sites.expect(c.t, want)
}

// keepsClosed has visitors come from now on, whom nothing must let in.
func (c *faultyCaddy) keepsClosed() {
	c.closed.Store(true)
	var clients sync.WaitGroup
	clients.Go(func() {
		for n := 0; c.closed.Load(); n++ {
			time.Sleep(2 * time.Millisecond) // leaves others something of the machine
			s := c.sites[n%len(c.sites)]
			if s.visit() == http.StatusOK && c.closed.Load() {
				c.t.Errorf("a visitor of %s got in", s.name)
				return
			}
		}
	})
	c.t.Cleanup(func() {
		c.closed.Store(false)
		clients.Wait()
	})
}

// An older copy of the storage that is put back while instances run has their newer records
// again within two intervals, so that a new instance opens nothing.
//
// G3
func TestOlderCopyOfTheStorageOpensNothing(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		f := newNamedFleet(t, k, 3)
		a, fresh := f.all[0], f.all[2]
		a.on(k.name, "")
		a.off(k.name)
		path := filepath.Join(f.shared, "maintenance")
		older := t.TempDir()
		if err := os.CopyFS(older, os.DirFS(path)); err != nil {
			t.Fatal(err)
		}
		f.expect("maintenance on shop --message Migrating.", enabling+"done (3 instances)\n0")
		fresh.kill()
		remove(t, filepath.Join(fresh.dir, "data"))
		for _, name := range []string{a.recordPath(k.name), filepath.Join(path, "journal.json")} {
			before, err := os.ReadFile(filepath.Join(older, strings.TrimPrefix(name, path)))
			if err != nil {
				t.Fatal(err)
			}
			write(t, name+".new", string(before))
			if err := os.Rename(name+".new", name); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, 10*time.Second, "the record is back", func() bool {
			record, err := readRecord(a.caddy, k.name)
			return err == nil && record.State == "on" && record.Message == "Migrating."
		})
		fresh.launch(fresh.caddyfile(fresh.site))
		if got := fresh.site.first(t).code; got != http.StatusServiceUnavailable {
			t.Errorf("the first visitor of the new instance got %d", got)
		}
	})
}

// What the storage has lost, or has of an earlier time, opens nothing, though all instances
// are restarted at once; it gets the records again.
//
// G3
func TestStorageThatHasForgottenOpensNothing(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
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
				f := newNamedFleet(t, k, 3)
				a := f.all[0]
				a.on(k.name, "")
				a.off(k.name)
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
					i.launch(i.caddyfile(i.site))
				}
				for _, i := range f.all {
					if got := i.site.first(t).code; got != http.StatusServiceUnavailable {
						t.Errorf("the first visitor got %d", got)
					}
				}
				eventually(t, patience, "the record is back", func() bool {
					record, err := readRecord(a.caddy, k.name)
					return err == nil && record.State == "on" && record.Message == "Migrating."
				})
				for _, i := range f.all {
					i.site.expect(t, http.StatusServiceUnavailable)
				}
			})
		}
	})
}

// A write that the network has delayed lands after a newer one of another instance. Neither
// an instance that is restarted nor a new one opens the site, and the newer record comes back.
//
// G3
func TestLateWriteOpensNothing(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		for _, isNew := range []bool{false, true} {
			t.Run(map[bool]string{false: "restarted", true: "new"}[isNew], func(t *testing.T) {
				t.Parallel()
				f := newNamedFleet(t, k, 2)
				a, b := f.all[0], f.all[1]
				a.on(k.name, "")
				a.off(k.name)
				late, err := os.ReadFile(a.recordPath(k.name))
				if err != nil {
					t.Fatal(err)
				}
				f.expect("maintenance on shop", enabling+"done (2 instances)\n0")
				b.kill()
				write(t, a.recordPath(k.name), string(late))
				if isNew {
					remove(t, filepath.Join(b.dir, "data"))
				}
				b.launch(b.caddyfile(b.site))
				if got := b.site.first(t).code; got != http.StatusServiceUnavailable {
					t.Errorf("the first visitor got %d", got)
				}
				b.awaitState(k.name, "on")
				eventually(t, patience, "the record is back", func() bool {
					record, err := readRecord(a.caddy, k.name)
					return err == nil && record.State == "on"
				})
				for _, i := range f.all {
					i.site.expect(t, http.StatusServiceUnavailable)
				}
			})
		}
	})
}

// An instance ends in the middle of a switch that nobody has been answered: the others come
// to what is stored within two intervals, whatever that is.
//
// G2, G4
func TestSwitchThatDiesHalfWayLeavesNobodySplit(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		for fault, want := range map[string]string{"exit store 1": "off", "exit store 2": "off", "exit store 3": "on"} {
			t.Run(fault, func(t *testing.T) {
				t.Parallel()
				f := newNamedFleet(t, k, 3)
				f.fault(1, fault)
				if _, err := f.all[1].try(http.MethodPut, k.name, ""); err == nil {
					t.Fatal("the switch was answered")
				}
				died := time.Now()
				f.all[1].kill()
				f.fault(1, "")
				f.all[1].start(f.all[1].caddyfile(f.all[1].site))
				for _, i := range f.all {
					i.awaitState(k.name, want)
				}
				if took := time.Since(died); took > 15*time.Second { // else it takes a minute
					t.Errorf("it took %s", took)
				}
			})
		}
	})
}

// A data directory that cannot be written is named to the operator.
func TestDirectoryThatCannotBeWrittenIsNamed(t *testing.T) {
	t.Parallel()
	c := newCaddy(t)
	shop := newSite(t, "shop", newApp(t, welcome))
	c.start(c.caddyfile(shop))
	file := filepath.Join(c.dir, "file")
	write(t, file, "") // in place of the directory, so that not even root can
	eventually(t, patience, "nothing is written any more", func() bool {
		_ = os.RemoveAll(c.storage)
		return os.Rename(file, c.storage) == nil
	})
	code, answer, err := c.request(http.MethodPut, "/maintenance/shop", "")
	if err != nil || code != http.StatusInternalServerError || !strings.Contains(answer, c.storage) {
		t.Errorf("PUT got %v %d %s, want 500 and %s", err, code, answer, c.storage)
	}
	shop.expect(t, http.StatusOK)
	remove(t, c.storage)
	c.on("shop", "")
	shop.expect(t, http.StatusServiceUnavailable)
}
