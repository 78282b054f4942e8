package maintenance

import (
	"context"
	"errors"
	weakrand "math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"example.com/caddy-maintenance/internal/site"
	"example.com/caddy-maintenance/internal/store"
)

const (
	maxLoggedSites = 10 // in one log line
	maxJournaled   = 16 // restored records that still get a journal entry each
)

// maxSyncReads is how long a sync waits for records before it reports. It reports slower
// ones as not yet read.
const maxSyncReads = time.Second

// lastSync is the time of the last successful sync of a running config.
var lastSync atomic.Pointer[time.Time]

// follower applies the switches of other instances, and those by the clock, to the sites of
// the running config, and reports how far it has come.
type follower struct {
	app      *App            // asked for sites that have gone from its config
	ctx      context.Context // ends with the config
	log      *zap.Logger
	store    *store.Store
	journal  store.Follower // says what to read
	fleet    *store.Fleet
	memory   *memory
	notifier *notifier
	sites    *configSites
	reporter *reporter
}

func newFollower(a *App) *follower {
	return &follower{
		app: a, ctx: a.ctx, log: a.log, store: a.store, fleet: a.fleet.others, memory: a.memory,
		notifier: a.notifier, sites: &a.sites, reporter: &a.reporter,
		journal: store.Follower{Store: a.store, Sites: followedSites{&a.sites}, Fleet: a.fleet.others, Interval: a.instance.interval},
	}
}

// run looks for switches of other instances until the config ends.
func (f *follower) run() {
	interval := f.journal.Interval
	if interval < 0 {
		interval = defaultSyncInterval // for records that could not be read yet
	}
	f.reporter.takeOver()
	go f.reporter.storeSubmitted()
	for {
		began := time.Now()
		f.sync()
		// Jitter keeps instances that began together from staying in step.
		jitter := time.Duration(weakrand.Int64N(int64(interval) / 4)) //nolint:gosec // no secret
		if !f.pause(time.Until(began.Add(interval - jitter))) {
			return
		}
	}
}

// pause waits until the next sync is due, and meanwhile reports out of turn if asked to. It
// returns false if the config ends.
func (f *follower) pause(d time.Duration) bool {
	next := time.NewTimer(d)
	defer next.Stop()
	var spaced <-chan time.Time
	for {
		select {
		case <-next.C:
			return true
		case <-f.notifier.drained:
			spaced = time.After(reportSpacing - time.Since(f.reporter.submitted))
		case <-spaced:
			f.reportProgress()
		case <-f.ctx.Done():
			return false
		}
	}
}

// sync looks for switches of other instances, once.
func (f *follower) sync() {
	began := time.Now()
	tick := f.journal.Tick(f.ctx, began)
	if f.ctx.Err() != nil {
		return
	}
	switch {
	case tick.Turned && tick.Err != nil:
		f.log.Warn("storage cannot be read; sites keep their state and do not follow other instances", zap.Error(tick.Err))
	case tick.Turned:
		f.log.Info("storage can be read again; sites follow other instances")
	}
	if tick.Err == nil {
		lastSync.Store(&began)
	}
	f.readAll(tick.ToRead)
	f.app.syncGone()
	if tick.Err == nil {
		f.reportProgress()
	}
	switch u := tick.Unreadable; {
	case u == nil:
	case len(u.Sites) == 0:
		f.log.Info("records of all sites can be read again")
	default:
		f.log.Warn("records of some sites cannot be read; these sites keep their state, and all others follow other instances",
			zap.Int("count", len(u.Sites)), zap.Strings("sites", u.Sites[:min(len(u.Sites), maxLoggedSites)]), zap.Error(u.Err))
	}
}

// readAll reads records again. It returns when that is done, or after maxSyncReads.
func (f *follower) readAll(list []*store.Followed) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.readAgain(list)
	}()
	timer := time.NewTimer(maxSyncReads)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// readAgain reads and applies the records of sites. It restores records that the storage has
// lost or has in an older version.
func (f *follower) readAgain(list []*store.Followed) {
	var reads sync.WaitGroup
	var mu sync.Mutex
	var restored []string
	var read func(s *configuredSite)
	read = func(s *configuredSite) {
		if s.isTemplate() {
			listing := f.store.List(f.ctx, s.Site, f.memory.sites())
			reads.Go(func() {
				for _, found := range f.applyListing(s, <-listing) {
					read(found)
				}
			})
			return
		}
		reading := f.store.Read(f.ctx, s.Site)
		reads.Go(func() {
			if f.applyRead(s, <-reading) {
				mu.Lock()
				defer mu.Unlock()
				restored = append(restored, s.Name)
			}
		})
	}
	for _, followed := range list {
		if s := f.sites.lookup(followed.Name); s != nil {
			read(s)
		} // else the site has gone from memory
	}
	reads.Wait()
	f.memory.save()
	if len(restored) == 0 {
		return
	}
	slices.Sort(restored)
	f.log.Warn("state of sites was missing or outdated in storage; it was written again",
		zap.Int("count", len(restored)), zap.Strings("sites", restored[:min(len(restored), maxLoggedSites)]))
	if len(restored) > maxJournaled {
		return // so many that other instances have noticed the loss themselves
	}
	for _, name := range restored {
		if s := f.sites.lookup(name); s != nil {
			f.store.AddEntry(f.ctx, s.Site)
		}
	}
}

