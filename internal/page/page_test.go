package page

import (
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// After failures a page is fetched again in 5 seconds, then in 10, up to 10 minutes.
// Whoever asks for it has it fetched at once, and the pauses begin anew.
func TestPageIsRefreshedRegularlyAndWhenItIsWanted(t *testing.T) {
	const m = 60
	for name, test := range map[string]struct {
		fails func(elapsed time.Duration) bool
		want  []int // seconds from the start
	}{
		"good":       {func(time.Duration) bool { return false }, []int{0, 10 * m, 20 * m, 25 * m, 35 * m}},
		"never good": {func(time.Duration) bool { return true }, []int{0, 5, 15, 35, 75, 155, 315, 635, 1235, 25 * m, 25*m + 5, 25*m + 15}},
		"good again": {func(elapsed time.Duration) bool { return elapsed < 10*time.Second }, []int{0, 5, 15, 615, 1215, 25 * m, 35 * m}},
	} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			var fetched []int
			host := newHost(t, func(w http.ResponseWriter, r *http.Request) {
				fetched = append(fetched, int(time.Since(began)/time.Second))
				if test.fails(time.Since(began)) {
					status(500)(w, r)
					return
				}
				answers(html, "<p>")(w, r)
			})
			p := New(host.source)
			time.AfterFunc(25*time.Minute, p.RefreshNow)
			failing := false
			for range test.want {
				result, ok := p.Next(t.Context(), host.Fetcher)
				if failed := test.fails(time.Since(began)); !ok || failed != (result.Err != nil) || result.FailedBefore != failing {
					t.Errorf("%s: got %+v %t after %s", name, result, ok, time.Since(began))
				}
				failing = result.Err != nil
			}
			if !slices.Equal(fetched, test.want) {
				t.Errorf("%s: fetched after %v s, want %v", name, fetched, test.want)
			}
		})
	}
	for _, n := range []int{30, 62, 63, 64, 1000, math.MaxInt} {
		if got := retryPause(n); got != refreshInterval {
			t.Errorf("after %d failures the pause is %s", n, got)
		}
	}
}

// What is asked for while a page is being fetched comes after that, and once.
func TestRefreshThatIsWantedDuringAnotherComesAfterIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := newHost(t, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second)
			answers(html, "<p>")(w, r)
		})
		p := New(host.source)
		go func() {
			for ok := true; ok; {
				_, ok = p.Next(t.Context(), host.Fetcher)
			}
		}()
		synctest.Wait()
		for range 3 {
			p.RefreshNow()
		}
		time.Sleep(time.Minute)
		if n := host.requests(); n != 2 {
			t.Errorf("fetched %d times, want twice", n)
		}
	})
}

func TestStatus(t *testing.T) {
	source, err := ParseSource("https://bob:hunter2@page.example/page?hunter3")
	if err != nil {
		t.Fatal(err)
	}
	old := testCopy("<p>Old. {maintenance.message}")
	old.FetchedAt = threeUTC
	broken := errors.New("broken")
	restore := func(c *Copy) func(*Page) { return func(p *Page) { p.Restore(c) } }
	apply := func(c *Copy, err error) func(*Page) { return func(p *Page) { p.apply(c, err) } }
	for name, test := range map[string]struct {
		then []func(*Page)
		want Status
		page string
	}{
		"new":              {nil, Status{State: "fetching", ShowsMessage: true}, ""},
		"none stored":      {[]func(*Page){restore(nil)}, Status{State: "fetching", ShowsMessage: true}, ""},
		"restored":         {[]func(*Page){restore(old)}, Status{State: "stale", FetchedAt: threeUTC, ShowsMessage: true}, "<p>Old. "},
		"failed":           {[]func(*Page){apply(nil, broken)}, Status{State: "failed", Error: "broken", ShowsMessage: true}, ""},
		"failed, restored": {[]func(*Page){apply(nil, broken), restore(old)}, Status{State: "stale", FetchedAt: threeUTC, Error: "broken", ShowsMessage: true}, "<p>Old. "},
		"unchanged":        {[]func(*Page){restore(old), apply(nil, nil)}, Status{State: "ok", FetchedAt: now(), ShowsMessage: true}, "<p>Old. "},
		"fetched":          {[]func(*Page){apply(testCopy("<p>New."), nil)}, Status{State: "ok", FetchedAt: now()}, "<p>New."},
		"changed":          {[]func(*Page){restore(old), apply(testCopy("<p>New."), nil)}, Status{State: "ok", FetchedAt: now()}, "<p>New."},
		"restored late":    {[]func(*Page){apply(testCopy("<p>New."), nil), restore(old)}, Status{State: "ok", FetchedAt: now()}, "<p>New."},
		"spoilt":           {[]func(*Page){restore(old), apply(nil, nil), apply(nil, broken)}, Status{State: "stale", FetchedAt: now(), Error: "broken", ShowsMessage: true}, "<p>Old. "},
		"good again":       {[]func(*Page){apply(nil, broken), apply(testCopy("<p>New."), nil)}, Status{State: "ok", FetchedAt: now()}, "<p>New."},
	} {
		p := New(source)
		for _, then := range test.then {
			then(p)
		}
		got := p.Status()
		if late := got.FetchedAt.Sub(test.want.FetchedAt); late >= 0 && late < time.Minute {
			got.FetchedAt = test.want.FetchedAt
		}
		if test.want.Source = "https://page.example/page"; got != test.want {
			t.Errorf("%s: got %+v, want %+v", name, got, test.want)
		}
		if c := p.Copy(); (c == nil) != (test.page == "") || c != nil && string(newTestView(c).HTML(t.Context(), Content{}, nil).HTML) != test.page {
			t.Errorf("%s: the copy is %v, want %q", name, c, test.page)
		}
	}
}

