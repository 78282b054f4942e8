package cli

import (
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
	if err != nil {
		return 0, err
	}
	if !c.json {
		warnOfPages(c.stderr, site, c.now())
	}
	status, failed := 0, error(nil)
	if c.wait > 0 {
		if site.State != api.StateOn {
			return 0, fmt.Errorf("%s is not in maintenance on this instance, its state is %s; if another has just switched it on, try again in a moment",
				site.Site, site.State)
		}
		status, failed = c.awaitDrained(site.Site)
	}
	switch {
	case c.json && len(args) == 0:
		err = c.showAnswer(api.Path)
	case c.json:
		err = c.showAnswer(api.SitePath(site.Site))
	case c.wait == 0:
		fmt.Fprintln(c.stdout, site.State)
	}
	return status, errors.Join(failed, err)
}

// awaitDrained leaves standard output to the JSON if that is asked for.
func (c *statusCommand) awaitDrained(site string) (status int, err error) {
	w := c.newWaiter()
	if c.json {
		w.stdout, w.progress = io.Discard, newProgress(c.stderr)
	}
	return w.waitForEach([]string{site})
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

// showAnswer prints the admin API's answer as it is, so that fields of a newer version
// show too.
func (c *statusCommand) showAnswer(path string) error {
	var answer json.RawMessage
	if err := c.admin.send(http.MethodGet, path, nil, &answer); err != nil {
		return err
	}
	_, err := fmt.Fprintf(c.stdout, "%s\n", answer)
	return err
}

func writeTable(out io.Writer, list []api.Site, now time.Time) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "SITE\tSTATE\tSINCE\tUNTIL\tIN FLIGHT\tMESSAGE")
	for _, s := range list {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\t%s\n", s.Site, s.State, clockTime(s.Since, now), clockTime(s.Until, now), s.InFlight, s.Message)
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
			fmt.Fprintf(out, "warning: %s: page %s is still being fetched, and visitors %s the default page until then\n", site.Site, p.Source, see)
		}
		if p.Error != "" {
			fmt.Fprintf(out, "warning: %s: page %s could not be fetched, and visitors %s %s: %s\n", site.Site, p.Source, see, shown, p.Error)
		}
		if site.Message != "" && !p.ShowsMessage {
			fmt.Fprintf(out, "warning: %s: page %s does not show the message; write {maintenance.message} where it belongs\n", site.Site, p.Source)
		}
	}
}
