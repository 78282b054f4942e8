package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/caddy-maintenance/internal/site"
)

// memory is a storage that fails as a test wants it to.
type memory struct {
	mu     sync.Mutex
	values map[string][]byte
	counts map[string]int // of "load" and "store", and of each with a key
	fault  func(ctx context.Context, op, key string) error
	list   func(keys []string) ([]string, error) // changes a list
	after  func(key string)                      // runs after a store, before its answer
}

func newMemory() *memory {
	return &memory{values: make(map[string][]byte), counts: make(map[string]int)}
}

func (m *memory) meet(ctx context.Context, op, key string) error {
	m.mu.Lock()
	m.counts[op]++
	m.counts[op+" "+key]++
	fault := m.fault
	m.mu.Unlock()
	if fault == nil {
		return nil
	}
	return fault(ctx, op, key)
}

func (m *memory) Load(ctx context.Context, key string) ([]byte, error) {
	if err := m.meet(ctx, "load", key); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	value, ok := m.values[key]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return bytes.Clone(value), nil
}

func (m *memory) Store(ctx context.Context, key string, value []byte) error {
	if err := m.meet(ctx, "store", key); err != nil {
		return err
	}
	m.set(key, string(value))
	if m.after != nil {
		m.after(key)
	}
	return nil
}

func (m *memory) Delete(ctx context.Context, key string) error {
	if err := m.meet(ctx, "delete", key); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.values, key)
	return nil
}

func (m *memory) List(ctx context.Context, path string, _ bool) (keys []string, err error) {
	if err := m.meet(ctx, "list", path); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for key := range m.values {
		if strings.HasPrefix(key, path+"/") {
			keys = append(keys, key)
		}
	}
	if m.list != nil {
		return m.list(keys)
	}
	return keys, nil
}

func (m *memory) set(key, value string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.values[key] = []byte(value)
}

func (m *memory) get(key string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return string(m.values[key])
}

func (m *memory) count(what string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.counts[what]
}

// reads returns how many records were read.
func (m *memory) reads() (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for what, count := range m.counts {
		if strings.HasPrefix(what, "load maintenance/sites/") {
			n += count
		}
	}
	return n
}

// addEntries adds entries to the journal, as another instance does.
func (m *memory) addEntries(entries ...Entry) {
	j, _ := parseJournal([]byte(m.get(JournalKey)))
	for _, e := range entries {
		e.ID = rand.Text()
		j = j.with(e)
	}
	raw, _ := json.Marshal(j)
	m.set(JournalKey, string(raw))
}

func (m *memory) setFault(fault func(ctx context.Context, op, key string) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = fault
}

func failOn(what string) func(context.Context, string, string) error {
	return func(_ context.Context, op, key string) error {
		if strings.HasPrefix(op+" "+key, what) {
			return errors.New("disk full")
		}
		return nil
	}
}

