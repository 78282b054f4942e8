package integration

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// G5
func TestRequestIsInFlightUntilItEnds(t *testing.T) {
	t.Parallel()
	for name, begin := range map[string]func(t *testing.T, s site, a *patientApp) exchange{
		"slow response":      beginSlow,
		"trickling upload":   beginUpload,
		"streaming response": beginStream,
		"WebSocket":          beginWebSocket,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			upstream := newPatientApp(t)
			c := newCaddy(t)
			shop := newSite(t, "shop", upstream.app)
			c.start(c.caddyfile(shop))

			exchange := begin(t, shop, upstream)
			stop := watchInFlight(t, c, 1)
			exchange.proceed()
			c.on("shop", "")
			shop.expect(t, http.StatusServiceUnavailable)
			c.reload(c.caddyfile(shop.marked(1)))
			shop.awaitConfig(t, 1)
			exchange.proceed()
			stop()

			exchange.end()
			awaitInFlight(t, c, 0)
		})
	}
}

// watchInFlight fails the test if the admin API ever tells another number,
// until it is stopped.
func watchInFlight(t *testing.T, c *caddy, want int) (stop func()) {
	t.Helper()
	done := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			if s, err := c.try(http.MethodGet, "shop", ""); err != nil || s.InFlight != want {
				t.Errorf("%d in flight (%v), want %d", s.InFlight, err, want)
			}
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
	return func() {
		close(done)
		watch.Wait()
	}
}

func awaitInFlight(t *testing.T, c *caddy, want int) {
	t.Helper()
	eventually(t, patience, fmt.Sprintf("%d are in flight", want), func() bool {
		return c.status("shop").InFlight == want
	})
}

// exchange is a request that lasts until it is ended.
type exchange struct {
	proceed func() // gets a byte through, if the exchange has any on the way
	end     func() // returns when the client has all of the response
}

// patientApp takes its time. Reached gets a value when a request, or one more
// byte of it, has arrived. Release lets it answer, or send one more byte;
// when it is closed, the response ends.
type patientApp struct {
	*app
	reached, release chan struct{}
}

