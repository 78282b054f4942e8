package maintenance

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"

	"example.com/caddy-maintenance/internal/api"
	"example.com/caddy-maintenance/internal/page"
	"example.com/caddy-maintenance/internal/site"
	"example.com/caddy-maintenance/internal/store"
)

// pages holds a custom page for each source in a loaded config, so that a reload neither
// loses the copy of a page nor disturbs the loop that refreshes it.
var pages = caddy.NewUsagePool()

// fetcher fetches the pages of all configs, so that its limit holds for the process.
var fetcher = page.NewFetcher()

const (
	// restorePatience is how long visitors wait for the copy in storage if there is none
	// in memory. That is so only just after a page has come into the config.
	restorePatience = 2 * time.Second

	maxCopyAccesses = 32
)

// pooledPage is a custom page in the pool. It owns the loop that refreshes the page. The
// loop begins with the first config that runs, goes on across reloads, and ends when no
// config names the page any more.
type pooledPage struct {
	*page.Page
	ctx  context.Context // ends with the loop
	end  context.CancelFunc
	user atomic.Pointer[configPages] // of the running config; nil before the first one runs

	// storage holds a token while the copy is read from storage or written there.
	// storageFailed, guarded by it, is set when that failed and was logged.
	storage       chan struct{}
	storageFailed bool
}

func newPooledPage(source page.Source) *pooledPage {
	p := &pooledPage{Page: page.New(source), storage: make(chan struct{}, 1)}
	p.ctx, p.end = context.WithCancel(context.Background())
	return p
}

// Destruct ends the loop.
func (p *pooledPage) Destruct() error {
	p.end()
	return nil
}

// configPages are the custom pages of a config, and what their loops use of it while it
// runs.
type configPages struct {
	number  int64 // later configs have higher numbers
	ctx     context.Context
	log     *zap.Logger
	storage certmagic.Storage
	used    map[*pooledPage]bool
	sites   *configSites

	// accesses limits how many copies are read or written at once, and so what a storage
	// that hangs can tie up. Records, on which sites depend, have a separate limit.
	accesses chan struct{}
}

// siteView is a page as a site of a config shows it.
type siteView struct {
	*page.View
	page *pooledPage // nil for the default page
}

var configsLoaded atomic.Int64

func newConfigPages(ctx context.Context, log *zap.Logger, storage certmagic.Storage, sites *configSites) *configPages {
	return &configPages{
		number:   configsLoaded.Add(1),
		ctx:      ctx,
		log:      log,
		storage:  storage,
		sites:    sites,
		used:     make(map[*pooledPage]bool),
		accesses: make(chan struct{}, maxCopyAccesses),
	}
}

// Setting up, one handler after the other

// use sets the custom page that a site shows. The caller must delete it from the pool.
// content is that of a file; it is shown until the file is read again.
func (c *configPages) use(s *configuredSite, source page.Source, content *page.Copy) *siteView {
	pooled, known, _ := pages.LoadOrNew(source.Location(), func() (caddy.Destructor, error) { return newPooledPage(source), nil })
	p := pooled.(*pooledPage)
	switch {
	case known:
	case content != nil:
		p.Restore(content)
	default:
		time.AfterFunc(restorePatience, func() { p.Restore(nil) })
		go c.restore(p)
	}
	if !c.used[p] && source.Insecure() {
		c.log.Warn("page is fetched over plain http and can be tampered with; use https",
			zap.Stringer("page", source))
	}
	c.used[p] = true
	return s.viewOf(p)
}

// viewOf returns the site's view of a custom page, or of the default page if p is nil.
// Its handlers share it.
func (s *configuredSite) viewOf(p *pooledPage) *siteView {
	return s.views.findOrAdd(func(v *siteView) bool { return v.page == p }, func() *siteView {
		v := &siteView{page: p, View: page.NewView(nil)}
		if p != nil {
			v.View = page.NewView(p.Page)
		}
		return v
	})
}

// Running

// run begins to refresh the pages, now that this is the running config.
func (c *configPages) run() {
	for p := range c.used {
		c.render(p)
		p.serve(c)
	}
}

// serve makes the loop use c, unless it already uses a later config. It refreshes the page
// at once.
func (p *pooledPage) serve(c *configPages) {
	for {
		last := p.user.Load()
		if last != nil && last.number >= c.number {
			return
		}
		if !p.user.CompareAndSwap(last, c) {
			continue
		}
		if last == nil {
			go p.refresh()
		} else {
			p.RefreshNow()
		}
		return
	}
}

// refresh refreshes the page until no config names it any more.
func (p *pooledPage) refresh() {
	for {
		result, ok := p.Next(p.ctx, fetcher)
		if !ok {
			return
		}
		c := p.user.Load()
		c.logResult(p, result)
		switch {
		case result.Err == nil && p.Source().Remote():
			go c.store(p)
		case result.Err != nil && p.Copy() == nil:
			go c.restore(p) // the storage may have failed before
		}
		c.render(p)
	}
}

