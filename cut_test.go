package maintenance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/fcgi"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// cutLimit is how long after its moment a request may be cut off in a test.
const cutLimit = 6 * time.Second

// The moment

// Time counts from when requests began to be kept out, whenever and however often
// it is said how long.
func TestMomentOfTheCut(t *testing.T) {
	const ms = time.Millisecond
	type step struct {
		at     time.Duration
		method string
		body   string // END is replaced by a time
	}
	tests := map[string]struct {
		steps []step
		from  int           // the step since which time counts
		want  time.Duration // 0 for never
	}{
		"off-all-along": {},
		"not-set":       {[]step{{0, "PUT", `{}`}}, 0, 0},
		"set":           {[]step{{0, "PUT", `{"terminate_after": "400ms"}`}}, 0, 400 * ms},
		"set-later":     {[]step{{0, "PUT", `{}`}, {100 * ms, "PATCH", `{"terminate_after": "400ms"}`}}, 0, 400 * ms},
		"past":          {[]step{{0, "PUT", `{}`}, {200 * ms, "PATCH", `{"terminate_after": "1ms"}`}}, 0, ms},
		"past-by-put":   {[]step{{0, "PUT", `{}`}, {200 * ms, "PUT", `{"terminate_after": "1ms"}`}}, 0, ms},
		"put-off":       {[]step{{0, "PUT", `{"terminate_after": "300ms"}`}, {100 * ms, "PATCH", `{"terminate_after": "600ms"}`}}, 0, 600 * ms},
		"put-forward":   {[]step{{0, "PUT", `{"terminate_after": "1h"}`}, {100 * ms, "PATCH", `{"terminate_after": "300ms"}`}}, 0, 300 * ms},
		"repeated":      {[]step{{0, "PUT", `{"terminate_after": "400ms"}`}, {200 * ms, "PUT", `{"terminate_after": "400ms"}`}}, 0, 400 * ms},
		"other-option":  {[]step{{0, "PUT", `{"terminate_after": "400ms"}`}, {200 * ms, "PATCH", `{"message": "Hello."}`}}, 0, 400 * ms},
		"cleared":       {[]step{{0, "PUT", `{"terminate_after": "300ms"}`}, {100 * ms, "PATCH", `{"terminate_after": null}`}}, 0, 0},
		"put-without":   {[]step{{0, "PUT", `{"terminate_after": "300ms"}`}, {100 * ms, "PUT", `{}`}}, 0, 0},
		"opened":        {[]step{{0, "PUT", `{"terminate_after": "300ms"}`}, {100 * ms, "DELETE", ``}}, 0, 0},
		"on-again":      {[]step{{0, "PUT", `{"terminate_after": "300ms"}`}, {100 * ms, "DELETE", ``}, {200 * ms, "PUT", `{"terminate_after": "300ms"}`}}, 2, 300 * ms},
		"ends-before":   {[]step{{0, "PUT", `{"until": "END", "terminate_after": "1500ms"}`}}, 0, 0},
	}
	var directives strings.Builder
	requests := make(map[string]*lastingRequest)
	for name := range tests {
		requests[name] = new(lastingRequest)
		fmt.Fprintf(&directives, "maintenance /%[1]s %[1]s\nhandle /%[1]s {\n%[2]s\n}\n", name, requests[name].app(t))
	}
	s := start(t, directives.String())
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			request := requests[name]
			request.begin(t, s.url+"/"+name)
			began := time.Now()
			var earliest, latest time.Time
			for i, step := range test.steps {
				time.Sleep(time.Until(began.Add(step.at)))
				body := strings.Replace(step.body, "END", time.Now().Add(700*ms).Format(time.RFC3339Nano), 1)
				before := time.Now()
				if got, err := try(step.method, s.admin+"/maintenance/"+name, body, nil); err != nil || got.StatusCode != 200 {
					t.Fatalf("%s got %v %v", step.method, got.body, err)
				}
				if i == test.from {
					earliest, latest = before, time.Now()
				}
			}
			if test.want == 0 {
				time.Sleep(time.Until(began.Add(2 * time.Second)))
				request.expectApp(t)
				return
			}
			moment := siteNamed(name).state.Load().cutsAt()
			if moment.Before(earliest.Add(test.want)) || moment.After(latest.Add(test.want)) {
				t.Errorf("the moment is %s after the one that is right", moment.Sub(latest.Add(test.want)))
			}
			request.expectPage(t, moment)
		})
	}
}

