package maintenance

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"

	"example.com/caddy-maintenance/internal/site"
	"example.com/caddy-maintenance/internal/store"
)

// loading reads the records of a config's new sites. It holds those that no read has begun for
// yet.
type loading struct {
	ctx       context.Context // ends with the config
	log       *zap.Logger
	store     *store.Store
	memory    *memory
	notifier  *notifier
	announced <-chan struct{} // closed when reading may begin

	mu      sync.Mutex
	queue   []*configuredSite
	hurried []*configuredSite // those in the queue that requests wait for
	loads   int               // how many goroutines work off the queue
}

// add queues a site for reading its record. Requests for the site wait until then.
func (l *loading) add(s *configuredSite) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.followed.Wait()
	l.queue = append(l.queue, s)
	if l.loads == 0 {
		l.loads++
		go l.readQueue()
	}
}

// hurry moves a site to the front of the queue, because a request waits for it.
func (l *loading) hurry(s *configuredSite) {
	if s.hurried.Swap(true) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hurried = append(l.hurried, s)
}

// begin registers a caller that will call next until it returns nil.
func (l *loading) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.loads++
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

// readQueue starts reads of records until the queue is empty. The reads go on when this config
// ends, because other configs may wait for the same sites.
//
// It reads nothing before the report of this instance is stored. So an instance that switches a
// site either finds the report and waits for this instance, or has stored the record before it
// is read here.
func (l *loading) readQueue() {
	select {
	case <-l.announced: // and all handlers have joined
	case <-l.ctx.Done():
	}
	if l.ctx.Err() != nil {
		return // this config has admitted no request
	}
	journal, _ := l.store.Journal(context.WithoutCancel(l.ctx)) // without it, records are taken as they are
	l.readAll(journal)
}

// readAll starts the reads, with the journal that was read.
func (l *loading) readAll(journal store.Journal) {
	ctx := context.WithoutCancel(l.ctx)
	for s := l.next(); s != nil; s = l.next() {
		if s.isTemplate() {
			closed := l.memory.sites()
			listing := l.store.List(ctx, s.Site, closed)
			s.followed.Begin()
			s.bring(closed) // requests for these need not wait for the list
			go l.applyListing(s, listing, journal)
			continue
		}
		s.NoteStored(journal.Version(s.Name))
		if r := l.memory.record(s.Name); r != nil {
			s.Remember(r, time.Now())
		}
		reading := l.store.Read(ctx, s.Site)
		s.followed.Begin()
		go l.apply(s, reading)
	}
}

// apply applies the first read of a site's record.
func (l *loading) apply(s *configuredSite, reading <-chan site.Read) {
	read := <-reading
	l.notifier.takeRead(s, read)
	if store.Lacks(read, s.Current()) {
		s.followed.ReadAgain() // and restored; the follower may have begun before the site was known
	}
	sites.Tidy(s.entry)
	if kind := s.Current().Kind(); read.Err != nil && (kind == site.Unknown || kind == site.Invalid) {
		l.log.Error("state of the site cannot be read; its requests are blocked until it can be read or the site is switched",
			zap.String("site", s.Name), zap.Error(read.Err))
	}
}

// applyListing brings those sites of a template into memory that have a record, or should have
// one. Requests for other sites of the template wait until these are known.
func (l *loading) applyListing(t *configuredSite, listing <-chan store.Listing, journal store.Journal) {
	listed := <-listing
	l.begin() // so that add does not read the journal again
	t.bring(listed.Names)
	l.notifier.takeList(t, listed)
	if t.Current().Kind() == site.Unknown {
		l.log.Error("sites cannot be listed; requests for sites of unknown state are blocked until they can be listed or the site is switched",
			zap.String("site", t.Name), zap.Error(listed.Err))
	}
	l.readAll(journal)
}

// bring brings into memory those of the sites that the template can make.
func (t *configuredSite) bring(names []string) {
	for _, name := range names {
		if !t.entry.Name().Yields(name) {
			continue
		}
		if entry := sites.Need(name, false); entry != nil {
			t.config.follow(entry, func(*store.Followed) {}) // loads the site, unless it is known
		}
	}
}
