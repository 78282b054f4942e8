package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A page that says what the switch says, and how visitors see it for a message
// that has to be escaped.
const (
	ownPage     = "<!DOCTYPE html>\n<title>Our own page</title>\n<p>{maintenance.message}</p>\n"
	ownPageSeen = "<!DOCTYPE html>\n<title>Our own page</title>\n<p>Back at &lt;three&gt;.</p>\n"
	ownMessage  = `{"message": "Back at <three>."}`

	mutePage = "<!DOCTYPE html>\n<title>A page without a message</title>\n"
)

// A copy that was stored is shown from the first response on, whatever has
// become of the page's host.
func TestRestartWithoutPageHostShowsLastGoodCopy(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		end  func(*caddy)
		lose func(*pageHost)
	}{
		{"kill, host down", (*caddy).kill, (*pageHost).down},
		{"stop, host down", (*caddy).stop, (*pageHost).down},
		{"kill, host silent", (*caddy).kill, (*pageHost).silent},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			host := newPageHost(t, ownPage)
			host.up()
			c := newCaddy(t)
			shop := newSite(t, "shop", newApp(t, welcome)).showing(host.url())
			c.start(c.caddyfile(shop))
			c.on("shop", ownMessage)
			fetched := c.awaitPage("shop", "ok")
			awaitStoredCopy(t, c)

			test.end(c)
			test.lose(host)
			c.launch(c.caddyfile(shop))
			if code, html := firstPage(t, shop); code != http.StatusServiceUnavailable || html != ownPageSeen {
				t.Errorf("the first visitor got %d %q, want 503 and the copy", code, html)
			}
			got := c.awaitPageError("shop", "stale")
			if got.FetchedAt.IsZero() || got.FetchedAt.After(fetched.FetchedAt) {
				t.Errorf("the page was fetched at %s, want at %s or before", got.FetchedAt, fetched.FetchedAt)
			}
			shop.expectPage(t, ownPageSeen)
		})
	}
}

func TestPageAppearsOnceItsHostIsUp(t *testing.T) {
	t.Parallel()
	host := newPageHost(t, ownPage)
	c := newCaddy(t)
	shop := newSite(t, "shop", newApp(t, welcome)).showing(host.url())
	c.start(c.caddyfile(shop))
	c.on("shop", ownMessage)
	c.awaitPageError("shop", "failed")
	code, html := shop.read(t)
	if code != http.StatusServiceUnavailable || !strings.Contains(html, "<h1>Down for maintenance</h1>") ||
		!strings.Contains(html, "Back at &lt;three&gt;.") {
		t.Errorf("a visitor got %d %q, want 503 and the default page", code, html)
	}

	host.up()
	// Attempts are 5, 10, 20 … seconds apart: the longer the machine took until
	// here, the longer the next one may be off.
	eventually(t, 2*patience, "the page appears", func() bool {
		_, html := shop.read(t)
		return html == ownPageSeen
	})
	if got := c.awaitPage("shop", "ok"); got.Error != "" {
		t.Errorf("got %+v, want no error any more", got)
	}
}

func TestCommandWarnsOfPageThatCannotBeFetched(t *testing.T) {
	t.Parallel()
	host := newPageHost(t, ownPage)
	c := newCaddy(t)
	upstream := newApp(t, welcome)
	secretURL := strings.Replace(host.url(), "//", "//operator:s3cret@", 1) + "?token=s3cret"
	c.start(c.caddyfile(newSite(t, "shop", upstream).showing(secretURL), newSite(t, "wiki", upstream)))
	c.awaitPageError("shop", "failed")
	warning := fmt.Sprintf("warning: shop: page %s could not be fetched, and visitors see the default page: dial tcp %s: connect: connection refused\n",
		host.url(), host.address)
	c.expectWarning("Enabling maintenance mode for shop... done\n", warning, "maintenance", "on", "shop")
	if got := c.command("maintenance", "--json"); got.code != 0 || got.stderr != "" || strings.Contains(got.stdout, "s3cret") {
		t.Errorf("got %+v, want JSON without secrets and no warning", got)
	}
	log, err := os.ReadFile(c.logPath())
	if err != nil || !strings.Contains(string(log), host.url()) || strings.Contains(string(log), "s3cret") {
		t.Errorf("got %v and %s, want a log that names the page without its secrets", err, log)
	}
}

