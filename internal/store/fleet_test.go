package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/caddy-maintenance/internal/site"
)

func TestLostEntriesOfAJournal(t *testing.T) {
	done := func(id, site string, version int64) Entry {
		return Entry{ID: id, Site: site, Version: version, Done: true}
	}
	a, b, c := done("1", "a", 1), done("2", "b", 2), done("3", "c", 3)
	full := make(Journal, maxEntries)
	for n := range full {
		full[n] = done(fmt.Sprint("new", n), "new", int64(10+n))
	}
	for name, test := range map[string]struct {
		now, earlier Journal
		want         []string
	}{
		"all are there":                      {Journal{a, b, c}, Journal{a, b}, nil},
		"an older copy":                      {Journal{a}, Journal{a, b, c}, []string{"b", "c"}},
		"one of two at the same time":        {Journal{a, c}, Journal{a, b}, []string{"b"}},
		"added again":                        {Journal{a, c, done("4", "b", 2)}, Journal{a, b}, nil},
		"switched since":                     {Journal{a, c, done("4", "b", 5)}, Journal{a, b}, nil},
		"a question":                         {Journal{a}, Journal{a, {ID: "2", Sites: []string{"b"}}}, nil},
		"one that had only begun":            {Journal{a}, Journal{a, {ID: "2", Site: "b", Version: 2}}, nil},
		"pushed out":                         {append(full[1:maxEntries:maxEntries], b), Journal{a, b}, nil},
		"not pushed out: an older one stays": {append(Journal{a}, full[1:]...), Journal{a, b}, []string{"b"}},
	} {
		if got := test.now.lost(test.earlier); !slices.Equal(got, test.want) {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
}

func TestJournalKeepsTheLastEntries(t *testing.T) {
	var j Journal
	for i := range maxEntries + 10 {
		j = j.with(Entry{ID: fmt.Sprint(i), Site: "shop", Version: int64(i), Done: true})
	}
	if len(j) != maxEntries || j[0].ID != "10" || j.lastSettled() != "73" || j.Version("shop") != 73 {
		t.Errorf("got %d entries from %s to %s", len(j), j[0].ID, j.lastSettled())
	}
	j = Journal{{ID: "a", Site: "shop", Version: 1}, {ID: "b", Site: "wiki", Version: 1}}
	if j = j.with(Entry{ID: "c", Site: "shop", Version: 1, Done: true}); len(j) != 2 || j[0].ID != "b" || j[1].ID != "c" {
		t.Errorf("an entry that is done leaves %v", j)
	}
}

// What an instance must have applied to be confirmed.
func TestBasisOfConfirmation(t *testing.T) {
	begun, done := Entry{Site: "shop", Version: 3}, Entry{Site: "shop", Version: 2, Done: true}
	older, question, other := Entry{Site: "shop", Version: 1, Done: true}, Entry{Site: "shop"}, Entry{Site: "wiki", Version: 1, Done: true}
	for _, test := range []struct {
		name string
		j    Journal
		want int
	}{
		{"nothing", Journal{}, -1},
		{"another site", Journal{other}, -1},
		{"the last switch", Journal{done, done, other}, 1},
		{"the last switch, though it was asked since", Journal{done, other, question}, 0},
		{"the first question, where the switch is not there any more", Journal{other, question, other, question}, 1},
		{"an older switch", Journal{older, other}, -1},
		{"a question after it", Journal{older, other, question, question}, 2},
		{"a question before it", Journal{question, older}, -1},
		{"a switch that has only begun", Journal{done, begun}, -1},
		{"a question after it", Journal{done, begun, question, question}, 2},
	} {
		for i := range test.j {
			test.j[i].ID = fmt.Sprint(i)
		}
		if got := test.j.basis("shop", 2); got != test.want {
			t.Errorf("%s: got %d, want %d", test.name, got, test.want)
		}
	}
}

// What is known about an instance from its last report.
//
// G11
func TestStandingOfAnInstance(t *testing.T) {
	start := time.Date(2026, 1, 31, 2, 0, 0, 0, time.UTC)
	old, on, question := Entry{ID: "old", Site: "shop", Version: 1, Done: true}, Entry{ID: "on", Site: "shop", Version: 2, Done: true}, Entry{ID: "?", Site: "shop"}
	wiki := Entry{ID: "wiki", Site: "wiki", Version: 1, Done: true}
	for _, test := range []struct {
		name    string
		journal Journal
		report  Report
		after   time.Duration // from the read of the journal to the next read of the report
		want    Standing
		drained bool
	}{
		{"has applied the switch", Journal{old, on}, Report{Applied: "on"}, 0, Confirmed, true},
		{"has applied what came later", Journal{old, on, wiki}, Report{Applied: "wiki"}, 0, Confirmed, true},
		{"has not applied it", Journal{old, on}, Report{Applied: "old"}, 0, Pending, false},
		{"nor in time", Journal{old, on}, Report{Applied: "old"}, 9*time.Second + 1, Silent, false},
		{"nor in its own time, which is longer", Journal{old, on}, Report{Applied: "old", SyncInterval: time.Minute}, time.Minute, Pending, false},
		{"has applied what is not there any more", Journal{old, on}, Report{Applied: "lost"}, 0, Pending, false},
		{"could not read the record", Journal{old, on}, Report{Applied: "on", Behind: []string{"shop"}}, 0, Pending, false},
		{"nor in time", Journal{old, on}, Report{Applied: "on", Behind: []string{"shop"}}, time.Minute, Silent, false},
		{"has to read it once more", Journal{old, on}, Report{Config: "same", Applied: "on", Behind: []string{"shop"}}, time.Minute, Pending, false},
		{"nor yet, with another config", Journal{old, on}, Report{Config: "2", Applied: "on", Behind: []string{"shop"}}, time.Minute, Pending, false},
		{"could not read that of another site", Journal{old, on}, Report{Applied: "on", Behind: []string{"wiki"}}, 30 * time.Second, Confirmed, true},
		{"does not have the site, as it said before the switch", Journal{old, on}, Report{Applied: "old", Absent: []string{"shop"}}, 0, Pending, false},
		{"does not have the site", Journal{old, on}, Report{Applied: "on", Absent: []string{"shop"}}, 0, Absent, false},
		{"has requests of it", Journal{old, on}, Report{Applied: "on", Sites: map[string]Traffic{"shop": {InFlight: 1}}}, 0, Confirmed, false},
		{"holds some", Journal{old, on}, Report{Applied: "on", Sites: map[string]Traffic{"shop": {Held: 1}}}, 0, Confirmed, true},
		{"has requests of another", Journal{old, on}, Report{Applied: "on", Sites: map[string]Traffic{"wiki": {InFlight: 1}}}, 0, Confirmed, true},
		{"is stopping", Journal{old, on}, Report{Applied: "on", Stopping: true}, 0, Stopping, true},
		{"is stopping and has not applied it", Journal{old, on}, Report{Applied: "old", Stopping: true}, 0, Stopping, false},
		{"is stopping and has requests", Journal{old, on}, Report{Applied: "on", Stopping: true, Sites: map[string]Traffic{"shop": {InFlight: 1}}}, 0, Stopping, false},
		{"had confirmed, but does not answer when asked again", Journal{on, question}, Report{Applied: "on"}, time.Minute, Silent, false},
		{"has not reported for long", Journal{on}, Report{Applied: "on"}, 40 * time.Second, Silent, false},
		{"was never asked", Journal{wiki}, Report{Applied: "wiki"}, 0, Pending, false},
	} {
		if test.report.SyncInterval == 0 {
			test.report.SyncInterval = 2 * time.Second
		}
		test.report.Closed = []string{"shop"}
		f := NewFleet(&Store{self: NewSelf("self")})
		f.keep([]string{"web-1"}, 0)
		f.note(test.journal, start)
		before := test.report
		if before.Config == "" || before.Config == "2" {
			before.Config = ""
		} else { // it was not behind
			before.Behind = nil
		}
		f.take("web-1", before, test.name, start)
		f.take("web-1", test.report, test.name+test.report.Config, start.Add(test.after))
		got := f.Instances("shop", 2)[0]
		if got.Standing != test.want || got.Drained("shop") != test.drained {
			t.Errorf("%s: got %d, drained %t, want %d, %t", test.name, got.Standing, got.Drained("shop"), test.want, test.drained)
		}
	}
}

// How far a clock is ahead that showed a time between two reads.
func TestSkew(t *testing.T) {
	from := time.Date(2026, 1, 31, 2, 0, 0, 0, time.UTC)
	to := from.Add(time.Minute)
	for shown, want := range map[time.Time]time.Duration{
		from: 0, to: 0, from.Add(-30 * time.Second): 0, to.Add(30 * time.Second): 0,
		to.Add(time.Hour): time.Hour, from.Add(-time.Hour): -time.Hour,
	} {
		if got := skew(shown, from, to); got != want {
			t.Errorf("%s: got %s, want %s", shown, got, want)
		}
	}
}

// An older switch that all have applied does not confirm a newer one whose entry is lost.
//
// G11
func TestOlderSwitchConfirmsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		all := fleetOf(t, m, 3)
		a, b, c := all[0], all[1], all[2]
		for _, mutation := range []site.Mutation{site.On{}, site.Off{}} {
			if err := a.switchSite("shop", mutation); err != nil {
				t.Fatal(err)
			}
		}
		for _, i := range all {
			i.follow(t)
		}
		var once atomic.Bool
		m.setFault(func(_ context.Context, op, key string) error {
			if op == "store" && key == JournalKey && once.CompareAndSwap(false, true) {
				return a.switchSite("shop", site.On{}) // while what b stores is on its way
			}
			return nil
		})
		if err := b.switchSite("wiki", site.On{}); err != nil {
			t.Fatal(err)
		}
		m.setFault(nil)
		for _, other := range a.others(t) {
			if other.Standing != Pending || c.word("shop") != "off" {
				t.Errorf("got %+v, while the site is %s there", other, c.word("shop"))
			}
		}
		b.follow(t)
		c.follow(t)
		for _, other := range a.others(t) {
			if other.Standing != Confirmed || c.word("shop") != "on" {
				t.Errorf("got %+v, and the site is %s", other, c.word("shop"))
			}
		}
	})
}