func TestCutSurvivesReloads(t *testing.T) {
	early, late := new(lastingRequest), new(lastingRequest)
	directives := `
		log
		maintenance /early early
		maintenance /late late
		handle /early {
			` + early.app(t) + `
		}
		handle /late {
			` + late.app(t) + `
		}`
	s := start(t, directives)
	early.begin(t, s.url+"/early")
	late.begin(t, s.url+"/late")
	s.put("early", `{"terminate_after": "500ms"}`)
	s.reload(directives)
	s.put("late", `{"terminate_after": "500ms"}`)
	early.expectPage(t, siteNamed("early").state.Load().cutsAt())
	late.expectPage(t, siteNamed("late").state.Load().cutsAt())
	eventually(t, func() error {
		if entries := s.accessLog(); len(entries) != 2 || strings.Count(fmt.Sprint(entries), "status:503") != 2 {
			return fmt.Errorf("logged are %s, want two requests with status 503", entries)
		}
		return nil
	})
}

// Each instance counts from when it has begun to keep requests out itself.
func TestSwitchOfAnotherInstanceCutsOff(t *testing.T) {
	request := new(lastingRequest)
	s := prepare(t)
	s.options = "maintenance {\nsync_interval 100ms\n}"
	s.reload("maintenance shop\n" + request.app(t))
	request.begin(t, s.url)
	began := time.Now()
	s.storage.set(shopKey, fmt.Sprintf(`{"version": %d, "enabled": true, "since": "2026-01-31T02:00:00Z", "terminate_after": "400ms"}`, began.UnixMicro()))
	s.storage.set(switchKey, "another instance")
	request.expectPage(t, began.Add(400*time.Millisecond))
}

func TestWrongTerminateAfterIsRefused(t *testing.T) {
	s := start(t, `maintenance shop`)
	s.put("shop", `{"terminate_after": "1h"}`)
	const accepted = ` given, a duration above zero is accepted, such as "30s"`
	for value, want := range map[string]string{
		`"0"`:       `"0"` + accepted,
		`"0s"`:      `"0s"` + accepted,
		`"-1s"`:     `"-1s"` + accepted,
		`"30"`:      `"30"` + accepted,
		`"a while"`: `"a while"` + accepted,
		`""`:        `""` + accepted,
		`30`:        `30 given, a string is accepted, such as "30s"`,
		`1.5`:       `1.5 given, a string is accepted, such as "1.5s"`,
		`0`:         `0 given, a string is accepted`,
		`-30`:       `-30 given, a string is accepted`,
		`true`:      `true given, a string is accepted`,
		`["30s"]`:   `["30s"] given, a string is accepted`,
	} {
		for _, method := range []string{"PUT", "PATCH"} {
			got := s.api(method, "/maintenance/shop", `{"terminate_after": `+value+`}`)
			if err := decode(t, got.body)["error"]; got.StatusCode != 400 || err != "terminate_after: "+want {
				t.Errorf("%s %s got %d %v\nwant 400 %s", method, value, got.StatusCode, err, want)
			}
		}
	}
	if got := s.status("shop")["terminate_after"]; got != "1h" {
		t.Errorf("terminate_after is %v, want 1h as before", got)
	}
	if got := s.patch("shop", `{"terminate_after": "1d"}`)["terminate_after"]; got != "1d" {
		t.Errorf("terminate_after is %v, want 1d", got)
	}
	if got, ok := s.patch("shop", `{"terminate_after": null}`)["terminate_after"]; ok {
		t.Errorf("terminate_after is %v, want none", got)
	}
}

// What is cut off; see integration/cut_test.go, too