func TestInstanceThatStartsLaterShowsPageOfOthers(t *testing.T) {
	t.Parallel()
	host := newPageHost(t, ownPage)
	host.up()
	storage, upstream := t.TempDir(), newApp(t, welcome)
	fleet := make([]instance, 3)
	for i := range fleet {
		fleet[i] = instance{newCaddy(t), newSite(t, "shop", upstream).showing(host.url())}
		fleet[i].storage = storage
	}
	for _, early := range fleet[:2] {
		early.start(early.caddyfile(early.shop))
		early.awaitPage("shop", "ok")
	}
	awaitStoredCopy(t, fleet[0].caddy)
	host.down()
	fleet[0].on("shop", ownMessage)

	late := fleet[2]
	late.launch(late.caddyfile(late.shop))
	if code, html := firstPage(t, late.shop); code != http.StatusServiceUnavailable || html != ownPageSeen {
		t.Errorf("the first visitor got %d %q, want 503 and the copy", code, html)
	}
	late.awaitPageError("shop", "stale")
	for _, early := range fleet[:2] {
		eventually(t, patience, "the instance shows its copy", func() bool {
			_, html := early.shop.read(t)
			return html == ownPageSeen
		})
	}
}

func TestConfigWithoutItsPageFileIsRefused(t *testing.T) {
	t.Parallel()
	c := newCaddy(t)
	write(t, filepath.Join(c.dir, "page.html"), ownPage)
	shop := newSite(t, "shop", newApp(t, welcome)).showing("page.html").marked(1)
	c.start(c.caddyfile(shop))
	c.on("shop", ownMessage)
	missing := filepath.Join(c.dir, "missing.html")

	write(t, c.configPath(), c.caddyfile(shop.showing("missing.html").marked(2)))
	got := c.command("reload", "--config", c.configPath(), "--adapter", "caddyfile")
	if want := "page: " + missing + " cannot be read: no such file or directory"; got.code != 1 || !strings.Contains(got.stderr, want) {
		t.Errorf("caddy reload: got %+v, want status 1 and %q", got, want)
	}
	refuse(t, c, c.caddyfile(shop.showing("missing.html").marked(2)), missing)
	refuse(t, c, c.caddyfile(shop.showing("{env.HOME}/missing.html").marked(2)), missing) // which is known only when it loads

	shop.awaitConfig(t, 1)
	shop.expectPage(t, ownPageSeen)
	c.awaitPage("shop", "ok")
}

// What is wrong with what is written is refused with file and line; what is wrong with a
// file, where the config is loaded, for it may be adapted elsewhere.
func TestBadPageIsRefused(t *testing.T) {
	t.Parallel()
	c := newCaddy(t)
	write(t, filepath.Join(c.dir, "empty.html"), " \n")
	write(t, filepath.Join(c.dir, "latin1.html"), "<p>Gesch\xe4ft</p>")
	write(t, filepath.Join(c.dir, "notes.txt"), "Back at three.\n")
	write(t, filepath.Join(c.dir, "large.html"), strings.Repeat("x", 1<<20+1))
	for page, want := range map[string]string{
		"missing.html":           c.dir + "/missing.html cannot be read: no such file or directory",
		"shop.example/down.html": c.dir + "/shop.example/down.html cannot be read: no such file or directory; did you mean https://shop.example/down.html?",
		".":                      c.dir + " is not a regular file",
		"empty.html":             c.dir + "/empty.html: it is empty",
		"latin1.html":            c.dir + "/latin1.html: it is not valid UTF-8; save it as UTF-8, or name its charset in the Content-Type",
		"notes.txt":              c.dir + "/notes.txt: it is not called .html, and does not begin like HTML",
		"large.html":             c.dir + "/large.html: it is larger than 1048576 bytes",
		"ftp://shop.example/":    `"ftp://shop.example/" given, accepted are https, http, and for a file its path without a scheme`,
		"https://u:s3cret@/?q":   `the URL given names no host`,
	} {
		config := c.caddyfile(newSite(t, "shop", newApp(t, welcome)).showing(page))
		write(t, c.configPath(), config)
		want = "page: " + want
		isFile := !strings.Contains(page, "://")
		if !isFile {
			line := 1 + strings.Count(config[:strings.Index(config, "page ")], "\n")
			want += fmt.Sprintf(", at %s:%d", c.configPath(), line)
		}
		for _, command := range []string{"adapt", "validate"} {
			got := c.command(command, "--config", c.configPath(), "--adapter", "caddyfile")
			if isFile && command == "adapt" {
				if got.code != 0 {
					t.Errorf("caddy adapt looks for the file %s: %s", page, got.stderr)
				}
				continue
			}
			if message := lastLogged(t, got.stderr); got.code != 1 || !strings.HasSuffix(message, want) {
				t.Errorf("caddy %s: got status %d and %q, want 1 and %q", command, got.code, message, want)
			}
		}
	}
}

