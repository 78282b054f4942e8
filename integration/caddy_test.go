package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// caddy is a Caddy with directories, a storage and an admin endpoint of its
// own, and its process while one runs.
type caddy struct {
	t             *testing.T
	binary        string
	dir           string // its working directory
	storage       string
	storageModule string
	admin         string // address
	options       string // further global options of its Caddyfile
	process       *exec.Cmd
}

func newCaddy(t *testing.T) *caddy {
	t.Helper()
	dir := t.TempDir()
	c := &caddy{
		t: t, binary: binary, dir: dir,
		storage: filepath.Join(dir, "storage"), storageModule: "file_system",
		admin: freeAddress(t),
	}
	t.Cleanup(c.finish)
	return c
}

// Process

// start runs a Caddyfile and returns when it is serving.
func (c *caddy) start(caddyfile string) {
	c.t.Helper()
	c.launch(caddyfile)
	c.awaitRunning()
}

// awaitRunning returns when the process is serving.
func (c *caddy) awaitRunning() {
	c.t.Helper()
	eventually(c.t, patience, "Caddy runs its config", func() bool {
		code, _, err := c.request(http.MethodGet, "/maintenance", "")
		return err == nil && code == http.StatusOK
	})
}

// launch starts the process and does not wait for it.
func (c *caddy) launch(caddyfile string) {
	c.t.Helper()
	write(c.t, c.configPath(), caddyfile)
	c.run(c.configPath())
}

// run starts the process with a config that is there already.
func (c *caddy) run(path string) {
	c.t.Helper()
	log, err := os.OpenFile(c.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	c.process = c.prepare("run", "--config", path, "--adapter", "caddyfile")
	c.process.Stdout, c.process.Stderr = log, log
	if err := c.process.Start(); err != nil {
		c.t.Fatal(err)
	}
}

// kill ends the process as kill -9 does: it gets no chance to clean up.
func (c *caddy) kill() {
	if c.process == nil {
		return
	}
	_ = c.process.Process.Kill()
	_ = c.process.Wait()
	c.process = nil
}

// finish ends the process, fails the test if the race detector has found
// something, and shows the log of a test that failed.
func (c *caddy) finish() {
	c.kill()
	log, err := os.ReadFile(c.logPath())
	if err != nil {
		return // never started
	}
	checkRaces(c.t, string(log))
	if c.t.Failed() {
		const limit = 64 << 10
		c.t.Logf("end of the log of Caddy at %s:\n%s", c.admin, log[max(0, len(log)-limit):])
	}
}

func (c *caddy) configPath() string { return filepath.Join(c.dir, "Caddyfile") }

func (c *caddy) logPath() string { return filepath.Join(c.dir, "caddy.log") }

// checkRaces fails the test if the output of a process has a report of the
// race detector.
func checkRaces(t *testing.T, output string) {
	t.Helper()
	if _, report, found := strings.Cut(output, "WARNING: DATA RACE"); found {
		t.Errorf("data race: %s", report[:min(len(report), 8<<10)])
	}
}

// prepare returns the command line `caddy <args...>`, cut off from the
// developer's own Caddy.
func (c *caddy) prepare(args ...string) *exec.Cmd {
	cmd := exec.Command(c.binary, args...)
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(),
		"HOME="+c.dir,
		"XDG_DATA_HOME="+filepath.Join(c.dir, "data"),
		"XDG_CONFIG_HOME="+filepath.Join(c.dir, "config"),
		"CADDY_ADMIN="+c.admin,
		"TZ=UTC",
		asCaddy+"=1",               // if it is this test binary
		"GORACE=atexit_sleep_ms=0", // the race detector's second of sleep would be in what is timed
	)
	return cmd
}

// Command line

type output struct {
	stdout, stderr string
	code           int
}

// command runs a command line to its end.
func (c *caddy) command(args ...string) output {
	c.t.Helper()
	return outputOf(c.t, c.prepare(args...))
}

