package page

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
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
	const (
		end     = "\n<p>It is expected back at " + `<time datetime="2096-01-31T03:00:00Z">2096-01-31 03:00 UTC</time>.</p>`
		textEnd = "\nIt is expected back at 2096-01-31 03:00 UTC.\n"
	)
	for _, test := range []struct {
		content             Content
		html, text, problem string
	}{
		{Content{}, "<p>" + stockSentence + "</p>", stockSentence + "\n", ``},
		{Content{Until: threeUTC}, "<p>" + stockSentence + "</p>" + end, stockSentence + textEnd, `"until":"2096-01-31T03:00:00Z",`},
		{
			hostile, "<p>" + hostileEscaped + "</p>" + end, "Down for maintenance. " + hostile.Message + textEnd,
			`"detail":"a \u003cb\u003e \u0026 \"c\" 'ü' {maintenance.until}","until":"2096-01-31T03:00:00Z",`,
		},
	} {
		got := Default(test.content)
		html := string(got.HTML)
		if !strings.Contains(html, "<h1>Down for maintenance</h1>\n"+test.html+"\n</body>") {
			t.Errorf("%+v: the page is\n%s", test.content, html)
		}
		if got.ContentType != "text/html; charset=utf-8" || unzip(t, got.Gzip) != html {
			t.Errorf("%+v: the page is %s, and compressed another", test.content, got.ContentType)
		}
		wantEqual(t, "plain text", string(PlainText(test.content)), test.text)
		var want, problem map[string]any
		wanted := `{"title":"Service Unavailable","status":503,` + test.problem + `"retry_after":7,"maintenance":true}`
		noError(t, errors.Join(json.Unmarshal([]byte(wanted), &want), json.Unmarshal(Problem(test.content, 7), &problem)))
		if !maps.Equal(problem, want) {
			t.Errorf("%+v: the problem is %v, want %v", test.content, problem, want)
		}
	}
}

func TestCustomPageIsShownInItsCharset(t *testing.T) {
	const utf8, latin1 = "text/html; charset=utf-8", "text/html; charset=iso-8859-1"
	escapedInLatin1 := strings.ReplaceAll(hostileEscaped, "ü", "&#252;")
	for _, test := range []struct{ given, page, contentType, shown string }{
		{utf8, "<p>ü {maintenance.message}", utf8, "<p>ü " + hostileEscaped},
		{utf8, `<p title="{maintenance.message}">`, utf8, `<p title="` + hostileEscaped + `">`},
		{utf8, "<p>{maintenance.until}|{maintenance.since}", utf8, "<p>2096-01-31 03:00 UTC|{maintenance.since}"},
		{`TEXT/HTML; Charset="UTF-8"`, "<p>ü", utf8, "<p>ü"},
		{"text/html", "<p>ü", utf8, "<p>ü"},
		{"application/xhtml+xml", "<p>ü</p>", utf8, "<p>ü</p>"},
		{latin1, "<p>\xfc {maintenance.message}", latin1, "<p>\xfc " + escapedInLatin1},
		{"text/html; charset=ISO-8859-1", "<p>\xfc", latin1, "<p>\xfc"},
		{utf8, "\ufeff<p>", utf8, "<p>"},
		{utf8, "\ufeff\ufeff<p>", utf8, "\ufeff<p>"},
		{latin1, "\ufeff<p>ü", utf8, "<p>ü"},
		{"binary/octet-stream", "<!DOCTYPE html><p>", utf8, "<!DOCTYPE html><p>"},
		{"application/octet-stream", "\n<html><p>", utf8, "\n<html><p>"},
		{"", "<!-- Mine. --><p>", utf8, "<!-- Mine. --><p>"},
		{"binary/octet-stream", "\ufeff<!doctype html><p>", utf8, "<!doctype html><p>"},
	} {
		c, err := newCopy([]byte(test.page), http.Header{"Content-Type": {test.given}})
		if err != nil {
			t.Fatalf("%s as %q: %v", test.page, test.given, err)
		}
		got := newTestView(c).HTML(t.Context(), hostile, nil)
		wantEqual(t, fmt.Sprintf("%s as %q", test.page, test.given), got.ContentType+" "+string(got.HTML), test.contentType+" "+test.shown)
	}
}

func TestCustomPageIsCompressedWherePaying(t *testing.T) {
	for html, pays := range map[string]bool{
		strings.Repeat("<p>{maintenance.message}\n", 50): true, strings.Repeat("<p>Mine.\n", 50): true, "<p>Mine.": false,
	} {
		got := newTestView(testCopy(html)).HTML(t.Context(), Content{Message: "Back & well."}, nil)
		if len(got.Gzip) > 0 != pays || pays && unzip(t, got.Gzip) != string(got.HTML) {
			t.Errorf("%q is compressed to %d bytes, want the same page if it pays: %t", html, len(got.Gzip), pays)
		}
	}
}

func TestSecondsRoundUp(t *testing.T) {
	for d, want := range map[time.Duration]int64{
		-time.Hour: 1, 0: 1, time.Nanosecond: 1, time.Second: 1, 1500 * time.Millisecond: 2, 90 * time.Second: 90, 24 * time.Hour: 86400,
	} {
		wantEqual(t, d.String(), Seconds(d), want)
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

// noError ends the test if there is an error.
func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantEqual fails the test unless got and want are equal.
func wantEqual[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %.500s, want %.500s", what, fmt.Sprint(got), fmt.Sprint(want))
	}
}

func testCopy(html string) *Copy { return &Copy{HTML: []byte(html), Charset: "utf-8"} }

// newTestView returns a view of a page with a copy, or without one if c is nil.
func newTestView(c *Copy) *View {
	p := New(Source{})
	p.Restore(c)
	return NewView(p)
}

func unzip(t *testing.T, compressed []byte) string {
	t.Helper()
	reader, err := gzip.NewReader(bytes.NewReader(compressed))
	noError(t, err)
	unzipped, err := io.ReadAll(reader)
	noError(t, err)
	return string(unzipped)
}