// HTTP/1: the server, too, waits for the rest of an upload, if it is small, before it
// uses the connection again.
func TestStalledUploadIsCutOff(t *testing.T) {
	for name, options := range map[string]string{
		"by default":            "",
		"full duplex":           "servers {\nenable_full_duplex\n}",
		"without idle timeouts": "servers {\ntimeouts {\nread_body_idle -1s\nwrite_idle -1s\n}\n}",
	} {
		t.Run(name, func(t *testing.T) {
			app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/early" { // begins to answer what is still being sent
					_ = http.NewResponseController(w).EnableFullDuplex()
					_, _ = io.WriteString(w, "early")
					_ = http.NewResponseController(w).Flush()
				}
				_, _ = io.Copy(io.Discard, r.Body)
			}))
			t.Cleanup(app.Close)
			s := prepare(t)
			s.options = options
			s.reload("maintenance shop\nhandle {\nreverse_proxy " + strings.TrimPrefix(app.URL, "http://") + "\n}")
			conns := make(map[string]net.Conn)
			for _, path := range []string{"/late", "/early"} {
				for _, upload := range []string{
					"Content-Length: 1000\r\n\r\nnot all of it",
					"Content-Length: 1000000\r\n\r\nnot all of it",
					"Transfer-Encoding: chunked\r\n\r\nd\r\nnot all of it\r\n",
				} {
					request := "POST " + path + " HTTP/1.1\r\n" + upload
					conns[request] = s.dial(request)
				}
			}
			s.awaitInFlight(int64(len(conns)))
			s.put("shop", `{"terminate_after": "100ms"}`)
			moment := time.Now().Add(100 * time.Millisecond)
			for request, conn := range conns {
				_ = conn.SetReadDeadline(moment.Add(cutLimit))
				answer, err := io.ReadAll(conn)
				if err != nil {
					t.Errorf("%q: got %q %v, want the end of the connection", request, answer, err)
				}
				if page := strings.HasPrefix(string(answer), "HTTP/1.1 503 "); page != strings.Contains(request, "/late") {
					t.Errorf("%q: got %q", request, answer)
				}
				if strings.HasSuffix(string(answer), "\r\n0\r\n\r\n") {
					t.Errorf("%q: got all of %q", request, answer)
				}
			}
			t.Logf("it took %s", time.Since(moment))
			s.awaitInFlight(0)
		})
	}
}

// Somebody who reads is not waited for all the time, nor is what Caddy reads.
func TestDownloadsThatGoOnAreCutOff(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "large"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(root, "large"), 1<<40); err != nil {
		t.Fatal(err)
	}
	s := start(t, "maintenance shop\nhandle {\nroot "+root+"\nfile_server\n}")
	const n = 20
	var clients, downloads sync.WaitGroup
	downloads.Add(n)
	ctx, leave := context.WithCancel(t.Context())
	for range n {
		clients.Go(func() {
			request, _ := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/large", nil)
			answer, err := client.Do(request)
			downloads.Done()
			if err != nil {
				t.Error(err)
				return
			}
			defer answer.Body.Close()
			for err == nil {
				_, err = io.CopyN(io.Discard, answer.Body, 1<<20)
				time.Sleep(time.Millisecond)
			}
			if errors.Is(err, io.EOF) {
				t.Error("a download looks complete")
			}
		})
	}
	downloads.Wait()
	s.put("shop", `{"terminate_after": "1ms"}`)
	moment := time.Now()
	for left := int64(n); left > 0; time.Sleep(time.Millisecond) {
		if left = siteNamed("shop").inFlight.Load(); left > 0 && time.Since(moment) > cutLimit {
			t.Errorf("%d of %d are still in flight after %s", left, n, cutLimit)
			break
		}
	}
	t.Logf("it took %s", time.Since(moment))
	leave()
	clients.Wait()
}

// A client that does not even read the 503 is not waited for.
func TestPageOfACutIsNotWaitedFor(t *testing.T) {
	page := filepath.Join(t.TempDir(), "page.html")
	if err := os.WriteFile(page, []byte("<!DOCTYPE html>"+strings.Repeat("x", 1<<19)), 0o600); err != nil {
		t.Fatal(err)
	}
	request := new(lastingRequest)
	s := prepare(t)
	s.options = "servers {\nprotocols h1 h2c\n}"
	s.reload("maintenance shop {\npage " + page + "\n}\n" + request.app(t))
	transport := &http.Transport{Protocols: new(http.Protocols), DisableCompression: true, HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: 1 << 14}}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	answered := make(chan *http.Response, 1)
	go func() {
		answer, err := (&http.Client{Transport: transport}).Get(s.url)
		if err != nil {
			t.Error(err)
		}
		answered <- answer
	}()
	<-request.arrived
	s.put("shop", `{"terminate_after": "1ms"}`)
	answer := <-answered
	for moment := time.Now(); siteNamed("shop").inFlight.Load() > 0; time.Sleep(time.Millisecond) {
		if time.Since(moment) > cutLimit {
			t.Errorf("still in flight after %s", cutLimit)
			break
		}
	}
	if answer != nil {
		if answer.StatusCode != 503 {
			t.Errorf("got %d, want 503", answer.StatusCode)
		}
		answer.Body.Close()
	}
}

