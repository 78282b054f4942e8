package maintenance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddyserver/caddy/v2"

	"example.com/caddy-maintenance/internal/api"
	"example.com/caddy-maintenance/internal/site"
	"example.com/caddy-maintenance/internal/store"
)

func init() {
	caddy.RegisterModule(adminAPI{})
}

// adminAPI serves the sites of the running config under /maintenance. It has no
// state: Caddy sets it up before the config's apps, and leaves it in place if
// they fail.
type adminAPI struct{}

// CaddyModule returns the Caddy module information.
func (adminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.maintenance",
		New: func() caddy.Module { return new(adminAPI) },
	}
}

// Provision adds the metrics to the registry that the admin endpoint serves.
func (adminAPI) Provision(ctx caddy.Context) error {
	lastAdmin.Store(ctx.GetMetricsRegistry())
	return registerMetrics(ctx)
}

// lastAdmin is the metrics registry of the last config with an admin endpoint. It identifies
// that config.
var lastAdmin atomic.Pointer[prometheus.Registry]

// warnOfNoAdmin warns if the config has no admin endpoint to switch its sites.
func (a *App) warnOfNoAdmin() {
	if len(a.sites.named) > 0 && lastAdmin.Load() != a.ctx.GetMetricsRegistry() {
		a.log.Warn("admin endpoint is off, so sites cannot be switched on this instance; remove `admin off`, or use a socket (for example `admin unix//run/caddy/admin.sock`)")
	}
}

// Routes returns the admin routes.
func (a adminAPI) Routes() []caddy.AdminRoute {
	handler := caddy.AdminHandlerFunc(a.serve)
	return []caddy.AdminRoute{
		{Pattern: api.Path, Handler: handler},
		{Pattern: api.Path + "/", Handler: handler},
	}
}

func (a adminAPI) serve(w http.ResponseWriter, r *http.Request) error {
	if err := checkQuery(r); err != nil {
		return err
	}
	name := strings.Trim(strings.TrimPrefix(r.URL.Path, api.Path), "/")
	if name == "" {
		return a.serveAll(w, r)
	}
	if instance, ok := strings.CutPrefix("/"+name, api.InstancesPath); ok && (instance == "" || instance[0] == '/') {
		return a.serveFleet(w, r, strings.Trim(instance, "/"))
	}
	name, ofInstances := strings.CutSuffix(name, api.InstancesPath)
	ofPage := false
	if !ofInstances {
		name, ofPage = strings.CutSuffix(name, api.PagePath)
	}
	// A client may send its body slowly, and the config may change meanwhile: look up the
	// site only afterwards.
	body, err := readBody(w, r)
	if err != nil {
		return err
	}
	app, s, err := retainSite(name)
	if err != nil {
		return err
	}
	defer letSiteGo(s.entry)
	if err := s.Ready(r.Context(), nil); err != nil {
		return err
	}
	switch {
	case ofInstances:
		return a.serveInstances(w, r, app.fleet, s)
	case ofPage:
		return a.servePage(w, r, app, s)
	}
	return a.serveSite(w, r, app, s, body)
}

// retainSite returns the running config's site of that name, which the caller must release
// with letSiteGo. Until then the site stays in memory.
func retainSite(called string) (*App, *configuredSite, error) {
	for {
		app, err := runningApp()
		if err != nil {
			return nil, nil, err
		}
		name, err := app.sites.find(called)
		if err != nil {
			return nil, nil, caddy.APIError{HTTPStatus: http.StatusNotFound, Err: err}
		}
		if g, ok := app.sites.gone(name); ok {
			sites.Hold(g.site.entry)
			return app.thatReaches(g), g.site, nil
		}
		if entry := sites.Need(name, true); entry != nil {
			if s := app.sites.siteOf(entry); s != nil {
				return app, s, nil
			}
			letSiteGo(entry)
		}
		// The config was replaced meanwhile; look at the one that runs now.
	}
}

// checkQuery refuses parameters that would be ignored: a misspelt wait, or options that
// belong in the body.
func checkQuery(r *http.Request) error {
	known := api.WaitParameter
	if strings.HasSuffix(strings.TrimRight(r.URL.Path, "/"), api.PagePath) {
		known = api.SourceParameter
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return badRequest(fmt.Errorf("invalid query %q: %w", site.Truncate(r.URL.RawQuery), err))
	}
	for name := range query {
		if name != known || r.Method != http.MethodGet {
			return badRequest(fmt.Errorf("unknown parameter %q: GET of a site or of instances takes wait, GET of a page takes source; options belong in the body", site.Truncate(name)))
		}
	}
	return nil
}

