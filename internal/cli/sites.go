package cli

import (
	"errors"
	"fmt"
	"strings"

	"example.com/caddy-maintenance/internal/api"
)

// pick returns the sites named, each once, all of them if all is true, or the only one
// there is.
func pick(list []api.Site, args []string, all bool) ([]api.Site, error) {
	switch {
	case all && len(args) > 0:
		return nil, errors.New("--all switches every site; name sites or give --all, not both")
	case all:
		return list, nil
	case len(args) == 0 && len(list) > 1:
		return nil, fmt.Errorf("%w, or give --all", errMultiple(list))
	case len(args) == 0:
		return list, nil
	}
	var picked []api.Site
	named := make(map[string]bool)
	for _, arg := range args {
		site, err := find(list, arg)
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
func pickOne(list []api.Site, args []string) (api.Site, error) {
	switch {
	case len(args) > 0:
		return find(list, args[0])
	case len(list) > 1:
		return api.Site{}, errMultiple(list)
	}
	return list[0], nil
}

func find(list []api.Site, name string) (api.Site, error) {
	for _, site := range list {
		if strings.EqualFold(site.Site, name) {
			return site, nil
		}
	}
	return api.Site{}, fmt.Errorf("unknown site %q; the sites of the running config are: %s (caddy maintenance --help shows the commands)",
		name, strings.Join(siteNames(list), ", "))
}

func errMultiple(list []api.Site) error {
	return fmt.Errorf("there are several sites; name one of: %s", strings.Join(siteNames(list), ", "))
}

func siteNames(list []api.Site) []string {
	var names []string
	for _, site := range list {
		names = append(names, site.Site)
	}
	return names
}
