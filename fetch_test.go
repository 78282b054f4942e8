package maintenance

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"

	"example.com/caddy-maintenance/internal/api"
	"example.com/caddy-maintenance/internal/page"
	"example.com/caddy-maintenance/internal/store"
)

const (
	maxPage            = 1 << 20
	messagePlaceholder = "{maintenance.message}"
	untilPlaceholder   = "{maintenance.until}"
)

// Where a page comes from

func TestPageOfEverySourceIsShown(t *testing.T) {
	dir := changeDir(t)
	file := filepath.Join(dir, "page.html")
	for _, name := range []string{"page.html", "maintenance.HTM", "begins-like-html"} {
		writeFile(t, name, "<h1>Mine.</h1>")
	}
	host := newPageHost(t, answers(html, "<h1>Mine.</h1>"))
	t.Setenv("TEST_PAGE_HOST", host.address)
	t.Setenv("TEST_PAGE_FILE", file)
	s := prepare(t)
	for _, test := range []struct{ page, source string }{
		{host.url("/page"), host.url("/page")},
		{strings.ToUpper(host.url("/")), host.url("/")},
		{"http://{env.TEST_PAGE_HOST}/page", host.url("/page")},
		{" {env.TEST_PAGE_FILE} ", file},
		{"page.html", file},
		{"./page.html", file},
		{file, file},
		{"maintenance.HTM", filepath.Join(dir, "maintenance.HTM")},
		{"begins-like-html", filepath.Join(dir, "begins-like-html")},
	} {
		s.reload(shopWith(test.page))
		s.untilPages("shop", "ok")
		s.wantPage("/", "<h1>Mine.</h1>")
		if got := s.pages("shop"); len(got) != 1 || got[0].Source != test.source {
			t.Errorf("page %q comes from %+v, want %s", test.page, got, test.source)
		}
	}
}

func TestPageOfWhichNothingIsLeftIsTheDefaultOne(t *testing.T) {
	t.Setenv("TEST_PAGE_EMPTY", "")
	t.Setenv("TEST_PAGE_BLANK", " \t")
	s := prepare(t)
	for _, page := range []string{"", "{env.TEST_PAGE_EMPTY}", "{env.TEST_PAGE_BLANK}", "{env.TEST_PAGE_UNSET}"} {
		s.reload(shopWith(page))
		s.wantPage("/", defaultPage)
		if body := s.api(http.MethodGet, "/maintenance/shop", "").body; !strings.Contains(body, `"pages":[]`) {
			t.Errorf("page %q: the API answers %s, want no pages", page, body)
		}
	}
}

// What only a request knows cannot be known when the page is fetched.
func TestUnknownPlaceholderIsRefused(t *testing.T) {
	s := start(t, `maintenance shop`)
	for page, placeholder := range map[string]string{
		"https://status.example/{http.request.host}":                       "http.request.host",
		"https://bob:hunter2@status.example/{http.request.host}?t=hunter3": "http.request.host",
		"{maintenance.message}":                                            "maintenance.message",
		"/srv/{env}.html":                                                  "env",
	} {
		err := s.load(shopWith(page))
		if err == nil || !strings.Contains(err.Error(), placeholder) ||
			!strings.Contains(err.Error(), "known when the config loads, such as {env.MAINTENANCE_PAGE_URL}") {
			t.Errorf("page %s: %v", page, err)
		}
		tellsNoSecret(t, fmt.Sprint(err))
	}
	s.wantStatus("/", 200)
}

func TestHandlersOfASiteShowPagesOfTheirOwn(t *testing.T) {
	host := newPageHost(t, func(w http.ResponseWriter, r *http.Request) {
		answers(html, "<p>page of "+r.URL.Path)(w, r)
	})
	s := start(t, `
		handle /de/* {
			`+shopWith(host.url("/de"))+`
		}
		handle /en/* {
			`+shopWith(host.url("/en"))+`
		}
		handle {
			`+shopWith("")+`
		}`)
	s.untilPages("shop", "ok")
	s.wantPage("/de/", "<p>page of /de")
	s.wantPage("/en/", "<p>page of /en")
	s.wantPage("/fr/", defaultPage)
	if got := s.pages("shop"); len(got) != 2 {
		t.Errorf("the pages are %+v, want two", got)
	}
}

func TestSitesShareAPageThatIsFetchedOnce(t *testing.T) {
	host := newPageHost(t, answers(html, "<p>{maintenance.message}"))
	s := start(t, `
		handle /shop/* {
			`+siteWith("shop", host.url("/page"))+`
		}
		handle /wiki/* {
			`+siteWith("wiki", host.url("/page"))+`
		}
		handle {
			`+siteWith("wiki", host.url("/page"))+`
		}`)
	s.untilPages("shop", "ok")
	s.untilPages("wiki", "ok")
	if n := host.asked("/page"); n != 1 {
		t.Errorf("the page was fetched %d times, want once", n)
	}
	if got := s.pages("wiki"); len(got) != 1 {
		t.Errorf("the pages of wiki are %+v, want one", got)
	}
	s.patch("shop", `{"message": "of shop"}`)
	s.patch("wiki", `{"message": "of wiki"}`)
	s.wantPage("/shop/", "<p>of shop")
	s.wantPage("/wiki/", "<p>of wiki")
	s.wantPage("/", "<p>of wiki")
}

// What visitors see

func TestPlaceholdersAreReplacedAndEscaped(t *testing.T) {
	host := newPageHost(t, answers(html, `<p title="{maintenance.message}">{maintenance.message}</p>{maintenance.until}|{maintenance.since}`))
	s := start(t, shopWith(host.url("/page")))
	s.untilPages("shop", "ok")
	s.wantPage("/", `<p title=""></p>|{maintenance.since}`)

	s.put("shop", `{"message": "a <b> & \"c\" 'ü' {maintenance.until}", "until": "2096-01-31T04:00:00+01:00"}`)
	const escaped = `a &lt;b&gt; &amp; &#34;c&#34; &#39;ü&#39; {maintenance.until}`
	s.wantPage("/", `<p title="`+escaped+`">`+escaped+`</p>2096-01-31 03:00 UTC|{maintenance.since}`)

	s.patch("shop", `{"message": null, "until": null}`)
	s.wantPage("/", `<p title=""></p>|{maintenance.since}`)
}

func TestPagesSayWhetherTheyShowTheMessage(t *testing.T) {
	host := newPageHost(t, answers(html, "<p>{maintenance.until}"))
	s := start(t, shopWith(host.url("/page")))
	for _, test := range []struct {
		page, want string
	}{
		{"<p>{maintenance.until}", `"shows_message":false`},
		{"<p>{maintenance.message}", `"shows_message":true`},
	} {
		host.answer(answers(html, test.page))
		s.untilFetched(host, "/page")
		if body := s.api(http.MethodGet, "/maintenance/shop", "").body; !strings.Contains(body, test.want) {
			t.Errorf("%s: the API answers %s, want %s", test.page, body, test.want)
		}
	}
}

func TestNewMessageIsShownBeforeThePageIsFetchedAgain(t *testing.T) {
	host := newPageHost(t, answers(html, "<p>{maintenance.message}"))
	s := start(t, shopWith(host.url("/page")))
	s.untilPages("shop", "ok")
	host.answer(saysNothing)
	s.patch("shop", `{"message": "New."}`)
	s.wantPage("/", "<p>New.")
	s.put("shop", `{"message": "Newer."}`)
	s.wantPage("/", "<p>Newer.")
	if got := s.pages("shop")[0]; got.State != "ok" {
		t.Errorf("the page is %+v: the fetch has ended", got)
	}
}

func TestPageIsPassedOnInItsCharset(t *testing.T) {
	const sentence = "{maintenance.message}"
	for name, test := range map[string]struct {
		given, page, contentType, shown string
	}{
		"UTF-8":             {html, "<p>\u00fc " + sentence, html, "<p>\u00fc \u00fc"},
		"in capitals":       {`TEXT/HTML; Charset="UTF-8"`, "<p>\u00fc " + sentence, html, "<p>\u00fc \u00fc"},
		"not named":         {"text/html", "<p>\u00fc " + sentence, html, "<p>\u00fc \u00fc"},
		"XHTML":             {"application/xhtml+xml", "<p>" + sentence + "</p>", html, "<p>\u00fc</p>"},
		"Latin-1":           {"text/html; charset=iso-8859-1", "<p>\xfc " + sentence, "text/html; charset=iso-8859-1", "<p>\xfc &#252;"},
		"Latin-1, plain":    {"text/html; charset=ISO-8859-1", "<p>\xfc", "text/html; charset=iso-8859-1", "<p>\xfc"},
		"byte order mark":   {html, "\ufeff<p>" + sentence, html, "<p>\u00fc"},
		"two of them":       {html, "\ufeff\ufeff<p>", html, "\ufeff<p>"},
		"mark, not Latin-1": {"text/html; charset=iso-8859-1", "\ufeff<p>\u00fc " + sentence, html, "<p>\u00fc \u00fc"},
		"binary":            {"binary/octet-stream", "<!DOCTYPE html><p>" + sentence, html, "<!DOCTYPE html><p>\u00fc"},
		"octets":            {"application/octet-stream", "\n<html><p>", html, "\n<html><p>"},
		"no type":           {"", "<!-- Mine. --><p>", html, "<!-- Mine. --><p>"},
		"binary after mark": {"binary/octet-stream", "\ufeff<!doctype html><p>", html, "<!doctype html><p>"},
	} {
		t.Run(name, func(t *testing.T) {
			host := newPageHost(t, answers(test.given, test.page))
			s := start(t, shopWith(host.url("/page")))
			s.put("shop", `{"message": "ü"}`)
			s.untilPages("shop", "ok")
			got := s.get("/")
			if contentType := got.Header.Get("Content-Type"); contentType != test.contentType || got.body != test.shown {
				t.Errorf("got %s %q\nwant %s %q", contentType, got.body, test.contentType, test.shown)
			}
		})
	}
}