// applyListing brings the template's sites with a record into memory, and returns those that
// must be read.
func (f *follower) applyListing(t *configuredSite, l store.Listing) (found []*configuredSite) {
	verified := t.followed.Verified()
	for _, name := range l.Names {
		if !t.entry.Name().Yields(name) || sites.Find(name) != nil {
			continue
		}
		entry := sites.Need(name, true)
		if entry == nil {
			continue
		}
		isNew := false
		s := f.sites.follow(entry, func(s *store.Followed) {
			if isNew = !s.Waits(); isNew { // otherwise it is already loading
				s.Expect()
			}
			if verified {
				s.Verify()
			}
		})
		if isNew {
			found = append(found, s)
		}
	}
	f.notifier.takeList(t, l)
	t.followed.Applied()
	return found
}

// applyRead applies a record, and reports whether the record in memory was restored to the
// storage.
func (f *follower) applyRead(s *configuredSite, read site.Read) (restored bool) {
	before, verified := s.Current().Version(), s.followed.Verified()
	f.notifier.takeRead(s, read)
	s.followed.Applied()
	defer sites.Tidy(s.entry)
	switch {
	case store.Lacks(read, s.Current()):
		done, restored := f.restore(s)
		if !done {
			s.followed.ReadAgain()
		}
		return restored
	case errors.Is(read.Err, site.ErrOutdated):
		_ = f.fleet.AskForRecord(f.ctx, s.Name) // an instance with the newer record restores it
	case verified && s.Current().Version() > max(before, s.StoredVersion.Load()):
		f.store.AddEntry(f.ctx, s.Site)
	}
	return false
}

// restore stores the state in memory again. It does nothing if a switch is under way: that
// stores a newer state.
func (f *follower) restore(s *configuredSite) (done, restored bool) {
	if !sites.Retain(s.entry) {
		return false, false
	}
	defer letSiteGo(s.entry)
	if !f.store.TryTurn(s.Site) {
		return false, false
	}
	defer f.store.EndTurn(s.Site)
	read := f.store.Load(f.ctx, s.Site)
	f.notifier.takeRead(s, read)
	restored, err := f.store.Restore(f.ctx, s.Site, read)
	if err != nil {
		f.log.Warn("state of the site is missing or outdated in storage and cannot be written again", zap.String("site", s.Name), zap.Error(err))
	}
	return true, restored
}

// reportProgress reports what was applied and, counted after that, what is in flight.
func (f *follower) reportProgress() {
	if !f.reporter.enabled() {
		return
	}
	var r store.Report
	var present []string
	r.Applied, present, r.Behind, r.Absent = f.journal.Progress()
	r.Sites = make(map[string]store.Traffic)
	closed := make(map[string]*site.State, len(present))
	for _, name := range present {
		if closed[name] = f.sites.blockedBy(name); closed[name] == nil {
			continue
		}
		// If the site is not in memory, its template counts its requests.
		if t := (store.Traffic{InFlight: f.sites.inFlightBeside(name)}); t != (store.Traffic{}) {
			r.Sites[name] = t
		}
	}
	for s := range f.sites.inMemory() {
		if !s.view().Blocks() {
			continue
		}
		if t := (store.Traffic{InFlight: s.inFlight.Count(), Held: s.heldNow()}); t != (store.Traffic{}) {
			r.Sites[s.Name] = t
		}
	}
	for _, name := range present {
		// If a site was switched meanwhile, its count may not be that of a closed site.
		if st := closed[name]; st != nil && f.sites.blockedBy(name) == st {
			r.Closed = append(r.Closed, name)
		}
	}
	f.reporter.submit(r)
}

// watchClock publishes within a second that a scheduled maintenance began, or one ended by
// itself. Requests do not depend on it.
func (f *follower) watchClock() {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-f.ctx.Done():
			return
		}
		for s := range f.sites.inMemory() {
			if s.Current().Unreported() {
				f.notifier.publish(s, s.Tick(time.Now()))
			}
		}
		f.memory.save()
	}
}
