package page

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

var (
	threeUTC = time.Date(2096, time.January, 31, 3, 0, 0, 0, time.UTC)
	hostile  = Content{Message: `a <b> & "c" 'ü' {maintenance.until}`, Until: threeUTC}
)

const hostileEscaped = `a &lt;b&gt; &amp; &#34;c&#34; &#39;ü&#39; {maintenance.until}`

func TestDefaultPageSaysWhatTheSwitchSays(t *testing.T) {
	const end = `<time datetime="2096-01-31T03:00:00Z">2096-01-31 03:00 UTC</time>`
	for _, test := range []struct {
		content    Content
		html, text string
		hasEnd     bool
	}{
		{Content{}, "<p>" + stockSentence + "</p>", stockSentence + "\n", false},
		{Content{Until: threeUTC}, "<p>" + stockSentence + "</p>", stockSentence + "\nIt is expected back at 2096-01-31 03:00 UTC.\n", true},
		{hostile, "<p>" + hostileEscaped + "</p>", "Down for maintenance. " + hostile.Message + "\nIt is expected back at 2096-01-31 03:00 UTC.\n", true},
	} {
		got := Default(test.content)
		html := string(got.HTML)
		if !strings.Contains(html, "<h1>Down for maintenance</h1>\n"+test.html) || strings.Contains(html, end) != test.hasEnd {
			t.Errorf("%+v: the page is\n%s", test.content, html)
		}
		if got.ContentType != "text/html; charset=utf-8" || unzip(t, got.Gzip) != html {
			t.Errorf("%+v: the page is %s, and compressed another", test.content, got.ContentType)
		}
		if text := string(PlainText(test.content)); text != test.text {
			t.Errorf("%+v: plain text is %q, want %q", test.content, text, test.text)
		}
	}
}

func TestProblem(t *testing.T) {
	for want, content := range map[string]Content{
		`{"title":"Service Unavailable","status":503,"retry_after":7,"maintenance":true}`: {},
		`{"title":"Service Unavailable","status":503,"detail":"a <b>","retry_after":7,"until":"2096-01-31T03:00:00Z","maintenance":true}`: {
			Message: "a <b>", Until: threeUTC,
		},
	} {
		var got bytes.Buffer
		if err := json.Compact(&got, Problem(content, 7)); err != nil {
			t.Fatal(err)
		}
		if unescaped := strings.NewReplacer(`\u003c`, "<", `\u003e`, ">").Replace(got.String()); unescaped != want {
			t.Errorf("got %s, want %s", unescaped, want)
		}
	}
}

func TestCustomPageIsShownInItsCharset(t *testing.T) {
	const utf8, latin1 = "text/html; charset=utf-8", "text/html; charset=iso-8859-1"
	for name, test := range map[string]struct {
		given, page, contentType, shown string
	}{
		"UTF-8":             {utf8, "<p>ü {maintenance.message}", utf8, "<p>ü " + hostileEscaped},
		"in attributes":     {utf8, `<p title="{maintenance.message}">{maintenance.until}|{maintenance.since}`, utf8, `<p title="` + hostileEscaped + `">2096-01-31 03:00 UTC|{maintenance.since}`},
		"in capitals":       {`TEXT/HTML; Charset="UTF-8"`, "<p>ü", utf8, "<p>ü"},
		"not named":         {"text/html", "<p>ü", utf8, "<p>ü"},
		"XHTML":             {"application/xhtml+xml", "<p>ü</p>", utf8, "<p>ü</p>"},
		"Latin-1":           {"text/html; charset=iso-8859-1", "<p>\xfc {maintenance.message}", latin1, "<p>\xfc " + strings.ReplaceAll(hostileEscaped, "ü", "&#252;")},
		"Latin-1, plain":    {"text/html; charset=ISO-8859-1", "<p>\xfc", latin1, "<p>\xfc"},
		"byte order mark":   {utf8, "\ufeff<p>", utf8, "<p>"},
		"two of them":       {utf8, "\ufeff\ufeff<p>", utf8, "\ufeff<p>"},
		"mark, not Latin-1": {latin1, "\ufeff<p>ü", utf8, "<p>ü"},
		"binary":            {"binary/octet-stream", "<!DOCTYPE html><p>", utf8, "<!DOCTYPE html><p>"},
		"octets":            {"application/octet-stream", "\n<html><p>", utf8, "\n<html><p>"},
		"no type":           {"", "<!-- Mine. --><p>", utf8, "<!-- Mine. --><p>"},
		"binary after mark": {"binary/octet-stream", "\ufeff<!doctype html><p>", utf8, "<!doctype html><p>"},
	} {
		c, err := newCopy([]byte(test.page), http.Header{"Content-Type": {test.given}})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := newTestView(c).HTML(t.Context(), hostile, nil)
		if got.ContentType != test.contentType || string(got.HTML) != test.shown {
			t.Errorf("%s: got %s %q\nwant %s %q", name, got.ContentType, got.HTML, test.contentType, test.shown)
		}
	}
}

func TestCustomPageIsCompressedWherePaying(t *testing.T) {
	for _, html := range []string{strings.Repeat("<p>{maintenance.message}\n", 50), strings.Repeat("<p>Mine.\n", 50)} {
		got := newTestView(testCopy(html)).HTML(t.Context(), Content{Message: "Back & well."}, nil)
		if len(got.Gzip) == 0 || unzip(t, got.Gzip) != string(got.HTML) {
			t.Errorf("%q is compressed to %d bytes, want the same page", html, len(got.Gzip))
		}
	}
	if got := newTestView(testCopy("<p>Mine.")).HTML(t.Context(), Content{}, nil); len(got.Gzip) > 0 {
		t.Errorf("8 bytes are compressed to %d", len(got.Gzip))
	}
}

func TestSecondsRoundUp(t *testing.T) {
	for d, want := range map[time.Duration]int64{
		-time.Hour: 1, 0: 1, time.Nanosecond: 1, time.Second: 1, 1500 * time.Millisecond: 2, 90 * time.Second: 90, 24 * time.Hour: 86400,
	} {
		if got := Seconds(d); got != want {
			t.Errorf("%s is %d seconds, want %d", d, got, want)
		}
	}
}

func TestCountDownIsSpread(t *testing.T) {
	for end, most := range map[time.Duration]int64{
		-time.Second:               0,
		300 * time.Millisecond:     0,
		5 * time.Minute:            30, // a tenth
		10 * time.Hour:             60, // and no more than that
		290 * 365 * 24 * time.Hour: 60, // about as far as a duration reaches
	} {
		seen := make(map[int64]bool)
		for range 1000 {
			late := SecondsUntil(threeUTC.Add(end), threeUTC) - Seconds(end)
			if seen[late] = true; late < 0 || late > most {
				t.Fatalf("%s before the end a client is told to come %d s after it, want at most %d", end, late, most)
			}
		}
		if n := len(seen); n < int(most)/2 {
			t.Errorf("%s before the end 1000 clients get %d different times, want many", end, n)
		}
	}
}

func testCopy(html string) *Copy { return &Copy{HTML: []byte(html), Charset: "utf-8"} }

// newTestView returns a view of a page that has been fetched, or has not if c is nil.
func newTestView(c *Copy) *View {
	p := New(Source{})
	p.Restore(c)
	return NewView(p)
}

func unzip(t *testing.T, compressed []byte) string {
	t.Helper()
	reader, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		t.Fatal(err)
	}
	unzipped, err := io.ReadAll(reader)
	if err != nil {
		t.Fatal(err)
	}
	return string(unzipped)
}
