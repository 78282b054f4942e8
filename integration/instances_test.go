package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// report is where an instance says how far it has come.
func (c *caddy) reports() []string {
	paths, _ := filepath.Glob(filepath.Join(c.storage, "maintenance", "instances", "*.json"))
	return paths
}

// fleetOf is a fleet whose instances are known by their letters, A first.
type fleetOf struct {
	t      *testing.T
	kind   kind // of its site
	all    []instance
	app    *patientApp
	names  []string // of their reports
	shared string
}

// newNamedFleet starts instances whose storage can fail.
func newNamedFleet(t *testing.T, k kind, size int) *fleetOf {
	t.Helper()
	f := &fleetOf{t: t, kind: k, app: newPatientApp(t), shared: t.TempDir()}
	for range size {
		f.join(syncInterval)
	}
	return f
}

// join starts another instance, and returns when it has reported.
func (f *fleetOf) join(interval time.Duration) instance {
	f.t.Helper()
	c := newTestCaddy(f.t)
	c.storage, c.storageModule = f.shared, "maintenance_faulty"
	c.options = fmt.Sprintf("maintenance {\n sync_interval %s\n}", interval)
	i := instance{c, f.kind.newSite(f.t, newApp(f.t, f.app.ServeHTTP))}
	c.start(c.caddyfile(i.site))
	f.all = append(f.all, i)
	eventually(f.t, patience, "the instance reports", func() bool {
		for _, path := range c.reports() {
			if name := strings.TrimSuffix(filepath.Base(path), ".json"); !slices.Contains(f.names, name) {
				f.names = append(f.names, name)
				return true
			}
		}
		return false
	})
	return i
}

// fault has the storage of one instance fail.
func (f *fleetOf) fault(i int, fault string) {
	write(f.t, filepath.Join(f.all[i].dir, "fault"), fault)
}

func (f *fleetOf) signal(i int, signal os.Signal) {
	if err := f.all[i].process.Process.Signal(signal); err != nil {
		f.t.Error(err)
	}
}

// exit ends an instance as a service manager does.
func (f *fleetOf) exit(i int) {
	f.signal(i, syscall.SIGTERM)
	_ = f.all[i].process.Wait()
	f.all[i].process = nil
}

var ages = regexp.MustCompile(`(last seen|since|LAST SEEN) .*?( ago|UTC)`)

// run runs a command line at the first instance, and returns what it says, with letters for
// the names of instances and without times. The site of the fleet is called shop in both.
func (f *fleetOf) run(line string) string {
	line = strings.ReplaceAll(line, "shop", f.kind.name)
	return f.plain(f.all[0].command(strings.Fields(line)...))
}

func (f *fleetOf) plain(got output) string {
	text := strings.ReplaceAll(got.stdout+got.stderr, f.kind.name, "shop")
	for i, name := range f.names {
		text = strings.ReplaceAll(text, name, string(rune('A'+i)))
	}
	return fmt.Sprintf("%s%d", ages.ReplaceAllString(text, "$1 …$2"), got.code)
}

func (f *fleetOf) expect(line, want string) {
	f.t.Helper()
	got := f.run(line)
	// Instances are listed by their names, whose order is another one each time.
	if sortWords(got) != sortWords(want) {
		f.t.Errorf("caddy %s: got\n%s\nwant\n%s", line, got, want)
	}
}

func sortWords(text string) string {
	words := strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(" ,;:\n", r) })
	slices.Sort(words)
	return strings.Join(words, " ")
}

const (
	enabling  = "Enabling maintenance mode for shop... "
	disabling = "Disabling maintenance mode for shop... "
	ifEnded   = "if C has ended for good: caddy maintenance forget C\n2"
	mayLetIn  = "no word from C, last seen … ago: it may still let requests in\n" + ifEnded
)

