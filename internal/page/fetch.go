package page

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	fetchTimeout  = 10 * time.Second
	maxFetches    = 32 // at once; limits what hanging hosts can tie up
	maxHeaders    = 64 << 10
	maxValidator  = 1024 // bytes of an ETag or date
	maxRedirects  = 5
	maxFetchError = 300 // bytes
)

var (
	errTooLarge   = fmt.Errorf("the page is larger than %d MiB", maxSize>>20)
	errHostSilent = fmt.Errorf("no complete response within %s", fetchTimeout)
)

// Fetcher fetches custom pages, at most 32 at once.
type Fetcher struct {
	client *http.Client
	slots  chan struct{}
}

// NewFetcher returns a fetcher. It waits at most 10 seconds for a page's host, keeps no
// connection open, and follows redirects only to https or to the same scheme, host and port.
func NewFetcher() *Fetcher {
	return &Fetcher{
		client: &http.Client{
			Transport: &http.Transport{
				Proxy:                  http.ProxyFromEnvironment,
				ForceAttemptHTTP2:      true,
				DisableKeepAlives:      true,
				MaxResponseHeaderBytes: maxHeaders,
			},
			CheckRedirect: checkRedirect,
		},
		slots: make(chan struct{}, maxFetches),
	}
}

// fetch returns the current page, or nil if it has not changed since last.
func (f *Fetcher) fetch(ctx context.Context, s Source, last *Copy) (*Copy, error) {
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if !s.remote {
		return readFile(s.location)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, fetchTimeout, errHostSilent)
	defer cancel()
	c, err := f.get(ctx, s.location, last)
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, errors.New(truncateTo(maxFetchError, redact(unwrapURLError(err).Error())))
	}
	return c, nil
}

func (f *Fetcher) get(ctx context.Context, location string, last *Copy) (*Copy, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, location, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "text/html, */*;q=0.5")
	request.Header.Set("User-Agent", "caddy-maintenance")
	conditional := false
	if last != nil {
		conditional = setIfShort(request.Header, "If-None-Match", last.ETag) || conditional
		conditional = setIfShort(request.Header, "If-Modified-Since", last.LastModified) || conditional
	}
	response, err := f.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusNotModified && conditional {
		return nil, nil
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("got status %d, want 200", response.StatusCode)
	}
	if encoding := response.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return nil, fmt.Errorf("got Content-Encoding %s, want gzip or none", truncate(fmt.Sprintf("%q", encoding)))
	}
	content, err := readAll(response.Body)
	if err != nil {
		return nil, err
	}
	return newCopy(content, response.Header)
}

// setIfShort sets a header, unless the value is so long that the host may reject the request.
func setIfShort(header http.Header, name, value string) bool {
	if value == "" || len(value) > maxValidator {
		return false
	}
	header.Set(name, value)
	return true
}

// checkRedirect limits where a page's host can send Caddy.
func checkRedirect(next *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	from := via[len(via)-1].URL
	same := next.URL.Scheme == from.Scheme && strings.EqualFold(next.URL.Hostname(), from.Hostname()) && port(next.URL) == port(from)
	if next.URL.Scheme != "https" && !same {
		return fmt.Errorf("invalid redirect to %s: must lead to https, or to the same scheme, host and port", truncate(withoutSecrets(next.URL)))
	}
	next.Header.Del("Referer") // it contains the query of the page's URL
	return nil
}

func port(u *url.URL) string {
	if u.Port() == "" && u.Scheme == "http" {
		return "80"
	}
	return u.Port()
}

// unwrapURLError returns the cause of an error of net/url or net/http, without the URL that
// they put around it.
func unwrapURLError(err error) error {
	for outer := new(url.Error); errors.As(err, &outer); {
		err = outer.Err
	}
	return err
}

func readFile(path string) (*Copy, error) {
	// Opening a FIFO would wait for someone to write to it.
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", path, unwrapPathError(err))
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", path, unwrapPathError(err))
	}
	defer file.Close()
	content, err := readAll(file)
	if err == nil && !isNamedHTML(path) && !beginsLikeHTML(content) {
		// A wrong path must not expose another file to visitors.
		err = errors.New("the file is not named .html and does not start like HTML")
	}
	var c *Copy
	if err == nil {
		c, err = newCopy(content, http.Header{"Content-Type": {"text/html"}})
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, unwrapPathError(err))
	}
	return c, nil
}

func isNamedHTML(path string) bool {
	return slices.Contains([]string{".html", ".htm", ".xhtml"}, strings.ToLower(filepath.Ext(path)))
}

// unwrapPathError returns the cause of an error, without the operation and path around it.
func unwrapPathError(err error) error {
	if outer := new(fs.PathError); errors.As(err, &outer) {
		return outer.Err
	}
	return err
}

func readAll(r io.Reader) ([]byte, error) {
	content, err := io.ReadAll(io.LimitReader(r, maxSize+1))
	if err == nil && len(content) > maxSize {
		return nil, errTooLarge
	}
	return content, err
}
