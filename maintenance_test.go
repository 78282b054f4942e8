package maintenance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
)

// Off and on

func TestSiteIsServedUntilItIsSwitchedOn(t *testing.T) {
	s := start(t, `maintenance shop`)
	s.wantStatus("/", 200)
	s.put("shop", `{}`)
	s.wantStatus("/", 503)
	s.delete("shop")
	s.wantStatus("/", 200)
}

func TestSiteNameIsFolded(t *testing.T) {
	s := start(t, `maintenance Shop.Example`)
	s.put("SHOP.example", "")
	s.wantStatus("/", 503)
}

func TestHandlersOfOneNameAreSwitchedTogether(t *testing.T) {
	s := start(t, `
		handle /de/* {
			maintenance shop {
				retry_after 1m
			}
			respond "app"
		}
		handle {
			maintenance shop
			respond "app"
		}`)
	s.put("shop", "")
	if got := s.get("/de/").Header.Get("Retry-After"); got != "60" {
		t.Errorf("Retry-After of /de/ is %q, want 60", got)
	}
	if got := s.get("/en/").Header.Get("Retry-After"); got != "300" {
		t.Errorf("Retry-After of /en/ is %q, want 300", got)
	}
}

func TestMatcherLimitsWhatIsGated(t *testing.T) {
	s := start(t, `
		@writes method POST PUT PATCH DELETE
		maintenance @writes shop`)
	s.put("shop", "")
	s.wantStatus("/", 200)
	response := s.do(http.MethodPost, "/", nil)
	if response.StatusCode != 503 {
		t.Errorf("POST got %d, want 503", response.StatusCode)
	}
}

func TestMaintenanceRunsBeforeHeadersAndWhatAnswers(t *testing.T) {
	s := start(t, `
		redir /old /new
		rewrite /secret /
		header X-From-Site yes
		basic_auth /secret {
			bob $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG
		}
		handle /handled {
			respond "handled"
		}
		maintenance shop`)
	s.put("shop", "")
	for _, path := range []string{"/old", "/secret", "/handled"} {
		response := s.get(path)
		if response.StatusCode != 503 {
			t.Errorf("%s got %d, want 503", path, response.StatusCode)
		}
		if got := response.Header.Get("X-From-Site"); got != "" {
			t.Errorf("%s has the X-From-Site %q of the app's responses", path, got)
		}
	}
	s.delete("shop")
	if got := s.get("/").Header.Get("X-From-Site"); got != "yes" {
		t.Errorf("the app's response has X-From-Site %q, want yes", got)
	}
}

func TestMaintenanceRunsAfterVarsAndMap(t *testing.T) {
	s := start(t, `
		maintenance shop {
			bypass {
				vars from_vars yes
			}
			bypass {
				vars {from_map} yes
			}
		}
		vars /vars from_vars yes
		map {path} {from_map} {
			/map yes
			default no
		}`)
	s.put("shop", "")
	s.wantStatus("/vars", 200)
	s.wantStatus("/map", 200)
	s.wantStatus("/", 503)
}

// In a route, directives run in the order in which they are written.
func TestHeadersBeforeTheGateInARouteAreOnThe503(t *testing.T) {
	s := start(t, `
		route {
			header X-From-Site yes
			header {
				-Server
				X-Deferred yes
			}
			maintenance shop
		}`)
	for _, want := range []int{200, 503} {
		response := s.get("/")
		if response.StatusCode != want {
			t.Errorf("got %d, want %d", response.StatusCode, want)
		}
		for name, want := range map[string]string{"X-From-Site": "yes", "X-Deferred": "yes", "Server": ""} {
			if got := response.Header.Get(name); got != want {
				t.Errorf("%d has %s %q, want %q", response.StatusCode, name, got, want)
			}
		}
		s.put("shop", "")
	}
}

func TestInitialStateHoldsUntilTheFirstSwitch(t *testing.T) {
	const directive = `maintenance preprod {
		initial_state on
	}`
	s := start(t, directive)
	s.wantStatus("/", 503)
	if got := s.status("preprod"); got["state"] != "on" || got["since"] != nil {
		t.Errorf("never switched: state is %v since %v, want on and no time", got["state"], got["since"])
	}
	s.delete("preprod")
	s.wantStatus("/", 200)
	s.reload(directive)
	s.wantStatus("/", 200)
	s.restart(directive)
	s.wantStatus("/", 200)
}

// Bypass

