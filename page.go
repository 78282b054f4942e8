package maintenance

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"html/template"
	"iter"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// respond answers a request of a site that is in maintenance.
func (h *Handler) respond(w http.ResponseWriter, r *http.Request, st *state, retryAfter int64) {
	var contentType, contentEncoding string
	var body []byte
	switch negotiate(r.Header["Accept"], r.Header.Get("Sec-Fetch-Dest")) {
	case mediaHTML:
		shown := h.document(r.Context(), st)
		contentType, body = shown.contentType, shown.html
		if len(shown.gzip) > 0 && acceptsGzip(r.Header["Accept-Encoding"]) {
			contentEncoding, body = "gzip", shown.gzip
		}
	case mediaJSON:
		contentType, body = "application/problem+json", problem(st.options(), retryAfter)
	default:
		contentType, body = "text/plain; charset=utf-8", st.page.text
	}

	header := w.Header()
	for _, name := range bodyHeaders {
		delete(header, name)
	}
	deleteCacheHeaders(header)
	if contentEncoding != "" {
		header.Set("Content-Encoding", contentEncoding)
	}
	setEach(header,
		"Retry-After", strconv.FormatInt(retryAfter, 10),
		"Cache-Control", "no-store",
		"Content-Type", contentType,
		"Content-Length", strconv.Itoa(len(body)),
		"X-Content-Type-Options", "nosniff",
		"Referrer-Policy", "no-referrer",
	)
	if h.Refresh > 0 {
		header.Set("Refresh", strconv.FormatInt(wholeSeconds(time.Duration(h.Refresh)), 10))
	}
	header.Add("Vary", "Accept, Accept-Encoding")
	if r.ProtoMajor == 1 && r.Header.Get("Expect") != "" {
		// Otherwise the server would read the body to keep the connection.
		header.Set("Connection", "close")
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) //nolint:gosec // the operator's page, and text that is escaped
	}
}

// document is the HTML page of the handler.
func (h *Handler) document(ctx context.Context, st *state) *document {
	if h.page == nil {
		return st.page.document
	}
	if h.page.lastGood.Load() == nil {
		select {
		case <-h.page.settled:
		case <-ctx.Done():
		}
	}
	return h.page.document(st)
}

// setEach sets headers by their canonical names. It makes one allocation for all
// of the values, which no two responses may share: other handlers change them
// in place.
func setEach(header http.Header, namesAndValues ...string) {
	for i := 0; i < len(namesAndValues); i += 2 {
		header[namesAndValues[i]] = namesAndValues[i+1 : i+2 : i+2]
	}
}

// bodyHeaders, in canonical form, describe a body that an earlier handler expected.
var bodyHeaders = []string{"Content-Encoding", "Etag", "Last-Modified"}

// cacheHeaders, in canonical form, are older and vendors' fields that tell a cache
// something else than Cache-Control does.
var cacheHeaders = []string{"Edge-Control", "Expires", "Pragma", "Surrogate-Control", "X-Accel-Expires"}

// deleteCacheHeaders deletes those, and the fields that target some caches only: by
// convention their names end in -Cache-Control (RFC 9213, section 2.3).
func deleteCacheHeaders(header http.Header) {
	for name := range header {
		if strings.HasSuffix(name, "-Cache-Control") || slices.Contains(cacheHeaders, name) {
			delete(header, name)
		}
	}
}

// appHeaders, in canonical form, are what the app may have set for a response of
// its own before it was cut off.
var appHeaders = []string{
	"Content-Disposition", "Content-Language", "Content-Range", "Location", "Sec-Websocket-Accept", "Sec-Websocket-Extensions",
	"Sec-Websocket-Protocol", "Set-Cookie", "Trailer", "Transfer-Encoding", "Upgrade",
}

const maxSpread = 60 // seconds

