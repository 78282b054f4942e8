// Package e2e tests with a real browser what visitors see of a site in
// maintenance. It drives the caddy command as a process and has a module of its
// own, so that what it requires stays out of the product's requirements.
package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

var (
	binary  string          // the command under test
	browser context.Context // one for all tests, as a start takes seconds
)

func TestMain(m *testing.M) {
	code, err := setUpAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func setUpAndRun(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "caddy-maintenance-e2e-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	// Before the build, which takes minutes the first time: there may be none.
	var stop func() error
	if browser, stop, err = startBrowser(dir); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, stop()) }()

	binary = filepath.Join(dir, "caddy.exe") // a name that every system runs
	if err := build(binary); err != nil {
		return 0, fmt.Errorf("building cmd/caddy: %w", err)
	}
	return m.Run(), nil
}

// build builds the command, with the race detector if the tests have it.
func build(output string) error {
	args := []string{"build", "-C", "..", "-o", output}
	info, ok := debug.ReadBuildInfo()
	if ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "./cmd/caddy")...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	return cmd.Run()
}

// startBrowser starts a browser that keeps all of its files in dir.
func startBrowser(dir string) (ctx context.Context, stop func() error, err error) {
	path, err := findBrowser()
	if err != nil {
		return nil, nil, err
	}
	allocator, kill := chromedp.NewExecAllocator(context.Background(),
		chromedp.ExecPath(path), // as root it adds --no-sandbox
		chromedp.UserDataDir(filepath.Join(dir, "profile")),
		chromedp.Env("HOME="+dir, "XDG_CONFIG_HOME="+dir, "XDG_CACHE_HOME="+dir, "TMPDIR="+dir),
		chromedp.WSURLReadTimeout(patience),
		chromedp.Headless,
		chromedp.DisableGPU,
		chromedp.NoFirstRun,
		chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-dev-shm-usage", true), // /dev/shm is small in containers
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-sync", true),
	)
	ctx, _ = chromedp.NewContext(allocator)
	if err := chromedp.Run(ctx); err != nil {
		kill()
		return nil, nil, fmt.Errorf("starting %s: %w", path, err)
	}
	stop = func() error {
		limited, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		return chromedp.Cancel(limited) // lets it finish, so that it writes nothing afterwards
	}
	return ctx, stop, nil
}

func findBrowser() (string, error) {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("these tests need a browser: install Chromium (on Debian, apt-get install chromium) or Google Chrome")
}

// patience is how long a test waits for what has to happen but is not timed.
const patience = 30 * time.Second

// eventually returns as soon as the condition holds, and fails the test if it
// does not in time.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s in vain until %s", patience, what)
		}
	}
}
