package page

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	maxSize         = 1 << 20
	maxPlaceholders = 100 // limits how much a message can enlarge a page
)

// Copy is a custom page as fetched. It is stored as JSON. Do not change a copy after passing
// it to Page or View.
type Copy struct {
	HTML         []byte    `json:"html"`
	Charset      string    `json:"charset"`
	ETag         string    `json:"etag,omitempty"`
	LastModified string    `json:"last_modified,omitempty"`
	FetchedAt    time.Time `json:"fetched_at"`

	// document is the page as shown. It is nil if the page has placeholders, since each site
	// fills them in differently.
	document *Document
}

var (
	charsets = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:+-]{0,39}$`)
	bom      = []byte("\ufeff")
)

// newCopy checks that content is a page.
func newCopy(content []byte, header http.Header) (*Copy, error) {
	c := &Copy{
		HTML:         bytes.TrimPrefix(content, bom),
		Charset:      "utf-8",
		ETag:         header.Get("Etag"),
		LastModified: header.Get("Last-Modified"),
		FetchedAt:    now(),
	}
	mediaType, parameters, _ := mime.ParseMediaType(header.Get("Content-Type"))
	given := truncate(header.Get("Content-Type"))
	switch {
	case mediaType == "text/html", mediaType == "application/xhtml+xml":
	case given == "", mediaType == "application/octet-stream", mediaType == "binary/octet-stream":
		if !beginsLikeHTML(content) {
			return nil, fmt.Errorf("got Content-Type %q and content that does not start like HTML, want text/html", given)
		}
	default:
		return nil, fmt.Errorf("got Content-Type %q, want text/html", given)
	}
	// A byte order mark is more reliable than the header.
	if charset := parameters["charset"]; charset != "" && !bytes.HasPrefix(content, bom) {
		c.Charset = strings.ToLower(charset)
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	return c, nil
}

// ParseCopy returns a copy that was stored.
func ParseCopy(raw []byte) (*Copy, error) {
	c := new(Copy)
	if err := json.Unmarshal(raw, c); err != nil {
		return nil, err
	}
	if len(c.HTML) > maxSize {
		return nil, errTooLarge
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	return c, nil
}

// check checks the requirements that fetched and stored pages share.
func (c *Copy) check() error {
	if len(bytes.TrimSpace(c.HTML)) == 0 {
		return errors.New("the page is empty")
	}
	if !charsets.MatchString(c.Charset) {
		return fmt.Errorf("invalid charset %s: must be the name of a charset (for example utf-8)", truncate(fmt.Sprintf("%q", c.Charset)))
	}
	if c.isUTF8() && !utf8.Valid(c.HTML) {
		return errors.New("the page is not valid UTF-8; save it as UTF-8, or name its charset in the Content-Type header")
	}
	if n := c.placeholders(); n > maxPlaceholders {
		return fmt.Errorf("the page has %d placeholders, the limit is %d", n, maxPlaceholders)
	}
	return nil
}

// prepare sets the document of a page without placeholders.
func (c *Copy) prepare() {
	if c.placeholders() == 0 {
		c.document = newDocument(c.HTML, c.Charset)
	}
}

// SameAs reports whether two copies are equal, regardless of when they were fetched.
func (c *Copy) SameAs(other *Copy) bool {
	return bytes.Equal(c.HTML, other.HTML) && c.Charset == other.Charset &&
		c.ETag == other.ETag && c.LastModified == other.LastModified
}

func (c *Copy) isUTF8() bool { return c.Charset == "utf-8" || c.Charset == "utf8" }

func (c *Copy) placeholders() int { return c.count(messagePlaceholder) + c.count(untilPlaceholder) }

// count returns how often a placeholder occurs in the page.
func (c *Copy) count(placeholder string) int {
	return bytes.Count(c.HTML, []byte(placeholder))
}

func beginsLikeHTML(content []byte) bool {
	return strings.HasPrefix(http.DetectContentType(bytes.TrimPrefix(content, bom)), "text/html")
}

func now() time.Time { return time.Now().UTC().Truncate(time.Second) }

// truncate shortens what a page's host has sent, so that an error stays readable.
func truncate(s string) string { return truncateTo(80, s) }

func truncateTo(limit int, s string) string {
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}
