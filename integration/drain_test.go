package integration

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// G5
func TestRequestIsInFlightUntilItEnds(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		const chunk, webSocket = "1\r\nx\r\n", "Connection: Upgrade\r\nUpgrade: websocket\r\n" +
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
		for _, test := range []struct {
			name, request string          // without Host
			proceed       func(*exchange) // gets a byte through it
			end           func(*exchange) any
			want          any // that the client has got in the end
		}{
			{
				"slow response", "GET /slow HTTP/1.1\r\n\r\n",
				func(*exchange) {},
				func(e *exchange) any { close(e.app.release); return e.read() }, "200 Welcome.\n <nil>",
			},
			{
				"trickling upload", "POST /upload HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk,
				func(e *exchange) { e.write(chunk); e.app.awaitReached(e.t) },
				func(e *exchange) any { e.write("0\r\n\r\n"); return e.read() }, "200 Welcome.\n <nil>",
			},
			{
				"streaming response", "GET /stream HTTP/1.1\r\n\r\n",
				func(e *exchange) { e.app.release <- struct{}{}; e.app.awaitReached(e.t) },
				func(e *exchange) any { close(e.app.release); return e.read() }, "200 xxx <nil>",
			},
			{ // without frames: Caddy does not look
				"WebSocket", "GET /socket HTTP/1.1\r\n" + webSocket + "\r\nx",
				func(e *exchange) { e.write("x"); e.app.awaitReached(e.t) },
				func(e *exchange) any { return e.conn.Close() }, nil,
			},
		} {
			t.Run(test.name, func(t *testing.T) {
				t.Parallel()
				upstream := newPatientApp(t)
				c, s := startSite(t, k, upstream.ServeHTTP)
				e := begin(t, s, upstream, test.request)
				awaitInFlight(t, c, k.name, 1)
				stop := watchInFlight(t, c, k.name, 1)
				test.proceed(e)
				c.on(k.name, "")
				s.expect(t, http.StatusServiceUnavailable)
				c.reload(c.caddyfile(s.marked(1)))
				s.awaitConfig(t, 1)
				test.proceed(e)
				stop()
				if got := test.end(e); got != test.want {
					t.Errorf("got %v, want %v", got, test.want)
				}
				awaitInFlight(t, c, k.name, 0)
			})
		}
	})
}

// watchInFlight fails the test if the admin API ever tells another number,
// until it is stopped.
func watchInFlight(t *testing.T, c *caddy, site string, want int) (stop func()) {
	done := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		repeat(done, func() {
			if s, err := c.try(http.MethodGet, site, ""); err != nil || s.InFlight != want {
				t.Errorf("%d in flight (%v), want %d", s.InFlight, err, want)
			}
			time.Sleep(5 * time.Millisecond) // leaves others something of the machine
		})
	})
	return func() {
		close(done)
		watch.Wait()
	}
}

func awaitInFlight(t *testing.T, c *caddy, site string, want int) {
	t.Helper()
	eventually(t, patience, fmt.Sprintf("%d are in flight", want), func() bool {
		return c.status(site).InFlight == want
	})
}

// patientApp takes its time. Reached gets a value when a request, or one more byte of it
// or of what is streamed, has arrived. Release lets it answer, or send one more byte; when
// it is closed, the response ends.
type patientApp struct {
	reached, release chan struct{}
}

func newPatientApp(t *testing.T) *patientApp {
	t.Helper()
	return &patientApp{reached: make(chan struct{}, 100), release: make(chan struct{})}
}

// awaitReached returns when the app has got what was sent.
func (a *patientApp) awaitReached(t *testing.T) {
	t.Helper()
	select {
	case <-a.reached:
	case <-time.After(patience):
		t.Fatal("the app was not reached")
	}
}

