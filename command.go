package maintenance

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/caddyserver/caddy/v2"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "maintenance",
		Usage: "[<site>] [--json] [--wait <duration>] [--address <interface>] [--config <path> [--adapter <name>]]",
		Short: "Shows and switches the maintenance mode of sites",
		Long: `
Shows whether a site is in maintenance: on, off or unknown. Without a site it
shows the only one there is, or all of them in a table.

While a site is in maintenance, Caddy answers its requests with a 503 and a
page; nothing about the app behind Caddy changes:

	$ caddy maintenance on shop --message "Back at three."
	Enabling maintenance mode for shop... done
	$ caddy maintenance shop
	on
	$ caddy maintenance off shop
	Disabling maintenance mode for shop... done

The sites are those that the running config has a maintenance directive for.
With --wait the command returns when the site is drained, that is, when no
request that was let in before is still in flight on this instance. It exits
with status 2 if that takes longer than the time given.

With --json it prints the admin API's answer: one site if a site is named,
else an array.`,
		CobraFunc: func(cmd *cobra.Command) {
			c := &command{}
			c.setUp(cmd, c.showStatus)
			cmd.Args = oneSite
			cmd.Flags().BoolVar(&c.json, "json", false, "Print the admin API's answer")
			cmd.AddCommand(onCommand(), offCommand())
		},
	})
}

func oneSite(_ *cobra.Command, args []string) error {
	if len(args) > 1 {
		return errors.New("this shows one site, or all if none is named; sites are switched with: caddy maintenance on|off <site>")
	}
	return nil
}

func onCommand() *cobra.Command {
	c := &command{given: make(map[string]any)}
	cmd := &cobra.Command{
		Use:   "on [<site>...] [--all]",
		Short: "Puts sites into maintenance",
		Long: `
Puts sites into maintenance. Once this says done, no new request gets through
this instance, and others on the same storage follow; with --wait it returns when
those that were let in before have ended too.

Of a site that is already in maintenance only the options that are given are
changed. An empty value clears an option.`,
		Example: `  $ caddy maintenance on shop --wait 30s
  $ caddy maintenance on shop --message "Back at three." --until 15:00
  $ caddy maintenance on shop --for 20m
  $ caddy maintenance on --all`,
	}
	c.setUp(cmd, c.turnOn)
	flags := cmd.Flags()
	flags.BoolVar(&c.all, "all", false, "Switch all sites of the running config")
	flags.StringVar(&c.message, "message", "", "A sentence for visitors, plain text of at most 1,000 characters")
	flags.StringVar(&c.retryAfter, "retry-after", "", "How long clients are told to wait, at least 1s (default: as configured)")
	flags.StringVar(&c.until, "until", "", "When maintenance ends by itself, as 2006-01-02T15:04:05Z (RFC 3339) or as 15:04, the next such time in local time")
	flags.StringVar(&c.duration, "for", "", "How long until maintenance ends by itself, such as 30m")
	flags.StringVar(&c.hold, "hold", "", "Hold each request up to this long before it gets the page, at most 5m")
	flags.StringVar(&c.terminateAfter, "terminate-after", "", "Cut off what is still in flight this long after, WebSockets and downloads included")
	flags.StringVar(&c.secret, "bypass-secret", "", "Let in who opens /.maintenance/<secret>, 16 to 128 of A-Z a-z 0-9 - _ (also --secret)")
	flags.BoolVar(&c.makeSecret, "with-bypass-secret", false, "Make such a secret, and print what to open (also --with-secret)")
	flags.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		switch name {
		case "secret", "with-secret":
			name = strings.Replace(name, "secret", "bypass-secret", 1)
		}
		return pflag.NormalizedName(name)
	})
	return cmd
}

func offCommand() *cobra.Command {
	c := &command{}
	cmd := &cobra.Command{
		Use:   "off [<site>...] [--all]",
		Short: "Takes sites out of maintenance",
		Long: `
Takes sites out of maintenance. Once this says done, requests get through this
instance again, and others on the same storage follow.`,
		Example: `  $ caddy maintenance off shop
  $ caddy maintenance off --all`,
	}
	c.setUp(cmd, c.turnOff)
	cmd.Flags().BoolVar(&c.all, "all", false, "Switch all sites of the running config")
	return cmd
}