func TestBypassLetsMatchingRequestsThrough(t *testing.T) {
	s := start(t, `
		@office header X-Office yes
		maintenance shop {
			bypass @office
			bypass /healthz
			bypass {
				method POST
				path /hooks/*
			}
		}`)
	s.put("shop", "")
	for _, test := range []struct {
		method, path string
		header       http.Header
		want         int
	}{
		{"GET", "/", nil, 503},
		{"GET", "/", http.Header{"X-Office": {"yes"}}, 200},
		{"GET", "/", http.Header{"X-Office": {"no"}}, 503},
		{"GET", "/healthz", nil, 200},
		{"GET", "/healthz/x", nil, 503},
		{"POST", "/hooks/pay", nil, 200},
		{"GET", "/hooks/pay", nil, 503},
		{"POST", "/", nil, 503},
	} {
		response := s.do(test.method, test.path, test.header)
		if response.StatusCode != test.want {
			t.Errorf("%s %s %v got %d, want %d", test.method, test.path, test.header, response.StatusCode, test.want)
		}
	}
	if got := s.status("shop")["in_flight"]; got != 0.0 {
		t.Errorf("in_flight is %v after bypassed requests, want 0", got)
	}
}

func TestErrorOfBypassMatcherIsNotAMatch(t *testing.T) {
	s := start(t, "maintenance shop {\n bypass {\n expression `int({query.n}) > 1`\n}\n}")
	s.put("shop", "")
	if got := s.get("/?n=many").StatusCode; got != 500 {
		t.Errorf("got %d, want 500", got)
	}
}

// A bypassed request, a panic and an aborted request leave the count right.
func TestCountSurvivesPanicsOfTheApp(t *testing.T) {
	s := start(t, `
		maintenance shop
		maintenance_test_panic /panic`)
	for range 20 {
		if response, err := http.Get(s.url + "/panic"); err == nil {
			response.Body.Close()
			t.Fatalf("got %d, want an aborted connection", response.StatusCode)
		}
	}
	eventually(t, func() error {
		if got := s.status("shop")["in_flight"]; got != 0.0 {
			return fmt.Errorf("in_flight is %v, want 0", got)
		}
		return nil
	})
}

// Harness

func TestMain(m *testing.M) {
	caddy.RegisterModule(new(eventHandler))
	dir, err := os.MkdirTemp("", "maintenance")
	if err != nil {
		panic(err)
	}
	for _, name := range []string{"HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"} {
		os.Setenv(name, dir)
	}
	caddy.RegisterModule(new(storageModule))
	caddy.RegisterModule(panicHandler{})
	httpcaddyfile.RegisterHandlerDirective("maintenance_test_panic", func(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		return panicHandler{}, nil
	})
	httpcaddyfile.RegisterDirectiveOrder("maintenance_test_panic", httpcaddyfile.Before, "respond")
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// server is a Caddy that runs in this process, with storage in memory.
type server struct {
	t       *testing.T
	url     string
	admin   string
	log     string // path of its log
	storage *testStorage
	options string // global options of the next load
	before  string // what precedes the site
	after   string // directives that follow the app
}

// start runs a Caddy with one site that has the directives given and an app
// that answers "app".
func start(t *testing.T, directives string) *server {
	t.Helper()
	s := prepare(t)
	s.reload(directives)
	return s
}

func prepare(t *testing.T) *server {
	s := &server{
		t:       t,
		url:     "http://" + freeAddress(t),
		admin:   "http://" + freeAddress(t),
		log:     filepath.Join(t.TempDir(), "log"),
		storage: newTestStorage(t),
	}
	t.Cleanup(func() {
		s.storage.setFault(nil)
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
		noSiteIsLeft(t) // for the next test, which has another storage
	})
	return s
}

func (s *server) caddyfile(directives string) string {
	return fmt.Sprintf(`{
	admin %s
	persist_config off
	auto_https off
	storage test %s
	log {
		output file %s
		level DEBUG
	}
	%s
}
%s
%s {
	%s
	respond "app"
	%s
}
`, strings.TrimPrefix(s.admin, "http://"), s.t.Name(), s.log, s.options, s.before, s.url, directives, s.after)
}

// reload loads a config as a reload in a running Caddy does.
func (s *server) reload(directives string) {
	s.t.Helper()
	if err := s.load(directives); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) load(directives string) error {
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(s.caddyfile(directives)), nil)
	if err != nil {
		return err
	}
	return caddy.Load(config, true)
}

// validate looks at a config as `caddy validate` does.
func (s *server) validate(directives string) error {
	s.t.Helper()
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(s.caddyfile(directives)), nil)
	if err != nil {
		return err
	}
	var parsed *caddy.Config
	if err := caddy.StrictUnmarshalJSON(config, &parsed); err != nil {
		return err
	}
	return caddy.Validate(parsed)
}

