package maintenance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
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
	for _, f := range storageFaults {
		for _, test := range []struct {
			name string
			run  func(p *faultyProcess)
		}{
			{"on", func(p *faultyProcess) { p.switchUnder(f.fault, http.MethodPut, f.on) }},
			{"off", func(p *faultyProcess) {
				p.must(http.MethodPut, "")
				p.keepsClosed()
				p.switchUnder(f.fault, http.MethodDelete, f.off)
			}},
			{"restart", func(p *faultyProcess) { p.restartUnder(f.fault, f.restart, f.restored) }},
			{"reload", func(p *faultyProcess) { p.reloadUnder(f.fault) }},
			{"sync", func(p *faultyProcess) { p.syncUnder(f.fault) }},
		} {
			t.Run(f.fault+"/"+test.name, func(t *testing.T) {
				t.Parallel()
				p := newFaultyProcess(t, t.TempDir())
				p.start()
				test.run(p)
			})
		}
	}
}

// switchUnder switches while a fault lasts, and again afterwards if that has failed.
func (p *faultyProcess) switchUnder(fault, method, answer string) {
	p.t.Helper()
	p.begin(fault)
	p.closed.Store(false)
	got, err := p.try(method, "")
	switch {
	case answer == "":
		if err == nil {
			p.t.Errorf("%s got %d %s from a process that has ended", method, got.StatusCode, got.body)
		}
		_ = p.running.Wait()
		p.heal()
		p.start()
	case err != nil || !strings.Contains(got.body, answer):
		p.t.Errorf("%s got %v %s, want %s", method, err, got.body, answer)
	}
	want := map[string]int{http.MethodPut: http.StatusServiceUnavailable, http.MethodDelete: http.StatusOK}[method]
	if strings.Contains(answer, `"state"`) {
		p.expect(want)
	}
	p.heal()
	if !strings.Contains(answer, `"state"`) || strings.HasPrefix(fault, "lose store") {
		eventually(p.t, func() error { // an earlier one may be waiting for the storage
			got, err := p.try(method, "{}")
			if err == nil && got.StatusCode != http.StatusOK {
				err = errors.New(got.body)
			}
			return err
		})
		p.expect(want)
	}
	if fault == "lose store" && method == http.MethodDelete {
		return // nothing has changed, and so nothing has been stored
	}
	p.kill()
	p.start()
	p.expect(want)
}

// restartUnder restarts the process of a site that is on while a fault lasts.
func (p *faultyProcess) restartUnder(fault, during, afterwards string) {
	p.t.Helper()
	p.must(http.MethodPut, "")
	p.must(http.MethodDelete, "")
	p.must(http.MethodPut, "")
	p.kill()
	p.begin(fault)
	if during != "off" {
		p.keepsClosed()
	}
	p.start()
	p.await(during)
	p.heal()
	p.await(afterwards)
	p.expect(http.StatusServiceUnavailable)
}

// reloadUnder reloads the config of a site that is on while a fault lasts.
func (p *faultyProcess) reloadUnder(fault string) {
	p.t.Helper()
	p.must(http.MethodPut, "")
	p.must(http.MethodDelete, "")
	p.must(http.MethodPut, "")
	p.keepsClosed()
	p.begin(fault)
	for n := range 3 {
		if err := p.reload(fmt.Sprintf("reload-%d", n)); err != nil {
			p.t.Fatal(err)
		}
		p.await("on")
	}
	p.heal()
	p.await("on")
	p.expect(http.StatusServiceUnavailable)
}

// syncUnder has another instance switch while a fault lasts at this one.
func (p *faultyProcess) syncUnder(fault string) {
	p.t.Helper()
	other := newFaultyProcess(p.t, p.storage)
	other.start()
	other.must(http.MethodPut, "")
	other.must(http.MethodDelete, "")
	other.must(http.MethodPut, `{"message": "the last"}`)
	eventually(p.t, func() error {
		got, err := p.try(http.MethodGet, "")
		if err == nil && !strings.Contains(got.body, "the last") {
			err = errors.New(got.body)
		}
		return err
	})
	p.keepsClosed()
	p.begin(fault)
	asked := p.asked()
	eventually(p.t, func() error {
		want := int64(3)
		if strings.HasPrefix(fault, "hang load") {
			want = 1
		}
		if n := p.asked() - asked; n < want {
			return fmt.Errorf("the storage was asked %d times", n)
		}
		return nil
	})
	p.expect(http.StatusServiceUnavailable)
	p.heal()
	p.await("on")
	p.closed.Store(false)
	other.await("on")
	other.must(http.MethodDelete, "")
	p.await("off")
	p.expect(http.StatusOK)
	p.begin(fault)
	other.must(http.MethodPut, "")
	other.expect(http.StatusServiceUnavailable)
	p.heal()
	p.await("on")
	p.expect(http.StatusServiceUnavailable)
}