func TestCompressedPageIsTheSamePage(t *testing.T) {
	host := newPageHost(t, func(w http.ResponseWriter, r *http.Request) {
		answers(html, r.URL.Path+strings.Repeat("<p>{maintenance.message}\n", 100))(w, r)
	})
	s := start(t, shopWith(host.url("/page")))
	s.untilPages("shop", "ok")
	s.patch("shop", `{"message": "Back & well."}`)
	whole := s.visit("/")
	response := s.do(http.MethodGet, "/", http.Header{"Accept-Encoding": {"gzip"}})
	if got := response.Header.Get("Content-Encoding"); got != "gzip" {
		t.Fatalf("Content-Encoding is %q", got)
	}
	if got := gunzip(t, response.body); got != whole || strings.Count(got, "Back &amp; well.") != 100 {
		t.Errorf("got %s\nwant %s", got, whole)
	}
}

// Only what would have got the default page gets another one, and it comes with
// the same headers.
func TestPageChangesNothingButTheHTML(t *testing.T) {
	host := newPageHost(t, answers(html, "<h1>Mine.</h1>"))
	s := start(t, shopWith(""))
	s.put("shop", `{"message": "Hello.", "retry_after": "7s"}`)
	accepts := []string{
		"image/avif,image/webp,image/*,*/*;q=0.8", "text/css,*/*;q=0.1", "application/javascript", "text/event-stream",
		"application/json", "application/json, text/plain, */*", "text/plain", "text/html;q=0",
	}
	before := make(map[string]response)
	for _, accept := range append(accepts, "text/html") {
		before[accept] = s.do(http.MethodGet, "/", http.Header{"Accept": {accept}})
	}
	s.reload(shopWith(host.url("/page")))
	s.untilPages("shop", "ok")
	for accept, before := range before {
		after := s.do(http.MethodGet, "/", http.Header{"Accept": {accept}})
		want := before.body
		if accept == "text/html" {
			want = "<h1>Mine.</h1>"
			before.Header.Set("Content-Length", strconv.Itoa(len(want)))
		}
		before.Header.Del("Date")
		after.Header.Del("Date")
		if after.StatusCode != 503 || after.body != want || fmt.Sprint(after.Header) != fmt.Sprint(before.Header) {
			t.Errorf("Accept %s got %d %s %s\nwant 503 %s %s", accept, after.StatusCode, after.Header, after.body, before.Header, want)
		}
	}
}

func TestHeadGetsTheHeadersOfAPage(t *testing.T) {
	host := newPageHost(t, answers("text/html; charset=iso-8859-1", strings.Repeat("<p>Mine.", 1000)))
	s := start(t, shopWith(host.url("/page")))
	s.untilPages("shop", "ok")
	for _, encoding := range []string{"identity", "gzip"} {
		header := http.Header{"Accept-Encoding": {encoding}}
		get, head := s.do(http.MethodGet, "/", header), s.do(http.MethodHead, "/", header)
		get.Header.Del("Date")
		head.Header.Del("Date")
		if head.StatusCode != 503 || head.body != "" || fmt.Sprint(get.Header) != fmt.Sprint(head.Header) {
			t.Errorf("GET has %v\nHEAD has %d %v %q", get.Header, head.StatusCode, head.Header, head.body)
		}
	}
}

// The host of the page does not speak for the site.
func TestHeadersOfThePagesHostReachNoVisitor(t *testing.T) {
	evil := http.Header{
		"Set-Cookie": {"session=evil"}, "X-Evil": {"evil"}, "Cache-Control": {"max-age=31536000, evil"}, "Etag": {`"evil"`},
		"Last-Modified": {"Mon, 02 Jan 2006 15:04:05 GMT"}, "Refresh": {"0; url=https://evil.example"}, "Retry-After": {"666"},
		"Content-Security-Policy": {"evil"}, "Location": {"https://evil.example"}, "Link": {"<https://evil.example>; rel=preload"},
		"Content-Language": {"evil"}, "Strict-Transport-Security": {"max-age=666"}, "Clear-Site-Data": {`"*"`},
	}
	host := newPageHost(t, func(w http.ResponseWriter, r *http.Request) {
		maps.Copy(w.Header(), evil)
		answers(html, "<p>Mine.")(w, r)
	})
	s := start(t, shopWith(""))
	usual := slices.Sorted(maps.Keys(s.get("/").Header))
	s.reload(shopWith(host.url("/page")))
	s.untilPages("shop", "ok")
	response := s.get("/")
	if response.body != "<p>Mine." {
		t.Fatalf("the page is %q", response.body)
	}
	if got := slices.Sorted(maps.Keys(response.Header)); !slices.Equal(got, usual) {
		t.Errorf("the headers are %s, want %s", got, usual)
	}
	if got := fmt.Sprint(response.Header); strings.Contains(got, "evil") || strings.Contains(got, "666") {
		t.Errorf("the headers are %s", got)
	}
}

func TestRefreshIsInWholeSeconds(t *testing.T) {
	s := prepare(t)
	for refresh, want := range map[string]string{"": "", "refresh 3s": "3", "refresh 1500ms": "2", "refresh 1s": "1", "refresh 1h": "3600"} {
		s.reload("maintenance shop {\n" + refresh + "\n}")
		s.put("shop", "")
		for _, accept := range []string{"text/html", "application/json"} {
			got := s.do(http.MethodGet, "/", http.Header{"Accept": {accept}})
			if refreshes := got.Header.Values("Refresh"); strings.Join(refreshes, ";") != want {
				t.Errorf("%q: Refresh is %q, want %q", refresh, refreshes, want)
			}
		}
		s.delete("shop")
		if got := s.get("/").Header.Values("Refresh"); len(got) > 0 {
			t.Errorf("%q: Refresh is %q though the site is off", refresh, got)
		}
	}
}

// A page is rendered, and compressed, once for each state of a site and not for
// each visitor.
func TestPageIsRenderedOnce(t *testing.T) {
	page := "<p>{maintenance.message}" + strings.Repeat("x", maxPage-24)
	host := newPageHost(t, answers(html, page))
	s := start(t, shopWith(host.url("/page")))
	s.untilPages("shop", "ok")
	app, err := runningApp()
	if err != nil {
		t.Fatal(err)
	}
	shop := app.sites["shop"]
	gate := &Handler{Site: "shop", RetryAfter: caddy.Duration(time.Minute), site: shop, view: shop.views[0]}
	host.answer(saysNothing) // from now on only visitors have it rendered
	s.fetchAgain(host, "/page")

	// As a switch is learned of that nobody has rendered the page for.
	shop.read(fmt.Sprintf(`{"version": %d, "enabled": true, "message": "New."}`, shop.Current().Version()+1))

	const visitors = 64
	var before, after runtime.MemStats
	var documents sync.Map
	var wg sync.WaitGroup
	runtime.ReadMemStats(&before)
	for i := range visitors {
		wg.Go(func() {
			w := new(benchWriter)
			if err := gate.ServeHTTP(w, benchRequest(t, http.Header{"Accept-Encoding": {[]string{"gzip", ""}[i%2]}}), benchApp); err != nil {
				t.Error(err)
			}
			shown := gate.view.HTML(t.Context(), contentOf(shop.Current().Options()), shop.Current().Changed())
			documents.Store(shown, true)
		})
	}
	wg.Wait()
	runtime.ReadMemStats(&after)
	renderings := 0
	documents.Range(func(any, any) bool { renderings++; return true })
	if renderings != 1 {
		t.Errorf("%d visitors got %d renderings, want one", visitors, renderings)
	}
	// Once takes some 5 MiB.
	if took := (after.TotalAlloc - before.TotalAlloc) >> 20; took > 32 {
		t.Errorf("%d visitors took %d MiB", visitors, took)
	}
	s.wantPage("/", strings.Replace(page, messagePlaceholder, "New.", 1))
}

// When a page is fetched

func TestPageIsFetchedWhenItMayHaveChangedAndForNoVisitor(t *testing.T) {
	host := newPageHost(t, func(w http.ResponseWriter, r *http.Request) {
		answers(html, "<p>page of "+r.URL.Path)(w, r)
	})
	s := prepare(t)
	s.options = "maintenance {\nsync_interval 100ms\n}"
	directives := "maintenance shop {\npage " + host.url("/page") + "\n}"
	s.reload(directives)
	fetches := 0
	fetched := func(when string, more int) {
		t.Helper()
		fetches += more
		eventually(t, func() error {
			if n := host.asked("/page"); n < fetches {
				return fmt.Errorf("%s: fetched %d times, want %d", when, n, fetches)
			}
			return nil
		})
		if n := host.asked("/page"); n > fetches {
			t.Fatalf("%s: fetched %d times, want %d", when, n, fetches)
		}
	}
	fetched("the config has started", 1)
	s.put("shop", "")
	fetched("switched on", 1)
	s.patch("shop", `{"message": "Hello."}`)
	fetched("message changed", 1)
	s.put("shop", "")
	fetched("message cleared", 1)
	s.untilPage("/", "<p>page of /page")

	s.visitALot(1000, "<p>page of /page", "/")
	fetched("1000 visitors", 0)
	s.status("shop")
	s.delete("shop")
	s.visitALot(100, "app", "/")
	fetched("switched off", 0)

	s.storage.set(shopKey, fmt.Sprintf(`{"version": %d, "enabled": true}`, time.Now().UnixMicro()))
	s.reread()
	fetched("switched on by another instance", 1)
	s.storage.set(shopKey, fmt.Sprintf(`{"version": %d, "enabled": true, "message": "Hello."}`, time.Now().UnixMicro()))
	s.reread()
	fetched("message changed by another instance", 1)

	// The one fails when its handlers are set up, the other when its apps have
	// started.
	failing := directives + "\n" + siteWith("wiki", host.url("/failed"))
	if err := s.load(failing + "\nmaintenance blog {\npage {http.request.host}\n}"); err == nil {
		t.Fatal("a wrong config was loaded")
	}
	s.failLate(failing)
	s.patch("shop", `{"message": null}`)
	fetched("two configs failed, and the message was cleared", 1)
	s.reload(directives)
	fetched("config reloaded", 1)
	s.patch("shop", `{"message": "Hello."}`)
	fetched("message changed", 1)
	if n := host.asked("/failed"); n > 0 {
		t.Errorf("the page of a config that failed was fetched %d times", n)
	}
}