// failLate loads a config that fails when all its apps have started.
func (s *server) failLate(directives string) {
	s.t.Helper()
	err := s.loadWith(directives, `"admin":{`,
		`"admin":{"identity":{"identifiers":["localhost"],"issuers":[{"module":"internal"}]},"remote":{"access_control":[{"public_keys":["broken"]}]},`)
	if err == nil || !strings.Contains(err.Error(), "remote admin") {
		s.t.Fatalf("got %v, want an error of the remote admin endpoint", err)
	}
}

// failEarly loads a config that fails before any of its handlers is set up.
func (s *server) failEarly(directives string) {
	s.t.Helper()
	err := s.loadWith(directives, `"apps":{`, `"apps":{"tls":{"automation":{"policies":[{"issuers":[{"module":"unheard of"}]}]}},`)
	if err == nil || !strings.Contains(err.Error(), "unheard of") {
		s.t.Fatalf("got %v, want an error of the tls app", err)
	}
}

// loadWith loads a config in which something has been replaced.
func (s *server) loadWith(directives, old, replacement string) error {
	s.t.Helper()
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(s.caddyfile(directives)), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return caddy.Load([]byte(strings.Replace(string(config), old, replacement, 1)), true)
}

// restart forgets everything that is not in storage.
func (s *server) restart(directives string) {
	s.t.Helper()
	if err := caddy.Stop(); err != nil {
		s.t.Fatal(err)
	}
	noSiteIsLeft(s.t)
	noPageIsLeft(s.t)
	s.reload(directives)
}

// noSiteIsLeft waits until nothing is remembered of any site.
func noSiteIsLeft(t *testing.T) {
	t.Helper()
	eventually(t, func() error {
		if n := sites.Len(); n > 0 {
			return fmt.Errorf("%d sites are left", n)
		}
		return nil
	})
}

// noPageIsLeft waits until no copy of a page is remembered.
func noPageIsLeft(t *testing.T) {
	t.Helper()
	eventually(t, func() (err error) {
		pages.Range(func(key, _ any) bool {
			err = fmt.Errorf("page %s is left", key)
			return false
		})
		return err
	})
}

// response is a response whose body has been read.
type response struct {
	*http.Response
	body string
}

func (s *server) get(path string) response {
	s.t.Helper()
	return s.do(http.MethodGet, path, nil)
}

func (s *server) do(method, path string, header http.Header) response {
	s.t.Helper()
	return send(s.t, method, s.url+path, "", header)
}

func (s *server) wantStatus(path string, want int) {
	s.t.Helper()
	if got := s.get(path).StatusCode; got != want {
		s.t.Errorf("GET %s got %d, want %d", path, got, want)
	}
}

// api sends a request to the admin API.
func (s *server) api(method, path, body string) response {
	s.t.Helper()
	return send(s.t, method, s.admin+path, body, nil)
}

func (s *server) put(site, body string) map[string]any {
	s.t.Helper()
	return s.change(http.MethodPut, site, body)
}

func (s *server) patch(site, body string) map[string]any {
	s.t.Helper()
	return s.change(http.MethodPatch, site, body)
}

func (s *server) delete(site string) map[string]any {
	s.t.Helper()
	return s.change(http.MethodDelete, site, "")
}

func (s *server) status(site string) map[string]any {
	s.t.Helper()
	return s.change(http.MethodGet, site, "")
}

// change sends a request about a site that must succeed.
func (s *server) change(method, site, body string) map[string]any {
	s.t.Helper()
	response := s.api(method, "/maintenance/"+site, body)
	if response.StatusCode != 200 {
		s.t.Fatalf("%s %s got %d: %s", method, site, response.StatusCode, response.body)
	}
	return decode(s.t, response.body)
}

// logged waits for a line of the log that has all the words.
func (s *server) logged(words ...string) {
	s.t.Helper()
	eventually(s.t, func() error {
		if s.countLogged(words...) == 0 {
			return fmt.Errorf("no line of the log has %q", words)
		}
		return nil
	})
}

// countLogged counts the lines of the log that have all the words.
func (s *server) countLogged(words ...string) (n int) {
	content, _ := os.ReadFile(s.log) // there is none before the first line
	for line := range strings.Lines(string(content)) {
		if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) }) {
			n++
		}
	}
	return n
}

