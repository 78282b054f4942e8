package cli

import (
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/caddyserver/caddy/v2"

	"example.com/caddy-maintenance/internal/api"
	"example.com/caddy-maintenance/internal/site"
)

// runWait is how long run waits for sites to be drained without --wait, after the time of
// --terminate-after.
const runWait = 30 * time.Second

const wasNotRun = "the command was not run"

func newRunCommand(env environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run [<site>...] [--all] [flags] -- <command> [<argument>...]",
		Short: "Runs a command while sites are in maintenance",
		Long: `
Puts sites into maintenance, waits until they are drained on every instance, and
runs the command. If the command exits with status 0, the sites are taken out of
maintenance.

If the command fails or is killed, or if your terminal goes away, the sites stay in
maintenance. The exit status is that of the command, or 128 plus the number of the
signal that ended it. Terminal input, Ctrl-C included, goes to the command.

If the sites are not drained in time, the command is not run, the sites are opened
again, and the exit status is 2. The time is 30s, after that of --terminate-after,
unless you give --wait. If a site is already in maintenance, or scheduled, nothing
changes, and the exit status is 1.`,
		Example: `  $ caddy maintenance run shop -- ./migrate.sh
  $ caddy maintenance run shop --message "Back at three." --wait 2m -- psql -f migrate.sql
  $ caddy maintenance run shop --hold 30s --terminate-after 10s -- systemctl restart shop`,
	}
	run := &runCommand{call: call{environment: env}, flags: cmd.Flags()}
	run.setUp(cmd, func(args []string) (int, error) { return run.run(args, cmd.ArgsLenAtDash()) })
	run.addWait(cmd)
	open := run.complete(func(s api.Site) bool { return s.State == api.StateOff && s.From.IsZero() })
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		names, _ := open(cmd, args, typed)
		return names, cobra.ShellCompDirectiveDefault // files, as a command follows
	}
	cmd.Flags().BoolVar(&run.all, "all", false, allUsage)
	addOptionFlags(cmd.Flags())
	_ = cmd.Flags().MarkHidden(site.OptionFrom) // refused, as run begins now
	return cmd
}

// runCommand runs a command while sites are in maintenance.
type runCommand struct {
	call
	flags *pflag.FlagSet
	all   bool
}

func (c *runCommand) run(args []string, dash int) (int, error) {
	if dash < 0 || dash == len(args) {
		return 0, errors.New("no command given; write it after -- (for example caddy maintenance run shop -- ./migrate.sh)")
	}
	if _, err := exec.LookPath(args[dash]); err != nil {
		return 0, fmt.Errorf("%w; nothing has changed", err)
	}
	command := exec.Command(args[dash], args[dash+1:]...) //nolint:gosec // which is what this is for
	if c.flags.Changed(site.OptionFrom) {
		return 0, errors.New("--from schedules maintenance, but run begins now; leave out --from")
	}
	options, err := readOptions(c.flags, c.now())
	if err != nil {
		return 0, err
	}
	if err := c.setWait(options); err != nil {
		return 0, err
	}
	picked, err := c.admin.pick(args[:dash], c.all, api.StateOn)
	if err != nil {
		return 0, hintAtQuotes(err, c.flags)
	}
	if err := c.refuseOthers(picked); err != nil {
		return 0, err
	}
	return c.runOn(picked, options, command)
}

// setWait sets how long to wait, so that requests are terminated before the wait is over.
func (c *runCommand) setWait(options map[string]any) error {
	text, _ := options[site.OptionTerminateAfter].(string)
	terminateAfter, _ := caddy.ParseDuration(text) // it is valid, or not set
	if c.wait == 0 {
		c.wait = terminateAfter + runWait
	}
	if c.wait <= terminateAfter {
		return fmt.Errorf("invalid --wait %q: must be longer than --terminate-after %s (for example %s)", c.waitText, text, roughly(terminateAfter+runWait))
	}
	return nil
}

