// Command scale measures what many sites cost: load time, memory, reload, the admin API,
// following another instance, and requests. It compares a config with a route and a
// directive for each site, one without the directive, and one directive for all of them
// (maintenance {host}). All sites were switched, and a tenth is in maintenance. It prints a
// Markdown table.
//
//	go run ./benchmarks/scale -sites 10000
//
// With several instances it measures how long they take to follow a switch a second.
//
//	go run ./benchmarks/scale -sites 10000 -instances 3
//
// It fails if an answer is wrong: at any time while the storage is slow and the config
// loads, for a site that is in maintenance; and for all sites once it has loaded.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "example.com/caddy-maintenance"
)

// asCaddy is set where this command runs itself as Caddy, with a storage that is slow.
const asCaddy = "SCALE_AS_CADDY"

// slow is how long a slow storage takes for each operation.
const slow = 20 * time.Millisecond

func main() {
	if os.Getenv(asCaddy) != "" {
		caddycmd.Main()
		return
	}
	sites := flag.Int("sites", 10_000, "how many sites there are")
	instances := flag.Int("instances", 1, "if more than 1, measure how these follow each other, in place of all else")
	flag.Parse()
	do := measure
	if *instances > 1 {
		do = func(sites int) error { return measureFleet(sites, *instances) }
	}
	if err := do(*sites); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

// kind is how a config has its sites.
type kind int

const (
	plain   kind = iota // a route for each, without the directive
	literal             // a route for each, with a directive of its own
	tenants             // one route, with one directive
)

// row is what was measured of one config.
type row struct {
	what                                          string
	gated                                         bool
	start, reload, list, put, follow, first, last time.Duration
	slowStart, slowRequest                        time.Duration
	heap                                          float64 // bytes
}

func measure(sites int) error {
	dir, err := os.MkdirTemp("", "scale")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	var rows []*row
	for i, config := range []struct {
		what  string
		sites int
		kind  kind
	}{
		{"1 site", 1, literal},
		{fmt.Sprintf("%d sites without the directive", sites), sites, plain},
		{fmt.Sprintf("%d sites with a directive each", sites), sites, literal},
		{fmt.Sprintf("%d sites of one directive", sites), sites, tenants},
	} {
		r := &row{what: config.what, gated: config.kind != plain}
		c := &instance{dir: filepath.Join(dir, strconv.Itoa(i)), sites: config.sites, kind: config.kind}
		if err := r.measure(c); err != nil {
			return fmt.Errorf("%s: %w", config.what, err)
		}
		rows = append(rows, r)
	}

	fmt.Printf("| config | start | start, %s a read | request then, last site | reload | heap | GET /maintenance | PUT | followed after | request, first site | request, last site |\n", slow)
	fmt.Println("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
	for _, r := range rows {
		ifGated := func(d time.Duration) string {
			if !r.gated {
				return ""
			}
			return short(d)
		}
		fmt.Printf("| %s | %s | %s | %s | %s | %.1f MB | %s | %s | %s | %s | %s |\n",
			r.what, short(r.start), ifGated(r.slowStart), ifGated(r.slowRequest), short(r.reload), r.heap/1e6,
			ifGated(r.list), ifGated(r.put), ifGated(r.follow), short(r.first), short(r.last))
	}
	fmt.Println()
	for _, of := range []struct {
		what          string
		with, without *row
	}{
		{"A site with a directive of its own", rows[2], rows[1]},
		{"A site of one directive", rows[3], rows[0]},
	} {
		fmt.Printf("%s costs %s of start, %s of reload and %.1f KiB of heap.\n", of.what,
			(of.with.start-of.without.start)/time.Duration(sites), (of.with.reload-of.without.reload)/time.Duration(sites),
			(of.with.heap-of.without.heap)/1024/float64(sites))
	}
	return nil
}

func short(d time.Duration) string {
	if d >= 10*time.Millisecond {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(time.Microsecond).String()
}

func (r *row) measure(c *instance) error {
	if err := errors.Join(c.prepare(), c.storeRecords()); err != nil {
		return err
	}
	defer c.stop()
	for range 2 { // the second one is a restart
		c.stop()
		began := time.Now()
		if err := c.startAndLoad(); err != nil {
			return err
		}
		r.start = time.Since(began)
	}
	if err := c.check(); err != nil {
		return err
	}

	began := time.Now()
	if _, err := c.api(http.MethodPost, "/load", c.config("second")); err != nil {
		return err
	}
	r.reload = time.Since(began)

	var err error
	if r.heap, err = c.heap(); err != nil {
		return err
	}
	if r.gated {
		if err := r.measureSwitches(c); err != nil {
			return err
		}
	}
	client := new(http.Client)
	if r.first, err = median(3000, func() error { return c.visit(client, 0) }); err != nil {
		return err
	}
	if r.last, err = median(3000, func() error { return c.visit(client, c.sites-1) }); err != nil || !r.gated {
		return err
	}
	return r.measureSlowStart(c)
}

func (r *row) measureSwitches(c *instance) (err error) {
	if r.list, err = median(20, func() error {
		_, err := c.api(http.MethodGet, "/maintenance", nil)
		return err
	}); err != nil {
		return err
	}
	if r.put, err = median(50, func() error { return c.turn(0, true) }); err != nil {
		return err
	}
	if err := c.turn(0, false); err != nil {
		return err
	}
	other := &instance{dir: c.dir, name: "other", sites: c.sites, kind: c.kind}
	if err := other.prepare(); err != nil {
		return err
	}
	defer other.stop()
	if err := other.startAndLoad(); err != nil {
		return err
	}
	on := false
	r.follow, err = median(10, func() error {
		on = !on
		return errors.Join(c.turn(c.sites-1, on), other.await(c.sites-1, on))
	})
	return err
}

// measureSlowStart restarts the instance on a storage that is slow. It does so twice: the
// second time, visitors of sites in maintenance come before it listens.
func (r *row) measureSlowStart(c *instance) error {
	c.stop()
	c.slow = true
	began := time.Now()
	if err := c.startAndLoad(); err != nil {
		return err
	}
	r.slowStart = time.Since(began)
	if err := c.check(); err != nil {
		return err
	}

	c.stop()
	stop := c.visitClosed()
	if err := c.start(); err != nil {
		return err
	}
	began = time.Now()
	if err := c.visit(new(http.Client), c.sites-1); err != nil {
		return err
	}
	r.slowRequest = time.Since(began)
	err := c.load()
	visits, wrong := stop()
	fmt.Fprintf(os.Stderr, "%s: %d requests for sites in maintenance while they loaded, %d answered by the app\n", r.what, visits, wrong)
	if wrong > 0 {
		return errors.New("a site in maintenance was open while it loaded")
	}
	return err
}

func name(i int) string { return fmt.Sprintf("site%d.example.com", i) }

// isOn reports whether a site is in maintenance.
func isOn(i int) bool { return i%10 == 1 }

type object = map[string]any

// config is that of the instance, whose app answers with body.
func (c *instance) config(body string) []byte {
	app := object{"handler": "static_response", "body": body}
	gate := func(site string) object { return object{"handler": "maintenance", "site": site} }
	var routes []object
	if c.kind == tenants {
		routes = append(routes, object{"handle": []object{gate("{http.request.host}"), app}})
	} else {
		for i := range c.sites {
			handlers := []object{app}
			if c.kind == literal {
				handlers = []object{gate(name(i)), app}
			}
			routes = append(routes, object{"match": []object{{"host": []string{name(i)}}}, "handle": handlers, "terminal": true})
		}
	}
	storage := object{"module": "file_system", "root": c.storage()}
	if c.slow {
		storage["module"] = "scale_slow"
	}
	encoded, err := json.Marshal(object{
		"admin":   object{"listen": c.admin},
		"storage": storage,
		"logging": object{"logs": object{"default": object{"writer": object{"output": "discard"}}}},
		"apps": object{"http": object{"servers": object{"srv0": object{
			"listen": []string{c.address}, "routes": routes, "automatic_https": object{"disable": true},
		}}}},
	})
	if err != nil {
		panic(err)
	}
	return encoded
}

// instance is a Caddy of its own.
type instance struct {
	dir, name      string // instances of one directory have one storage
	sites          int
	kind           kind
	slow           bool // the storage is
	admin, address string
	process        *exec.Cmd
}

func (c *instance) storage() string { return filepath.Join(c.dir, "storage") }

// own is a directory of the instance alone.
func (c *instance) own() string { return filepath.Join(c.dir, "instance"+c.name) }

func (c *instance) prepare() error {
	c.admin, c.address = freeAddress(), freeAddress()
	return os.MkdirAll(c.own(), 0o700)
}

// storeRecords stores the records of sites that were switched.
func (c *instance) storeRecords() error {
	if c.kind == plain {
		return nil
	}
	dir := filepath.Join(c.storage(), "maintenance", "sites")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for i := range c.sites {
		record, err := json.Marshal(object{"version": 1, "enabled": isOn(i), "since": "2026-01-31T02:00:00Z"})
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name(i)+".json"), record, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// start returns when a request is accepted.
func (c *instance) start() error {
	path := filepath.Join(c.own(), "config.json")
	if err := os.WriteFile(path, c.config("first"), 0o600); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c.process = exec.Command(self, "run", "--config", path)
	c.process.Env = append(os.Environ(), asCaddy+"=1", "XDG_DATA_HOME="+c.own(), "XDG_CONFIG_HOME="+c.own())
	if err := c.process.Start(); err != nil {
		return err
	}
	for deadline := time.Now().Add(5 * time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		conn, err := net.Dial("tcp", c.address)
		if err == nil {
			return conn.Close()
		}
	}
	return errors.New("the process does not start to serve")
}

// startAndLoad returns when the config runs and all records have been read.
func (c *instance) startAndLoad() error {
	if err := c.start(); err != nil {
		return err
	}
	return c.load()
}

func (c *instance) load() (err error) {
	if c.kind == plain {
		_, err = c.api(http.MethodGet, "/config/admin", nil)
		return err
	}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if _, err = c.api(http.MethodGet, "/maintenance", nil); err == nil {
			return nil
		} // it listens before the config runs
	}
	return err
}

func (c *instance) stop() {
	if c.process != nil {
		_ = c.process.Process.Kill()
		_ = c.process.Wait()
		c.process = nil
	}
}

// turn switches a site.
func (c *instance) turn(site int, on bool) error {
	method := http.MethodDelete
	if on {
		method = http.MethodPut
	}
	_, err := c.api(method, "/maintenance/"+name(site), nil)
	return err
}

func (c *instance) api(method, path string, body []byte) ([]byte, error) {
	request, err := http.NewRequest(method, "http://"+c.admin+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %d %.200s", method, path, response.StatusCode, answer)
	}
	return answer, err
}

var heapAlloc = regexp.MustCompile(`(?m)^go_memstats_heap_alloc_bytes (.*)$`)

// heap is what is in use after the garbage has been collected.
func (c *instance) heap() (float64, error) {
	for range 3 {
		if _, err := c.api(http.MethodGet, "/debug/pprof/heap?gc=1", nil); err != nil {
			return 0, err
		}
	}
	answer, err := c.api(http.MethodGet, "/metrics", nil)
	if err != nil {
		return 0, err
	}
	match := heapAlloc.FindSubmatch(answer)
	if match == nil {
		return 0, errors.New("no metric of the heap")
	}
	return strconv.ParseFloat(string(match[1]), 64)
}

// visit fails if a site does not answer as it was stored.
func (c *instance) visit(client *http.Client, site int) error {
	want := http.StatusOK
	if isOn(site) && c.kind != plain {
		want = http.StatusServiceUnavailable
	}
	got, err := c.get(client, site)
	if err == nil && got != want {
		err = fmt.Errorf("%s answers %d, want %d", name(site), got, want)
	}
	return err
}

func (c *instance) get(client *http.Client, site int) (status int, err error) {
	request, err := http.NewRequest(http.MethodGet, "http://"+c.address+"/", nil)
	if err != nil {
		return 0, err
	}
	request.Host = name(site)
	response, err := client.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return response.StatusCode, err
}

// check fails if one of the sites does not answer as it was stored.
func (c *instance) check() error {
	client := new(http.Client)
	for i := range c.sites {
		if err := c.visit(client, i); err != nil {
			return err
		}
	}
	return nil
}

// await returns when a site answers as it was switched by another instance.
func (c *instance) await(site int, on bool) error {
	client := new(http.Client)
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		status, err := c.get(client, site)
		if err != nil || (status == http.StatusServiceUnavailable) == on {
			return err
		}
	}
	return fmt.Errorf("%s is not followed", name(site))
}

// visitClosed visits sites in maintenance until it is stopped, and returns how many requests
// were answered, and how many of them by the app.
func (c *instance) visitClosed() (stop func() (visits, wrong int64)) {
	var over atomic.Bool
	var visitors sync.WaitGroup
	var visits, wrong atomic.Int64
	for range 4 {
		visitors.Go(func() {
			for client := new(http.Client); !over.Load() && c.sites >= 10; time.Sleep(time.Millisecond) {
				status, err := c.get(client, 1+10*rand.IntN(c.sites/10)) //nolint:gosec // no secret
				if err != nil {
					continue // it does not listen yet
				}
				visits.Add(1)
				if status != http.StatusServiceUnavailable {
					wrong.Add(1)
				}
			}
		})
	}
	return func() (int64, int64) {
		over.Store(true)
		visitors.Wait()
		return visits.Load(), wrong.Load()
	}
}

// median is how long something takes that is done so many times.
func median(times int, do func() error) (time.Duration, error) {
	took := make([]time.Duration, times)
	for i := range took {
		began := time.Now()
		if err := do(); err != nil {
			return 0, err
		}
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	return took[times/2], nil
}

func freeAddress() string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}
