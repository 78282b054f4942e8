package maintenance

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/caddyserver/caddy/v2"
)

// serveFleet serves the instances on the storage: GET lists them, and DELETE of a named one
// forgets it.
func (a adminAPI) serveFleet(w http.ResponseWriter, r *http.Request, name string) error {
	app, err := runningApp()
	if err != nil {
		return err
	}
	if len(app.sites.named) == 0 {
		return caddy.APIError{HTTPStatus: http.StatusNotFound, Err: errors.New("no site of the running config has a maintenance directive; add one (for example maintenance shop) and reload Caddy")}
	}
	switch {
	case name != "" && r.Method == http.MethodDelete:
		if err := app.fleet.forget(r.Context(), name); err != nil {
			return err
		}
		list, _, _ := app.fleet.list(nil)
		return writeJSON(w, list)
	case name != "":
		return methodNotAllowed(w, r, "DELETE")
	case r.Method != http.MethodGet:
		return methodNotAllowed(w, r, "GET")
	}
	return a.serveInstances(w, r, app.fleet, nil)
}

// serveInstances answers with the instances. It waits for them, no longer than the request's wait
// parameter says. If s is nil, it is about all sites.
func (adminAPI) serveInstances(w http.ResponseWriter, r *http.Request, f *fleet, s *configuredSite) error {
	if r.Method != http.MethodGet {
		return methodNotAllowed(w, r, "GET")
	}
	limit, err := waitLimit(r)
	if err != nil {
		return err
	}
	list, err := f.await(r.Context(), s, limit)
	if err != nil {
		return caddy.APIError{
			HTTPStatus: http.StatusServiceUnavailable,
			Err:        fmt.Errorf("reading the reports of other instances: %w; their state is unknown; try again when the storage answers", err),
		}
	}
	return writeJSON(w, list)
}