// An instance does not report as applied what is not in its memory yet: while its own switch waits
// for the storage, while a record has been read but not applied, or if a record is corrupt.
//
// G11
func TestAppliedIsWhatIsInMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		all := fleetOf(t, m, 2)
		a, b := all[0], all[1]
		expect := func(what string, drained bool) {
			t.Helper()
			if got := b.others(t)[0]; got.Drained("shop") != drained || drained != (a.word("shop") == "on") {
				t.Errorf("%s: it is %s, and known as %+v", what, a.word("shop"), got)
			}
		}
		answer, answered := make(chan struct{}), make(chan error, 1)
		m.after = func(key string) {
			if key == JournalKey && strings.Contains(m.get(JournalKey), "done") {
				<-answer
			}
		}
		go func() { answered <- a.switchSite("shop", site.On{}) }()
		synctest.Wait()
		m.after = nil
		a.follow(t)
		expect("stored, and not answered", false)
		close(answer)
		if err := <-answered; err != nil {
			t.Fatal(err)
		}
		a.follow(t)
		expect("answered", true)

		if err := b.switchSite("shop", site.Off{}); err != nil {
			t.Fatal(err)
		}
		a.follow(t)
		if err := b.switchSite("shop", site.On{}); err != nil {
			t.Fatal(err)
		}
		tick := a.follower.Tick(t.Context(), time.Now())
		reading := a.Read(t.Context(), tick.ToRead[0].Site)
		synctest.Wait()
		if err := a.report(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		expect("read, and not applied", false)
		for range a.site("shop").Apply(<-reading, site.Cause{}, time.Now()) {
		}
		tick.ToRead[0].Applied()

		if err := b.switchSite("shop", site.Off{}); err != nil {
			t.Fatal(err)
		}
		a.follow(t)
		if err := b.switchSite("shop", site.On{}); err != nil {
			t.Fatal(err)
		}
		m.set(Key("shop"), "{")
		a.follow(t)
		expect("corrupt", false)
	})
}

