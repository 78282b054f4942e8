package maintenance

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"iter"
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
	mu    sync.Mutex
	queue []*configuredSite
	runs  bool
}

// loadLater has the record of a site read. Until then requests for the site wait.
func (a *App) loadLater(s *configuredSite) {
	a.loading.mu.Lock()
	defer a.loading.mu.Unlock()
	s.followed.Wait()
	a.loading.queue = append(a.loading.queue, s)
	if !a.loading.runs {
		a.loading.runs = true
		go a.loadQueue()
	}
}

// loadQueue begins to read the records of sites until there are none left. The reads go on
// when this config ends, for others may wait for the same sites.
//
// Nothing is read before the report of this instance is stored. Whoever switches a site
// elsewhere either finds the report, and waits for this instance, or has stored the record
// before it is read here.
func (a *App) loadQueue() {
	if a.SyncInterval > 0 {
		select {
		case <-a.announced:
		case <-a.ctx.Done():
			return // nobody has been let in by this config
		}
	}
	ctx := context.WithoutCancel(a.ctx)
	for {
		queue := a.loading.take()
		if len(queue) == 0 {
			return
		}
		// Without the journal, records are taken as they are.
		_ = a.store.NoteJournal(ctx, sitesOf(queue))
		for _, s := range queue {
			if r := a.memory.Record(a.storageID, s.Name); r != nil {
				s.Remember(r, time.Now())
			}
			reading := a.store.Read(ctx, s.Site)
			s.followed.Begin()
			go a.load(s, reading)
		}
	}
}

func (l *loading) take() (queue []*configuredSite) {
	l.mu.Lock()
	defer l.mu.Unlock()
	queue, l.queue = l.queue, nil
	l.runs = len(queue) > 0
	return queue
}

func sitesOf(list []*configuredSite) iter.Seq[*site.Site] {
	return func(yield func(*site.Site) bool) {
		for _, s := range list {
			if !yield(s.Site) {
				return
			}
		}
	}
}

// load takes the first read of a site's record.
func (a *App) load(s *configuredSite, reading <-chan site.Read) {
	read := <-reading
	a.takeRead(s, read)
	if kind := s.Current().Kind(); read.Err != nil && (kind == site.Unknown || kind == site.Invalid) {
		a.log.Error("state of the site cannot be read; its requests are blocked until it can be, or until the site is switched",
			zap.String("site", s.Name), zap.Error(read.Err))
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
		err = fmt.Errorf("it takes longer than %s", maxSave)
	}
	if failed := memoryFails.Swap(err != nil); err != nil && !failed {
		a.log.Warn("what is known of sites in maintenance cannot be kept on disk; a restart depends on the storage alone", zap.Error(err))
	}
}
