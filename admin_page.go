package maintenance

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/caddyserver/caddy/v2"

	"example.com/caddy-maintenance/internal/api"
	"example.com/caddy-maintenance/internal/site"
)

// maxFetch is how long a client waits for pages to be fetched.
const maxFetch = 10 * time.Second

// servePage answers GET with the page as a visitor would get it now. On POST it fetches the
// site's custom pages and answers with the site.
func (adminAPI) servePage(w http.ResponseWriter, r *http.Request, app *App, s *configuredSite) error {
	switch r.Method {
	case http.MethodGet:
		return s.showPage(w, r)
	case http.MethodPost:
		ctx, cancel := context.WithTimeout(r.Context(), maxFetch)
		defer cancel()
		var fetches errgroup.Group
		for _, v := range s.views.all() {
			if v.page != nil {
				fetches.Go(func() error { return refresh(ctx, v.page) })
			}
		}
		if err := fetches.Wait(); err != nil {
			return caddy.APIError{HTTPStatus: http.StatusGatewayTimeout, Err: err}
		}
		return writeJSON(w, s.status(app.instance))
	default:
		return methodNotAllowed(w, r, "GET, POST")
	}
}

func refresh(ctx context.Context, p *pooledPage) error {
	if !p.Refresh(ctx) {
		return fmt.Errorf("page %s could not be fetched within %s; try again, or see why with caddy maintenance <site> --json", p.Source(), maxFetch)
	}
	return nil
}

func (s *configuredSite) showPage(w http.ResponseWriter, r *http.Request) error {
	v, err := s.pickPage(r.URL.Query().Get(api.SourceParameter))
	if err != nil {
		return badRequest(err)
	}
	st := s.view()
	shown := represent(r, v, st.State, retryAfter(st.Options(), defaultRetryAfter))
	if !st.Blocks() {
		v.Forget() // no visitor needs what was rendered
	}
	setEach(w.Header(),
		"Content-Type", shown.contentType,
		"Content-Length", strconv.Itoa(len(shown.body)),
		"Cache-Control", "no-store",
		"Content-Security-Policy", "sandbox", // the page must not act on the admin API's origin
		"X-Content-Type-Options", "nosniff",
	)
	if shown.encoding != "" {
		w.Header().Set("Content-Encoding", shown.encoding)
	}
	_, _ = w.Write(shown.body)
	return nil
}

// pickPage returns the view of the page from a source; without one, the only page there is.
func (s *configuredSite) pickPage(source string) (*siteView, error) {
	var known []string
	only := s.views.all()[0]
	for _, v := range s.views.all() {
		if v.page == nil {
			continue
		}
		only = v
		name := v.page.Source().String()
		if name == source {
			return v, nil
		}
		known = append(known, name)
	}
	slices.Sort(known)
	switch {
	case source != "" && len(known) == 0:
		return nil, fmt.Errorf("unknown source %q: site %s has no custom page", site.Truncate(source), s.Name)
	case source != "":
		return nil, fmt.Errorf("unknown source %q: use one of: %s", site.Truncate(source), strings.Join(known, ", "))
	case len(known) > 1:
		return nil, fmt.Errorf("site %s has several pages; give one as source: %s", s.Name, strings.Join(known, ", "))
	}
	return only, nil
}