func hangOn(what string) func(context.Context, string, string) error {
	return func(ctx context.Context, op, key string) error {
		if strings.HasPrefix(op+" "+key, what) {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}
}

// instance is an instance on the storage.
type instance struct {
	*Store
	follower *Follower
	sites    siteMap
	fleet    *Fleet
	inFlight map[string]int64
	changes  []site.Change
}

func newInstance(t *testing.T, m *memory, names ...string) *instance {
	s := New(t.Context(), m, time.ParseDuration, NewSelf(NewName("web")))
	i := &instance{Store: s, fleet: NewFleet(s), inFlight: make(map[string]int64), sites: make(siteMap)}
	i.follower = &Follower{Store: s, Fleet: i.fleet, Sites: i.sites, Interval: 2 * time.Second}
	for _, name := range names {
		i.sites.Add(name)
	}
	return i
}

// siteMap is a set of sites that are all in memory.
type siteMap map[string]*Followed

func (m siteMap) All() iter.Seq[*Followed] { return maps.Values(m) }

func (m siteMap) Find(name string) (*Followed, bool) { return m[name], m[name] != nil }

func (m siteMap) Add(name string) { m[name] = &Followed{Site: site.New(name, time.Now())} }

func (m siteMap) ReadAgain(name string) { m[name].ReadAgain() }

func (i *instance) site(name string) *site.Site { return i.sites[name].Site }

func (i *instance) word(name string) string { return site.View{State: i.site(name).Current()}.Word() }

// tick looks for switches, reads the records that it must, and reports.
func (i *instance) tick(ctx context.Context) Tick {
	tick := i.follower.Tick(ctx, time.Now())
	for _, f := range tick.ToRead {
		read := <-i.Read(ctx, f.Site)
		before, verified := f.Current().Version(), f.Verified()
		f.Note(read)
		for change := range f.Apply(read, site.Cause{Source: site.SourceSync}, time.Now()) {
			i.changes = append(i.changes, change)
		}
		f.Applied()
		switch {
		case Lacks(read, f.Current()):
			if stored, _ := i.Restore(ctx, f.Site, i.Load(ctx, f.Site)); stored {
				i.AddEntry(ctx, f.Site)
			}
		case errors.Is(read.Err, site.ErrOutdated):
			_ = i.fleet.AskForRecord(ctx, f.Name)
		case verified && f.Current().Version() > max(before, f.StoredVersion.Load()):
			i.AddEntry(ctx, f.Site)
		}
	}
	return tick
}

// follow does what an instance does in each interval.
func (i *instance) follow(t *testing.T) {
	t.Helper()
	i.tick(t.Context())
	if err := i.report(t.Context(), false); err != nil {
		t.Error(err)
	}
}

// report reports as an instance does after a tick.
func (i *instance) report(ctx context.Context, stopping bool) error {
	r := Report{Host: "web", Clock: time.Now(), SyncInterval: i.follower.Interval, Stopping: stopping, Sites: make(map[string]Traffic)}
	var present []string
	r.Applied, present, r.Behind, r.Absent = i.follower.Progress()
	for _, name := range present {
		if i.word(name) == "on" {
			r.Closed = append(r.Closed, name)
		}
	}
	for name, n := range i.inFlight {
		r.Sites[name] = Traffic{InFlight: n}
	}
	return i.Report(ctx, r)
}

// switchSite switches as the admin API does.
func (i *instance) switchSite(name string, m site.Mutation) error {
	s := i.site(name)
	if err := i.TakeTurn(s); err != nil {
		return err
	}
	defer i.EndTurn(s)
	for change, err := range i.Switch(site.Configured{Site: s}, m, site.Cause{Source: site.SourceAPI}) {
		if err != nil {
			return err
		}
		i.changes = append(i.changes, change)
	}
	return nil
}

func TestSwitchIsStoredBeforeItIsPublished(t *testing.T) {
	m := newMemory()
	i := newInstance(t, m, "shop")
	i.tick(t.Context())
	m.setFault(func(_ context.Context, op, key string) error {
		if op != "store" {
			return nil
		}
		// A sync that finds the record meanwhile leaves it to the switch.
		read := <-i.Read(t.Context(), i.site("shop"))
		for change := range i.site("shop").Apply(read, site.Cause{Source: site.SourceSync}, time.Now()) {
			t.Errorf("a sync has published %+v", change)
		}
		if i.word("shop") != "off" {
			t.Errorf("the site is %s while %s is being stored", i.word("shop"), key)
		}
		return nil
	})
	if err := i.switchSite("shop", site.On{}); err != nil || i.word("shop") != "on" {
		t.Fatalf("%v, the site is %s", err, i.word("shop"))
	}
	if last := i.changes[len(i.changes)-1]; last.Cause.Source != site.SourceAPI || !strings.Contains(m.get(Key("shop")), `"enabled":true`) || m.get(JournalKey) == "" {
		t.Errorf("got %v, stored is %s", last, m.get(Key("shop")))
	}
}

// The error of a switch when the storage fails. Nothing has changed then.
func TestSwitchThatFailsChangesNothing(t *testing.T) {
	const (
		nothing = "reading state of site shop: disk full; nothing has changed; try again when the storage answers"
		perhaps = "storing state of site shop: disk full; the switch may still take effect if the storage was only slow: repeat it to be sure"
	)
	for fault, want := range map[string]string{
		"load " + Key("shop"):  nothing,
		"store " + Key("shop"): perhaps,
		"store " + JournalKey:  perhaps,
	} {
		m := newMemory()
		i := newInstance(t, m, "shop")
		i.tick(t.Context())
		m.setFault(failOn(fault))
		if err := i.switchSite("shop", site.On{}); err == nil || err.Error() != want {
			t.Errorf("%s fails: got %v\nwant %s", fault, err, want)
		}
		if i.word("shop") != "off" {
			t.Errorf("%s fails: the site is %s", fault, i.word("shop"))
		}
		m.setFault(nil)
		if err := i.switchSite("shop", site.On{}); err != nil || i.word("shop") != "on" {
			t.Errorf("%s works again: %v, the site is %s", fault, err, i.word("shop"))
		}
	}
}

// Nothing waits for a storage longer than its time: a switch, the next one, a read.
func TestNothingWaitsForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		i := newInstance(t, m, "shop", "wiki")
		i.tick(t.Context())
		answer := make(chan struct{})
		m.setFault(func(_ context.Context, op, key string) error {
			if op == "store" && key == Key("shop") {
				<-answer // whatever its context says
			}
			return nil
		})
		began := time.Now()
		go i.switchSite("shop", site.On{})
		synctest.Wait()
		if err := i.switchSite("shop", site.Off{}); !errors.Is(err, ErrBusy) || time.Since(began) != Timeout {
			t.Errorf("got %v after %s, want to be told that it is busy after %s", err, time.Since(began), Timeout)
		}
		close(answer)
		synctest.Wait()

		m.setFault(hangOn("load maintenance/"))
		began = time.Now()
		reads := []<-chan site.Read{i.Read(t.Context(), i.site("shop")), i.Read(t.Context(), i.site("wiki"))}
		for _, read := range reads {
			if got := <-read; !errors.Is(got.Err, ErrSilent) || time.Since(began) != Timeout {
				t.Errorf("got %v after %s", got.Err, time.Since(began))
			}
		}
		// Other reads fail at once, until the next tick.
		if got := <-i.Read(t.Context(), i.site("shop")); !errors.Is(got.Err, ErrSilent) || time.Since(began) != Timeout {
			t.Errorf("got %v after %s", got.Err, time.Since(began))
		}
		m.setFault(nil)
		if tick := i.tick(t.Context()); tick.Err != nil {
			t.Error(tick.Err)
		}
	})
}