func (c *configPages) logResult(p *pooledPage, result page.Result) {
	switch {
	case result.Err != nil && !result.FailedBefore:
		c.logger().Warn("page cannot be fetched; visitors get the last good copy, or the default page if there is none",
			zap.Stringer("page", p.Source()), zap.Error(result.Err))
	case result.Err == nil && result.FailedBefore:
		c.logger().Info("page can be fetched again", zap.Stringer("page", p.Source()))
	}
}

// logger returns the logger of the config, or Caddy's if that may be closed: the loop uses a
// config until the next one replaces it, a moment after its end.
func (c *configPages) logger() *zap.Logger {
	if c.ctx.Err() != nil {
		return caddy.Log().Named("maintenance")
	}
	return c.log
}

// Rendering ahead, so that no visitor waits for it

// render renders a page for the closed sites that show it.
func (c *configPages) render(p *pooledPage) {
	for s := range c.sites.inMemory() {
		if st := s.view(); st.Blocks() {
			for _, v := range s.views.all() {
				if v.page == p {
					v.Render(contentOf(st.Options()), st.Changed())
				}
			}
		}
	}
}

// renderPages renders the pages of a site for its new state.
func (s *configuredSite) renderPages(st site.View) {
	for _, v := range s.views.all() {
		v.Render(contentOf(st.Options()), st.Changed())
	}
}

// forgetPages drops what was rendered for a maintenance that is over.
func (s *configuredSite) forgetPages() {
	for _, v := range s.views.all() {
		v.Forget()
	}
}

// refreshPages starts a refresh of the site's custom pages.
func (s *configuredSite) refreshPages() {
	for _, v := range s.views.all() {
		if v.page != nil {
			v.page.RefreshNow()
		}
	}
}

// The copy in storage, for a restart while the page's host is down

// copyKey returns the storage key of a page's copy. The location is hashed: it may contain a
// secret.
func copyKey(s page.Source) string {
	return fmt.Sprintf("maintenance/pages/%x.json", sha256.Sum256([]byte(s.Location())))
}

// restore shows the copy from storage, unless there is a newer one.
func (c *configPages) restore(p *pooledPage) {
	defer p.Restore(nil)
	ctx, release, ok := c.acquire(p)
	if !ok {
		return
	}
	defer release()
	stored, err := c.load(ctx, p)
	c.logAccess(ctx, p, "read from", err)
	if stored == nil {
		return
	}
	p.Restore(stored)
	if user := p.user.Load(); user != nil {
		user.render(p)
	}
}

// store stores the copy, unless the storage has the same one.
func (c *configPages) store(p *pooledPage) {
	ctx, release, ok := c.acquire(p)
	if !ok {
		return
	}
	defer release()
	good := p.Copy()
	if stored, err := c.load(ctx, p); err == nil && stored != nil && stored.SameAs(good) {
		c.logAccess(ctx, p, "", nil)
		return
	}
	raw, err := json.Marshal(good)
	if err == nil {
		err = c.storage.Store(ctx, copyKey(p.Source()), raw)
	}
	c.logAccess(ctx, p, "written to", err)
}

// load returns the copy from storage, nil if there is none.
func (c *configPages) load(ctx context.Context, p *pooledPage) (*page.Copy, error) {
	raw, err := c.storage.Load(ctx, copyKey(p.Source()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return page.ParseCopy(raw)
}

// acquire waits for the page's turn to use the storage. It gives up after store.Timeout, or
// when the config ends.
func (c *configPages) acquire(p *pooledPage) (ctx context.Context, release func(), ok bool) {
	ctx, cancel := context.WithTimeoutCause(c.ctx, store.Timeout, store.ErrSilent)
	if !take(ctx, p.storage) {
		cancel()
		return nil, nil, false
	}
	if !take(ctx, c.accesses) {
		<-p.storage
		cancel()
		return nil, nil, false
	}
	return ctx, func() {
		<-c.accesses
		<-p.storage
		cancel()
	}, true
}

func take(ctx context.Context, slots chan<- struct{}) bool {
	select {
	case slots <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// logAccess logs a failure of the storage once. The end of the config is not a failure.
func (c *configPages) logAccess(ctx context.Context, p *pooledPage, doing string, err error) {
	if ctx.Err() != nil && !errors.Is(context.Cause(ctx), store.ErrSilent) {
		return
	}
	if err != nil && !p.storageFailed {
		c.logger().Warn("copy of the page cannot be "+doing+" storage; after a restart, visitors get the default page until the page can be fetched",
			zap.Stringer("page", p.Source()), zap.Error(err))
	}
	p.storageFailed = err != nil
}

// pageStatuses returns the site's custom pages, sorted by source, as the admin API has them.
func (s *configuredSite) pageStatuses() []api.Page {
	list := []api.Page{}
	for _, v := range s.views.all() {
		if v.page != nil {
			list = append(list, api.Page(v.page.Status()))
		}
	}
	slices.SortFunc(list, func(x, y api.Page) int { return strings.Compare(x.Source, y.Source) })
	return list
}
