package maintenance

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"

	"example.com/caddy-maintenance/internal/site"
	"example.com/caddy-maintenance/internal/store"
)

// maxAnnounce is how long requests wait for the first report to be stored when a config
// starts. No usable storage takes that long.
const maxAnnounce = 2 * time.Second

// loading holds the sites whose records no read has begun for yet.
type loading struct {
	mu      sync.Mutex
	queue   []*configuredSite
	hurried []*configuredSite // those in the queue that requests wait for
	loads   int               // how many goroutines work off the queue
}

// begin registers a caller that will call next until it returns nil.
func (l *loading) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.loads++
}

// loadLater queues a site for reading its record. Requests for the site wait until then.
func (a *App) loadLater(s *configuredSite) {
	a.loading.mu.Lock()
	defer a.loading.mu.Unlock()
	s.followed.Wait()
	a.loading.queue = append(a.loading.queue, s)
	if a.loading.loads == 0 {
		a.loading.loads++
		go a.loadQueue()
	}
}

// hurry moves a site to the front of the queue, because a request waits for it.
func (a *App) hurry(s *configuredSite) {
	if s.hurried.Swap(true) {
		return
	}
	a.loading.mu.Lock()
	defer a.loading.mu.Unlock()
	a.loading.hurried = append(a.loading.hurried, s)
}

// next returns the next site to read, nil if there is none.
func (l *loading) next() (s *configuredSite) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, list := range []*[]*configuredSite{&l.hurried, &l.queue} {
		for len(*list) > 0 {
			s, *list = (*list)[0], (*list)[1:]
			if s.followed.Waits() {
				return s
			}
		}
	}
	l.loads--
	return nil
}

// loadQueue starts reads of records until the queue is empty. The reads go on when this config
// ends, because other configs may wait for the same sites.
//
// It reads nothing before the report of this instance is stored. So an instance that switches a
// site either finds the report and waits for this instance, or has stored the record before it
// is read here.
func (a *App) loadQueue() {
	select {
	case <-a.announced: // and all handlers have joined
	case <-a.ctx.Done():
	}
	if a.ctx.Err() != nil {
		return // this config has admitted no request
	}
	journal, _ := a.store.Journal(context.WithoutCancel(a.ctx)) // without it, records are taken as they are
	a.loadAll(journal)
}

// loadAll starts the reads, with the journal that was read.
func (a *App) loadAll(journal store.Journal) {
	ctx := context.WithoutCancel(a.ctx)
	for s := a.loading.next(); s != nil; s = a.loading.next() {
		if s.isTemplate() {
			closed := a.memory.sites()
			listing := a.store.List(ctx, s.Site, closed)
			s.followed.Begin()
			a.bring(s, closed) // requests for these need not wait for the list
			go a.loadTemplate(s, listing, journal)
			continue
		}
		s.NoteStored(journal.Version(s.Name))
		if r := a.memory.record(s.Name); r != nil {
			s.Remember(r, time.Now())
		}
		reading := a.store.Read(ctx, s.Site)
		s.followed.Begin()
		go a.load(s, reading)
	}
}

// load applies the first read of a site's record.
func (a *App) load(s *configuredSite, reading <-chan site.Read) {
	read := <-reading
	a.notifier.takeRead(s, read)
	if store.Lacks(read, s.Current()) {
		s.followed.ReadAgain() // and restored; the follower may have begun before the site was known
	}
	sites.Tidy(s.entry)
	if kind := s.Current().Kind(); read.Err != nil && (kind == site.Unknown || kind == site.Invalid) {
		a.log.Error("state of the site cannot be read; its requests are blocked until it can be read or the site is switched",
			zap.String("site", s.Name), zap.Error(read.Err))
	}
}

// loadTemplate brings those sites of a template into memory that have a record, or should have
// one. Requests for other sites of the template wait until these are known.
func (a *App) loadTemplate(t *configuredSite, listing <-chan store.Listing, journal store.Journal) {
	l := <-listing
	a.loading.begin() // so that loadLater does not read the journal again
	a.bring(t, l.Names)
	a.takeList(t, l)
	if t.Current().Kind() == site.Unknown {
		a.log.Error("sites cannot be listed; requests for sites of unknown state are blocked until they can be listed or the site is switched",
			zap.String("site", t.Name), zap.Error(l.Err))
	}
	a.loadAll(journal)
}

// bring brings into memory those of the sites that the template can make.
func (a *App) bring(t *configuredSite, names []string) {
	for _, name := range names {
		if !t.entry.Name().Yields(name) {
			continue
		}
		if entry := sites.Need(name, false); entry != nil {
			a.follow(entry, func(*store.Followed) {}) // loads the site, unless it is known
		}
	}
}

// takeList applies the result of listing the records, once the sites with a record are in
// memory. Sites without one may leave it then.
func (a *App) takeList(t *configuredSite, l store.Listing) {
	a.notifier.takeRead(t, l.Read)
	for entry := range sites.All() {
		sites.Tidy(entry)
	}
}
