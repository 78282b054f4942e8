package maintenance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
)

// customPages holds the custom page of each source that a loaded config names,
// so that a reload neither loses the copy of a page nor fetches it twice.
var customPages = caddy.NewUsagePool()

// customPage is a page of the operator's own: where it comes from, and the last
// good copy of it. The running config fetches it; visitors are only ever shown
// the copy.
type customPage struct {
	pageSource
	copy     atomic.Pointer[pageCopy]
	recalled chan struct{} // closed when the copy in storage has been looked for
	wanted   chan struct{} // asks for the page to be fetched now
	storing  chan struct{} // holds a token while the copy is being stored

	mu        sync.Mutex
	disown    context.CancelFunc // ends the work of the config that fetches the page
	fetchedAt time.Time          // when the copy was last known to be the page
	tried     bool               // it is known how the last attempt to get the page ended
	failure   string             // why it failed, if it did
}

const (
	maxPage        = 1 << 20
	maxPageHeaders = 64 << 10
	maxRedirects   = 5
	fetchTimeout   = 10 * time.Second
	fetchInterval  = 10 * time.Minute
	minRetry       = 5 * time.Second

	maxFetches = 32
)

var errPageHostSilent = fmt.Errorf("no complete answer within %s", fetchTimeout)

func newCustomPage(source pageSource) *customPage {
	return &customPage{
		pageSource: source,
		recalled:   make(chan struct{}),
		wanted:     make(chan struct{}, 1),
		storing:    make(chan struct{}, 1),
	}
}

// Where a page comes from

// pageSource is the URL or the absolute path of a page.
type pageSource struct {
	location string
	remote   bool
}

// parsePageSource tells URLs from files. It does not look at the file.
func parsePageSource(page string) (pageSource, error) {
	if strings.HasPrefix(page, "//") {
		page = "https:" + page
	}
	if !strings.Contains(page, "://") {
		path, err := filepath.Abs(page)
		return pageSource{location: path}, err
	}
	source := pageSource{location: page, remote: true}
	u, err := url.Parse(page)
	if err != nil {
		return source, fmt.Errorf("page: %q given, which is no URL: %w", source, bare(err))
	}
	if u.Scheme != "https" && u.Scheme != "http" {
		return source, fmt.Errorf("page: %q given, accepted are https, http, and for a file its path without a scheme", source)
	}
	if u.Hostname() == "" {
		return source, fmt.Errorf("page: %q given, which names no host", source)
	}
	return source, nil
}

// checkPage refuses a page that cannot be shown, as far as that can be told
// without fetching it, and returns the content of a file.
func checkPage(page string) (pageSource, *pageCopy, error) {
	if page == "" {
		return pageSource{}, nil, nil
	}
	source, err := parsePageSource(page)
	if err != nil || source.remote {
		return source, nil, err
	}
	c, err := readPage(source.location)
	if errors.Is(err, fs.ErrNotExist) && looksLikeURL(page) {
		err = fmt.Errorf("%w; did you mean https://%s?", err, page)
	}
	if err != nil {
		return source, nil, fmt.Errorf("page: %w", err)
	}
	return source, c, nil
}

// looksLikeURL reports whether it may be the scheme that is missing.
func looksLikeURL(page string) bool {
	host, _, hasPath := strings.Cut(page, "/")
	return strings.ContainsAny(host, ".:") && !strings.HasPrefix(host, ".") &&
		(hasPath || !strings.HasPrefix(filepath.Ext(host), ".htm"))
}

// secrets are what must not be shown of a URL, or of one in an error: userinfo
// and query.
var secrets = regexp.MustCompile(`(//)[^/?#"]*@|[?#][^\s"]*`)

func redact(s string) string { return secrets.ReplaceAllString(s, "$1") }

// String is the source without its secrets.
func (s pageSource) String() string {
	if s.remote {
		return redact(s.location)
	}
	return s.location
}

// key is where the copy is stored.
func (s pageSource) key() string {
	return fmt.Sprintf("maintenance/pages/%x.json", sha256.Sum256([]byte(s.location)))
}

// inTheClear reports whether the page can be changed on its way here.
func (s pageSource) inTheClear() bool {
	u, err := url.Parse(s.location)
	if !s.remote || err != nil || u.Scheme == "https" {
		return false
	}
	host := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
	ip := net.ParseIP(host)
	return host != "localhost" && !strings.HasSuffix(host, ".localhost") && !ip.IsLoopback()
}

