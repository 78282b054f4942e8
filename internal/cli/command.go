// Package cli is the command, caddy maintenance: it shows sites and their pages, switches
// them, waits for them to be drained, and runs commands meanwhile.
//
// What it says on standard output where that is no terminal, and its exit status (0, 1 for
// what failed, 2 for what not every instance has confirmed, or is not drained in time, that
// of the command with run), are for people and scripts alike and do not change between
// versions without a word in the changelog. It knows a site only by
// what the admin API answers (internal/api); of Caddy it uses what every command uses,
// and nothing of the module that it switches.
package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/caddyserver/caddy/v2"

	"example.com/caddy-maintenance/internal/api"
)

// Command returns the command for Caddy to register.
func Command() caddycmd.Command {
	return caddycmd.Command{
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

On a terminal, the rest that is known of the site follows: since when, until when,
who has closed it and why, what is in flight.

The sites are those that the running config has a maintenance directive for. If a
directive has placeholders, such as {host}, each of their values is a site. The
table has it while it is not off, or is scheduled. It can be switched whether or not anybody has
asked for it yet, so that a misspelled name is a site, too.

With --wait the command waits for the site to be on, and returns when it is
drained, that is, when no request that was let in before is still in flight on any
instance. It exits with status 2 if that takes longer than the time given.

With --json it prints the admin API's answer: one site if a site is named,
else an array.`,
		CobraFunc: func(cmd *cobra.Command) {
			setUp(cmd, environment{now: time.Now, by: claimedBy, isTerminal: isTerminal})
		},
	}
}

// setUp makes cmd the command that shows, with those that switch below it.
func setUp(cmd *cobra.Command, env environment) {
	show := &statusCommand{call: call{environment: env}}
	show.setUp(cmd, show.run)
	show.addWait(cmd)
	cmd.Args = func(_ *cobra.Command, args []string) error {
		if len(args) <= 1 {
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
Puts sites into maintenance. Once this says done, no new request gets through any
instance on the storage; with --wait it returns when those that were let in before
have ended too. It says how many instances there are if there are several. If one
has not confirmed, it says which, and exits with status 2.

With --from they stay open until then, and every instance closes them by its own
clock. The app can announce it; see {http.maintenance.from} in the reference.

If a site is already in maintenance, or scheduled, only the options you give
change. An empty value clears an option. What is scheduled begins now if you clear
--from, or give no option at all; other options alone are refused.`,
		Example: `  $ caddy maintenance on shop --wait 30s
  $ caddy maintenance on shop --message "Back at three." --until 15:00
  $ caddy maintenance on shop --for 20m
  $ caddy maintenance on shop --from 02:00 --for 1h --reason "New disks."
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
Takes sites out of maintenance, or calls off what is scheduled. Once this says done, requests get through every
instance on the storage again. If one has not confirmed, it says which, and exits
with status 2.`,
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

// environment is what a command has from the system.
type environment struct {
	now func() time.Time
	by  func() string // who runs it

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
	wait           time.Duration // how long to wait for sites to be drained; 0: not at all
}

// exitIncomplete is the exit status where an instance has not confirmed a switch, or a site
// was not drained in time.
const exitIncomplete = 2

// setUp adds the flags that all commands have, and makes run what cmd does. It takes the
// names of sites and returns the exit status; an error exits with 1.
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
		cmd.SilenceErrors = true // what there is to say has been said
		if status == 1 {
			return errors.New("exiting with status 1") // Caddy takes 1 without an error for success
		}
		return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) { return status, nil })(cmd, args)
	}
}

func (c *call) addWait(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.waitText, "wait", "", "Wait this long for requests in flight to end, such as 30s")
}

// begin reads the flags that all commands have.
func (c *call) begin(cmd *cobra.Command) (err error) {
	c.stdout, c.stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
	if cmd.Flags().Changed("wait") {
		if c.wait, err = caddy.ParseDuration(c.waitText); err != nil || c.wait <= 0 {
			return fmt.Errorf("--wait: %q given, a duration above zero is accepted, such as 30s", c.waitText)
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

// checkAddress returns what is wrong with an address that a user gives for the admin API. Empty
// means that it was not given.
func checkAddress(address string) error {
	parsed, err := caddy.ParseNetworkAddress(address)
	isTCP, isSocket := strings.HasPrefix(parsed.Network, "tcp"), parsed.Network == "unix"
	switch {
	case address == "":
		return nil
	case strings.HasPrefix(address, "unix:"), isSocket && parsed.Host == "":
		return errors.New("a socket is written as unix/ and its path (for example unix//run/caddy.sock)")
	case err != nil, !isTCP && !isSocket, parsed.PortRangeSize() > 1:
		return errors.New("must be a host and a port, or a socket (for example localhost:2019 or unix//run/caddy.sock)")
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