// faultyProcess is a Caddy whose storage fails as its file "fault" says.
type faultyProcess struct {
	*process
	storage string
	closed  atomic.Bool // visitors must not get in
}

func newFaultyProcess(t *testing.T, storage string) *faultyProcess {
	t.Helper()
	p := &faultyProcess{process: newProcess(t), storage: storage}
	p.options = fmt.Sprintf("storage maintenance_faulty %s %s\nmaintenance {\nsync_interval 100ms\n}", storage, p.dir)
	return p
}

func (p *faultyProcess) begin(fault string) {
	p.t.Helper()
	temporary := p.path("fault.new")
	err := os.WriteFile(temporary, []byte(fault), 0o600)
	if err == nil {
		err = os.Rename(temporary, p.path("fault"))
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *faultyProcess) heal() { p.begin("") }

// asked is how often the storage has been.
func (p *faultyProcess) asked() int64 {
	info, err := os.Stat(p.path("asked"))
	if err != nil {
		return 0
	}
	return info.Size()
}

func (p *faultyProcess) expect(want int) {
	p.t.Helper()
	got, err := try(http.MethodGet, p.url, "", nil)
	if err != nil {
		p.t.Fatal(err)
	}
	if got.StatusCode != want {
		p.t.Errorf("a visitor got %d, want %d", got.StatusCode, want)
	}
}

// keepsClosed has visitors come from now on, whom nothing must let in.
func (p *faultyProcess) keepsClosed() {
	p.closed.Store(true)
	var visitors sync.WaitGroup
	visitors.Go(func() {
		for p.closed.Load() {
			got, err := try(http.MethodGet, p.url, "", nil)
			if err == nil && got.StatusCode == http.StatusOK && p.closed.Load() {
				p.t.Error("a visitor got in")
				return
			}
		}
	})
	p.t.Cleanup(func() {
		p.closed.Store(false)
		visitors.Wait()
	})
}

// faultyStorage is a directory, and a file beside it that says what fails:
//
//	slow load, slow store      takes 50ms
//	hang load, hang store      takes until the fault is over
//	fail load, fail store      fails
//	report store               succeeds and says that it failed
//	lose store                 says that it succeeded
//	lose load                  finds nothing
//	previous load              finds what the last store has replaced
//	exit store <n>             ends the process before the nth store
type faultyStorage struct {
	Directory string `json:"directory"`
	Control   string `json:"control"`

	certmagic.FileStorage
	stores atomic.Int64
}

func (*faultyStorage) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.storage.maintenance_faulty", New: func() caddy.Module { return new(faultyStorage) }}
}

func (s *faultyStorage) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	d.Args(&s.Directory, &s.Control)
	return nil
}

func (s *faultyStorage) CertMagicStorage() (certmagic.Storage, error) {
	s.Path = s.Directory
	return s, nil
}

var errFire = errors.New("the disk is on fire")

// has reports whether a fault lasts.
func (s *faultyStorage) has(fault string) bool {
	content, _ := os.ReadFile(filepath.Join(s.Control, "fault"))
	return strings.Contains(string(content), fault)
}

