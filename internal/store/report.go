package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"slices"
	"sync"
	"time"
)

const reportsPath = "maintenance/instances"

// ReportInterval is how often an instance reports, also if nothing has changed.
const ReportInterval = 30 * time.Second

// ErrDown says that a storage answers, but not with what is in it.
var ErrDown = errors.New("the storage seems to be down: it finds nothing, not even what this instance has just stored")

// errNotReported says that a storage has not stored the report of this instance, by which to
// see whether it answers.
var errNotReported = errors.New("the storage seems to be down: it finds nothing, and this instance has not been able to store anything yet")

// Report is what an instance says of itself.
type Report struct {
	Host         string             `json:"instance"`
	Config       string             `json:"config"` // that has said so
	Clock        time.Time          `json:"clock"`  // its own, when it wrote this
	SyncInterval time.Duration      `json:"sync_interval"`
	Stopping     bool               `json:"stopping,omitempty"`
	Applied      string             `json:"applied,omitempty"` // the last entry of the journal that it has applied
	Behind       []string           `json:"behind,omitempty"`  // the sites of the journal whose records it could not read
	Absent       []string           `json:"absent,omitempty"`  // the sites of the journal that its config does not have
	Closed       []string           `json:"closed,omitempty"`  // the sites of the journal that are closed there
	Sites        map[string]Traffic `json:"sites,omitempty"`   // closed sites that have requests
}

// Traffic is how many requests of a site there are.
type Traffic struct {
	InFlight int64 `json:"in_flight"`
	Held     int64 `json:"held"`
}

// Patience is how long an instance may take to apply an entry of the journal before it is
// called silent.
func (r *Report) Patience() time.Duration {
	return 3*max(0, min(r.SyncInterval, VerifyInterval)) + 3*time.Second
}

// Self is the instance that this process is. Its report is in every storage that its
// configs use.
type Self struct {
	mu        sync.Mutex
	name      string
	raw       []byte // the last report that was stored; nil: there is none
	reporting bool   // it has begun to report
}

// NewSelf returns the instance that has its report under a name.
func NewSelf(name string) *Self { return &Self{name: name} }

// NewName returns a name for the report of an instance that nobody else has: the host's, and
// what is random.
func NewName(host string) string {
	var random [4]byte
	_, _ = rand.Read(random[:])
	return url.QueryEscape(host) + "-" + hex.EncodeToString(random[:])
}

// Name returns the name of the report.
func (s *Self) Name() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.name
}

// Adopt takes the name of another process, which has ended, before the first report.
func (s *Self) Adopt(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.name = name
}

// Reports reports whether there is, or may be, a report of this instance in the storage.
func (s *Self) Reports() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reporting
}

// set takes the report that was stored, nil if that has only begun.
func (s *Self) set(raw []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reporting = true
	if raw != nil {
		s.raw = raw
	}
}

func (s *Self) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.raw, s.reporting = nil, false
}

// stored returns the report that was stored last. It returns nil, and no error, if this
// instance does not report.
func (s *Self) stored() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.raw == nil && s.reporting {
		return nil, errNotReported
	}
	return s.raw, nil
}

func reportKey(name string) string { return reportsPath + "/" + name + ".json" }

// Report stores what this instance says of itself.
func (s *Store) Report(ctx context.Context, r Report) error {
	s.self.set(nil)
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	ctx, cancel := storageContext(ctx)
	defer cancel()
	if err := s.storeInTime(ctx, reportKey(s.self.Name()), raw); err != nil {
		return err
	}
	s.self.set(raw)
	return nil
}

// Retire removes the report of this instance.
func (s *Store) Retire(ctx context.Context) error {
	s.self.forget()
	return s.Forget(ctx, s.self.Name())
}

// RetireIfFrom removes the report of this instance if it is one of that config.
func (s *Store) RetireIfFrom(ctx context.Context, config string) error {
	raw, err := await(ctx, s.begin(ctx, reportKey(s.self.Name())))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var r Report
	if err != nil || json.Unmarshal(raw, &r) != nil || r.Config != config {
		return err
	}
	return s.Forget(ctx, s.self.Name())
}

// Forget removes the report of an instance.
func (s *Store) Forget(ctx context.Context, name string) error {
	ctx, cancel := storageContext(ctx)
	defer cancel()
	_, err := inTime(ctx, func() (struct{}, error) { return struct{}{}, s.storage.Delete(ctx, reportKey(name)) })
	return err
}

// check is what it has come to when it was checked whether the storage answers.
type check struct {
	began time.Time
	err   error
}

// checkAnswers tells a storage that has nothing from one that does not answer, after it has
// said that something is not there. Reads that end at the same time share a check.
func (s *Store) checkAnswers(ctx context.Context, ended time.Time) error {
	if err := s.checking.take(ctx); err != nil {
		return err
	}
	defer s.checking.release()
	if s.checked.began.Before(ended) {
		s.checked.began = time.Now()
		s.checked.err = s.findReport(ctx)
	}
	return s.checked.err
}

// findReport reads the report of this instance, which must be there. One that is missing is
// stored again, since the storage may have been emptied.
func (s *Store) findReport(ctx context.Context) error {
	raw, err := s.self.stored()
	switch {
	case raw == nil && s.trusted:
		return nil
	case raw == nil:
		return err
	}
	key := reportKey(s.self.Name())
	_, err = await(ctx, s.begin(ctx, key))
	if errors.Is(err, fs.ErrNotExist) {
		if !s.self.Reports() {
			return nil // it has just been removed
		}
		s.emptied.Add(1)
		if err = s.storeInTime(ctx, key, raw); err != nil {
			return fmt.Errorf("%w: %w", ErrDown, err)
		}
		if !s.self.Reports() {
			return s.Forget(ctx, s.self.Name())
		}
		if _, err = await(ctx, s.begin(ctx, key)); errors.Is(err, fs.ErrNotExist) {
			return ErrDown
		}
	}
	return err
}

// listReports returns the names of all reports that are there. A list that does not have that
// of this instance is not complete.
func (s *Store) listReports(ctx context.Context) ([]string, error) {
	return s.list(ctx, reportsPath, func(names []string) bool {
		raw, _ := s.self.stored()
		return raw == nil || slices.Contains(names, s.self.Name())
	})
}
