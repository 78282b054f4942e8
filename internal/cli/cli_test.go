package cli

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/caddyserver/caddy/v2"

	"example.com/caddy-maintenance/internal/api"
)

// exchange is a request that the admin API must get, and what it answers.
type exchange struct {
	request  string // method, URI, and the body if there is one
	answer   string // with status 200, unless it begins with another one
	template string // in its header
	etag     string // in its header
	ifMatch  string // the condition of the request
	takes    time.Duration
}

// runs tries a command line, written without "maintenance". It must make the requests of the
// script and have the wanted result.
func runs(t *testing.T, line string, want result, script ...exchange) {
	t.Helper()
	f := newFakeAPI(t, script...)
	args := append([]string{"maintenance"}, strings.Fields(line)...)
	if got := f.run(args...); got != want {
		t.Errorf("%s got\n%+v, want\n%+v", line, got, want)
	}
	f.close()
}

// fakeAPI is an admin API that answers from a script, and the clock of the command lines. The
// script must be followed to its end.
type fakeAPI struct {
	t        *testing.T
	address  string
	script   []exchange
	clock    atomic.Int64 // nanoseconds since typed
	secrets  []string     // generated ones
	terminal bool
	close    func()
}

// typed is when a command line is entered.
var typed = time.Date(2026, 1, 31, 3, 0, 0, 1_234_567, time.FixedZone("CET", 3600))

func newFakeAPI(t *testing.T, script ...exchange) *fakeAPI {
	t.Helper()
	f := &fakeAPI{t: t, script: script}
	server := httptest.NewServer(f)
	f.address = server.Listener.Addr().String()
	f.close = sync.OnceFunc(func() {
		server.Close()
		for _, missing := range f.script {
			t.Errorf("not requested: %s", missing.request)
		}
	})
	t.Cleanup(f.close)
	return f
}

var madeSecret = regexp.MustCompile(`"([A-Z2-7]{26})"`)

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	if made := madeSecret.FindSubmatch(body); made != nil {
		f.secrets = append(f.secrets, string(made[1]))
	}
	got := f.plain(strings.TrimSpace(r.Method + " " + r.RequestURI + " " + string(body)))
	if !r.Close {
		f.t.Errorf("%s keeps its connection, which nothing would close", got)
	}
	if answer := unscripted(got); answer != "" && (len(f.script) == 0 || f.script[0].request != got) {
		_, _ = io.WriteString(w, answer)
		return
	}
	if len(f.script) == 0 || f.script[0].request != got {
		f.t.Errorf("requested: %s, want the first of %+v", got, f.script)
		http.Error(w, "unexpected", http.StatusTeapot)
		return
	}
	next := f.script[0]
	f.script = f.script[1:]
	if match := r.Header.Get("If-Match"); match != next.ifMatch {
		f.t.Errorf("%s has the condition %s, want %s", got, match, next.ifMatch)
	}
	f.clock.Add(int64(next.takes))
	if next.etag != "" {
		w.Header().Set("ETag", next.etag)
	}
	if next.template != "" {
		w.Header().Set(api.TemplatesHeader, next.template)
	}
	var status int
	if _, err := fmt.Sscanf(next.answer, "%3d ", &status); err == nil {
		w.WriteHeader(status)
		next.answer = next.answer[len("409 "):]
	}
	_, _ = io.WriteString(w, next.answer)
}

func (f *fakeAPI) now() time.Time { return typed.Add(time.Duration(f.clock.Load())) }

// plain replaces what differs each time.
func (f *fakeAPI) plain(text string) string {
	for i, secret := range f.secrets {
		text = strings.ReplaceAll(text, secret, fmt.Sprintf("SECRET-%d", i+1))
	}
	if strings.HasPrefix(text, "PUT ") {
		text = strings.NewReplacer(`"by":"eve@web-1",`, "", `"by":"eve@web-1"`, "").Replace(text) // which each has
	}
	return strings.ReplaceAll(text, f.address, "ADDRESS")
}

// result is what a command line ends with.
type result struct {
	stdout, stderr string
	code           int
}