func TestValidationFetchesNoPage(t *testing.T) {
	host := newPageHost(t, answers(html, "<p>Mine."))
	s := prepare(t)
	if err := s.validate(shopWith(host.url("/page"))); err != nil {
		t.Fatal(err)
	}
	noPageIsLeft(t)
	s.reload(shopWith(host.url("/page")))
	s.untilPages("shop", "ok")
	if n := host.asked("/page"); n != 1 {
		t.Errorf("fetched %d times, want once, by the config that runs", n)
	}
}

func TestPageThatHasNotChangedIsNotSentAgain(t *testing.T) {
	const modified = "Mon, 02 Jan 2006 15:04:05 GMT"
	var etag atomic.Value
	var sent, unchanged atomic.Int64
	etag.Store(`"v1"`)
	host := newPageHost(t, func(w http.ResponseWriter, r *http.Request) {
		current := etag.Load().(string)
		if r.Header.Get("If-None-Match") == current && r.Header.Get("If-Modified-Since") == modified {
			unchanged.Add(1)
			w.WriteHeader(http.StatusNotModified)
			return
		}
		sent.Add(1)
		w.Header().Set("ETag", current)
		w.Header().Set("Last-Modified", modified)
		answers(html, "<p>"+strings.Trim(current, `"`))(w, r)
	})
	s := start(t, shopWith(host.url("/page")))
	s.untilPages("shop", "ok")
	want := func(wantSent, wantUnchanged int64, page string) {
		t.Helper()
		eventually(t, func() error {
			if sent.Load() != wantSent || unchanged.Load() != wantUnchanged {
				return fmt.Errorf("sent %d times and unchanged %d times, want %d and %d", sent.Load(), unchanged.Load(), wantSent, wantUnchanged)
			}
			return nil
		})
		s.untilPages("shop", "ok")
		s.untilPage("/", page)
	}
	want(1, 0, "<p>v1")
	s.reload(shopWith(host.url("/page")))
	want(1, 1, "<p>v1")
	s.put("shop", "")
	want(1, 2, "<p>v1")
	etag.Store(`"v2"`)
	s.put("shop", "")
	want(2, 2, "<p>v2")
	s.patch("shop", `{"message": "Hello."}`)
	want(2, 3, "<p>v2")
}

// Pages that are none

// badPage is a way in which a page is none.
type badPage struct {
	serve http.HandlerFunc
	want  string // what its error says
	at    string // its URL if no host serves it
}

const (
	userinfo = "bob:hunter2@"
	query    = "?token=hunter3"

	silent = "no complete answer within 10s" // the error of a host that takes too long
)

// badPages can lead to another host and to the admin API.
func badPages(admin string, other *pageHost) map[string]badPage {
	const (
		headers = "headers exceeded 65536 bytes"
		large   = "it is larger than 1048576 bytes"
		many    = "more than 5 redirects"
		ok      = "HTTP/1.1 200 OK\r\n"
	)
	filler := strings.Repeat("x", 4000)
	lost := other.url("/lost")
	return map[string]badPage{
		"silent":       {serve: saysNothing, want: silent},
		"silent-body":  {serve: begins(saysNothing), want: silent},
		"drip":         {serve: begins(drips), want: silent},
		"drip-headers": {serve: hijacks(ok, drip), want: silent},

		"endless-headers": {serve: hijacks(ok, repeat("X-Filler: "+filler+"\r\n")), want: headers},
		"endless-header":  {serve: hijacks(ok+"X-Filler: ", repeat(filler)), want: headers},
		"endless-hints":   {serve: hijacks("", repeat("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")), want: headers},
		"endless-body":    {serve: begins(writes(repeat(filler))), want: large},
		"endless-chunk":   {serve: hijacks(ok+"Transfer-Encoding: chunked\r\n\r\n", repeat("1;"+filler)), want: "line too long"},
		"bomb":            {serve: bomb, want: large},
		"too-large":       {serve: answers(html, strings.Repeat("x", maxPage+1)), want: large},

		"loop":         {serve: redirects("/loop" + query), want: many},
		"hops-6":       {serve: hops, want: many},
		"to-admin":     {serve: redirects(withSecrets(admin + "/config/")), want: "a redirect to " + admin + "/config/, followed is one to https or to the same scheme, host and port"},
		"to-file":      {serve: redirects("file:///etc/passwd"), want: "a redirect to file:///etc/passwd, followed is"},
		"to-other":     {serve: redirects(withSecrets(lost)), want: "a redirect to " + lost + ", followed is"},
		"to-odd-query": {serve: redirects(lost + `?q="a b"&token=hunter3`), want: "a redirect to " + lost},
		"to-nowhere":   {serve: redirects("http://" + userinfo + "no where/" + query), want: "Location"},

		"empty":     {serve: answers(html, ""), want: "it is empty"},
		"blank":     {serve: answers(html, "\ufeff \r\n\t"), want: "it is empty"},
		"no-text":   {serve: status(204), want: "status 204, 200 is accepted"},
		"not-found": {serve: status(404), want: "status 404, 200 is accepted"},
		"broken":    {serve: status(500), want: "status 500, 200 is accepted"},
		"unchanged": {serve: status(304), want: "status 304, 200 is accepted"},

		"json":          {serve: answers("application/json", `{"a": 1}`), want: `its Content-Type is "application/json", text/html is accepted`},
		"octets":        {serve: answers("binary/octet-stream", "\x7fELF"), want: `its Content-Type is "binary/octet-stream" and it does not begin like HTML`},
		"untyped":       {serve: answers("", "Hello."), want: `its Content-Type is "" and it does not begin like HTML`},
		"long-type":     {serve: answers("text/"+strings.Repeat("x", 50_000), "Hello."), want: "text/html is accepted"},
		"invalid-utf-8": {serve: answers("text/html", "<p>\xfc"), want: "it is not valid UTF-8"},
		"brotli":        {serve: encodes("br", "<p>Mine."), want: `its Content-Encoding is "br", gzip or none is accepted`},
		"no-gzip":       {serve: encodes("gzip", "<p>Mine. It is not compressed at all."), want: "gzip: invalid header"},
		"full":          {serve: answers(html, strings.Repeat(messagePlaceholder+untilPlaceholder, 51)), want: "it has 102 placeholders, at most 100 are accepted"},
		"bad-charset":   {serve: answers(`text/html; charset="utf-8 evil"`, "<p>Mine."), want: "its charset is "},

		"refused":    {at: "http://" + freeAddress(other.t) + "/refused", want: "refused"},
		"breaks-off": {serve: hijacks(ok+"Content-Type: text/html\r\nContent-Length: 100\r\n\r\n<p>Mine.", nil), want: "unexpected EOF"},
		"hangs-up":   {serve: hijacks("", nil), want: "EOF"},
		"no-http":    {serve: hijacks("SSH-2.0-"+strings.Repeat("x", 50_000)+"\r\n", nil), want: "malformed HTTP"},
	}
}

// All of them at once, so that one timeout is waited for.
//
// G9
func TestBadPageIsReportedAndHarmsNobody(t *testing.T) {
	s := prepare(t)
	other := newPageHost(t, answers(html, "<p>Lost."))
	bad := badPages(s.admin, other)
	host := newPageHost(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/hops-") {
			hops(w, r)
			return
		}
		bad[strings.TrimPrefix(r.URL.Path, "/")].serve(w, r)
	})
	names := make(map[string]string) // by source
	var paths []string
	var directives strings.Builder
	for name, bad := range bad {
		source := bad.at
		if source == "" {
			source = host.url("/" + name)
		}
		names[source] = name
		paths = append(paths, "/"+name+"/")
		fmt.Fprintf(&directives, "handle /%s/* {\n%s\n}\n", name, siteWith("shop", withSecrets(source)))
	}

	grown := watchMemory(t)
	within(t, "the load", 2*time.Second, func() { s.reload(directives.String()) })
	within(t, "the switch on", 2*time.Second, func() { s.put("shop", `{"message": "Hello."}`) })
	within(t, "the change of an option", 2*time.Second, func() { s.patch("shop", `{"message": null}`) })
	s.visitALot(1000, defaultPage, paths...)
	for _, p := range s.pages("shop") {
		if bad[names[p.Source]].want == silent && p.State != "fetching" {
			t.Errorf("%s has been given up, so that somebody may have waited for it: it is %s, %s", p.Source, p.State, p.Error)
		}
	}

	s.untilPages("shop", "failed")
	if grown := grown(); grown > 64<<20 {
		t.Errorf("memory has grown by %d MiB", grown>>20)
	}
	reported := s.pages("shop")
	if len(reported) != len(bad) {
		t.Errorf("%d pages are reported, want %d", len(reported), len(bad))
	}
	for _, got := range reported {
		name := names[got.Source]
		t.Run(name, func(t *testing.T) {
			bad := bad[name]
			if bad.want == "" || !strings.Contains(got.Error, bad.want) || !got.FetchedAt.IsZero() {
				t.Errorf("the page is %+v\nwant it to be failed with %q", got, bad.want)
			}
			if len(got.Error) > 500 {
				t.Errorf("the error has %d bytes: %.200s", len(got.Error), got.Error)
			}
			if n := host.asked("/" + name); bad.serve != nil && bad.want != silent && n < 2 {
				t.Errorf("it was fetched only %d times", n)
			}
			if n := s.countLogged(`"warn"`, "page cannot be fetched", `"page":"`+got.Source+`"`); n != 1 {
				t.Errorf("its failures were logged %d times, want once", n)
			}
			s.wantPage("/"+name+"/", defaultPage)
		})
	}
	if n := other.asked("/lost"); n > 0 {
		t.Errorf("the host that was led to was asked %d times", n)
	}
	if s.countLogged(`"uri":"/config/"`) > 0 {
		t.Error("the admin API was asked")
	}
	s.tellsNoSecret()
}

