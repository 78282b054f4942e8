package maintenance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
)

func init() {
	caddy.RegisterModule(adminAPI{})
}

// adminAPI serves the sites of the running config under /maintenance. It keeps
// nothing: Caddy sets it up before the config's apps, and leaves it in place
// if they fail.
type adminAPI struct{}

// CaddyModule returns the Caddy module information.
func (adminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.maintenance",
		New: func() caddy.Module { return new(adminAPI) },
	}
}

const adminPath = "/maintenance"

// Provision adds the metrics to the registry that the admin endpoint is scraped from.
func (adminAPI) Provision(ctx caddy.Context) error { return registerMetrics(ctx) }

// Routes returns the admin routes.
func (a adminAPI) Routes() []caddy.AdminRoute {
	handler := caddy.AdminHandlerFunc(a.serve)
	return []caddy.AdminRoute{
		{Pattern: adminPath, Handler: handler},
		{Pattern: adminPath + "/", Handler: handler},
	}
}

func (a adminAPI) serve(w http.ResponseWriter, r *http.Request) error {
	if err := checkQuery(r); err != nil {
		return err
	}
	name := strings.Trim(strings.TrimPrefix(r.URL.Path, adminPath), "/")
	if name == "" {
		return a.serveAll(w, r)
	}
	// The body may take as long as its client likes, and the config change meanwhile.
	body, err := readBody(w, r)
	if err != nil {
		return err
	}
	app, m, err := retainSite(name)
	if err != nil {
		return err
	}
	defer sites.letGo(m.site)
	if err := m.ready(r.Context()); err != nil {
		return err
	}
	return a.serveSite(w, r, app, m, body)
}

// retainSite returns the running config's site of that name, which the caller must
// let go. Until then no reload makes the site another one.
func retainSite(name string) (*App, *member, error) {
	for {
		app, err := runningApp()
		if err != nil {
			return nil, nil, err
		}
		m, err := app.find(name)
		if err != nil {
			return nil, nil, err
		}
		if sites.retain(m.site) {
			return app, m, nil
		}
		// The config has been replaced in between; look at the one that runs now.
	}
}

// checkQuery refuses what would be ignored: a wait that is misspelt, or options
// that belong in the body.
func checkQuery(r *http.Request) error {
	for name := range r.URL.Query() {
		if name != "wait" || r.Method != http.MethodGet {
			return badRequest(fmt.Errorf("unknown parameter %s; GET of a site takes wait, and options go into the body", abridge(name)))
		}
	}
	return nil
}

// runningApp returns the app of the running config, or one without sites if it
// has none.
func runningApp() (*App, error) {
	ctx := caddy.ActiveContext()
	if ctx.Context == nil {
		return nil, caddy.APIError{
			HTTPStatus: http.StatusServiceUnavailable,
			Err:        errors.New("no config is running; Caddy is still loading one, or was started without: try again"),
		}
	}
	app, err := ctx.AppIfConfigured("maintenance")
	if errors.Is(err, caddy.ErrNotConfigured) {
		return new(App), nil
	}
	if err != nil {
		return nil, err
	}
	return app.(*App), nil
}

// find returns the site of that name in the config.
func (a *App) find(name string) (*member, error) {
	if m, ok := a.members[foldASCII(name)]; ok {
		return m, nil
	}
	if len(a.members) == 0 {
		return nil, notFound("unknown site %s; no site of the running config has a maintenance directive, "+
			"such as: maintenance shop", abridge(name))
	}
	var known []string
	for _, m := range a.sorted() {
		known = append(known, m.name)
	}
	return nil, notFound("unknown site %s; the sites of the running config are: %s", abridge(name), strings.Join(known, ", "))
}

func notFound(format string, args ...any) error {
	return caddy.APIError{HTTPStatus: http.StatusNotFound, Err: fmt.Errorf(format, args...)}
}

func badRequest(err error) error {
	return caddy.APIError{HTTPStatus: http.StatusBadRequest, Err: err}
}

func methodNotAllowed(w http.ResponseWriter, r *http.Request, allowed string) error {
	w.Header().Set("Allow", allowed)
	return caddy.APIError{
		HTTPStatus: http.StatusMethodNotAllowed,
		Err:        fmt.Errorf("method %s is not allowed here; allowed are %s", abridge(r.Method), allowed),
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
		return badRequest(errors.New("wait is for one site, such as /maintenance/shop?wait=10s"))
	}
	list := []siteStatus{}
	for _, m := range app.sorted() {
		if err := m.ready(r.Context()); err != nil {
			return err
		}
		list = append(list, app.status(m))
	}
	return writeJSON(w, list)
}