// bare takes off what net/url and net/http put around an error, which names
// the URL.
func bare(err error) error {
	for outer := new(url.Error); errors.As(err, &outer); {
		err = outer.Err
	}
	return err
}

// Getting a page

// get returns the page as it is now, or nil if it has not changed since last.
func (s pageSource) get(ctx context.Context, client *http.Client, last *pageCopy) (*pageCopy, error) {
	if !s.remote {
		return readPage(s.location)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, fetchTimeout, errPageHostSilent)
	defer cancel()
	c, err := s.fetch(ctx, client, last)
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, errors.New(redact(bare(err).Error()))
	}
	return c, nil
}

func (s pageSource) fetch(ctx context.Context, client *http.Client, last *pageCopy) (*pageCopy, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.location, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "text/html, */*;q=0.5")
	request.Header.Set("User-Agent", "caddy-maintenance")
	if last != nil && last.ETag != "" {
		request.Header.Set("If-None-Match", last.ETag)
	}
	if last != nil && last.LastModified != "" {
		request.Header.Set("If-Modified-Since", last.LastModified)
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusNotModified && last != nil {
		return nil, nil
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it is answered with status %d, 200 is accepted", response.StatusCode)
	}
	if encoding := response.Header.Get("Content-Encoding"); encoding != "" {
		return nil, fmt.Errorf("its Content-Encoding is %s, gzip or none is accepted", abridge(fmt.Sprintf("%q", encoding)))
	}
	content, err := readLimited(response.Body)
	if err != nil {
		return nil, err
	}
	return newPageCopy(content, response.Header)
}

// newPageClient returns a client that waits for nobody longer than it has to,
// and that no page's host can lead where the operator has not.
func newPageClient() *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxResponseHeaderBytes = maxPageHeaders
	transport.DisableKeepAlives = true
	return &http.Client{Transport: transport, CheckRedirect: checkRedirect}
}

func checkRedirect(next *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	from := via[len(via)-1].URL
	if next.URL.Scheme != "https" && (next.URL.Scheme != from.Scheme || !strings.EqualFold(next.URL.Host, from.Host)) {
		return fmt.Errorf("a redirect to %s, followed is one to https or to the same scheme, host and port", abridge(redact(next.URL.String())))
	}
	next.Header.Del("Referer") // which has the query of the page's URL
	return nil
}

func readPage(path string) (*pageCopy, error) {
	// Opening a FIFO would wait for someone to write to it.
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", path, unwrapPath(err))
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", path, unwrapPath(err))
	}
	defer file.Close()
	content, err := readLimited(file)
	if err == nil {
		var c *pageCopy
		if c, err = newPageCopy(content, http.Header{"Content-Type": {"text/html"}}); err == nil {
			return c, nil
		}
	}
	return nil, fmt.Errorf("%s: %w", path, unwrapPath(err))
}

// unwrapPath takes the path off an error that has it in another form.
func unwrapPath(err error) error {
	if outer := new(fs.PathError); errors.As(err, &outer) {
		return outer.Err
	}
	return err
}

func readLimited(r io.Reader) ([]byte, error) {
	content, err := io.ReadAll(io.LimitReader(r, maxPage+1))
	if err == nil && len(content) > maxPage {
		err = fmt.Errorf("it is larger than %d bytes", maxPage)
	}
	return content, err
}

// A copy of a page

// pageCopy is a page as it was fetched, which is how it is stored too.
type pageCopy struct {
	HTML         []byte    `json:"html"`
	Charset      string    `json:"charset"`
	ETag         string    `json:"etag,omitempty"`
	LastModified string    `json:"last_modified,omitempty"`
	FetchedAt    time.Time `json:"fetched_at"`

	// plain is the page as it is shown, nil if it says something about the
	// maintenance: then each site has its own.
	plain func() *document
}

