package maintenance

import (
	"bytes"
	"cmp"
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
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	"example.com/caddy-maintenance/internal/inflight"
	"example.com/caddy-maintenance/internal/site"
	"example.com/caddy-maintenance/internal/store"
)

func TestMain(m *testing.M) {
	lastPort.Store(rand.Int64N(10000))
	dir, err := os.MkdirTemp("", "maintenance")
	if err != nil {
		panic(err)
	}
	for _, name := range []string{"HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"} {
		os.Setenv(name, dir)
	}
	caddy.RegisterModule(new(eventHandler))
	caddy.RegisterModule(new(storageModule))
	caddy.RegisterModule(testAppModule{})
	httpcaddyfile.RegisterHandlerDirective("maintenance_test_app", func(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		h.Next()
		h.NextArg()
		return testAppModule{h.Val()}, nil
	})
	httpcaddyfile.RegisterDirectiveOrder("maintenance_test_app", httpcaddyfile.Before, "respond")
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// Conditions

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

// startWorkers returns a function that repeats work in a goroutine until the workers are stopped.
func startWorkers() (run func(work func(i int)), stop func()) {
	var workers sync.WaitGroup
	var over atomic.Bool
	run = func(work func(i int)) {
		workers.Go(func() {
			for i := 0; !over.Load(); i++ {
				work(i)
			}
		})
	}
	return run, func() { over.Store(true); workers.Wait() }
}

// Sites by their names, and of templates

// kind says how a config gets its sites: it names them, or has templates that yield their names.
type kind struct{ template bool }

// anyHost is a template.
const anyHost = "{http.request.host}"

// ofEachKind runs a test with sites of each kind.
func ofEachKind(t *testing.T, test func(t *testing.T, k kind)) {
	t.Helper()
	t.Run("name", func(t *testing.T) { test(t, kind{}) })
	t.Run("template", func(t *testing.T) { test(t, kind{template: true}) })
}

func inTimeOfEachKind(t *testing.T, test func(t *testing.T, k kind)) {
	t.Helper()
	ofEachKind(t, func(t *testing.T, k kind) { synctest.Test(t, func(t *testing.T) { test(t, k) }) })
}

// of returns what apps join to have sites of these names.
func (k kind) of(names ...string) []string {
	if k.template {
		return []string{anyHost}
	}
	return names
}

func (k kind) start(t *testing.T, directives string) *server {
	t.Helper()
	s := k.prepare(t)
	s.reload(directives)
	return s
}

func (k kind) prepare(t *testing.T) *server {
	s := prepare(t)
	s.kind = k
	return s
}

var namedGate = regexp.MustCompile(`maintenance (\S+ )?(shop|wiki|blog|closed|held|cut|other)\b`)

// directives returns the directives, with templates for names if the kind has them.
func (k kind) directives(given string) string {
	if k.template {
		return namedGate.ReplaceAllString(given, "vars test_$2 $2\nmaintenance $1{vars.test_$2}")
	}
	return given
}

// Caddy

// server is a Caddy that runs in this process, with storage in memory.
type server struct {
	t       *testing.T
	url     string
	admin   string
	log     string // path of its log
	storage *testStorage
	options string // global options of the next load
	before  string // what precedes the site
	address string // of the site; url if it is empty
	after   string // directives that follow the app
	kind    kind   // of the sites
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
	data, err := os.MkdirTemp(os.Getenv("HOME"), "data") // a stopped Caddy may still write to it
	noError(t, err)
	t.Setenv("XDG_DATA_HOME", data) // otherwise an instance would remember an earlier test
	s := &server{
		t:       t,
		url:     "http://" + freeAddress(t),
		admin:   "http://" + freeAddress(t),
		log:     filepath.Join(t.TempDir(), "log"),
		storage: newTestStorage(t),
		options: "servers {\nprotocols h1 h2c\n}\n",
	}
	t.Cleanup(func() {
		s.storage.setFault(nil)
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
		dropAllGone()   // as the end of the process does
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
`, strings.TrimPrefix(s.admin, "http://"), s.t.Name(), s.log, s.options, s.before, cmp.Or(s.address, s.url), s.kind.directives(directives), s.kind.directives(s.after))
}

// reload loads a config as a reload in a running Caddy does.
func (s *server) reload(directives string) {
	s.t.Helper()
	if err := s.load(directives); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) load(directives string) error { return s.loadWith(directives, "", "") }

// loadWith loads a config in which something has been replaced.
func (s *server) loadWith(directives, old, replacement string) error {
	config, err := adapt(s.caddyfile(directives))
	if err != nil {
		return err
	}
	return caddy.Load([]byte(strings.Replace(config, old, replacement, 1)), true)
}

// adapt turns a Caddyfile into JSON as `caddy adapt` does.
func adapt(caddyfile string) (string, error) {
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfile), map[string]any{"filename": "Caddyfile"})
	return string(config), err
}

// validate checks a config as `caddy validate` does.
func (s *server) validate(directives string) error {
	config, err := adapt(s.caddyfile(directives))
	if err != nil {
		return err
	}
	var parsed *caddy.Config
	if err := caddy.StrictUnmarshalJSON([]byte(config), &parsed); err != nil {
		return err
	}
	return caddy.Validate(parsed)
}

// failLate loads a config that fails after all its apps have started.
func (s *server) failLate(directives string) {
	s.t.Helper()
	s.fail(directives, `"admin":{`, `"admin":{"identity":{"identifiers":["localhost"],"issuers":[{"module":"internal"}]},`+
		`"remote":{"access_control":[{"public_keys":["broken"]}]},`, "remote admin")
}

// failEarly loads a config that fails before any of its handlers is set up.
func (s *server) failEarly(directives string) {
	s.t.Helper()
	s.fail(directives, `"apps":{`, `"apps":{"tls":{"automation":{"policies":[{"issuers":[{"module":"unheard of"}]}]}},`, "unheard of")
}

func (s *server) fail(directives, old, replacement, want string) {
	s.t.Helper()
	if err := s.loadWith(directives, old, replacement); err == nil || !strings.Contains(err.Error(), want) {
		s.t.Fatalf("got %v, want an error with %q", err, want)
	}
}

// restart forgets everything that is not in storage.
func (s *server) restart(directives string) {
	s.t.Helper()
	s.stop()
	s.reload(directives)
}

// stop ends Caddy, which must leave nothing behind.
func (s *server) stop() {
	s.t.Helper()
	if err := caddy.Stop(); err != nil {
		s.t.Fatal(err)
	}
	noSiteIsLeft(s.t)
	noPageIsLeft(s.t)
}

// noSiteIsLeft waits until nothing is remembered of any site.
func noSiteIsLeft(t *testing.T) {
	t.Helper()
	eventually(t, func() error {
		if n := sitesInMemory(); n > 0 {
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

func sitesInMemory() int { return len(slices.Collect(sites.All())) }

func siteNamed(name string) *configuredSite {
	app, err := runningApp()
	if err != nil {
		return nil
	}
	return app.sites.lookup(name)
}

// freeAddress returns an address that nothing listens on, and that is not given out
// again: Caddy would share it. Systems take the ports of outgoing connections from above
// this range, and the other tests' are above it too.
func freeAddress(t *testing.T) string {
	t.Helper()
	for range 1000 {
		address := fmt.Sprintf("127.0.0.1:%d", 10000+lastPort.Add(1)%10000)
		if listener, err := net.Listen("tcp", address); err == nil {
			listener.Close()
			return address
		}
	}
	t.Fatal("no port is free")
	return ""
}

var lastPort atomic.Int64

// The log

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

// accessLog returns the entries of the access log, without fields that always differ.
func (s *server) accessLog() (entries []map[string]any) {
	content, _ := os.ReadFile(s.log)
	for line := range strings.Lines(string(content)) {
		var entry map[string]any
		if json.Unmarshal([]byte(line), &entry) != nil || !strings.HasPrefix(fmt.Sprint(entry["logger"]), "http.log.access") {
			continue
		}
		delete(entry, "ts")
		delete(entry, "duration")
		delete(entry["request"].(map[string]any), "remote_port")
		entries = append(entries, entry)
	}
	return entries
}

// expectAccess fails the test unless the last entry of the access log for a URI has this
// level, status, maintenance field and outcome.
func (s *server) expectAccess(uri, want string) {
	s.t.Helper()
	s.logged(`"http.log.access`, `"uri":"`+uri+`"`)
	var got string
	for _, e := range s.accessLog() {
		if e["request"].(map[string]any)["uri"] == uri {
			got = fmt.Sprintf("%v %v %v/%v", e["level"], e["status"], e["maintenance"], e["outcome"])
		}
	}
	if got = strings.Trim(strings.ReplaceAll(got, "<nil>", ""), " /"); got != want {
		s.t.Errorf("%s is logged as %q, want %q", uri, got, want)
	}
}

// Requests

// client follows no redirect, undoes no compression, and keeps no connection.
var client = newClient(false, false)

// clients speak HTTP/1.1 and HTTP/2, and keep their connections.
var clients = [2]*http.Client{newClient(false, true), newClient(true, true)}

func newClient(http2, keepAlive bool) *http.Client {
	transport := &http.Transport{
		Protocols: new(http.Protocols), DisableCompression: true, DisableKeepAlives: !keepAlive,
		MaxIdleConnsPerHost: 1000, IdleConnTimeout: time.Second,
	}
	transport.Protocols.SetHTTP1(!http2)
	transport.Protocols.SetUnencryptedHTTP2(http2)
	return &http.Client{Timeout: time.Minute, Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
}

// response is a response whose body has been read.
type response struct {
	*http.Response
	body string
}

// visited is what a visitor got.
type visited struct {
	response
	want string // what the app answers
	err  error
}

func roundTrip(client *http.Client, request *http.Request) visited {
	answer, err := client.Do(request)
	if err != nil {
		return visited{response: response{Response: new(http.Response)}, err: err}
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	return visited{response: response{answer, string(content)}, err: err}
}

// ask gets a URL.
func ask(ctx context.Context, client *http.Client, url string) visited {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		panic(err)
	}
	return roundTrip(client, request)
}

func try(method, url, body string, header http.Header) (response, error) {
	request, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return response{}, err
	}
	maps.Copy(request.Header, header)
	got := roundTrip(client, request)
	return got.response, got.err
}

// send sends a request. It sends it again if the server of a replaced config resets the
// connection, as it does with those that it has not accepted.
func send(t *testing.T, method, url, body string, header http.Header) (answer response) {
	t.Helper()
	eventually(t, func() (err error) {
		answer, err = try(method, url, body, header)
		return err
	})
	return answer
}

func (s *server) get(path string) response {
	s.t.Helper()
	return s.do(http.MethodGet, path, nil)
}

func (s *server) do(method, path string, header http.Header) response {
	s.t.Helper()
	return send(s.t, method, s.url+path, "", header)
}

// visit sends a request such as "POST acme.test/x", with the header X-Tenant if more words
// follow, and GET if it begins with none.
func (s *server) visit(visit string, cookies ...string) response {
	s.t.Helper()
	words := strings.Fields(visit)
	if strings.Contains(words[0], "/") {
		words = slices.Insert(words, 0, http.MethodGet)
	}
	host, path, _ := strings.Cut(words[1], "/")
	request, err := http.NewRequest(words[0], s.url+"/"+path, nil)
	noError(s.t, err)
	request.Host = host
	request.Header["X-Tenant"] = words[2:]
	request.Header["Cookie"] = cookies
	var got visited
	eventually(s.t, func() error {
		got = roundTrip(client, request)
		return got.err
	})
	return got.response
}

func (s *server) wantStatus(path string, want int) {
	s.t.Helper()
	if got := s.get(path).StatusCode; got != want {
		s.t.Errorf("GET %s got %d, want %d", path, got, want)
	}
}

// dial sends a request, or a part of it, unchanged except for its Host.
func (s *server) dial(request string) net.Conn {
	s.t.Helper()
	address := strings.TrimPrefix(s.url, "http://")
	conn, err := net.Dial("tcp", address)
	if err == nil {
		_, err = io.WriteString(conn, strings.Replace(request, "\r\n", "\r\nHost: "+address+"\r\n", 1))
	}
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(20 * time.Second))
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return conn
}

// The admin API

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

func decode(t *testing.T, body string) map[string]any {
	t.Helper()
	var decoded map[string]any
	if err := json.Unmarshal([]byte(body), &decoded); err != nil {
		t.Fatalf("%v in %q", err, body)
	}
	return decoded
}

// await returns when a number in the site's answer is as wanted.
func (s *server) await(site, field string, want int) {
	s.t.Helper()
	eventually(s.t, func() error {
		if got := s.status(site)[field]; got != float64(want) {
			return fmt.Errorf("%s of %s is %v, want %d", field, site, got, want)
		}
		return nil
	})
}

// Requests in flight

// upstream runs an app whose /slow is answered when it is told to; see
// slowRequest.
func upstream(t *testing.T) (address string) {
	t.Helper()
	return newApp(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			released := make(chan struct{})
			slowRequests <- released
			<-released
		}
	})
}

var slowRequests = make(chan chan struct{})

// newApp runs an app outside of Caddy.
func newApp(t *testing.T, serve http.HandlerFunc) (address string) {
	t.Helper()
	app := httptest.NewServer(serve)
	t.Cleanup(app.Close)
	return app.Listener.Addr().String()
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

// slowRequest sends a request that the app has received when it returns, and
// answers when released; its status is sent to finished.
func (s *server) slowRequest() (release func(), finished <-chan int) {
	s.t.Helper()
	status := make(chan int, 1)
	go func() {
		got := ask(context.Background(), client, s.url+"/slow")
		if got.err != nil {
			s.t.Error(got.err)
		}
		status <- got.StatusCode
	}()
	released := <-slowRequests
	return func() { close(released) }, status
}

// testApp returns the directive of an app that runs in Caddy itself.
func testApp(t *testing.T, serve func(http.ResponseWriter, *http.Request) error) string {
	t.Helper()
	return testMiddleware(t, func(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error { return serve(w, r) })
}

func testMiddleware(t *testing.T, serve func(http.ResponseWriter, *http.Request, caddyhttp.Handler) error) string {
	t.Helper()
	number := strconv.FormatInt(lastTestApp.Add(1), 10)
	testApps.Store(number, serve)
	t.Cleanup(func() { testApps.Delete(number) })
	return "maintenance_test_app " + number
}

// testApps are found by number from a config.
var (
	testApps    sync.Map
	lastTestApp atomic.Int64
)

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

// Storage

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
	if fault != nil {
		return fault(ctx, op, key)
	}
	return nil
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
	if value, ok := s.values[key]; ok {
		return bytes.Clone(value), nil
	}
	return nil, fs.ErrNotExist
}

func (s *testStorage) Delete(_ context.Context, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.values, func(other string, _ []byte) bool { return other == key || strings.HasPrefix(other, key+"/") })
	return nil
}

func (s *testStorage) Exists(_ context.Context, key string) bool { return s.get(key) != "" }
func (s *testStorage) Lock(context.Context, string) error        { return nil }
func (s *testStorage) Unlock(context.Context, string) error      { return nil }

// lists is a fault of a storage that lists no other key.
type lists string

func (l lists) Error() string { return "only " + string(l) }

func (s *testStorage) List(ctx context.Context, path string, _ bool) (keys []string, err error) {
	var only lists
	if err := s.meet(ctx, "list", path); err != nil && !errors.As(err, &only) {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for key := range s.values {
		if strings.HasPrefix(key, path+"/") && (only == "" || key == string(only)) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys, nil
}

func (s *testStorage) Stat(context.Context, string) (certmagic.KeyInfo, error) {
	return certmagic.KeyInfo{}, fs.ErrNotExist
}

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

// Gates and sites, without Caddy

// newTestSite returns a site whose record is not read yet.
func newTestSite(name string) *configuredSite {
	entry := site.NewPool(newSharedSite).Acquire(parseName(name), time.Now())
	return &configuredSite{config: new(configSites), sharedSite: entry.Value, entry: entry, followed: &store.Followed{Site: entry.Value.Site}}
}

// read applies a record to the site as a sync does, or the lack of one.
func (s *configuredSite) read(record string) {
	var read site.Read
	if record != "" {
		read.Record, read.Err = site.ParseRecord([]byte(record), caddy.ParseDuration)
	}
	for range s.Apply(read, site.Cause{Source: site.SourceSync}, time.Now()) {
		s.setTerminateTimer()
	}
}

// turn switches the site as the admin API does, one step after the other:
//
//	wait 1h; on {"hold": "30s"}; patch {"hold": null}; off
func (s *configuredSite) turn(script string) {
	for step := range strings.SplitSeq(script, "; ") {
		what, options, _ := strings.Cut(step, " ")
		if what == "wait" {
			sleep(options)
			continue
		}
		record, err := s.configured().Mutate(parseMutation(what, options), time.Now())
		if err != nil {
			panic(err)
		}
		if record != nil { // otherwise nothing has changed
			s.read(string(record.Raw()))
		}
	}
}

func parseMutation(what, options string) site.Mutation {
	if what == "off" {
		return site.Off{}
	}
	given, err := site.Parser{Durations: caddy.ParseDuration, Now: time.Now()}.Body([]byte(options))
	if err != nil {
		panic(err)
	}
	return map[string]site.Mutation{"on": site.On{Options: given}, "patch": site.Patch{Options: given}}[what]
}

func sleep(duration string) {
	d, err := time.ParseDuration(duration)
	if err != nil {
		panic(err)
	}
	time.Sleep(d)
}

func parseName(text string) *site.Name {
	name, err := site.ParseName(text)
	if err != nil {
		panic(err)
	}
	return name
}

func gateOf(s *configuredSite) *Handler {
	view := s.viewOf(nil) // as of handlers without a page of their own
	return &Handler{site: s, view: view, RetryAfter: caddy.Duration(defaultRetryAfter), log: zap.NewNop(), bypass: newBypass(s, zap.NewNop(), nil)}
}

// newClosedGate returns a handler whose site is on.
func newClosedGate(name, options string) *Handler {
	s := newTestSite(name)
	s.read(``)
	s.turn("on " + options)
	return gateOf(s)
}

func admitOne(s *configuredSite) *inflight.Request {
	_, req, _ := s.admit(gateOf(s), s.Name, httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))
	return req
}

// newRequest prepares a request as Caddy does for handlers. If it comes from "@", the proxy in
// between is trusted.
func newRequest(r *http.Request) *http.Request {
	return caddyhttp.PrepareRequest(r, caddy.NewReplacer(), httptest.NewRecorder(), &caddyhttp.Server{TrustedProxiesUnix: true})
}

// serve serves a request with a chain of handlers that ends with the app.
func serve(w http.ResponseWriter, r *http.Request, app caddyhttp.HandlerFunc, handlers ...caddyhttp.MiddlewareHandler) error {
	next := caddyhttp.Handler(app)
	for _, handler := range slices.Backward(handlers) {
		inner := next
		next = caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error { return handler.ServeHTTP(w, r, inner) })
	}
	return next.ServeHTTP(w, r)
}

// visit serves a GET with cookies by a handler, with an app that answers with what it got.
func (h *Handler) visit(path string, cookies ...string) *httptest.ResponseRecorder {
	w, r := httptest.NewRecorder(), newRequest(httptest.NewRequest(http.MethodGet, path, nil))
	r.Header["Cookie"] = cookies
	if err := serve(w, r, appThatReads, h); err != nil {
		panic(err)
	}
	return w
}

// appThatReads answers with what it got.
func appThatReads(w http.ResponseWriter, r *http.Request) error {
	body, err := io.ReadAll(r.Body)
	_, _ = fmt.Fprintf(w, "app%s", body)
	return err
}

// before returns a handler that does something and passes the request on.
type before func(w http.ResponseWriter, r *http.Request)

func (f before) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	f(w, r)
	return next.ServeHTTP(w, r)
}

type matcher func(r *http.Request) (bool, error)

func (m matcher) MatchWithError(r *http.Request) (bool, error) { return m(r) }

// matching returns a handler of the site with a bypass matcher.
func matching(s *configuredSite, m matcher) *Handler {
	h := gateOf(s)
	h.bypass.matchers = caddyhttp.MatcherSets{{m}}
	return h
}

// memoryServer is a server with the handler of a closed site that holds. Its connections are
// in memory, and so follow the fake time of a test.
type memoryServer struct {
	gate     *Handler
	app      caddyhttp.HandlerFunc
	stopping chan struct{}
	conns    chan net.Conn
	clients  [2]*http.Client // as clients
}

func inMemory(t *testing.T, server *http.Server, test func(t *testing.T, s *memoryServer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &memoryServer{app: appThatReads, stopping: make(chan struct{}), conns: make(chan net.Conn)}
		s.gate = newClosedGate("shop", `{"hold": "5m"}`)
		s.gate.stopping = s.stopping
		server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := serve(w, newRequest(r), s.app, s.gate); err != nil {
				w.WriteHeader(http.StatusBadGateway)
			}
		})
		server.Protocols = new(http.Protocols)
		server.Protocols.SetHTTP1(true)
		server.Protocols.SetUnencryptedHTTP2(true)
		go server.Serve(s)
		for i := range s.clients {
			s.clients[i] = newClient(i == 1, true)
			s.clients[i].Timeout = 0
			s.clients[i].Transport.(*http.Transport).DialContext = func(context.Context, string, string) (net.Conn, error) { return s.dial(), nil }
			defer s.clients[i].CloseIdleConnections()
		}
		defer server.Close()
		test(t, s)
	})
}