func TestLargestPageIsShown(t *testing.T) {
	page := "<p>" + strings.Repeat("x", maxPage-3)
	host := newPageHost(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Set("Content-Type", html)
		writer := gzip.NewWriter(w)
		io.WriteString(writer, page)
		writer.Close()
	})
	s := start(t, shopWith(host.url("/page")))
	s.untilPages("shop", "ok")
	s.wantPage("/", page)
}

// However often the message is in a page, it must not take the memory that other
// sites need, nor keep a switch from being answered.
//
// G9
func TestPageFullOfPlaceholdersCostsLittle(t *testing.T) {
	page := strings.Repeat(messagePlaceholder, maxPage/len(messagePlaceholder))
	host := newPageHost(t, answers("text/html; charset=iso-8859-1", page))
	s := start(t, siteWith("full", host.url("/page")))
	s.untilTried("full")
	grown := watchMemory(t)
	s.put("full", `{"message": "`+strings.Repeat("ü", 1000/4)+`"}`)
	if grown := grown(); grown > 64<<20 {
		t.Errorf("memory has grown by %d MiB", grown>>20)
	}
}

func TestRedirectsOnTheSameHostAreFollowed(t *testing.T) {
	host := newPageHost(t, hops)
	s := start(t, shopWith(withSecrets(host.url("/hops-5"))))
	s.untilPages("shop", "ok")
	s.wantPage("/", "<p>Mine.")
}

func TestHostIsGivenWhatTheURLSays(t *testing.T) {
	host := newPageHost(t, func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if user != "bob" || password != "hunter2" || r.URL.RawQuery != "token=hunter3" || r.Header.Get("User-Agent") != "caddy-maintenance" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		answers(html, "<p>Mine.")(w, r)
	})
	s := start(t, shopWith(withSecrets(host.url("/page"))))
	s.untilPages("shop", "ok")
	s.untilStored(withSecrets(host.url("/page")), "Mine")
	s.tellsNoSecret()
}

// One page was good, the other was never there. Both are shown when they can be,
// 5 seconds later, without a switch.
func TestGoodCopyIsShownUntilThereIsANewOne(t *testing.T) {
	host := newPageHost(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/shop" {
			answers(html, "<p>Old.{maintenance.message}")(w, r)
		} else {
			status(500)(w, r)
		}
	})
	s := start(t, `
		handle /shop/* {
			`+siteWith("shop", host.url("/shop"))+`
		}
		handle /wiki/* {
			`+siteWith("wiki", host.url("/wiki"))+`
		}`)
	s.untilPages("shop", "ok")
	s.untilPages("wiki", "failed")
	fetchedAt := s.pages("shop")[0].FetchedAt

	host.answer(answers(html, ""))
	s.put("shop", "")
	s.untilPages("shop", "stale")
	if got := s.pages("shop")[0]; got.Error != "it is empty" || !got.FetchedAt.Equal(fetchedAt) {
		t.Errorf("the page is %+v, want it empty and fetched at %s", got, fetchedAt)
	}
	s.wantPage("/shop/", "<p>Old.")
	s.wantPage("/wiki/", defaultPage)
	for range 3 {
		s.fetchAgain(host, "/shop") // which does not put off the next time
	}
	if shop, wiki := host.asked("/shop"), host.asked("/wiki"); shop != 5 || wiki != 1 {
		t.Errorf("fetched %d and %d times, want 5 and 1: it is too early for another", shop, wiki)
	}

	host.answer(answers(html, "<p>New.{maintenance.message}"))
	s.untilPage("/shop/", "<p>New.")
	s.untilPage("/wiki/", "<p>New.")
	for _, site := range []string{"shop", "wiki"} {
		s.untilPages(site, "ok")
		if got := s.pages(site)[0]; got.Error != "" {
			t.Errorf("the page of %s is %+v, want no error", site, got)
		}
		s.logged(`"info"`, "page can be fetched again", host.url("/"+site))
		if n := s.countLogged(`"warn"`, "page cannot be fetched", host.url("/"+site)); n != 1 {
			t.Errorf("the failures of %s were logged %d times, want once", site, n)
		}
	}
}

// What a host once said about a page, and is kept in storage, must not keep it
// from being fetched: many servers refuse a request of more than some 8 KiB.
//
// G9
func TestEndlessETagKeepsNoPageFromBeingFetched(t *testing.T) {
	host := newPageHost(t, header("ETag", `"`+strings.Repeat("x", 32<<10)+`"`))
	s := start(t, shopWith(host.url("/page")))
	s.untilTried("shop")
	host.answer(func(w http.ResponseWriter, r *http.Request) {
		if len(r.Header.Get("If-None-Match")) > 8<<10 {
			status(http.StatusRequestHeaderFieldsTooLarge)(w, r)
			return
		}
		answers(html, "<p>New.")(w, r)
	})
	s.untilFetched(host, "/page")
	s.wantPage("/", "<p>New.")
}

// G9
func TestUnchangedIsNoAnswerIfItWasNotAskedFor(t *testing.T) {
	host := newPageHost(t, answers(html, "<p>Mine."))
	s := start(t, shopWith(host.url("/page")))
	s.untilPages("shop", "ok")
	host.answer(status(http.StatusNotModified))
	s.untilFetched(host, "/page")
	if got := s.pages("shop")[0]; got.State != "stale" {
		t.Errorf("the page is %+v, want stale", got)
	}
	s.wantPage("/", "<p>Mine.")
}

// The URL of a page is shown without its userinfo and its query, whatever is in
// them.
func TestSourceTellsNoSecret(t *testing.T) {
	s := prepare(t)
	for _, page := range []string{
		"http://bob:hunter2@127.0.0.1:1/page?token=hunter3",
		"http://bob@127.0.0.1:1/page#hunter3",
		"http://bob:hunter2@hunter@127.0.0.1:1/page",
		"http://bob:%68unter2%2F@127.0.0.1:1/page",
		"http://127.0.0.1:1/page?q=//x@y&token=hunter3",
		"http://127.0.0.1:1/page?q=a b&token=hunter3",
		`http://127.0.0.1:1/page?q="a"&token=hunter3`,
	} {
		s.reload("maintenance shop {\npage `" + page + "`\n}")
		s.untilPages("shop", "failed")
		if got := s.pages("shop")[0].Source; got != "http://127.0.0.1:1/page" {
			t.Errorf("the source of %s is %s", page, got)
		}
	}
	s.tellsNoSecret()
}

func TestPageInTheClearIsWarnedOf(t *testing.T) {
	s := prepare(t)
	const warning = "page comes over http"
	for _, page := range []string{
		"https://192.0.2.1/page", "http://localhost:1/page", "http://LOCALHOST./page", "http://shop.localhost/page",
		"http://127.0.0.1/page", "http://127.0.0.2:1/page", "http://[::1]:1/page", writePage(t, "<p>Mine."),
	} {
		// A config that does not come to run fetches nothing.
		if err := s.validate(shopWith(page)); err != nil {
			t.Fatal(err)
		}
		if s.countLogged(warning) > 0 {
			t.Fatalf("%s is warned of", page)
		}
	}
	for i, host := range []string{"192.0.2.1", "192.0.2.1:8080", "[2001:db8::1]", "0.0.0.0", "status.invalid", "localhost.invalid"} {
		page := withSecrets("http://" + host + "/page")
		if err := s.validate("handle /wiki/* {\n" + siteWith("wiki", page) + "\n}\n" + shopWith(page)); err != nil {
			t.Fatal(err)
		}
		s.logged(`"warn"`, warning, `"page":"http://`+host+`/page"`)
		if n := s.countLogged(warning); n != i+1 {
			t.Errorf("%s is warned of %d times, want once", host, n-i)
		}
	}
	if s.countLogged("hunter") > 0 {
		t.Error("the warnings tell a secret")
	}
}

func TestReloadKeepsTheCopy(t *testing.T) {
	host := newPageHost(t, answers(html, "<p>Mine."))
	s := start(t, shopWith(host.url("/page")))
	s.untilPages("shop", "ok")
	s.untilIdle()
	host.down()
	s.storage = newTestStorage(t)
	s.reload(shopWith(host.url("/page")))
	s.wantPage("/", "<p>Mine.")
	s.untilPages("shop", "stale")
	s.wantPage("/", "<p>Mine.")
}

// The copy in storage

