package page

import (
	"slices"
	"strings"
	"testing"
)

func TestNegotiate(t *testing.T) {
	for _, test := range []struct {
		accept []string
		want   Media
	}{
		{nil, MediaHTML},
		{[]string{""}, MediaHTML},
		{[]string{"*/*"}, MediaHTML},
		{[]string{"text/*, */*;q=0.1"}, MediaHTML},
		{[]string{"text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8"}, MediaHTML},
		{[]string{"application/xhtml+xml"}, MediaHTML},
		{[]string{"TEXT/HTML"}, MediaHTML},
		{[]string{"application/json"}, MediaJSON},
		{[]string{"application/json, text/plain, */*"}, MediaJSON},
		{[]string{"application/vnd.api+json"}, MediaJSON},
		{[]string{"text/html;q=0.5, application/json"}, MediaJSON},
		{[]string{"text/html;q=0.5", "application/json"}, MediaJSON},
		{[]string{"application/json;q=0.9, text/html;q=0.9"}, MediaHTML},
		{[]string{"text/plain;q=0.9, application/json;q=0.8"}, MediaText},
		{[]string{"text/plain"}, MediaText},
		{[]string{"image/avif,image/webp,image/*,*/*;q=0.8"}, MediaText},
		{[]string{"image/*"}, MediaText},
		{[]string{"text/css,*/*;q=0.1"}, MediaText},
		{[]string{"text/event-stream"}, MediaText},
		{[]string{"text/html;q=0"}, MediaText},
		{[]string{"text/html;q=0, application/json;q=0.1"}, MediaJSON},
		{[]string{"text/html;q=nan, application/json;q=0.1"}, MediaJSON},
		{[]string{"text/html;q=1.5, application/json;q=0.1"}, MediaJSON},
		{[]string{"text/html;q=-1, application/json;q=0.1"}, MediaJSON},
		{[]string{"text/html;level=1;q=0.2, application/json;q=0.3"}, MediaJSON},
		{[]string{strings.Repeat("image/png,", maxRanges-1) + "text/html"}, MediaHTML},
		{[]string{strings.Repeat("image/png,", maxRanges) + "text/html"}, MediaText},
		{[]string{"nonsense"}, MediaText},
		{[]string{",,;q=1"}, MediaHTML},
	} {
		if got := Negotiate(test.accept, ""); got != test.want {
			t.Errorf("Accept %q gets %d, want %d", test.accept, got, test.want)
		}
	}
}

// Browsers ask for scripts and fonts with Accept: */*.
func TestPartsOfPageAreNotReplacedByPage(t *testing.T) {
	for destination, want := range map[string]Media{
		"document": MediaHTML, "iframe": MediaHTML, "empty": MediaHTML,
		"script": MediaText, "font": MediaText, "style": MediaText, "image": MediaText, "worker": MediaText,
	} {
		if got := Negotiate([]string{"*/*"}, destination); got != want {
			t.Errorf("Sec-Fetch-Dest %s gets %d, want %d", destination, got, want)
		}
	}
}

func TestAcceptsGzip(t *testing.T) {
	for accept, want := range map[string]bool{
		"gzip": true, "br, GZIP ;q=0.5": true, "": false, "gzip;q=0": false, "gzip;q=2": false, "br": false, "identity": false,
	} {
		if got := AcceptsGzip([]string{accept}); got != want {
			t.Errorf("Accept-Encoding %q: %t, want %t", accept, got, want)
		}
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
	for _, seed := range []string{"*/*", "text/html;q=0.1,application/json", "a/b;q=;=q;", "text/html;q=NaN", ";;;,,,", "text/plain;Q=0x1p-2"} {
		f.Add(seed, seed)
	}
	f.Fuzz(func(t *testing.T, one, two string) {
		got := Negotiate([]string{one, two}, "")
		if !slices.Contains([]Media{MediaHTML, MediaJSON, MediaText}, got) {
			t.Fatalf("got %d", got)
		}
		if joined := Negotiate([]string{one + "," + two}, ""); joined != got {
			t.Errorf("two lines give %d, the same joined %d", got, joined)
		}
		if !strings.Contains(one+two, "/") && strings.Trim(one+two, ", \t") == "" && got != MediaHTML {
			t.Errorf("nothing accepted in particular gives %d", got)
		}
	})
}
