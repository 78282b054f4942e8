package maintenance

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	weakrand "math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func init() {
	caddy.RegisterModule(new(App))
}

// App keeps the maintenance state of a config's sites in Caddy's storage, and
// follows what other instances on the same storage switch. It is there as soon
// as a `maintenance` handler is; it has to be configured only to change how
// other instances are followed.
type App struct {
	// How often to look whether another instance has switched a site: one read
	// from storage each time, however many sites there are. `100ms` to `1m`;
	// a negative value turns it off, for a single instance on slow storage.
	// Default: `2s`.
	SyncInterval caddy.Duration `json:"sync_interval,omitempty"`

	log      *zap.Logger
	events   *caddyevents.App // may be used when the config runs
	storage  certmagic.Storage
	instance string
	members  map[string]*member
	servers  map[*caddyhttp.Server]serverStop
	pages    map[*customPage][]*shownPage // as its sites show each

	ctx     caddy.Context // ends with the config
	running atomic.Bool   // this is or was the running config

	// reads limits the reads under way, and so what a storage that hangs can
	// tie up. gaveUp is set once one has waited in vain: the others do not each
	// wait in their turn.
	reads  chan struct{}
	gaveUp atomic.Bool

	client    *http.Client  // for pages
	fetches   chan struct{} // limits the pages that are being fetched
	pageReads chan struct{} // limits the copies that are being read or stored; apart from reads, on which sites depend
}

// member is a site as this config has it.
type member struct {
	*site
	initiallyOn bool
	pages       []*shownPage          // of all its handlers
	readError   atomic.Pointer[error] // why the record could not be read last time, nil if it could
	toRead      atomic.Bool           // the record is to be read at the next look for switches
}

// isRead reports whether the record could be read last time, and told something.
func (m *member) isRead() bool {
	kind := m.current().kind
	return m.readError.Load() == nil && kind != unknown && kind != corrupt
}

// awaitDrained returns true as soon as the site is closed and nothing is in
// flight, and false if it is opened or stop is closed before.
func (m *member) awaitDrained(stop <-chan struct{}) bool {
	for {
		st := m.current()
		if !st.blocks(m.initiallyOn) {
			return false
		}
		select {
		case <-m.idled():
			// The count may have been 0 when the site was still open.
			if m.inFlight.Load() == 0 {
				return true
			}
		case <-st.replaced:
		case <-stop:
			return false
		}
	}
}

const (
	defaultSyncInterval = 2 * time.Second
	minSyncInterval     = 100 * time.Millisecond
	maxSyncInterval     = time.Minute // all records are read again as often as that

	// storageTimeout is how long anything waits for the storage.
	storageTimeout = 10 * time.Second

	maxReads = 32

	maxLoggedSites = 10 // in one line of the log

	// switchKey holds a random value that is replaced after each switch.
	switchKey = "maintenance/last_switch"
)

var errStorageSilent = fmt.Errorf("the storage did not answer within %s", storageTimeout)

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "maintenance",
		New: func() caddy.Module { return new(App) },
	}
}

// Provision sets up the app. Nothing is written and nothing runs in the
// background before the config does.
func (a *App) Provision(ctx caddy.Context) error {
	if a.SyncInterval == 0 {
		a.SyncInterval = caddy.Duration(defaultSyncInterval)
	}
	if interval := time.Duration(a.SyncInterval); interval >= 0 {
		if err := checkSyncInterval(interval); err != nil {
			return err
		}
	}
	a.log = ctx.Logger()
	a.storage = ctx.Storage()
	a.members = make(map[string]*member)
	a.servers = make(map[*caddyhttp.Server]serverStop)
	a.pages = make(map[*customPage][]*shownPage)
	a.reads = make(chan struct{}, maxReads)
	a.client = newPageClient()
	a.fetches = make(chan struct{}, maxFetches)
	a.pageReads = make(chan struct{}, maxPageReads)
	a.ctx = ctx

	events, err := ctx.App("events")
	if err != nil {
		return err
	}
	a.events = events.(*caddyevents.App)
	if err := registerMetrics(ctx); err != nil {
		return err
	}
	if a.instance, err = os.Hostname(); err != nil {
		a.instance = "unknown host"
	}
	return nil
}

// Start begins the app's work, which waits until the config runs.
func (a *App) Start() error {
	go func() {
		if !a.untilRunning() {
			return
		}
		for p := range a.pages {
			go a.keepPage(p)
		}
		go a.watchClock()
		a.follow()
	}()
	return nil
}