// What the command says of a fleet of three, A, B and C, when something is the matter with
// C, and with which status it exits. It runs at A.
//
// G11
func TestSwitchSpeaksForTheFleet(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		for _, test := range []struct {
			name    string
			matter  func(f *fleetOf)
			on, off string
		}{
			{"nothing", func(*fleetOf) {}, "done (3 instances)\n0", "done (3 instances)\n0"},
			{
				"it was killed", func(f *fleetOf) { f.all[2].kill() },
				"done on A, B; " + mayLetIn, "done on A, B; no word from C, last seen … ago: it may still block requests\n" + ifEnded,
			},
			{
				"it was killed and is back",
				func(f *fleetOf) {
					f.all[2].kill()
					f.all[2].start(f.all[2].caddyfile(f.all[2].site))
				},
				"done (3 instances)\n0", "done (3 instances)\n0",
			},
			{"it is stopped", func(f *fleetOf) { f.signal(2, sigStop) }, "done on A, B; " + mayLetIn, ""},
			{"its storage hangs", func(f *fleetOf) { f.fault(2, "hang load") }, "done on A, B; " + mayLetIn, ""},
			{"its storage fails", func(f *fleetOf) { f.fault(2, "fail load, fail store") }, "done on A, B; " + mayLetIn, ""},
			{"its storage says that nothing is there", func(f *fleetOf) { f.fault(2, "lose load") }, "done on A, B; " + mayLetIn, ""},
			{"it cannot report", func(f *fleetOf) { f.fault(2, "fail store") }, "done on A, B; " + mayLetIn, ""},
			{"it has exited", func(f *fleetOf) { f.exit(2) }, "done (2 instances)\n0", "done (2 instances)\n0"},
			{
				"it does not have the site any more",
				func(f *fleetOf) { f.all[2].reload(f.all[2].caddyfile(newSite(f.t, "store", newApp(f.t, welcome)))) },
				"done on A, B; the config of C does not have the site: nothing blocks requests there\n2", "done on A, B; the config of C does not have the site\n2",
			},
			{
				"its template does not make the name",
				func(f *fleetOf) {
					other := f.all[2].site
					other.template = "store-{host}"
					f.all[2].reload(f.all[2].caddyfile(other))
				},
				"done on A, B; the config of C does not have the site: nothing blocks requests there\n2", "done on A, B; the config of C does not have the site\n2",
			},
			{
				"it has no gate any more",
				func(f *fleetOf) {
					f.all[2].reload("{\nadmin " + f.all[2].admin + "\n}")
					eventually(f.t, patience, "its report is removed", func() bool { return len(f.all[0].reports()) == 2 })
				},
				"done (2 instances)\n0", "",
			},
			{
				"it is taken to another storage by a reload",
				func(f *fleetOf) {
					f.all[2].storage = f.t.TempDir()
					f.all[2].reload(f.all[2].caddyfile(f.all[2].site))
					eventually(f.t, patience, "its report is removed", func() bool { return len(f.all[0].reports()) == 2 })
				},
				"done (2 instances)\n0", "",
			},
			{
				"it has refused a config",
				func(f *fleetOf) {
					broken := f.all[2].site
					broken.address = listen(f.t, "127.0.0.1:0").Addr().String()
					refuse(f.t, f.all[2].caddy, f.all[2].caddyfile(broken), "bind")
				},
				"done (3 instances)\n0", "done (3 instances)\n0",
			},
			{
				"it is another one, on another storage",
				func(f *fleetOf) {
					f.exit(2)
					f.all[2].storage = f.t.TempDir()
					f.all[2].start(f.all[2].caddyfile(f.all[2].site))
				},
				"done (2 instances)\n0", "",
			},
			{
				"it is slow by its config",
				func(f *fleetOf) {
					f.exit(2)
					f.join(2 * time.Second)
				},
				"done (3 instances)\n0", "done (3 instances)\n0",
			},
		} {
			t.Run(test.name, func(t *testing.T) {
				t.Parallel()
				f := newNamedFleet(t, k, 3)
				test.matter(f)
				f.expect("maintenance on shop", enabling+test.on)
				if test.off != "" {
					f.expect("maintenance off shop", disabling+test.off)
				}
				f.signalIfThere(2, sigCont)
			})
		}
	})
}

func (f *fleetOf) signalIfThere(i int, signal os.Signal) {
	if p := f.all[i].process; p != nil {
		_ = p.Process.Signal(signal)
	}
}