// command is one call of the command line.
type command struct {
	out, errOut io.Writer
	changed     func(flag string) bool // whether a flag was given

	address, config, adapter string
	all, json                bool
	wait                     string
	message, retryAfter      string
	until, duration          string
	hold, terminateAfter     string
	secret                   string
	makeSecret               bool

	endpoint string         // the admin API's address
	limit    time.Duration  // of --wait, 0 without it
	given    map[string]any // options to set, as the API takes them
	several  bool           // more than one site is being switched
	late     bool           // a site was not drained in time, which has been said
}

// setUp adds the flags that all commands have, and run as what they do.
func (c *command) setUp(cmd *cobra.Command, run func(sites []string) error) {
	flags := cmd.Flags()
	flags.StringVar(&c.address, "address", "", "Address of the administration API listener, if not the default or from the config")
	flags.StringVarP(&c.config, "config", "c", "", "Configuration file to take the address from")
	flags.StringVarP(&c.adapter, "adapter", "a", "", "Name of the config adapter to apply")
	if cmd.Name() != "off" {
		flags.StringVar(&c.wait, "wait", "", "Wait this long for requests in flight to end, such as 30s")
	}
	cmd.ValidArgsFunction = c.complete
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := c.run(cmd, args, run); err != nil || !c.late {
			return err
		}
		cmd.SilenceErrors = true
		return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) { return 2, nil })(cmd, args)
	}
}

func (c *command) run(cmd *cobra.Command, args []string, run func(sites []string) error) error {
	c.out, c.errOut, c.changed = cmd.OutOrStdout(), cmd.ErrOrStderr(), cmd.Flags().Changed
	if c.changed("wait") {
		var err error
		if c.limit, err = caddy.ParseDuration(c.wait); err != nil || c.limit <= 0 {
			return fmt.Errorf("--wait: %q given, a duration above zero is accepted, such as 30s", c.wait)
		}
	}
	var err error
	c.endpoint, err = caddycmd.DetermineAdminAPIAddress(c.address, nil, c.config, c.adapter)
	if err != nil {
		return fmt.Errorf("finding the address of Caddy's admin API: %w", err)
	}
	return run(args)
}

// collectOptions turns the flags that were given into options of the API.
func (c *command) collectOptions(now time.Time) error {
	if c.changed("for") {
		if c.changed("until") {
			return errors.New("--for and --until both say when maintenance ends; give one of them")
		}
		d, err := caddy.ParseDuration(c.duration)
		if c.duration != "" && (err != nil || d <= 0) {
			return fmt.Errorf("--for: %q given, a duration above zero is accepted, such as 30m", c.duration)
		}
		c.given["until"] = nil
		if c.duration != "" {
			c.given["until"] = now.Add(d).UTC().Truncate(time.Millisecond)
		}
	}
	if clock, err := time.Parse("15:04", c.until); err == nil {
		c.until = nextTime(now, clock.Hour(), clock.Minute()).Format(time.RFC3339)
	}
	if c.makeSecret && c.changed("bypass-secret") {
		return errors.New("--bypass-secret gives a secret and --with-bypass-secret makes one; give one of them")
	}
	for _, option := range []struct{ flag, name, value string }{
		{"message", "message", c.message},
		{"retry-after", "retry_after", c.retryAfter},
		{"until", "until", c.until},
		{"hold", "hold", c.hold},
		{"terminate-after", "terminate_after", c.terminateAfter},
		{"bypass-secret", "bypass_secret", c.secret},
	} {
		if !c.changed(option.flag) {
			continue
		}
		c.given[option.name] = nil
		if option.value == "" {
			continue
		}
		c.given[option.name] = option.value
		err := new(options).setText(option.name, option.value)
		if err != nil && option.flag == "until" {
			err = fmt.Errorf("%w; a time of day such as 15:04 is accepted too, and --for takes a duration", err)
		}
		if err != nil {
			return fmt.Errorf("--%s: %w", option.flag, err)
		}
	}
	return nil
}