// untilRunning waits until this is the running config, and tells whether it
// came to that: a config can still fail when all its apps have started, and
// after Caddy has emitted "started", and a failed one must leave no trace.
func (a *App) untilRunning() bool {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		if app, err := runningApp(); err == nil && app == a {
			a.running.Store(true)
			return true
		}
		select {
		case <-ticker.C:
		case <-a.ctx.Done():
			return false
		}
	}
}

// Stop warns of what the config that takes over does not keep closed. The app's
// work ends with its context.
func (a *App) Stop() error {
	for _, s := range a.servers {
		s.stop() // before the load is answered; the server's own word comes later
	}
	next, err := runningApp()
	if err != nil || !a.running.Load() {
		return nil // Caddy is stopping, or this config has failed
	}
	for _, m := range a.sorted() {
		st := m.current()
		if _, err := next.find(m.name); err != nil && st.on(m.initiallyOn) {
			a.log.Warn("site is in maintenance but has gone from the config: nothing keeps its requests out any more",
				append(st.fields(), zap.String("site", m.name))...)
		}
	}
	return nil
}

func checkSyncInterval(d time.Duration) error {
	if d < minSyncInterval || d > maxSyncInterval {
		return fmt.Errorf("sync_interval: %s given, %s to %s or off is accepted", d, minSyncInterval, maxSyncInterval)
	}
	return nil
}

// syncInterval is how the interval is called in answers.
func (a *App) syncInterval() string {
	if a.SyncInterval < 0 {
		return "off"
	}
	return time.Duration(a.SyncInterval).String()
}

// join adds a handler to its site, which must be released. The record of a site
// that this process does not know yet begins to be read.
func (a *App) join(name string, initiallyOn bool) (*member, error) {
	m, ok := a.members[name]
	if ok && m.initiallyOn != initiallyOn {
		return nil, fmt.Errorf("initial_state: one handler of site %s says on and another does not; all of them must", name)
	}
	s := sites.acquire(name)
	if ok {
		return m, nil
	}
	m = &member{site: s, initiallyOn: initiallyOn}
	a.members[name] = m
	if s.current().kind == loading {
		// Also if another config reads it already: that one's storage may go with it. The
		// read goes on when this config ends, for others may wait for the same site.
		a.fetch(context.WithoutCancel(a.ctx), m, func(_ *record, err error) {
			if kind := m.current().kind; err != nil && (kind == unknown || kind == corrupt) {
				a.log.Error("state of the site cannot be read; its requests are blocked until it can be, or until the site is switched",
					zap.String("site", name), zap.Error(err))
			}
		})
	}
	return m, nil
}

// serverStop is what ends the holds of a server: stop closes stopping.
type serverStop struct {
	stopping <-chan struct{}
	stop     func()
}

// stopping returns a channel that is closed when the config is unloaded. Cleanup
// would come too late, for Caddy calls it when all requests have ended; Stop may,
// when Caddy exits and stops this app after http.
func (a *App) stopping(s *caddyhttp.Server) <-chan struct{} {
	known, ok := a.servers[s]
	if !ok {
		stopping := make(chan struct{})
		known = serverStop{stopping, sync.OnceFunc(func() { close(stopping) })}
		a.servers[s] = known
		s.RegisterOnShutdown(known.stop)
	}
	return known.stopping
}

// sorted returns the config's sites by name.
func (a *App) sorted() []*member {
	list := make([]*member, 0, len(a.members))
	for _, m := range a.members {
		list = append(list, m)
	}
	slices.SortFunc(list, func(x, y *member) int { return strings.Compare(x.name, y.name) })
	return list
}

// Reading

type readResult struct {
	value []byte
	err   error
}

// read begins to read a key. It waits for its turn where many reads are under
// way, so that a config of many sites neither starts as many goroutines nor has
// the last of them give up before it has begun. A read that hangs does so on
// its own; see await.
func (a *App) read(ctx context.Context, key string) <-chan readResult {
	result := make(chan readResult, 1)
	if a.gaveUp.Load() {
		result <- readResult{err: errStorageSilent}
		return result
	}
	select {
	case a.reads <- struct{}{}:
		go func() {
			value, err := a.storage.Load(ctx, key)
			<-a.reads
			result <- readResult{value, err}
		}()
	case <-ctx.Done():
		result <- readResult{err: context.Cause(ctx)}
	}
	return result
}

