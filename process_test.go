package maintenance

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
)

// asCaddy is a variable of the environment that makes this test binary a Caddy, with
// the modules that are only for tests.
const asCaddy = "MAINTENANCE_TEST_CADDY"

func runAsCaddy() {
	if os.Getenv(asCaddy) != "" {
		caddycmd.Main()
		os.Exit(0)
	}
}

// process is a Caddy of its own with a site, shop.
type process struct {
	t          *testing.T
	dir        string
	admin, url string
	options    string // global options
	running    *exec.Cmd
}

func newProcess(t *testing.T) *process {
	t.Helper()
	p := &process{t: t, dir: t.TempDir(), admin: freeAddress(t), url: "http://" + freeAddress(t)}
	t.Cleanup(func() {
		p.kill()
		if log, err := os.ReadFile(p.path("log")); err == nil {
			if _, race, found := strings.Cut(string(log), "WARNING: DATA RACE"); found {
				t.Errorf("data race: %s", race)
			}
			if t.Failed() {
				t.Logf("end of the log:\n%s", log[max(0, len(log)-16<<10):])
			}
		}
	})
	return p
}

func (p *process) path(name string) string { return filepath.Join(p.dir, name) }

// caddyfile is the config; mark is in a header of each response.
func (p *process) caddyfile(mark string) string {
	return fmt.Sprintf(`{
		admin %s
		persist_config off
		auto_https off
		%s
	}
	%s {
		route {
			header X-Config %s
			maintenance shop
		}
		respond "app"
	}`, p.admin, p.options, p.url, mark)
}

// launch starts the process.
func (p *process) launch() {
	p.t.Helper()
	if err := os.WriteFile(p.path("Caddyfile"), []byte(p.caddyfile("first")), 0o600); err != nil {
		p.t.Fatal(err)
	}
	log, err := os.OpenFile(p.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close()
	p.running = exec.Command(os.Args[0], "run", "--config", p.path("Caddyfile"))
	p.running.Env = append(os.Environ(), asCaddy+"=1", "XDG_DATA_HOME="+p.dir, "XDG_CONFIG_HOME="+p.dir, "GORACE=atexit_sleep_ms=0")
	p.running.Stdout, p.running.Stderr = log, log
	if err := p.running.Start(); err != nil {
		p.t.Fatal(err)
	}
}

// start starts the process and returns when the state of its site is known, or not to
// be known.
func (p *process) start() {
	p.t.Helper()
	p.launch()
	eventually(p.t, func() error {
		got, err := p.try(http.MethodGet, "")
		if err == nil && got.StatusCode != http.StatusOK {
			err = errors.New(got.body)
		}
		return err
	})
}

// reload loads a config with that mark, and returns when it serves.
func (p *process) reload(mark string) error {
	got, err := try(http.MethodPost, "http://"+p.admin+"/load", p.caddyfile(mark), http.Header{"Content-Type": {"text/caddyfile"}})
	if err == nil && got.StatusCode != http.StatusOK {
		err = errors.New(got.body)
	}
	if err != nil {
		return err
	}
	eventually(p.t, func() error {
		got, err := try(http.MethodGet, p.url, "", nil)
		if err == nil && got.Header.Get("X-Config") != mark {
			err = fmt.Errorf("the config is %s, want %s", got.Header.Get("X-Config"), mark)
		}
		return err
	})
	return nil
}

// kill ends the process as kill -9 does.
func (p *process) kill() {
	if p.running != nil {
		_ = p.running.Process.Kill()
		_ = p.running.Wait()
		p.running = nil
	}
}

// try sends a request about shop to the admin API, whose answer may be an error.
func (p *process) try(method, body string) (response, error) {
	return try(method, "http://"+p.admin+"/maintenance/shop", body, nil)
}

func (p *process) must(method, body string) {
	p.t.Helper()
	if got, err := p.try(method, body); err != nil || got.StatusCode != http.StatusOK {
		p.t.Fatalf("%s got %v %s", method, err, got.body)
	}
}

// await returns when the site is in that state.
func (p *process) await(state string) {
	p.t.Helper()
	eventually(p.t, func() error {
		got, err := p.try(http.MethodGet, "")
		if err == nil && !strings.Contains(got.body, `"state":"`+state+`"`) {
			err = fmt.Errorf("got %s, want %s", got.body, state)
		}
		return err
	})
}