func TestLastGoodCopyIsShownAtOnceAfterARestart(t *testing.T) {
	host := newPageHost(t, answers("text/html; charset=iso-8859-1", "<p>\xfc {maintenance.message}"))
	page := withSecrets(host.url("/page"))
	s := start(t, shopWith(page))
	s.untilStored(page, "{maintenance.message}")
	fetchedAt := s.pages("shop")[0].FetchedAt
	s.put("shop", `{"message": "Hello."}`)
	host.down()
	s.restart(shopWith(page))
	first := s.get("/")
	if got := first.Header.Get("Content-Type"); first.body != "<p>\xfc Hello." || got != "text/html; charset=iso-8859-1" {
		t.Errorf("the first visitor gets %s %q", got, first.body)
	}
	eventually(t, func() error {
		got := s.pages("shop")[0]
		if got.State != "stale" || !strings.Contains(got.Error, "refused") || !got.FetchedAt.Equal(fetchedAt) {
			return fmt.Errorf("the page is %+v, want it stale and fetched at %s", got, fetchedAt)
		}
		return nil
	})
	s.wantPage("/", "<p>\xfc Hello.")
	s.tellsNoSecret()
}

func TestPageThatWasNeverThereIsTheDefaultOne(t *testing.T) {
	s := start(t, shopWith("http://"+freeAddress(t)+"/page"))
	s.wantPage("/", defaultPage)
	s.untilPages("shop", "failed")
	s.restart(shopWith("http://" + freeAddress(t) + "/page"))
	s.wantPage("/", defaultPage)
}

// G9
func TestCorruptCopyIsIgnored(t *testing.T) {
	copyOf := func(html, charset string) string {
		raw, err := json.Marshal(page.Copy{HTML: []byte(html), Charset: charset})
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	for name, test := range map[string]struct{ stored, want string }{
		"nothing":       {"", "unexpected end of JSON"},
		"no JSON":       {"<p>Mine.", "invalid character"},
		"cut off":       {copyOf("<p>Mine.", "utf-8")[:30], "unexpected end of JSON"},
		"null":          {"null", "it is empty"},
		"no page":       {"{}", "it is empty"},
		"another type":  {`{"html": 5, "charset": "utf-8"}`, "cannot unmarshal"},
		"blank":         {copyOf(" \n", "utf-8"), "it is empty"},
		"no charset":    {copyOf("<p>Mine.", ""), "its charset is"},
		"two lines":     {copyOf("<p>Mine.", "utf-8\r\nX-Evil: y"), "its charset is"},
		"invalid UTF-8": {copyOf("<p>\xfc", "utf-8"), "it is not valid UTF-8"},
		"too large":     {copyOf(strings.Repeat("x", maxPage+1), "utf-8"), "it is larger than 1048576 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			s := prepare(t)
			page := "http://" + freeAddress(t) + "/page"
			s.storage.set(copyKeyOf(page), test.stored)
			s.reload(shopWith(page))
			s.wantPage("/", defaultPage)
			s.logged(`"warn"`, "the copy of a page cannot be read from storage", `"page":"`+page+`"`, test.want)
		})
	}
}

func TestPageThatCannotBeStoredIsShownNevertheless(t *testing.T) {
	host := newPageHost(t, answers(html, "<p>Mine."))
	s := prepare(t)
	s.storage.setFault(failOn("store", "maintenance/pages/"))
	s.reload(shopWith(withSecrets(host.url("/page"))))
	s.untilPages("shop", "ok")
	s.wantPage("/", "<p>Mine.")
	s.logged(`"warn"`, "the copy of a page cannot be written to storage", `"page":"`+host.url("/page")+`"`, "disk full")
	s.storage.setFault(nil)
	s.put("shop", "")
	s.untilStored(withSecrets(host.url("/page")), "Mine")
	s.tellsNoSecret()
}

func TestCopyThatCannotBeReadIsWarnedOf(t *testing.T) {
	host := newPageHost(t, status(500))
	s := prepare(t)
	s.storage.setFault(failOn("load", "maintenance/pages/"))
	s.reload(shopWith(host.url("/page")))
	s.wantPage("/", defaultPage)
	s.logged(`"warn"`, "the copy of a page cannot be read from storage", `"page":"`+host.url("/page")+`"`, "disk full")
}

func TestCopyIsStoredWhenItHasChanged(t *testing.T) {
	host := newPageHost(t, answers(html, "<p>One."))
	s := prepare(t)
	loads, stores := s.countCopies()
	page := host.url("/page")
	s.reload(shopWith(page))
	s.untilStored(page, "One")
	for range 3 {
		looked := loads.Load()
		s.put("shop", "")
		eventually(t, func() error {
			if loads.Load() == looked {
				return errors.New("not looked for in storage")
			}
			return nil
		})
		s.untilIdle()
	}
	if n := stores.Load(); n != 1 {
		t.Errorf("stored %d times while it was the same, want once", n)
	}
	host.answer(answers(html, "<p>Two."))
	s.put("shop", "")
	s.untilStored(page, "Two")
	if n := stores.Load(); n != 2 {
		t.Errorf("stored %d times, want twice", n)
	}
}

func TestCopyThatStorageHasLostIsStoredAgain(t *testing.T) {
	host := newPageHost(t, answers(html, "<p>Mine."))
	page := host.url("/page")
	s := start(t, shopWith(page))
	s.untilStored(page, "Mine")
	for _, damage := range []func(){
		func() { _ = s.storage.Delete(t.Context(), copyKeyOf(page)) },
		func() { s.storage.set(copyKeyOf(page), `{"html": "`) },
	} {
		s.untilIdle()
		damage()
		s.put("shop", "")
		s.untilStored(page, "Mine")
	}
}

func TestFileIsNeitherStoredNorLookedForInStorage(t *testing.T) {
	file := writePage(t, "<p>One.")
	s := prepare(t)
	loads, stores := s.countCopies()
	s.reload(shopWith(file))
	s.untilPages("shop", "ok")
	writeFile(t, file, "<p>Two.")
	s.put("shop", "")
	s.untilPage("/", "<p>Two.")
	s.untilIdle()
	if loads, stores := loads.Load(), stores.Load(); loads+stores > 0 {
		t.Errorf("looked for %d times and stored %d times", loads, stores)
	}
}

// G9
func TestStorageThatHangsHoldsUpOnlyTheFirstVisitors(t *testing.T) {
	s := prepare(t)
	hang, release := hangOn("load", "maintenance/pages/")
	defer release()
	s.storage.setFault(hang)
	page := "http://" + freeAddress(t) + "/page"
	within(t, "the load", 2*time.Second, func() { s.reload(shopWith(page)) })
	within(t, "the switch on", 2*time.Second, func() { s.put("shop", "") })
	within(t, "the change of an option", 2*time.Second, func() { s.patch("shop", `{"message": ""}`) })
	within(t, "an answer that is no page", 2*time.Second, func() {
		s.do(http.MethodGet, "/", http.Header{"Accept": {"application/json"}})
	})
	within(t, "the first page", restorePatience+3*time.Second, func() { s.wantPage("/", defaultPage) })
	within(t, "the second page", time.Second, func() { s.wantPage("/", defaultPage) })

	// A copy that comes late is shown, too.
	s.storage.set(copyKeyOf(page), `{"html": "PHA+T2xkLg==", "charset": "utf-8"}`)
	release()
	s.untilPage("/", "<p>Old.")
}

func TestCopyThatComesLateIsNotTakenForANewOne(t *testing.T) {
	host := newPageHost(t, answers(html, "<p>New."))
	s := prepare(t)
	hang, release := hangOn("load", "maintenance/pages/")
	defer release()
	s.storage.setFault(hang)
	s.storage.set(copyKeyOf(host.url("/page")), `{"html": "PHA+T2xkLg==", "charset": "utf-8"}`)
	s.reload(shopWith(host.url("/page")))
	within(t, "the page", 5*time.Second, func() { s.untilPages("shop", "ok") })
	s.wantPage("/", "<p>New.")
	release()
	s.untilIdle()
	s.wantPage("/", "<p>New.")
	if got := s.pages("shop")[0]; got.State != "ok" || got.FetchedAt.IsZero() {
		t.Errorf("the page is %+v", got)
	}
	s.untilStored(host.url("/page"), "New")
}

// G9
func TestStorageThatHangsHoldsUpNoFetch(t *testing.T) {
	var failing atomic.Bool
	failing.Store(true)
	host := newPageHost(t, func(w http.ResponseWriter, r *http.Request) {
		if failing.Load() {
			status(500)(w, r)
			return
		}
		answers(html, "<p>Mine.")(w, r)
	})
	s := start(t, shopWith(host.url("/page")))
	s.untilPages("shop", "failed")
	s.untilIdle()
	hang, release := hangOn("load", "maintenance/pages/")
	defer release()
	s.storage.setFault(hang)
	within(t, "two fetches", 5*time.Second, func() { s.untilFetched(host, "/page") })
	failing.Store(false)
	s.put("shop", "")
	within(t, "the page", 5*time.Second, func() { s.untilPage("/", "<p>Mine.") })
	within(t, "two more fetches", 5*time.Second, func() { s.untilFetched(host, "/page") })
}

// G9
func TestStorageThatHangsHoldsUpNoLoadOfManyPages(t *testing.T) {
	host := newPageHost(t, answers(html, "<p>Mine."))
	s := prepare(t)
	hang, release := hangOn("load", "maintenance/pages/")
	s.storage.setFault(hang)
	var directives strings.Builder
	for i := range store.MaxReads + 2 {
		fmt.Fprintf(&directives, "handle /%d {\n%s\n}\n", i, siteWith("shop", host.url(fmt.Sprintf("/%d", i))))
	}
	loaded := make(chan error, 1)
	go func() { loaded <- s.load(directives.String()) }()
	var err error
	select {
	case err = <-loaded:
		release()
	case <-time.After(5 * time.Second):
		t.Error("the load waits for the storage")
		release()
		err = <-loaded
	}
	if err != nil {
		t.Fatal(err)
	}
	s.untilPages("shop", "ok")
}