// await waits for the value of a key.
func await(ctx context.Context, result <-chan readResult) ([]byte, error) {
	select {
	case r := <-result:
		return r.value, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// fetch begins to read the record of a site, and tells done what there is when
// the site has learned of it. Of a read that fails the site learns only if no other is
// under way: a config that ends fails its reads, and tells nothing about the record.
func (a *App) fetch(ctx context.Context, m *member, done func(*record, error)) {
	m.reading.Add(1)
	ctx, cancel := patience(ctx)
	result := a.read(ctx, recordKey(m.name))
	go func() {
		defer cancel()
		raw, err := await(ctx, result)
		if errors.Is(context.Cause(ctx), errStorageSilent) {
			a.gaveUp.Store(true)
		}
		last := m.reading.Add(-1) == 0
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			m.readError.Store(nil)
		} else {
			m.readError.Store(&err)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !last {
			done(nil, err)
			return
		}
		done(a.takeIn(m, raw, err))
	}()
}

// takeIn has a site learn what was read for it, and returns the record, nil if
// there is none.
func (a *App) takeIn(m *member, raw []byte, err error) (*record, error) {
	var r *record
	switch {
	case err == nil:
		r, err = parseRecord(raw)
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("reading state of site %s: %w", m.name, err)
	}
	if r != nil && r.Version == m.storing.Load() {
		return r, nil // what a switch here has just stored is not another instance's
	}
	a.learn(m, r, err, origin{source: "sync"})
	return r, err
}

// Following other instances

// follow keeps the sites as other instances switch them, until the config
// ends.
func (a *App) follow() {
	f := follower{App: a}
	f.sync()
	go a.warnOfSitesThatAreOn()
	interval := time.Duration(a.SyncInterval)
	if interval < 0 {
		interval = defaultSyncInterval // for what could not be read yet
	}
	for {
		// Instances that began together do not stay in step.
		jitter := time.Duration(weakrand.Int64N(int64(interval) / 4)) //nolint:gosec // no secret
		timer := time.NewTimer(interval - jitter)
		select {
		case <-timer.C:
			f.sync()
		case <-a.ctx.Done():
			timer.Stop()
			return
		}
	}
}

// follower is how far an instance has followed the others.
type follower struct {
	*App
	marker     string    // the value of switchKey whose switches are known
	reread     time.Time // when all records were last read
	failing    bool      // the storage could not be read last time
	unreadable []string  // the sites whose record could not be read last time, as logged
}

// sync reads all records again if another instance has switched a site or a
// minute has gone by, else one value and the records that could not be read before. It
// waits for no record, so that one that cannot be read holds up no other.
func (f *follower) sync() {
	f.gaveUp.Store(false)
	began := time.Now()
	marker, err := f.readMarker()
	if f.ctx.Err() != nil {
		return
	}
	switch {
	case err != nil && !f.failing:
		f.log.Warn("storage cannot be read; sites stay as they are and other instances are not followed", zap.Error(err))
	case err == nil && f.failing:
		f.log.Info("storage can be read again; other instances are followed")
	}
	if f.failing = err != nil; f.failing {
		return
	}
	due := f.reread.IsZero()
	if f.SyncInterval > 0 {
		due = due || marker != f.marker || began.Sub(f.reread) >= maxSyncInterval
	}
	if due {
		f.reread, f.marker = began, marker
	}
	for _, m := range f.members {
		if due {
			m.toRead.Store(true)
		}
		// A read that began before the switch may return what was there before it.
		if (m.toRead.Load() || !m.isRead()) && m.reading.Load() == 0 {
			m.toRead.Store(false)
			f.rereadOne(m)
		}
	}
	if f.ctx.Err() != nil {
		return
	}
	sites.lastSync.Store(&began)
	f.logUnreadable()
}

// readMarker reads what changes with each switch, unless sync is off.
func (a *App) readMarker() (string, error) {
	if a.SyncInterval < 0 {
		return "", nil
	}
	ctx, cancel := patience(a.ctx)
	defer cancel()
	marker, err := await(ctx, a.read(ctx, switchKey))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // nothing was ever switched
	}
	return string(marker), err
}

// rereadOne begins to read the record of a site. It has the record written again that
// the storage has lost or holds in an older version.
func (a *App) rereadOne(m *member) {
	a.fetch(a.ctx, m, func(r *record, err error) {
		if (err == nil || errors.Is(err, errCorrupt)) && m.current().newerThan(r) && !a.restore(m) {
			m.toRead.Store(true)
		}
	})
}

// logUnreadable logs which sites stay as they are because their records cannot be
// read, once. Those that are unknown for that reason have been logged when they were.
func (f *follower) logUnreadable() {
	var names []string
	var why error
	for _, m := range f.members {
		if err := m.readError.Load(); err != nil && m.current().kind >= neverSwitched {
			names, why = append(names, m.name), *err
		}
	}
	slices.Sort(names)
	switch before := f.unreadable; {
	case slices.Equal(names, before):
	case len(names) == 0:
		f.log.Info("records of all sites can be read again")
	case slices.ContainsFunc(names, func(name string) bool { return !slices.Contains(before, name) }):
		f.log.Warn("records of some sites cannot be read; these sites stay as they are, and switches of other instances are followed for all others",
			zap.Int("count", len(names)), zap.Strings("sites", names[:min(len(names), maxLoggedSites)]), zap.Error(why))
	}
	f.unreadable = names
}

// restore begins to store the state in memory again. It does nothing and returns
// false if a switch is under way, which stores one itself.
func (a *App) restore(m *member) (begun bool) {
	if !sites.retain(m.site) {
		return false
	}
	select {
	case m.switching <- struct{}{}:
	default:
		sites.letGo(m.site)
		return false
	}
	go func() {
		defer func() {
			<-m.switching
			sites.letGo(m.site)
		}()
		ctx, cancel := patience(a.ctx)
		defer cancel()
		raw, err := a.storage.Load(ctx, recordKey(m.name))
		r, err := a.takeIn(m, raw, err)
		st := m.current()
		if err != nil && !errors.Is(err, errCorrupt) || !st.newerThan(r) || ctx.Err() != nil {
			return
		}
		if err := a.store(ctx, m, st.record); err != nil {
			a.log.Warn("state of the site is missing from storage and cannot be written again", zap.String("site", m.name), zap.Error(err))
			return
		}
		a.log.Warn("state of the site was missing from storage, or an older one was there; it has been written again", zap.String("site", m.name))
	}()
	return true
}

// store stores a record, and then what tells other instances to look for it.
func (a *App) store(ctx context.Context, m *member, r *record) error {
	if err := a.storage.Store(ctx, recordKey(m.name), r.raw); err != nil {
		return err
	}
	return a.storage.Store(ctx, switchKey, []byte(rand.Text()))
}

// patience is how long to wait for the storage, or until ctx ends.
func patience(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, storageTimeout, errStorageSilent)
}

