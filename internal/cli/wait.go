package cli

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"example.com/caddy-maintenance/internal/api"
)

// waiter waits for sites to be drained and shows the progress.
type waiter struct {
	admin          client
	now            func() time.Time
	limit          time.Duration
	stdout, stderr io.Writer
	progress       *progressLine
	multiple       bool // each report names its site
}

func (c *call) newWaiter() *waiter {
	return &waiter{
		admin: c.admin, now: c.now, limit: c.wait,
		stdout: c.stdout, stderr: c.stderr, progress: newProgressLine(c.stdout),
	}
}

// waitForEach waits for all sites until the same deadline, even if some are not drained
// by then.
func (w *waiter) waitForEach(sites []string) (status int, err error) {
	deadline := w.now().Add(w.limit)
	var failed []error
	for _, site := range sites {
		drained, err := w.waitFor(site, deadline)
		failed = append(failed, err)
		if err == nil && !drained {
			status = exitTimedOut
		}
	}
	return status, errors.Join(failed...)
}

// waitStep is how long one request waits. It is short, so that progress shows.
const waitStep = time.Second

// waitFor returns when nothing is in flight or the deadline has passed.
func (w *waiter) waitFor(site string, deadline time.Time) (drained bool, err error) {
	defer w.progress.end()
	for {
		step := min(waitStep, max(deadline.Sub(w.now()), time.Millisecond))
		var got api.Site
		if err := w.admin.send(http.MethodGet, api.SitePath(site)+"?"+api.WaitParameter+"="+step.String(), nil, &got); err != nil {
			return false, fmt.Errorf("waiting for %s to be drained: %w", site, err)
		}
		switch {
		case got.State == api.StateOff:
			return false, fmt.Errorf("%s is open: while this waited for it to be drained, it was switched off or its maintenance ended by itself", site)
		case got.InFlight == 0:
			w.progress.end()
			if w.multiple {
				fmt.Fprint(w.stdout, site, " ")
			}
			fmt.Fprintln(w.stdout, reportDrained(got))
			return true, nil
		case !w.now().Before(deadline):
			w.progress.end()
			fmt.Fprintf(w.stderr, "%s: not drained in %s, %d still in flight on %s; maintenance stays on\n",
				site, w.limit, got.InFlight, got.Instance)
			return false, nil
		}
		w.progress.show(fmt.Sprintf("%s: %d in flight", site, got.InFlight))
	}
}

func reportDrained(site api.Site) string {
	follow := "within " + site.SyncInterval
	if site.SyncInterval == api.SyncOff {
		follow = "when they reload"
	}
	return fmt.Sprintf("drained (this instance, %s; others on the same storage follow %s)", site.Instance, follow)
}

// progressLine is one line that is written anew on a terminal, and a line for each
// change elsewhere.
type progressLine struct {
	out      io.Writer
	terminal bool
	shown    string
}

func newProgressLine(out io.Writer) *progressLine {
	p := &progressLine{out: out}
	if file, ok := out.(*os.File); ok {
		info, err := file.Stat()
		p.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

func (p *progressLine) show(line string) {
	switch {
	case line == p.shown:
	case p.terminal:
		fmt.Fprintf(p.out, "\r\033[K%s", line)
	default:
		fmt.Fprintln(p.out, line)
	}
	p.shown = line
}

// end leaves the terminal's cursor at the start of an empty line.
func (p *progressLine) end() {
	if p.terminal && p.shown != "" {
		fmt.Fprint(p.out, "\r\033[K")
	}
	p.shown = ""
}