// When a config ends, its reads fail. While another config also reads the record, such a failure
// does not count, and requests keep waiting for the site.
func TestReadThatFailsWhileAnotherIsUnderWayIsTentative(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.setFault(hangOn("load"))
		i := newInstance(t, m, "shop")
		s := i.site("shop")
		ctx, end := context.WithCancel(t.Context())
		first, second := i.Read(ctx, s), i.Read(t.Context(), s)
		end()
		for range s.Apply(<-first, site.Cause{Source: site.SourceSync}, time.Now()) {
			t.Error("a read that has failed has changed the site")
		}
		if kind := s.Current().Kind(); kind != site.Loading {
			t.Errorf("its kind is %d, want loading", kind)
		}
		last := <-second // which gives up in the end
		if last.Tentative || !errors.Is(last.Err, ErrSilent) {
			t.Errorf("got %+v, want an error that counts", last)
		}
	})
}

// No more than MaxReads reads are under way at once.
func TestReadsAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		var names []string
		for i := range 3 * MaxReads {
			names = append(names, fmt.Sprint("site", i))
		}
		i := newInstance(t, m, names...)
		var under, most int
		var mu sync.Mutex
		m.setFault(func(context.Context, string, string) error {
			mu.Lock()
			under++
			most = max(most, under)
			mu.Unlock()
			time.Sleep(time.Millisecond) // fake, in the bubble
			mu.Lock()
			under--
			mu.Unlock()
			return nil
		})
		began := time.Now()
		var reads []<-chan site.Read
		for _, name := range names {
			reads = append(reads, i.Read(t.Context(), i.site(name)))
		}
		for _, read := range reads {
			if got := <-read; got.Err != nil {
				t.Error(got.Err)
			}
		}
		if most != MaxReads {
			t.Errorf("%d reads were under way at once, want %d", most, MaxReads)
		}
		if took := time.Since(began); took != 3*time.Millisecond {
			t.Errorf("they took %s, want as long as three reads", took)
		}
	})
}

