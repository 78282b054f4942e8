// Package cli is the command caddy maintenance. It shows sites and their pages, switches sites,
// waits until they are drained, and runs commands meanwhile.
//
// Scripts may rely on its exit status and, where standard output is not a terminal, on what it
// prints there. Neither changes without a note in the changelog. The exit status is 0; 1 if
// something failed; 2 if an instance has not confirmed a switch or a site was not drained in
// time; with run, that of the command.
//
// The package knows sites only from the answers of the admin API (internal/api). It uses the
// parts of Caddy that every command uses, and nothing of the handler or the app.
package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/caddyserver/caddy/v2"

	"example.com/caddy-maintenance/internal/api"
	"example.com/caddy-maintenance/internal/site"
)

// Command returns the command for Caddy to register.
func Command() caddycmd.Command {
	return caddycmd.Command{
		Name:  "maintenance",
		Usage: "[<site>] [--json] [--wait <duration>] [--address <interface>] [--config <path> [--adapter <name>]]",
		Short: "Shows and switches the maintenance mode of sites",
		Long: `
Shows whether a site is in maintenance: on, off or unknown. If you name no
site, it shows the only one, or all of them in a table.

While a site is in maintenance, Caddy answers its requests with status 503 and a
page. Nothing changes about the app behind Caddy:

	$ caddy maintenance on shop --message "Back at three."
	Enabling maintenance mode for shop... done
	$ caddy maintenance shop
	on
	$ caddy maintenance off shop
	Disabling maintenance mode for shop... done

On a terminal, details follow: since when and until when the site is in
maintenance, who switched it and why, and how many requests are in flight.

The sites are those that the maintenance directives of the running config name. If
a name has a placeholder, such as {host}, each of its values is a site. You can
switch such a site before its first request, so a misspelled name is not an error.
The table shows it only while it is on, unknown or scheduled.

With --wait, the command waits until the site is on, and then until it is drained:
no request that was let in before is still in flight on any instance. If this takes
longer than the time you give, the command exits with status 2.

With --json, the command prints the admin API's answer: one site if you name it,
an array otherwise.`,
		CobraFunc: func(cmd *cobra.Command) {
			setUp(cmd, environment{now: time.Now, by: claimedBy, isTerminal: isTerminal})
		},
	}
}

// setUp makes cmd the command that shows sites, and adds its subcommands.
func setUp(cmd *cobra.Command, env environment) {
	show := &statusCommand{call: call{environment: env}}
	show.setUp(cmd, show.run)
	show.addWait(cmd)
	cmd.Args = func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) > 0 && (args[0] == "status" || args[0] == "help"):
			return fmt.Errorf("unknown command %q; caddy maintenance [<site>] shows sites, and caddy maintenance --help explains the commands", args[0])
		case len(args) <= 1:
			return nil
		}
		if meant := didYouMean(args[0], commandNames(cmd)); meant != "" {
			return fmt.Errorf("unknown command %q%s; to show sites, name one site, or none for all", args[0], meant)
		}
		return errors.New("too many arguments: name one site, or none to show all; to switch sites: caddy maintenance on|off <site>")
	}
	cmd.Flags().BoolVar(&show.json, "json", false, "Print the admin API's answer")
	cmd.AddCommand(newOnCommand(env), newOffCommand(env), newRunCommand(env), newPageCommand(env), newInstancesCommand(env), newForgetCommand(env))
}

// atMost refuses more than n arguments, and says what the command takes.
func atMost(n int, takes string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) > n {
			return errors.New("too many arguments: " + takes)
		}
		return nil
	}
}

func commandNames(cmd *cobra.Command) (names []string) {
	for _, below := range cmd.Commands() {
		names = append(names, below.Name())
	}
	return names
}

func newOnCommand(env environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "on [<site>...] [--all]",
		Short: "Puts sites into maintenance",
		Long: `
Puts sites into maintenance. When this prints done, no instance on the storage lets
new requests in. If an instance has not confirmed, the command names it and exits
with status 2. With --wait, the command also waits until the sites are drained: the
requests that were let in before have ended.

With --from, the sites stay open until that time. Each instance then closes them by
its own clock. The app can announce it with the placeholder
{http.maintenance.from}.

If a site is already in maintenance, only the options you give change. An empty
value clears an option.

If a site is scheduled, its maintenance begins now if you give no option, or an
empty --from. To change what is scheduled, give --from with a time.`,
		Example: `  $ caddy maintenance on shop --wait 30s
  $ caddy maintenance on shop --message "Back at three." --until 15:00
  $ caddy maintenance on shop --for 20m
  $ caddy maintenance on shop --from 02:00 --for 1h --reason "New disks."
  $ caddy maintenance on shop --with-secret
  $ caddy maintenance on --all`,
	}
	on := &onCommand{call: call{environment: env}, flags: cmd.Flags()}
	on.setUp(cmd, on.run)
	on.addWait(cmd)
	cmd.Flags().BoolVar(&on.all, "all", false, allUsage)
	addOptionFlags(cmd.Flags())
	return cmd
}