var (
	charsets = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:+-]{0,39}$`)
	bom      = []byte("\ufeff")
)

// newPageCopy checks that content is a page.
func newPageCopy(content []byte, header http.Header) (*pageCopy, error) {
	c := &pageCopy{
		HTML:         bytes.TrimPrefix(content, bom),
		Charset:      "utf-8",
		ETag:         header.Get("ETag"),
		LastModified: header.Get("Last-Modified"),
		FetchedAt:    now(),
	}
	given := header.Get("Content-Type")
	mediaType, parameters, _ := mime.ParseMediaType(given)
	switch {
	case mediaType == "text/html", mediaType == "application/xhtml+xml":
	case given == "", mediaType == "application/octet-stream", mediaType == "binary/octet-stream":
		if !strings.HasPrefix(http.DetectContentType(c.HTML), "text/html") {
			return nil, fmt.Errorf("its Content-Type is %q and it does not begin like HTML; text/html is accepted", given)
		}
	default:
		return nil, fmt.Errorf("its Content-Type is %s, text/html is accepted", abridge(fmt.Sprintf("%q", given)))
	}
	if charset := parameters["charset"]; charset != "" {
		c.Charset = strings.ToLower(charset)
	}
	return c, c.complete()
}

// complete checks what a page has to be, wherever it comes from, and prepares
// it to be shown.
func (c *pageCopy) complete() error {
	if len(bytes.TrimSpace(c.HTML)) == 0 {
		return errors.New("it is empty")
	}
	if !charsets.MatchString(c.Charset) {
		return fmt.Errorf("its charset is %s, a name such as utf-8 is accepted", abridge(fmt.Sprintf("%q", c.Charset)))
	}
	if c.isUTF8() && !utf8.Valid(c.HTML) {
		return errors.New("it is not valid UTF-8; save it as UTF-8, or name its charset in the Content-Type")
	}
	if !c.says(messagePlaceholder) && !c.says(untilPlaceholder) {
		c.plain = sync.OnceValue(func() *document { return newDocument(c.HTML, c.Charset) })
	}
	return nil
}

func parsePageCopy(raw []byte) (*pageCopy, error) {
	c := new(pageCopy)
	if err := json.Unmarshal(raw, c); err != nil {
		return nil, err
	}
	if len(c.HTML) > maxPage {
		return nil, fmt.Errorf("it is larger than %d bytes", maxPage)
	}
	return c, c.complete()
}

func (c *pageCopy) isUTF8() bool { return c.Charset == "utf-8" || c.Charset == "utf8" }

// says reports whether a placeholder is in the page.
func (c *pageCopy) says(placeholder string) bool {
	return bytes.Contains(c.HTML, []byte(placeholder))
}

// sameAs reports whether two copies are the same, whenever they were fetched.
func (c *pageCopy) sameAs(other *pageCopy) bool {
	return bytes.Equal(c.HTML, other.HTML) && c.Charset == other.Charset &&
		c.ETag == other.ETag && c.LastModified == other.LastModified
}

// How a page stands

// pageStatus is a custom page as the admin API answers it.
type pageStatus struct {
	Source       string    `json:"source"`
	State        string    `json:"state"`
	FetchedAt    time.Time `json:"fetched_at,omitzero"`
	Error        string    `json:"error,omitempty"`
	ShowsMessage bool      `json:"shows_message"`
}

func (p *customPage) status() pageStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := pageStatus{Source: p.String(), Error: p.failure, ShowsMessage: true}
	c := p.copy.Load()
	if c != nil {
		s.FetchedAt, s.ShowsMessage = p.fetchedAt, c.says(messagePlaceholder)
	}
	switch {
	case c != nil && p.tried && p.failure == "":
		s.State = "ok"
	case c != nil:
		s.State = "stale"
	case p.failure != "":
		s.State = "failed"
	default:
		s.State = "fetching"
	}
	return s
}

// own returns a context for the config that fetches the page from now on. That
// of the one before ends.
func (p *customPage) own(ctx context.Context) context.Context {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.disown != nil {
		p.disown()
	}
	ctx, p.disown = context.WithCancel(ctx)
	return ctx
}

// want asks for the page to be fetched now.
func (p *customPage) want() {
	select {
	case p.wanted <- struct{}{}:
	default:
	}
}

// learn takes in how an attempt to get the page ended: with a copy, nil if it
// has not changed, or an error. It tells whether the attempt before failed; mine
// is false if another config has taken the page over, and nothing was learned.
func (p *customPage) learn(ctx context.Context, c *pageCopy, err error) (failedBefore, mine bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ctx.Err() != nil {
		return false, false
	}
	failedBefore = p.failure != ""
	p.tried, p.failure = true, ""
	if err != nil {
		p.failure = err.Error()
		return failedBefore, true
	}
	p.fetchedAt = now()
	if last := p.copy.Load(); c != nil && (last == nil || !c.sameAs(last)) {
		p.copy.Store(c)
	}
	return failedBefore, true
}

// recall takes in the copy that was found in storage, unless there is a newer one.
func (p *customPage) recall(c *pageCopy) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.copy.CompareAndSwap(nil, c) {
		p.fetchedAt = c.FetchedAt
	}
}

// The work of the running config

// addPage has the config of a site's handler fetch a page. The handler must
// release it. What is given of it, a file's content, is shown until it has been.
func (a *App) addPage(m *member, source pageSource, c *pageCopy) *customPage {
	pooled, known := customPages.LoadOrStore(source.location, newCustomPage(source))
	p := pooled.(*customPage)
	if a.pages[p] == nil && source.inTheClear() {
		a.log.Warn("page comes over http, where others can change it on its way; they would speak for the site: use https",
			zap.Stringer("page", source))
	}
	if !slices.Contains(m.pages, p) {
		m.pages = append(m.pages, p)
		a.pages[p] = append(a.pages[p], m)
	}
	switch {
	case known:
	case source.remote:
		wait := a.recallPage(p)
		go func() {
			wait()
			close(p.recalled)
		}()
	default:
		p.recall(c)
		close(p.recalled)
	}
	return p
}

// recallPage begins to look for the copy of a page in storage. What it returns
// waits until it has been taken in.
func (a *App) recallPage(p *customPage) (wait func()) {
	ctx, cancel := a.patience()
	result := a.read(ctx, p.key())
	return func() {
		defer cancel()
		raw, err := await(ctx, result)
		if errors.Is(err, fs.ErrNotExist) || ctx.Err() != nil {
			return
		}
		var c *pageCopy
		if err == nil {
			c, err = parsePageCopy(raw)
		}
		if err != nil {
			a.log.Warn("the copy of a page cannot be read from storage", zap.Stringer("page", p), zap.Error(err))
			return
		}
		p.recall(c)
	}
}

// showPages renders the pages of a site that has been switched, and has them
// fetched.
func (m *member) showPages(st *state) {
	for _, p := range m.pages {
		m.document(p, st)
		p.want()
	}
}

// keepPage gets a page now, at regular times and whenever it is wanted, until
// the config ends or another one does it.
func (a *App) keepPage(p *customPage) {
	ctx := p.own(a.ctx)
	failures := 0
	for {
		pause := fetchInterval
		if a.getPage(ctx, p) {
			failures = 0
		} else {
			pause = retryAfterFailures(failures)
			failures++
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-p.wanted:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// retryAfterFailures is 5 seconds, doubled with each failure up to the interval.
func retryAfterFailures(n int) time.Duration {
	return min(minRetry<<min(n, 10), fetchInterval)
}

// getPage gets a page once, and reports whether that went well.
func (a *App) getPage(ctx context.Context, p *customPage) bool {
	select {
	case a.fetches <- struct{}{}:
		defer func() { <-a.fetches }()
	case <-ctx.Done():
		return false
	}
	c, err := p.get(ctx, a.client, p.copy.Load())
	failedBefore, mine := p.learn(ctx, c, err)
	if !mine {
		return false
	}
	switch {
	case err != nil && !failedBefore:
		a.log.Warn("page cannot be fetched; visitors get the last good copy, or the default page if there is none",
			zap.Stringer("page", p), zap.Error(err))
	case err == nil && failedBefore:
		a.log.Info("page can be fetched again", zap.Stringer("page", p))
	}
	switch {
	case err == nil:
		a.storePage(p)
	case p.copy.Load() == nil:
		a.recallPage(p)() // the storage may not have answered before
	}
	// So that no visitor has to wait for it to be rendered.
	for _, m := range a.pages[p] {
		if st := m.current(); st.blocks(m.initiallyOn) {
			m.document(p, st)
		}
	}
	return err == nil
}

// storePage stores the copy of a page that comes from elsewhere if it is not the
// one in storage, for a restart while the page's host is down. A storage that
// hangs holds up nothing but this.
func (a *App) storePage(p *customPage) {
	c := p.copy.Load()
	if !p.remote {
		return
	}
	select {
	case p.storing <- struct{}{}:
	default:
		return
	}
	go func() {
		defer func() { <-p.storing }()
		ctx, cancel := a.patience()
		defer cancel()
		raw, err := a.storage.Load(ctx, p.key())
		if err == nil {
			if stored, err := parsePageCopy(raw); err == nil && stored.sameAs(c) {
				return
			}
		}
		raw, err = json.Marshal(c)
		if err == nil && ctx.Err() == nil {
			err = a.storage.Store(ctx, p.key(), raw)
		}
		if err != nil {
			a.log.Warn("the copy of a page cannot be stored; after a restart it is missing until the page can be fetched",
				zap.Stringer("page", p), zap.Error(err))
		}
	}()
}