func newPatientApp(t *testing.T) *patientApp {
	t.Helper()
	a := &patientApp{reached: make(chan struct{}, 100), release: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("/", welcome)
	mux.HandleFunc("/slow", a.serveSlow)
	mux.HandleFunc("/upload", a.serveUpload)
	mux.HandleFunc("/stream", a.serveStream)
	mux.HandleFunc("/socket", a.serveSocket)
	a.app = newApp(t, mux.ServeHTTP)
	return a
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

func (a *patientApp) serveSlow(w http.ResponseWriter, r *http.Request) {
	a.reached <- struct{}{}
	select {
	case <-a.release:
		welcome(w, r)
	case <-r.Context().Done():
	}
}

func (a *patientApp) serveUpload(w http.ResponseWriter, r *http.Request) {
	for {
		switch _, err := r.Body.Read(make([]byte, 1)); err {
		case nil:
			a.reached <- struct{}{}
		case io.EOF:
			welcome(w, r)
			return
		default:
			return
		}
	}
}

func (a *patientApp) serveStream(w http.ResponseWriter, r *http.Request) {
	a.reached <- struct{}{}
	for more := true; more; {
		_, _ = io.WriteString(w, "x")
		_ = http.NewResponseController(w).Flush()
		select {
		case _, more = <-a.release:
		case <-r.Context().Done():
			return
		}
	}
}

// serveSocket sends everything back.
func (a *patientApp) serveSocket(w http.ResponseWriter, _ *http.Request) {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	_, _ = io.Copy(conn, buffered)
}

// answer is what a client has got in the end.
type answer struct {
	code int
	body string
	err  error
}

// send sends a request in the background.
func send(method, url string, body io.Reader) <-chan answer {
	result := make(chan answer, 1)
	go func() {
		r, err := http.NewRequest(method, url, body)
		if err != nil {
			result <- answer{err: err}
			return
		}
		response, err := visitors.Do(r)
		if err != nil {
			result <- answer{err: err}
			return
		}
		defer response.Body.Close()
		got, err := io.ReadAll(response.Body)
		result <- answer{response.StatusCode, string(got), err}
	}()
	return result
}

func expectWelcome(t *testing.T, result <-chan answer) {
	t.Helper()
	if got := <-result; got != (answer{http.StatusOK, "Welcome.\n", nil}) {
		t.Errorf("got %+v, want the app's welcome", got)
	}
}

func beginSlow(t *testing.T, s site, a *patientApp) exchange {
	result := send(http.MethodGet, s.url()+"slow", nil)
	a.awaitReached(t)
	return exchange{
		proceed: func() {},
		end: func() {
			close(a.release)
			expectWelcome(t, result)
		},
	}
}

func beginUpload(t *testing.T, s site, a *patientApp) exchange {
	body, upload := io.Pipe()
	result := send(http.MethodPost, s.url()+"upload", body)
	proceed := func() {
		if _, err := upload.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		a.awaitReached(t)
	}
	proceed()
	return exchange{
		proceed: proceed,
		end: func() {
			upload.Close()
			expectWelcome(t, result)
		},
	}
}

func beginStream(t *testing.T, s site, a *patientApp) exchange {
	response, err := visitors.Get(s.url() + "stream")
	if err != nil {
		t.Fatal(err)
	}
	a.awaitReached(t)
	read := func() error {
		_, err := io.ReadFull(response.Body, make([]byte, 1))
		return err
	}
	if err := read(); err != nil {
		t.Error(err)
	}
	return exchange{
		proceed: func() {
			a.release <- struct{}{}
			if err := read(); err != nil {
				t.Error(err)
			}
		},
		end: func() {
			close(a.release)
			if err := read(); err != io.EOF {
				t.Errorf("the response did not end well: %v", err)
			}
			response.Body.Close()
		},
	}
}

// beginWebSocket sends no frames after the upgrade: Caddy does not look.
func beginWebSocket(t *testing.T, s site, _ *patientApp) exchange {
	conn := dial(t, s)
	_, _ = io.WriteString(conn, "GET /socket HTTP/1.1\r\nHost: "+s.address+"\r\n"+
		"Connection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, nil)
	if err != nil || response.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("no upgrade: %v %v", response, err)
	}
	return exchange{
		proceed: func() {
			_, _ = io.WriteString(conn, "x")
			if _, err := reader.ReadByte(); err != nil {
				t.Error(err)
			}
		},
		end: func() { conn.Close() },
	}
}

func dial(t *testing.T, s site) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.address)
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(patience))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// G5
func TestBrokenExchangesLeaveNothingInFlight(t *testing.T) {
	t.Parallel()
	upstream := newPatientApp(t)
	unreliable := newUnreliableApp(t)
	c := newCaddy(t)
	c.options = "servers {\n protocols h1 h2c\n}"
	shop, broken := newSite(t, "shop", upstream.app), newSite(t, "shop", unreliable.app)
	c.start(c.caddyfile(shop, broken))
	lasting := beginSlow(t, shop, upstream)

	var clients sync.WaitGroup
	for i := range breakers {
		client := newKeepAliveClient(i%2 == 0)
		clients.Go(func() {
			defer client.CloseIdleConnections()
			for range 10 {
				for _, path := range []string{"close", "cut", "panic"} {
					_, _ = fetch(client, broken.url()+path)
				}
				unreliable.leave(client, broken, i)
				leaveUpload(t, broken)
			}
		})
	}
	clients.Wait()
	awaitInFlight(t, c, 1)

	lasting.end()
	awaitInFlight(t, c, 0)
	c.on("shop", "")
	if got := c.must(http.MethodGet, "shop?wait=20s", ""); got.InFlight != 0 {
		t.Errorf("%d in flight after waiting", got.InFlight)
	}
}

// breakers is how many clients break exchanges at once.
const breakers = 10

// unreliableApp breaks what it is asked for.
type unreliableApp struct {
	*app
	hanging [breakers]chan struct{} // gets a value when a client's request hangs
}

func newUnreliableApp(t *testing.T) *unreliableApp {
	t.Helper()
	a := new(unreliableApp)
	mux := http.NewServeMux()
	for i := range a.hanging {
		a.hanging[i] = make(chan struct{})
		mux.HandleFunc("/hang/"+strconv.Itoa(i), func(_ http.ResponseWriter, r *http.Request) {
			select {
			case a.hanging[i] <- struct{}{}:
				<-r.Context().Done()
			case <-r.Context().Done():
			}
		})
	}
	mux.HandleFunc("/close", func(w http.ResponseWriter, _ *http.Request) {
		if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
			conn.Close()
		}
	})
	mux.HandleFunc("/cut", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		_, _ = io.WriteString(w, "not all of it")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	mux.HandleFunc("/panic", func(http.ResponseWriter, *http.Request) {
		panic(http.ErrAbortHandler)
	})
	mux.HandleFunc("/upload", func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
	})
	a.app = newApp(t, mux.ServeHTTP)
	return a
}