func newOffCommand(env environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "off [<site>...] [--all]",
		Short: "Takes sites out of maintenance",
		Long: `
Takes sites out of maintenance, or cancels what is scheduled. When this prints done,
every instance on the storage lets requests in again. If an instance has not
confirmed, the command names it and exits with status 2.`,
		Example: `  $ caddy maintenance off shop
  $ caddy maintenance off --all`,
	}
	off := &offCommand{call: call{environment: env}}
	off.setUp(cmd, off.run)
	cmd.ValidArgsFunction = off.complete(func(s api.Site) bool { return s.State != api.StateOff || !s.From.IsZero() })
	cmd.Flags().BoolVar(&off.all, "all", false, allUsage)
	return cmd
}

const allUsage = "Switch all sites of the running config"

// environment is what a command gets from the system.
type environment struct {
	now func() time.Time
	by  func() string // who runs the command

	isTerminal func(stream any) bool
}

func isTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// call is what all commands have in common.
type call struct {
	environment

	address, config, adapter string // flags
	waitText                 string // a flag

	stdout, stderr io.Writer
	admin          client
	wait           time.Duration // how long to wait for sites to be drained; 0 means not at all
}

// exitIncomplete is the exit status if an instance has not confirmed a switch, or a site was not
// drained in time.
const exitIncomplete = 2

// setUp adds the flags that all commands have, and sets the function that cmd runs. That takes the
// arguments and returns the exit status; an error exits with 1.
func (c *call) setUp(cmd *cobra.Command, run func(args []string) (status int, err error)) {
	flags := cmd.Flags()
	flags.StringVar(&c.address, "address", "", "Address of the administration API listener, if not the default or from the config")
	flags.StringVarP(&c.config, "config", "c", "", "Configuration file to take the address from")
	flags.StringVarP(&c.adapter, "adapter", "a", "", "Name of the config adapter to apply")
	cmd.ValidArgsFunction = c.complete(func(api.Site) bool { return true })
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := c.begin(cmd); err != nil {
			return err
		}
		status, err := run(args)
		if err != nil || status == 0 {
			return err
		}
		cmd.SilenceErrors = true // run has printed them
		if status == 1 {
			return errors.New("exiting with status 1") // Caddy takes 1 without an error for success
		}
		return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) { return status, nil })(cmd, args)
	}
}

func (c *call) addWait(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.waitText, "wait", "", "Wait at most this long until no request is in flight, such as 30s")
}

// begin reads the flags that all commands have.
func (c *call) begin(cmd *cobra.Command) (err error) {
	c.stdout, c.stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
	if cmd.Flags().Changed("wait") {
		if c.wait, err = site.DurationParser(caddy.ParseDuration).Positive(c.waitText); err != nil {
			return fmt.Errorf("invalid --wait %q: %w", c.waitText, err)
		}
	}
	return c.findAdmin()
}

func (c *call) findAdmin() (err error) {
	address, hasScheme := strings.CutPrefix(c.address, "http://")
	if hasScheme {
		address = strings.TrimRight(address, "/")
	}
	if err := checkAddress(address); err != nil {
		return fmt.Errorf("invalid --address %q: %w", c.address, err)
	}
	c.admin.address, err = caddycmd.DetermineAdminAPIAddress(address, nil, c.config, c.adapter)
	if err != nil {
		return fmt.Errorf("finding the address of Caddy's admin API: %w", err)
	}
	return nil
}

// hint returns a command line for the user to paste: these words, and the flags given that say
// where Caddy is.
func (c *call) hint(words string) string {
	line := append([]string{"caddy", "maintenance"}, strings.Fields(words)...)
	for _, flag := range []struct{ name, value string }{{"address", c.address}, {"config", c.config}, {"adapter", c.adapter}} {
		if flag.value != "" {
			line = append(line, "--"+flag.name, shellWord(flag.value))
		}
	}
	return strings.Join(line, " ")
}

// plainWord is what a shell takes as it is.
var plainWord = regexp.MustCompile(`^[\w@%+=:,./-]+$`)

func shellWord(text string) string {
	if plainWord.MatchString(text) {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// checkAddress returns what is wrong with an address that a user gives for the admin API. Empty
// means that it was not given.
func checkAddress(address string) error {
	parsed, err := caddy.ParseNetworkAddress(address)
	isTCP, isSocket := strings.HasPrefix(parsed.Network, "tcp"), parsed.Network == "unix"
	switch {
	case address == "":
		return nil
	case strings.HasPrefix(address, "unix:"), isSocket && parsed.Host == "":
		return errors.New("a socket is written as unix/ and its path (for example unix//run/caddy/admin.sock)")
	case err != nil, !isTCP && !isSocket, parsed.PortRangeSize() > 1:
		return errors.New("must be a host and a port, or a socket (for example localhost:2019 or unix//run/caddy/admin.sock)")
	case isTCP && parsed.StartPort == 0:
		return errors.New("the port is missing (for example localhost:2019)")
	}
	return nil
}

// complete offers the names of these sites to the shell.
func (c *call) complete(these func(api.Site) bool) cobra.CompletionFunc {
	return func(*cobra.Command, []string, string) (names []string, _ cobra.ShellCompDirective) {
		if c.findAdmin() == nil {
			l, _ := c.admin.sites()
			names = siteNames(slices.DeleteFunc(l.named(), func(s api.Site) bool { return !these(s) }))
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
