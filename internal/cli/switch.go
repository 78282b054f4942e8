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
		return 0, hintAtQuotes(err, c.flags)
	}
	doing, want := "Enabling", api.StateOn
	if options[site.OptionFrom] != nil {
		doing, want = "Scheduling", api.StateOff
		if c.wait > 0 {
			return 0, errors.New("--wait is for a site that goes into maintenance now; leave out --from or --wait")
		}
	}
	signals := new(signalWatch)
	if want == api.StateOn {
		signals = c.watchSignals()
		defer signals.stop()
	}
	s := c.newSwitching(doing, toSwitch(picked))
	for i := range s.sites {
		one := &s.sites[i]
		signals.note(one.before)
		own, link := c.withSecret(one.before.Site, options, c.flags)
		one.before, one.after, one.err = c.turnOn(one.before, own)
		one.note, one.consequence = noteOn(one.before, one.after, c.now())
		one.consequence += link
	}
	return s.finish()
}

// withSecret makes a secret with --with-bypass-secret, and says what to open. Each site gets its
// own, so that a tester of one does not get into another.
func (c *call) withSecret(name string, options map[string]any, flags *pflag.FlagSet) (own map[string]any, link string) {
	if !makesSecret(flags) {
		return options, ""
	}
	own = maps.Clone(options)
	secret := rand.Text()
	own[site.OptionBypassSecret] = secret
	if at := c.admin.siteURL(name); at != "" {
		return own, fmt.Sprintf("\nTo get in, open %s%s%s", at, site.LinkPrefix, secret)
	}
	return own, fmt.Sprintf("\nTo get in, open %s%s on the site", site.LinkPrefix, secret)
}

// turnOn switches the site on. If it is on already, or scheduled, only the options given change.
// Maintenance that is scheduled begins now if no option is given, and stays as it is if it is not
// clear what is meant. turnOn also returns the site as it was before: one that was on when it was
// listed may be off by now.
func (c *onCommand) turnOn(listed api.Site, options map[string]any) (before, after api.Site, err error) {
	path := api.SitePath(listed.Site)
	if isGone(listed) {
		return listed, after, c.errGone(listed)
	}
	if isScheduled := !listed.From.IsZero(); isScheduled || listed.State == api.StateOn {
		given := options
		from, hasFrom := options[site.OptionFrom]
		switch {
		case isScheduled && !hasFrom && len(options) > 0:
			return listed, after, fmt.Errorf("%s is scheduled to go into maintenance at %s; give --from with a time to change that, or --from \"\" to begin now",
				listed.Site, listed.From.Format(time.RFC3339))
		case isScheduled && from == nil: // begins now, by whoever says so
			given = c.signed(options)
			given[site.OptionFrom] = nil
		}
		err = c.admin.send(http.MethodPatch, path, given, &after)
		if refused := new(apiError); !errors.As(err, &refused) || refused.status != http.StatusConflict {
			return listed, after, err
		}
		listed.State, listed.From = api.StateOff, time.Time{}
	}
	err = c.admin.send(http.MethodPut, path, c.signed(options), &after)
	return listed, after, err
}

// signed returns the options with the name of the user who gives them.
func (c *call) signed(options map[string]any) map[string]any {
	signed := maps.Clone(options)
	signed[site.OptionBy] = c.by()
	return signed
}

// noteOn returns what was so before, and what follows from the switch.
func noteOn(before, after api.Site, now time.Time) (note, consequence string) {
	wasOn := before.State == api.StateOn
	switch {
	case wasOn:
		note = "was already on" + sinceWords(before.Since, now)
	case !before.From.IsZero():
		note = scheduledNote(before, now)
	case before.State == api.StateUnknown && !after.From.IsZero():
		note = "its state was unknown; it is open until then"
	}
	if !after.From.IsZero() {
		consequence = ", begins by itself " + clockTime(after.From, now) + in(after.From, now)
	}
	switch {
	case !after.Until.IsZero():
		consequence += ", ends by itself " + clockTime(after.Until, now) + in(after.Until, now)
	case wasOn && !before.Until.IsZero():
		consequence += ", does not end by itself any more"
	}
	return note, consequence
}

func scheduledNote(before api.Site, now time.Time) string {
	return "was scheduled for " + clockTime(before.From, now)
}