// A storage that has answered before is not trusted when it begins to fail.
//
// G3
func TestEachAbsenceIsChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		a := fleetOf(t, m, 1)[0]
		a.sites.Add("blog")
		m.set(Key("blog"), `{"version": 1, "enabled": true}`)
		time.Sleep(time.Millisecond)
		m.setFault(func(_ context.Context, op, _ string) error {
			if op == "load" {
				return fs.ErrNotExist
			}
			return nil
		})
		if read := <-a.Read(t.Context(), a.site("blog")); !errors.Is(read.Err, ErrDown) {
			t.Errorf("got %+v", read)
		}
		unreported := newInstance(t, m, "blog")
		m.setFault(func(_ context.Context, op, _ string) error {
			if op == "load" {
				return fs.ErrNotExist
			}
			return errors.New("connection refused")
		})
		_ = unreported.report(t.Context(), false)
		if read := <-unreported.Read(t.Context(), unreported.site("blog")); read.Err == nil {
			t.Error("an instance that could not report takes the site for one that was never switched")
		}
		time.Sleep(time.Millisecond)
		unreported.TrustAbsence() // as of files, on a disk that is full
		if read := <-unreported.Read(t.Context(), unreported.site("blog")); read.Err != nil {
			t.Error(read.Err)
		}
	})
}