func decode(t *testing.T, body string) map[string]any {
	t.Helper()
	var decoded map[string]any
	if err := json.Unmarshal([]byte(body), &decoded); err != nil {
		t.Fatalf("%v in %q", err, body)
	}
	return decoded
}

// send sends a request, and sends it again where it met the server of a config
// that has just been replaced: that resets the connections that it has not
// accepted.
func send(t *testing.T, method, url, body string, header http.Header) (answer response) {
	t.Helper()
	eventually(t, func() (err error) {
		answer, err = try(method, url, body, header)
		return err
	})
	return answer
}

func try(method, url, body string, header http.Header) (response, error) {
	request, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return response{}, err
	}
	maps.Copy(request.Header, header)
	answer, err := client.Do(request)
	if err != nil {
		return response{}, err
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	return response{answer, string(content)}, err
}

// client follows no redirect and undoes no compression.
var client = &http.Client{
	Transport: &http.Transport{DisableCompression: true, DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	},
	Timeout: time.Minute,
}

// freeAddress returns an address that nothing listens on, and that is not given out
// again: Caddy would share it. Systems take the ports of outgoing connections from above
// this range, and the other tests' are above it too.
func freeAddress(t *testing.T) string {
	t.Helper()
	for range 1000 {
		address := fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(10000))
		if _, given := givenAddresses.LoadOrStore(address, true); given {
			continue
		}
		if listener, err := net.Listen("tcp", address); err == nil {
			listener.Close()
			return address
		}
	}
	t.Fatal("no port is free")
	return ""
}

var givenAddresses sync.Map

// eventually tries until there is no error, or too much time has gone by.
func eventually(t *testing.T, try func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// upstream runs an app whose /slow is answered when it is told to; see
// slowRequest.
func upstream(t *testing.T) (address string) {
	t.Helper()
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			arrived, released := make(chan struct{}), make(chan struct{})
			slowRequests <- slow{arrived, released}
			close(arrived)
			<-released
		}
	}))
	t.Cleanup(app.Close)
	return strings.TrimPrefix(app.URL, "http://")
}

// slowShop are the directives of a site in front of such an app.
func slowShop(t *testing.T) string {
	t.Helper()
	return `
		maintenance shop
		handle /slow {
			reverse_proxy ` + upstream(t) + `
		}`
}

type slow struct{ arrived, released chan struct{} }

var slowRequests = make(chan slow)

// slowRequest sends a request that the app has received when it returns, and
// answers when released; its status is sent to finished.
func (s *server) slowRequest() (release func(), finished <-chan int) {
	s.t.Helper()
	status := make(chan int, 1)
	go func() {
		response, err := client.Get(s.url + "/slow")
		if err != nil {
			s.t.Error(err)
			status <- 0
			return
		}
		response.Body.Close()
		status <- response.StatusCode
	}()
	request := <-slowRequests
	<-request.arrived
	return func() { close(request.released) }, status
}

// testStorage is a storage in memory that fails as a test wants it to.
type testStorage struct {
	mu     sync.Mutex
	values map[string][]byte
	fault  func(ctx context.Context, op, key string) error
	loads  atomic.Int64
	stores atomic.Int64
}

// testStorages are found by name from a config.
var testStorages sync.Map

func newTestStorage(t *testing.T) *testStorage {
	s := &testStorage{values: make(map[string][]byte)}
	testStorages.Store(t.Name(), s)
	t.Cleanup(func() { testStorages.Delete(t.Name()) })
	return s
}

// setFault sets what is asked before each Load and Store.
func (s *testStorage) setFault(fault func(ctx context.Context, op, key string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = fault
}

func (s *testStorage) meet(ctx context.Context, op, key string) error {
	s.mu.Lock()
	fault := s.fault
	s.mu.Unlock()
	if fault == nil {
		return nil
	}
	return fault(ctx, op, key)
}

func (s *testStorage) set(key, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values[key] = []byte(value)
}

func (s *testStorage) get(key string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.values[key])
}

func (s *testStorage) Store(ctx context.Context, key string, value []byte) error {
	s.stores.Add(1)
	if err := s.meet(ctx, "store", key); err != nil {
		return err
	}
	s.set(key, string(value))
	return nil
}

func (s *testStorage) Load(ctx context.Context, key string) ([]byte, error) {
	if strings.HasPrefix(key, "maintenance/") {
		s.loads.Add(1)
	}
	if err := s.meet(ctx, "load", key); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	value, ok := s.values[key]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return bytes.Clone(value), nil
}

func (s *testStorage) Delete(_ context.Context, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for other := range s.values {
		if other == key || strings.HasPrefix(other, key+"/") {
			delete(s.values, other)
		}
	}
	return nil
}