func (adminAPI) serveSite(w http.ResponseWriter, r *http.Request, app *App, m *member, body []byte) error {
	var err error
	switch r.Method {
	case http.MethodGet:
		err = wait(r, m)
	case http.MethodPut:
		err = app.put(r, m, body)
	case http.MethodPatch:
		err = app.patch(r, m, body)
	case http.MethodDelete:
		err = app.switchSite(m, fromClient(r), func(st *state) (*change, error) { return turnOff(st, m.initiallyOn), nil })
	default:
		err = methodNotAllowed(w, r, "GET, PUT, PATCH, DELETE")
	}
	if err != nil {
		return err
	}
	return writeJSON(w, app.status(m))
}

// fromClient is a client that has its answer when its request is done.
func fromClient(r *http.Request) origin {
	return origin{source: "api", client: r.RemoteAddr, answered: r.Context().Done()}
}

// put turns the site on with the options given, and no others.
func (a *App) put(r *http.Request, m *member, body []byte) error {
	if len(body) == 0 {
		body = []byte("{}")
	}
	given, err := parseOptions(options{}, body)
	if err != nil {
		return badRequest(err)
	}
	return a.switchSite(m, fromClient(r), func(st *state) (*change, error) {
		return turnOn(m, st, given), nil
	})
}

// patch changes the options given of a site that is on.
func (a *App) patch(r *http.Request, m *member, body []byte) error {
	if _, err := parseOptions(options{}, body); err != nil {
		return badRequest(err)
	}
	return a.switchSite(m, fromClient(r), func(st *state) (*change, error) {
		if !st.on(m.initiallyOn) {
			return nil, notOn(m, st)
		}
		merged, err := parseOptions(st.options(), body)
		if err != nil {
			return nil, badRequest(err)
		}
		return turnOn(m, st, merged), nil
	})
}

// turnOn keeps the time since when a site has been on.
func turnOn(m *member, st *state, o options) *change {
	o.seal(m.name, st.options().Pass)
	c := &change{enabled: true, since: now(), options: o}
	if st.on(m.initiallyOn) && !st.since().IsZero() {
		c.since = st.since()
	}
	return c
}

// turnOff changes nothing if the site has been switched off before. One whose
// maintenance has ended by itself is switched off nevertheless: by another
// instance's clock it may still be on.
func turnOff(st *state, initiallyOn bool) *change {
	if st.record != nil && !st.record.Enabled {
		return nil
	}
	c := &change{since: now()}
	if !st.blocks(initiallyOn) && !st.since().IsZero() {
		c.since = st.since()
	}
	return c
}

func now() time.Time {
	return time.Now().UTC().Truncate(time.Second)
}

func notOn(m *member, st *state) error {
	return caddy.APIError{
		HTTPStatus: http.StatusConflict,
		Err:        fmt.Errorf("site %s is not in maintenance, its state is %s; PUT switches it on", m.name, st.word(m.initiallyOn)),
	}
}

const (
	maxBody = 64 << 10
	maxWait = 30 * time.Second
)

// readBody reads the body of a switch; other requests have none.
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

// wait returns when the site is drained, or after the time that the request's
// wait parameter says; at once if it has none.
func wait(r *http.Request, m *member) error {
	query := r.URL.Query()
	if !query.Has("wait") {
		return nil
	}
	limit, err := caddy.ParseDuration(query.Get("wait"))
	if err != nil || limit <= 0 || limit > maxWait {
		return badRequest(fmt.Errorf("wait: %s given, a duration of at most %s is accepted, such as 10s",
			abridge(query.Get("wait")), maxWait))
	}
	st := m.current()
	if !st.blocks(m.initiallyOn) {
		return notOn(m, st)
	}
	ctx, cancel := context.WithTimeout(r.Context(), limit)
	defer cancel()
	m.awaitDrained(ctx.Done())
	return nil
}

// siteStatus is a site as the API answers it.
type siteStatus struct {
	Site  string    `json:"site"`
	State string    `json:"state"`
	Since time.Time `json:"since,omitzero"`
	options
	BypassSecret bool         `json:"bypass_secret"` // whether one is set
	Instance     string       `json:"instance"`
	SyncInterval string       `json:"sync_interval"`
	InFlight     int64        `json:"in_flight"`
	Held         int64        `json:"held"`
	Pages        []pageStatus `json:"pages"`
}

func (a *App) status(m *member) siteStatus {
	st := m.current()
	pages := []pageStatus{}
	for _, p := range m.pages {
		pages = append(pages, p.status())
	}
	slices.SortFunc(pages, func(x, y pageStatus) int { return strings.Compare(x.Source, y.Source) })
	return siteStatus{
		Site:         m.name,
		State:        st.word(m.initiallyOn),
		Since:        st.since(),
		options:      st.options(),
		BypassSecret: st.options().Pass != nil,
		Instance:     a.instance,
		SyncInterval: a.syncInterval(),
		InFlight:     m.inFlight.Load(),
		Held:         m.heldNow(),
		Pages:        pages,
	}
}

// writeJSON returns when the client has been sent the whole answer.
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
	_ = http.NewResponseController(w).Flush() // it may have left
	return nil
}

// Interface guards
var (
	_ caddy.AdminRouter = adminAPI{}
	_ caddy.Provisioner = adminAPI{}
)