// Switching

// change is what a switch makes of a site.
type change struct {
	enabled bool
	since   time.Time
	options options
}

// switchSite changes a site: in storage, then in memory. Decide is asked what
// to change when it is known how the site stands, which another instance may
// have switched; it returns nil to leave it at that. The switch is carried
// through whether or not its client waits for it.
func (a *App) switchSite(m *member, by origin, decide func(*state) (*change, error)) error {
	timer := time.NewTimer(storageTimeout)
	defer timer.Stop()
	select {
	case m.switching <- struct{}{}:
	case <-timer.C:
		return caddy.APIError{
			HTTPStatus: http.StatusServiceUnavailable,
			Err: fmt.Errorf("switching site %s: an earlier switch is still waiting for the storage; "+
				"nothing has changed, repeat it when the storage answers", m.name),
		}
	}

	sites.retain(m.site) // the switch may go on when its client has been answered
	done := make(chan error, 1)
	go func() {
		defer func() {
			<-m.switching
			sites.letGo(m.site)
		}()
		done <- a.carryOut(m, by, decide)
	}()
	timer.Reset(storageTimeout)
	select {
	case err := <-done:
		return err
	case <-timer.C:
		return storeError(m, errStorageSilent)
	}
}

func (a *App) carryOut(m *member, by origin, decide func(*state) (*change, error)) error {
	ctx, cancel := patience(context.Background())
	defer cancel()
	for {
		raw, err := a.storage.Load(ctx, recordKey(m.name))
		_, err = a.takeIn(m, raw, err)
		if err == nil && ctx.Err() != nil {
			err = context.Cause(ctx) // too late: the client has been told that it failed
		}
		if err != nil && !errors.Is(err, errCorrupt) {
			return fmt.Errorf("%w; nothing has changed, repeat it when the storage answers", err)
		}
		st := m.current()
		c, err := decide(st)
		if err != nil || c == nil {
			return err
		}
		applied, err := a.apply(ctx, m, st, c, by)
		if err != nil {
			return storeError(m, err)
		}
		if applied {
			return nil
		}
		// Another instance has switched the site at the same time, and this one
		// came to know of that record before its own was in memory.
	}
}