// What php_fastcgi waits for is not ended, but its client gets nothing of it.
func TestPHPGoesOnUntilItHasAnswered(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "index.php"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	php, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer php.Close()
	arrived, release := make(chan struct{}), make(chan struct{})
	go fcgi.Serve(php, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		arrived <- struct{}{}
		<-release
		io.WriteString(w, "late")
	}))
	s := prepare(t)
	s.options = "servers {\nprotocols h1 h2c\n}"
	s.reload("maintenance shop\nhandle {\nroot " + root + "\nphp_fastcgi " + php.Addr().String() + "\n}")
	answers := make(chan visited)
	for _, client := range holdClients {
		go func() { answers <- ask(t.Context(), client, s.url+"/index.php") }()
		<-arrived
	}
	s.put("shop", `{"terminate_after": "1ms"}`)
	time.Sleep(2*cutGrace + 500*time.Millisecond)
	if got := s.status("shop")["in_flight"]; got != 2.0 {
		t.Errorf("in_flight is %v while PHP is at work, want 2", got)
	}
	close(release)
	for range holdClients {
		if got := <-answers; got.code != 503 || got.header.Get("Retry-After") != "300" {
			t.Errorf("got %d %q %v, want the 503", got.code, got.body, got.err)
		}
	}
	s.awaitInFlight(0)
}

// An error route that no gate stands before, here that of a named route, sees a client
// that has left. The connection is not cut then: it may be another request's by now.
func TestConnectionIsLeftToTheNextRequest(t *testing.T) {
	failed := make(chan struct{})
	s := prepare(t)
	s.after = "handle_errors {\n" + testApp(t, func(w http.ResponseWriter, r *http.Request) error {
		close(failed)
		<-r.Context().Done()
		_, err := io.WriteString(w, "Sorry.")
		return err
	}) + "\n}"
	s.before = `&(failing) {
		maintenance shop
		error 502
	}`
	s.reload(`
		handle /failing {
			invoke failing
		}
		handle /stream {
			` + testApp(t, func(w http.ResponseWriter, r *http.Request) error {
		return trickle(w, r, 2*cutGrace)
	}) + `
		}`)
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}, Timeout: time.Minute}
	defer client.CloseIdleConnections()
	go func() {
		<-failed
		if got := s.put("shop", `{"terminate_after": "200ms"}`)["in_flight"]; got != 1.0 {
			t.Errorf("in_flight is %v while the error is answered, want 1", got)
		}
	}()
	for i, path := range []string{"/failing", "/stream"} {
		var reused bool
		got := ask(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
			GotConn: func(info httptrace.GotConnInfo) { reused = info.Reused },
		}), client, s.url+path)
		if got.code != 200 || got.err != nil || len(got.body) < 3 || reused != (i > 0) {
			t.Errorf("%s got %d %q %v, on the same connection: %t", path, got.code, got.body, got.err, reused)
		}
		s.awaitInFlight(0)
	}
}

// A request that has failed is one request, also where the site's gate is among the error
// routes, or comes twice.
//
// G5
func TestRequestThatMeetsSeveralGatesOfASiteIsCountedOnce(t *testing.T) {
	request := new(lastingRequest)
	s := prepare(t)
	s.after = "handle_errors {\nroute {\nmaintenance shop\n" + request.app(t) + "\n}\n}"
	s.reload("route {\nmaintenance shop\nmaintenance wiki\nmaintenance shop\nerror 502\n}")
	request.begin(t, s.url)
	for _, site := range []string{"shop", "wiki"} {
		if got := s.put(site, "")["in_flight"]; got != 1.0 {
			t.Errorf("%s: in_flight is %v, want 1", site, got)
		}
	}
	close(request.release)
	<-request.answer
	s.status("shop?wait=10s")
	if got := siteNamed("shop").remembered() + siteNamed("wiki").remembered(); got != 0 {
		t.Errorf("%d requests are remembered", got)
	}
	s.delete("wiki")
	if got := s.get("/").StatusCode; got != 503 {
		t.Errorf("got %d when the site is on, want 503", got)
	}
}

// reverse_proxy goes on dialing for a request that has been cut off, and reads its
// variables as it does.
//
// G10: this is for the race detector.
func TestCutDoesNotRaceWithADial(t *testing.T) {
	upstream, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer upstream.Close() // which accepts connections, and never says anything
	s := start(t, fmt.Sprintf(`
		log
		maintenance shop
		handle {
			reverse_proxy https://%s {
				transport http {
					tls_insecure_skip_verify
				}
			}
		}`, upstream.Addr()))
	answers := make(visits, 1)
	go func() { answers <- ask(t.Context(), client, s.url) }()
	conn, err := upstream.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s.put("shop", `{"terminate_after": "1ms"}`)
	answers.expectPage(t, "300")
	eventually(t, func() error {
		if entries := s.accessLog(); len(entries) != 1 || !strings.Contains(entries[0], "terminated") || !strings.Contains(entries[0], "level:info") {
			return fmt.Errorf("the access log has %s, want one request that was terminated, at level info", entries)
		}
		return nil
	})
}

