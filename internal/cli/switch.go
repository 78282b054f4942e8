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
	picked, err := c.admin.pick(args, c.all, api.StateOn)
	if err != nil {
		return 0, err
	}
	made := makesSecret(c.flags)
	s := c.newSwitching("Enabling", api.StateOn, picked)
	for i := range s.sites {
		if made { // one for each site, so that a tester of one does not get into another
			options = maps.Clone(options)
			options[site.OptionBypassSecret] = rand.Text()
		}
		one := &s.sites[i]
		one.before, one.after, one.err = c.turnOn(one.before, options)
		one.note, one.consequence = noteOn(one.before, one.after, c.now())
		if made {
			one.consequence += fmt.Sprintf("\nTo get in, open %s%s on the site", site.LinkPrefix, options[site.OptionBypassSecret])
		}
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

// noteOn returns what was so before, and what will come of the switch.
func noteOn(before, after api.Site, now time.Time) (note, consequence string) {
	wasOn := before.State == api.StateOn
	if wasOn {
		note = "was already on" + sinceWords(before.Since, now)
	}
	switch {
	case !after.Until.IsZero():
		consequence = ", ends by itself " + clockTime(after.Until, now) + " (in " + roughly(after.Until.Sub(now)) + ")"
	case wasOn && !before.Until.IsZero():
		consequence = ", does not end by itself any more"
	}
	return note, consequence
}

// offCommand takes sites out of maintenance.
type offCommand struct {
	call
	all bool
}

func (c *offCommand) run(args []string) (int, error) {
	picked, err := c.admin.pick(args, c.all, api.StateOff)
	if err != nil {
		return 0, err
	}
	if len(picked) == 0 {
		fmt.Fprintln(c.stdout, "No site is in maintenance")
		return 0, nil
	}
	s := c.newSwitching("Disabling", api.StateOff, picked)
	for i := range s.sites {
		one := &s.sites[i]
		one.err = c.admin.send(http.MethodDelete, api.SitePath(one.before.Site), nil, &one.after)
		if one.before.State == api.StateOff {
			one.note = "was already off" + sinceWords(one.before.Since, c.now())
		}
	}
	return s.finish()
}

// switching switches sites on this instance, all of them at once, and then reports on each
// in turn when every instance has confirmed it. A site that fails keeps no other from being
// switched or waited for.
type switching struct {
	*call
	doing string
	want  string // the state that the sites are to have
	sites []switched
	began time.Time
}

// switched is a site that is being switched.
type switched struct {
	before, after     api.Site
	note, consequence string // what was so before, and what will come of it
	err               error
}

func (c *call) newSwitching(doing, want string, sites []api.Site) *switching {
	s := &switching{call: c, doing: doing, want: want, began: c.now()}
	for _, before := range sites {
		s.sites = append(s.sites, switched{before: before})
	}
	s.begin(sites[0].Site)
	return s
}

func (s *switching) begin(site string) {
	fmt.Fprintf(s.stdout, "%s maintenance mode for %s... ", s.doing, site)
}

func (s *switching) finish() (status int, err error) {
	var names []string
	var failed []error
	for i, one := range s.sites {
		if i > 0 {
			s.begin(one.before.Site)
		}
		incomplete, err := s.report(one)
		if err != nil {
			fmt.Fprintln(s.stdout, "failed")
			failed = append(failed, err)
			continue
		}
		if incomplete {
			status = exitIncomplete
		}
		names = append(names, one.after.Site)
	}
	if s.wait > 0 {
		w := s.newWaiter()
		w.multiple = len(s.sites) > 1
		waited, err := w.waitForEach(names)
		status, failed = max(status, waited), append(failed, err)
	}
	return status, errors.Join(failed...)
}

// report says when every instance has confirmed the switch of a site, and which one has not.
func (s *switching) report(one switched) (incomplete bool, err error) {
	if one.err != nil {
		return false, one.err
	}
	f, err := s.confirm(one.after)
	if err != nil {
		return false, err
	}
	words, incomplete := f.done(s.want, one.note, s.now())
	fmt.Fprintln(s.stdout, words+one.consequence)
	f.warnOfClocks(s.stderr)
	if one.after.State == api.StateOn {
		warnOfPages(s.stderr, one.after, s.now())
	}
	return incomplete, nil
}

// confirm returns when every instance has confirmed what is stored of the site, or is known
// not to.
func (s *switching) confirm(after api.Site) (fleet, error) {
	for ; ; time.Sleep(pollInterval) {
		list, err := s.admin.instances(after.Site, 0)
		if err != nil {
			return fleet{own: after.Instance, failure: err}, nil
		}
		f := fleet{list: list}
		if f.some(isPending) || f.some(isLeaving) && s.now().Before(s.began.Add(leavingPatience)) {
			continue
		}
		if len(list) > 1 {
			var now api.Site
			if err := s.admin.send(http.MethodGet, api.SitePath(after.Site), nil, &now); err == nil && now.State != s.want {
				return f, fmt.Errorf("%s is %s again: somebody has switched it, or its time was over, before every instance had confirmed", after.Site, now.State)
			}
		}
		return f, nil
	}
}