// Reads of many missing records share the checks.
func TestChecksAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		names := []string{"shop"}
		for n := range 1000 {
			names = append(names, fmt.Sprint("site", n))
		}
		a := newInstance(t, m, names...)
		if err := a.report(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		m.setFault(func(context.Context, string, string) error {
			time.Sleep(20 * time.Millisecond) // fake, in the bubble
			return nil
		})
		began := time.Now()
		var reads []<-chan site.Read
		for _, name := range names {
			reads = append(reads, a.Read(t.Context(), a.site(name)))
		}
		for _, read := range reads {
			<-read
		}
		if took, checks := time.Since(began), m.count("load "+reportKey(a.self.Name())); took > 2*time.Second || checks > 100 {
			t.Errorf("1,001 reads took %s and %d checks", took, checks)
		}
	})
}

// Two switches at once lose an entry, and many at once push others out of the journal. All
// instances still find all of them, at little cost.
//
// G4, G12
func TestCollisionsAndOverrunsCostLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		var names []string
		for n := range 300 {
			names = append(names, fmt.Sprint("site", n))
		}
		var all []*instance
		for range 3 {
			i := newInstance(t, m, names...)
			i.follow(t)
			all = append(all, i)
		}
		a, b, c := all[0], all[1], all[2]
		for n := range 3 {
			if err := a.switchSite(names[n], site.On{}); err != nil {
				t.Fatal(err)
			}
		}
		c.follow(t)
		var once atomic.Bool
		m.setFault(func(_ context.Context, op, key string) error {
			if op != "store" || key != JournalKey || !once.CompareAndSwap(false, true) {
				return nil
			}
			err := a.switchSite("site10", site.On{})
			c.follow(t) // it sees an entry that is lost afterwards
			return err
		})
		if err := b.switchSite("site11", site.On{}); err != nil {
			t.Fatal(err)
		}
		m.setFault(nil)
		before := m.reads()
		if c.follow(t); m.reads()-before > 2 || c.word("site11") != "on" {
			t.Errorf("a collision costs %d reads; the site is %s", m.reads()-before, c.word("site11"))
		}
		time.Sleep(10 * time.Second)
		stores := m.count("store " + JournalKey)
		for _, name := range names {
			if err := a.switchSite(name, site.On{}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := m.count("store "+JournalKey) - stores; n > 2*len(names)+maxEntries {
			t.Errorf("%d switches have stored the journal %d times", len(names), n)
		}
		// One question names all sites whose entries were pushed out.
		ask := func(name string) Instance {
			version := a.site(name).Current().Version()
			if err := errors.Join(a.fleet.List(t.Context()), a.fleet.Ask(t.Context(), name, version), a.fleet.Look(t.Context(), nil)); err != nil {
				t.Fatal(err)
			}
			return a.fleet.Instances(name, version)[0]
		}
		if got := ask("site0"); got.Standing != Pending {
			t.Errorf("got %d", got.Standing)
		}
		b.follow(t)
		c.follow(t)
		stores = m.count("store " + JournalKey)
		for _, name := range names {
			if got := ask(name); got.Standing != Confirmed || b.word(name) != "on" || c.word(name) != "on" {
				t.Errorf("%s: got %d, and it is %s there", name, got.Standing, b.word(name))
			}
		}
		if n := m.count("store "+JournalKey) - stores; n > 0 {
			t.Errorf("%d further questions were asked", n)
		}
	})
}

