package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// G1
func TestTerminationEndsHolds(t *testing.T) {
	t.Parallel()
	const n = 100
	upstream := newApp(t, welcome)
	c := newCaddy(t)
	c.options = "servers {\n protocols h1 h2c\n}"
	shop := newSite(t, "shop", upstream)
	c.start(c.caddyfile(shop))
	c.on("shop", `{"hold": "5m"}`)
	answers := make(chan heldAnswer, n+1)
	for i := range n {
		client := newKeepAliveClient(i%2 == 0)
		go func() { answers <- visitHeld(client, shop, i/2%2 == 0) }()
	}
	// A client that has sent half of its body, and keeps its connection in any case.
	slow := dial(t, shop)
	_, _ = io.WriteString(slow, "POST / HTTP/1.1\r\nHost: "+shop.address+"\r\nContent-Length: 10\r\n\r\nhalf ")
	go func() {
		response, err := http.ReadResponse(bufio.NewReader(slow), nil)
		answers <- heldAnswerOf(response, err)
	}()
	awaitHeld(t, c, n+1)

	terminated := time.Now()
	if err := c.process.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for range n + 1 {
		if got := <-answers; got != (heldAnswer{code: http.StatusServiceUnavailable, retryAfter: "1"}) {
			t.Errorf("got %+v, want a 503 with Retry-After 1", got)
		}
	}
	answered := time.Since(terminated)
	err := c.process.Wait()
	took := time.Since(terminated)
	c.process = nil
	if err != nil {
		t.Errorf("the process ended with %v", err)
	}
	t.Logf("%d held requests were answered within %s of the signal, and the process ended after %s", n+1, answered, took)
	if took > 5*time.Second {
		t.Errorf("the process ended %s after the signal", took)
	}
	if n := upstream.requests.Load(); n > 0 {
		t.Errorf("%d requests reached the app", n)
	}
}

type heldAnswer struct {
	code       int
	retryAfter string
	err        string
}

// visitHeld sends a request without a body, or with a small one.
func visitHeld(client *http.Client, s site, body bool) heldAnswer {
	defer client.CloseIdleConnections()
	if body {
		return heldAnswerOf(client.Post(s.url(), "text/plain", strings.NewReader("an order")))
	}
	return heldAnswerOf(client.Get(s.url()))
}

func heldAnswerOf(response *http.Response, err error) heldAnswer {
	if err != nil {
		return heldAnswer{err: err.Error()}
	}
	defer response.Body.Close()
	return heldAnswer{code: response.StatusCode, retryAfter: response.Header.Get("Retry-After")}
}

// siteAnswer is all that the admin API says of a site.
func siteAnswer(t *testing.T, c *caddy, site string) map[string]any {
	t.Helper()
	_, raw, err := c.request(http.MethodGet, "/maintenance/"+site, "")
	if err != nil {
		t.Fatal(err)
	}
	var answer map[string]any
	if err := json.Unmarshal([]byte(raw), &answer); err != nil {
		t.Fatal(err)
	}
	return answer
}

func awaitHeld(t *testing.T, c *caddy, want int) {
	t.Helper()
	eventually(t, patience, fmt.Sprintf("%d are held", want), func() bool {
		return siteAnswer(t, c, "shop")["held"] == float64(want)
	})
}

// G4
func TestSwitchOffElsewhereReleasesHolds(t *testing.T) {
	t.Parallel()
	fleet := newFleet(t, 2)
	fleet[0].on("shop", `{"hold": "5m"}`)
	eventually(t, patience, "the other instance follows", func() bool { return fleet[1].status("shop").State == "on" })
	result := send(http.MethodGet, fleet[1].shop.url(), nil)
	awaitHeld(t, fleet[1].caddy, 1)
	fleet[0].off("shop")
	expectWelcome(t, result)
}

// expectNoLog fails the test if a word is in the log or the storage.
func expectNoLog(t *testing.T, c *caddy, word string) {
	t.Helper()
	record, err := os.ReadFile(c.recordPath("shop"))
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(c.logPath())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(log), word) || strings.Contains(string(record), word) {
		t.Errorf("%s is in the log or in the storage", word)
	}
}
