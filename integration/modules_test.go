package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	caddyv2 "github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "example.com/caddy-maintenance"
)

// asCaddy is a variable of the environment that makes this test binary a Caddy, with the
// modules of this file.
const asCaddy = "MAINTENANCE_TEST_CADDY"

func runAsCaddy() {
	if os.Getenv(asCaddy) == "" {
		return
	}
	caddyv2.RegisterModule(new(faultyStorage))
	caddyv2.RegisterModule(new(eventFile))
	caddycmd.Main()
	os.Exit(0)
}

// newTestCaddy returns a Caddy that has the modules of this file.
func newTestCaddy(t *testing.T) *caddy {
	t.Helper()
	c := newCaddy(t)
	var err error
	if c.binary, err = os.Executable(); err != nil {
		t.Fatal(err)
	}
	return c
}

// faultyStorage is a directory, of which the file "fault" in Caddy's working directory
// says what fails:
//
//	slow load, slow store      takes 50ms
//	hang load, hang store      takes until the fault is over
//	fail load, fail store      fails
//	report store               succeeds and says that it failed
//	lose store                 says that it succeeded
//	lose load                  finds nothing
//	previous load              finds what the last store has replaced
//	exit store <n>             ends the process before the nth store
type faultyStorage struct {
	Directory string `json:"directory"`

	certmagic.FileStorage
	stores atomic.Int64
}

func (*faultyStorage) CaddyModule() caddyv2.ModuleInfo {
	return caddyv2.ModuleInfo{ID: "caddy.storage.maintenance_faulty", New: func() caddyv2.Module { return new(faultyStorage) }}
}

func (s *faultyStorage) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	d.Args(&s.Directory)
	return nil
}

func (s *faultyStorage) CertMagicStorage() (certmagic.Storage, error) {
	s.Path = s.Directory
	return s, nil
}

var errFire = errors.New("the disk is on fire")

// has reports whether a fault lasts.
func (s *faultyStorage) has(fault string) bool {
	content, _ := os.ReadFile("fault")
	return strings.Contains(string(content), fault)
}

// meet is what comes before each operation.
func (s *faultyStorage) meet(op string) error {
	if err := appendTo("asked", "."); err != nil {
		return err
	}
	if s.has("slow " + op) {
		time.Sleep(50 * time.Millisecond)
	}
	for s.has("hang " + op) {
		time.Sleep(5 * time.Millisecond)
	}
	if s.has("fail " + op) {
		return errFire
	}
	return nil
}

func (s *faultyStorage) Load(ctx context.Context, key string) ([]byte, error) {
	if !strings.HasPrefix(key, "maintenance/") {
		return s.FileStorage.Load(ctx, key)
	}
	if err := s.meet("load"); err != nil {
		return nil, err
	}
	switch {
	case s.has("lose load"):
		return nil, fs.ErrNotExist
	case s.has("previous load"):
		return s.FileStorage.Load(ctx, "previous/"+key)
	}
	return s.FileStorage.Load(ctx, key)
}

func (s *faultyStorage) Store(ctx context.Context, key string, value []byte) error {
	if !strings.HasPrefix(key, "maintenance/") {
		return s.FileStorage.Store(ctx, key, value)
	}
	if s.has("exit store") && !strings.Contains(key, "/instances/") && s.has(fmt.Sprintf("exit store %d", s.stores.Add(1))) {
		os.Exit(1)
	}
	if err := s.meet("store"); err != nil {
		return err
	}
	if s.has("lose store") {
		return nil
	}
	if before, err := s.FileStorage.Load(ctx, key); err == nil {
		if err := s.FileStorage.Store(ctx, "previous/"+key, before); err != nil {
			return err
		}
	}
	if err := s.FileStorage.Store(ctx, key, value); err != nil {
		return err
	}
	if s.has("report store") {
		return errFire
	}
	return nil
}

func (s *faultyStorage) Delete(ctx context.Context, key string) error {
	if err := s.meet("store"); err != nil {
		return err
	}
	return s.FileStorage.Delete(ctx, key)
}

func (s *faultyStorage) List(ctx context.Context, path string, recursive bool) ([]string, error) {
	if err := s.meet("load"); err != nil {
		return nil, err
	}
	if s.has("lose load") {
		return nil, nil
	}
	return s.FileStorage.List(ctx, path, recursive)
}

// eventFile adds a line for each event to the file "events" in Caddy's working directory.
type eventFile struct{}

func (*eventFile) CaddyModule() caddyv2.ModuleInfo {
	return caddyv2.ModuleInfo{ID: "events.handlers.maintenance_test", New: func() caddyv2.Module { return new(eventFile) }}
}

func (*eventFile) UnmarshalCaddyfile(*caddyfile.Dispenser) error { return nil }

func (*eventFile) Handle(_ context.Context, e caddyv2.Event) error {
	data, err := json.Marshal(e.Data)
	if err != nil {
		return err
	}
	return appendTo("events", fmt.Sprintf("%s %s\n", e.Name(), data))
}

func appendTo(path, text string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = file.WriteString(text)
	return err
}