func (s *memoryServer) Accept() (net.Conn, error) {
	if conn, ok := <-s.conns; ok {
		return conn, nil
	}
	return nil, net.ErrClosed
}

func (s *memoryServer) Close() error   { close(s.conns); return nil }
func (s *memoryServer) Addr() net.Addr { return &net.TCPAddr{} }

func (s *memoryServer) dial() net.Conn {
	here, there := net.Pipe()
	s.conns <- there
	return here
}

// Held requests

// witness is an app that counts what has reached it, and answers with it.
type witness struct {
	address string
	arrived atomic.Int64
}

func newWitness(t *testing.T) *witness {
	t.Helper()
	w := new(witness)
	w.address = newApp(t, func(writer http.ResponseWriter, r *http.Request) {
		w.arrived.Add(1)
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(writer, "%s %s %s", r.Method, r.RequestURI, body)
	})
	return w
}

// expect fails the test if another number of requests has reached the app.
func (w *witness) expect(t *testing.T, n int64) {
	t.Helper()
	if got := w.arrived.Load(); got != n {
		t.Errorf("%d requests have reached the app, want %d", got, n)
	}
}

// behind are the directives of a site with the app behind a gate.
func (w *witness) behind(gate string) string {
	return gate + "\nhandle {\nreverse_proxy " + w.address + " {\ntransport http {\ndial_timeout 1m\n}\n}\n}"
}