// refuseOthers refuses sites that somebody else has switched or scheduled.
func (c *runCommand) refuseOthers(sites []api.Site) error {
	for _, s := range sites {
		switch {
		case isGone(s):
			return c.errGone(s)
		case !s.From.IsZero():
			return fmt.Errorf("site %s is scheduled to go into maintenance at %s; nothing has changed", s.Site, s.From.Format(time.RFC3339))
		case s.State == api.StateOn:
			return fmt.Errorf("site %s is already in maintenance; nothing has changed; after a run that failed, finish its work by hand, then: %s", s.Site, c.hint("off "+s.Site))
		case s.State != api.StateOff:
			return fmt.Errorf("site %s is not open: its state is %s; nothing has changed", s.Site, s.State)
		}
	}
	return nil
}

func (c *runCommand) runOn(sites []api.Site, options map[string]any, command *exec.Cmd) (int, error) {
	w := c.watchSignals()
	defer w.stop()
	closed, status, err := c.close(w, sites, options)
	if status == 0 && err == nil && !c.areOurs(closed) {
		status = exitIncomplete
	}
	if status != 0 || err != nil {
		w.finishing("interrupted while opening sites again", closed)
		opened, failed := c.openOurs(w, closed)
		fmt.Fprintln(c.stderr, wasNotRun)
		return max(status, opened), errors.Join(err, failed)
	}
	if err := w.start(command); err != nil {
		w.finishing("interrupted while opening sites again", closed)
		opened, failed := c.openOurs(w, closed)
		return opened, errors.Join(fmt.Errorf("%w; %s", err, wasNotRun), failed)
	}
	err = w.wait(command)
	var exited *exec.ExitError
	switch {
	case errors.As(err, &exited):
		fmt.Fprintf(c.stderr, "%s ended with %s; %s\n", command.Args[0], exited, c.staysOn(sitesOf(closed)))
		return exitStatus(exited), nil
	case err != nil:
		return 0, fmt.Errorf("%w; %s", err, c.staysOn(sitesOf(closed)))
	}
	w.finishing("the command has ended", closed)
	if lost := w.lostTerminal(); lost != "" {
		fmt.Fprintf(c.stderr, "%s; %s\n", lost, c.staysOn(sitesOf(closed)))
		return 128 + int(syscall.SIGHUP), nil
	}
	status, err = c.openOurs(w, closed)
	if err != nil {
		err = fmt.Errorf("the command succeeded, but switching off failed: %w", err)
	}
	return status, err
}

// closedSite is a site as this command left it.
type closedSite struct {
	api.Site
	etag string // of the switch; it changes with each change

	// Every instance has confirmed the switch. Until then, somebody may have closed the site on
	// another one, even within the same second. From then on, whoever closes it has opened it
	// before, which changes since, in whole seconds, or by; what changes only options keeps both.
	confirmed bool
}

func sitesOf(closed []closedSite) (list []api.Site) {
	for _, one := range closed {
		list = append(list, one.Site)
	}
	return list
}

// close puts sites into maintenance, unless somebody else has closed one meanwhile, and waits
// until they are drained. If one fails, it closes no more and does not wait, nor if one turns out
// to be closed by somebody else.
func (c *runCommand) close(w *signalWatch, sites []api.Site, options map[string]any) (closed []closedSite, status int, err error) {
	s := c.newSwitching("Enabling", toSwitch(sites))
	s.unlessDrained = "opening it again"
	for i := range s.sites {
		one := &s.sites[i]
		w.note(one.before)
		own, link := c.withSecret(one.before.Site, options, c.flags)
		var header http.Header
		header, one.err = c.admin.do(http.MethodPut, api.SitePath(one.before.Site), http.Header{"If-None-Match": {"*"}}, c.signed(own), &one.after)
		if one.err != nil {
			if !isPreconditionFailed(one.err) {
				one.err = fmt.Errorf("%w; %s may be in maintenance all the same; to open it: %s", one.err, one.before.Site, c.hint("off "+one.before.Site))
			}
			s.sites, s.wait = s.sites[:i+1], 0
			break
		}
		closed = append(closed, closedSite{Site: one.after, etag: header.Get("Etag")})
		_, one.consequence = noteOn(one.before, one.after, c.now())
		one.consequence += link
	}
	names, status, err := s.reportEach()
	if !c.areOurs(closed) {
		return closed, max(status, exitIncomplete), err
	}
	for i := range closed {
		closed[i].confirmed = status == 0 && err == nil
	}
	waited, notDrained := s.waitForEach(names)
	return closed, max(status, waited), errors.Join(err, notDrained)
}

