package integration

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

// G1
func TestTerminationEndsHolds(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		const n = 100
		upstream := newApp(t, welcome)
		c := newCaddy(t)
		c.options = "servers {\n protocols h1 h2c\n}"
		s := k.newSite(t, upstream)
		c.start(c.caddyfile(s))
		c.on(k.name, `{"hold": "5m"}`)
		answers := make(chan answer, n+1)
		for i := range n {
			client := newKeepAliveClient(i%2 == 0)
			method, body := http.MethodGet, io.Reader(nil)
			if i/2%2 == 0 {
				method, body = http.MethodPost, strings.NewReader("an order")
			}
			go func() {
				defer client.CloseIdleConnections()
				answers <- ask(client, method, s.url(), body)
			}()
		}
		// A client that has sent half of its body, and keeps its connection in any case.
		slow := s.open(t, "POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nhalf ")
		go func() { answers <- answerOf(http.ReadResponse(bufio.NewReader(slow), nil)) }()
		awaitHeld(t, c, k.name, n+1)

		terminated := time.Now()
		if err := c.process.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		for range n + 1 {
			if got := <-answers; got.code != http.StatusServiceUnavailable || got.header.Get("Retry-After") != "1" {
				t.Errorf("got %+v, want a 503 with Retry-After 1", got)
			}
		}
		if err := c.process.Wait(); err != nil {
			t.Errorf("the process ended with %v", err)
		}
		c.process = nil
		if took := time.Since(terminated); took > 5*time.Second {
			t.Errorf("the process ended %s after the signal", took)
		}
		if n := upstream.requests.Load(); n > 0 {
			t.Errorf("%d requests reached the app", n)
		}
	})
}

func awaitHeld(t *testing.T, c *caddy, site string, want int) {
	t.Helper()
	eventually(t, patience, fmt.Sprintf("%d are held", want), func() bool {
		return c.fields("/maintenance/" + site)["held"] == float64(want)
	})
}

// G4
func TestSwitchOffElsewhereReleasesHolds(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		fleet := newFleet(t, k, 2)
		fleet[0].on(k.name, `{"hold": "5m"}`)
		fleet[1].awaitState(k.name, "on")
		result := send(visitors, fleet[1].site.url())
		awaitHeld(t, fleet[1].caddy, k.name, 1)
		fleet[0].off(k.name)
		expectWelcome(t, <-result)
	})
}