// Whoever has not been sent anything gets the whole page, also if another site further
// outside cuts him off while that is being sent.
func TestGatesInAChainAnswerOnce(t *testing.T) {
	for i, client := range holdClients {
		t.Run(fmt.Sprintf("HTTP/%d", i+1), func(t *testing.T) {
			arrived, answering := make(chan struct{}), make(chan struct{})
			s := prepare(t)
			s.options = "servers {\nprotocols h1 h2c\n}"
			s.reload("route {\nmaintenance all\n" +
				testMiddleware(t, func(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
					return next.ServeHTTP(&pausingWriter{caddyhttp.ResponseWriterWrapper{ResponseWriter: w}, answering, r.Context().Done()}, r)
				}) + "\nmaintenance shop\n" +
				testApp(t, func(_ http.ResponseWriter, r *http.Request) error {
					close(arrived)
					<-r.Context().Done()
					return nil
				}) + "\n}")
			answers := make(visits, 1)
			go func() { answers <- ask(t.Context(), client, s.url) }()
			<-arrived
			s.put("shop", `{"terminate_after": "1ms"}`)
			<-answering
			s.put("all", `{"terminate_after": "1ms"}`)
			answers.expectPage(t, "300")
			s.awaitInFlight(0)
			s.status("all?wait=10s")
		})
	}
}

// pausingWriter pauses between an answer's header and its body.
type pausingWriter struct {
	caddyhttp.ResponseWriterWrapper
	paused chan<- struct{}
	goOn   <-chan struct{}
}

func (w *pausingWriter) WriteHeader(status int) {
	w.ResponseWriter.WriteHeader(status)
	close(w.paused)
	<-w.goOn
}

// A client that is still sending is not kept from reading the page.
func TestUploadUnderWayGetsThePage(t *testing.T) {
	const n = 20
	app := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
	}))
	t.Cleanup(app.Close)
	for name, length := range map[string]int64{"chunked": -1, "of known length": 1 << 40} {
		t.Run(name, func(t *testing.T) {
			s := start(t, "maintenance shop\nhandle {\nreverse_proxy "+strings.TrimPrefix(app.URL, "http://")+"\n}")
			answers := make(visits, n)
			for range n {
				body, in := io.Pipe()
				go func() {
					for {
						if _, err := in.Write(make([]byte, 16<<10)); err != nil {
							return
						}
						<-time.After(time.Millisecond)
					}
				}()
				request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url, body)
				if err != nil {
					t.Fatal(err)
				}
				request.ContentLength = length
				go func() {
					answers <- roundTrip(holdClients[0], request)
					body.Close()
				}()
			}
			s.awaitInFlight(n)
			s.put("shop", `{"terminate_after": "1ms"}`)
			for range n {
				answers.expectPage(t, "300")
			}
		})
	}
}

// An upgrade that comes too late is none.
func TestUpgradeAfterTheCutGetsThePage(t *testing.T) {
	arrived := make(chan struct{})
	s := start(t, "maintenance shop\n"+testApp(t, func(w http.ResponseWriter, r *http.Request) error {
		close(arrived)
		<-r.Context().Done()
		w.Header().Set("Upgrade", "websocket")
		w.WriteHeader(http.StatusSwitchingProtocols)
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return err
		}
		return conn.Close()
	}))
	conn := s.dial("GET / HTTP/1.1\r\n\r\n")
	<-arrived
	s.put("shop", `{"terminate_after": "1ms"}`)
	if answer, err := io.ReadAll(conn); !strings.HasPrefix(string(answer), "HTTP/1.1 503") || strings.Contains(string(answer), "websocket") {
		t.Errorf("got %q %v, want the page", answer, err)
	}
}

// trickle sends a byte now and then for some time.
func trickle(w http.ResponseWriter, r *http.Request, length time.Duration) error {
	for began := time.Now(); time.Since(began) < length; time.Sleep(20 * time.Millisecond) {
		if _, err := io.WriteString(w, "."); err != nil {
			return err
		}
		if err := errors.Join(http.NewResponseController(w).Flush(), r.Context().Err()); err != nil {
			return err
		}
	}
	return nil
}

// What is behind the gate

