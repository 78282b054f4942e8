package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/caddy-maintenance/internal/site"
)

// costs are the numbers of storage accesses, and how long the last instance takes to follow.
type costs struct {
	loads, stores, lists int
	lag                  time.Duration
}

// followers are instances that follow each other, in fake time.
type followers struct {
	t     *testing.T
	m     *memory
	all   []*instance
	names []string

	reported []Report
	at       []time.Time
	observed time.Time
}

func newFollowers(t *testing.T, instances, sites int) *followers {
	f := &followers{t: t, m: newMemory(), observed: time.Now(), reported: make([]Report, instances), at: make([]time.Time, instances)}
	for n := range sites {
		f.names = append(f.names, fmt.Sprint("site", n))
	}
	for range instances {
		f.all = append(f.all, newInstance(t, f.m, f.names...))
	}
	f.tick()
	if err := f.all[0].switchSite("site1", site.On{}); err != nil {
		t.Fatal(err)
	}
	f.run(2 * time.Minute)
	return f
}

// tick does what all instances do in an interval.
func (f *followers) tick() {
	for n, i := range f.all {
		if i.tick(f.t.Context()).Err != nil {
			continue
		}
		r := Report{Host: "web", SyncInterval: i.follower.Interval}
		r.Applied, _, r.Behind, r.Absent = i.follower.Progress()
		if !reflect.DeepEqual(r, f.reported[n]) || time.Since(f.at[n]) >= ReportInterval {
			dated := r
			dated.Clock = time.Now()
			if i.Report(f.t.Context(), dated) == nil {
				f.reported[n], f.at[n] = r, time.Now()
			}
		}
	}
	if time.Since(f.observed) >= ObserveInterval {
		f.observed = time.Now()
		for _, i := range f.all {
			if i.fleet.Observe(f.t.Context()) == nil {
				i.fleet.RemoveGone(f.t.Context(), time.Now())
			}
		}
	}
}

func (f *followers) run(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		time.Sleep(f.all[0].follower.Interval)
		f.tick()
	}
}

// count returns what something costs.
func (f *followers) count(do func()) costs {
	loads, stores, lists := f.m.count("load"), f.m.count("store"), f.m.count("list")
	do()
	return costs{loads: f.m.count("load") - loads, stores: f.m.count("store") - stores, lists: f.m.count("list") - lists}
}

func (f *followers) switchOn(name string) {
	if err := f.all[0].switchSite(name, site.On{}); err != nil {
		f.t.Error(err)
	}
}

// follow runs until all instances have followed a switch, and returns how long that was.
func (f *followers) follow(name string) time.Duration {
	began := time.Now()
	for {
		f.run(f.all[0].follower.Interval)
		version, followed := f.all[0].site(name).Current().Version(), true
		for _, i := range f.all {
			followed = followed && i.site(name).Current().Version() == version
		}
		if followed || time.Since(began) > time.Minute {
			return time.Since(began)
		}
	}
}