// outputOf runs a command that has been prepared.
func outputOf(t *testing.T, cmd *exec.Cmd) output {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exited := new(exec.ExitError); err != nil && !errors.As(err, &exited) {
		t.Error(err)
		return output{code: -1}
	}
	checkRaces(t, stderr.String())
	return output{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// shellWords are arguments as a shell takes them.
func shellWords(args []string) string {
	var words []string
	for _, arg := range args {
		words = append(words, "'"+strings.ReplaceAll(arg, "'", `'\''`)+"'")
	}
	return strings.Join(words, " ")
}

// expect runs a command line that must succeed and print exactly stdout.
func (c *caddy) expect(stdout string, args ...string) {
	c.t.Helper()
	if got := c.command(args...); got != (output{stdout: stdout}) {
		c.t.Errorf("caddy %s: got %+v, want only %q on stdout", strings.Join(args, " "), got, stdout)
	}
}

// Admin API

// status is a site as the admin API answers it.
type status struct {
	Site     string    `json:"site"`
	State    string    `json:"state"`
	Since    time.Time `json:"since"`
	Message  string    `json:"message"`
	Until    time.Time `json:"until"`
	InFlight int       `json:"in_flight"`
}

// sameSwitch reports whether both tell of the same switch.
func (s status) sameSwitch(other status) bool {
	return s.State == other.State && s.Message == other.Message &&
		s.Since.Equal(other.Since) && s.Until.Equal(other.Until)
}

// request sends a request to the admin endpoint; once more if it meets the
// endpoint of a config that has just been replaced, which closes connections
// that it has not come to.
func (c *caddy) request(method, path, body string) (code int, text string, err error) {
	for range 10 {
		got := ask(visitors, method, "http://"+c.admin+path, strings.NewReader(body),
			"Content-Type", "text/caddyfile", // for /load
			"Cache-Control", "must-revalidate") // loads a config that is the same, too
		code, text, err = got.code, got.body, got.err
		if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, io.EOF) {
			break
		}
	}
	return code, text, err
}

// try sends a request for a site, and can be used outside of the test's own
// goroutine.
func (c *caddy) try(method, site, body string) (status, error) {
	code, answer, err := c.request(method, "/maintenance/"+site, body)
	if err != nil {
		return status{}, err
	}
	if code != http.StatusOK {
		return status{}, fmt.Errorf("%s %s: %d %s", method, site, code, answer)
	}
	var s status
	err = json.Unmarshal([]byte(answer), &s)
	return s, err
}

func (c *caddy) must(method, site, body string) status {
	c.t.Helper()
	s, err := c.try(method, site, body)
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

func (c *caddy) on(site, options string) status {
	c.t.Helper()
	return c.must(http.MethodPut, site, options)
}

func (c *caddy) off(site string) status {
	c.t.Helper()
	return c.must(http.MethodDelete, site, "")
}

func (c *caddy) status(site string) status {
	c.t.Helper()
	return c.must(http.MethodGet, site, "")
}

// awaitState returns when the site is in that state.
func (c *caddy) awaitState(site, want string) {
	c.t.Helper()
	eventually(c.t, patience, site+" is "+want, func() bool {
		got, err := c.try(http.MethodGet, site, "")
		return err == nil && got.State == want
	})
}

// load replaces the running config.
func (c *caddy) load(caddyfile string) error {
	code, answer, err := c.request(http.MethodPost, "/load", caddyfile)
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("loading the config: %d %s", code, answer)
	}
	return err
}

func (c *caddy) reload(caddyfile string) {
	c.t.Helper()
	if err := c.load(caddyfile); err != nil {
		c.t.Fatal(err)
	}
}

// Config

// caddyfile returns a config with these sites.
func (c *caddy) caddyfile(sites ...site) string {
	var b strings.Builder
	fmt.Fprintf(&b, `{
	admin %s
	auto_https off
	default_bind 127.0.0.1
	storage %s %q
	log {
		exclude admin.api
	}
	%s
}
`, c.admin, c.storageModule, c.storage, c.options)
	for _, s := range sites {
		fmt.Fprintf(&b, `
http://%s {
	%s
	%s
	reverse_proxy %s {
		stream_close_delay 10m
	}
}
`, s.address, s.directives, s.gate(), s.upstream)
	}
	return b.String()
}

// Storage

// recordPath is where the record of a site is stored.
func (c *caddy) recordPath(site string) string {
	return filepath.Join(c.storage, "maintenance", "sites", site+".json")
}

// awaitFile returns what is in the one file of a pattern in Caddy's directory, as soon as a
// text is in it.
func (c *caddy) awaitFile(pattern, text string) (content string) {
	c.t.Helper()
	eventually(c.t, patience, pattern+" has "+text, func() bool {
		paths, _ := filepath.Glob(filepath.Join(c.dir, pattern))
		if len(paths) == 1 {
			raw, _ := os.ReadFile(paths[0])
			content = string(raw)
		}
		return strings.Contains(content, text)
	})
	return content
}

// readRecord returns the state that is stored for a site.
func readRecord(c *caddy, site string) (status, error) {
	raw, err := os.ReadFile(c.recordPath(site))
	if err != nil {
		return status{}, err
	}
	var record struct {
		status
		Enabled bool `json:"enabled"`
	}
	err = json.Unmarshal(raw, &record)
	record.State = "off"
	if record.Enabled {
		record.State = "on"
	}
	return record.status, err
}

// write puts a file where it belongs.
func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
