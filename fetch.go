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
	lastGood atomic.Pointer[pageCopy]
	settled  chan struct{} // closed when there is a copy, or it is known that none is in storage
	settle   func()
	wanted   chan struct{} // asks for the page to be fetched now

	// storage holds a token while the copy is read from storage or written there.
	// storageFailed, guarded by it, is that this failed and has been logged.
	storage       chan struct{}
	storageFailed bool

	mu        sync.Mutex
	disown    context.CancelFunc // ends the work of the config that fetches the page
	fetchedAt time.Time          // when the copy was last known to be the page
	tried     bool               // it is known how the last attempt to get the page ended
	failure   string             // why it failed, if it did
}

const (
	maxPage         = 1 << 20
	maxPlaceholders = 100 // in a page, so that a message cannot blow it up
	maxPageHeaders  = 64 << 10
	maxPageError    = 300
	maxValidator    = 1024 // an ETag, say
	maxRedirects    = 5
	fetchTimeout    = 10 * time.Second
	fetchInterval   = 10 * time.Minute
	minRetry        = 5 * time.Second

	// recallPatience is how long visitors wait for the copy in storage, if there is
	// none in memory, which is so only when a page has just come into the config.
	recallPatience = 2 * time.Second

	maxFetches   = 32 // at once, and so what hosts that hang can tie up
	maxPageReads = 32
)

var errPageHostSilent = fmt.Errorf("no complete answer within %s", fetchTimeout)

func newCustomPage(source pageSource) *customPage {
	settled := make(chan struct{})
	return &customPage{
		pageSource: source,
		settled:    settled,
		settle:     sync.OnceFunc(func() { close(settled) }),
		wanted:     make(chan struct{}, 1),
		storage:    make(chan struct{}, 1),
	}
}

// Where a page comes from

// pageSource is the URL or the absolute path of a page.
type pageSource struct {
	location string
	shown    string // the location without userinfo and query, which may be secret
	remote   bool
}

// String is the source as it is shown.
func (s pageSource) String() string { return s.shown }

// parsePageSource tells URLs from files. It does not look at the file.
func parsePageSource(page string) (pageSource, error) {
	if strings.HasPrefix(page, "//") {
		page = "https:" + page
	}
	if !strings.Contains(page, "://") {
		path, err := filepath.Abs(page)
		return pageSource{location: path, shown: path}, err
	}
	u, err := url.Parse(page)
	if err != nil {
		// Neither what is given nor the error is shown: a password may be what is wrong.
		return pageSource{}, errors.New("page: the URL given cannot be parsed; " +
			"in a password or query, percent-encode what is not a letter, digit, or one of - . _ ~")
	}
	source := pageSource{location: page, shown: withoutSecrets(u), remote: true}
	if u.Scheme != "https" && u.Scheme != "http" {
		return source, fmt.Errorf("page: %q given, accepted are https, http, and for a file its path without a scheme", source)
	}
	if u.Hostname() == "" {
		return source, errors.New("page: the URL given names no host")
	}
	return source, nil
}

// checkPage refuses a page that cannot be shown, as far as that can be told
// without fetching it, and returns the content of a file.
func checkPage(page string) (pageSource, *pageCopy, error) {
	if page = strings.TrimSpace(page); page == "" {
		return pageSource{}, nil, nil
	}
	source, err := parsePageSource(page)
	if err != nil || source.remote {
		return source, nil, err
	}
	c, err := readPage(source.location)
	if errors.Is(err, fs.ErrNotExist) && looksLikeURL(page) {
		return source, nil, fmt.Errorf("page: %s; did you mean https:%s?", redact(err.Error()), redact("//"+scheme.ReplaceAllString(page, "")))
	}
	if err != nil {
		return source, nil, fmt.Errorf("page: %w", err)
	}
	return source, c, nil
}

// scheme is one that lacks a slash or two.
var scheme = regexp.MustCompile(`(?i)^https?:/?`)