// nextTime returns the next time that the local clock shows hour and minute.
func nextTime(now time.Time, hour, minute int) time.Time {
	next := time.Date(now.Year(), now.Month(), now.Day(), hour, minute, 0, 0, now.Location())
	if !next.After(now) {
		next = time.Date(now.Year(), now.Month(), now.Day()+1, hour, minute, 0, 0, now.Location())
	}
	return next
}

// Status

func (c *command) showStatus(args []string) error {
	list, err := c.sites()
	if err != nil {
		return err
	}
	if len(args) == 0 && len(list) > 1 && c.limit == 0 {
		if c.json {
			return c.printJSON("")
		}
		for _, site := range list {
			c.warnOfPages(site)
		}
		return c.printTable(list)
	}
	site, err := pickOne(list, args)
	if err != nil {
		return err
	}
	if !c.json {
		c.warnOfPages(site)
	}
	var waited error
	if c.limit > 0 {
		if site.State != "on" {
			return fmt.Errorf("%s is not in maintenance on this instance, its state is %s; if another has just switched it on, try again in a moment",
				site.Site, site.State)
		}
		waited = c.waitForEach([]string{site.Site})
	}
	switch {
	case c.json && len(args) == 0:
		err = c.printJSON("")
	case c.json:
		err = c.printJSON(site.Site)
	case c.limit == 0:
		fmt.Fprintln(c.out, site.State)
	}
	return errors.Join(waited, err)
}

func (c *command) printJSON(site string) error {
	var answer json.RawMessage
	if err := c.request(http.MethodGet, siteURI(site), nil, &answer); err != nil {
		return err
	}
	_, err := fmt.Fprintf(c.out, "%s\n", answer)
	return err
}

func (c *command) printTable(list []siteStatus) error {
	table := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "SITE\tSTATE\tSINCE\tUNTIL\tIN FLIGHT\tMESSAGE")
	for _, s := range list {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\t%s\n", s.Site, s.State, clockTime(s.Since), clockTime(s.Until), s.InFlight, s.Message)
	}
	return table.Flush()
}

// clockTime is a time as an operator reads it, in local time.
func clockTime(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04 MST")
}

// Switching

func (c *command) turnOn(args []string) error {
	if err := c.collectOptions(time.Now()); err != nil {
		return err
	}
	return c.switchEach("Enabling", args, func(before siteStatus) (said string, after siteStatus, err error) {
		if c.makeSecret {
			c.given["bypass_secret"] = rand.Text()
		}
		if before.State == "on" {
			err = c.request(http.MethodPatch, siteURI(before.Site), c.given, &after)
			if refused := new(apiError); errors.As(err, &refused) && refused.status == http.StatusConflict {
				before.State = "off" // since it was listed
			}
		}
		if before.State != "on" {
			err = c.request(http.MethodPut, siteURI(before.Site), c.given, &after)
		}
		if err != nil {
			return "", after, err
		}
		said = "done"
		if before.State == "on" {
			said += " (was already on" + sinceWords(before.Since) + ")"
		}
		switch {
		case after.Until.IsZero() && !before.Until.IsZero() && before.State == "on":
			said += ", does not end by itself any more"
		case !after.Until.IsZero():
			said += ", ends by itself " + clockTime(after.Until) + " (in " + roughly(time.Until(after.Until)) + ")"
		}
		if c.makeSecret {
			said += "\nTo get in, open " + linkPrefix + c.given["bypass_secret"].(string) + " on the site"
		}
		return said, after, nil
	})
}

func (c *command) turnOff(args []string) error {
	return c.switchEach("Disabling", args, func(before siteStatus) (said string, after siteStatus, err error) {
		err = c.request(http.MethodDelete, siteURI(before.Site), nil, &after)
		said = "done"
		if before.State == "off" {
			said += " (was already off" + sinceWords(before.Since) + ")"
		}
		return said, after, err
	})
}

