package maintenance

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"

	"example.com/caddy-maintenance/internal/api"
	"example.com/caddy-maintenance/internal/store"
)

// instance is this process among the instances on the storage of a config.
type instance struct {
	self     *store.Self
	host     string
	interval time.Duration // between syncs; negative if they are off
}

// syncInterval returns the interval as answers have it.
func (i instance) syncInterval() string {
	if i.interval < 0 {
		return api.SyncOff
	}
	return i.interval.String()
}

// self is this process as an instance of the fleet, whichever config it runs.
var self = sync.OnceValue(func() *store.Self { return store.NewSelf(store.NewName(hostName())) })

// adoptName takes over the report of the process that used Caddy's data directory before, if
// that process has ended, so that nobody waits for it.
var adoptName = sync.OnceFunc(func() {
	directory := filepath.Join(caddy.AppDataDir(), "maintenance")
	if os.MkdirAll(directory, 0o700) != nil {
		return
	}
	file, err := os.OpenFile(filepath.Join(directory, "instance"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	if !lock(file) { // another process runs, or the system has no such locks
		_ = file.Close()
		return
	}
	heldName = file
	before, err := io.ReadAll(io.LimitReader(file, 1<<10))
	if own := self().Name(); err != nil || !sameHost(string(before), own) {
		_ = file.Truncate(0)
		_, _ = file.WriteAt([]byte(own), 0)
		return
	}
	self().Adopt(string(before))
})

// heldName is the file with the name of this process, locked while the process lives.
var heldName *os.File //nolint:unused // a file without a reference would be closed, and so unlocked

var reportName = regexp.MustCompile(`^(.+)-[0-9a-f]{8}$`)

// sameHost reports whether a and b are names of reports from one host.
func sameHost(a, b string) bool {
	of, as := reportName.FindStringSubmatch(a), reportName.FindStringSubmatch(b)
	return of != nil && as != nil && of[1] == as[1]
}

func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown host"
	}
	return name
}