// looksLikeURL reports whether it may be the scheme that is missing.
func looksLikeURL(page string) bool {
	host, _, hasPath := strings.Cut(page, "/")
	return strings.ContainsAny(host, ".:") && !strings.HasPrefix(host, ".") && !strings.Contains(page, "{") &&
		(hasPath || !strings.HasPrefix(filepath.Ext(host), ".htm"))
}

// withoutSecrets is a URL without userinfo and query.
func withoutSecrets(u *url.URL) string {
	public := *u
	public.User, public.RawQuery, public.ForceQuery, public.Fragment, public.RawFragment = nil, "", false, "", ""
	return public.String()
}

// urlSecrets are userinfo and query of a URL in a text.
var urlSecrets = regexp.MustCompile(`(/)[^/?#"]*@|[?#][^\s"]*`)

func redact(s string) string { return urlSecrets.ReplaceAllString(s, "$1") }

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
		return nil, errors.New(abridgeTo(maxPageError, redact(bare(err).Error())))
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
	conditional := false
	if last != nil {
		conditional = setIfShort(request.Header, "If-None-Match", last.ETag) || conditional
		conditional = setIfShort(request.Header, "If-Modified-Since", last.LastModified) || conditional
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusNotModified && conditional {
		return nil, nil
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it is answered with status %d, 200 is accepted", response.StatusCode)
	}
	if encoding := response.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return nil, fmt.Errorf("its Content-Encoding is %s, gzip or none is accepted", abridge(fmt.Sprintf("%q", encoding)))
	}
	content, err := readLimited(response.Body)
	if err != nil {
		return nil, err
	}
	return newPageCopy(content, response.Header)
}

// setIfShort sets a header, but not to what its host would not take back.
func setIfShort(header http.Header, name, value string) bool {
	if value == "" || len(value) > maxValidator {
		return false
	}
	header.Set(name, value)
	return true
}

// newPageClient returns a client that waits for nobody longer than it has to,
// and that no page's host can lead where the operator has not.
func newPageClient() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			ForceAttemptHTTP2:      true,
			DisableKeepAlives:      true,
			MaxResponseHeaderBytes: maxPageHeaders,
		},
		CheckRedirect: checkRedirect,
	}
}

func checkRedirect(next *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	from := via[len(via)-1].URL
	same := next.URL.Scheme == from.Scheme && strings.EqualFold(next.URL.Hostname(), from.Hostname()) && port(next.URL) == port(from)
	if next.URL.Scheme != "https" && !same {
		return fmt.Errorf("a redirect to %s, followed is one to https or to the same scheme, host and port", abridge(withoutSecrets(next.URL)))
	}
	next.Header.Del("Referer") // which has the query of the page's URL
	return nil
}

func port(u *url.URL) string {
	if u.Port() == "" && u.Scheme == "http" {
		return "80"
	}
	return u.Port()
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
	if err == nil && !isCalledHTML(path) && !beginsLikeHTML(content) {
		// A wrong path must not show visitors what is not meant for them.
		err = errors.New("it is not called .html, and does not begin like HTML")
	}
	var c *pageCopy
	if err == nil {
		c, err = newPageCopy(content, http.Header{"Content-Type": {"text/html"}})
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, unwrapPath(err))
	}
	return c, nil
}

func isCalledHTML(path string) bool {
	return slices.Contains([]string{".html", ".htm", ".xhtml"}, strings.ToLower(filepath.Ext(path)))
}

