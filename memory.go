package maintenance

import (
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

// memory keeps on disk the records of a config's sites that are not off, so that a restart does
// not depend on the storage alone.
type memory struct {
	file      *store.Memory
	storageID string // identifies the storage among those in the file
	log       *zap.Logger
}

func newMemory(storage certmagic.Storage, log *zap.Logger) *memory {
	return &memory{file: fileBeside(storage), storageID: identify(storage), log: log}
}

// record returns the record of a site, nil if there is none.
func (m *memory) record(name string) *site.Record { return m.file.Record(m.storageID, name) }

// sites returns the names of the sites with a record.
func (m *memory) sites() []string { return m.file.Sites(m.storageID) }

// keep notes the new state of a site; save writes it.
func (m *memory) keep(name string, st *site.State) { m.file.Keep(m.storageID, name, st) }

// memoryFails is set while the file cannot be written.
var memoryFails atomic.Bool

// maxSave is how long saving waits for the disk.
const maxSave = 2 * time.Second

// save writes what has changed.
func (m *memory) save() {
	saved := make(chan error, 1)
	go func() { saved <- m.file.Save() }()
	timer := time.NewTimer(maxSave)
	defer timer.Stop()
	var err error
	select {
	case err = <-saved:
	case <-timer.C:
		err = fmt.Errorf("writing takes longer than %s", maxSave)
	}
	if failed := memoryFails.Swap(err != nil); err != nil && !failed {
		m.log.Warn("state of sites in maintenance cannot be kept on disk; a restart depends on the storage alone", zap.Error(err))
	}
}

// memories holds the files in which this process keeps the records of closed sites, by path,
// so that each file has one writer.
var memories sync.Map

// fileBeside returns the file of this process, in Caddy's data directory. If that directory is
// the storage, nothing is kept twice.
func fileBeside(storage certmagic.Storage) *store.Memory {
	if files, ok := storage.(*certmagic.FileStorage); ok && filepath.Clean(files.Path) == filepath.Clean(caddy.AppDataDir()) {
		return store.NewMemory("", caddy.ParseDuration)
	}
	path := filepath.Join(caddy.AppDataDir(), "maintenance", "last_known.json")
	file, _ := memories.LoadOrStore(path, store.NewMemory(path, caddy.ParseDuration))
	return file.(*store.Memory)
}

// identify returns an ID that distinguishes a storage from others that are used with the same
// data directory. It depends on the type of the storage and, if that can be seen, its config.
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
