package cli

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"example.com/caddy-maintenance/internal/api"
)

// waiter waits for sites to be drained and shows the progress.
type waiter struct {
	admin          client
	now            func() time.Time
	limit          time.Duration
	deadline       time.Time
	stdout, stderr io.Writer
	progress       *progress
	multiple       bool   // each report names its site
	unlessDrained  string // what happens to a site that is not drained in time
}

func (c *call) newWaiter() *waiter {
	return &waiter{
		admin: c.admin, now: c.now, limit: c.wait, deadline: c.now().Add(c.wait),
		stdout: c.stdout, stderr: c.stderr, progress: newProgress(c.stdout, c.isTerminal(c.stdout)),
		unlessDrained: "maintenance stays on",
	}
}

// waitForEach waits for all sites, with one deadline for all. It reports on each, even if others
// are not drained by then.
func (w *waiter) waitForEach(sites []string) (status int, err error) {
	var failed []error
	for _, site := range sites {
		drained, err := w.waitFor(site)
		failed = append(failed, err)
		if err == nil && !drained {
			status = exitIncomplete
		}
	}
	return status, errors.Join(failed...)
}

// waitStep is how long one request waits. It is short, to show progress.
const waitStep = time.Second

// waitFor returns when the site is drained on every instance, or the deadline has passed.
func (w *waiter) waitFor(site string) (drained bool, err error) {
	defer w.progress.end()
	for {
		step := min(waitStep, max(w.deadline.Sub(w.now()), time.Millisecond))
		list, err := w.admin.instances(site, step)
		if err != nil {
			return false, fmt.Errorf("waiting for %s to be drained: %w", site, err)
		}
		var got api.Site
		if err := w.admin.send(http.MethodGet, api.SitePath(site), nil, &got); err != nil {
			return false, fmt.Errorf("waiting for %s to be drained: %w", site, err)
		}
		f := fleet{list: list}
		_, left := f.split(isDrained)
		switch {
		case got.State == api.StateOff:
			return false, fmt.Errorf("%s is open: it was switched off, or its maintenance ended by itself, before it was drained", site)
		case len(left) == 0:
			w.progress.end()
			fmt.Fprintln(w.stdout, w.reportDrained(site, f))
			return true, nil
		case !w.now().Before(w.deadline):
			w.progress.end()
			fmt.Fprintf(w.stderr, "%s: not drained in %s: %s; %s\n", site, w.limit, f.troubles(left, w.now()), w.unlessDrained)
			return false, nil
		}
		for _, i := range left {
			w.progress.add(site + ": " + f.trouble(i))
		}
		w.progress.show()
	}
}

func (w *waiter) reportDrained(site string, f fleet) string {
	report := "drained"
	if w.multiple {
		report = site + " " + report
	}
	if count := f.count(); len(count) > 0 {
		report += " (" + count[0] + ")"
	}
	return report
}

// progress prints lines. On a terminal they replace the last ones; elsewhere, only new lines are
// printed.
type progress struct {
	out      io.Writer
	terminal bool
	next     []string
	shown    []string
}

func newProgress(out io.Writer, terminal bool) *progress {
	return &progress{out: out, terminal: terminal}
}

func (p *progress) add(line string) { p.next = append(p.next, line) }

func (p *progress) show() {
	lines := p.next
	p.next = nil
	if p.terminal {
		p.end()
	}
	for _, line := range lines {
		if p.terminal || !slices.Contains(p.shown, line) {
			fmt.Fprintln(p.out, line)
		}
	}
	p.shown = lines
}

// end removes the lines from a terminal.
func (p *progress) end() {
	if p.terminal && len(p.shown) > 0 {
		fmt.Fprintf(p.out, "\033[%dA\033[J", len(p.shown))
	}
	p.shown = nil
}