// An instance that was away and is back follows, and is counted again. One that was killed
// can be forgotten, one that answers cannot.
//
// G11
func TestInstanceThatWasAwayIsBack(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		f := newNamedFleet(t, k, 3)
		f.signal(2, sigStop)
		f.expect("maintenance on shop", enabling+"done on A, B; "+mayLetIn)
		f.expect("maintenance forget "+f.names[1], "Forgetting B... failed\nError: B answers; only a silent instance can be forgotten\n1")
		f.signal(2, sigCont)
		eventually(t, patience, "it follows", func() bool { return f.all[2].site.visit() == http.StatusServiceUnavailable })
		f.expect("maintenance on shop", enabling+"done (3 instances; was already on since …UTC)\n0")
		f.all[2].kill()
		f.expect("maintenance forget "+f.names[2], "Forgetting C... done\n0")
		f.expect("maintenance off shop", disabling+"done (2 instances)\n0")
		f.expect("maintenance forget nobody", "Forgetting nobody... failed\nError: unknown instance nobody; `caddy maintenance instances` lists all instances\n1")
	})
}

// After a crash, the next process takes over the report, and is not counted twice. Caddy starts
// its apps in any order, so this tries several times.
//
// G11
func TestInstanceIsCountedOnceAfterACrash(t *testing.T) {
	t.Parallel()
	c, _ := startSite(t, literal, welcome)
	for range 12 {
		c.kill()
		c.run(c.configPath())
		c.awaitRunning()
		if got := c.command("maintenance", "on", "shop", "--wait", "10s"); got.code != 0 || !strings.Contains(got.stdout, "... done") || !strings.HasSuffix(got.stdout, "drained\n") || strings.Contains(got.stdout, "instances") {
			t.Fatalf("got %+v", got)
		}
		var list []map[string]any
		if c.get("/maintenance/instances", &list); len(list) != 1 {
			t.Fatalf("got %v, want one instance", list)
		}
	}
}

// waiting is a command line that waits.
type waiting struct {
	f    *fleetOf
	path string
	done chan int
}

// wait begins to wait at the first instance.
func (f *fleetOf) wait(limit string) *waiting {
	f.t.Helper()
	w := &waiting{f, filepath.Join(f.all[0].dir, "printed"+limit), make(chan int, 1)}
	file, err := os.Create(w.path)
	if err != nil {
		f.t.Fatal(err)
	}
	cmd := f.all[0].prepare("maintenance", "on", f.kind.name, "--wait", limit)
	cmd.Stdout, cmd.Stderr = file, file
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait()
		w.done <- cmd.ProcessState.ExitCode()
		file.Close()
	}()
	return w
}

func (w *waiting) printed() string {
	raw, _ := os.ReadFile(w.path)
	return w.f.plain(output{stdout: string(raw)})
}

func (w *waiting) await(text string) {
	w.f.t.Helper()
	defer func() {
		if w.f.t.Failed() {
			w.f.t.Logf("the command has said\n%s", w.printed())
		}
	}()
	eventually(w.f.t, patience, "the command says "+text, func() bool { return strings.Contains(w.printed(), text) })
}

// end expects what the command says last, one of the texts, and its status.
func (w *waiting) end(code int, texts ...string) {
	w.f.t.Helper()
	select {
	case got := <-w.done:
		printed := strings.TrimSuffix(w.printed(), "0")
		if got != code || !slices.ContainsFunc(texts, func(text string) bool { return strings.HasSuffix(printed, text+"\n") }) {
			w.f.t.Errorf("got %d\n%s\nwant %d %s", got, printed, code, texts)
		}
	case <-time.After(2 * patience):
		w.f.t.Errorf("the command goes on:\n%s", w.printed())
	}
}