func TestStoredCopy(t *testing.T) {
	stored := func(html, charset string) string {
		raw, err := json.Marshal(Copy{HTML: []byte(html), Charset: charset, ETag: "v1", LastModified: "now", FetchedAt: threeUTC})
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	c, err := ParseCopy([]byte(stored("<p>\xfc", "iso-8859-1")))
	if err != nil || string(c.HTML) != "<p>\xfc" || c.Charset != "iso-8859-1" || !c.FetchedAt.Equal(threeUTC) {
		t.Errorf("got %+v (%v)", c, err)
	}
	later := *c
	if later.FetchedAt = now(); !c.SameAs(&later) {
		t.Error("a copy is another one when it is fetched later")
	}
	if later.ETag = "v2"; c.SameAs(&later) {
		t.Error("a copy is the same with another ETag")
	}
	for name, test := range map[string]struct{ raw, want string }{
		"nothing":       {"", "unexpected end of JSON"},
		"no JSON":       {"<p>Mine.", "invalid character"},
		"cut off":       {stored("<p>Mine.", "utf-8")[:30], "unexpected end of JSON"},
		"null":          {"null", "it is empty"},
		"no page":       {"{}", "it is empty"},
		"another type":  {`{"html": 5, "charset": "utf-8"}`, "cannot unmarshal"},
		"blank":         {stored(" \n", "utf-8"), "it is empty"},
		"no charset":    {stored("<p>Mine.", ""), "its charset is"},
		"two lines":     {stored("<p>Mine.", "utf-8\r\nX-Evil: y"), "its charset is"},
		"invalid UTF-8": {stored("<p>\xfc", "utf-8"), "it is not valid UTF-8"},
		"too large":     {stored(strings.Repeat("x", maxSize+1), "utf-8"), tooLarge},
	} {
		if c, err := ParseCopy([]byte(test.raw)); c != nil || err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v (%v), want %q", name, c, err, test.want)
		}
	}
}

func TestFileIsReadAgain(t *testing.T) {
	dir := changeDir(t)
	writeFile(t, "page.html", "<p>Old.")
	source, c, err := Check("page.html")
	if err != nil {
		t.Fatal(err)
	}
	p, f := New(source), NewFetcher()
	p.Restore(c)
	for _, test := range []struct{ content, state, shown, want string }{
		{"New. Its name says that it is HTML.", "ok", "New. Its name says that it is HTML.", ""},
		{"", "stale", "New. Its name says that it is HTML.", dir + "/page.html: it is empty"},
		{"\xff\xfe", "stale", "New. Its name says that it is HTML.", dir + "/page.html: it is not valid UTF-8"},
		{"<p>Newer.", "ok", "<p>Newer.", ""},
	} {
		writeFile(t, "page.html", test.content)
		p.RefreshNow()
		if _, ok := p.Next(t.Context(), f); !ok {
			t.Fatal("the page is not read")
		}
		if got := p.Status(); got.State != test.state || !strings.HasPrefix(got.Error, test.want) || string(p.Copy().HTML) != test.shown {
			t.Errorf("%q: got %+v and %q", test.content, got, p.Copy().HTML)
		}
	}
}
