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

// ReportInterval is how often an instance reports, even if nothing has changed.
const ReportInterval = 30 * time.Second

// ErrDown says that a storage answers, but does not find what has been stored.
var ErrDown = errors.New("the storage seems to be down: it finds nothing, not even what this instance has just stored")

// errNotReported says that the report of this instance, which would show whether the storage
// finds what it has, could not be stored yet.
var errNotReported = errors.New("the storage seems to be down: it finds nothing, and this instance has not been able to store anything yet")

// Report is what an instance reports about itself.
type Report struct {
	Host         string             `json:"instance"`
	Config       string             `json:"config"` // the config that reports
	Clock        time.Time          `json:"clock"`  // the instance's time of the report
	SyncInterval time.Duration      `json:"sync_interval"`
	Stopping     bool               `json:"stopping,omitempty"`
	Applied      string             `json:"applied,omitempty"` // the ID of the last entry of the journal that it has applied
	Behind       []string           `json:"behind,omitempty"`  // sites of the journal whose records it has not read or applied yet
	Absent       []string           `json:"absent,omitempty"`  // sites of the journal that its config does not have
	Closed       []string           `json:"closed,omitempty"`  // sites of the journal that are closed there
	Sites        map[string]Traffic `json:"sites,omitempty"`   // closed sites with requests
}

// Traffic is the number of requests of a site.
type Traffic struct {
	InFlight int64 `json:"in_flight"`
	Held     int64 `json:"held"`
}

// Patience is how long an instance may take to apply an entry of the journal before it counts
// as silent.
func (r *Report) Patience() time.Duration {
	return 3*max(0, min(r.SyncInterval, VerifyInterval)) + 3*time.Second
}

// Self is the instance of this process. Its report is in every storage that its configs use.
type Self struct {
	mu        sync.Mutex
	name      string
	raw       []byte // the last report that was stored; nil if there is none
	reporting bool   // it has begun to report
}

// NewSelf returns the instance whose report has that name.
func NewSelf(name string) *Self { return &Self{name: name} }

// NewName returns a unique name for the report of an instance: the host's name and a random
// suffix.
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

// Adopt takes over the name of a process that has ended. It must be called before the first
// report.
func (s *Self) Adopt(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.name = name
}

// Reports reports whether the storage may have a report of this instance.
func (s *Self) Reports() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reporting
}

// set notes that this instance reports, and the report that was stored unless it is nil.
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

// stored returns the report that was last stored. If this instance does not report, it returns
// nil and no error.
func (s *Self) stored() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.raw == nil && s.reporting {
		return nil, errNotReported
	}
	return s.raw, nil
}

func reportKey(name string) string { return reportsPath + "/" + name + ".json" }

// Report stores the report of this instance.
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

// Leave notes that the config of that ID reports from now on, to another storage or with another
// Store of this one: what still reads here must not store the report again.
func (s *Store) Leave(next string) { s.left.Store(&next) }

// RetireUnlessFrom removes the report of this instance unless that config stored it. An earlier
// config may have, where the storage was read before this one had reported.
func (s *Store) RetireUnlessFrom(ctx context.Context, next string) error {
	raw, err := await(ctx, s.begin(ctx, reportKey(s.self.Name())))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var r Report
	if err != nil || json.Unmarshal(raw, &r) != nil || r.Config == next {
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

// check is the result of checking whether the storage finds what it has.
type check struct {
	began time.Time
	err   error
}

// checkAnswers returns an error if the storage does not find what it has. It is called after a
// read, which ended then, has found nothing. Reads that end at the same time share a check.
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

// findReport reads the report of this instance, which must be there. If it is missing, it is
// stored and read again: the storage may have been emptied.
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
		if s.left.Load() != nil || !s.self.Reports() {
			return nil // it has just been removed
		}
		s.emptied.Add(1)
		if err = s.storeInTime(ctx, key, raw); err != nil {
			return fmt.Errorf("%w: %w", ErrDown, err)
		}
		if next := s.left.Load(); next != nil {
			return s.RetireUnlessFrom(ctx, *next)
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

// listReports returns the names of all reports. A list without the report of this instance is
// incomplete.
func (s *Store) listReports(ctx context.Context) ([]string, error) {
	return s.list(ctx, reportsPath, func(names []string) bool {
		raw, _ := s.self.stored()
		return raw == nil || slices.Contains(names, s.self.Name())
	})
}