// retryAfterSeconds counts down to the end of the maintenance, if it has one
// and nothing else was asked for. What is added at random, a tenth but at most a
// minute, keeps clients from all coming back in the same second.
func retryAfterSeconds(o options, configured time.Duration) int64 {
	wait := o.retryAfter(configured)
	countDown := o.RetryAfter == "" && !o.Until.IsZero()
	if countDown {
		wait = time.Until(o.Until)
	}
	seconds := max(1, wholeSeconds(wait))
	if countDown {
		seconds += rand.Int64N(min(seconds/10, maxSpread) + 1) //nolint:gosec // no secret
	}
	return seconds
}

// wholeSeconds rounds up.
func wholeSeconds(d time.Duration) int64 {
	seconds := int64(d / time.Second)
	if d%time.Second > 0 {
		seconds++
	}
	return seconds
}

// builtinPage is the default page, rendered when the options change and not for each visitor.
type builtinPage struct {
	*document
	text []byte
}

// document is a page as HTML.
type document struct {
	contentType string
	html, gzip  []byte // gzip is empty where compression does not pay
}

func newDocument(html []byte, charset string) *document {
	return &document{contentType: "text/html; charset=" + charset, html: html, gzip: compress(html)}
}

const stockSentence = "This site is down for maintenance and will be back soon."

var pageTemplate = template.Must(template.New("page").Parse(`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Down for maintenance</title>
</head>
<body>
<h1>Down for maintenance</h1>
<p>{{.Sentence}}</p>
{{- if .Until}}
<p>It is expected back at <time datetime="{{.DateTime}}">{{.Until}}</time>.</p>
{{- end}}
</body>
</html>
`))

// stockPage is the page of a maintenance without options.
var stockPage = renderPage(options{})

func renderPage(o options) *builtinPage {
	data := struct{ Sentence, Until, DateTime string }{Sentence: o.Message}
	if o.Message == "" {
		data.Sentence = stockSentence
	}
	text := "Down for maintenance. " + data.Sentence + "\n"
	if o.Message == "" {
		text = stockSentence + "\n"
	}
	if !o.Until.IsZero() {
		data.Until = formatUntil(o.Until)
		data.DateTime = o.Until.Format(time.RFC3339)
		text += "It is expected back at " + data.Until + ".\n"
	}

	var html bytes.Buffer
	if err := pageTemplate.Execute(&html, data); err != nil {
		panic(err) // the template and its data are ours, and so is the buffer
	}
	return &builtinPage{document: newDocument(html.Bytes(), "utf-8"), text: []byte(text)}
}

// The placeholders of a custom page.
const (
	messagePlaceholder = "{maintenance.message}"
	untilPlaceholder   = "{maintenance.until}"
)

// rendering is a custom page as it shows a state of the site, made once by
// whoever comes first.
type rendering struct {
	state    *state
	copy     *pageCopy
	document func() *document
}

// document is the custom page as it shows a state, or the default page as long as
// there is no copy.
func (s *shownPage) document(st *state) *document {
	c := s.lastGood.Load()
	if c == nil {
		return st.page.document
	}
	if c.plain != nil {
		return c.plain()
	}
	last := s.last.Load()
	if last.fits(st, c) {
		return last.document()
	}
	fresh := &rendering{st, c, sync.OnceValue(func() *document { return c.render(st.options()) })}
	if !s.last.CompareAndSwap(last, fresh) {
		if last = s.last.Load(); last.fits(st, c) {
			return last.document()
		}
	}
	shown := fresh.document()
	select {
	case <-st.replaced: // and whoever did so may have forgotten its rendering already
		s.last.CompareAndSwap(fresh, nil)
	default:
	}
	return shown
}

// forget keeps no rendering of a state that is over.
func (s *shownPage) forget() { s.last.Store(nil) }

func (r *rendering) fits(st *state, c *pageCopy) bool {
	return r != nil && r.state == st && r.copy == c
}

// render puts the options in the place of their placeholders.
func (c *pageCopy) render(o options) *document {
	html := strings.NewReplacer(
		messagePlaceholder, c.escape(o.Message),
		untilPlaceholder, c.escape(formatUntil(o.Until)),
	).Replace(string(c.HTML))
	return newDocument([]byte(html), c.Charset)
}