// visits are the answers to requests under way.
type visits chan visited

// hold sends requests until so many are held: with and without a body, over HTTP/1.1 and HTTP/2.
// They do not come all at once: servers limit how long a connection takes to begin.
func (s *server) hold(n int) visits {
	s.t.Helper()
	answers := make(visits, n)
	for i := range n {
		answers.send(s.t.Context(), clients[i%2], s.url, i)
		if i%50 == 49 {
			s.await("shop", "held", i+1)
		}
	}
	s.await("shop", "held", n)
	return answers
}

// send sends a request that is identified by its number.
func (v visits) send(ctx context.Context, client *http.Client, url string, i int) {
	method, body := http.MethodGet, ""
	if i%4 >= 2 {
		method, body = http.MethodPost, fmt.Sprintf("order %d", i)
	}
	request, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("%s/%d", url, i), strings.NewReader(body))
	if err != nil {
		panic(err)
	}
	go func() {
		got := roundTrip(client, request)
		got.want = fmt.Sprintf("%s /%d %s", method, i, body)
		v <- got
	}()
}

// sendHalf sends a request with half of its small body, and returns the writer for the rest.
func (v visits) sendHalf(t *testing.T, client *http.Client, url string) (rest *io.PipeWriter) {
	t.Helper()
	body, rest := io.Pipe()
	t.Cleanup(func() { rest.Close() })
	go io.WriteString(rest, "half of ")
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/half", body)
	if err != nil {
		t.Fatal(err)
	}
	request.ContentLength = 17
	go func() { v <- roundTrip(client, request) }()
	return rest
}

func (v visits) next() visited {
	select {
	case got := <-v:
		return got
	case <-time.After(20 * time.Second):
		return visited{response: response{Response: new(http.Response)}, err: errors.New("no answer")}
	}
}

// expectApp fails the test if the next answer is not the app's.
func (v visits) expectApp(t *testing.T) visited {
	t.Helper()
	got := v.next()
	if got.StatusCode != 200 || got.body != got.want {
		t.Errorf("got %d %.100q %v, want %q of the app", got.StatusCode, got.body, got.err, got.want)
	}
	return got
}

// expectPage fails the test if the next answer is not the page.
func (v visits) expectPage(t *testing.T, retryAfter string) {
	t.Helper()
	got := v.next()
	if got.StatusCode != 503 || got.Header.Get("Retry-After") != retryAfter || !strings.Contains(got.body, "Down for maintenance") {
		t.Errorf("got %d %v %.100q %v, want the page and Retry-After %s", got.StatusCode, got.Header, got.body, got.err, retryAfter)
	}
}