// A switch waits for an instance that was there when the storage was emptied, and for one whose
// report cannot be read.
//
// G11
func TestInstanceWhoseReportIsLostIsWaitedFor(t *testing.T) {
	for name, lose := range map[string]func(m *memory){
		"emptied": func(m *memory) { clear(m.values) },
		"reports removed": func(m *memory) {
			maps.DeleteFunc(m.values, func(key string, _ []byte) bool { return strings.HasPrefix(key, reportsPath) })
		},
		"reports corrupt": func(m *memory) {
			for key := range m.values {
				if strings.HasPrefix(key, reportsPath) {
					m.values[key] = []byte("{")
				}
			}
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			m := newMemory()
			all := fleetOf(t, m, 2)
			a, b := all[0], all[1]
			if name != "reports corrupt" {
				a.others(t)
			}
			time.Sleep(time.Minute)
			lose(m)
			if err := a.switchSite("shop", site.On{}); err != nil {
				t.Fatal(err)
			}
			if got := a.others(t); len(got) != 1 || got[0].Standing != Pending {
				t.Errorf("%s: got %+v", name, got)
			}
			b.follow(t)
			if got := a.others(t); len(got) != 1 || got[0].Standing != Confirmed || b.word("shop") != "on" {
				t.Errorf("%s: got %+v, and it is %s there %v", name, got, b.word("shop"), m.get(JournalKey))
			}
			lose(m)
			a.others(t)
			time.Sleep(time.Minute)
			if got := a.others(t); len(got) != 1 || got[0].Standing != Silent {
				t.Errorf("%s, a minute later: got %+v", name, got)
			}
		})
	}
}

// An entry that no instance has written makes no site unknown, and makes nobody wait forever.
func TestForeignEntriesAndReportsDoNoHarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		a := fleetOf(t, m, 1)[0]
		m.set(JournalKey, fmt.Sprintf(`[{"id":"x","site":"shop","version":%d,"done":true},{"id":"y","site":"shop","version":-1}]`, int64(math.MaxInt64)))
		m.set(reportKey("ghost-1"), `{"sync_interval":1000000000000000000}`)
		a.follow(t)
		if err := a.switchSite("shop", site.On{}); err != nil || a.word("shop") != "on" {
			t.Errorf("%v, it is %s", err, a.word("shop"))
		}
		a.others(t)
		time.Sleep(4 * time.Minute)
		if got := a.others(t); len(got) != 1 || got[0].Standing != Silent || got[0].Host != "ghost-1" {
			t.Errorf("got %+v", got)
		}
	})
}

// fleetOf returns instances that have read everything and reported.
func fleetOf(t *testing.T, m *memory, n int) []*instance {
	t.Helper()
	var all []*instance
	for range n {
		all = append(all, newInstance(t, m, "shop", "wiki"))
	}
	for _, i := range all {
		i.tick(t.Context())
		if err := i.report(t.Context(), false); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// others returns what is known about the other instances with regard to the shop.
func (i *instance) others(t *testing.T) []Instance {
	t.Helper()
	version := i.site("shop").Current().Version()
	if err := errors.Join(i.fleet.Ask(t.Context(), "shop", version), i.fleet.Observe(t.Context())); err != nil {
		t.Fatal(err)
	}
	return i.fleet.Instances("shop", version)
}

// An instance confirms a switch when it has applied it. It is drained when it then reports that
// nothing is in flight.
//
// G11
func TestInstanceConfirmsWhatItHasApplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		all := fleetOf(t, m, 2)
		a, b := all[0], all[1]
		step := func(name string, want Standing, drained bool) {
			t.Helper()
			if got := a.others(t); len(got) != 1 || got[0].Standing != want || got[0].Drained("shop") != drained {
				t.Errorf("%s: got %+v, want %d, drained: %t", name, got, want, drained)
			}
		}
		follow := func() {
			b.tick(t.Context())
			if err := b.report(t.Context(), false); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.switchSite("shop", site.On{}); err != nil {
			t.Fatal(err)
		}
		step("stored", Pending, false)
		m.setFault(failOn("load " + Key("shop")))
		follow()
		m.setFault(nil)
		step("its record cannot be read", Pending, false)
		b.inFlight["shop"] = 1
		follow()
		step("applied, with a request in flight", Confirmed, false)
		b.inFlight["shop"] = 0
		follow()
		step("nothing is in flight", Confirmed, true)
		if err := b.switchSite("shop", site.Off{}); err != nil {
			t.Fatal(err)
		}
		if err := b.report(t.Context(), false); err != nil { // before it has seen its own switch in the journal
			t.Fatal(err)
		}
		if err := a.fleet.Observe(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := a.fleet.Instances("shop", 0); got[0].Drained("shop") {
			t.Errorf("it is open there, and drained")
		}
		if err := b.switchSite("shop", site.On{}); err != nil {
			t.Fatal(err)
		}
		follow()
		if err := b.report(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		step("stopping", Stopping, true)
		if err := b.Retire(t.Context()); err != nil || len(a.others(t)) != 0 {
			t.Errorf("%v, %d are left", err, len(a.others(t)))
		}
	})
}

// Two instances change the journal at the same time, and one entry is lost. It is added again.
// Meanwhile, the switch does not count as confirmed.
//
// G4, G11
func TestLostEntryOfTheJournalIsAddedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		all := fleetOf(t, m, 3)
		a, b, c := all[0], all[1], all[2]
		var once atomic.Bool
		m.setFault(func(_ context.Context, op, key string) error {
			// b stores a journal without the entry that a has added since b read it.
			if op == "store" && key == JournalKey && strings.Contains(m.get(Key("wiki")), "true") && once.CompareAndSwap(false, true) {
				before := m.get(JournalKey)
				if err := a.switchSite("shop", site.On{}); err != nil {
					t.Error(err)
				}
				m.set(JournalKey, before)
			}
			return nil
		})
		if err := b.switchSite("wiki", site.On{}); err != nil {
			t.Fatal(err)
		}
		m.setFault(nil)
		if j, _ := parseJournal([]byte(m.get(JournalKey))); j.Version("shop") != 0 {
			t.Fatal("the entry was not lost")
		}
		if err := a.fleet.Ask(t.Context(), "shop", a.site("shop").Current().Version()); err != nil {
			t.Fatal(err)
		}
		c.tick(t.Context())
		if c.word("shop") != "on" {
			t.Errorf("when asked it is %s", c.word("shop"))
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if j, _ := parseJournal([]byte(m.get(JournalKey))); j.Version("shop") == 0 || j.Version("wiki") == 0 {
			t.Errorf("the journal is %v", j)
		}
	})
}

