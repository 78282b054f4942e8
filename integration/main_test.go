// Package integration tests the caddy command as users run it: as a process,
// through its sites, its admin API, its command line and kill -9.
package integration

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"
)

// binary is the command under test.
var binary string

func TestMain(m *testing.M) {
	runAsCaddy()
	// Tests wait for processes most of the time, so that more of them run at once than there are cores.
	_ = flag.Set("test.parallel", strconv.Itoa(max(16, 2*runtime.GOMAXPROCS(0))))
	flag.Parse()
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "caddy-maintenance-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)

	binary = filepath.Join(dir, "caddy.exe") // a name that every system runs
	args := []string{"build", "-o", binary}
	if raceEnabled {
		args = append(args, "-race")
	}
	build := exec.Command("go", append(args, "../cmd/caddy")...)
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "building cmd/caddy:", err)
		return 1
	}
	return m.Run()
}

// patience is how long a test waits for what has to happen but is not timed.
const patience = 30 * time.Second

// eventually returns as soon as the condition holds, and fails the test if it
// does not in time.
func eventually(t *testing.T, limit time.Duration, what string, condition func() bool) {
	t.Helper()
	began := time.Now()
	for !condition() {
		waited := time.Since(began)
		if waited > limit {
			t.Fatalf("waited %s in vain until %s", limit, what)
		}
		time.Sleep(min(max(waited/20, 2*time.Millisecond), 20*time.Millisecond)) // leaves others something of the machine
	}
}

// repeat does something again and again until done is closed.
func repeat(done <-chan struct{}, something func()) {
	for {
		select {
		case <-done:
			return
		default:
			something()
		}
	}
}
