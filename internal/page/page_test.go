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
// RefreshNow fetches it at once, and the pauses start over.
func TestPageIsRefreshedRegularlyAndWhenItIsWanted(t *testing.T) {
	const m = 60
	for name, test := range map[string]struct {
		fails func(elapsed time.Duration) bool
		want  []int // seconds from the start
	}{
		"good": {func(time.Duration) bool { return false }, []int{0, 10 * m, 20 * m, 25 * m, 35 * m}},
		"never good": {
			func(time.Duration) bool { return true },
			[]int{0, 5, 15, 35, 75, 155, 315, 635, 1235, 25 * m, 25*m + 5, 25*m + 15},
		},
		"good again": {
			func(elapsed time.Duration) bool { return elapsed < 10*time.Second },
			[]int{0, 5, 15, 615, 1215, 25 * m, 35 * m},
		},
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
		wantEqual(t, "pause after many failures", retryPause(n), refreshInterval)
	}
}

// Calls of RefreshNow during a fetch cause one more fetch after it.
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
		wantEqual(t, "fetches", host.requests(), 2)
	})
}

func TestStatus(t *testing.T) {
	source, err := ParseSource("https://bob:hunter2@page.example/page?hunter3")
	noError(t, err)
	old := testCopy("<p>Old. {maintenance.message}")
	old.FetchedAt = threeUTC
	steps := map[string]func(*Page){
		"none stored": func(p *Page) { p.Restore(nil) },
		"restored":    func(p *Page) { p.Restore(old) },
		"failed":      func(p *Page) { p.apply(nil, errors.New("broken")) },
		"unchanged":   func(p *Page) { p.apply(nil, nil) },
		"fetched":     func(p *Page) { p.apply(testCopy("<p>New."), nil) },
	}
	type seen struct {
		state, fetched, err string
		showsMessage        bool
		page                string
	}
	for then, want := range map[string]seen{
		"none stored":                 {"fetching", "never", "", true, ""},
		"restored":                    {"stale", "long ago", "", true, "<p>Old. "},
		"failed":                      {"failed", "never", "broken", true, ""},
		"failed, restored":            {"stale", "long ago", "broken", true, "<p>Old. "},
		"restored, unchanged":         {"ok", "now", "", true, "<p>Old. "},
		"fetched":                     {"ok", "now", "", false, "<p>New."},
		"restored, fetched":           {"ok", "now", "", false, "<p>New."},
		"fetched, restored":           {"ok", "now", "", false, "<p>New."},
		"restored, unchanged, failed": {"stale", "now", "broken", true, "<p>Old. "},
		"failed, fetched":             {"ok", "now", "", false, "<p>New."},
	} {
		p := New(source)
		wantEqual(t, "a new page", p.Status(), Status{Source: "https://page.example/page", State: "fetching", ShowsMessage: true})
		for step := range strings.SplitSeq(then, ", ") {
			steps[step](p)
		}
		status := p.Status()
		got := seen{status.State, "never", status.Error, status.ShowsMessage, ""}
		if status.FetchedAt.Equal(threeUTC) {
			got.fetched = "long ago"
		} else if late := time.Since(status.FetchedAt); late >= 0 && late < time.Minute {
			got.fetched = "now"
		}
		if p.Copy() != nil {
			got.page = string(NewView(p).HTML(t.Context(), Content{}, nil).HTML)
		}
		wantEqual(t, then, got, want)
	}
}

func TestStoredCopy(t *testing.T) {
	stored := func(html, charset string) string {
		raw, err := json.Marshal(Copy{HTML: []byte(html), Charset: charset, ETag: "v1", LastModified: "now", FetchedAt: threeUTC})
		noError(t, err)
		return string(raw)
	}
	c, err := ParseCopy([]byte(stored("<p>\xfc", "iso-8859-1")))
	if err != nil || string(c.HTML) != "<p>\xfc" || c.Charset != "iso-8859-1" || !c.FetchedAt.Equal(threeUTC) {
		t.Errorf("got %+v (%v)", c, err)
	}
	later := *c
	later.FetchedAt = now()
	wantEqual(t, "the same when it is fetched later", c.SameAs(&later), true)
	later.ETag = "v2"
	wantEqual(t, "the same with another ETag", c.SameAs(&later), false)
	for raw, want := range map[string]string{
		"":                                     "unexpected end of JSON",
		"<p>Mine.":                             "invalid character",
		stored("<p>Mine.", "utf-8")[:30]:       "unexpected end of JSON",
		"null":                                 "the page is empty",
		"{}":                                   "the page is empty",
		`{"html": 5, "charset": "utf-8"}`:      "cannot unmarshal",
		stored(" \n", "utf-8"):                 "the page is empty",
		stored("<p>Mine.", ""):                 "invalid charset",
		stored("<p>Mine.", "utf-8\r\nX-Evil:"): "invalid charset",
		stored("<p>\xfc", "utf-8"):             "the page is not valid UTF-8",
		stored(strings.Repeat("x", maxSize+1), "utf-8"): tooLarge,
	} {
		if c, err := ParseCopy([]byte(raw)); c != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.100s: got %v (%v), want %q", raw, c, err, want)
		}
	}
}

func TestFileIsReadAgain(t *testing.T) {
	dir := changeDir(t)
	writeFile(t, "page.html", "<p>Old.")
	source, c, err := Check("page.html")
	noError(t, err)
	p, f := New(source), NewFetcher()
	p.Restore(c)
	const named = "New. Its name says that it is HTML."
	for _, test := range []struct{ content, state, shown, want string }{
		{named, "ok", named, ""},
		{"", "stale", named, dir + "/page.html: the page is empty"},
		{"<p>Newer.", "ok", "<p>Newer.", ""},
	} {
		writeFile(t, "page.html", test.content)
		p.RefreshNow()
		_, ok := p.Next(t.Context(), f)
		if got := p.Status(); !ok || got.State != test.state || got.Error != test.want || string(p.Copy().HTML) != test.shown {
			t.Errorf("%q: got %+v and %q", test.content, got, p.Copy().HTML)
		}
	}
}