// leave gives up a request that hangs.
func (a *unreliableApp) leave(client *http.Client, s site, breaker int) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url()+"hang/"+strconv.Itoa(breaker), nil)
	if err != nil {
		panic(err) // the address is ours
	}
	go func() {
		select {
		case <-a.hanging[breaker]:
			cancel()
		case <-ctx.Done():
		}
	}()
	_, _ = client.Do(r)
}

// leaveUpload leaves in the middle of a body.
func leaveUpload(t *testing.T, s site) {
	t.Helper()
	conn, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "POST /upload HTTP/1.1\r\nHost: "+s.address+"\r\nContent-Length: 1000\r\n\r\nnot all of it")
}

// G5: What is kept out is not in flight, not even for a moment.
func TestBlockedLoadIsNeverInFlight(t *testing.T) {
	t.Parallel()
	c := newCaddy(t)
	shop := newSite(t, "shop", newApp(t, welcome))
	c.start(c.caddyfile(shop))
	c.on("shop", "")

	var clients sync.WaitGroup
	done := make(chan struct{})
	defer clients.Wait()
	defer close(done)
	for range 8 {
		client := newKeepAliveClient(true)
		clients.Go(func() {
			defer client.CloseIdleConnections()
			repeat(done, func() {
				code, err := fetch(client, shop.url())
				if err != nil || code != http.StatusServiceUnavailable {
					t.Errorf("a visitor got %d %v, want 503", code, err)
				}
			})
		})
	}
	for range 300 {
		if n := c.status("shop").InFlight; n != 0 {
			t.Fatalf("%d in flight", n)
		}
	}
}

// returnTime is how long after the end of the last request a command that
// waits for it may go on. The race detector makes everything slow.
func returnTime() time.Duration {
	if raceEnabled {
		return 400 * time.Millisecond
	}
	return 100 * time.Millisecond
}

// G5
func TestWaitReturnsWhenLastRequestHasEnded(t *testing.T) {
	t.Parallel()
	upstream := newPatientApp(t)
	c := newCaddy(t)
	shop := newSite(t, "shop", upstream.app)
	c.start(c.caddyfile(shop))
	slow := beginSlow(t, shop, upstream)

	on := startCommand(t, c, "maintenance", "on", "shop", "--wait", "10s")
	on.expectLine("Enabling maintenance mode for shop... done")
	shop.expect(t, http.StatusServiceUnavailable)
	on.expectLine("shop: 1 in flight")
	released := time.Now()
	slow.end()
	on.expectLine("drained (this instance, " + hostname(t) + "; others on the same storage follow within 2s)")
	if code := on.wait(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
	if took := time.Since(released); took > returnTime() {
		t.Errorf("the command returned %s after the last request had ended", took)
	}
}

// G5
func TestWaitThatRunsOutLeavesSiteSwitchedOn(t *testing.T) {
	t.Parallel()
	upstream := newPatientApp(t)
	c := newCaddy(t)
	shop := newSite(t, "shop", upstream.app)
	c.start(c.caddyfile(shop))
	slow := beginSlow(t, shop, upstream)

	left := "shop: not drained in 300ms, 1 still in flight on " + hostname(t) + "; maintenance stays on\n"
	for _, args := range [][]string{
		{"maintenance", "on", "shop", "--wait", "300ms"},
		{"maintenance", "shop", "--wait", "300ms"},
	} {
		if got := c.command(args...); got.code != 2 || got.stderr != left || strings.Contains(got.stdout, "drained") {
			t.Errorf("caddy %s: got %+v, want status 2 and stderr %q", strings.Join(args, " "), got, left)
		}
		c.expect("on\n", "maintenance", "shop")
		shop.expect(t, http.StatusServiceUnavailable)
	}
	slow.end()
	awaitInFlight(t, c, 0)
	c.expect("drained (this instance, "+hostname(t)+"; others on the same storage follow within 2s)\n",
		"maintenance", "shop", "--wait", "10s")
}

func hostname(t *testing.T) string {
	t.Helper()
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return name
}