// Two instances read before either has stored, and the older record is stored last. The switch that
// was overtaken is stored once more, and is in effect when it is answered.
//
// G4
func TestSwitchThatIsOvertakenIsStoredAgain(t *testing.T) {
	m := newMemory()
	a, b := newInstance(t, m, "shop"), newInstance(t, m, "shop")
	a.tick(t.Context())
	b.tick(t.Context())
	overtake := func() {
		if err := b.switchSite("shop", site.Off{}); err != nil {
			t.Error(err)
		}
		read := <-a.Read(t.Context(), a.site("shop")) // a applies it
		for range a.site("shop").Apply(read, site.Cause{Source: site.SourceSync}, time.Now()) {
		}
	}
	var overtaken atomic.Bool
	m.setFault(func(_ context.Context, op, key string) error {
		if op == "store" && key == Key("shop") && overtaken.CompareAndSwap(false, true) {
			overtake()
		}
		return nil
	})
	if err := a.switchSite("shop", site.On{}); err != nil {
		t.Fatal(err)
	}
	if a.word("shop") != "on" || !strings.Contains(m.get(Key("shop")), `"enabled":true`) {
		t.Errorf("the site is %s, stored is %s", a.word("shop"), m.get(Key("shop")))
	}
	if b.tick(t.Context()); b.word("shop") != "on" {
		t.Errorf("on the other instance it is %s", b.word("shop"))
	}
}

// A switch that seemed to fail is stored after the next one after all, however soon that follows.
// The next one still wins.
func TestStoreThatLandsLateLosesToTheNextSwitch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		a, b := newInstance(t, m, "shop"), newInstance(t, m, "shop")
		a.tick(t.Context())
		if err := a.switchSite("shop", site.On{}); err != nil {
			t.Fatal(err)
		}
		first := m.get(Key("shop"))
		m.setFault(failOn("store " + JournalKey))
		if err := a.switchSite("shop", site.Patch{}); err == nil {
			t.Fatal("the switch has not failed")
		}
		late := m.get(Key("shop"))
		m.setFault(nil)
		m.set(Key("shop"), first)
		if err := a.switchSite("shop", site.Off{}); err != nil {
			t.Fatal(err)
		}
		next := m.get(Key("shop"))
		m.set(Key("shop"), late)
		m.addEntries(Entry{Site: "shop"})
		a.tick(t.Context())
		if a.word("shop") != "off" {
			t.Errorf("the site is %s", a.word("shop"))
		}
		if got := m.get(Key("shop")); got != next {
			t.Errorf("stored is %s", got)
		}
		if b.tick(t.Context()); b.word("shop") != "off" {
			t.Errorf("on the other instance it is %s", b.word("shop"))
		}
	})
}

// G4: a switch applies to what another instance has stored, even if this one does not know it yet.
func TestSwitchReadsWhatAnotherInstanceHasSwitched(t *testing.T) {
	m := newMemory()
	a, b := newInstance(t, m, "shop"), newInstance(t, m, "shop")
	a.tick(t.Context())
	m.set(Key("shop"), `{"version": 1, "enabled": true, "since": "2026-01-31T02:00:00Z", "message": "Hello."}`)
	if err := a.switchSite("shop", site.Patch{}); err != nil || a.changes[0].Cause.Source != site.SourceSync {
		t.Fatal(err, a.changes)
	}
	if st := a.site("shop").Current(); a.word("shop") != "on" || st.Options().Message != "Hello." || st.Since().Year() != 2026 {
		t.Errorf("the site is %s since %s, %+v", a.word("shop"), st.Since(), st.Options())
	}
	b.tick(t.Context())
	if err := b.switchSite("shop", site.Off{}); err != nil {
		t.Fatal(err)
	}
	if err := a.switchSite("shop", site.Patch{}); !errors.As(err, new(*site.NotOnError)) {
		t.Errorf("got %v, want that the site is not on", err)
	}
}

// G4: instances whose clocks differ follow each other, and the last switch counts.
func TestSwitchesOfInstancesWhoseClocksDiffer(t *testing.T) {
	for _, skew := range []time.Duration{time.Hour, -time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			m := newMemory()
			i := newInstance(t, m, "shop")
			i.tick(t.Context())
			// other is a switch on the other instance, which knows the last one here.
			other := func(enabled bool) {
				version := max(time.Now().Add(skew).UnixMicro(), i.site("shop").Current().Version()+1)
				m.set(Key("shop"), fmt.Sprintf(`{"version": %d, "enabled": %t}`, version, enabled))
				m.addEntries(Entry{Site: "shop", Version: version, Enabled: enabled, Done: true})
				i.tick(t.Context())
			}
			for _, step := range []struct {
				name   string
				do     func()
				expect string
			}{
				{"on there", func() { other(true) }, "on"},
				{"off here", func() { _ = i.switchSite("shop", site.Off{}) }, "off"},
				{"on here", func() { _ = i.switchSite("shop", site.On{}) }, "on"},
				{"off there", func() { other(false) }, "off"},
				{"on here again", func() { _ = i.switchSite("shop", site.On{}) }, "on"},
				{"a stale replica", func() {
					m.set(Key("shop"), `{"version": 1, "enabled": false}`)
					m.addEntries(Entry{Site: "shop"})
					i.tick(t.Context())
				}, "on"},
			} {
				step.do()
				fresh := newInstance(t, m, "shop") // as it is after a restart
				fresh.tick(t.Context())
				if got := i.word("shop"); got != step.expect || step.name != "a stale replica" && fresh.word("shop") != got {
					t.Errorf("%s: it is %s, and %s after a restart, want %s", step.name, got, fresh.word("shop"), step.expect)
				}
			}
		})
	}
}

