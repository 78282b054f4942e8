package page

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"html/template"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"
)

// Content is what a page says about a maintenance.
type Content struct {
	Message string
	Until   time.Time // when the maintenance ends; zero if that is not known
}

// Document is a rendered HTML page.
type Document struct {
	ContentType string
	HTML        []byte
	Gzip        []byte // compressed HTML; empty if that is not smaller
}

func newDocument(html []byte, charset string) *Document {
	return &Document{ContentType: "text/html; charset=" + charset, HTML: html, Gzip: compress(html)}
}

// compress returns nil if the result is not smaller.
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

const stockSentence = "This site is down for maintenance and will be back soon."

var defaultTemplate = template.Must(template.New("page").Parse(`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
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

// The default page for a maintenance without message and until.
var (
	stockDocument = renderDefault(Content{Message: stockSentence})
	stockText     = []byte(stockSentence + "\n")
)

// Default returns the default page.
func Default(c Content) *Document {
	if c == (Content{}) {
		return stockDocument
	}
	if c.Message == "" {
		c.Message = stockSentence
	}
	return renderDefault(c)
}

func renderDefault(c Content) *Document {
	var html bytes.Buffer
	err := defaultTemplate.Execute(&html, struct{ Sentence, Until, DateTime string }{
		c.Message, formatUntil(c.Until), c.Until.Format(time.RFC3339),
	})
	if err != nil {
		panic(err) // the template and its data are ours, and so is the buffer
	}
	return newDocument(html.Bytes(), "utf-8")
}

// PlainText returns the default page as plain text. It must not be changed.
func PlainText(c Content) []byte {
	if c == (Content{}) {
		return stockText
	}
	text := stockSentence
	if c.Message != "" {
		text = "Down for maintenance. " + c.Message
	}
	if !c.Until.IsZero() {
		text += "\nIt is expected back at " + formatUntil(c.Until) + "."
	}
	return []byte(text + "\n")
}

// Problem returns the default page as a JSON problem (RFC 9457). The fields after detail are
// extension members (section 3.2).
func Problem(c Content, retryAfter int64) []byte {
	body, err := json.Marshal(struct {
		Title       string    `json:"title"`
		Status      int       `json:"status"`
		Detail      string    `json:"detail,omitempty"`
		RetryAfter  int64     `json:"retry_after"`
		Until       time.Time `json:"until,omitzero"`
		Maintenance bool      `json:"maintenance"`
	}{"Service Unavailable", http.StatusServiceUnavailable, c.Message, retryAfter, c.Until, true})
	if err != nil {
		panic(err) // strings, numbers and a time that was parsed from text
	}
	return append(body, '\n')
}

// formatUntil formats the end of a maintenance for visitors. It returns "" for zero.
func formatUntil(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Format("2006-01-02 15:04 MST")
}

// Seconds returns d in whole seconds for Retry-After and Refresh, rounded up and at least 1.
func Seconds(d time.Duration) int64 {
	seconds := int64(d / time.Second)
	if d%time.Second > 0 {
		seconds++
	}
	return max(1, seconds)
}

const maxSpread = 60 // seconds

// SecondsUntil returns the seconds until the end of a maintenance. It adds a random tenth or
// less, at most a minute, so that clients do not all come back at once.
func SecondsUntil(end, now time.Time) int64 {
	seconds := Seconds(end.Sub(now))
	return seconds + rand.Int64N(min(seconds/10, maxSpread)+1) //nolint:gosec // no secret
}

// The placeholders of a custom page.
const (
	messagePlaceholder = "{maintenance.message}"
	untilPlaceholder   = "{maintenance.until}"
)

// render renders the page with its placeholders replaced.
func (c *Copy) render(content Content) *Document {
	html := strings.NewReplacer(
		messagePlaceholder, c.escape(content.Message),
		untilPlaceholder, c.escape(formatUntil(content.Until)),
	).Replace(string(c.HTML))
	return newDocument([]byte(html), c.Charset)
}

// escape escapes text for use in the page's text and attributes. For a charset other than
// UTF-8 it returns ASCII, which other charsets contain.
func (c *Copy) escape(text string) string {
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