func in(t, now time.Time) string {
	return " (in " + roughly(t.Sub(now)) + ")"
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
	s := c.newSwitching("Disabling", toSwitch(picked))
	for i := range s.sites {
		one := &s.sites[i]
		one.err = c.admin.send(http.MethodDelete, api.SitePath(one.before.Site), nil, &one.after)
		switch {
		case !one.before.From.IsZero():
			one.note = scheduledNote(one.before, c.now())
		case one.before.State == api.StateOff:
			one.note = "was already off" + sinceWords(one.before.Since, c.now())
		}
	}
	return s.finish()
}

// switching switches all sites on this instance, and then reports on each in turn when every
// instance has confirmed it. If one site fails, the others are switched and waited for all the
// same.
type switching struct {
	*call
	doing string
	sites []switched
	began time.Time

	unlessDrained string          // what happens to a site that is not drained in time
	silent        map[string]bool // names of instances that did not answer
}

// switched is a site that is being switched.
type switched struct {
	before, after     api.Site
	note, consequence string // what was so before, and what follows
	err               error
}

func (c *call) newSwitching(doing string, sites []switched) *switching {
	s := &switching{call: c, doing: doing, sites: sites, began: c.now(), unlessDrained: "maintenance stays on", silent: make(map[string]bool)}
	s.begin(sites[0].before.Site)
	return s
}

// toSwitch are sites before they are switched.
func toSwitch(sites []api.Site) (list []switched) {
	for _, before := range sites {
		list = append(list, switched{before: before})
	}
	return list
}

func (s *switching) begin(site string) {
	fmt.Fprintf(s.stdout, "%s maintenance mode for %s... ", s.doing, site)
}

func (s *switching) finish() (status int, err error) {
	names, status, err := s.reportEach()
	waited, notDrained := s.waitForEach(names)
	return max(status, waited), errors.Join(err, notDrained)
}

// reportEach reports on each site, and returns the names of those that have been switched.
func (s *switching) reportEach() (names []string, status int, err error) {
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
	s.hintAtForget()
	return names, status, errors.Join(failed...)
}

// waitForEach waits until the sites are drained, if there is a time to wait for that.
func (s *switching) waitForEach(names []string) (status int, err error) {
	if s.wait == 0 {
		return 0, nil
	}
	w := s.newWaiter()
	w.multiple, w.unlessDrained = len(s.sites) > 1, s.unlessDrained
	return w.waitForEach(names)
}

// report waits until the instances have confirmed the switch of a site, and says which have not.
func (s *switching) report(one switched) (incomplete bool, err error) {
	if one.err != nil {
		return false, one.err
	}
	f, err := s.confirm(one.after)
	if err != nil {
		return false, err
	}
	words, incomplete := f.done(one.after, one.note, s.now())
	fmt.Fprintln(s.stdout, words+one.consequence)
	f.warnOfClocks(s.stderr)
	for _, i := range f.list {
		if i.State == api.InstanceSilent {
			s.silent[f.name(i)] = true
		}
	}
	if one.after.State == api.StateOn || !one.after.From.IsZero() {
		warnOfPages(s.stderr, one.after, s.now())
	}
	return incomplete, nil
}

// hintAtForget says what to do about silent instances that have ended.
func (s *switching) hintAtForget() {
	if len(s.silent) == 0 {
		return
	}
	subject, name := "an instance", "<instance>"
	if len(s.silent) == 1 {
		for subject = range s.silent {
			name = subject
		}
	}
	fmt.Fprintf(s.stderr, "if %s has ended for good: %s\n", subject, s.hint("forget "+name))
}

// confirm returns when every instance has confirmed what is stored of the site, or is known not
// to confirm it.
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
		if len(list) > 1 && after.From.IsZero() { // a scheduled time may have come meanwhile
			var now api.Site
			if err := s.admin.send(http.MethodGet, api.SitePath(after.Site), nil, &now); err == nil && now.State != after.State {
				err = fmt.Errorf("%s is %s again: somebody switched it, or its maintenance ended by itself, before every instance had confirmed", after.Site, now.State)
				if now.State == api.StateOn {
					err = fmt.Errorf("%w; to open it: %s", err, s.hint("off "+after.Site))
				}
				return f, err
			}
		}
		return f, nil
	}
}