// Files

func TestChangedFileIsShownWhenTheSiteIsSwitchedOn(t *testing.T) {
	file := writePage(t, "<p>Old.")
	s := start(t, "maintenance shop {\npage "+file+"\n}")
	s.put("shop", "")
	s.untilPages("shop", "ok")
	s.wantPage("/", "<p>Old.")
	s.delete("shop")
	writeFile(t, file, "New. {maintenance.message}") // its name says that it is HTML
	s.put("shop", `{"message": "Hello."}`)
	s.untilPage("/", "New. Hello.")
}

func TestFileThatIsSpoiltIsShownAsItWas(t *testing.T) {
	for name, test := range map[string]struct {
		spoil func(t *testing.T, path string)
		want  string
	}{
		"removed":   {remove, "no such file"},
		"emptied":   {func(t *testing.T, path string) { writeFile(t, path, "") }, "it is empty"},
		"no text":   {func(t *testing.T, path string) { writeFile(t, path, "\xff\xfe") }, "it is not valid UTF-8"},
		"too large": {func(t *testing.T, path string) { writeFile(t, path, strings.Repeat("x", maxPage+1)) }, "it is larger than 1048576 bytes"},
		"a directory": {func(t *testing.T, path string) {
			remove(t, path)
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, "is not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(changeDir(t), "page.html")
			writeFile(t, file, "<p>Mine. {maintenance.message}")
			s := start(t, shopWith("page.html"))
			s.untilPages("shop", "ok")
			test.spoil(t, file)
			s.put("shop", `{"message": "Hello."}`)
			s.untilPages("shop", "stale")
			if got := s.pages("shop")[0]; got.Source != file || !strings.Contains(got.Error, file) || !strings.Contains(got.Error, test.want) {
				t.Errorf("the page is %+v, want %s with %q", got, file, test.want)
			}
			s.wantPage("/", "<p>Mine. Hello.")
			s.logged(`"warn"`, "page cannot be fetched", file)

			if err := os.RemoveAll(file); err != nil {
				t.Fatal(err)
			}
			writeFile(t, file, "<p>New.")
			s.put("shop", "")
			s.untilPages("shop", "ok")
			s.wantPage("/", "<p>New.")
		})
	}
}

// G7
func TestConfigThatFailsLeavesThePagesAsTheyAre(t *testing.T) {
	dir := changeDir(t)
	writeFile(t, "page.html", "<p>Old.")
	t.Setenv("TEST_PAGE", "missing.html")
	s := start(t, shopWith("page.html"))
	s.untilPages("shop", "ok")
	before := s.status("shop")
	writeFile(t, "page.html", "<p>New.")
	missing := filepath.Join(dir, "missing.html") + " cannot be read: no such file or directory"
	for directives, want := range map[string]string{
		shopWith("missing.html"):    missing,
		shopWith("{env.TEST_PAGE}"): missing,
		shopWith("page.html") + "\n" + siteWith("blog", "{http.request.host}"): "http.request.host",
	} {
		if err := s.load(directives); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngot  %v\nwant %s", directives, err, want)
		}
		s.wantPage("/", "<p>Old.")
	}
	s.failLate(shopWith("page.html"))
	s.wantPage("/", "<p>Old.")
	if got := s.status("shop"); fmt.Sprint(got) != fmt.Sprint(before) {
		t.Errorf("the site is %v, want %v", got, before)
	}
	s.reload(shopWith("page.html"))
	s.untilPage("/", "<p>New.")
}

// Wrong input

// What was given, and what is wrong with it, may be a password.
const unparsable = "page: the URL given cannot be parsed; in a password or query, percent-encode what is not a letter, digit, or one of - . _ ~"

// G7
func TestWrongPageIsRefused(t *testing.T) {
	dir := changeDir(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	writeFile(t, "empty.html", "")
	writeFile(t, "bom.html", "\ufeff\n")
	writeFile(t, "latin1.html", "<p>\xfc")
	writeFile(t, "large.html", strings.Repeat("x", maxPage+1))
	writeFile(t, "file", "<p>")
	writeFile(t, "notes.txt", "Not meant for visitors.")
	const missing = " cannot be read: no such file or directory"
	for _, test := range []struct{ option, want string }{
		{`page`, `page takes one argument, and 0 are given`},
		{`page one.html two.html`, `page takes one argument, and 2 are given`},
		{`page one.html {
			two.html
		}`, `page takes no block`},
		{`page ftp://x/y`, `page: "ftp://x/y" given, accepted are https, http, and for a file its path without a scheme`},
		{`page ftp://bob:hunter2@x/y?t=hunter3`, `page: "ftp://x/y" given, accepted are https, http, and for a file its path without a scheme`},
		{`page file:///x`, `page: "file:///x" given, accepted are https, http, and for a file its path without a scheme`},
		{`page ://x/y`, unparsable},
		{`page https://`, `page: the URL given names no host`},
		{`page https:///page.html`, `page: the URL given names no host`},
		{`page https://bob:hunter2@/page.html`, `page: the URL given names no host`},
		{`page //`, `page: the URL given names no host`},
		{`page https://x:port/y`, unparsable},
		{`page https://bob:hunter2@x:port/y?t=hunter3`, unparsable},
		{`page https://bob:hunter2%zz@x/y`, unparsable},
		{`page "https://bob:hunter2@x y/?t=hunter3"`, unparsable},
		{`page "https://bob:hunter 2@x/y"`, unparsable},
		{`page https://bob:hunter2/x@status.example/y`, unparsable},
		{`page https://bob:hunter2?x@status.example/y`, unparsable},
		{`page https://bob:hunter2#x@status.example/y`, unparsable},
		{"page `https://bob:hunter2\"x@status.example/y`", unparsable},
		{`refresh`, `refresh takes one argument, and 0 are given`},
		{`refresh 1s 2s`, `refresh takes one argument, and 2 are given`},
		{`refresh 500ms`, `refresh: 500ms given, at least 1s is accepted`},
		{`refresh 0`, `refresh: 0s given, at least 1s is accepted`},
		{`refresh -1s`, `refresh: -1s given, at least 1s is accepted`},
		{`refresh often`, `refresh: "often" given, a duration is accepted, such as "90s", "5m" or "1d"`},
	} {
		_, err := adapt(":8080 {\nmaintenance shop {\n" + test.option + "\n}\n}")
		switch {
		case err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), ", at Caddyfile:"):
			t.Errorf("%s\ngot  %v\nwant %s, at Caddyfile:", test.option, err, test.want)
		case !strings.Contains(test.want, "; did you mean") && strings.Contains(err.Error(), "did you mean"):
			t.Errorf("%s\ngot  %v\nwant no question", test.option, err)
		}
		tellsNoSecret(t, fmt.Sprint(err))
	}
	// What is wrong with a file is seen where the config is loaded; it may be adapted elsewhere.
	for _, test := range []struct{ option, want string }{
		{`page .`, `page: ` + dir + ` is not a regular file`},
		{`page missing.html`, `page: ` + at("missing.html") + missing},
		{`page sub/missing.html`, `page: ` + at("sub/missing.html") + missing},
		{`page ../missing.html`, `page: ` + filepath.Join(filepath.Dir(dir), "missing.html") + missing},
		{`page file/x.html`, `page: ` + at("file/x.html") + ` cannot be read: not a directory`},
		{`page status.example/x.html`, `page: ` + at("status.example/x.html") + missing + `; did you mean https://status.example/x.html?`},
		{`page status.example`, `page: ` + at("status.example") + missing + `; did you mean https://status.example?`},
		{`page localhost:8080/x`, `page: ` + at("localhost:8080/x") + missing + `; did you mean https://localhost:8080/x?`},
		{`page https:/status.example/x`, missing + `; did you mean https://status.example/x?`},
		{`page notes.txt`, `page: ` + at("notes.txt") + `: it is not called .html, and does not begin like HTML`},
		{`page empty.html`, `page: ` + at("empty.html") + `: it is empty`},
		{`page bom.html`, `page: ` + at("bom.html") + `: it is empty`},
		{`page latin1.html`, `page: ` + at("latin1.html") + `: it is not valid UTF-8; save it as UTF-8`},
		{`page large.html`, `page: ` + at("large.html") + `: it is larger than 1048576 bytes`},
	} {
		if _, err := adapt(":8080 {\nmaintenance shop {\n" + test.option + "\n}\n}"); err != nil {
			t.Errorf("%s\nis refused before it is loaded: %v", test.option, err)
		}
		err := prepare(t).validate("maintenance shop {\n" + test.option + "\n}")
		switch {
		case err == nil || !strings.Contains(err.Error(), test.want):
			t.Errorf("%s\ngot  %v\nwant %s", test.option, err, test.want)
		case !strings.Contains(test.want, "; did you mean") && strings.Contains(err.Error(), "did you mean"):
			t.Errorf("%s\ngot  %v\nwant no question", test.option, err)
		}
	}
	// What is taken for a file may be a URL, and have the secrets of one.
	for _, page := range []string{
		"bob:hunter2@status.example/y?t=hunter3", "https:/bob:hunter2@status.example/y?t=hunter3", "https:bob:hunter2@status.example/y?t=hunter3",
	} {
		err := prepare(t).validate("maintenance shop {\npage " + page + "\n}")
		if want := "did you mean https://status.example/y?"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("page %s\ngot  %v\nwant %s", page, err, want)
		}
		tellsNoSecret(t, fmt.Sprint(err))
	}
	for _, twice := range []string{"page file\npage file", "refresh 2s\nrefresh 2s"} {
		name, _, _ := strings.Cut(twice, " ")
		_, err := adapt(":8080 {\nmaintenance shop {\n" + twice + "\n}\n}")
		if want := name + " is given twice, at Caddyfile:4"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngot  %v\nwant %s", twice, err, want)
		}
	}
}