// switchEach switches the sites that args name, and waits for them if that was
// asked for. One that fails does not keep the others from being switched.
func (c *command) switchEach(doing string, args []string, change func(siteStatus) (said string, after siteStatus, err error)) error {
	list, err := c.sites()
	if err != nil {
		return err
	}
	picked, err := c.pick(list, args)
	if err != nil {
		return err
	}
	c.several = len(picked) > 1
	var failed []error
	var switched []string
	for _, site := range picked {
		fmt.Fprintf(c.out, "%s maintenance mode for %s... ", doing, site.Site)
		said, after, err := change(site)
		if err != nil {
			fmt.Fprintln(c.out, "failed")
			failed = append(failed, err)
			continue
		}
		fmt.Fprintln(c.out, said)
		if after.State == "on" {
			c.warnOfPages(after)
		}
		switched = append(switched, site.Site)
	}
	if c.limit > 0 {
		failed = append(failed, c.waitForEach(switched))
	}
	return errors.Join(failed...)
}

// warnOfPages says what the site's visitors do not see.
func (c *command) warnOfPages(site siteStatus) {
	see := "see"
	if site.State == "off" {
		see = "would see"
	}
	for _, p := range site.Pages {
		seen := "the default page"
		if p.State == "stale" {
			seen = "the copy of " + clockTime(p.FetchedAt)
		}
		if p.State == "fetching" {
			fmt.Fprintf(c.errOut, "warning: %s: page %s is still being fetched, and visitors %s the default page until then\n", site.Site, p.Source, see)
		}
		if p.Error != "" {
			fmt.Fprintf(c.errOut, "warning: %s: page %s could not be fetched, and visitors %s %s: %s\n", site.Site, p.Source, see, seen, p.Error)
		}
		if site.Message != "" && !p.ShowsMessage {
			fmt.Fprintf(c.errOut, "warning: %s: page %s does not show the message; write %s where it belongs\n", site.Site, p.Source, messagePlaceholder)
		}
	}
}

func sinceWords(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return " since " + clockTime(t)
}

// roughly is a duration without what is too small to matter.
func roughly(d time.Duration) string {
	if d >= time.Minute {
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	}
	return d.Round(time.Second).String()
}

// Waiting

// waitForEach waits for all sites, however many of them are not drained in
// time.
func (c *command) waitForEach(sites []string) error {
	deadline := time.Now().Add(c.limit)
	var failed []error
	for _, site := range sites {
		failed = append(failed, c.waitFor(site, deadline))
	}
	return errors.Join(failed...)
}

// waitFor returns when nothing is in flight or the time is over, and says how
// many requests are until then.
func (c *command) waitFor(name string, deadline time.Time) error {
	progress := newProgressLine(c.out)
	if c.json {
		progress = newProgressLine(c.errOut)
	}
	defer progress.end()
	for {
		// A second at a time, to tell how it goes.
		step := min(time.Second, max(time.Until(deadline), time.Millisecond))
		var site siteStatus
		if err := c.request(http.MethodGet, siteURI(name)+"?wait="+step.String(), nil, &site); err != nil {
			return fmt.Errorf("waiting for %s to be drained: %w", name, err)
		}
		switch {
		case site.State == "off":
			return fmt.Errorf("%s is open: while this waited for it to be drained, it was switched off or its maintenance ended by itself", name)
		case site.InFlight == 0:
			progress.end()
			switch {
			case c.json:
			case c.several:
				fmt.Fprintf(c.out, "%s drained (%s)\n", name, whereDrained(site))
			default:
				fmt.Fprintf(c.out, "drained (%s)\n", whereDrained(site))
			}
			return nil
		case !time.Now().Before(deadline):
			progress.end()
			fmt.Fprintf(c.errOut, "%s: not drained in %s, %d still in flight on %s; maintenance stays on\n",
				name, c.limit, site.InFlight, site.Instance)
			c.late = true
			return nil
		}
		progress.show(fmt.Sprintf("%s: %d in flight", name, site.InFlight))
	}
}

func whereDrained(site siteStatus) string {
	where := "this instance, " + site.Instance
	if site.SyncInterval == "off" {
		return where + "; others on the same storage follow when they reload"
	}
	return where + "; others on the same storage follow within " + site.SyncInterval
}

// progressLine is one line that is written anew on a terminal, and a line for
// each change elsewhere.
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

// Finding sites

