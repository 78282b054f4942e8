package maintenance

import (
	"context"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"

	"example.com/caddy-maintenance/internal/store"
)

// If only the disk has the record of a template's site, it is stored again, even if the follower
// began before the site came into memory.
//
// G3
func TestRecordOfATenantThatTheStorageHasLostIsStoredAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "last_known.json")
	synctest.Test(t, func(t *testing.T) {
		before := newAppThatRemembers(t, newTestStorage(t), path)
		before.turnOn(t, "acme.example")
		before.unload()

		storage := newTestStorage(t) // with nothing in it
		var once atomic.Bool
		storage.setFault(func(_ context.Context, op, key string) error {
			if op == "load" && key == store.JournalKey && once.CompareAndSwap(false, true) {
				time.Sleep(2 * defaultSyncInterval)
			}
			return nil
		})
		a := newAppThatRemembers(t, storage, path)
		go newFollower(a).run()
		time.Sleep(5 * defaultSyncInterval)
		if got := storage.get(store.Key("acme.example")); !strings.Contains(got, `"enabled":true`) {
			t.Errorf("the record is %q", got)
		}
	})
}

// If the storage hangs, the sites of a template become unknown as soon as literal sites do.
func TestTenantsWaitNoLongerForAStorageThatHangs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "last_known.json")
	synctest.Test(t, func(t *testing.T) {
		storage := newTestStorage(t)
		before := newAppThatRemembers(t, storage, path)
		before.turnOn(t, "acme.example")
		before.unload()

		storage.setFault(func(ctx context.Context, op, _ string) error {
			if op == "store" {
				return nil // the report of this instance
			}
			<-ctx.Done()
			return ctx.Err()
		})
		began := time.Now()
		a := newAppThatRemembers(t, storage, path)
		noError(t, a.sites.loaded(t.Context()))
		if took := time.Since(began); took > 2*store.Timeout { // the journal, and then the records
			t.Errorf("it took %s", took)
		}
		a.expect(t, "acme.example", "on")
	})
}

// newAppThatRemembers returns an app with a template, which keeps the records of closed sites in
// a file.
func newAppThatRemembers(t *testing.T, storage *testStorage, path string) *App {
	t.Helper()
	a, _ := newTestApp(t, storage)
	a.memory.file = store.NewMemory(path, caddy.ParseDuration)
	a.joinAll(t, "{http.request.host}")
	synctest.Wait()
	return a
}