// Who is in front of the gate sees what is done to the request behind it.
func TestRequestIsTheSameWithAndWithoutGate(t *testing.T) {
	const seen = `{http.request.method} {http.request.uri} {http.request.host} {http.request.header.X-Added} {http.request.orig_uri} {http.vars.behind}`
	s := prepare(t)
	s.options = "servers {\nprotocols h1 h2c\n}"
	s.after = "handle_errors {\nrespond `{err.status_code} " + seen + "` 404\n}"
	answers := make(map[string]string)
	logs := make(map[string][]string)
	for _, gate := range []string{"", "maintenance shop"} {
		s.reload(`
			log
			log_append method {http.request.method}
			log_append uri {http.request.uri}
			log_append host {http.request.host}
			log_append added {http.request.header.X-Added}
			` + gate + `
			method PUT
			rewrite /old /new?changed=1
			uri strip_prefix /api
			route {
				vars behind yes
				request_header X-Added yes
				request_header /new Host other.example
				error /failing 418
				respond ` + "`" + seen + "`" + `
			}`)
		before := len(s.accessLog())
		for _, client := range holdClients {
			for _, path := range []string{"/", "/old", "/api/path?query", "/api/failing"} {
				got := ask(t.Context(), client, s.url+path)
				answers[gate] += fmt.Sprintln(path, got.code, got.body, got.err)
			}
		}
		eventually(t, func() error {
			logs[gate] = s.accessLog()[before:]
			if n := len(logs[gate]); n != 8 {
				return fmt.Errorf("%d requests are logged, want 8", n)
			}
			return nil
		})
	}
	if with, without := answers["maintenance shop"], answers[""]; with != without || !strings.Contains(with, "404 418 GET") {
		t.Errorf("answers behind a gate\n%swithout\n%s", with, without)
	}
	for i, without := range logs[""] {
		if with := logs["maintenance shop"][i]; with != without {
			t.Errorf("logged behind a gate\n%s\nwithout\n%s", with, without)
		}
	}
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

// What writers can do they can do behind the gate.
func TestWriterCanDoTheSameWithAndWithoutGate(t *testing.T) {
	s := prepare(t)
	s.options = "servers {\nprotocols h1 h2c\n}"
	app := testApp(t, func(w http.ResponseWriter, r *http.Request) error {
		controller := http.NewResponseController(w)
		if r.URL.Path == "/hijack" {
			conn, _, err := controller.Hijack()
			if err != nil {
				_, err = fmt.Fprint(w, err)
				return err
			}
			defer conn.Close()
			_, err = io.WriteString(conn, "HTTP/1.1 299 Hijacked\r\nConnection: close\r\n\r\nhijacked")
			return err
		}
		if r.URL.Path == "/late" {
			_ = controller.SetWriteDeadline(time.Now().Add(-time.Second))
			_, err := w.Write(make([]byte, 1<<20))
			return err
		}
		can := fmt.Sprintln(controller.EnableFullDuplex(), controller.SetReadDeadline(time.Time{}), controller.SetWriteDeadline(time.Time{}))
		_, readerFrom := w.(io.ReaderFrom)
		pusher, ok := w.(http.Pusher)
		can += fmt.Sprintln(readerFrom, ok, pusher.Push("/style.css", nil))
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Set("Trailer", "X-Trailer")
		w.WriteHeader(http.StatusAccepted)
		n, err := io.Copy(w, strings.NewReader(can))
		_, err2 := fmt.Fprintln(w, n, err, controller.Flush())
		w.Header().Set("X-Trailer", "last")
		w.Header().Set(http.TrailerPrefix+"X-Unannounced", "very last")
		return err2
	})
	answers := make(map[string]string)
	for _, gate := range []string{"", "maintenance shop"} {
		s.reload(gate + "\n" + app)
		for _, client := range holdClients {
			for _, path := range []string{"/", "/hijack", "/late"} {
				var hints int
				ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
					Got1xxResponse: func(int, textproto.MIMEHeader) error { hints++; return nil },
				})
				request, _ := http.NewRequestWithContext(ctx, http.MethodGet, s.url+path, nil)
				answer, err := client.Do(request)
				if err != nil {
					answers[gate] += fmt.Sprintln(path, "breaks off")
					continue
				}
				body, err := io.ReadAll(answer.Body)
				answer.Body.Close()
				answers[gate] += fmt.Sprintln(path, answer.StatusCode, string(body), err != nil, hints, answer.Trailer)
			}
		}
	}
	if with, without := answers["maintenance shop"], answers[""]; with != without || !strings.Contains(with, "last") || !strings.Contains(with, "299 hijacked") {
		t.Errorf("behind a gate\n%s\nwithout\n%s", with, without)
	}
}

// A file is left to the server's writer, which has the system send it.
func TestWriterOfTheServerReadsTheFile(t *testing.T) {
	w := new(readingWriter)
	shop := newSite("shop")
	shop.learn(nil, nil)
	_, p, _ := shop.admit(gateOf(shop), w, httptest.NewRequest(http.MethodGet, "/", nil))
	if n, err := io.Copy(&p.writer, io.LimitReader(strings.NewReader("not all"), 3)); n != 3 || err != nil || w.read != 3 {
		t.Errorf("%d bytes copied, %v, %d of them read by the writer; want 3", n, err, w.read)
	}
}