func (a *patientApp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/slow":
		a.reached <- struct{}{}
		select {
		case <-a.release:
		case <-r.Context().Done():
		}
	case "/upload":
		a.readAll(r.Body)
	case "/stream":
		for more := true; more; {
			_, _ = io.WriteString(w, "x")
			_ = http.NewResponseController(w).Flush()
			a.reached <- struct{}{}
			select {
			case _, more = <-a.release:
			case <-r.Context().Done():
				return
			}
		}
		return
	case "/socket":
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		a.readAll(buffered)
		return
	}
	welcome(w, r)
}

func (a *patientApp) readAll(body io.Reader) {
	for {
		if _, err := body.Read(make([]byte, 1)); err != nil {
			return
		}
		a.reached <- struct{}{}
	}
}

// exchange is a request that lasts until it is ended.
type exchange struct {
	t    *testing.T
	app  *patientApp
	conn net.Conn
}

// begin sends the request of an exchange, and returns when it has reached the app.
func begin(t *testing.T, s site, a *patientApp, request string) *exchange {
	t.Helper()
	e := &exchange{t, a, s.open(t, request)}
	a.awaitReached(t)
	return e
}

func (e *exchange) write(text string) {
	e.t.Helper()
	if _, err := io.WriteString(e.conn, text); err != nil {
		e.t.Error(err)
	}
}

// read returns the response, to its end.
func (e *exchange) read() string {
	got := answerOf(http.ReadResponse(bufio.NewReader(e.conn), nil))
	return fmt.Sprintf("%d %s %v", got.code, got.body, got.err)
}

// G5
func TestBrokenExchangesLeaveNothingInFlight(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		upstream := newPatientApp(t)
		s := k.newSite(t, newApp(t, upstream.ServeHTTP))
		var hanging [10]*patientApp // of each client
		for i := range hanging {
			hanging[i] = newPatientApp(t)
		}
		broken := k.newSite(t, newApp(t, func(w http.ResponseWriter, r *http.Request) {
			if i, err := strconv.Atoi(r.Header.Get("Client")); err == nil {
				hanging[i].ServeHTTP(w, r)
				return
			}
			serveUnreliably(w, r)
		}))
		c := newCaddy(t)
		c.options = "servers {\n protocols h1 h2c\n}"
		c.start(c.caddyfile(s, broken))
		lasting := begin(t, s, upstream, "GET /slow HTTP/1.1\r\n\r\n")

		var clients sync.WaitGroup
		for i := range hanging {
			client := newKeepAliveClient(i%2 == 0)
			clients.Go(func() {
				defer client.CloseIdleConnections()
				for range 10 {
					for _, path := range []string{"close", "cut", "panic"} {
						_, _ = fetch(client, broken.url()+path)
					}
					hanging[i].leave(client, broken, i)
					if conn, err := dial(t.Context(), "tcp", broken.host()); err == nil { // and leave in the middle of a body
						_, _ = io.WriteString(conn, broken.addHost("POST /drop HTTP/1.1\r\nContent-Length: 1000\r\n\r\nnot all of it"))
						_ = conn.Close()
					}
				}
			})
		}
		clients.Wait()
		awaitInFlight(t, c, k.name, 1)

		close(upstream.release)
		_ = lasting.read()
		awaitInFlight(t, c, k.name, 0)
		c.on(k.name, "")
		if got := c.must(http.MethodGet, k.name+"?wait=20s", ""); got.InFlight != 0 {
			t.Errorf("%d in flight after waiting", got.InFlight)
		}
	})
}

// serveUnreliably breaks what it is asked for.
func serveUnreliably(w http.ResponseWriter, r *http.Request) {
	switch controller := http.NewResponseController(w); r.URL.Path {
	case "/close":
		if conn, _, err := controller.Hijack(); err == nil {
			conn.Close()
		}
	case "/cut":
		w.Header().Set("Content-Length", "1000")
		_, _ = io.WriteString(w, "not all of it")
		_ = controller.Flush()
		panic(http.ErrAbortHandler)
	case "/panic":
		panic(http.ErrAbortHandler)
	case "/drop":
		_, _ = io.Copy(io.Discard, r.Body)
	}
}

