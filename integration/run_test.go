//go:build unix

package integration

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	ranShop  = "Enabling maintenance mode for shop... done\ndrained\n"
	reopened = "Disabling maintenance mode for shop... done\n"
	staysOn  = "shop stays in maintenance; to open it: caddy maintenance off shop\n"
)

// The command runs while the site is closed, with the streams of the one that runs it; what
// becomes of the site, and the exit status, are the command's.
//
// G1, G3
func TestCommandRunsWhileTheSiteIsClosed(t *testing.T) {
	t.Parallel()
	c, shop := startSite(t, literal, welcome)
	for _, test := range []struct {
		script string
		want   output
		state  string
	}{
		{`curl -s -o /dev/null -w '%{http_code}\n' ` + shop.url(), output{ranShop + "503\n" + reopened, "", 0}, "off"},
		{`cat; echo oops >&2; exit 3`, output{ranShop + "input", "oops\nsh ended with exit status 3; " + staysOn, 3}, "on"},
		{`kill -KILL $$`, output{ranShop, "sh ended with signal: killed; " + staysOn, 137}, "on"},
		{`cd /nowhere 2>/dev/null`, output{ranShop, "sh ended with exit status 2; " + staysOn, 2}, "on"},
	} {
		c.off("shop")
		cmd := c.prepare("maintenance", "run", "shop", "--", "sh", "-c", test.script)
		cmd.Stdin = strings.NewReader("input")
		if got := outputOf(t, cmd); got != test.want {
			t.Errorf("%s: got %+v, want %+v", test.script, got, test.want)
		}
		c.awaitState("shop", test.state)
	}
}

// Signals are the command's. Without its terminal nothing opens.
func TestSignalsAreTheCommands(t *testing.T) {
	t.Parallel()
	c, _ := startSite(t, literal, welcome)
	const wait = "echo started > started; while :; do sleep 0.01; done"
	for _, test := range []struct {
		name, script string
		signal       syscall.Signal
		want         output
		state        string
	}{
		{"heeded", "trap 'exit 0' TERM; " + wait, syscall.SIGTERM, output{ranShop + reopened, "", 0}, "off"},
		{"answered", "trap 'exit 7' INT; " + wait, syscall.SIGINT, output{ranShop, "sh ended with exit status 7; " + staysOn, 7}, "on"},
		{"not caught", wait, syscall.SIGTERM, output{ranShop, "sh ended with signal: terminated; " + staysOn, 143}, "on"},
		{"terminal gone", "trap 'exit 0' HUP; " + wait, syscall.SIGHUP, output{ranShop, "received SIGHUP: the terminal may be gone; " + staysOn, 129}, "on"},
	} {
		c.off("shop")
		_ = os.Remove(filepath.Join(c.dir, "started"))
		cmd := c.prepare("maintenance", "run", "shop", "--", "sh", "-c", test.script)
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		c.awaitFile("started", "started")
		_ = cmd.Process.Signal(test.signal)
		_ = cmd.Wait()
		if got := (output{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}); got != test.want {
			t.Errorf("%s: got %+v, want %+v", test.name, got, test.want)
		}
		c.awaitState("shop", test.state)
	}
}

// Before the command runs, a signal ends the waiting and says what stays as it is.
func TestSignalEndsTheWaiting(t *testing.T) {
	t.Parallel()
	upstream := newPatientApp(t)
	c, shop := startSite(t, literal, upstream.ServeHTTP)
	e := begin(t, shop, upstream, "GET /slow HTTP/1.1\r\n\r\n")
	awaitInFlight(t, c, "shop", 1)
	for _, args := range [][]string{
		{"run", "shop", "--wait", "1m", "--", "touch", "ran"},
		{"on", "shop", "--wait", "1m"},
		{"shop", "--wait", "1m"},
	} {
		cmd := c.prepare(append([]string{"maintenance"}, args...)...)
		screen := startScreen(t, cmd)
		screen.await(t, "1 in flight")
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 130 || !strings.HasSuffix(screen.String(), "\n"+staysOn) {
			t.Errorf("%s: got status %d\n%s", args, code, screen)
		}
		wantState(t, c, "on")
	}
	if _, err := os.Stat(filepath.Join(c.dir, "ran")); err == nil {
		t.Error("the command was run")
	}
	c.off("shop")

	// Not drained in time: the site is opened again, and the command not run.
	got := c.command("maintenance", "run", "shop", "--wait", "500ms", "--", "touch", "ran")
	if got.code != 2 || !strings.HasSuffix(got.stdout, reopened) || !strings.HasSuffix(got.stderr, "; opening it again\nthe command was not run\n") {
		t.Errorf("not drained: got %+v", got)
	}
	wantState(t, c, "off")
	if _, err := os.Stat(filepath.Join(c.dir, "ran")); err == nil {
		t.Error("the command was run")
	}
	close(upstream.release)
	e.read()
}