var errNoConfig = caddy.APIError{
	HTTPStatus: http.StatusServiceUnavailable,
	Err:        errors.New("no config is running: Caddy is still loading it, or was started without one; try again in a moment"),
}

func badRequest(err error) error {
	return caddy.APIError{HTTPStatus: http.StatusBadRequest, Err: err}
}

func methodNotAllowed(w http.ResponseWriter, r *http.Request, allowed string) error {
	w.Header().Set("Allow", allowed)
	return caddy.APIError{
		HTTPStatus: http.StatusMethodNotAllowed,
		Err:        fmt.Errorf("method %s is not allowed here; allowed methods: %s", site.Truncate(r.Method), allowed),
	}
}

func (adminAPI) serveAll(w http.ResponseWriter, r *http.Request) error {
	app, err := runningApp()
	if err != nil {
		return err
	}
	if r.Method != http.MethodGet {
		return methodNotAllowed(w, r, "GET")
	}
	if r.URL.RawQuery != "" {
		return badRequest(errors.New("wait needs one site (for example /maintenance/shop?wait=10s)"))
	}
	if err := app.sites.loaded(r.Context()); err != nil {
		return err
	}
	if templates := app.sites.templateNames(); len(templates) > 0 {
		w.Header()[api.TemplatesHeader] = templates
	}
	list := []api.Site{}
	for _, s := range app.sites.listed() {
		list = append(list, s.status(app.instance))
	}
	for _, g := range goneSites.all() {
		if v := g.site.view(); !app.sites.has(g.site.Name) && (v.On() || v.Scheduled()) {
			list = append(list, g.site.status(g.app.instance))
		}
	}
	slices.SortFunc(list, func(x, y api.Site) int { return strings.Compare(x.Site, y.Site) })
	return writeJSON(w, list)
}

func (adminAPI) serveSite(w http.ResponseWriter, r *http.Request, app *App, s *configuredSite, body []byte) error {
	err := serveMethod(w, r, app, s, body)
	if err != nil {
		return asAPIError(err)
	}
	// It changes with each switch.
	w.Header().Set("Etag", eTag(s))
	return writeJSON(w, s.status(app.instance))
}

// serveMethod does what a request asks for. The answer to all of them is the site.
func serveMethod(w http.ResponseWriter, r *http.Request, app *App, s *configuredSite, body []byte) error {
	cause := site.Cause{Source: site.SourceAPI, Client: r.RemoteAddr, Answered: r.Context().Done()}
	switch r.Method {
	case http.MethodGet:
		return wait(r, s)
	case http.MethodPut, http.MethodPatch:
		if s.isGone() {
			return caddy.APIError{HTTPStatus: http.StatusConflict, Err: fmt.Errorf("site %s no longer has a maintenance directive, so nothing would block its requests; add the directive again, or use DELETE to switch the site off", s.Name)}
		}
		fallthrough
	case http.MethodDelete:
		m, err := mutation(r, body)
		if err != nil {
			return badRequest(err)
		}
		return app.switchSite(s, m, cause)
	default:
		return methodNotAllowed(w, r, "GET, PUT, PATCH, DELETE")
	}
}

// mutation returns what a PUT, PATCH or DELETE asks for. The body of a PUT may be empty. With
// If-None-Match: *, a PUT fails if the site is not off; with If-Match and an ETag, all three fail
// if the site was switched since (RFC 9110, section 13.1).
func mutation(r *http.Request, body []byte) (m site.Mutation, err error) {
	isPut, condition := r.Method == http.MethodPut, r.Header.Get("If-None-Match")
	if condition != "" && (condition != "*" || !isPut) {
		return nil, fmt.Errorf("invalid If-None-Match %q: only * is accepted, and only with PUT, to refuse a site that is already on", site.Truncate(condition))
	}
	if len(body) == 0 && isPut {
		body = []byte("{}")
	}
	m = site.Off{}
	if r.Method != http.MethodDelete {
		given, err := optionParser().Body(body)
		if err != nil {
			return nil, err
		}
		if m = (site.Patch{Options: given}); isPut {
			m = site.On{Options: given, OnlyOff: condition != ""}
		}
	}
	if len(r.Header.Values("If-Match")) == 0 {
		return m, nil
	}
	version, err := parseETag(r.Header.Get("If-Match"))
	return site.IfVersion{Mutation: m, Version: version}, err
}

func eTag(s *configuredSite) string {
	return strconv.Quote(strconv.FormatInt(s.Current().Version(), 10))
}