// meet is what comes before each operation.
func (s *faultyStorage) meet(op string) error {
	if file, err := os.OpenFile(filepath.Join(s.Control, "asked"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err == nil {
		_, _ = file.WriteString(".")
		file.Close()
	}
	if s.has("slow " + op) {
		time.Sleep(50 * time.Millisecond)
	}
	for s.has("hang " + op) {
		time.Sleep(5 * time.Millisecond)
	}
	if s.has("fail " + op) {
		return errFire
	}
	return nil
}

func (s *faultyStorage) Load(ctx context.Context, key string) ([]byte, error) {
	if !strings.HasPrefix(key, "maintenance/") {
		return s.FileStorage.Load(ctx, key)
	}
	if err := s.meet("load"); err != nil {
		return nil, err
	}
	switch {
	case s.has("lose load"):
		return nil, fs.ErrNotExist
	case s.has("previous load"):
		return s.FileStorage.Load(ctx, "previous/"+key)
	}
	return s.FileStorage.Load(ctx, key)
}

func (s *faultyStorage) Store(ctx context.Context, key string, value []byte) error {
	if !strings.HasPrefix(key, "maintenance/") {
		return s.FileStorage.Store(ctx, key, value)
	}
	if s.has("exit store") && s.has(fmt.Sprintf("exit store %d", s.stores.Add(1))) {
		os.Exit(1)
	}
	if err := s.meet("store"); err != nil {
		return err
	}
	if s.has("lose store") {
		return nil
	}
	if before, err := s.FileStorage.Load(ctx, key); err == nil {
		if err := s.FileStorage.Store(ctx, "previous/"+key, before); err != nil {
			return err
		}
	}
	if err := s.FileStorage.Store(ctx, key, value); err != nil {
		return err
	}
	if s.has("report store") {
		return errFire
	}
	return nil
}

// G4: Instances whose clocks differ by an hour follow each other, and the last switch
// counts: the records here are as they have written them.
func TestSwitchesOfInstancesWhoseClocksDiffer(t *testing.T) {
	for name, skew := range map[string]time.Duration{"ahead": time.Hour, "behind": -time.Hour} {
		t.Run(name, func(t *testing.T) {
			s := prepare(t)
			s.options = "maintenance {\nsync_interval 100ms\n}"
			s.reload("maintenance shop")
			version := func() int64 {
				var r record
				if err := json.Unmarshal([]byte(s.storage.get(shopKey)), &r); err != nil {
					t.Fatal(err)
				}
				return r.Version
			}
			// other is a switch at the other instance, which knows of the last one here.
			other := func(enabled bool) {
				known := int64(0)
				if s.storage.get(shopKey) != "" {
					known = version()
				}
				now := time.Now().Add(skew)
				s.storage.set(shopKey, fmt.Sprintf(`{"version": %d, "enabled": %t, "since": %q}`,
					max(now.UnixMicro(), known+1), enabled, now.UTC().Format(time.RFC3339)))
				s.storage.set(switchKey, fmt.Sprint(now, enabled))
			}
			for range 5 {
				other(true)
				eventually(t, func() error { return s.is("shop", "on") })
				s.wantStatus("/", 503)
				before := version()
				s.delete("shop")
				if after := version(); after <= before {
					t.Errorf("version %d after %d", after, before)
				}
				s.wantStatus("/", 200)
				s.put("shop", "")
				s.wantStatus("/", 503)
				other(false)
				eventually(t, func() error { return s.is("shop", "off") })
				s.put("shop", "")
				s.reread()
				s.wantStatus("/", 503)
				s.delete("shop")
			}
		})
	}
}

// A storage that takes 20ms for each read does not make a config of many sites wait for
// them one after the other.
func TestManySitesAreReadAtOnce(t *testing.T) {
	const sites, latency = 2000, 20 * time.Millisecond
	s := prepare(t)
	var directives strings.Builder
	for i := range sites {
		fmt.Fprintf(&directives, "maintenance /%d site%d\n", i, i)
		on := i == 0 || i == sites/2 || i == sites-1 // few, for their pages are compressed, which the race detector makes slow
		s.storage.set(recordKey(fmt.Sprintf("site%d", i)), fmt.Sprintf(`{"version": 1, "enabled": %t}`, on))
	}
	s.storage.setFault(func(_ context.Context, op, _ string) error {
		if op == "load" {
			<-time.After(latency)
		}
		return nil
	})
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(s.caddyfile(directives.String())), nil)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := caddy.Load(config, true); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/0", fmt.Sprintf("/%d", sites-1)} {
		s.wantStatus(path, 503)
	}
	took := time.Since(began)
	t.Logf("%d sites took %s", sites, took)
	if oneByOne := sites * latency; took > oneByOne/4 {
		t.Errorf("%d sites took %s, one after the other they would take %s", sites, took, oneByOne)
	}
	if got := s.status(fmt.Sprintf("site%d", sites/2))["state"]; got != "on" {
		t.Errorf("a site is %v, want on", got)
	}
}

// A data directory that cannot be written is named to the operator.
func TestDirectoryThatCannotBeWrittenIsNamed(t *testing.T) {
	p := newFaultyProcess(t, filepath.Join(t.TempDir(), "storage"))
	p.start()
	eventually(t, func() error { // Caddy itself may be writing there just now
		if err := os.RemoveAll(p.storage); err != nil {
			return err
		}
		return os.WriteFile(p.storage, nil, 0o600) // so that not even root can
	})
	got, err := p.try(http.MethodPut, "")
	if err != nil || got.StatusCode != http.StatusInternalServerError || !strings.Contains(got.body, p.storage) {
		t.Errorf("PUT got %v %d %s, want 500 and %s", err, got.StatusCode, got.body, p.storage)
	}
	p.expect(http.StatusOK)
	if err := os.Remove(p.storage); err != nil {
		t.Fatal(err)
	}
	p.must(http.MethodPut, "")
	p.expect(http.StatusServiceUnavailable)
}