// An instance crashes half way through a switch: the others read the record for a minute.
//
// G4
func TestSwitchThatDiesHalfWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		a := fleetOf(t, m, 1)[0]
		m.addEntries(Entry{Site: "shop", Version: 1, Enabled: true})
		for range 3 {
			a.tick(t.Context())
			time.Sleep(2 * time.Second)
		}
		m.set(Key("shop"), `{"version": 1, "enabled": true}`)
		if a.tick(t.Context()); a.word("shop") != "on" {
			t.Errorf("it is %s", a.word("shop"))
		}
		m.set(Key("shop"), `{"version": 2, "enabled": false}`)
		if a.tick(t.Context()); a.word("shop") != "on" {
			t.Error("the record is read though the switch was seen to be stored")
		}
	})
}

// A record that is outdated according to the journal opens no site, and an instance that has the
// newer one restores it when asked.
//
// G3
func TestOutdatedRecordOpensNothing(t *testing.T) {
	for name, late := range map[string]string{"late": `{"version": 5, "enabled": false}`, "lost": "", "corrupt": "{"} {
		synctest.Test(t, func(t *testing.T) {
			m := newMemory()
			a := fleetOf(t, m, 1)[0]
			if err := a.switchSite("shop", site.On{}); err != nil {
				t.Fatal(err)
			}
			if m.set(Key("shop"), late); late == "" {
				_ = m.Delete(t.Context(), Key("shop"))
			}
			for restart := range 2 {
				b := newInstance(t, m, "shop")
				j, err := b.Journal(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				b.site("shop").NoteStored(j.Version("shop"))
				b.tick(t.Context())
				if want := []string{"unknown", "on"}[restart]; b.word("shop") != want {
					t.Errorf("%s: it is %s after a restart, want %s", name, b.word("shop"), want)
				}
				if restart == 0 && name == "corrupt" {
					m.addEntries(Entry{Site: "shop"})
				}
				a.tick(t.Context())
				if b.tick(t.Context()); b.word("shop") != "on" {
					t.Errorf("%s: it is %s when the instance that knows it was asked", name, b.word("shop"))
				}
			}
		})
	}
}

// A storage that says "not found" when it fails counts as down, and its answers are ignored. To a
// storage that was emptied, everything is stored again.
//
// G3
func TestNothingIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		a := fleetOf(t, m, 1)[0]
		if err := a.switchSite("shop", site.On{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		m.setFault(func(_ context.Context, op, _ string) error {
			if op == "load" {
				return fs.ErrNotExist
			}
			return nil
		})
		if tick := a.tick(t.Context()); !errors.Is(tick.Err, ErrDown) || !tick.Turned {
			t.Errorf("got %+v, want that the storage is down", tick)
		}
		a.sites.Add("blog")
		read := <-a.Read(t.Context(), a.site("blog"))
		if !errors.Is(read.Err, ErrDown) {
			t.Errorf("a site that is not known is read as %+v", read)
		}
		if err := a.switchSite("shop", site.Off{}); !errors.Is(err, ErrDown) || a.word("shop") != "on" {
			t.Errorf("got %v, and the site is %s", err, a.word("shop"))
		}
		time.Sleep(time.Second)
		m.setFault(nil)
		clear(m.values)
		a.tick(t.Context())
		if tick := a.tick(t.Context()); tick.Err != nil || m.get(Key("shop")) == "" || m.get(reportKey(a.self.Name())) == "" {
			t.Errorf("%v; stored is %v", tick.Err, m.values)
		}
	})
}