type readingWriter struct {
	benchWriter
	read int64
}

func (w *readingWriter) ReadFrom(r io.Reader) (n int64, err error) {
	n, err = io.Copy(io.Discard, r)
	w.read += n
	return n, err
}

// What it costs

// G10
func TestRequestsLeaveNothingBehind(t *testing.T) {
	s := start(t, slowShop(t)+`
		error /failing 502
		handle /proxied {
			reverse_proxy `+upstream(t)+`
		}`)
	visit := func() {
		for i, path := range []string{"/", "/failing", "/proxied"} {
			if got := s.get(path).StatusCode; got != []int{200, 502, 200}[i] {
				t.Errorf("%s got %d", path, got)
			}
		}
	}
	visit()
	settled := func() int {
		client.CloseIdleConnections()
		runtime.GC()
		return runtime.NumGoroutine()
	}
	before := settled()
	for range 334 {
		visit()
	}
	eventually(t, func() error {
		if n, after := siteNamed("shop").remembered(), settled(); n > 0 || after > before+10 {
			return fmt.Errorf("%d requests are remembered, and there are %d goroutines, %d before", n, after, before)
		}
		return nil
	})
}

// A request that is proxied has contexts that are derived from the gate's, and that
// takes no goroutine to watch it.
func TestGateStartsNoGoroutine(t *testing.T) {
	const n = 100
	goroutines := make(map[string]int)
	for _, gate := range []string{"", "maintenance shop\nmaintenance wiki"} {
		app := new(lastingRequest)
		proxied := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			app.arrived <- struct{}{}
			<-r.Context().Done()
		}))
		app.arrived = make(chan struct{}, n)
		s := start(t, gate+"\nhandle {\nreverse_proxy "+strings.TrimPrefix(proxied.URL, "http://")+"\n}")
		ctx, leave := context.WithCancel(t.Context())
		var clients sync.WaitGroup
		for range n {
			clients.Go(func() { ask(ctx, holdClients[0], s.url) })
		}
		for range n {
			<-app.arrived
		}
		var stacks bytes.Buffer
		_ = pprof.Lookup("goroutine").WriteTo(&stacks, 2)
		if watching := strings.Count(stacks.String(), "propagateCancel"); watching > 0 {
			t.Errorf("%q: %d goroutines watch a context", gate, watching)
		}
		goroutines[gate] = runtime.NumGoroutine()
		leave()
		clients.Wait()
		proxied.Close()
		if err := caddy.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("goroutines: %v", goroutines)
	if more := goroutines["maintenance shop\nmaintenance wiki"] - goroutines[""]; more > n/4 {
		t.Errorf("%d goroutines more with two gates, for %d requests", more, n)
	}
}

// Everything at once

