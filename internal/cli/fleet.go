package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"example.com/caddy-maintenance/internal/api"
)

const (
	// pollInterval is how often the command asks whether all instances have confirmed.
	pollInterval = 250 * time.Millisecond

	// leavingPatience is how long a switch waits for an instance that is stopping.
	leavingPatience = 5 * time.Second
)

// fleet is what the instances have said about a site.
type fleet struct {
	list    []api.Instance
	own     string // the instance that answered, if it could not ask the others
	failure error  // why it could not
}

func isPending(i api.Instance) bool   { return i.State == api.InstancePending }
func isLeaving(i api.Instance) bool   { return i.State == api.InstanceStopping }
func isConfirmed(i api.Instance) bool { return i.State == api.InstanceConfirmed }
func isDrained(i api.Instance) bool   { return i.Drained }

func (f fleet) some(is func(api.Instance) bool) bool { return slices.ContainsFunc(f.list, is) }

// split separates the instances for which something holds from the others.
func (f fleet) split(is func(api.Instance) bool) (yes, no []api.Instance) {
	for _, i := range f.list {
		if is(i) {
			yes = append(yes, i)
		} else {
			no = append(no, i)
		}
	}
	return yes, no
}

// done says which instances have confirmed the switch, and which have not.
func (f fleet) done(after api.Site, note string, now time.Time) (words string, incomplete bool) {
	confirmed, others := f.split(isConfirmed)
	var notes []string
	switch {
	case f.failure != nil:
		words = "done on " + f.own
	case len(others) > 0:
		words = strings.TrimSuffix("done on "+f.names(confirmed), " on ")
	default:
		words, notes = "done", append(notes, f.count()...)
	}
	if note != "" {
		notes = append(notes, note)
	}
	if len(notes) > 0 {
		words += " (" + strings.Join(notes, "; ") + ")"
	}
	if f.failure != nil {
		words += "; the state of the other instances is unknown: " + f.failure.Error()
	}
	risk, closes := "it may still let requests in", true
	switch {
	case !after.From.IsZero():
		risk = "it may not close on time"
	case after.State == api.StateOff:
		risk, closes = "it may still block requests", false
	}
	for _, i := range others {
		words += "; " + f.trouble(i)
		switch {
		case i.State == api.InstanceSilent:
			words += lastSeen(i, now) + ": " + risk
		case i.State == api.InstanceAbsent && closes:
			words += ": nothing blocks requests there"
		}
	}
	return words, len(others) > 0 || f.failure != nil
}

// count is the number of instances, or nothing if there is only one.
func (f fleet) count() []string {
	if len(f.list) < 2 {
		return nil
	}
	return []string{fmt.Sprintf("%d instances", len(f.list))}
}

// trouble says why an instance is not drained, or has not confirmed.
func (f fleet) trouble(i api.Instance) string {
	name := f.name(i)
	switch i.State {
	case api.InstanceSilent:
		return "no word from " + name
	case api.InstanceAbsent:
		return fmt.Sprintf("the config of %s does not have the site", name)
	case api.InstanceStopping:
		return fmt.Sprintf("%s is stopping, %d in flight", name, i.InFlight)
	case api.InstancePending:
		return fmt.Sprintf("%s has not confirmed yet", name)
	}
	return fmt.Sprintf("%d in flight on %s", i.InFlight, name)
}

func lastSeen(i api.Instance, now time.Time) string {
	return ", last seen " + roughly(max(0, now.Sub(i.Seen))) + " ago"
}

// troubles is trouble for several instances.
func (f fleet) troubles(list []api.Instance, now time.Time) string {
	var words []string
	for _, i := range list {
		trouble := f.trouble(i)
		if i.State == api.InstanceSilent {
			trouble += lastSeen(i, now)
		}
		words = append(words, trouble)
	}
	return strings.Join(words, "; ")
}

// name is the host name of an instance, or its ID if there are several on the host.
func (f fleet) name(i api.Instance) string {
	for _, other := range f.list {
		if other.Instance == i.Instance && other.ID != i.ID {
			return i.ID
		}
	}
	return i.Instance
}

// maxNames is how many instances are named if all is well. More are counted.
const maxNames = 5

func (f fleet) names(list []api.Instance) string {
	if len(list) > maxNames {
		return fmt.Sprintf("%d instances", len(list))
	}
	var names []string
	for _, i := range list {
		names = append(names, f.name(i))
	}
	return strings.Join(names, ", ")
}

// warnOfClocks warns of clocks that differ.
func (f fleet) warnOfClocks(out io.Writer) {
	for _, i := range f.list {
		if i.ClockOffset != "" {
			ahead, by := "ahead of", strings.TrimPrefix(i.ClockOffset, "-")
			if by != i.ClockOffset {
				ahead = "behind"
			}
			fmt.Fprintf(out, "warning: the clock of %s is about %s %s this instance's; each instance begins and ends maintenance by its own clock\n", f.name(i), by, ahead)
		}
	}
}
