package page

import (
	"iter"
	"slices"
	"strconv"
	"strings"
)

// Media is a representation of the response to a blocked request.
type Media int

// The representations, in the order that decides a tie.
const (
	MediaHTML Media = iota
	MediaJSON
	MediaText
)

// Negotiate picks a representation by the lines of a request's Accept header
// (RFC 9110, section 12.5.1) and by its Sec-Fetch-Dest header.
//
// Wildcards only count if there is nothing else: a program that accepts JSON and */* wants
// JSON, and a page does not replace an image. Browsers also accept */* for scripts and
// fonts; Sec-Fetch-Dest tells those from pages. There is always a result.
func Negotiate(accept []string, destination string) Media {
	quality := [...]float64{MediaHTML: 0, MediaJSON: 0, MediaText: 0}
	named := false
	for name, parameters := range ranges(accept) {
		switch name {
		case "*/*", "text/*", "application/*":
			continue
		}
		named = true
		if media, ok := mediaOf(name); ok {
			quality[media] = max(quality[media], weight(parameters))
		}
	}
	if !named && !slices.Contains(pageDestinations, destination) {
		return MediaText
	}
	if !named {
		return MediaHTML
	}
	best := slices.Max(quality[:])
	if best == 0 {
		return MediaText
	}
	return Media(slices.Index(quality[:], best))
}

// pageDestinations are the values of Sec-Fetch-Dest (W3C Fetch Metadata) for requests whose
// response can be shown as a page. The other values are for parts of a page.
var pageDestinations = []string{"", "document", "iframe", "frame", "fencedframe", "embed", "object", "empty"}

func mediaOf(name string) (Media, bool) {
	switch {
	case name == "text/html", name == "application/xhtml+xml":
		return MediaHTML, true
	case name == "application/json", strings.HasSuffix(name, "+json"):
		return MediaJSON, true
	case name == "text/plain":
		return MediaText, true
	}
	return 0, false
}

// AcceptsGzip reports whether the lines of a request's Accept-Encoding header name
// gzip (RFC 9110, section 12.5.3).
func AcceptsGzip(acceptEncoding []string) bool {
	for name, parameters := range ranges(acceptEncoding) {
		if name == "gzip" {
			return weight(parameters) > 0
		}
	}
	return false
}

// maxRanges limits the work that a request can cause.
const maxRanges = 32

// ranges yields the first maxRanges elements of a list header with all its lines joined, each
// with its parameters.
func ranges(lines []string) iter.Seq2[string, string] {
	return func(yield func(name, parameters string) bool) {
		left := maxRanges
		for _, line := range lines {
			for element := range strings.SplitSeq(line, ",") {
				if left--; left < 0 {
					return
				}
				name, parameters, _ := strings.Cut(element, ";")
				name = strings.ToLower(strings.TrimSpace(name))
				if name != "" && !yield(name, parameters) {
					return
				}
			}
		}
	}
}

// weight returns the q parameter (RFC 9110, section 12.4.2): 1 if there is none, 0 if it is
// invalid.
func weight(parameters string) float64 {
	for parameter := range strings.SplitSeq(parameters, ";") {
		name, value, _ := strings.Cut(parameter, "=")
		if !strings.EqualFold(strings.TrimSpace(name), "q") {
			continue
		}
		q, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err == nil && q >= 0 && q <= 1 {
			return q
		}
		return 0
	}
	return 1
}
