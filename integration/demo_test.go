package integration

import (
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
