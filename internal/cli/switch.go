package cli

import (
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"time"

	"github.com/spf13/pflag"

	"example.com/caddy-maintenance/internal/api"
	"example.com/caddy-maintenance/internal/site"
)

// onCommand puts sites into maintenance.
type onCommand struct {
	call
	flags *pflag.FlagSet
	all   bool
}

func (c *onCommand) run(args []string) (int, error) {
	options, err := readOptions(c.flags, c.now())
	if err != nil {
		return 0, err
	}
	list, err := c.admin.sites()
	if err != nil {
		return 0, err
	}
	picked, err := pick(list, args, c.all)
	if err != nil {
		return 0, err
	}
	made := makesSecret(c.flags)
	s := c.newSwitching("Enabling", picked)
	for _, before := range picked {
		s.begin(before)
		if made { // one for each site, so that a tester of one does not get into another
			options = maps.Clone(options)
			options[site.OptionBypassSecret] = rand.Text()
		}
		before, after, err := c.turnOn(before, options)
		report := reportOn(before, after, c.now())
		if made {
			report += fmt.Sprintf("\nTo get in, open %s%s on the site", site.LinkPrefix, options[site.OptionBypassSecret])
		}
		s.end(after, report, err)
	}
	return s.finish()
}

// turnOn switches the site on. If it is on already, only the options given change. It also
// returns the site as it was before: one that was on when it was listed may be off by now.
func (c *onCommand) turnOn(listed api.Site, options map[string]any) (before, after api.Site, err error) {
	path := api.SitePath(listed.Site)
	if listed.State == api.StateOn {
		err = c.admin.send(http.MethodPatch, path, options, &after)
		if refused := new(apiError); !errors.As(err, &refused) || refused.status != http.StatusConflict {
			return listed, after, err
		}
		listed.State = api.StateOff
	}
	err = c.admin.send(http.MethodPut, path, options, &after)
	return listed, after, err
}

func reportOn(before, after api.Site, now time.Time) string {
	report := "done"
	wasOn := before.State == api.StateOn
	if wasOn {
		report += " (was already on" + sinceWords(before.Since, now) + ")"
	}
	switch {
	case !after.Until.IsZero():
		report += ", ends by itself " + clockTime(after.Until, now) + " (in " + roughly(after.Until.Sub(now)) + ")"
	case wasOn && !before.Until.IsZero():
		report += ", does not end by itself any more"
	}
	return report
}

// offCommand takes sites out of maintenance.
type offCommand struct {
	call
	all bool
}

func (c *offCommand) run(args []string) (int, error) {
	list, err := c.admin.sites()
	if err != nil {
		return 0, err
	}
	picked, err := pick(list, args, c.all)
	if err != nil {
		return 0, err
	}
	s := c.newSwitching("Disabling", picked)
	for _, before := range picked {
		s.begin(before)
		var after api.Site
		err := c.admin.send(http.MethodDelete, api.SitePath(before.Site), nil, &after)
		s.end(after, reportOff(before, c.now()), err)
	}
	return s.finish()
}

func reportOff(before api.Site, now time.Time) string {
	if before.State == api.StateOff {
		return "done (was already off" + sinceWords(before.Since, now) + ")"
	}
	return "done"
}

// switching reports on each site in turn. A site that fails keeps no other from being
// switched or waited for.
type switching struct {
	*call
	doing    string
	multiple bool // more than one site is being switched
	switched []string
	failed   []error
}

func (c *call) newSwitching(doing string, sites []api.Site) *switching {
	return &switching{call: c, doing: doing, multiple: len(sites) > 1}
}

func (s *switching) begin(site api.Site) {
	fmt.Fprintf(s.stdout, "%s maintenance mode for %s... ", s.doing, site.Site)
}

func (s *switching) end(after api.Site, report string, err error) {
	if err != nil {
		fmt.Fprintln(s.stdout, "failed")
		s.failed = append(s.failed, err)
		return
	}
	fmt.Fprintln(s.stdout, report)
	if after.State == api.StateOn {
		warnOfPages(s.stderr, after, s.now())
	}
	s.switched = append(s.switched, after.Site)
}

func (s *switching) finish() (status int, err error) {
	if s.wait > 0 {
		w := s.newWaiter()
		w.multiple = s.multiple
		status, err = w.waitForEach(s.switched)
	}
	return status, errors.Join(append(s.failed, err)...)
}