func TestPageFileIsRelativeToWorkingDirectory(t *testing.T) {
	t.Parallel()
	c := newCaddy(t)
	shop := newSite(t, "shop", newApp(t, welcome)).showing("./maintenance.html")
	elsewhere := filepath.Join(c.dir, "elsewhere")
	write(t, filepath.Join(c.dir, "maintenance.html"), ownPage)
	write(t, filepath.Join(elsewhere, "maintenance.html"), mutePage)
	write(t, filepath.Join(elsewhere, "Caddyfile"), c.caddyfile(shop))
	c.run(filepath.Join(elsewhere, "Caddyfile"))
	c.awaitRunning()

	c.on("shop", ownMessage)
	shop.expectPage(t, ownPageSeen)
	if got, want := c.awaitPage("shop", "ok").Source, filepath.Join(c.dir, "maintenance.html"); got != want {
		t.Errorf("the page comes from %s, want %s", got, want)
	}
}

// The README's site whose page has a style of its own.
func TestRecipeForImagesAndStylesOfPage(t *testing.T) {
	t.Parallel()
	const page, style = `<!DOCTYPE html><link rel="stylesheet" href="/maintenance-assets/style.css">`, "body { color: #333 }"
	c := newCaddy(t)
	upstream := newApp(t, welcome)
	shop := site{name: "shop", address: freeAddress(t), upstream: upstream.address()}
	write(t, filepath.Join(c.dir, "page.html"), page)
	write(t, filepath.Join(c.dir, "assets", "style.css"), style)
	c.start(c.caddyfile() + recipe(t, "handle_path /maintenance-assets/*",
		"shop.example.com {", "http://"+shop.address+" {",
		"/etc/caddy/maintenance/", c.dir+"/",
		"localhost:9000", shop.upstream,
	))
	shop.expectAt(t, "cart", http.StatusOK, "text/plain; charset=utf-8", "Welcome.\n")
	before := upstream.requests.Load()

	c.expect("Enabling maintenance mode for shop... done\n", "maintenance", "on", "shop")
	for _, path := range []string{"", "cart", "maintenance-assets", "maintenance-assets.css", "maintenance-assets/../cart", "maintenance-assets/%2e%2e/cart"} {
		shop.expectAt(t, path, http.StatusServiceUnavailable, "text/html; charset=utf-8", page)
	}
	shop.expectAt(t, "maintenance-assets/style.css", http.StatusOK, "text/css; charset=utf-8", style)
	shop.expectAt(t, "maintenance-assets/missing.css", http.StatusNotFound, "", "")
	if n := upstream.requests.Load() - before; n > 0 {
		t.Errorf("%d requests reached the app", n)
	}

	c.expect("Disabling maintenance mode for shop... done\n", "maintenance", "off", "shop")
	shop.expectAt(t, "cart", http.StatusOK, "text/plain; charset=utf-8", "Welcome.\n")
	shop.expectAt(t, "maintenance-assets/style.css", http.StatusOK, "text/css; charset=utf-8", style)
}

// recipe returns the Caddyfile in the README that has a line like that, with
// what is only an example replaced, given as old and new.
func recipe(t *testing.T, line string, replacements ...string) string {
	t.Helper()
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for block := range strings.SplitSeq(string(readme), "```caddyfile\n") {
		block, _, _ = strings.Cut(block, "```")
		if !strings.Contains(block, line) {
			continue
		}
		for i := 0; i < len(replacements); i += 2 {
			if !strings.Contains(block, replacements[i]) {
				t.Fatalf("the recipe has no %q", replacements[i])
			}
		}
		return strings.NewReplacer(replacements...).Replace(block)
	}
	t.Fatalf("the README has no Caddyfile with %q", line)
	return ""
}

// pageHost is the server of a page, which comes up and goes down at one address.
type pageHost struct {
	t             *testing.T
	address, html string
	end           func()
}

func newPageHost(t *testing.T, html string) *pageHost {
	t.Helper()
	h := &pageHost{t: t, address: freeAddress(t), html: html, end: func() {}}
	t.Cleanup(h.down)
	return h
}

func (h *pageHost) url() string { return "http://" + h.address + "/page.html" }

func (h *pageHost) up() {
	h.t.Helper()
	server := &httptest.Server{Listener: h.listen(), Config: &http.Server{Handler: h}}
	server.Start()
	h.end = server.Close
}

// silent has the host take connections and never answer.
func (h *pageHost) silent() {
	h.t.Helper()
	h.down()
	listener := h.listen()
	h.end = func() { _ = listener.Close() }
}

func (h *pageHost) down() {
	h.end()
	h.end = func() {}
}