func beginsLikeHTML(content []byte) bool {
	return strings.HasPrefix(http.DetectContentType(bytes.TrimPrefix(content, bom)), "text/html")
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
		ETag:         header.Get("Etag"),
		LastModified: header.Get("Last-Modified"),
		FetchedAt:    now(),
	}
	mediaType, parameters, _ := mime.ParseMediaType(header.Get("Content-Type"))
	given := abridge(header.Get("Content-Type"))
	switch {
	case mediaType == "text/html", mediaType == "application/xhtml+xml":
	case given == "", mediaType == "application/octet-stream", mediaType == "binary/octet-stream":
		if !beginsLikeHTML(content) {
			return nil, fmt.Errorf("its Content-Type is %q and it does not begin like HTML", given)
		}
	default:
		return nil, fmt.Errorf("its Content-Type is %q, text/html is accepted", given)
	}
	// The mark at the beginning says more about the encoding than the header does.
	if charset := parameters["charset"]; charset != "" && !bytes.HasPrefix(content, bom) {
		c.Charset = strings.ToLower(charset)
	}
	return c.complete()
}

// complete checks what a page has to be, wherever it comes from, and prepares
// it to be shown.
func (c *pageCopy) complete() (*pageCopy, error) {
	if len(bytes.TrimSpace(c.HTML)) == 0 {
		return nil, errors.New("it is empty")
	}
	if !charsets.MatchString(c.Charset) {
		return nil, fmt.Errorf("its charset is %s, a name such as utf-8 is accepted", abridge(fmt.Sprintf("%q", c.Charset)))
	}
	if c.isUTF8() && !utf8.Valid(c.HTML) {
		return nil, errors.New("it is not valid UTF-8; save it as UTF-8, or name its charset in the Content-Type")
	}
	switch n := c.count(messagePlaceholder) + c.count(untilPlaceholder); {
	case n > maxPlaceholders:
		return nil, fmt.Errorf("it has %d placeholders, at most %d are accepted", n, maxPlaceholders)
	case n == 0:
		c.plain = sync.OnceValue(func() *document { return newDocument(c.HTML, c.Charset) })
	}
	return c, nil
}

func parsePageCopy(raw []byte) (*pageCopy, error) {
	c := new(pageCopy)
	if err := json.Unmarshal(raw, c); err != nil {
		return nil, err
	}
	if len(c.HTML) > maxPage {
		return nil, fmt.Errorf("it is larger than %d bytes", maxPage)
	}
	return c.complete()
}

func (c *pageCopy) isUTF8() bool { return c.Charset == "utf-8" || c.Charset == "utf8" }

