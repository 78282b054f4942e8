package cli

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"example.com/caddy-maintenance/internal/api"
)

func newPageCommand(env environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "page [<site>] [--refresh] [--source <source>] [--accept <type>]",
		Short: "Prints the page that visitors of a site get",
		Long: `
Prints the page that visitors of the site would get now, whether or not it is in
maintenance: the custom page, or the default page if there is no custom page.

With --refresh, custom pages are fetched first. If that fails, the command says why
and exits with status 1.`,
		Example: `  $ caddy maintenance page shop > page.html
  $ caddy maintenance page shop --refresh`,
		Args: atMost(1, "page prints the page of one site"),
	}
	page := &pageCommand{call: call{environment: env}}
	page.setUp(cmd, page.run)
	cmd.Flags().BoolVar(&page.refresh, "refresh", false, "Fetch custom pages first")
	cmd.Flags().StringVar(&page.source, "source", "", "URL or file of the page, if there are several")
	cmd.Flags().StringVar(&page.accept, "accept", "text/html", "Type of the page, as in an Accept header")
	return cmd
}

// pageCommand prints the page of a site.
type pageCommand struct {
	call
	refresh        bool
	source, accept string
}

func (c *pageCommand) run(args []string) (int, error) {
	l, err := c.admin.sites()
	if err != nil {
		return 0, err
	}
	site, err := c.admin.pickOne(l, args)
	if err != nil {
		return 0, err
	}
	path := api.SitePath(site.Site) + api.PagePath
	var failed error
	if c.refresh {
		if err := c.admin.send(http.MethodPost, path, nil, &site); err != nil {
			return 0, err
		}
		failed = errorsOfPages(site)
	}
	if c.source != "" {
		path += "?" + url.Values{api.SourceParameter: {c.source}}.Encode()
	}
	body, err := c.admin.get(path, http.Header{"Accept": {c.accept}})
	if err == nil {
		_, err = c.stdout.Write(body)
	}
	return 0, errors.Join(failed, err)
}

// errorsOfPages returns which pages could not be fetched, and why.
func errorsOfPages(site api.Site) error {
	var failed []error
	for _, p := range site.Pages {
		switch {
		case p.Error != "":
			failed = append(failed, fmt.Errorf("page %s could not be fetched: %s", p.Source, p.Error))
		case p.State == api.PageFetching:
			failed = append(failed, fmt.Errorf("page %s is still being fetched", p.Source))
		}
	}
	return errors.Join(failed...)
}

// get returns the body of an answer unchanged.
func (c client) get(uri string, header http.Header) ([]byte, error) {
	header.Set("Connection", "close")
	response, err := caddycmd.AdminAPIRequest(c.address, http.MethodGet, uri, header, nil)
	if err != nil {
		return nil, explain(err, c.address)
	}
	defer response.Body.Close()
	return io.ReadAll(response.Body)
}
