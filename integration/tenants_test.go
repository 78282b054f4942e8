package integration

import (
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// newTenants returns sites of one template, all of one site block.
func newTenants(t *testing.T, upstream *app, names ...string) (tenants sites) {
	t.Helper()
	s := tenant.newSite(t, upstream)
	for _, s.name = range names {
		tenants = append(tenants, s)
	}
	return tenants
}

// Tenants are as they were switched, each by itself, though the storage has lost all of them
// while Caddy was down; it gets their records again.
//
// G3
func TestTenantsOutliveTheirStorage(t *testing.T) {
	t.Parallel()
	c := newCaddy(t)
	c.options = "maintenance {\n sync_interval 200ms\n}"
	tenants := newTenants(t, newApp(t, welcome), "one.example", "two.example", "three.example", "four.example", "five.example")
	closed, open := tenants[:3], tenants[3:]
	caddyfile := c.caddyfile(tenants[0])
	c.start(caddyfile)
	switched := make(map[string]status)
	for _, s := range tenants[:4] {
		switched[s.name] = c.on(s.name, `{"message": "Moving `+s.name+`."}`)
	}
	c.off(open[0].name)
	closed.expect(t, http.StatusServiceUnavailable)
	open.expect(t, http.StatusOK)
	c.kill()
	remove(t, filepath.Join(c.storage, "maintenance"))

	c.launch(caddyfile)
	closed.expectFirst(t, http.StatusServiceUnavailable)
	open.expectFirst(t, http.StatusOK)
	c.awaitRunning()
	for _, s := range closed {
		eventually(t, patience, "the record of "+s.name+" is back", func() bool {
			record, err := readRecord(c, s.name)
			return err == nil && record.sameSwitch(switched[s.name])
		})
		if got := c.status(s.name); !got.sameSwitch(switched[s.name]) {
			t.Errorf("%s is %+v, and %+v was answered", s.name, got, switched[s.name])
		}
	}
	closed.expect(t, http.StatusServiceUnavailable)
	open.expect(t, http.StatusOK)
	if got := c.command("maintenance"); strings.Contains(got.stdout, open[0].name) || strings.Count(got.stdout, "\n") != 1+len(closed) {
		t.Errorf("got %+v, want the tenants that are not off", got)
	}
}

// A tenant is closed on every instance when its switch is done, though none had heard of it,
// and drained when its own requests have ended: those of others go on.
//
// G11, G5
func TestTenantIsDrainedWithoutItsNeighbors(t *testing.T) {
	t.Parallel()
	f := newNamedFleet(t, tenant, 3)
	b := f.all[1]
	slow := begin(t, b.site, f.app, "GET /slow HTTP/1.1\r\n\r\n")
	socket := begin(t, b.site.neighbor(), f.app, "GET /socket HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nx")
	w := f.wait("20s")
	w.await("done (3 instances)\n")
	for _, i := range f.all {
		i.site.expect(t, http.StatusServiceUnavailable)
		i.site.expectNeighbor(t)
	}
	w.await("1 in flight on B")
	close(f.app.release)
	w.end(0, "drained (3 instances)")
	if got := slow.read(); !strings.HasPrefix(got, "200") {
		t.Errorf("the request got %s", got)
	}
	socket.write("x")
	f.app.awaitReached(t)
}

// The link with the secret of a tenant lets nobody into another one, also with a cookie that
// was taken there, and though both have the same secret.
func TestCookieOfATenantOpensNoOther(t *testing.T) {
	t.Parallel()
	c := newCaddy(t)
	tenants := newTenants(t, newApp(t, welcome), "one.example", "two.example")
	one, two := tenants[0], tenants[1]
	c.start(c.caddyfile(one))
	cookies := make(map[string]string)
	for _, s := range tenants {
		c.on(s.name, `{"bypass_secret": "`+testSecret+`"}`)
		got := ask(visitors, http.MethodGet, s.url()+".maintenance/"+testSecret, nil)
		cookies[s.name], _, _ = strings.Cut(got.header.Get("Set-Cookie"), ";")
		expectCode(t, visitors, s.url(), http.StatusServiceUnavailable)
	}
	_, valueOfOne, _ := strings.Cut(cookies[one.name], "=")
	nameOfTwo, _, _ := strings.Cut(cookies[two.name], "=")
	for _, test := range []struct {
		s      site
		cookie string
		want   int
	}{
		{one, cookies[one.name], http.StatusOK},
		{two, cookies[two.name], http.StatusOK},
		{two, cookies[one.name], http.StatusServiceUnavailable},
		{two, nameOfTwo + "=" + valueOfOne, http.StatusServiceUnavailable},
		{one, cookies[one.name] + "; " + cookies[two.name], http.StatusOK},
	} {
		if got, err := fetch(visitors, test.s.url(), "Cookie", test.cookie); got != test.want {
			t.Errorf("%s with %s got %d %v, want %d", test.s.name, test.cookie, got, err, test.want)
		}
	}
}