// What --wait says when another instance, B, has something in flight, and what becomes of it.
//
// G11, G5
func TestDrainedIsSaidOfTheFleet(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		request := func(f *fleetOf) *exchange { return begin(f.t, f.all[1].site, f.app, "GET /slow HTTP/1.1\r\n\r\n") }
		for _, test := range []struct {
			name string
			run  func(f *fleetOf)
		}{
			{"a request that ends", func(f *fleetOf) {
				slow := request(f)
				w := f.wait("20s")
				w.await("1 in flight on B")
				close(f.app.release)
				w.end(0, "drained (2 instances)")
				if got := slow.read(); !strings.HasPrefix(got, "200") {
					f.t.Errorf("the request got %s", got)
				}
			}},
			{"a WebSocket that is closed", func(f *fleetOf) {
				socket := f.all[1].site.open(f.t, "GET /socket HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nx")
				f.app.awaitReached(f.t)
				w := f.wait("20s")
				w.await("1 in flight on B")
				_ = socket.Close()
				w.end(0, "drained (2 instances)")
			}},
			{"a request that does not end", func(f *fleetOf) {
				request(f)
				w := f.wait("1s")
				w.end(2, "shop: not drained in 1s: 1 in flight on B; maintenance stays on")
			}},
			{"a request that was held and released", func(f *fleetOf) {
				f.expect("maintenance on shop --hold 5m", enabling+"done (2 instances)\n0")
				held := f.all[1].site.open(f.t, "GET /slow HTTP/1.1\r\n\r\n")
				awaitHeld(f.t, f.all[1].caddy, f.kind.name, 1)
				f.wait("20s").end(0, "drained (2 instances)") // what is held is not at the app
				f.all[0].off(f.kind.name)
				f.app.awaitReached(f.t)
				w := f.wait("21s")
				w.await("1 in flight on B")
				_ = held.Close()
				w.end(0, "drained (2 instances)")
			}},
			{"its instance is killed", func(f *fleetOf) {
				request(f)
				w := f.wait("1s")
				w.await("1 in flight on B")
				f.all[1].kill()
				w.end(2, "maintenance stays on")
				f.wait("12s").end(2, "shop: not drained in 12s: no word from B, last seen … ago; maintenance stays on")
			}},
			{"its instance stops, and it ends", func(f *fleetOf) {
				slow := request(f)
				w := f.wait("20s")
				w.await("1 in flight on B")
				f.signal(1, syscall.SIGTERM)
				w.await("B is stopping, 1 in flight")
				close(f.app.release)
				w.end(0, "drained", "drained (2 instances)") // it has ended, or is about to
				_ = slow.read()
				_ = f.all[1].process.Wait()
			}},
			{"its instance stops with a WebSocket, and cuts it", func(f *fleetOf) {
				f.all[1].site.open(f.t, "GET /socket HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nx")
				f.app.awaitReached(f.t)
				w := f.wait("20s")
				w.await("1 in flight on B")
				f.signal(1, syscall.SIGTERM)
				w.end(0, "drained", "drained (2 instances)")
				_ = f.all[1].process.Wait()
			}},
			{"another instance joins", func(f *fleetOf) {
				request(f)
				w := f.wait("20s")
				w.await("1 in flight on B")
				joined := f.join(syncInterval)
				joined.site.expect(f.t, http.StatusServiceUnavailable)
				close(f.app.release)
				w.end(0, "drained (3 instances)")
			}},
			{"its config is replaced", func(f *fleetOf) {
				request(f)
				w := f.wait("20s")
				w.await("1 in flight on B")
				for n := range 3 {
					f.all[n%2].reload(f.all[n%2].caddyfile(f.all[n%2].site.marked(n)))
				}
				close(f.app.release)
				w.end(0, "drained (2 instances)")
			}},
			{"its config loses the gate", func(f *fleetOf) {
				slow := request(f)
				f.all[1].reload("{\nadmin " + f.all[1].admin + "\n}")
				w := f.wait("20s")
				w.await("no word from B")
				close(f.app.release)
				w.end(2, "drained") // when it was switched, nobody knew
				_ = slow.read()
			}},
			{"all are restarted, one after the other", func(f *fleetOf) {
				f.join(syncInterval)
				request(f)
				w := f.wait("20s")
				w.await("1 in flight on B")
				close(f.app.release)
				for n := 1; n < 3; n++ {
					f.exit(n)
					f.all[n].start(f.all[n].caddyfile(f.all[n].site))
					f.all[n].site.expect(f.t, http.StatusServiceUnavailable)
				}
				select {
				case code := <-w.done:
					if code != 0 {
						f.t.Errorf("got %d\n%s", code, w.printed())
					}
				case <-time.After(2 * patience):
					f.t.Error("the command goes on")
				}
			}},
			{"somebody opens the site", func(f *fleetOf) {
				request(f)
				w := f.wait("20s")
				w.await("1 in flight on B")
				f.all[1].off(f.kind.name)
				w.end(1, "Error: shop is open: it was switched off, or its maintenance ended by itself, before it was drained")
			}},
		} {
			t.Run(test.name, func(t *testing.T) {
				t.Parallel()
				test.run(newNamedFleet(t, k, 2))
			})
		}
	})
}

