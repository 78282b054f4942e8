package cli

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"example.com/caddy-maintenance/internal/api"
)

// listing is the sites of the running config, except those that are off and get their names from
// placeholders.
type listing struct {
	sites     []api.Site
	templates []string // the names with placeholders
}

// sites returns the sites of the running config. It is an error if there is neither a site nor a
// template.
func (c client) sites() (l listing, err error) {
	header, err := c.do(http.MethodGet, api.Path, nil, nil, &l.sites)
	if err != nil {
		return l, err
	}
	l.templates = header[api.TemplatesHeader]
	if len(l.sites)+len(l.templates) == 0 {
		return l, errors.New("the running config has no maintenance directive; add one to a site block (for example maintenance shop) and reload Caddy")
	}
	return l, nil
}

// pick returns the sites to switch: those named, each once; all of them if all is true; or the
// only one. Sites that are off and get their names from placeholders are not known, so with
// these, all cannot be put into maintenance.
func (c client) pick(args []string, all bool, want string) (picked []api.Site, err error) {
	l, err := c.sites()
	switch {
	case err != nil:
		return nil, err
	case all && len(args) > 0:
		return nil, errors.New("--all switches every site; name sites or give --all, not both")
	case all && want == api.StateOn && len(l.templates) > 0:
		return nil, fmt.Errorf("--all does not know the sites of %s that are off; name the sites", strings.Join(l.templates, " and "))
	case all && len(l.named()) < len(l.sites):
		return nil, fmt.Errorf("--all does not know all sites of %s that are closed; name the sites", strings.Join(l.templates, " and "))
	case all:
		return l.named(), nil
	case len(args) == 0 && l.several() && (want == api.StateOff || len(l.templates) == 0):
		return nil, fmt.Errorf("%w, or give --all", l.errMultiple())
	case len(args) == 0 && l.several():
		return nil, l.errMultiple()
	case len(args) == 0:
		return l.sites, nil
	}
	named := make(map[string]bool)
	for _, arg := range args {
		site, err := c.find(l, arg)
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

var errUnknownSite = errors.New("unknown site")

// hintAtQuotes says what else may be wrong if a site is unknown: the rest of a text may have been
// taken for one.
func hintAtQuotes(err error, flags *pflag.FlagSet) error {
	if errors.Is(err, errUnknownSite) && (flags.Changed("message") || flags.Changed("reason")) {
		return fmt.Errorf("%w; a text with spaces needs quotes (for example --message \"Back at three.\")", err)
	}
	return err
}

// pickOne returns the site named, or the only one.
func (c client) pickOne(l listing, args []string) (api.Site, error) {
	switch {
	case len(args) > 0:
		return c.find(l, args[0])
	case l.several():
		return api.Site{}, l.errMultiple()
	}
	return l.sites[0], nil
}

func (c client) find(l listing, name string) (found api.Site, err error) {
	for _, site := range l.sites {
		if strings.EqualFold(site.Site, name) {
			return site, nil
		}
	}
	if len(l.templates) > 0 && name != "" && !strings.ContainsAny(name, "/{}") {
		return found, c.send(http.MethodGet, api.SitePath(url.PathEscape(name)), nil, &found)
	}
	return found, fmt.Errorf("%w %q%s; the sites of the running config are: %s", errUnknownSite,
		name, didYouMean(name, siteNames(l.sites)), strings.Join(l.names(), ", "))
}

// didYouMean suggests the names nearest to what was typed, as cobra suggests commands.
func didYouMean(typed string, names []string) string {
	all := new(cobra.Command)
	for _, name := range names {
		all.AddCommand(&cobra.Command{Use: name, Run: func(*cobra.Command, []string) {}})
	}
	for all.SuggestionsMinimumDistance = 1; all.SuggestionsMinimumDistance <= 2; all.SuggestionsMinimumDistance++ {
		if near := all.SuggestionsFor(typed); typed != "" && len(near) > 0 {
			return fmt.Sprintf(" (did you mean %s?)", strings.Join(near, " or "))
		}
	}
	return ""
}

// several reports whether there are several sites to choose from.
func (l listing) several() bool { return len(l.sites) > 1 || len(l.templates) > 0 }

func (l listing) errMultiple() error {
	if named := siteNames(l.named()); len(l.templates) > 0 && len(named) == 0 {
		return fmt.Errorf("name a site of %s", strings.Join(l.templates, " or "))
	}
	return fmt.Errorf("there are several sites; name one of: %s", strings.Join(l.names(), ", "))
}

// names returns the names of all sites, and the templates.
func (l listing) names() []string {
	names := siteNames(l.named())
	return append(names, l.templates...)
}

// named returns the sites without the templates, which stand for many.
func (l listing) named() (list []api.Site) {
	for _, site := range l.sites {
		if !strings.Contains(site.Site, "{") {
			list = append(list, site)
		}
	}
	return list
}

func siteNames(list []api.Site) []string {
	var names []string
	for _, site := range list {
		names = append(names, site.Site)
	}
	return names
}
