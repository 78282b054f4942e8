package integration

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"testing"
)

// A cache in front of Caddy keeps nothing of a maintenance, however long the site and
// the app let it keep their pages. The site's header directive is deferred, as it deletes
// a field.
func TestCacheInFrontKeepsNothingOfAMaintenance(t *testing.T) {
	t.Parallel()
	program := lookUpNginx(t)
	public := http.Header{"Cache-Control": {"public"}, "X-Accel-Expires": {"3600"}}
	for _, test := range []struct {
		name    string
		header  http.Header // of the app
		caching string      // as nginx is told
	}{
		{"app that says nothing", nil, "proxy_cache_valid any 10m;"},
		{"app that says public", public, "proxy_cache_valid any 10m;"},
		{"nginx that heeds only X-Accel-Expires", public, "proxy_ignore_headers Cache-Control Expires;"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := newCaddy(t)
			shop := newSite(t, "shop", newApp(t, func(w http.ResponseWriter, r *http.Request) {
				maps.Copy(w.Header(), test.header)
				welcome(w, r)
			}))
			shop.directives = "header {\n-Server\nCache-Control \"public, max-age=3600\"\n}"
			c.start(c.caddyfile(shop))
			shop = startNginx(t, program, test.caching, shop)

			page := shop.url() + "page"
			expectCached(t, page, http.StatusOK, "MISS")
			expectCached(t, page, http.StatusOK, "HIT") // or this would be no cache
			expectCached(t, page+"?old", http.StatusOK, "MISS")

			c.on("shop", `{"bypass_secret": "`+testSecret+`"}`)
			expectCached(t, page+"?blocked", http.StatusServiceUnavailable, "MISS")
			expectCached(t, page+"?blocked", http.StatusServiceUnavailable, "MISS")

			holder := newTester()
			expectCode(t, holder, shop.url()+".maintenance/"+testSecret, http.StatusOK)
			shop.expect(t, http.StatusServiceUnavailable) // which is where the link has led to
			for _, url := range []string{page + "?holder", page + "?blocked"} {
				for range 2 {
					expectCode(t, holder, url, http.StatusOK)
					expectCached(t, url, http.StatusServiceUnavailable, "MISS")
				}
			}

			c.off("shop")
			for _, url := range []string{page + "?blocked", page + "?holder", shop.url()} {
				expectCached(t, url, http.StatusOK, "MISS")
			}
			expectCached(t, page+"?old", http.StatusOK, "HIT")
		})
	}
}

// expectCached fails the test if a visitor gets another status, or if the cache had
// something else to do with that.
func expectCached(t *testing.T, url string, code int, cache string) {
	t.Helper()
	got := ask(visitors, http.MethodGet, url, nil)
	if cached := got.header.Get("X-Cache"); got.code != code || cached != cache {
		t.Errorf("%s: a visitor got %d, a cache %s, want %d, %s", url, got.code, cached, code, cache)
	}
}

// nginx

// lookUpNginx skips the test where there is none: all other tests need nothing but Go.
func lookUpNginx(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"nginx", "/usr/sbin/nginx"} { // the latter on Debian, for users
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skip("nginx is not installed")
	return ""
}

// startNginx runs nginx as a cache in front of a site, and returns the site as it is
// there.
func startNginx(t *testing.T, program, caching string, s site) site {
	t.Helper()
	dir := t.TempDir()
	front := s
	front.address = freeAddress(t)
	config := filepath.Join(dir, "nginx.conf")
	write(t, config, fmt.Sprintf(`
		daemon off;
		master_process off;
		pid nginx.pid;
		error_log stderr;
		events {}
		http {
			access_log off;
			client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
			uwsgi_temp_path uwsgi; scgi_temp_path scgi;
			proxy_cache_path cache keys_zone=pages:1m;
			server {
				listen %s;
				location / {
					proxy_pass http://%s;
					proxy_http_version 1.1;
					proxy_set_header Host $http_host;
					proxy_cache pages;
					%s
					add_header X-Cache $upstream_cache_status always;
				}
			}
		}
	`, front.address, s.address, caching))
	var log bytes.Buffer
	process := exec.Command(program, "-p", dir, "-c", config)
	process.Stdout, process.Stderr = &log, &log
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = process.Process.Kill()
		_ = process.Wait()
		if t.Failed() {
			t.Logf("nginx says:\n%s", log.String())
		}
	})
	eventually(t, patience, "nginx listens", func() bool {
		conn, err := net.Dial("tcp", front.address)
		return err == nil && conn.Close() == nil
	})
	return front
}
