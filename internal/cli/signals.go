package cli

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"example.com/caddy-maintenance/internal/api"
)

// signalWatch handles signals. While sites are switched, a signal ends this process, which says
// first what stays as it is. While the command runs, signals are passed on to it. A signal that
// was ignored when this process began, as with nohup, stays ignored.
type signalWatch struct {
	call    *call
	signals chan os.Signal
	done    chan struct{}
	hungUp  atomic.Bool // SIGHUP was received

	needsTerminal bool // a hangup matters, and there was a terminal when this process began

	mu      sync.Mutex
	sites   []api.Site  // those that are, or may be, in maintenance
	command *os.Process // nil while none runs
	last    string      // what to say first when only the opening is left
}

func (c *call) watchSignals() *signalWatch {
	w := &signalWatch{call: c, signals: make(chan os.Signal, 4), done: make(chan struct{})}
	for _, s := range []os.Signal{os.Interrupt, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) {
			signal.Notify(w.signals, s)
		}
	}
	// If nobody reads what is printed any more, sites must still be opened. To ignore the signal would
	// pass that on to the command.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	w.needsTerminal = !signal.Ignored(syscall.SIGHUP) && hasTerminal()
	go func() {
		for {
			select {
			case s := <-w.signals:
				if s == syscall.SIGHUP {
					w.hungUp.Store(true)
				}
				if words, ends := w.take(s); ends {
					fmt.Fprintf(c.stderr, "\n%s\n", words)
					number, _ := s.(syscall.Signal)
					os.Exit(128 + int(number)) //nolint:gocritic // the process ends, and with it what is deferred
				}
			case <-w.done:
				return
			}
		}
	}()
	return w
}

func (w *signalWatch) stop() {
	signal.Stop(w.signals)
	close(w.done)
}

// take passes a signal on to the command. If none runs, it returns what to say before exiting.
func (w *signalWatch) take(s os.Signal) (words string, ends bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.command != nil:
		if !isKey(s) {
			_ = w.command.Signal(s)
		}
		return "", false
	case w.last != "" && len(w.sites) > 0:
		return w.last + "; " + w.call.howToOpen(w.sites, "may still be"), true
	case w.last != "":
		return w.last + "; " + w.call.hint("") + " shows which sites are open", true
	case len(w.sites) == 0:
		return "nothing has changed", true
	}
	return w.call.staysOn(w.sites), true
}

// isKey reports whether a signal comes from a key of the terminal. Then the command has it
// already.
func isKey(s os.Signal) bool {
	return (s == os.Interrupt || s == syscall.SIGQUIT) && (isTerminal(os.Stdin) || isTerminal(os.Stdout) || isTerminal(os.Stderr))
}

// note notes a site that is about to be in maintenance.
func (w *signalWatch) note(s api.Site) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sites = append(w.sites, s)
}

// start starts the command, with the standard streams of this process. From then on,
// signals are passed on to it.
func (w *signalWatch) start(command *exec.Cmd) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := command.Start()
	w.command = command.Process
	return err
}

// lateSignals is how long signals that came together with the command's end may take to arrive.
// A key of the terminal, a hangup, or a signal for the whole process group reaches the command and
// this process in any order. A shell passes on a hangup only when it exits itself.
const lateSignals = 100 * time.Millisecond

// wait returns when the command has ended, and has all signals that came with that. They are the
// command's.
func (w *signalWatch) wait(command *exec.Cmd) error {
	err := command.Wait()
	time.Sleep(lateSignals)
	return err
}

// lostTerminal says how it is known that the terminal is gone, or may be. It returns "" otherwise.
// A command that reads a terminal finds the end of its input then, and may take that for success.
func (w *signalWatch) lostTerminal() string {
	switch {
	case w.hungUp.Load():
		return "received SIGHUP: the terminal may be gone"
	case w.needsTerminal && !hasTerminal():
		return "the terminal is gone"
	}
	return ""
}

// hasTerminal reports whether this process has a controlling terminal. A hangup takes it away at
// once, though it sends SIGHUP only to the leader of the session.
func hasTerminal() bool {
	terminal, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	_ = terminal.Close()
	return true
}

// finishing ends the passing on. From then on a signal ends this process again, and what is said
// begins with these words. These sites may be in maintenance, each until it is finished.
func (w *signalWatch) finishing(words string, closed []closedSite) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.command, w.last, w.sites = nil, words, sitesOf(closed)
}

// finished notes that nothing is left to be done to a site.
func (w *signalWatch) finished(s api.Site) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sites = slices.DeleteFunc(w.sites, func(one api.Site) bool { return one.Site == s.Site })
}