// leave gives up a request that hangs.
func (a *patientApp) leave(client *http.Client, s site, i int) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-a.reached:
			cancel()
		case <-ctx.Done():
		}
	}()
	if r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url()+"slow", nil); err == nil {
		r.Header.Set("Client", strconv.Itoa(i))
		_ = answerOf(client.Do(r))
	}
}

// G5: What is kept out is not in flight, not even for a moment. Few looks would meet that.
func TestBlockedLoadIsNeverInFlight(t *testing.T) {
	t.Parallel()
	both := newSites(t, newApp(t, welcome))
	c := newCaddy(t)
	c.start(c.caddyfile(both...))
	for _, s := range both {
		c.on(s.name, "")
	}
	var clients, looks sync.WaitGroup
	done := make(chan struct{})
	defer clients.Wait()
	defer close(done)
	for i := range 8 {
		s, client, admin := both[i%2], newKeepAliveClient(true), newKeepAliveClient(true)
		clients.Go(func() {
			defer client.CloseIdleConnections()
			repeat(done, func() {
				if code, err := fetch(client, s.url()); err != nil || code != http.StatusServiceUnavailable {
					t.Errorf("a visitor got %d %v, want 503", code, err)
				}
			})
		})
		looks.Go(func() {
			defer admin.CloseIdleConnections()
			for range 400 {
				got := ask(admin, http.MethodGet, "http://"+c.admin+"/maintenance/"+s.name, nil)
				if !strings.Contains(got.body, `"in_flight":0`) {
					t.Errorf("got %+v, want none in flight", got)
					return
				}
			}
		})
	}
	looks.Wait()
}

// G5: The command goes on when the last request has ended, and whoever waits for that is
// answered then. If its time is over before, the site stays on.
func TestWaitReturnsWhenLastRequestHasEnded(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		upstream := newPatientApp(t)
		c, s := startSite(t, k, upstream.ServeHTTP)
		slow := begin(t, s, upstream, "GET /slow HTTP/1.1\r\n\r\n")
		left := k.name + ": not drained in 300ms: 1 in flight on " + hostname(t) + "; maintenance stays on\n"
		for _, line := range []string{"maintenance on " + k.name + " --wait 300ms", "maintenance " + k.name + " --wait 300ms"} {
			if got := c.command(strings.Fields(line)...); got.code != 2 || got.stderr != left || strings.Contains(got.stdout, "drained") {
				t.Errorf("caddy %s: got %+v, want status 2 and stderr %q", line, got, left)
			}
			c.expect("on\n", "maintenance", k.name)
			s.expect(t, http.StatusServiceUnavailable)
		}

		file, err := os.Create(filepath.Join(c.dir, "printed"))
		if err != nil {
			t.Fatal(err)
		}
		wait := c.prepare("maintenance", "on", k.name, "--message", "Soon.", "--wait", "10s")
		wait.Stdout, wait.Stderr = file, file
		if err := wait.Start(); err != nil {
			t.Fatal(err)
		}
		c.awaitFile("printed", "\n"+k.name+": 1 in flight on "+hostname(t)+"\n")
		released := time.Now()
		answered := make(chan time.Duration, 1)
		go func() {
			_, _, _ = c.request(http.MethodGet, "/maintenance/"+k.name+"/instances?wait=30s", "")
			answered <- time.Since(released)
		}()
		close(upstream.release)
		if err := wait.Wait(); err != nil {
			t.Errorf("the command ended with %v", err)
		}
		if took := <-answered; took > 15*time.Second {
			t.Errorf("the answer took %s after the last request had ended", took)
		}
		if got := slow.read(); got != "200 Welcome.\n <nil>" {
			t.Errorf("the last request got %s", got)
		}
		c.awaitFile("printed", hostname(t)+"\ndrained\n")
	})
}

func hostname(t *testing.T) string {
	t.Helper()
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return name
}