// A list of reports that stops half way, or lacks the report of this instance, is rejected.
//
// G11
func TestListThatIsNotCompleteIsNotTheFleet(t *testing.T) {
	for name, broken := range map[string]func(m *memory, keys []string) ([]string, error){
		"stops at once":            func(*memory, []string) ([]string, error) { return nil, fs.ErrNotExist },
		"stops half way":           func(_ *memory, keys []string) ([]string, error) { return keys[:1], fs.ErrNotExist },
		"lacks what was stored":    func(*memory, []string) ([]string, error) { return nil, nil },
		"has what is being stored": func(_ *memory, keys []string) ([]string, error) { return append(keys, reportsPath+"/.tmp-1"), nil },
	} {
		for times, works := range map[int]bool{1: true, listAttempts - 1: true, listAttempts: name == "has what is being stored"} {
			m := newMemory()
			a := fleetOf(t, m, 3)[0]
			m.list = func(keys []string) ([]string, error) {
				if times--; times < 0 {
					return keys, nil
				}
				slices.Sort(keys)
				return broken(m, slices.DeleteFunc(keys, func(key string) bool { return key == reportKey(a.self.Name()) && name != "has what is being stored" }))
			}
			err := a.fleet.Observe(t.Context())
			if n := len(a.fleet.Instances("", 0)); (err == nil) != works || works && n != 2 {
				t.Errorf("%s: found %d, %v", name, n, err)
			}
		}
	}
}

// The report of an instance that has crashed stays for 10 minutes.
func TestReportOfWhatIsGoneIsRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		all := fleetOf(t, m, 3)
		a, alive, gone := all[0], all[1], all[2]
		for minute := range 12 {
			if err := errors.Join(alive.report(t.Context(), false), a.fleet.Observe(t.Context())); err != nil {
				t.Fatal(err)
			}
			a.fleet.RemoveGone(t.Context(), time.Now())
			if there := m.get(reportKey(gone.self.Name())) != ""; there != (minute <= 10) || m.get(reportKey(alive.self.Name())) == "" {
				t.Errorf("after %d minutes: %v", minute, m.values)
			}
			time.Sleep(time.Minute)
		}
	})
}

// The report of a living instance stays after an outage in which nobody could report, also in a
// fleet so large that each reads the others' only now and then. One that has ended is removed.
//
// G11
func TestReportOfTheLivingStays(t *testing.T) {
	defer func(before int) { maxObserved = before }(maxObserved)
	maxObserved = 4
	for _, size := range []int{3, 15} {
		synctest.Test(t, func(t *testing.T) {
			f := newFollowers(t, size, 2)
			reports := func() (n int) {
				for _, i := range f.all {
					if f.m.get(reportKey(i.self.Name())) != "" {
						n++
					}
				}
				return n
			}
			perMinute := size * (int(time.Minute/f.all[0].follower.Interval) + maxObserved + 2)
			if got := f.count(func() { f.run(time.Minute) }); got.loads > perMinute {
				t.Errorf("%d instances read %d times a minute", size, got.loads)
			}
			f.m.setFault(func(context.Context, string, string) error { return errors.New("down") })
			f.run(11 * time.Minute)
			f.m.setFault(nil)
			for _, i := range f.all { // before all have reported
				_ = i.fleet.Observe(t.Context())
				i.fleet.RemoveGone(t.Context(), time.Now())
			}
			if n := reports(); n != size {
				t.Errorf("%d of %d are left after an outage", n, size)
			}
			gone := f.all[size-1]
			f.all = f.all[:size-1]
			f.run(18 * time.Minute)
			if n := reports(); n != size-1 || f.m.get(reportKey(gone.self.Name())) != "" {
				t.Errorf("%d are left of %d, and the one that has ended: %v", n, size-1, f.m.get(reportKey(gone.self.Name())))
			}
		})
	}
}

