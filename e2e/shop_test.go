package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"image"
	"image/png"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// shop is a site that can be put into maintenance, in front of an app, and the Caddy that
// runs it, with directories and an admin endpoint of its own.
type shop struct {
	t     *testing.T
	dir   string
	url   string
	admin string // address
}

// startShop runs the site with further subdirectives of its maintenance directive and
// further directives of the site, where APP stands for the URL of the app. It returns when
// the site is served and its pages have been fetched.
func startShop(t *testing.T, subdirectives, directives string) *shop {
	t.Helper()
	s := &shop{t: t, dir: t.TempDir(), url: "http://localhost:" + freePort(t), admin: "127.0.0.1:" + freePort(t)}
	s.run(strings.ReplaceAll(fmt.Sprintf(`{
	admin %s
	auto_https off
	default_bind 127.0.0.1
	persist_config off
	storage file_system %q
}

%s {
	maintenance shop {
		bypass /maintenance-assets/*
		%s
	}
	%s
	reverse_proxy APP
}
`, s.admin, filepath.Join(s.dir, "storage"), s.url, subdirectives, directives), "APP", newApp(t)))
	eventually(t, "Caddy runs its config and has fetched its pages", func() bool {
		states, err := s.states()
		return err == nil && !slices.ContainsFunc(states, func(state string) bool { return state != "ok" })
	})
	return s
}

// newApp runs an app, which has the page of a maintenance and its assets, too.
func newApp(t *testing.T) (url string) {
	t.Helper()
	const html = "text/html; charset=utf-8"
	var logo bytes.Buffer
	if err := png.Encode(&logo, image.NewGray(image.Rect(0, 0, 64, 32))); err != nil {
		t.Fatal(err)
	}
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		contentType, body := html, "<!DOCTYPE html><title>Shop</title><h1>Welcome to the shop</h1>"
		switch r.URL.Path {
		case "/page.html":
			body = customPage
		case "/maintenance-assets/style.css":
			contentType, body = "text/css", "#message { color: rgb(0, 128, 0) }"
		case "/maintenance-assets/logo.png":
			contentType, body = "image/png", logo.String()
		case "/events":
			contentType, body = "text/event-stream", "retry: 100\n\n"
		}
		w.Header().Set("Content-Type", contentType)
		_, _ = io.WriteString(w, body)
		if r.URL.Path == "/events" {
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}
	}))
	t.Cleanup(app.Close)
	return app.URL
}

// startRecipe runs the app of a recipe in docs/, and returns the directive in front of it.
func startRecipe(t *testing.T, title, directive string) string {
	t.Helper()
	recipes, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(recipes), "\n## "+title+"\n")
	address := "localhost:" + freePort(t)
	text = strings.ReplaceAll(text, "localhost:9000", address)
	found := regexp.MustCompile("(?s)```go\n(.*?)```.*?\n\t(" + directive + " .*?\n\t})").FindStringSubmatch(text)
	if found == nil {
		t.Fatalf("%s has no app and no %s", title, directive)
	}
	app := filepath.Join(t.TempDir(), "app.exe")
	if err := os.WriteFile(app+".go", []byte(found[1]), 0o600); err != nil {
		t.Fatal(err)
	}
	if output, err := exec.Command("go", "build", "-o", app, app+".go").CombinedOutput(); err != nil {
		t.Fatalf("building the app: %s%v", output, err)
	}
	cmd := exec.Command(app)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	eventually(t, "the app listens", func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return found[2]
}

// run starts Caddy and ends it with the test.
func (s *shop) run(caddyfile string) {
	s.t.Helper()
	path := filepath.Join(s.dir, "Caddyfile")
	if err := os.WriteFile(path, []byte(caddyfile), 0o600); err != nil {
		s.t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(s.dir, "caddy.log"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	cmd := s.command("run", "--config", path, "--adapter", "caddyfile")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		s.checkLog(log.Name())
	})
}

// checkLog fails the test if the race detector has found something, and shows
// the log of a test that failed.
func (s *shop) checkLog(path string) {
	log, err := os.ReadFile(path)
	if err != nil {
		s.t.Error(err)
	}
	if strings.Contains(string(log), "WARNING: DATA RACE") {
		s.t.Error("data race")
	}
	if s.t.Failed() {
		s.t.Logf("the log of Caddy:\n%s", log)
	}
}

// maintenance switches the site.
func (s *shop) maintenance(args ...string) {
	s.t.Helper()
	cmd := s.command(append([]string{"maintenance", "--address", s.admin}, args...)...)
	if output, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("caddy maintenance %s: %s: %s", strings.Join(args, " "), err, output)
	}
}

// command returns the command line `caddy <args...>`, cut off from the
// developer's own Caddy.
func (s *shop) command(args ...string) *exec.Cmd {
	cmd := exec.Command(binary, args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(),
		"HOME="+s.dir,
		"XDG_DATA_HOME="+filepath.Join(s.dir, "data"),
		"XDG_CONFIG_HOME="+filepath.Join(s.dir, "config"),
		"CADDY_ADMIN="+s.admin,
	)
	return cmd
}

// states are those of the site's pages.
func (s *shop) states() (states []string, err error) {
	client := http.Client{Timeout: patience}
	response, err := client.Get("http://" + s.admin + "/maintenance/shop")
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status of shop: %s", response.Status)
	}
	var answer struct{ Pages []struct{ State string } }
	err = json.NewDecoder(response.Body).Decode(&answer)
	for _, page := range answer.Pages {
		states = append(states, page.State)
	}
	return states, err
}

// freePort returns a port that nothing listens on and that is given out only once. Systems
// take the ports of outgoing connections from above this range, so that it stays free
// until Caddy listens on it.
func freePort(t *testing.T) string {
	t.Helper()
	for range 1000 {
		port := strconv.Itoa(20000 + rand.IntN(12000))
		if given[port] {
			continue
		}
		if listener, err := net.Listen("tcp", ":"+port); err == nil {
			listener.Close()
			given[port] = true
			return port
		}
	}
	t.Fatal("no port is free")
	return ""
}

var given = make(map[string]bool)
