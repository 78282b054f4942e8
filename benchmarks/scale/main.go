// Command scale measures what many sites cost: load time, memory, reload, the admin
// API and requests, of a config of so many sites with and without the directive. A
// tenth of the sites is in maintenance. It prints a Markdown table.
//
//	go run ./benchmarks/scale -sites 10000
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"
)

func main() {
	sites := flag.Int("sites", 10_000, "how many sites the config has")
	flag.Parse()
	if err := measure(*sites); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

// row is what was measured of one config.
type row struct {
	start, reload, list, put, first, last time.Duration
	heap                                  float64 // bytes
}

func measure(sites int) error {
	dir, err := os.MkdirTemp("", "scale")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "caddy.exe")
	build := exec.Command("go", "build", "-o", binary, "./cmd/caddy")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("building cmd/caddy: %w", err)
	}

	var rows []row
	configs := []struct {
		what  string
		sites int
		gated bool
	}{
		{"1 site", 1, true},
		{fmt.Sprintf("%d sites without the directive", sites), sites, false},
		{fmt.Sprintf("%d sites", sites), sites, true},
	}
	for _, config := range configs {
		r, err := measureOne(binary, filepath.Join(dir, strconv.Itoa(len(rows))), config.sites, config.gated)
		if err != nil {
			return fmt.Errorf("%s: %w", config.what, err)
		}
		rows = append(rows, r)
	}

	fmt.Println("| config | start | reload | heap | GET /maintenance | PUT | request, first site | request, last site |")
	fmt.Println("|---|--:|--:|--:|--:|--:|--:|--:|")
	for i, r := range rows {
		list, put := "", ""
		if configs[i].gated {
			list, put = short(r.list), short(r.put)
		}
		fmt.Printf("| %s | %s | %s | %.1f MB | %s | %s | %s | %s |\n",
			configs[i].what, short(r.start), short(r.reload), r.heap/1e6, list, put, short(r.first), short(r.last))
	}
	plain, gated := rows[1], rows[2]
	fmt.Printf("\nA site costs %s of start, %s of reload and %.1f KiB of heap.\n",
		(gated.start-plain.start)/time.Duration(sites), (gated.reload-plain.reload)/time.Duration(sites), (gated.heap-plain.heap)/1024/float64(sites))
	return nil
}

func short(d time.Duration) string {
	if d >= 10*time.Millisecond {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(time.Microsecond).String()
}

func measureOne(binary, dir string, sites int, gated bool) (r row, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return r, err
	}
	c := &instance{dir: dir, binary: binary, admin: freeAddress(), address: freeAddress()}
	if err := c.start(config(c, sites, gated, "first")); err != nil {
		return r, err
	}
	defer func() { c.stop() }()
	if gated {
		for i := 0; i < sites; i += 10 {
			if _, err := c.api(http.MethodPut, "/maintenance/"+name(i), nil); err != nil {
				return r, err
			}
		}
	}
	c.stop()

	began := time.Now()
	if err := c.start(config(c, sites, gated, "first")); err != nil {
		return r, err
	}
	r.start = time.Since(began)

	began = time.Now()
	if _, err := c.api(http.MethodPost, "/load", config(c, sites, gated, "second")); err != nil {
		return r, err
	}
	r.reload = time.Since(began)

	if r.heap, err = c.heap(); err != nil {
		return r, err
	}
	if gated {
		if r.list, err = median(20, func() error {
			_, err := c.api(http.MethodGet, "/maintenance", nil)
			return err
		}); err != nil {
			return r, err
		}
		if r.put, err = median(50, func() error {
			_, err := c.api(http.MethodPut, "/maintenance/"+name(0), nil)
			return err
		}); err != nil {
			return r, err
		}
		if _, err := c.api(http.MethodDelete, "/maintenance/"+name(0), nil); err != nil {
			return r, err
		}
	}
	client := new(http.Client)
	if r.first, err = median(3000, func() error { return c.visit(client, 0) }); err != nil {
		return r, err
	}
	r.last, err = median(3000, func() error { return c.visit(client, sites-1) })
	return r, err
}

func name(i int) string { return fmt.Sprintf("site%d.example.com", i) }

type object = map[string]any

// config has a server with a route for each site.
func config(c *instance, sites int, gated bool, body string) []byte {
	routes := make([]object, sites)
	for i := range routes {
		handlers := []object{{"handler": "static_response", "body": body}}
		if gated {
			handlers = append([]object{{"handler": "maintenance", "site": name(i)}}, handlers...)
		}
		routes[i] = object{"match": []object{{"host": []string{name(i)}}}, "handle": handlers, "terminal": true}
	}
	encoded, err := json.Marshal(object{
		"admin":   object{"listen": c.admin},
		"storage": object{"module": "file_system", "root": filepath.Join(c.dir, "storage")},
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
	dir, binary, admin, address string
	process                     *exec.Cmd
}

// start returns when a request is answered.
func (c *instance) start(config []byte) error {
	path := filepath.Join(c.dir, "config.json")
	if err := os.WriteFile(path, config, 0o600); err != nil {
		return err
	}
	c.process = exec.Command(c.binary, "run", "--config", path) //nolint:gosec // built here
	c.process.Env = append(os.Environ(), "XDG_DATA_HOME="+c.dir, "XDG_CONFIG_HOME="+c.dir)
	if err := c.process.Start(); err != nil {
		return err
	}
	for deadline := time.Now().Add(5 * time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		conn, err := net.Dial("tcp", c.address)
		if err == nil {
			conn.Close()
			_, err := c.api(http.MethodGet, "/config/admin", nil)
			return err
		}
	}
	return errors.New("the process does not start to serve")
}

func (c *instance) stop() {
	_ = c.process.Process.Kill()
	_ = c.process.Wait()
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

func (c *instance) visit(client *http.Client, site int) error {
	request, err := http.NewRequest(http.MethodGet, "http://"+c.address+"/", nil)
	if err != nil {
		return err
	}
	request.Host = name(site)
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %d", name(site), response.StatusCode)
	}
	return err
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
