package page

import (
	"slices"
	"strings"
	"testing"
)

func TestNegotiate(t *testing.T) {
	for want, accepts := range map[Media][]string{
		MediaHTML: {
			"", ",,;q=1", "*/*", "text/*, */*;q=0.1", "application/xhtml+xml", "TEXT/HTML",
			"text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8",
			"application/json;q=0.9, text/html;q=0.9",
			strings.Repeat("image/png,", maxRanges-1) + "text/html",
		},
		MediaJSON: {
			"application/json", "application/json, text/plain, */*", "application/vnd.api+json",
			"text/html;q=0.5, application/json", "text/html;level=1;q=0.2, application/json;q=0.3",
			"text/html;q=0, application/json;q=0.1", "text/html;q=nan, application/json;q=0.1",
			"text/html;q=1.5, application/json;q=0.1", "text/html;q=-1, application/json;q=0.1",
		},
		MediaText: {
			"text/plain", "text/plain;q=0.9, application/json;q=0.8", "image/avif,image/webp,image/*,*/*;q=0.8", "image/*",
			"text/css,*/*;q=0.1", "text/event-stream", "text/html;q=0", "nonsense",
			strings.Repeat("image/png,", maxRanges) + "text/html",
		},
	} {
		for _, accept := range accepts {
			wantEqual(t, "Accept "+accept, Negotiate([]string{accept}, ""), want)
		}
	}
	wantEqual(t, "no Accept", Negotiate(nil, ""), MediaHTML)
	// Browsers ask for scripts and fonts with Accept: */*.
	for want, destinations := range map[Media][]string{
		MediaHTML: {"document", "iframe", "empty"},
		MediaText: {"script", "font", "style", "image", "worker"},
	} {
		for _, destination := range destinations {
			wantEqual(t, "Sec-Fetch-Dest "+destination, Negotiate([]string{"*/*"}, destination), want)
		}
	}
}

func TestAcceptsGzip(t *testing.T) {
	for accept, want := range map[string]bool{
		"gzip": true, "br, GZIP ;q=0.5": true, "": false, "gzip;q=0": false, "gzip;q=2": false, "br": false, "identity": false,
	} {
		wantEqual(t, "Accept-Encoding "+accept, AcceptsGzip([]string{accept}), want)
	}
}

// G8
func TestHugeHeadersCostLittle(t *testing.T) {
	for _, element := range []string{",", "a,", "gzip;q=0,", "text/html;"} {
		huge := []string{strings.Repeat(element, 100_000)}
		if allocs := testing.AllocsPerRun(10, func() {
			Negotiate(huge, "")
			AcceptsGzip(huge)
		}); allocs > 10 {
			t.Errorf("%s 100,000 times takes %.0f allocations", element, allocs)
		}
	}
}

func FuzzNegotiate(f *testing.F) {
	for _, seed := range []string{"*/*", "text/html;q=0.1,application/json", "a/b;q=;=q;", "text/html;q=NaN", ";;;,,,"} {
		f.Add(seed, seed)
	}
	f.Add("text/html;q=0.5", "application/json")
	f.Fuzz(func(t *testing.T, one, two string) {
		got := Negotiate([]string{one, two}, "")
		if !slices.Contains([]Media{MediaHTML, MediaJSON, MediaText}, got) {
			t.Fatalf("got %d", got)
		}
		wantEqual(t, "two lines, and the same joined", Negotiate([]string{one + "," + two}, ""), got)
		if strings.Trim(one+two, ", \t") == "" && got != MediaHTML {
			t.Errorf("nothing accepted in particular gives %d", got)
		}
	})
}