// G7
func TestWrongPageInJSONIsRefusedAndChangesNothing(t *testing.T) {
	dir := changeDir(t)
	t.Setenv("TEST_PAGE", "https://bob:hunter2@x:port/y?t=hunter3")
	writeFile(t, "page.html", "<p>Mine.")
	writeFile(t, "empty.html", "")
	s := start(t, shopWith("page.html"))
	s.put("shop", `{"message": "Hello."}`)
	s.untilPages("shop", "ok")
	before := s.status("shop")
	for _, test := range []struct{ option, want string }{
		{`"refresh": "500ms"`, `refresh: 500ms given, at least 1s is accepted`},
		{`"refresh": -1`, `refresh: -1ns given, at least 1s is accepted`},
		{`"refresh": true`, `refresh`},
		{`"page": 5`, `cannot unmarshal number`},
		{`"page": ["page.html"]`, `cannot unmarshal array`},
		{`"page": "ftp://bob:hunter2@x/y?t=hunter3"`, `page: "ftp://x/y" given, accepted are https, http`},
		{`"page": "https://"`, `page: the URL given names no host`},
		{`"page": "{env.TEST_PAGE}"`, unparsable},
		{`"page": "{colour}"`, `known when the config loads`},
		{`"page": "missing.html"`, filepath.Join(dir, "missing.html") + ` cannot be read`},
		{`"page": "empty.html"`, filepath.Join(dir, "empty.html") + `: it is empty`},
		{`"page": "status.example/x.html"`, `did you mean https://status.example/x.html?`},
	} {
		config := `{"admin": {"listen": "` + strings.TrimPrefix(s.admin, "http://") + `", "config": {"persist": false}},
			"storage": {"module": "test", "name": "` + t.Name() + `"},
			"apps": {"http": {"servers": {"srv": {"listen": ["` + strings.TrimPrefix(s.url, "http://") + `"],
			"routes": [{"handle": [{"handler": "maintenance", "site": "shop", ` + test.option + `}]}]}}}}}`
		response := s.api(http.MethodPost, "/load", config)
		message, _ := decode(t, response.body)["error"].(string)
		if response.StatusCode != 400 || !strings.Contains(message, test.want) {
			t.Errorf("%s\ngot  %d %s\nwant 400 %s", test.option, response.StatusCode, message, test.want)
		}
		tellsNoSecret(t, response.body)
		s.wantPage("/", "<p>Mine.")
		if got := s.status("shop"); fmt.Sprint(got) != fmt.Sprint(before) {
			t.Errorf("%s: after it the site is %v, want %v", test.option, got, before)
		}
	}
	s.tellsNoSecret()
}

// Everything at once

// G1, G10
func TestVisitorsGetWholePagesWhateverHappens(t *testing.T) {
	filler := strings.Repeat("x", 100<<10)
	host := newPageHost(t, func(w http.ResponseWriter, r *http.Request) {
		answers(html, "<p>"+r.URL.Path+" {maintenance.message}"+filler+"</p>")(w, r)
	})
	whole := map[string]bool{"app": true, defaultPage: true}
	for _, message := range []string{"", "one", "two"} {
		whole[string(page.Default(page.Content{Message: message}).HTML)] = true
		for _, path := range []string{"/a", "/b"} {
			whole["<p>"+path+" "+message+filler+"</p>"] = true
		}
	}
	s := prepare(t)
	s.options = "maintenance {\nsync_interval 100ms\n}"
	s.reload(shopWith(host.url("/a")))
	stop := make(chan struct{})
	var workers sync.WaitGroup
	run := func(work func(i int)) {
		workers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					work(i)
				}
			}
		})
	}
	run(func(i int) {
		s.api([]string{"PUT", "PATCH", "DELETE"}[i%3], "/maintenance/shop", `{"message": "one"}`)
	})
	run(func(i int) { s.api("PATCH", "/maintenance/shop", `{"message": "two"}`) })
	run(func(i int) { s.api("GET", "/maintenance", "") })
	for i := range 3 {
		run(func(int) {
			got, err := try(http.MethodGet, s.url, "", http.Header{"Accept-Encoding": {[]string{"", "gzip"}[i%2]}})
			if err != nil {
				return // met the server of a config that has just been replaced
			}
			if got.Header.Get("Content-Encoding") == "gzip" {
				got.body = gunzip(t, got.body)
			}
			if !whole[got.body] {
				t.Errorf("a visitor got %d with %d bytes: %.100q", got.StatusCode, len(got.body), got.body)
			}
		})
	}
	for i := range 30 {
		s.reload(shopWith(host.url([]string{"/b", "/a"}[i%2])))
	}
	close(stop)
	workers.Wait()
	s.put("shop", `{"message": "one"}`)
	s.untilPages("shop", "ok")
	s.untilPage("/", "<p>/a one"+filler+"</p>")
}

// G9, G10
func TestReloadsWithAHostThatHangsLeaveNothingBehind(t *testing.T) {
	host := newPageHost(t, saysNothing)
	directives := func(i int) string {
		return shopWith(host.url("/kept")) + "\n" + siteWith("wiki", host.url(fmt.Sprintf("/%d", i)))
	}
	s := start(t, directives(0))
	settled := func() int {
		client.CloseIdleConnections()
		runtime.GC()
		return runtime.NumGoroutine()
	}
	reload := func(i int) { s.reload(directives(i)) }
	for i := range 5 {
		reload(i)
	}
	before := settled()
	for i := range 100 {
		reload(i)
	}
	eventually(t, func() error {
		if after := settled(); after > before+20 {
			return fmt.Errorf("%d goroutines after 100 reloads, %d before", after, before)
		}
		return nil
	})
	if n := s.countLogged("page cannot be fetched"); n > 0 {
		t.Errorf("%d fetches were logged as failed that a reload has ended", n)
	}
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	noPageIsLeft(t)
	noSiteIsLeft(t)
}

// Harness

var defaultPage = string(page.Default(page.Content{}).HTML)

// siteWith is the directive of a site that is in maintenance from the beginning
// and has a page.
func siteWith(site, page string) string {
	return "maintenance " + site + " {\npage \"" + page + "\"\ninitial_state on\n}"
}

func shopWith(page string) string { return siteWith("shop", page) }

// pageHost is the host of a page, which answers as a test wants it to.
type pageHost struct {
	t       *testing.T
	address string
	scheme  string
	server  *httptest.Server

	mu       sync.Mutex
	serve    http.HandlerFunc
	requests map[string]int // by path
}

func newPageHost(t *testing.T, serve http.HandlerFunc) *pageHost {
	t.Helper()
	h := &pageHost{t: t, scheme: "http", serve: serve, requests: make(map[string]int)}
	h.server = httptest.NewServer(h)
	h.address = h.server.Listener.Addr().String()
	t.Cleanup(h.down)
	return h
}

func (h *pageHost) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	h.requests[r.URL.Path]++
	serve := h.serve
	h.mu.Unlock()
	serve(w, r)
}

// answer changes what the host answers from now on.
func (h *pageHost) answer(serve http.HandlerFunc) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.serve = serve
}

// asked returns how often a path was requested.
func (h *pageHost) asked(path string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.requests[path]
}

func (h *pageHost) url(path string) string { return h.scheme + "://" + h.address + path }

func (h *pageHost) down() {
	h.server.CloseClientConnections()
	h.server.Close()
}

// withSecrets adds to a URL what nobody may be told.
func withSecrets(url string) string {
	return strings.Replace(url, "://", "://"+userinfo, 1) + query
}

func tellsNoSecret(t *testing.T, text string) {
	t.Helper()
	for _, secret := range []string{"hunter", "bob"} {
		if i := strings.Index(text, secret); i >= 0 {
			t.Errorf("%q is told: %q", secret, text[max(0, i-100):min(len(text), i+100)])
		}
	}
}

// tellsNoSecret looks at all that the server has said.
func (s *server) tellsNoSecret() {
	s.t.Helper()
	content, err := os.ReadFile(s.log)
	if err != nil {
		s.t.Fatal(err)
	}
	tellsNoSecret(s.t, string(content))
	tellsNoSecret(s.t, s.api(http.MethodGet, "/maintenance", "").body)
	s.storage.mu.Lock()
	defer s.storage.mu.Unlock()
	for key, value := range s.storage.values {
		tellsNoSecret(s.t, key+string(value))
	}
}

// What a Caddy shows and says

// pages is how the pages of a site stand.
func (s *server) pages(site string) []api.Page {
	s.t.Helper()
	response := s.api(http.MethodGet, "/maintenance/"+site, "")
	var got api.Site
	if err := json.Unmarshal([]byte(response.body), &got); err != nil || response.StatusCode != 200 {
		s.t.Fatalf("got %d %s (%v)", response.StatusCode, response.body, err)
	}
	return got.Pages
}

// untilPages waits until all pages of a site are in a state.
func (s *server) untilPages(site, state string) {
	s.t.Helper()
	eventually(s.t, func() error {
		for _, p := range s.pages(site) {
			if p.State != state {
				return fmt.Errorf("page %s is %s, want %s; its error is %q", p.Source, p.State, state, p.Error)
			}
		}
		return nil
	})
}