func (s *testStorage) Exists(_ context.Context, key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.values[key]
	return ok
}

func (s *testStorage) List(context.Context, string, bool) ([]string, error) {
	return nil, errors.New("maintenance lists no directory")
}

func (s *testStorage) Stat(context.Context, string) (certmagic.KeyInfo, error) {
	return certmagic.KeyInfo{}, fs.ErrNotExist
}

func (s *testStorage) Lock(context.Context, string) error   { return nil }
func (s *testStorage) Unlock(context.Context, string) error { return nil }

// storageModule is how a config names a testStorage.
type storageModule struct {
	Name string `json:"name"`
}

func (*storageModule) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.storage.test", New: func() caddy.Module { return new(storageModule) }}
}

func (m *storageModule) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	d.NextArg()
	m.Name = d.Val()
	return nil
}

func (m *storageModule) CertMagicStorage() (certmagic.Storage, error) {
	s, ok := testStorages.Load(m.Name)
	if !ok {
		return nil, fmt.Errorf("no test storage %q", m.Name)
	}
	return s.(*testStorage), nil
}

// panicHandler aborts as reverse_proxy does when an upstream breaks off.
type panicHandler struct{}

func (panicHandler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.maintenance_test_panic", New: func() caddy.Module { return new(panicHandler) }}
}

func (panicHandler) ServeHTTP(http.ResponseWriter, *http.Request, caddyhttp.Handler) error {
	panic(http.ErrAbortHandler)
}

func init() {
	caddy.RegisterModule(testAppModule{})
	httpcaddyfile.RegisterHandlerDirective("maintenance_test_app", func(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		h.Next()
		h.NextArg()
		return testAppModule{h.Val()}, nil
	})
	httpcaddyfile.RegisterDirectiveOrder("maintenance_test_app", httpcaddyfile.Before, "respond")
}

// testApps are found by number from a config.
var (
	testApps     sync.Map
	lastTestApps atomic.Int64
)

// testApp returns the directive of an app that runs in Caddy itself.
func testApp(t *testing.T, serve func(http.ResponseWriter, *http.Request) error) string {
	t.Helper()
	return testMiddleware(t, func(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error { return serve(w, r) })
}

func testMiddleware(t *testing.T, serve func(http.ResponseWriter, *http.Request, caddyhttp.Handler) error) string {
	t.Helper()
	number := strconv.FormatInt(lastTestApps.Add(1), 10)
	testApps.Store(number, serve)
	t.Cleanup(func() { testApps.Delete(number) })
	return "maintenance_test_app " + number
}

type testAppModule struct {
	Number string `json:"number"`
}

func (testAppModule) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.maintenance_test_app", New: func() caddy.Module { return new(testAppModule) }}
}

func (m testAppModule) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	serve, ok := testApps.Load(m.Number)
	if !ok {
		return fmt.Errorf("no test app %s", m.Number)
	}
	return serve.(func(http.ResponseWriter, *http.Request, caddyhttp.Handler) error)(w, r, next)
}

// accessLog returns the entries of the access log without what is never the same.
func (s *server) accessLog() (entries []string) {
	content, _ := os.ReadFile(s.log) // there is none before the first line
	for line := range strings.Lines(string(content)) {
		var entry map[string]any
		if json.Unmarshal([]byte(line), &entry) != nil || entry["logger"] != "http.log.access" {
			continue
		}
		delete(entry, "ts")
		delete(entry, "duration")
		delete(entry["request"].(map[string]any), "remote_port")
		entries = append(entries, fmt.Sprint(entry))
	}
	return entries
}

func siteNamed(name string) *configuredSite {
	app, err := runningApp()
	if err != nil {
		return nil
	}
	return app.sites[name]
}

// holdsInFlight fails the test if another number of requests is in flight before that
// time has passed.
func (s *server) holdsInFlight(d time.Duration, n int64) {
	s.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); <-time.After(10 * time.Millisecond) {
		if got := siteNamed("shop").inFlight.Count(); got != n {
			s.t.Errorf("%d in flight, want %d", got, n)
			return
		}
	}
}

func (s *server) awaitInFlight(n int64) {
	s.t.Helper()
	eventually(s.t, func() error {
		if got := siteNamed("shop").inFlight.Count(); got != n {
			return fmt.Errorf("%d are in flight, want %d", got, n)
		}
		return nil
	})
}

// ask gets a URL.
func ask(ctx context.Context, client *http.Client, url string) visited {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return visited{err: err}
	}
	return roundTrip(client, request)
}
