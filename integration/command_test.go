package integration

import (
	"net/http"
	"os"
	"strings"
	"testing"
)

// What the command sends is what the admin API takes, and shows again.
func TestCommandSetsAndClearsEveryOption(t *testing.T) {
	t.Parallel()
	c, shop := startSite(t, literal, welcome)
	got := c.command(strings.Fields("maintenance on shop --message Soon. --retry-after 1m --until 2050-01-31T04:00:00+01:00 " +
		"--hold 1.5m --terminate-after 1d --secret " + testSecret)...)
	const done = "Enabling maintenance mode for shop... done, ends by itself 2050-01-31 03:00 UTC (in "
	if !strings.HasPrefix(got.stdout, done) || got.code != 0 || got.stderr != "" {
		t.Fatalf("got %+v, want %s", got, done)
	}
	tester := newTester()
	expectCode(t, tester, shop.url()+".maintenance/"+testSecret, http.StatusOK)
	options := map[string]any{
		"message": "Soon.", "retry_after": "1m", "until": "2050-01-31T03:00:00Z",
		"hold": "1.5m", "terminate_after": "1d", "bypass_secret": true,
	}
	answer := c.fields("/maintenance/shop")
	for name, want := range options {
		if answer[name] != want {
			t.Errorf("%s is %v, want %v", name, answer[name], want)
		}
	}
	since := c.status("shop").Since.Format("2006-01-02 15:04:05 MST")
	c.expect("Enabling maintenance mode for shop... done (was already on since "+since+"), does not end by itself any more\n", strings.Fields(
		"maintenance on shop --message= --retry-after= --until= --hold= --terminate-after= --secret=")...)
	expectCode(t, tester, shop.url(), http.StatusServiceUnavailable)
	answer = c.fields("/maintenance/shop")
	for name := range options {
		if got := answer[name]; got != nil && got != false {
			t.Errorf("%s is %v, want none", name, got)
		}
	}
	for _, path := range []string{c.recordPath("shop"), c.logPath()} {
		if content, err := os.ReadFile(path); err != nil || strings.Contains(string(content), testSecret) {
			t.Errorf("the secret is in %s (%v)", path, err)
		}
	}
}