func parseETag(tag string) (version int64, err error) {
	text, err := strconv.Unquote(tag)
	if err == nil {
		version, err = strconv.ParseInt(text, 10, 64)
	}
	if err != nil {
		return 0, fmt.Errorf(`invalid If-Match %q: must be the ETag of an answer about the site (for example "1767225600000000", with the quotes)`, site.Truncate(tag))
	}
	return version, nil
}

// optionParser parses options with Caddy's durations, and times relative to now.
func optionParser() site.Parser {
	return site.Parser{Durations: caddy.ParseDuration, Now: time.Now()}
}

// asAPIError gives an error of a switch its status. Other errors have one, or get 500.
func asAPIError(err error) error {
	var status int
	switch notOn, notOff, changed, conflict, invalid, notStored := new(site.NotOnError), new(site.NotOffError), new(site.ChangedError), new(site.ConflictError), new(site.InvalidError), new(store.NotStoredError); {
	case errors.As(err, &notOn), errors.As(err, &conflict):
		status = http.StatusConflict
	case errors.As(err, &notOff), errors.As(err, &changed):
		status = http.StatusPreconditionFailed
	case errors.As(err, &invalid):
		status = http.StatusBadRequest
	case errors.As(err, &notStored):
		status = http.StatusInternalServerError
	case errors.Is(err, store.ErrBusy):
		status = http.StatusServiceUnavailable
	default:
		return err
	}
	return caddy.APIError{HTTPStatus: status, Err: err}
}

const maxBody = 64 << 10

// readBody reads the body of a PUT or PATCH; other requests have none.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.Method != http.MethodPut && r.Method != http.MethodPatch {
		return nil, nil
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
		return nil, caddy.APIError{
			HTTPStatus: http.StatusRequestEntityTooLarge,
			Err:        fmt.Errorf("the body is larger than %d bytes", maxBody),
		}
	}
	if err != nil {
		return nil, badRequest(fmt.Errorf("reading the body: %w", err))
	}
	return body, nil
}

// wait returns when the site is drained, or after the time in the request's wait
// parameter; at once if there is none.
func wait(r *http.Request, s *configuredSite) error {
	limit, err := waitLimit(r)
	if limit == 0 {
		return err
	}
	if v := s.view(); !v.Blocks() {
		return &site.NotOnError{Site: s.Name, State: v.Word()}
	}
	ctx, cancel := context.WithTimeout(r.Context(), limit)
	defer cancel()
	s.awaitDrained(ctx.Done())
	return nil
}

// waitLimit returns the request's wait parameter, 0 if there is none.
func waitLimit(r *http.Request) (time.Duration, error) {
	query := r.URL.Query()
	if !query.Has(api.WaitParameter) {
		return 0, nil
	}
	limit, err := caddy.ParseDuration(query.Get(api.WaitParameter))
	if err != nil || limit <= 0 || limit > api.MaxWait {
		return 0, badRequest(fmt.Errorf("invalid wait %q: must be a duration of at most %s (for example 10s)",
			site.Truncate(query.Get(api.WaitParameter)), api.MaxWait))
	}
	return limit, nil
}

// status returns the site as answers of this instance have it.
func (s *configuredSite) status(own instance) api.Site {
	v := s.view()
	o := v.Options()
	answer := api.Site{
		Site:           s.Name,
		State:          v.Word(),
		Since:          v.Since(),
		Message:        o.Message,
		Reason:         o.Reason,
		By:             o.By,
		RetryAfter:     o.RetryAfter.Text,
		Until:          o.Until,
		Hold:           o.Hold.Text,
		TerminateAfter: o.TerminateAfter.Text,
		BypassSecret:   o.Bypass != nil,
		Instance:       own.host,
		SyncInterval:   own.syncInterval(),
		InFlight:       s.inFlight.Count(),
		Held:           s.heldNow(),
		Pages:          s.pageStatuses(),
	}
	if v.Scheduled() {
		answer.From = o.From
	}
	if why := s.followed.Err(); !v.Known() && why != nil {
		answer.Error = why.Error()
	}
	if s.isGone() {
		answer.Configured = new(bool)
	}
	return answer
}

// writeJSON writes v, and returns when all of it is sent.
func writeJSON(w http.ResponseWriter, v any) error {
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(body.Len()))
	_, _ = w.Write(body.Bytes())
	_ = http.NewResponseController(w).Flush() // fails if the client has left
	return nil
}

// Interface guards
var (
	_ caddy.AdminRouter = adminAPI{}
	_ caddy.Provisioner = adminAPI{}
)