// A record that the storage has lost is stored again. A newer one there is not replaced.
func TestRestore(t *testing.T) {
	m := newMemory()
	a, b := newInstance(t, m, "shop"), newInstance(t, m, "shop")
	a.tick(t.Context())
	if err := a.switchSite("shop", site.On{}); err != nil {
		t.Fatal(err)
	}
	b.tick(t.Context())
	record := m.get(Key("shop"))
	for damage, want := range map[string]bool{"": true, "{": true, `{"version": 1, "enabled": false}`: true, record: false} {
		m.set(Key("shop"), damage)
		if damage == "" {
			m.values = map[string][]byte{}
		}
		read := a.Load(t.Context(), a.site("shop"))
		if stored, err := a.Restore(t.Context(), a.site("shop"), read); stored != want || err != nil || m.get(Key("shop")) != record {
			t.Errorf("%q: stored again %t, %v, now %s", damage, stored, err, m.get(Key("shop")))
		}
	}
	// Another instance has switched since.
	if err := b.switchSite("shop", site.Off{}); err != nil {
		t.Fatal(err)
	}
	newer := m.get(Key("shop"))
	read := a.Load(t.Context(), a.site("shop"))
	if stored, err := a.Restore(t.Context(), a.site("shop"), read); stored || err != nil || m.get(Key("shop")) != newer {
		t.Errorf("what another instance has stored was replaced: %t, %v, %s", stored, err, m.get(Key("shop")))
	}
	// A record that cannot be read is not known to be lost.
	m.setFault(failOn("load"))
	read = a.Load(t.Context(), a.site("shop"))
	if stored, _ := a.Restore(t.Context(), a.site("shop"), read); stored {
		t.Error("a record that cannot be read was replaced")
	}
}

// G4, G12: following takes one read per interval, regardless of the number of sites, and one more
// per switch. Once a minute, one of the instances reads each record.
func TestFollowing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		var names []string
		for i := range 100 {
			names = append(names, fmt.Sprint("site", i))
		}
		a, b := newInstance(t, m, names...), newInstance(t, m, names...)
		all := []*instance{a, b}
		during := func(d time.Duration) (records, total int) {
			records, total = m.reads(), m.count("load")
			for range d / a.follower.Interval {
				time.Sleep(a.follower.Interval)
				for _, i := range all {
					i.tick(t.Context())
				}
			}
			return m.reads() - records, m.count("load") - total
		}
		for _, i := range all {
			i.tick(t.Context())
			if err := i.report(t.Context(), false); err != nil {
				t.Fatal(err)
			}
		}
		for _, i := range all {
			if err := i.fleet.Observe(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if records, total := during(20 * time.Second); records != 0 || total != 20 {
			t.Errorf("10 looks of two instances took %d reads, %d of them of records, while nothing happened", total, records)
		}
		if err := b.switchSite("site7", site.On{}); err != nil {
			t.Fatal(err)
		}
		if records, _ := during(20 * time.Second); records != 1 || a.word("site7") != "on" {
			t.Errorf("%d records were read when one site had been switched, which is %s", records, a.word("site7"))
		}
		during(20 * time.Second) // until the minute is full
		if records, _ := during(time.Minute); records != len(names) {
			t.Errorf("%d records were read in a minute, want each of %d once", records, len(names))
		}
		m.setFault(failOn("load " + Key("site1")))
		m.addEntries(Entry{Site: "site1"})
		if err := b.switchSite("site7", site.Off{}); err != nil {
			t.Fatal(err)
		}
		if during(10 * time.Second); a.word("site7") != "off" {
			t.Errorf("site7 is %s while another record cannot be read", a.word("site7"))
		}
	})
}