// untilTried waits until each page of a site has been fetched, or could not be.
func (s *server) untilTried(site string) {
	s.t.Helper()
	eventually(s.t, func() error {
		for _, p := range s.pages(site) {
			if p.State == "fetching" {
				return fmt.Errorf("page %s is being fetched", p.Source)
			}
		}
		return nil
	})
}

// untilFetched has the page of shop fetched, and waits until what the host
// answers now has been taken in, that is, until it is asked for the second time.
func (s *server) untilFetched(host *pageHost, path string) {
	s.t.Helper()
	s.fetchAgain(host, path)
	s.fetchAgain(host, path)
}

// fetchAgain has the page of shop fetched, and waits until the host is asked.
func (s *server) fetchAgain(host *pageHost, path string) {
	s.t.Helper()
	asked := host.asked(path)
	s.put("shop", "")
	eventually(s.t, func() error {
		if host.asked(path) == asked {
			return errors.New("the page is not fetched")
		}
		return nil
	})
}

// visit returns the HTML page that a visitor gets.
func (s *server) visit(path string) string {
	s.t.Helper()
	got := s.do(http.MethodGet, path, http.Header{"Accept": {"text/html"}})
	if got.StatusCode != 503 {
		s.t.Errorf("GET %s got %d, want 503", path, got.StatusCode)
	}
	return got.body
}

func (s *server) shows(path, want string) error {
	s.t.Helper()
	if got := s.visit(path); got != want {
		return fmt.Errorf("%s shows %d bytes: %.200q\nwant %d bytes: %.200q", path, len(got), got, len(want), want)
	}
	return nil
}

func (s *server) wantPage(path, want string) {
	s.t.Helper()
	if err := s.shows(path, want); err != nil {
		s.t.Error(err)
	}
}

func (s *server) untilPage(path, want string) {
	s.t.Helper()
	eventually(s.t, func() error { return s.shows(path, want) })
}

// visitALot has visitors come, several at a time, who all must get the same.
func (s *server) visitALot(visitors int, want string, paths ...string) {
	s.t.Helper()
	const atATime = 8
	transport := &http.Transport{MaxIdleConnsPerHost: atATime}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: time.Minute}
	var wg sync.WaitGroup
	var next atomic.Int64
	for range atATime {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(visitors); i = next.Add(1) {
				got, err := client.Get(s.url + paths[i%int64(len(paths))])
				if err != nil {
					s.t.Error(err)
					return
				}
				body, err := io.ReadAll(got.Body)
				got.Body.Close()
				if err != nil || string(body) != want {
					s.t.Errorf("%s shows %.200q (%v)", got.Request.URL, body, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// within fails the test if something takes too long.
func within(t *testing.T, what string, limit time.Duration, do func()) {
	t.Helper()
	began := time.Now()
	do()
	if took := time.Since(began); took > limit {
		t.Errorf("%s took %s, want at most %s", what, took, limit)
	}
}

// watchMemory returns a function that tells by how much the memory in use has
// grown at most.
func watchMemory(t *testing.T) (grown func() uint64) {
	t.Helper()
	inUse := func() uint64 {
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	percent := debug.SetGCPercent(20) // little of what is seen is garbage
	runtime.GC()
	before := inUse()
	var highest atomic.Uint64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			highest.Store(max(highest.Load(), inUse()))
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	end := sync.OnceFunc(func() {
		close(stop)
		<-stopped
		debug.SetGCPercent(percent)
	})
	t.Cleanup(end)
	return func() uint64 {
		end()
		return max(highest.Load(), before) - before
	}
}

// validate looks at a config as `caddy validate` does.
func (s *server) validate(directives string) error {
	s.t.Helper()
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(s.caddyfile(directives)), nil)
	if err != nil {
		return err
	}
	var parsed *caddy.Config
	if err := caddy.StrictUnmarshalJSON(config, &parsed); err != nil {
		return err
	}
	return caddy.Validate(parsed)
}

// failLate loads a config that fails when all its apps have started.
func (s *server) failLate(directives string) {
	s.t.Helper()
	err := s.loadWith(directives, `"admin":{`,
		`"admin":{"identity":{"identifiers":["localhost"],"issuers":[{"module":"internal"}]},"remote":{"access_control":[{"public_keys":["broken"]}]},`)
	if err == nil || !strings.Contains(err.Error(), "remote admin") {
		s.t.Fatalf("got %v, want an error of the remote admin endpoint", err)
	}
}

// failEarly loads a config that fails before any of its handlers is set up.
func (s *server) failEarly(directives string) {
	s.t.Helper()
	err := s.loadWith(directives, `"apps":{`, `"apps":{"tls":{"automation":{"policies":[{"issuers":[{"module":"unheard of"}]}]}},`)
	if err == nil || !strings.Contains(err.Error(), "unheard of") {
		s.t.Fatalf("got %v, want an error of the tls app", err)
	}
}

// loadWith loads a config in which something has been replaced.
func (s *server) loadWith(directives, old, replacement string) error {
	s.t.Helper()
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(s.caddyfile(directives)), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return caddy.Load([]byte(strings.Replace(string(config), old, replacement, 1)), true)
}

// What is in storage

func copyKeyOf(location string) string {
	source, err := page.ParseSource(location)
	if err != nil {
		panic(err)
	}
	return copyKey(source)
}

// untilStored waits until the copy of a page is stored and has a text in it.
func (s *server) untilStored(location, text string) {
	s.t.Helper()
	eventually(s.t, func() error {
		raw := s.storage.get(copyKeyOf(location))
		c, err := page.ParseCopy([]byte(raw))
		if err != nil {
			return fmt.Errorf("the copy is %.200q: %w", raw, err)
		}
		if !strings.Contains(string(c.HTML), text) {
			return fmt.Errorf("the copy is %.200q, want one with %s", c.HTML, text)
		}
		return nil
	})
	s.untilIdle()
}

// untilIdle waits until no copy is being read or stored.
func (s *server) untilIdle() {
	s.t.Helper()
	eventually(s.t, func() error {
		app, err := runningApp()
		for p := range app.pages.views {
			if len(p.storage) > 0 {
				return fmt.Errorf("the copy of %s is being read or stored", p.Source())
			}
		}
		return err
	})
}

// countCopies counts how often copies of pages are looked for and stored.
func (s *server) countCopies() (loads, stores *atomic.Int64) {
	loads, stores = new(atomic.Int64), new(atomic.Int64)
	s.storage.setFault(func(_ context.Context, op, key string) error {
		if strings.HasPrefix(key, "maintenance/pages/") {
			map[string]*atomic.Int64{"load": loads, "store": stores}[op].Add(1)
		}
		return nil
	})
	return loads, stores
}

// Files

// writePage writes a file into a directory of its own, and returns its path.
func writePage(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "page.html")
	writeFile(t, path, content)
	return path
}

// changeDir makes an empty directory the working one.
func changeDir(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	t.Chdir(dir)
	return dir
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// What a host can answer

func answers(contentType, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Type"] = nil // or it would be guessed
		if contentType != "" {
			w.Header().Set("Content-Type", contentType)
		}
		io.WriteString(w, body)
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

func redirects(to string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", to)
		w.WriteHeader(http.StatusFound)
	}
}

// hops leads from /hops-2 to /hops-1, and to a page in the end.
func hops(w http.ResponseWriter, r *http.Request) {
	n, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/hops-"))
	if n == 0 {
		answers(html, "<p>Mine.")(w, r)
		return
	}
	redirects(fmt.Sprintf("/hops-%d", n-1))(w, r)
}

func header(name string, values ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header()[http.CanonicalHeaderKey(name)] = values
		answers(html, "<p>Mine.")(w, r)
	}
}

func encodes(encoding, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", encoding)
		answers(html, body)(w, r)
	}
}

// saysNothing takes a request and leaves it at that.
func saysNothing(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// begins sends the beginning of a page, and leaves the rest to another.
func begins(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		answers(html, "<!DOCTYPE html>")(w, r)
		w.(http.Flusher).Flush()
		next(w, r)
	}
}

func drips(w http.ResponseWriter, r *http.Request) {
	for {
		select {
		case <-time.After(time.Second):
			io.WriteString(w, "x")
			w.(http.Flusher).Flush()
		case <-r.Context().Done():
			return
		}
	}
}

// writes has a function write the body.
func writes(body func(io.Writer)) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { body(w) }
}

// hijacks answers with what is no good HTTP, and hangs up.
func hijacks(beginning string, rest func(io.Writer)) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		io.WriteString(conn, beginning)
		if rest != nil {
			rest(conn)
		}
	}
}

// repeat writes a text until nobody reads it any more.
func repeat(text string) func(io.Writer) {
	return func(w io.Writer) {
		for {
			if _, err := io.WriteString(w, text); err != nil {
				return
			}
		}
	}
}

// drip writes a byte a second until nobody reads them any more.
func drip(w io.Writer) {
	for {
		if _, err := io.WriteString(w, "x"); err != nil {
			return
		}
		<-time.After(time.Second)
	}
}

// bomb sends 1 MiB that unpack to 1 GiB: members are joined (RFC 1952).
func bomb(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", html)
	w.Header().Set("Content-Encoding", "gzip")
	for range 1 << 10 {
		w.Write(packedMiB())
	}
}

var packedMiB = sync.OnceValue(func() []byte {
	var packed bytes.Buffer
	writer := gzip.NewWriter(&packed)
	writer.Write(make([]byte, 1<<20))
	writer.Close()
	return packed.Bytes()
})

func gunzip(t *testing.T, packed string) string {
	t.Helper()
	reader, err := gzip.NewReader(strings.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	unpacked, err := io.ReadAll(reader)
	if err != nil {
		t.Fatal(err)
	}
	return string(unpacked)
}