// count returns how often a placeholder is in the page.
func (c *pageCopy) count(placeholder string) int {
	return bytes.Count(c.HTML, []byte(placeholder))
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
	c := p.lastGood.Load()
	if c != nil {
		s.FetchedAt, s.ShowsMessage = p.fetchedAt, c.count(messagePlaceholder) > 0
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

// own returns a context for the config that fetches the page from now on; that of
// the one before ends. It returns nil if the config has been replaced itself.
func (p *customPage) own(a *App) context.Context {
	p.mu.Lock()
	defer p.mu.Unlock()
	if running, err := runningApp(); err != nil || running != a {
		return nil
	}
	if p.disown != nil {
		p.disown()
	}
	ctx, disown := context.WithCancel(a.ctx)
	p.disown = disown
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
	if last := p.lastGood.Load(); c != nil && (last == nil || !c.sameAs(last)) {
		p.lastGood.Store(c)
		p.settle()
	}
	return failedBefore, true
}

// recall takes in the copy that was found in storage, unless there is a newer one.
func (p *customPage) recall(c *pageCopy) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lastGood.CompareAndSwap(nil, c) {
		p.fetchedAt = c.FetchedAt
		p.settle()
	}
}

// The work of the running config

// shownPage is a custom page as a site of a config shows it.
type shownPage struct {
	*customPage
	member *member
	last   atomic.Pointer[rendering]
}

// addPage has a site show a page, and the config fetch it. The handler must release
// it. Content is what a file holds; it is shown until it is read again. Handlers
// are provisioned one after the other, and before anything switches their sites.
func (a *App) addPage(m *member, source pageSource, content *pageCopy) *shownPage {
	pooled, known := customPages.LoadOrStore(source.location, newCustomPage(source))
	p := pooled.(*customPage)
	if !known {
		a.findPage(p, content)
	}
	for _, s := range m.pages {
		if s.customPage == p {
			return s
		}
	}
	if a.pages[p] == nil && source.inTheClear() {
		a.log.Warn("page comes over http, where others can change it on its way; they would speak for the site: use https",
			zap.Stringer("page", source))
	}
	s := &shownPage{customPage: p, member: m}
	m.pages = append(m.pages, s)
	a.pages[p] = append(a.pages[p], s)
	return s
}

// findPage finds what can be shown of a page before it is fetched.
func (a *App) findPage(p *customPage, content *pageCopy) {
	if content != nil {
		p.recall(content)
		return
	}
	time.AfterFunc(recallPatience, p.settle)
	go func() {
		defer p.settle()
		a.recallPage(a.ctx, p)
	}()
}

// recallPage looks for the copy of a page in storage.
func (a *App) recallPage(ctx context.Context, p *customPage) {
	a.withStorage(ctx, p, "read from", func(ctx context.Context) error {
		c, err := a.loadPage(ctx, p)
		if c != nil {
			p.recall(c)
		}
		return err
	})
}

// loadPage returns the copy of a page that is in storage, nil if there is none.
func (a *App) loadPage(ctx context.Context, p *customPage) (*pageCopy, error) {
	raw, err := a.storage.Load(ctx, p.key())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parsePageCopy(raw)
}

// storePage stores the copy of a page that comes from elsewhere if it is not the
// one in storage, for a restart while the page's host is down.
func (a *App) storePage(ctx context.Context, p *customPage) {
	if !p.remote {
		return
	}
	go a.withStorage(ctx, p, "written to", func(ctx context.Context) error {
		c := p.lastGood.Load()
		if stored, err := a.loadPage(ctx, p); err == nil && stored != nil && stored.sameAs(c) {
			return nil
		}
		raw, err := json.Marshal(c)
		if err != nil {
			return err
		}
		return a.storage.Store(ctx, p.key(), raw)
	})
}

// withStorage does something with the copy of a page that is in storage, one thing
// after the other. It logs a failure once.
func (a *App) withStorage(ctx context.Context, p *customPage, doing string, do func(context.Context) error) {
	ctx, cancel := context.WithTimeoutCause(ctx, storageTimeout, errStorageSilent)
	defer cancel()
	for _, slots := range []chan struct{}{p.storage, a.pageReads} {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		case <-ctx.Done():
			return
		}
	}
	err := do(ctx)
	if ctx.Err() != nil && !errors.Is(context.Cause(ctx), errStorageSilent) {
		return // the config has ended
	}
	if err != nil && !p.storageFailed {
		a.log.Warn("the copy of a page cannot be "+doing+" storage, which is where it comes from after a restart while the page's host is down",
			zap.Stringer("page", p), zap.Error(err))
	}
	p.storageFailed = err != nil
}

// showPages renders the pages of a site that has been switched, and has them
// fetched.
func (m *member) showPages(st *state) {
	for _, s := range m.pages {
		s.document(st)
		s.want()
	}
}

// forgetPages keeps no renderings of a site that is open.
func (m *member) forgetPages() {
	for _, s := range m.pages {
		s.forget()
	}
}

// keepPage gets a page now, at regular times and whenever it is wanted, until
// the config ends or another one does it.
func (a *App) keepPage(p *customPage) {
	ctx := p.own(a)
	if ctx == nil {
		return
	}
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
			failures = 0
			if ctx.Err() != nil {
				p.want() // by whom it is fetched now
			}
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
	case <-ctx.Done():
		return false
	}
	c, err := p.get(ctx, a.client, p.lastGood.Load())
	<-a.fetches
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
		a.storePage(ctx, p)
	case p.lastGood.Load() == nil:
		go a.recallPage(ctx, p) // the storage may not have answered before
	}
	// So that no visitor has to wait for it to be rendered.
	for _, s := range a.pages[p] {
		if st := s.member.current(); st.blocks(s.member.initiallyOn) {
			s.document(st)
		}
	}
	return err == nil
}