// areOurs reports whether all sites are as this command left them.
func (c *runCommand) areOurs(closed []closedSite) bool {
	return !slices.ContainsFunc(closed, func(one closedSite) bool {
		_, otherwise, err := c.look(one)
		return otherwise != "" || err != nil
	})
}

// look returns the ETag of a site that is as this command left it, except that its options may
// have changed. Of another one, it says what happened to it.
func (c *runCommand) look(one closedSite) (etag, otherwise string, err error) {
	var now api.Site
	name, toOpen := one.Site.Site, c.hint("off "+one.Site.Site)
	header, err := c.admin.do(http.MethodGet, api.SitePath(name), nil, nil, &now)
	if err == nil && now.State == api.StateUnknown {
		err = errors.New(now.Error)
	}
	etag = header.Get("Etag")
	switch {
	case err != nil:
		return "", "", fmt.Errorf("it is not known whether %s is still in maintenance: %w; to open it: %s", name, err, toOpen)
	case isGone(now):
		return "", "a reload removed the directive of " + name + ", and nothing has blocked its requests since; to end its maintenance: " + toOpen, nil
	case now.State != api.StateOn:
		return "", name + " is already open: its maintenance ended by itself, or somebody switched it off", nil
	case etag == one.etag, one.confirmed && now.Since.Equal(one.Since) && now.By == one.By:
		return etag, "", nil
	}
	return "", "somebody else switched " + name + " meanwhile; it stays in maintenance; to open it: " + toOpen, nil
}

// openOurs opens the sites that are as this command left them. It leaves the others alone, and
// says what happened to them.
func (c *runCommand) openOurs(w *signalWatch, closed []closedSite) (status int, err error) {
	var ours []switched
	for _, one := range closed {
		done, otherwise := c.reopen(one)
		if otherwise != "" {
			fmt.Fprintln(c.stderr, otherwise)
			status = exitIncomplete
		} else {
			ours = append(ours, done)
		}
		if done.err == nil {
			w.finished(one.Site)
		}
	}
	if len(ours) == 0 {
		return status, nil
	}
	c.wait = 0
	s := c.newSwitching("Disabling", ours)
	opened, err := s.finish()
	return max(status, opened), err
}

// maxLooks is how often run looks at a site that changes just when it is to be opened.
const maxLooks = 3

// reopen opens a site if it is as this command left it. If not, it says what happened to it.
func (c *runCommand) reopen(one closedSite) (done switched, otherwise string) {
	done.before = one.Site
	for range maxLooks {
		etag, otherwise, err := c.look(one)
		if otherwise != "" || err != nil {
			done.err = err
			return done, otherwise
		}
		_, done.err = c.admin.do(http.MethodDelete, api.SitePath(one.Site.Site), http.Header{"If-Match": {etag}}, nil, &done.after)
		if !isPreconditionFailed(done.err) {
			break
		}
	}
	if done.err != nil {
		done.err = fmt.Errorf("%w; %s", done.err, c.staysOn([]api.Site{one.Site}))
	}
	return done, ""
}

func isPreconditionFailed(err error) bool {
	refused := new(apiError)
	return errors.As(err, &refused) && refused.status == http.StatusPreconditionFailed
}

// staysOn says that sites stay in maintenance, and how to open them.
func (c *call) staysOn(sites []api.Site) string {
	if len(sites) == 1 {
		return c.howToOpen(sites, "stays")
	}
	return c.howToOpen(sites, "stay")
}

// howToOpen says what sites do, such as stay, and how to open them.
func (c *call) howToOpen(sites []api.Site, do string) string {
	names, them := siteNames(sites), "them"
	if len(names) == 1 {
		them = "it"
	}
	return strings.Join(names, ", ") + " " + do + " in maintenance; to open " + them + ": " + c.hint("off "+strings.Join(names, " "))
}

// exitStatus returns the exit status of a command as a shell reports it.
func exitStatus(e *exec.ExitError) int {
	if status, ok := e.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return e.ExitCode()
}