// apply makes a change of the state st in storage and then in memory. It returns false
// if a newer record is known by then.
func (a *App) apply(ctx context.Context, m *member, st *state, c *change, by origin) (bool, error) {
	m.highest = max(time.Now().UnixMicro(), st.version()+1, m.highest+1)
	next, err := newRecord(m.highest, c.enabled, c.since, c.options)
	if err != nil {
		return false, err
	}
	m.storing.Store(next.Version)
	defer m.storing.Store(0)
	if err := a.store(ctx, m, next); err != nil {
		return false, err
	}
	return a.learn(m, next, nil, by), nil
}

func storeError(m *member, err error) error {
	return caddy.APIError{
		HTTPStatus: http.StatusInternalServerError,
		Err: fmt.Errorf("storing state of site %s: %w; the switch may still take effect if the storage was only slow: "+
			"repeat it to be sure", m.name, err),
	}
}

// Telling of changes

// origin is where a change of a site comes from.
type origin struct {
	source   string          // api, sync or until
	client   string          // of the API, its address
	answered <-chan struct{} // closed when that client has its answer; nil if there is none
}

// watchClock notices within a second that a maintenance has ended by itself.
// Requests do not depend on it.
func (a *App) watchClock() {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-a.ctx.Done():
			return
		}
		for _, m := range a.members {
			if st := m.current(); st.ended && !st.reported.Load() {
				m.telling.Lock()
				a.reportEnd(m, st)
				m.telling.Unlock()
			}
		}
	}
}

// learn takes in what there is in storage, as site.learn does, and tells of the change,
// before a switch is answered. It returns false if that was no news.
func (a *App) learn(m *member, r *record, err error, by origin) bool {
	m.telling.Lock()
	defer m.telling.Unlock()
	before, after := m.learn(r, err)
	if after != nil {
		a.changed(m, before, after, by)
	}
	return after != nil
}

// reportEnd tells once of a maintenance that has ended by itself.
func (a *App) reportEnd(m *member, st *state) {
	if st.ended && st.reported.CompareAndSwap(false, true) {
		m.forgetPages()
		a.announce(m, "maintenance disabled", "maintenance_disabled", st, st.record.options, origin{source: "until"})
	}
}

// changed tells of a change of a site, and does what it entails.
func (a *App) changed(m *member, before, after *state, by origin) {
	if before.kind == loading {
		return
	}
	a.reportEnd(m, before)
	unknown := before.kind < neverSwitched
	wasOn, isOn := before.blocks(m.initiallyOn), after.blocks(m.initiallyOn)
	switch {
	case unknown && by.source == "sync":
		a.logChange(m, "state of the site is known again", after, by)
	case isOn && wasOn && !unknown:
		a.logChange(m, "maintenance options changed", after, by)
	case isOn:
		a.announce(m, "maintenance enabled", "maintenance_enabled", after, after.options(), by)
	case wasOn:
		a.announce(m, "maintenance disabled", "maintenance_disabled", after, before.options(), by)
	case by.source == "api":
		a.logChange(m, "maintenance stays off", after, by)
	}
	if isOn {
		m.showPages(after)
	} else {
		m.forgetPages()
	}
	if isOn && !wasOn {
		go logDrained(m)
	}
}

// announce logs that a maintenance with these options has begun or ended, and has it
// emitted.
func (a *App) announce(m *member, what, event string, st *state, o options, by origin) {
	a.logChange(m, what, st, by)
	sites.events.add(newEvent(event, m.name, o, by))
}

func (a *App) logChange(m *member, what string, st *state, by origin) {
	fields := []zap.Field{
		zap.String("site", m.name),
		zap.String("state", st.word(m.initiallyOn)),
		zap.String("source", by.source),
	}
	if by.client != "" {
		fields = append(fields, zap.String("client", by.client))
	}
	a.log.Info(what, append(fields, st.fields()...)...)
}

// logDrained says when the last request that was in flight has ended, unless
// the site is opened before. The config may have been replaced by then, and its
// log closed.
func logDrained(m *member) {
	start := time.Now()
	if m.awaitDrained(nil) {
		caddy.Log().Named("maintenance").Info("drained: nothing is in flight on this instance any more",
			zap.String("site", m.name), zap.Duration("after", time.Since(start)))
	}
}

// warnOfSitesThatAreOn keeps a maintenance from being forgotten.
func (a *App) warnOfSitesThatAreOn() {
	for _, m := range a.sorted() {
		if m.ready(a.ctx) != nil {
			return
		}
		if st := m.current(); st.on(m.initiallyOn) {
			a.log.Warn("site is still in maintenance; `caddy maintenance off "+m.name+"` ends it",
				append(st.fields(), zap.String("site", m.name))...)
		}
	}
}

// Interface guards
var (
	_ caddy.App         = (*App)(nil)
	_ caddy.Provisioner = (*App)(nil)
)
