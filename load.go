package maintenance

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"

	"example.com/caddy-maintenance/internal/site"
	"example.com/caddy-maintenance/internal/store"
)

// maxAnnounce is how long requests wait, when a config starts, for its report to be stored.
// It is longer than any storage takes that is of use.
const maxAnnounce = 2 * time.Second

// loading is the sites whose records have still to begin to be read for the first time.
type loading struct {
	mu      sync.Mutex
	queue   []*configuredSite
	hurried []*configuredSite // those of the queue that requests wait for
	loads   int               // how many are at work with the queue
}

// begin is called by who will call next until there is nothing left.
func (l *loading) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.loads++
}

// loadLater has the record of a site read. Until then requests for the site wait.
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

// hurry has the record of a site read before others, since a request waits for it.
func (a *App) hurry(s *configuredSite) {
	if s.hurried.Swap(true) {
		return
	}
	a.loading.mu.Lock()
	defer a.loading.mu.Unlock()
	a.loading.hurried = append(a.loading.hurried, s)
}

// next returns the site that is to be read next, nil if there is none.
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

// loadQueue begins to read the records of sites until there are none left. The reads go on
// when this config ends, for others may wait for the same sites.
//
// Nothing is read before the report of this instance is stored. Whoever switches a site
// elsewhere either finds the report, and waits for this instance, or has stored the record
// before it is read here.
func (a *App) loadQueue() {
	select {
	case <-a.announced: // which is also when all handlers have joined
	case <-a.ctx.Done():
	}
	if a.ctx.Err() != nil {
		return // nobody has been let in by this config
	}
	journal, _ := a.store.Journal(context.WithoutCancel(a.ctx)) // without which records are taken as they are
	a.loadAll(journal)
}

// loadAll does so with the journal that has been read.
func (a *App) loadAll(journal store.Journal) {
	ctx := context.WithoutCancel(a.ctx)
	for s := a.loading.next(); s != nil; s = a.loading.next() {
		if s.isTemplate() {
			closed := a.memory.Sites(a.storageID)
			listing := a.store.List(ctx, s.Site, closed)
			s.followed.Begin()
			a.bring(s, closed) // their requests need not wait for the list
			go a.loadTemplate(s, listing, journal)
			continue
		}
		s.NoteStored(journal.Version(s.Name))
		if r := a.memory.Record(a.storageID, s.Name); r != nil {
			s.Remember(r, time.Now())
		}
		reading := a.store.Read(ctx, s.Site)
		s.followed.Begin()
		go a.load(s, reading)
	}
}

// load takes the first read of a site's record.
func (a *App) load(s *configuredSite, reading <-chan site.Read) {
	read := <-reading
	a.takeRead(s, read)
	if store.Lacks(read, s.Current()) {
		s.followed.ReadAgain() // and restored, though the follower may have begun before the site was known
	}
	sites.Tidy(s.entry)
	if kind := s.Current().Kind(); read.Err != nil && (kind == site.Unknown || kind == site.Invalid) {
		a.log.Error("state of the site cannot be read; its requests are blocked until it can be read or the site is switched",
			zap.String("site", s.Name), zap.Error(read.Err))
	}
}

// loadTemplate brings the sites of a template into memory that have a record, or should have.
// Requests for all others wait until these are known.
func (a *App) loadTemplate(t *configuredSite, listing <-chan store.Listing, journal store.Journal) {
	l := <-listing
	a.loading.begin() // so that nobody reads the journal again for these
	a.bring(t, l.Names)
	a.takeList(t, l)
	if t.Current().Kind() == site.Unknown {
		a.log.Error("sites cannot be listed; requests for sites of unknown state are blocked until they can be listed or the site is switched",
			zap.String("site", t.Name), zap.Error(l.Err))
	}
	a.loadAll(journal)
}

// bring brings those of the sites into memory that a template makes.
func (a *App) bring(t *configuredSite, names []string) {
	for _, name := range names {
		if !t.entry.Name().Yields(name) {
			continue
		}
		if entry := sites.Need(name, false); entry != nil {
			a.follow(entry, func(*store.Followed) {}) // which loads it, unless it is known
		}
	}
}

// takeList applies what listing the records has come to, when the sites that have one are in
// memory. Those that have none need not be there any more.
func (a *App) takeList(t *configuredSite, l store.Listing) {
	a.takeRead(t, l.Read)
	for entry := range sites.All() {
		sites.Tidy(entry)
	}
}

// memories are the files in which this process keeps what it knows of closed sites, by
// their paths: each is written from one place.
var memories sync.Map

// memoryBeside returns what this instance last knew of closed sites. It is in Caddy's data
// directory; if that is the storage, nothing is kept twice.
func memoryBeside(storage certmagic.Storage) *store.Memory {
	if files, ok := storage.(*certmagic.FileStorage); ok && filepath.Clean(files.Path) == filepath.Clean(caddy.AppDataDir()) {
		return store.NewMemory("", caddy.ParseDuration)
	}
	path := filepath.Join(caddy.AppDataDir(), "maintenance", "last_known.json")
	memory, _ := memories.LoadOrStore(path, store.NewMemory(path, caddy.ParseDuration))
	return memory.(*store.Memory)
}

// identify tells a storage from others that Caddys with the same data directory may have:
// by its type and, as far as that shows, its config.
func identify(storage certmagic.Storage) string {
	text := fmt.Sprintf("%T", storage)
	if named, ok := storage.(fmt.Stringer); ok {
		text += named.String()
	} else if raw, err := json.Marshal(storage); err == nil {
		text += string(raw)
	}
	hash := sha256.Sum256([]byte(text))
	return hex.EncodeToString(hash[:8])
}

// memoryFails is set while the file cannot be written.
var memoryFails atomic.Bool

// maxSave is how long the disk may take, on which nothing depends.
const maxSave = 2 * time.Second

// saveMemory writes what has changed of what this instance knows of closed sites.
func (a *App) saveMemory() {
	saved := make(chan error, 1)
	go func() { saved <- a.memory.Save() }()
	timer := time.NewTimer(maxSave)
	defer timer.Stop()
	var err error
	select {
	case err = <-saved:
	case <-timer.C:
		err = fmt.Errorf("writing takes longer than %s", maxSave)
	}
	if failed := memoryFails.Swap(err != nil); err != nil && !failed {
		a.log.Warn("state of sites in maintenance cannot be kept on disk; a restart depends on the storage alone", zap.Error(err))
	}
}