// When one instance has said that all is done, no request gets through any, and none is kept
// out after the site was opened: over many switches, under load.
//
// G11, G1
func TestDoneHoldsOnAllInstancesUnderLoad(t *testing.T) {
	t.Parallel()
	const switches, interval = 50, 100 * time.Millisecond // of two sites each
	upstream := newApp(t, welcome)
	shared := t.TempDir()
	var fleet []*caddy
	var gates []sites // of each of the fleet
	for range 5 {
		c := newCaddy(t)
		c.storage = shared
		c.options = fmt.Sprintf("maintenance {\n sync_interval %s\n}", interval)
		fleet, gates = append(fleet, c), append(gates, newSites(t, upstream))
	}
	for i, c := range fleet {
		c.start(c.caddyfile(gates[i]...))
	}
	eventually(t, patience, "all report", func() bool { return len(fleet[0].reports()) == len(fleet) })

	// want is the status that visitors must get now, 0 while that may change.
	var want, judged atomic.Int64
	want.Store(http.StatusOK)
	var clients sync.WaitGroup
	done := make(chan struct{})
	for n := range 10 {
		s, client := gates[n/2][n%2], newKeepAliveClient(true)
		clients.Go(func() {
			defer client.CloseIdleConnections()
			repeat(done, func() {
				time.Sleep(3 * time.Millisecond) // leaves others something of the machine
				before := want.Load()
				code, err := fetch(client, s.url())
				if before == 0 || want.Load() != before {
					return
				}
				judged.Add(1)
				if err != nil || int64(code) != before {
					t.Errorf("a visitor got %d %v, want %d", code, err, before)
				}
			})
		})
	}
	defer clients.Wait()
	defer close(done)

	var took []time.Duration
	for n := range switches {
		verb, next := "on", int64(http.StatusServiceUnavailable)
		if n%2 == 1 {
			verb, next = "off", http.StatusOK
		}
		want.Store(0)
		began := time.Now()
		if got := fleet[n%len(fleet)].command("maintenance", verb, "shop", "acme.example"); got.code != 0 || strings.Count(got.stdout, "done (5 instances)\n") != 2 {
			t.Fatalf("switch %d: %+v", n, got)
		}
		took = append(took, time.Since(began))
		want.Store(next)
		enough := judged.Load() + 10
		eventually(t, patience, "visitors have come", func() bool { return judged.Load() >= enough })
	}
	slices.Sort(took)
	t.Logf("done after %s at the median, %s at most; the interval is %s", took[len(took)/2], took[len(took)-1], interval)
}

// An instance whose clock is an hour off is named, whichever way it is off. By how much is known
// no better than the time between two reads of its report, which is long on a busy machine.
func TestClockThatIsOffIsNamed(t *testing.T) {
	t.Parallel()
	warning := regexp.MustCompile(`warning: the clock of ghost is about (1h0m|59m)\d+s (ahead of|behind) this instance's`)
	for words, offset := range map[string]time.Duration{"ahead of": time.Hour, "behind": -time.Hour} {
		t.Run(words, func(t *testing.T) {
			t.Parallel()
			f := newNamedFleet(t, literal, 1)
			f.names = append(f.names, "ghost-1")
			ghost := func() {
				var journal []struct{ ID string }
				raw, _ := os.ReadFile(filepath.Join(f.shared, "maintenance", "journal.json"))
				_ = json.Unmarshal(raw, &journal)
				applied := ""
				if len(journal) > 0 {
					applied = journal[len(journal)-1].ID
				}
				path := filepath.Join(f.shared, "maintenance", "instances", "ghost-1.json")
				write(t, path+".new", fmt.Sprintf(`{"instance":"ghost","clock":%q,"sync_interval":100000000,"closed":["shop"],"applied":%q}`,
					time.Now().Add(offset).Format(time.RFC3339Nano), applied))
				if err := os.Rename(path+".new", path); err != nil {
					t.Error(err)
				}
			}
			done := make(chan struct{})
			var haunting sync.WaitGroup
			haunting.Go(func() {
				repeat(done, func() {
					ghost()
					<-time.After(50 * time.Millisecond)
				})
			})
			defer haunting.Wait()
			defer close(done)
			eventually(t, patience, "its clock is seen twice", func() bool {
				seen := f.all[0].command("maintenance", "instances").stdout
				return strings.Contains(seen, "1h0m") || strings.Contains(seen, "59m")
			})
			got := f.all[0].command("maintenance", "on", "shop")
			if warned := warning.FindStringSubmatch(got.stderr); got.code != 0 || warned == nil || warned[2] != words {
				t.Errorf("got %+v", got)
			}
		})
	}
}