// escape makes text safe in the page's text and in its attributes; in another
// charset than UTF-8 it takes no more than that is sure to have, which is ASCII.
func (c *pageCopy) escape(text string) string {
	text = template.HTMLEscapeString(text)
	if c.isUTF8() {
		return text
	}
	var escaped strings.Builder
	for _, r := range text {
		if r < utf8.RuneSelf {
			escaped.WriteRune(r)
		} else {
			fmt.Fprintf(&escaped, "&#%d;", r)
		}
	}
	return escaped.String()
}

// formatUntil is the end of a maintenance as visitors read it, if it has one.
func formatUntil(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Format("2006-01-02 15:04 MST")
}

// compress returns nothing where compression does not pay.
func compress(b []byte) []byte {
	var compressed bytes.Buffer
	writer := gzip.NewWriter(&compressed)
	_, err := writer.Write(b)
	if err == nil {
		err = writer.Close()
	}
	if err != nil || compressed.Len() >= len(b) {
		return nil
	}
	return compressed.Bytes()
}

// problem is the answer to clients that are programs (RFC 9457). The fields
// after detail are extension members (section 3.2).
func problem(o options, retryAfter int64) []byte {
	body, err := json.Marshal(struct {
		Title       string    `json:"title"`
		Status      int       `json:"status"`
		Detail      string    `json:"detail,omitempty"`
		RetryAfter  int64     `json:"retry_after"`
		Until       time.Time `json:"until,omitzero"`
		Maintenance bool      `json:"maintenance"`
	}{"Service Unavailable", http.StatusServiceUnavailable, o.Message, retryAfter, o.Until, true})
	if err != nil {
		panic(err) // strings, numbers and a time that was parsed from text
	}
	return append(body, '\n')
}

type media int

// In the order that decides a tie.
const (
	mediaHTML media = iota
	mediaJSON
	mediaText
)

// negotiate picks a representation by the request's Accept header (RFC 9110,
// section 12.5.1). Only what is named counts: a program that accepts anything
// beside JSON wants JSON, and an image is not replaced by a page. There is
// always an answer. Browsers accept anything as a script, too, but tell what they
// want it for.
func negotiate(accept []string, destination string) media {
	quality := [...]float64{mediaHTML: 0, mediaJSON: 0, mediaText: 0}
	named := false
	for name, parameters := range ranges(accept) {
		switch name {
		case "*/*", "text/*", "application/*":
			continue
		}
		named = true
		if kind, ok := mediaOf(name); ok {
			quality[kind] = max(quality[kind], weight(parameters))
		}
	}
	if !named && !slices.Contains(pageDestinations, destination) {
		return mediaText
	}
	if !named {
		return mediaHTML
	}
	best := slices.Max(quality[:])
	if best == 0 {
		return mediaText
	}
	return media(slices.Index(quality[:], best))
}

// pageDestinations are the values of Sec-Fetch-Dest (W3C Fetch Metadata) of what may
// be shown as a page; others are of its parts.
var pageDestinations = []string{"", "document", "iframe", "frame", "fencedframe", "embed", "object", "empty"}

func mediaOf(name string) (media, bool) {
	switch {
	case name == "text/html", name == "application/xhtml+xml":
		return mediaHTML, true
	case name == "application/json", strings.HasSuffix(name, "+json"):
		return mediaJSON, true
	case name == "text/plain":
		return mediaText, true
	}
	return 0, false
}

// acceptsGzip reports whether the request's Accept-Encoding header names gzip
// (RFC 9110, section 12.5.3).
func acceptsGzip(acceptEncoding []string) bool {
	for name, parameters := range ranges(acceptEncoding) {
		if name == "gzip" {
			return weight(parameters) > 0
		}
	}
	return false
}

// maxRanges bounds the work that a request can ask for.
const maxRanges = 32

// ranges goes through the first elements of a header that is a list, all its
// lines joined, with the parameters of each.
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

// weight returns the q parameter, 1 if there is none (RFC 9110, section
// 12.4.2), and 0 if it is not a weight.
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
