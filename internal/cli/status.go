package cli

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"example.com/caddy-maintenance/internal/api"
)

// statusCommand shows one site, or all.
type statusCommand struct {
	call
	json bool
}

func (c *statusCommand) run(args []string) (int, error) {
	l, err := c.admin.sites()
	if err != nil {
		return 0, err
	}
	if len(args) == 0 && l.several() && c.wait == 0 {
		return 0, c.showAll(l)
	}
	site, err := c.admin.pickOne(l, args)
	if errors.Is(err, errUnknownSite) {
		err = fmt.Errorf("%w (for commands, see caddy maintenance --help)", err)
	}
	if err != nil {
		return 0, err
	}
	if c.wait > 0 && isGone(site) {
		return 0, c.errGone(site)
	}
	if !c.json {
		warnOfPages(c.stderr, site, c.now())
		if isGone(site) {
			fmt.Fprintf(c.stderr, "warning: %v\n", c.errGone(site))
		}
	}
	status, failed := 0, error(nil)
	if c.wait > 0 {
		deadline := c.now().Add(c.wait)
		if err := c.awaitOn(site, deadline); err != nil {
			return 0, err
		}
		status, failed = c.awaitDrained(site, deadline)
	}
	switch {
	case c.json && len(args) == 0:
		err = c.showAnswer(api.Path)
	case c.json:
		err = c.showAnswer(api.SitePath(site.Site))
	case c.wait == 0:
		fmt.Fprintln(c.stdout, site.State)
		if c.isTerminal(c.stdout) {
			err = c.writeDetails(site)
		}
	}
	return status, errors.Join(failed, err)
}

// awaitDrained returns when the site is drained. With --json, progress goes to standard error.
func (c *statusCommand) awaitDrained(site api.Site, deadline time.Time) (status int, err error) {
	signals := c.watchSignals()
	defer signals.stop()
	signals.note(site)
	w := c.newWaiter()
	w.deadline = deadline
	if c.json {
		w.stdout, w.progress = io.Discard, newProgress(c.stderr, c.isTerminal(c.stderr))
	}
	return w.waitForEach([]string{site.Site})
}

// awaitOn returns when the site is in maintenance on this instance, which may follow another one
// a little later.
func (c *statusCommand) awaitOn(site api.Site, deadline time.Time) error {
	for site.State != api.StateOn {
		if !c.now().Before(deadline) {
			return fmt.Errorf("%s is not in maintenance: its state is still %s after %s", site.Site, site.State, c.wait)
		}
		time.Sleep(pollInterval)
		if err := c.admin.send(http.MethodGet, api.SitePath(site.Site), nil, &site); err != nil {
			return err
		}
	}
	return nil
}

func (c *statusCommand) showAll(l listing) error {
	if c.json {
		return c.showAnswer(api.Path)
	}
	for _, site := range l.sites {
		warnOfPages(c.stderr, site, c.now())
	}
	if len(l.sites) == 0 {
		fmt.Fprintf(c.stdout, "No site of %s is in maintenance\n", strings.Join(l.templates, " or "))
		return nil
	}
	return writeTable(c.stdout, l.sites, c.now())
}

// showAnswer prints the admin API's answer unchanged, so that fields of a newer version show too.
func (c *statusCommand) showAnswer(path string) error {
	var answer json.RawMessage
	if err := c.admin.send(http.MethodGet, path, nil, &answer); err != nil {
		return err
	}
	_, err := fmt.Fprintf(c.stdout, "%s\n", answer)
	return err
}

func writeTable(out io.Writer, list []api.Site, now time.Time) error {
	var text strings.Builder
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "SITE\tSTATE\tSINCE\tFROM\tUNTIL\tIN FLIGHT\tHELD\tMESSAGE\tREASON\tBY")
	for _, s := range list {
		state := s.State
		if isGone(s) {
			state += " (no directive)"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\n", s.Site, state, clockTime(s.Since, now)+elapsed(s.Since, now),
			clockTime(s.From, now), clockTime(s.Until, now), s.InFlight, s.Held, cmp.Or(s.Message, "-"), cmp.Or(s.Reason, "-"), cmp.Or(s.By, "-"))
	}
	_ = table.Flush() // which does not fail
	for line := range strings.Lines(text.String()) {
		if _, err := fmt.Fprintln(out, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// isGone reports whether a reload removed the directive of the site.
func isGone(s api.Site) bool { return s.Configured != nil && !*s.Configured }

func (c *call) errGone(s api.Site) error {
	return fmt.Errorf("%s no longer has a maintenance directive, so nothing blocks its requests; to end its maintenance: %s", s.Site, c.hint("off "+s.Site))
}

// elapsed says how long ago something began.
func elapsed(since, now time.Time) string {
	if since.IsZero() {
		return ""
	}
	return " (" + roughly(max(0, now.Sub(since))) + ")"
}

// writeDetails writes what is known of a site, except its state.
func (c *statusCommand) writeDetails(s api.Site) error {
	now, table := c.now(), tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	detail := func(name, value string) {
		if value != "" {
			fmt.Fprintf(table, "  %s\t%s\n", name, value)
		}
	}
	at := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return clockTime(t, now) + in(t, now)
	}
	if !s.Since.IsZero() {
		detail("since", clockTime(s.Since, now)+elapsed(s.Since, now))
	}
	detail("from", at(s.From))
	detail("until", at(s.Until))
	detail("message", s.Message)
	detail("reason", s.Reason)
	detail("by", s.By)
	detail("in flight", fmt.Sprintf("%d on %s", s.InFlight, s.Instance))
	if s.Held > 0 {
		detail("held", fmt.Sprintf("%d on %s", s.Held, s.Instance))
	}
	detail("retry after", s.RetryAfter)
	detail("hold", s.Hold)
	detail("terminate after", s.TerminateAfter)
	if s.BypassSecret {
		detail("bypass secret", "set")
	}
	for _, p := range s.Pages {
		value := p.Source + ", " + p.State
		if !p.FetchedAt.IsZero() {
			value += ", fetched " + clockTime(p.FetchedAt, now)
		}
		detail("page", value)
	}
	detail("error", s.Error)
	if s.State == api.StateUnknown {
		detail("blocked", "until its state can be read; to open it: "+c.hint("off "+s.Site))
	}
	return table.Flush()
}

// warnOfPages warns of pages and messages that visitors do not see.
func warnOfPages(out io.Writer, site api.Site, now time.Time) {
	see := "see"
	if site.State == api.StateOff {
		see = "would see"
	}
	for _, p := range site.Pages {
		shown := "the default page"
		if p.State == api.PageStale {
			shown = "the copy of " + clockTime(p.FetchedAt, now)
		}
		if p.State == api.PageFetching {
			fmt.Fprintf(out, "warning: %s: page %s is still being fetched; visitors %s the default page until then\n", site.Site, p.Source, see)
		}
		if p.Error != "" {
			fmt.Fprintf(out, "warning: %s: page %s could not be fetched: %s; visitors %s %s\n", site.Site, p.Source, p.Error, see, shown)
		}
		if site.Message != "" && !p.ShowsMessage {
			fmt.Fprintf(out, "warning: %s: page %s does not show the message; put {maintenance.message} where it should appear\n", site.Site, p.Source)
		}
	}
}
