//go:build unix

package integration

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// An editor or psql works in it: the terminal is the command's, and a key reaches it once.
func TestTerminalIsTheCommands(t *testing.T) {
	t.Parallel()
	c, _ := startSite(t, literal, welcome)
	run := c.prepare("maintenance", "run", "shop", "--", "sh", "-c",
		"test -t 0 && test -t 1 && trap 'echo interrupted' INT; echo ready; until read line; do :; done; echo got $line; exit 5")
	terminal := newTerminal(t, run, shellWords(run.Args))
	terminal.screen.await(t, "ready")
	terminal.enter(t, "\x03") // Ctrl-C
	terminal.screen.await(t, "interrupted")
	terminal.enter(t, "hello\n")
	_ = terminal.shell.Wait()
	got := strings.ReplaceAll(terminal.screen.String(), "\r", "")
	if n, code := strings.Count(got, "interrupted"), terminal.shell.ProcessState.ExitCode(); n != 1 || code != 5 || !strings.Contains(got, "got hello\n") || !strings.HasSuffix(got, staysOn) {
		t.Errorf("got status %d\n%s", code, got)
	}
	wantState(t, c, "on")
}

// A lost terminal ends what the command reads, and many take that for a success. The kernel tells
// only the shell of it, which may tell this command later or not at all.
func TestLostTerminalOpensNothing(t *testing.T) {
	t.Parallel()
	c, _ := startSite(t, literal, welcome)
	for _, test := range []struct{ shell, command string }{
		{"bash --norc -i", "while read line; do :; done; exit 0"},
		{"bash --norc -i", "trap 'exit 0' HUP; cat"},
		{"sh -i", "exec bash --norc -i"},
	} {
		for range 5 {
			c.off("shop")
			_ = os.Remove(filepath.Join(c.dir, "started"))
			run := c.prepare("maintenance", "run", "shop", "--", "sh", "-c", "echo started > started; "+test.command)
			terminal := newTerminal(t, run, test.shell)
			terminal.enter(t, shellWords(run.Args)+"\n")
			c.awaitFile("started", "started")
			terminal.hangUp()
			terminal.awaitEnd(t)
			if got := c.status("shop").State; got != "on" {
				t.Errorf("%s in %s: the site is %s, want on", test.command, test.shell, got)
			}
		}
	}
}

// With nohup, the user says that the terminal may go away.
func TestTerminalMayGoAwayWithNohup(t *testing.T) {
	t.Parallel()
	c, _ := startSite(t, literal, welcome)
	run := c.prepare("maintenance", "run", "shop", "--", "sh", "-c", "echo started > started; until test -e go; do sleep 0.01; done")
	terminal := newTerminal(t, run, "bash --norc -i")
	terminal.enter(t, "nohup "+shellWords(run.Args)+" > log 2>&1 &\n")
	c.awaitFile("started", "started")
	terminal.hangUp()
	write(t, filepath.Join(c.dir, "go"), "")
	terminal.awaitEnd(t)
	wantState(t, c, "off")
}

// Nobody reads what is printed any more: the site is opened all the same.
func TestSiteIsOpenedThoughNobodyReads(t *testing.T) {
	t.Parallel()
	c, _ := startSite(t, literal, welcome)
	run := c.prepare("maintenance", "run", "shop", "--", "true")
	for _, redirected := range []string{"", "2>&1"} {
		_ = os.Remove(filepath.Join(c.dir, "status"))
		sh := exec.Command("sh", "-c", "(sleep 0.1; "+shellWords(run.Args)+" "+redirected+"; echo $? > status) | true")
		sh.Dir, sh.Env = run.Dir, run.Env
		if err := sh.Run(); err != nil {
			t.Fatal(err)
		}
		c.awaitFile("status", "0")
		wantState(t, c, "off")
	}
}

// A signal for all is one that the command's end does not overtake.
func TestHangupOfAllOpensNothing(t *testing.T) {
	t.Parallel()
	c, _ := startSite(t, literal, welcome)
	for range 20 {
		c.off("shop")
		_ = os.Remove(filepath.Join(c.dir, "started"))
		cmd := c.prepare("maintenance", "run", "shop", "--", "sh", "-c", "trap 'exit 0' HUP; echo started > started; while :; do sleep 0.01; done")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		c.awaitFile("started", "started")
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGHUP)
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 129 || !strings.HasSuffix(stderr.String(), "received SIGHUP: the terminal may be gone; "+staysOn) {
			t.Errorf("got status %d\n%s", code, &stderr)
		}
		wantState(t, c, "on")
	}
}

// A key reaches the command and the one that runs it. What the command makes of it counts, also
// if it ends at once.
func TestKeyIsTheCommandsThatEndsWithIt(t *testing.T) {
	t.Parallel()
	c, _ := startSite(t, literal, welcome)
	for _, test := range []struct {
		status     int
		end, state string
	}{
		{0, "interrupted\n" + reopened, "off"},
		{7, "interrupted\nsh ended with exit status 7; " + staysOn, "on"},
	} {
		for range 20 {
			c.off("shop")
			inner := c.prepare("maintenance", "run", "shop", "--", "sh", "-c",
				"trap 'echo interrupted; exit "+string(rune('0'+test.status))+"' INT; echo ready; while read line; do :; done")
			terminal := newTerminal(t, inner, shellWords(inner.Args))
			terminal.screen.await(t, "ready")
			terminal.enter(t, "\x03") // Ctrl-C
			_ = terminal.shell.Wait()
			got := strings.NewReplacer("\r", "", "^C", "").Replace(terminal.screen.String())
			if code := terminal.shell.ProcessState.ExitCode(); code != test.status || !strings.HasSuffix(got, test.end) {
				t.Errorf("got status %d, want %d\n%s", code, test.status, got)
			}
			wantState(t, c, test.state)
		}
	}
}

// terminal is a terminal with a program in it.
type terminal struct {
	shell  *exec.Cmd // what shows the terminal
	input  io.Writer
	screen *screen
	ended  *os.File // a pipe that all programs in the terminal have open
}

// newTerminal starts a command line in a terminal, in the environment of a command.
func newTerminal(t *testing.T, like *exec.Cmd, line string) *terminal {
	t.Helper()
	ended, open, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ended.Close() })
	// exec, as dash would stay between, get the keys as well, and end with its status.
	shell := exec.Command("script", "-qec", "exec "+line, "/dev/null")
	shell.Dir, shell.Env, shell.ExtraFiles = like.Dir, append(like.Env, "SHELL=/bin/sh"), []*os.File{open}
	input, err := shell.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	s := startScreen(t, shell)
	_ = open.Close()
	return &terminal{shell, input, s, ended}
}

// enter types a text.
func (terminal *terminal) enter(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(terminal.input, text); err != nil {
		t.Fatal(err)
	}
}

// hangUp closes the terminal.
func (terminal *terminal) hangUp() {
	_ = terminal.shell.Process.Kill()
	_ = terminal.shell.Wait()
}

// awaitEnd returns when all programs in the terminal have ended.
func (terminal *terminal) awaitEnd(t *testing.T) {
	t.Helper()
	_ = terminal.ended.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.ReadAll(terminal.ended); err != nil {
		t.Fatal(err)
	}
}
