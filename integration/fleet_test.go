package integration

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Instances that share a storage follow each other within followTime: the
// interval at which they look, and what reading takes on a machine that is busy with other
// tests. That they look at each interval is held by TestFollowing in internal/store.
const (
	syncInterval = 200 * time.Millisecond
	followTime   = syncInterval + 2*time.Second
)

// instance is a Caddy of a fleet and its site.
type instance struct {
	*caddy
	site site
}

// newFleet starts Caddys that share a storage.
func newFleet(t *testing.T, k kind, size int) []instance {
	t.Helper()
	return startFleet(t, k, size, newCaddy, "")
}

func startFleet(t *testing.T, k kind, size int, newOne func(*testing.T) *caddy, options string) []instance {
	t.Helper()
	upstream := newApp(t, welcome)
	storage := t.TempDir()
	fleet := make([]instance, size)
	for i := range fleet {
		c := newOne(t)
		c.storage = storage
		c.options = fmt.Sprintf("maintenance {\n sync_interval %s\n}\n%s", syncInterval, options)
		fleet[i] = instance{c, k.newSite(t, upstream)}
		c.start(c.caddyfile(fleet[i].site))
	}
	return fleet
}

// follow fails the test if the instance is not as a switch was answered, to
// its visitors and in the admin API, within followTime of that.
func (i instance) follow(answered status, at time.Time) {
	i.t.Helper()
	want := http.StatusOK
	if answered.State == "on" {
		want = http.StatusServiceUnavailable
	}
	eventually(i.t, time.Until(at.Add(followTime)), "the instance follows", func() bool {
		return i.site.visit() == want && i.status(i.site.name).sameSwitch(answered)
	})
	i.site.expectNeighbor(i.t)
}

// G4
func TestInstancesFollowEachOther(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		for _, size := range []int{2, 3} {
			t.Run(fmt.Sprintf("%d instances", size), func(t *testing.T) {
				t.Parallel()
				fleet := newFleet(t, k, size)
				for n := range 24 { // each kind of switch is made at each instance, twice at least
					// A message of its own tells each switch from those before.
					options := fmt.Sprintf(`{"message": "Migration %d.", "until": "2999-01-01T00:00:%02dZ"}`, n, n)
					var answered status
					switch n % 4 {
					case 0, 1:
						answered = fleet[n%size].on(k.name, options)
					case 2:
						answered = fleet[n%size].must(http.MethodPatch, k.name, options)
					case 3:
						answered = fleet[n%size].off(k.name)
					}
					at := time.Now()
					for _, instance := range fleet {
						instance.follow(answered, at)
					}
				}
			})
		}
	})
}

// G4
func TestOppositeSwitchesAtOnceEndInOneState(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		fleet := newFleet(t, k, 3)
		for n := range 10 {
			answered := fleet[2].on(k.name, "")
			at := time.Now()
			for _, instance := range fleet {
				instance.follow(answered, at)
			}

			var switches sync.WaitGroup
			switches.Go(func() {
				if _, err := fleet[n%2].try(http.MethodPut, k.name, fmt.Sprintf(`{"message": "Migration %d."}`, n)); err != nil {
					t.Error(err)
				}
			})
			switches.Go(func() {
				if _, err := fleet[1-n%2].try(http.MethodDelete, k.name, ""); err != nil {
					t.Error(err)
				}
			})
			switches.Wait()
			eventually(t, patience, "all instances are as the record says", func() bool {
				record, err := readRecord(fleet[0].caddy, k.name)
				if err != nil {
					t.Fatal(err)
				}
				for _, instance := range fleet {
					if !instance.status(k.name).sameSwitch(record) {
						return false
					}
				}
				return true
			})
		}
	})
}

// G4: A switch knows of the one before it, wherever that was made.
func TestSwitchOffRightAfterSwitchOnElsewhereHolds(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		fleet := newFleet(t, k, 2)
		for n := range 20 {
			on, off := fleet[n%2], fleet[1-n%2]
			on.on(k.name, "")
			answered := off.off(k.name)
			at := time.Now()
			if answered.State != "off" {
				t.Fatalf("DELETE answered %+v", answered)
			}
			on.follow(answered, at)
			off.follow(answered, at)
		}
	})
}

// G4: Each instance tells its own handlers, once.
func TestEachInstanceEmitsTheChangesOfAll(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		fleet := startFleet(t, k, 2, newTestCaddy, "events {\n on maintenance_enabled maintenance_test\n on maintenance_disabled maintenance_test\n}")
		var want [2]string
		change := func(at int, method, body, state string) {
			fleet[at].must(method, k.name, body)
			fleet[1-at].awaitState(k.name, state)
			event := map[string]string{"on": "maintenance_enabled", "off": "maintenance_disabled"}[state]
			for i, source := range map[int]string{at: "api", 1 - at: "sync"} {
				want[i] += fmt.Sprintf("%s {\"by\":\"\",\"from\":\"\",\"message\":\"Back.\",\"reason\":\"\",\"site\":%q,\"source\":%q,\"until\":\"\"}\n", event, k.name, source)
			}
		}
		for n := range 5 {
			change(n%2, http.MethodPut, `{"message": "Back."}`, "on")
			change(0, http.MethodDelete, "", "off")
		}
		for i, instance := range fleet {
			eventually(t, patience, "the instance has told\n"+want[i], func() bool {
				told, _ := os.ReadFile(filepath.Join(instance.dir, "events"))
				return string(told) == want[i]
			})
		}
	})
}

// What is scheduled begins at its time on every instance, by its own clock, also on one that was
// killed in between, and without the storage.
//
// G1, G2
func TestScheduledMaintenanceBeginsOnAllInstances(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		f := newNamedFleet(t, k, 3)
		from := time.Now().Add(4 * time.Second).Truncate(time.Millisecond)
		got := f.all[0].command("maintenance", "on", k.name, "--from", from.Format(time.RFC3339Nano), "--reason", "Moving.")
		if got.code != 0 || !strings.Contains(got.stdout, "Scheduling maintenance mode for "+k.name+"... done (3 instances), begins by itself ") {
			t.Fatalf("got %+v", got)
		}
		for _, i := range f.all {
			if code := i.site.visit(); code != http.StatusOK && time.Now().Before(from) {
				t.Errorf("got %d before its time", code)
			}
		}
		f.all[1].kill()
		f.fault(2, "hang load")
		f.all[1].start(f.all[1].caddyfile(f.all[1].site))
		time.Sleep(time.Until(from))
		for _, i := range f.all {
			i.site.expect(t, http.StatusServiceUnavailable)
		}
		f.fault(2, "")
	})
}
