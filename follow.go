package maintenance

import (
	weakrand "math/rand/v2"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"example.com/caddy-maintenance/internal/site"
	"example.com/caddy-maintenance/internal/store"
)

const maxLoggedSites = 10 // in one line of the log

// lastSync is when a running config has last found the storage readable.
var lastSync atomic.Pointer[time.Time]

// follower keeps the sites of the running config as other instances switch them, and as
// the clock does.
type follower struct {
	*App
	store.Follower
}

func newFollower(a *App) *follower {
	f := &follower{a, store.Follower{Store: a.store, Sites: make(map[string]*store.Followed), Interval: time.Duration(a.SyncInterval)}}
	for name, s := range a.sites {
		f.Sites[name] = s.followed
	}
	return f
}

// run looks for switches of other instances until the config ends.
func (f *follower) run() {
	interval := f.Interval
	if interval < 0 {
		interval = defaultSyncInterval // for what could not be read yet
	}
	for {
		f.sync()
		// Instances that began together do not stay in step.
		jitter := time.Duration(weakrand.Int64N(int64(interval) / 4)) //nolint:gosec // no secret
		timer := time.NewTimer(interval - jitter)
		select {
		case <-timer.C:
		case <-f.ctx.Done():
			timer.Stop()
			return
		}
	}
}

// sync looks for switches of other instances, once.
func (f *follower) sync() {
	began := time.Now()
	tick := f.Tick(f.ctx, began)
	if f.ctx.Err() != nil {
		return
	}
	switch {
	case tick.Turned && tick.Err != nil:
		f.log.Warn("storage cannot be read; sites stay as they are and other instances are not followed", zap.Error(tick.Err))
	case tick.Turned:
		f.log.Info("storage can be read again; other instances are followed")
	}
	for _, followed := range tick.ToRead {
		reading := f.store.Read(f.ctx, followed.Site)
		go f.readAgain(f.sites[followed.Name], reading)
	}
	if tick.Err == nil {
		lastSync.Store(&began)
	}
	switch u := tick.Unreadable; {
	case u == nil:
	case len(u.Sites) == 0:
		f.log.Info("records of all sites can be read again")
	default:
		f.log.Warn("records of some sites cannot be read; these sites stay as they are, and switches of other instances are followed for all others",
			zap.Int("count", len(u.Sites)), zap.Strings("sites", u.Sites[:min(len(u.Sites), maxLoggedSites)]), zap.Error(u.Err))
	}
}

// readAgain applies what is stored of a site, and has the record stored again if the
// storage has lost it, or holds an older one.
func (f *follower) readAgain(s *configuredSite, reading <-chan site.Read) {
	read := <-reading
	f.takeRead(s, read)
	if store.Lacks(read, s.Current()) && !f.restore(s) {
		s.followed.ReadAgain()
	}
}

// restore stores the state in memory again. It does nothing and returns false if a
// switch is under way, which stores one itself.
func (f *follower) restore(s *configuredSite) bool {
	if !sites.Retain(s.entry) {
		return false
	}
	defer letSiteGo(s.entry)
	if !f.store.TryTurn(s.Site) {
		return false
	}
	defer f.store.EndTurn(s.Site)
	read := f.store.Load(f.ctx, s.Site)
	f.takeRead(s, read)
	switch stored, err := f.store.Restore(f.ctx, s.Site, read); {
	case err != nil:
		f.log.Warn("state of the site is missing from storage and cannot be written again", zap.String("site", s.Name), zap.Error(err))
	case stored:
		f.log.Warn("state of the site was missing from storage, or an older one was there; it has been written again", zap.String("site", s.Name))
	}
	return true
}

// watchClock notices within a second that a maintenance has ended by itself.
// Requests do not depend on it.
func (f *follower) watchClock() {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-f.ctx.Done():
			return
		}
		for _, s := range f.sites {
			if s.Current().Expired() {
				f.publish(s, s.Expire(time.Now()))
			}
		}
	}
}