// The costs of fleets of these sizes. The table in docs/storage.md was made with all of them:
// MAINTENANCE_TEST_COSTS=all go test -v -run Costs ./internal/store
//
// G4, G12
func TestWhatFollowingCosts(t *testing.T) {
	sizes := [][2]int{{3, 10}, {3, 1000}}
	if os.Getenv("MAINTENANCE_TEST_COSTS") == "all" {
		sizes = [][2]int{{3, 10}, {3, 10000}, {100, 10}, {100, 10000}, {1000, 10}}
	}
	for _, size := range sizes {
		synctest.Test(t, func(t *testing.T) {
			f := newFollowers(t, size[0], size[1])
			interval := f.all[0].follower.Interval
			n, sites := size[0], size[1]
			row := func(what string, got, most costs) {
				t.Logf("| %d | %d | %s | %d | %d | %d | %s |", n, sites, what, got.loads, got.stores, got.lists, got.lag)
				if got.loads > most.loads || got.stores > most.stores || got.lists > most.lists || got.lag > most.lag {
					t.Errorf("%d instances, %d sites, %s: got %+v, want at most %+v", n, sites, what, got, most)
				}
			}
			// A minute without switches: the journal, each record once (and the instance's own
			// report if there is none), and each other's reports.
			ticks := n * int(time.Minute/interval)
			idle := costs{ticks + 2*sites + n*min(n, maxObserved) + n, 3 * n, n, 0}
			row("a minute, nothing happens", f.count(func() { f.run(time.Minute) }), idle)

			got := f.count(func() {
				f.switchOn("site2")
				f.run(10 * time.Second)
			})
			row("10 s with a switch", got, costs{8*n + sites/4 + n*min(n, maxObserved) + 10, 2*n + 4, n, 0})
			f.switchOn("site3")
			row("following it", costs{lag: f.follow("site3")}, costs{lag: 2 * interval})

			var lag time.Duration
			got = f.count(func() {
				for second := range 60 {
					name := f.names[second%len(f.names)]
					f.switchOn(name)
					time.Sleep(time.Second)
					if second%int(interval/time.Second) == 0 {
						f.tick()
					}
				}
				lag = f.follow(f.names[59%len(f.names)])
			})
			got.lag = lag
			row("a minute, a switch a second", got, costs{idle.loads + 2*60*n + 4*60 + 8*n + sites, idle.stores + ticks + 4*60 + 4*n, 2 * n, 2 * interval})

			got = f.count(func() {
				for k := range 100 {
					f.switchOn(f.names[k%len(f.names)])
				}
				lag = f.follow(f.names[99%len(f.names)])
			})
			got.lag = lag
			row("100 switches at once", got, costs{n*sites + sites/2 + 400 + 8*n, 320 + 2*n, n, 2 * interval})

			f.run(time.Minute)
			f.m.setFault(failOn("load " + Key("site4")))
			f.m.addEntries(Entry{Site: "site4"})
			got = f.count(func() { f.run(time.Minute) })
			f.m.setFault(nil)
			row("a minute, one record cannot be read", got, costs{idle.loads + ticks + 2*n, idle.stores + 2*n, 2 * n, 0})

			f.m.setFault(func(context.Context, string, string) error { return errors.New("out") })
			f.run(10 * time.Minute)
			f.m.setFault(nil)
			got = f.count(func() {
				f.switchOn("site5")
				lag = f.follow("site5")
			})
			got.lag = lag
			row("a switch after 10 minutes of outage", got, costs{8*n + 2*sites + n*min(n, maxObserved), 2*n + 4, 2 * n, 2 * interval})
		})
	}
}

// G3: each record that the storage has lost is stored again once, by one instance.
func TestEmptiedStorageIsFilledOnce(t *testing.T) {
	const sites = 1000
	synctest.Test(t, func(t *testing.T) {
		f := newFollowers(t, 5, sites)
		for _, name := range f.names {
			f.switchOn(name)
		}
		f.run(2 * time.Minute)
		f.m.mu.Lock()
		clear(f.m.values)
		clear(f.m.counts)
		f.m.mu.Unlock()
		f.run(10 * time.Second)
		records := 0
		f.m.mu.Lock()
		defer f.m.mu.Unlock()
		for what, n := range f.m.counts {
			if strings.HasPrefix(what, "store maintenance/sites/") {
				records += n
			}
		}
		if records != sites {
			t.Errorf("%d records were stored", records)
		}
	})
}

// An older copy of the storage that is put back under running instances has the newer records
// again at their next ticks, before an instance without a memory can start from it.
//
// G3
func TestOlderCopyOfTheStorageIsMended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFollowers(t, 3, 10)
		f.m.mu.Lock()
		older := maps.Clone(f.m.values)
		f.m.mu.Unlock()
		for _, name := range f.names[2:6] {
			f.switchOn(name)
		}
		f.run(10 * time.Second)
		f.m.mu.Lock()
		f.m.values = older
		f.m.mu.Unlock()
		f.run(2 * f.all[0].follower.Interval)
		for _, name := range f.names[2:6] {
			if !strings.Contains(f.m.get(Key(name)), `"enabled":true`) {
				t.Errorf("the record of %s is %q", name, f.m.get(Key(name)))
			}
		}
	})
}