// Of two that run at once, one finds the site closed by the other.
func TestOnlyOneCommandRunsAtATime(t *testing.T) {
	t.Parallel()
	c, _ := startSite(t, literal, welcome)
	first := c.prepare("maintenance", "run", "shop", "--", "sh", "-c", "echo started > started; read line")
	input, err := first.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan output)
	go func() { done <- outputOf(t, first) }()
	c.awaitFile("started", "started")
	second := c.command("maintenance", "run", "shop", "--", "true")
	if second.code != 1 || second.stdout != "" || !strings.Contains(second.stderr, "site shop is already in maintenance") {
		t.Errorf("got %+v", second)
	}
	// Also if it has looked before.
	r, _ := http.NewRequest(http.MethodPut, "http://"+c.admin+"/maintenance/shop", nil)
	r.Header.Set("If-None-Match", "*")
	if response, err := http.DefaultClient.Do(r); err != nil || response.StatusCode != http.StatusPreconditionFailed {
		t.Errorf("got %+v %v", response, err)
	}
	_, _ = input.Write([]byte("\n"))
	if got := <-done; got.code != 0 || got.stdout != ranShop+reopened {
		t.Errorf("got %+v", got)
	}
}

// Whoever changes the message does not take the site from the command that runs.
func TestOptionsMayChangeWhileTheCommandRuns(t *testing.T) {
	t.Parallel()
	upstream := newPatientApp(t)
	c, shop := startSite(t, literal, upstream.ServeHTTP)
	e := begin(t, shop, upstream, "GET /slow HTTP/1.1\r\n\r\n")
	awaitInFlight(t, c, "shop", 1)
	cmd := c.prepare("maintenance", "run", "shop", "--wait", "1m", "--", "sh", "-c", "echo started > started; until test -e go; do sleep 0.01; done")
	screen := startScreen(t, cmd)
	screen.await(t, "1 in flight")
	c.must(http.MethodPatch, "shop", `{"message":"Soon."}`)
	close(upstream.release)
	e.read()
	c.awaitFile("started", "started")
	c.expect("Enabling maintenance mode for shop... done (was already on since "+c.status("shop").Since.Format("2006-01-02 15:04:05 MST")+")\n",
		"maintenance", "on", "shop", "--message", "Back at three.")
	write(t, filepath.Join(c.dir, "go"), "")
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 0 || !strings.HasSuffix(screen.String(), reopened) {
		t.Errorf("got status %d\n%s", code, screen)
	}
	wantState(t, c, "off")
}

// Ctrl-C when the command has ended, and Caddy takes its time to open the site.
func TestInterruptedOpeningSaysWhatMayBeClosed(t *testing.T) {
	t.Parallel()
	c, _ := startSite(t, literal, welcome)
	asked, release := make(chan struct{}), make(chan struct{})
	admin := &url.URL{Scheme: "http", Host: c.admin}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(admin) // and with it the Host
		r.Out.Header.Del("Origin")
		if r.In.Method == http.MethodDelete {
			close(asked)
			<-release
		}
	}}
	slow := httptest.NewServer(proxy)
	defer slow.Close()
	defer close(release)
	address := strings.TrimPrefix(slow.URL, "http://")
	cmd := c.prepare("maintenance", "run", "shop", "--address", address, "--", "true")
	screen := startScreen(t, cmd)
	screen.await(t, "drained")
	select {
	case <-asked:
	case <-time.After(patience):
		t.Fatalf("waited in vain for the request; got\n%s", screen)
	}
	_ = cmd.Process.Signal(os.Interrupt)
	_ = cmd.Wait()
	want := "\nthe command has ended; shop may still be in maintenance; to open it: caddy maintenance off shop --address " + address + "\n"
	if code := cmd.ProcessState.ExitCode(); code != 130 || !strings.HasSuffix(screen.String(), want) {
		t.Errorf("got status %d\n%s", code, screen)
	}
	wantState(t, c, "on")
}

func wantState(t *testing.T, c *caddy, want string) {
	t.Helper()
	if got := c.status("shop").State; got != want {
		t.Errorf("the site is %s, want %s", got, want)
	}
}

// screen is what a command has printed until now.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// startScreen starts a command and shows what it prints.
func startScreen(t *testing.T, cmd *exec.Cmd) *screen {
	t.Helper()
	s := new(screen)
	cmd.Stdout, cmd.Stderr = s, s
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func (s *screen) await(t *testing.T, text string) {
	t.Helper()
	eventually(t, patience, text+" is printed", func() bool { return strings.Contains(s.String(), text) })
}