// sites returns all sites of the running config.
func (c *command) sites() ([]siteStatus, error) {
	var list []siteStatus
	if err := c.request(http.MethodGet, adminPath, nil, &list); err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, errors.New("no site of the running config can be switched; add a directive such as \"maintenance shop\" to a site block and reload Caddy")
	}
	return list, nil
}

// pick returns the sites named, all of them with --all, or the only one there
// is.
func (c *command) pick(list []siteStatus, args []string) ([]siteStatus, error) {
	if c.all {
		if len(args) > 0 {
			return nil, errors.New("--all switches every site; name sites or give --all, not both")
		}
		return list, nil
	}
	if len(args) == 0 {
		if len(list) > 1 {
			return nil, fmt.Errorf("%w, or give --all", errSeveral(list))
		}
		return list, nil
	}
	var picked []siteStatus
	named := make(map[string]bool)
	for _, arg := range args {
		site, err := pickOne(list, []string{arg})
		if err != nil {
			return nil, err
		}
		if !named[site.Site] {
			picked = append(picked, site)
		}
		named[site.Site] = true
	}
	return picked, nil
}

// pickOne returns the site named, or the only one there is.
func pickOne(list []siteStatus, args []string) (siteStatus, error) {
	if len(args) == 0 {
		if len(list) > 1 {
			return siteStatus{}, errSeveral(list)
		}
		return list[0], nil
	}
	for _, site := range list {
		if site.Site == foldASCII(args[0]) {
			return site, nil
		}
	}
	return siteStatus{}, fmt.Errorf("unknown site %q; the sites of the running config are: %s (caddy maintenance --help shows the commands)",
		args[0], names(list))
}

func errSeveral(list []siteStatus) error {
	return fmt.Errorf("there are several sites; name one of: %s", names(list))
}

func names(list []siteStatus) string {
	var names []string
	for _, site := range list {
		names = append(names, site.Site)
	}
	return strings.Join(names, ", ")
}

// complete offers the names of sites to the shell.
func (c *command) complete(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var err error
	c.endpoint, err = caddycmd.DetermineAdminAPIAddress(c.address, nil, c.config, c.adapter)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	list, _ := c.sites()
	var names []string
	for _, site := range list {
		names = append(names, site.Site)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// Admin API

func siteURI(name string) string {
	if name == "" {
		return adminPath
	}
	return adminPath + "/" + name
}

// apiError is a refusal by the admin API.
type apiError struct {
	status  int
	message string
}

func (e *apiError) Error() string { return e.message }

// request sends body, if there is one, and decodes the answer.
func (c *command) request(method, uri string, body map[string]any, answer any) error {
	var reader io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return err
		}
		reader = bytes.NewReader(encoded)
	}
	// Each request has a connection of its own, which nothing else would close.
	header := http.Header{"Connection": {"close"}}
	response, err := caddycmd.AdminAPIRequest(c.endpoint, method, uri, header, reader)
	if err != nil {
		return c.explain(err)
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(answer); err != nil {
		return fmt.Errorf("reading the admin API's answer: %w", err)
	}
	return nil
}

// refusal is how AdminAPIRequest (in Caddy's cmd/commandfuncs.go) reports a
// status of 400 or more.
var refusal = regexp.MustCompile(`(?s)HTTP (\d{3}): (.*)$`)

// explain makes what went wrong with a request into what to do about it.
func (c *command) explain(err error) error {
	parts := refusal.FindStringSubmatch(err.Error())
	if parts == nil {
		if strings.HasPrefix(err.Error(), "performing request:") {
			return fmt.Errorf("Caddy cannot be reached at %s; start it, or say with --address or --config where its admin API listens (%w)", c.endpoint, err) //nolint:staticcheck // a name
		}
		return err
	}
	var answer struct {
		Error string `json:"error"`
	}
	if json.Unmarshal([]byte(parts[2]), &answer) != nil || answer.Error == "" {
		if parts[1] == "404" {
			return fmt.Errorf("the Caddy at %s was built without the maintenance module; `caddy list-modules` shows what a Caddy was built with", c.endpoint)
		}
		return err
	}
	refused := &apiError{message: answer.Error}
	_, _ = fmt.Sscan(parts[1], &refused.status)
	return refused
}