// G12: the storage accesses of a switch do not grow with the number of sites.
func TestSwitchCostsTheSameHoweverManySitesThereAre(t *testing.T) {
	for _, sites := range []int{1, 1000} {
		synctest.Test(t, func(t *testing.T) {
			m := newMemory()
			names := []string{"shop"}
			for n := 1; n < sites; n++ {
				names = append(names, fmt.Sprint("site", n))
			}
			a, b := newInstance(t, m, names...), newInstance(t, m, names...)
			for _, i := range []*instance{a, b} {
				i.tick(t.Context())
			}
			loads, stores := m.count("load"), m.count("store")
			if err := a.switchSite("shop", site.On{}); err != nil {
				t.Fatal(err)
			}
			if loads, stores = m.count("load")-loads, m.count("store")-stores; loads != 3 || stores != 3 {
				t.Errorf("of %d sites: a switch took %d reads and %d writes", sites, loads, stores)
			}
			time.Sleep(10 * time.Second) // it checks twice that the journal still has the entry
			before := m.reads()
			if b.tick(t.Context()); m.reads()-before != 1 || b.word("shop") != "on" {
				t.Errorf("of %d sites: to follow took %d records", sites, m.reads()-before)
			}
		})
	}
}

// Records that cannot be read are reported once when there are new ones, and when there are none
// any more. An outage of the storage is reported when it begins and when it ends.
func TestOutagesAreToldOnce(t *testing.T) {
	m := newMemory()
	i := newInstance(t, m, "shop", "wiki")
	i.tick(t.Context())
	var told []string
	tick := func(fault func(context.Context, string, string) error, reread bool) {
		m.setFault(fault)
		if reread {
			m.addEntries(Entry{Site: "shop"}, Entry{Site: "wiki"})
		}
		for range 3 {
			tick := i.tick(t.Context())
			if tick.Turned {
				told = append(told, fmt.Sprint("storage ", tick.Err))
			}
			if tick.Unreadable != nil {
				told = append(told, fmt.Sprint(tick.Unreadable.Sites))
			}
		}
	}
	tick(failOn("load "+JournalKey), false)
	tick(nil, false)
	tick(failOn("load "+Key("shop")), true)
	tick(failOn("load maintenance/sites/"), true)
	tick(failOn("load "+Key("shop")), true)
	tick(nil, false)
	want := "[storage disk full storage <nil> [shop] [shop wiki] []]"
	if got := fmt.Sprint(told); got != want {
		t.Errorf("told %s\nwant %s", got, want)
	}
}

// A site whose state was never known is read again at each tick until it is.
func TestUnknownSiteIsReadUntilItIsKnown(t *testing.T) {
	m := newMemory()
	m.set(Key("shop"), "not a record")
	m.setFault(failOn("load " + Key("wiki")))
	i := newInstance(t, m, "shop", "wiki", "blog")
	for range 5 {
		i.tick(t.Context())
	}
	if i.word("shop") != "unknown" || i.word("wiki") != "unknown" || i.word("blog") != "off" {
		t.Errorf("shop is %s, wiki %s, blog %s", i.word("shop"), i.word("wiki"), i.word("blog"))
	}
	if shop, wiki, blog := m.count("load "+Key("shop")), m.count("load "+Key("wiki")), m.count("load "+Key("blog")); shop != 5 || wiki != 5 || blog != 1 {
		t.Errorf("read %d, %d and %d times, want 5, 5 and 1", shop, wiki, blog)
	}
	m.setFault(nil)
	m.set(Key("shop"), `{"version": 1, "enabled": true}`)
	i.tick(t.Context())
	if i.word("shop") != "on" || i.word("wiki") != "off" {
		t.Errorf("shop is %s, wiki %s", i.word("shop"), i.word("wiki"))
	}
}

// Without following, the journal is not read, but records that could not be read before are.
func TestFollowerThatIsOff(t *testing.T) {
	m := newMemory()
	m.setFault(failOn("load " + Key("shop")))
	i := newInstance(t, m, "shop", "wiki")
	i.follower.Interval = -1
	for range 5 {
		i.tick(t.Context())
	}
	m.setFault(nil)
	i.tick(t.Context())
	if i.word("shop") != "off" || m.count("load "+JournalKey) != 0 || m.count("load "+Key("wiki")) != 1 || m.count("load "+Key("shop")) != 6 {
		t.Errorf("shop is %s; reads: %v", i.word("shop"), m.counts)
	}
}
