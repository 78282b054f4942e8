package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"example.com/caddy-maintenance/internal/api"
)

const fleetPath = api.Path + api.InstancesPath

func newInstancesCommand(env environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "instances",
		Short: "Lists the instances on the storage",
		Long: `
Lists the instances that use the same storage: their state, when they were last
seen, how often they sync, how many requests are in flight, and how far their clocks
are ahead (or behind, with a minus), if by more than 30 seconds.

An instance is confirmed if it has applied everything that was stored before you
asked, and silent if it has not answered in time. A silent instance may still let
requests in. An instance that never reached the storage is not listed.`,
		Example: `  $ caddy maintenance instances
  $ caddy maintenance instances --json`,
		Args: atMost(0, "instances takes no arguments"),
	}
	list := &instancesCommand{call: call{environment: env}}
	list.setUp(cmd, list.run)
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	cmd.Flags().BoolVar(&list.json, "json", false, "Print the admin API's answer")
	return cmd
}

func newForgetCommand(env environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "forget <instance>",
		Short: "Removes the report of an instance that is gone",
		Long: `
Removes the report of an instance that was killed, so that switches no longer name
it as silent. Otherwise its report is removed after 10 minutes.

Name the instance by its host. If several instances on that host have reports, name
it by its ID, as caddy maintenance instances lists it.

An instance that still answers is not forgotten. Make sure that a silent one has
ended: one that has only lost the storage may still let requests in.`,
		Example: `  $ caddy maintenance forget web-3
  $ caddy maintenance forget web-3-1a2b3c4d`,
		Args: atMost(1, "forget takes one instance"),
	}
	forget := &forgetCommand{call: call{environment: env}}
	forget.setUp(cmd, forget.run)
	cmd.ValidArgsFunction = forget.completeInstances
	return cmd
}

// instancesCommand lists the instances of the fleet.
type instancesCommand struct {
	call
	json bool
}

func (c *instancesCommand) run([]string) (int, error) {
	for ; ; time.Sleep(pollInterval) {
		var answer json.RawMessage
		if err := c.admin.send(http.MethodGet, fleetPath, nil, &answer); err != nil {
			return 0, err
		}
		var f fleet
		if err := json.Unmarshal(answer, &f.list); err != nil {
			return 0, fmt.Errorf("reading the admin API's answer: %w", err)
		}
		switch {
		case f.some(isPending):
		case c.json:
			_, err := fmt.Fprintf(c.stdout, "%s\n", answer)
			return 0, err
		default:
			return 0, f.writeTable(c.stdout, c.now())
		}
	}
}

func (f fleet) writeTable(out io.Writer, now time.Time) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "INSTANCE\tSTATE\tLAST SEEN\tSYNCS EVERY\tIN FLIGHT\tCLOCK")
	for _, i := range f.list {
		clock := "ok"
		if i.ClockOffset != "" {
			clock = i.ClockOffset
		}
		fmt.Fprintf(table, "%s\t%s\t%s ago\t%s\t%d\t%s\n", f.name(i), i.State, roughly(max(0, now.Sub(i.Seen))), i.SyncInterval, i.InFlight, clock)
	}
	return table.Flush()
}

// forgetCommand removes the report of an instance.
type forgetCommand struct{ call }

func (c *forgetCommand) run(args []string) (int, error) {
	if len(args) == 0 || args[0] == "" {
		return 0, fmt.Errorf("no instance given; %s lists them", c.hint("instances"))
	}
	fmt.Fprintf(c.stdout, "Forgetting %s... ", args[0])
	var list []api.Instance
	if err := c.admin.send(http.MethodDelete, fleetPath+"/"+url.PathEscape(args[0]), nil, &list); err != nil {
		fmt.Fprintln(c.stdout, "failed")
		return 0, err
	}
	fmt.Fprintln(c.stdout, "done")
	return 0, nil
}

// completeInstances offers the instances to the shell.
func (c *forgetCommand) completeInstances(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	var names []string
	var list []api.Instance
	if c.findAdmin() == nil && c.admin.send(http.MethodGet, fleetPath, nil, &list) == nil {
		f := fleet{list: list}
		for _, i := range list {
			names = append(names, f.name(i))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