// What cannot be read as a report, and an instance that has not reported since the storage was
// emptied, are not named for ever.
func TestWhatIsNoReportIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFollowers(t, 3, 2)
		a, gone := f.all[0], f.all[2]
		f.all = f.all[:2]
		f.m.mu.Lock()
		clear(f.m.values)
		f.m.values[reportKey("garbage-1")] = []byte("{")
		f.m.mu.Unlock()
		named := func() (names []string) {
			for _, i := range a.fleet.Instances("", 0) {
				names = append(names, i.Name)
			}
			return names
		}
		f.run(9 * time.Minute)
		if names := named(); !slices.Contains(names, "garbage-1") || !slices.Contains(names, gone.self.Name()) {
			t.Errorf("after 9 minutes, %q are named", names)
		}
		f.run(4 * time.Minute)
		if names := named(); !slices.Equal(names, []string{f.all[1].self.Name()}) {
			t.Errorf("after 13 minutes, %q are named", names)
		}
	})
}

// What an instance knows about closed sites survives a restart, separately for each storage, if
// the disk is writable. It costs no more for many sites than for one.
//
// G3
func TestMemory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "maintenance", "last_known.json")
	s := site.New("shop", time.Now())
	apply := func(record string) *site.State {
		r, err := site.ParseRecord([]byte(record), time.ParseDuration)
		if err != nil {
			t.Fatal(err)
		}
		for range s.Apply(site.Read{Record: r}, site.Cause{}, time.Now()) {
		}
		return s.Current()
	}
	open := func() *Memory { return NewMemory(path, time.ParseDuration) }
	m := open()
	m.Keep("", "shop", apply(`{"version": 2, "enabled": true, "message": "Hello."}`))
	if err := m.Save(); err != nil {
		t.Fatal(err)
	}
	again := open()
	if r := again.Record("", "shop"); r == nil || r.Version != 2 || r.Message != "Hello." {
		t.Fatalf("got %+v", r)
	}
	if again.Record("", "wiki") != nil || again.Record("another", "shop") != nil {
		t.Error("another site, or that of another storage, is known")
	}
	again.Keep("", "shop", apply(`{"version": 3, "enabled": false}`))
	if err := again.Save(); err != nil || open().Record("", "shop") != nil {
		t.Errorf("%v; a site that is off is kept", err)
	}
	on := apply(`{"version": 4, "enabled": true}`)
	for _, damage := range []string{"", "{", "[]", `{"site": "shop", "record": 1}`, "null", `{"site": "shop", "rec`} {
		if err := os.WriteFile(path, []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		damaged := open()
		if r := damaged.Record("", "shop"); r != nil {
			t.Errorf("%q: got %+v", damage, r)
		}
		damaged.Keep("", "shop", on)
		if err := damaged.Save(); err != nil || open().Record("", "shop") == nil {
			t.Errorf("%q: %v", damage, err)
		}
	}
	size := func() int64 {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	long := open()
	for n := range 1000 {
		long.Keep("", fmt.Sprint("site", n%10), on)
	}
	if err := long.Save(); err != nil {
		t.Fatal(err)
	}
	before := size()
	long.Keep("", "site1", on)
	if err := long.Save(); err != nil || size()-before > 200 {
		t.Errorf("%v; one change of many sites has written %d bytes", err, size()-before)
	}
	if open().Record("", "site7") == nil || size() > 2000 {
		t.Errorf("a file of 11 sites has %d bytes when it has been opened again", size())
	}
	nowhere := NewMemory(filepath.Join(path, "x", "y.json"), time.ParseDuration)
	nowhere.Keep("", "shop", on)
	if nowhere.Save() == nil {
		t.Error("a file that cannot be written is no error")
	}
	none := NewMemory("", time.ParseDuration)
	none.Keep("", "shop", on)
	if none.Save() != nil {
		t.Error("without a path there is something to write")
	}
}
