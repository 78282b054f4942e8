package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
)

// The session that the README begins with, on the repository's Caddyfile.
func TestDemo(t *testing.T) {
	t.Parallel()
	c := newCaddy(t)
	caddyfile, shop, wiki := demo(t, c)
	c.start(caddyfile)
	shop.expect(t, http.StatusOK)

	c.expect("Enabling maintenance mode for shop... done\n", "maintenance", "on", "shop")
	c.expect("on\n", "maintenance", "shop")
	shop.expect(t, http.StatusServiceUnavailable)
	wiki.expect(t, http.StatusOK)
	c.expect("off\n", "maintenance", "wiki")

	c.on("shop", `{"message": "Back at three.", "until": "2999-01-31T03:00:00Z"}`)
	expectTable(t, c)
	expectJSON(t, c)
	// The shell asks for the sites like this.
	c.expectCompletion("shop\nwiki\n:4\n", "maintenance", "on", "--address", c.admin, "")
	c.expectCompletion("shop\nwiki\n:4\n", "maintenance", "off", "--address", c.admin, "")

	c.expect("Disabling maintenance mode for shop... done\n", "maintenance", "off", "shop")
	c.expect("off\n", "maintenance", "shop")
	shop.expect(t, http.StatusOK)
	wiki.expect(t, http.StatusOK)
}

// demo returns the repository's Caddyfile with addresses of its own.
func demo(t *testing.T, c *caddy) (caddyfile string, shop, wiki site) {
	t.Helper()
	raw, err := os.ReadFile("../Caddyfile")
	if err != nil {
		t.Fatal(err)
	}
	caddyfile = string(raw)
	shop = site{name: "shop", address: "localhost:" + freePort(t)}
	wiki = site{name: "wiki", address: "localhost:" + freePort(t)}
	for _, replacement := range [][2]string{
		{"auto_https off\n", "auto_https off\n\tadmin " + c.admin + "\n"},
		{"localhost:8080", shop.address},
		{"localhost:8081", wiki.address},
		{"localhost:9080", "localhost:" + freePort(t)},
		{"localhost:9081", "localhost:" + freePort(t)},
	} {
		if !strings.Contains(caddyfile, replacement[0]) {
			t.Fatalf("the Caddyfile has no %q", replacement[0])
		}
		caddyfile = strings.ReplaceAll(caddyfile, replacement[0], replacement[1])
	}
	return caddyfile, shop, wiki
}

func expectTable(t *testing.T, c *caddy) {
	t.Helper()
	var table strings.Builder
	since := c.status("shop").Since.Format("2006-01-02 15:04 MST")
	for _, row := range [][]any{
		{"SITE", "STATE", "SINCE", "UNTIL", "IN FLIGHT", "MESSAGE"},
		{"shop", "on", since, "2999-01-31 03:00 UTC", "0", "Back at three."},
		{"wiki", "off", "-", "-", "0", ""},
	} {
		fmt.Fprintf(&table, "%-6s%-7s%-22s%-22s%-11s%s\n", row...)
	}
	c.expect(table.String(), "maintenance")
}

func expectJSON(t *testing.T, c *caddy) {
	t.Helper()
	var all []status
	if err := json.Unmarshal([]byte(c.command("maintenance", "--json").stdout), &all); err != nil {
		t.Fatal(err)
	}
	if len(all) != 2 || !all[0].sameSwitch(c.status("shop")) || !all[1].sameSwitch(c.status("wiki")) {
		t.Errorf("got %+v, want shop and wiki", all)
	}
	var one status
	if err := json.Unmarshal([]byte(c.command("maintenance", "shop", "--json").stdout), &one); err != nil {
		t.Fatal(err)
	}
	if !one.sameSwitch(all[0]) {
		t.Errorf("got %+v, want %+v", one, all[0])
	}
}

func (c *caddy) expectCompletion(want string, args ...string) {
	c.t.Helper()
	got := c.command(append([]string{"__complete"}, args...)...)
	if got.code != 0 || got.stdout != want {
		c.t.Errorf("got %+v, want %q on stdout", got, want)
	}
}