// G5, G10: whatever is switched meanwhile, a client gets all of the app's answer, a
// 503, or an error.
func TestConcurrentCutsSwitchesReloadsAndRequests(t *testing.T) {
	const whole = "the first half, the second half"
	serve := func(w http.ResponseWriter, r *http.Request) error {
		pause := func() error {
			select {
			case <-r.Context().Done():
				return context.Canceled
			case <-time.After(rand.N(4 * time.Millisecond)):
				return nil
			}
		}
		if r.URL.Query().Has("length") {
			w.Header().Set("Content-Length", strconv.Itoa(len(whole)))
		}
		if pause() != nil {
			return nil
		}
		_, _ = io.WriteString(w, whole[:16])
		if r.URL.Query().Has("flush") {
			_ = http.NewResponseController(w).Flush()
		}
		if pause() != nil {
			panic(http.ErrAbortHandler)
		}
		_, _ = io.WriteString(w, whole[16:])
		return nil
	}
	proxied := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _ = serve(w, r) }))
	t.Cleanup(proxied.Close)
	s := prepare(t)
	s.options = "servers {\nprotocols h1 h2c\n}"
	s.after = "handle_errors {\nrespond Sorry. 502\n}"
	directives := `
		maintenance shop
		encode
		error /failing 502
		handle /proxied {
			reverse_proxy ` + strings.TrimPrefix(proxied.URL, "http://") + `
		}
		handle /here {
			` + testApp(t, serve) + `
		}`
	s.reload(directives)

	stop := make(chan struct{})
	var workers sync.WaitGroup
	run := func(work func(i int)) {
		workers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					work(i)
				}
			}
		})
	}
	var cut, served atomic.Int64
	for i, path := range []string{"/here", "/proxied?flush", "/proxied?length", "/here?flush", "/here?length&flush", "/failing"} {
		client := holdClients[i%2]
		run(func(int) {
			got := ask(t.Context(), client, s.url+path)
			switch {
			case got.err != nil || got.code == 502 && path == "/failing":
			case got.code == 503 && strings.Contains(got.body, "Down for maintenance"):
				cut.Add(1)
			case got.code == 200 && got.body == whole && path != "/failing":
				served.Add(1)
			default:
				t.Errorf("%s got %d %q", path, got.code, got.body)
			}
		})
	}
	run(func(int) {
		s.api("PUT", "/maintenance/shop", fmt.Sprintf(`{"terminate_after": "%dms"}`, 1+rand.N(4)))
		time.Sleep(rand.N(4 * time.Millisecond))
		s.api("PATCH", "/maintenance/shop", fmt.Sprintf(`{"terminate_after": "%dus"}`, 1+rand.N(4000)))
		time.Sleep(rand.N(4 * time.Millisecond))
		s.api("DELETE", "/maintenance/shop", "")
		time.Sleep(rand.N(40 * time.Millisecond))
	})
	run(func(int) { s.api("GET", "/maintenance/shop", "") })
	for range 15 {
		s.reload(directives)
		time.Sleep(50 * time.Millisecond)
	}
	close(stop)
	workers.Wait()
	t.Logf("%d served, %d with the page", served.Load(), cut.Load())

	s.delete("shop")
	s.awaitInFlight(0)
	if n := siteNamed("shop").remembered(); n != 0 {
		t.Errorf("%d requests are remembered", n)
	}
	s.wantStatus("/", 200)
}

// Harness

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

// lastingRequest is a request to an app of its own that answers when it is told to,
// and heeds the end of its client.
type lastingRequest struct {
	arrived, release chan struct{}
	answer           chan visited
}

func (l *lastingRequest) app(t *testing.T) (directive string) {
	t.Helper()
	l.arrived, l.release, l.answer = make(chan struct{}), make(chan struct{}), make(chan visited, 1)
	return testApp(t, func(w http.ResponseWriter, r *http.Request) error {
		close(l.arrived)
		select {
		case <-l.release:
			_, err := io.WriteString(w, "app")
			return err
		case <-r.Context().Done():
			return r.Context().Err()
		}
	})
}

// begin returns when the request has reached the app.
func (l *lastingRequest) begin(t *testing.T, url string) {
	t.Helper()
	go func() { l.answer <- ask(context.Background(), holdClients[0], url) }()
	<-l.arrived
}

// expectApp fails the test if the request has ended, and ends it.
func (l *lastingRequest) expectApp(t *testing.T) {
	t.Helper()
	close(l.release)
	if got := <-l.answer; got.code != 200 || got.body != "app" {
		t.Errorf("got %d %q %v, want the app's answer", got.code, got.body, got.err)
	}
}

// expectPage waits until the request has been cut off at its moment.
func (l *lastingRequest) expectPage(t *testing.T, moment time.Time) {
	t.Helper()
	select {
	case got := <-l.answer:
		if got.code != 503 || got.header.Get("Retry-After") != "300" {
			t.Errorf("got %d %q %v, want the 503", got.code, got.body, got.err)
		}
		if late := time.Since(moment); late < 0 || late > cutLimit {
			t.Errorf("cut off %s after the moment", late)
		}
	case <-time.After(time.Until(moment) + cutLimit):
		t.Error("not cut off")
		close(l.release)
	}
}

func siteNamed(name string) *site {
	sites.mu.Lock()
	defer sites.mu.Unlock()
	return sites.byName[name]
}

// remembered counts the requests that could be cut off.
func (s *site) remembered() (n int) {
	for i := range s.passages {
		s.passages[i].mu.Lock()
		for p := s.passages[i].first; p != nil; p = p.next {
			n++
		}
		s.passages[i].mu.Unlock()
	}
	return n
}

// holdsInFlight fails the test if another number of requests is in flight before that
// time has passed.
func (s *server) holdsInFlight(d time.Duration, n int64) {
	s.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); <-time.After(10 * time.Millisecond) {
		if got := siteNamed("shop").inFlight.Load(); got != n {
			s.t.Errorf("%d in flight, want %d", got, n)
			return
		}
	}
}

func (s *server) awaitInFlight(n int64) {
	s.t.Helper()
	eventually(s.t, func() error {
		if got := siteNamed("shop").inFlight.Load(); got != n {
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