// run runs a command line, given without "caddy". The API is where the command looks by default.
func (f *fakeAPI) run(args ...string) result {
	var stdout, stderr bytes.Buffer
	root := &cobra.Command{Use: "caddy", SilenceUsage: true}
	cmd := &cobra.Command{Use: "maintenance"}
	setUp(cmd, environment{now: f.now, by: func() string { return "eve@web-1" }, isTerminal: func(any) bool { return f.terminal }})
	root.AddCommand(cmd)
	root.SetOut(&stdout)
	root.SetErr(&stderr)
	root.SetArgs(args)
	defer func(before string) { caddy.DefaultAdminListen = before }(caddy.DefaultAdminListen)
	caddy.DefaultAdminListen = f.address
	code := 0
	if err := root.Execute(); err != nil {
		code = 1
		_, _ = fmt.Sscanf(err.Error(), "exiting with status %d", &code) // as Caddy says it
	}
	return result{f.plain(stdout.String()), f.plain(stderr.String()), code}
}

// says is the result of a command line that succeeds.
func says(stdout string) result { return result{stdout: stdout} }

// fails is the result of one that fails before it does anything.
func fails(message string) result { return result{stderr: "Error: " + message + "\n", code: 1} }

const (
	shopOff  = `{"site":"shop","state":"off"}`
	shopOn   = `{"site":"shop","state":"on","since":"2026-01-31T01:00:00Z"}`
	wikiOff  = `{"site":"wiki","state":"off","since":"2026-01-30T23:30:00Z"}`
	wikiOn   = `{"site":"wiki","state":"on","since":"2026-01-31T02:00:00Z"}`
	diskFull = `500 {"error":"storing state of site shop: disk full"}`
)

// lists is the first request of every command.
func lists(sites ...string) exchange {
	return exchange{request: "GET /maintenance", answer: "[" + strings.Join(sites, ",") + "]"}
}

// listsTenants is the same if sites get their names from a placeholder.
func listsTenants(sites ...string) exchange {
	answer := lists(sites...)
	answer.template = "{host}"
	return answer
}

// What switches sites; the answer is the site in its new state unless another is given.

func put(site string, answer ...string) exchange   { return switches("PUT", site, " {}", answer) }
func patch(site string, answer ...string) exchange { return switches("PATCH", site, " {}", answer) }
func del(site string, answer ...string) exchange   { return switches("DELETE", site, "", answer) }

func switches(method, site, body string, answer []string) exchange {
	word := "on"
	if method == "DELETE" {
		word = "off"
	}
	defaults := map[string]string{"shop on": shopOn, "shop off": shopOff, "wiki on": wikiOn, "wiki off": wikiOff}
	answer = append(answer, defaults[site+" "+word])
	return exchange{request: method + " /maintenance/" + site + body, answer: answer[0]}
}

// with is a site with more fields.
func with(site, fields string) string { return strings.TrimSuffix(site, "}") + "," + fields + "}" }

// waits is a request that waits this long, and then finds this many in flight.
func waits(query string, takes time.Duration, inFlight int) exchange {
	site, wait, _ := strings.Cut(query, "?")
	return instances(site+"/instances?"+wait, takes, instance("web-1", "confirmed", inFlight))
}

// instances is a request for the reports of instances.
func instances(query string, takes time.Duration, list ...string) exchange {
	return exchange{request: "GET /maintenance/" + query, answer: "[" + strings.Join(list, ",") + "]", takes: takes}
}

// instance is the report of one, last seen a minute ago.
func instance(host, state string, inFlight int) string {
	drained := inFlight == 0 && (state == "confirmed" || state == "stopping")
	return fmt.Sprintf(`{"instance":%q,"id":%q,"state":%q,"in_flight":%d,"drained":%t,"seen":"2026-01-31T01:59:00Z","sync_interval":"2s"}`,
		host, host+"-1", state, inFlight, drained)
}

// unscripted is the answer to what every switch asks at the end, unless a script has another one:
// there is one instance, and the site is on.
func unscripted(request string) string {
	switch {
	case strings.HasSuffix(request, "/instances"):
		return "[" + instance("web-1", "confirmed", 0) + "]"
	case request == "GET /config/apps/http":
		return "null"
	case request == "GET /maintenance/shop":
		return shopOn
	case request == "GET /maintenance/wiki":
		return wikiOn
	}
	return ""
}