func (h *pageHost) listen() net.Listener {
	h.t.Helper()
	listener, err := net.Listen("tcp", h.address)
	if err != nil {
		h.t.Fatal(err)
	}
	return listener
}

func (h *pageHost) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = io.WriteString(w, h.html)
}

// showing returns the site with a page of its own.
func (s site) showing(page string) site {
	s.block = "{\n\t\tpage " + page + "\n\t}"
	return s
}

// read returns what a visitor gets, status 0 if there is no response.
func (s site) read(t *testing.T) (code int, body string) {
	t.Helper()
	code, _, body = read(t, s.url())
	return code, body
}

func read(t *testing.T, url string) (code int, header http.Header, body string) {
	t.Helper()
	response, err := visitors.Get(url)
	if err != nil {
		return 0, nil, err.Error()
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	if err != nil {
		t.Errorf("reading a response: %v", err)
	}
	return response.StatusCode, response.Header, string(raw)
}

// expectAt fails the test if a visitor of a path gets something else.
func (s site) expectAt(t *testing.T, path string, code int, contentType, body string) {
	t.Helper()
	gotCode, header, gotBody := read(t, s.url()+path)
	if got := header.Get("Content-Type"); gotCode != code || got != contentType || gotBody != body {
		t.Errorf("a visitor of /%s got %d %q %q, want %d %q %q", path, gotCode, got, gotBody, code, contentType, body)
	}
}

// firstPage returns what the first visitor of a starting Caddy gets.
func firstPage(t *testing.T, s site) (code int, html string) {
	t.Helper()
	eventually(t, patience, s.name+" answers", func() bool {
		code, html = s.read(t)
		return code != 0
	})
	return code, html
}

func (s site) expectPage(t *testing.T, want string) {
	t.Helper()
	if code, html := s.read(t); code != http.StatusServiceUnavailable || html != want {
		t.Errorf("a visitor of %s got %d %q, want 503 %q", s.name, code, html, want)
	}
}

// pageStatus is a site's page as the admin API answers it.
type pageStatus struct {
	Source    string    `json:"source"`
	State     string    `json:"state"`
	FetchedAt time.Time `json:"fetched_at"`
	Error     string    `json:"error"`
}

// awaitPage returns when the one page of a site is in a state.
func (c *caddy) awaitPage(site, state string) pageStatus {
	c.t.Helper()
	return c.awaitPageThat(site, "is "+state, func(p pageStatus) bool { return p.State == state })
}

// awaitPageError returns when it is known, too, why the page cannot be fetched.
func (c *caddy) awaitPageError(site, state string) pageStatus {
	c.t.Helper()
	return c.awaitPageThat(site, "is "+state+" with an error", func(p pageStatus) bool {
		return p.State == state && p.Error != ""
	})
}

func (c *caddy) awaitPageThat(site, what string, accepted func(pageStatus) bool) (page pageStatus) {
	c.t.Helper()
	eventually(c.t, patience, "the page of "+site+" "+what, func() bool {
		var answer struct {
			Pages []pageStatus `json:"pages"`
		}
		code, raw, err := c.request(http.MethodGet, "/maintenance/"+site, "")
		if err != nil || code != http.StatusOK {
			return false // Caddy is still starting
		}
		if err := json.Unmarshal([]byte(raw), &answer); err != nil || len(answer.Pages) != 1 {
			c.t.Fatalf("got %s %v, want one page", raw, err)
		}
		page = answer.Pages[0]
		return accepted(page)
	})
	return page
}

// awaitStoredCopy returns when the copy of the one page there is has been stored,
// which no answer waits for.
func awaitStoredCopy(t *testing.T, c *caddy) {
	t.Helper()
	eventually(t, patience, "the copy is stored", func() bool {
		copies, err := filepath.Glob(filepath.Join(c.storage, "maintenance", "pages", "*.json"))
		return err == nil && len(copies) == 1
	})
}

// expectWarning runs a command line that must succeed and print exactly stdout,
// and a warning on standard error.
func (c *caddy) expectWarning(stdout, warning string, args ...string) {
	c.t.Helper()
	if got, want := c.command(args...), (output{stdout: stdout, stderr: warning}); got != want {
		c.t.Errorf("caddy %s: got %+v, want %+v", strings.Join(args, " "), got, want)
	}
}

// lastLogged returns the message of the last line that a command has logged.
func lastLogged(t *testing.T, log string) string {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(log), "\n")
	var entry struct {
		Message string `json:"msg"`
	}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &entry); err != nil {
		t.Errorf("%q: %v", log, err)
	}
	return entry.Message
}
