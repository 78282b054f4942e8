// Package store keeps the records of sites in a storage that several instances may share:
// it reads them, switches them, writes them again where the storage has lost them, and
// finds out which of them other instances have switched.
//
// Nothing waits for the storage longer than Timeout. What a read or a switch changes in
// memory comes back as changes, for the caller to pass on; nothing is logged here. The
// package knows a storage by the few methods that it needs, and does not know Caddy.
package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net/url"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"example.com/caddy-maintenance/internal/site"
)

// Storage is what is needed of a storage. Load returns an error that is fs.ErrNotExist
// where there is no value.
type Storage interface {
	Load(ctx context.Context, key string) ([]byte, error)
	Store(ctx context.Context, key string, value []byte) error
}

const (
	// Timeout is how long anything waits for the storage.
	Timeout = 10 * time.Second

	// MaxReads is how many reads are under way at once.
	MaxReads = 32

	// MarkerKey holds a random value that is replaced after each switch.
	MarkerKey = "maintenance/last_switch"
)

// ErrSilent says that the storage did not answer in time.
var ErrSilent = fmt.Errorf("the storage did not answer within %s", Timeout)

// ErrBusy says that an earlier switch of the site still waits for the storage.
var ErrBusy = errors.New("an earlier switch is still waiting for the storage; nothing has changed, repeat it when the storage answers")

// NotStoredError says that a switch could not be stored.
type NotStoredError struct {
	Site string
	Err  error
}

func (e *NotStoredError) Error() string {
	return fmt.Sprintf("storing state of site %s: %v; the switch may still take effect if the storage was only slow: "+
		"repeat it to be sure", e.Site, e.Err)
}

func (e *NotStoredError) Unwrap() error { return e.Err }

// Store is the records in a storage.
type Store struct {
	storage   Storage
	durations site.DurationParser

	// reads limits the reads under way, and so what a storage that hangs can tie up.
	// stalled is set once one has waited in vain: the others do not each wait in their turn.
	reads   *semaphore.Weighted
	stalled atomic.Bool
}

// New returns the records in a storage. Durations parses those in a record.
func New(storage Storage, durations site.DurationParser) *Store {
	return &Store{storage: storage, durations: durations, reads: semaphore.NewWeighted(MaxReads)}
}

// Key is where the record of a site is stored. Percent-encoding keeps : and * out of file
// names, which not every system takes.
func Key(name string) string { return "maintenance/sites/" + url.QueryEscape(name) + ".json" }

// storageContext ends when the storage has had its time, or with ctx.
func storageContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, Timeout, ErrSilent)
}

// Reading

type result struct {
	value []byte
	err   error
}

// begin begins to read a key. It waits for its turn where many reads are under way, so
// that a config of many sites neither starts as many goroutines nor has the last of them
// give up before it has begun. A read that hangs does so on its own; see await.
func (s *Store) begin(ctx context.Context, key string) <-chan result {
	done := make(chan result, 1)
	if s.stalled.Load() {
		done <- result{err: ErrSilent}
		return done
	}
	if s.reads.Acquire(ctx, 1) != nil {
		done <- result{err: context.Cause(ctx)}
		return done
	}
	go func() {
		value, err := s.storage.Load(ctx, key)
		s.reads.Release(1)
		done <- result{value, err}
	}()
	return done
}

func await(ctx context.Context, done <-chan result) ([]byte, error) {
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Read begins to read the record of a site, and sends what that has come to.
//
// A read that fails while another one is under way is tentative: a config that ends fails
// its reads, and tells nothing about the record.
func (s *Store) Read(ctx context.Context, target *site.Site) <-chan site.Read {
	target.Reading.Add(1)
	ctx, cancel := storageContext(ctx)
	reading := s.begin(ctx, Key(target.Name))
	done := make(chan site.Read, 1)
	go func() {
		defer cancel()
		raw, err := await(ctx, reading)
		if errors.Is(context.Cause(ctx), ErrSilent) {
			s.stalled.Store(true)
		}
		read := s.parse(target, raw, err)
		read.Tentative = target.Reading.Add(-1) > 0
		done <- read
	}()
	return done
}

func (s *Store) parse(target *site.Site, raw []byte, err error) (read site.Read) {
	switch {
	case err == nil:
		read.Record, read.Err = site.ParseRecord(raw, s.durations)
	case !errors.Is(err, fs.ErrNotExist):
		read.Err = err
	}
	if read.Err != nil {
		read.Err = fmt.Errorf("reading state of site %s: %w", target.Name, read.Err)
	}
	return read
}

// Switching

// TakeTurn waits until no other switch of the site is under way. The caller has to end
// its turn.
func (s *Store) TakeTurn(target *site.Site) error {
	timer := time.NewTimer(Timeout)
	defer timer.Stop()
	select {
	case target.Turn <- struct{}{}:
		return nil
	case <-timer.C:
		return ErrBusy
	}
}

// TryTurn takes the site's turn if no switch of it is under way, and reports whether it
// did. The caller has to end its turn.
func (s *Store) TryTurn(target *site.Site) bool {
	select {
	case target.Turn <- struct{}{}:
		return true
	default:
		return false
	}
}

// EndTurn lets the next switch of the site begin.
func (s *Store) EndTurn(target *site.Site) { <-target.Turn }

// Switch switches a site: in storage, then in memory. It reads the record first, since
// another instance may have switched the site. It yields what changes in memory on the
// way; if it fails, an error comes last. The caller has the site's turn, and sees it through:
// a switch that has begun does not end before its time.
func (s *Store) Switch(target site.Configured, m site.Mutation, cause site.Cause) iter.Seq2[site.Change, error] {
	return func(yield func(site.Change, error) bool) {
		ctx, cancel := storageContext(context.Background())
		defer cancel()
		for {
			read := s.load(ctx, target.Site)
			for change := range target.Apply(read, site.Cause{Source: site.SourceSync}, time.Now()) {
				if !yield(change, nil) {
					return
				}
			}
			record, err := mutate(ctx, target, read, m)
			if err != nil {
				yield(site.Change{}, err)
			}
			if record == nil || err != nil {
				return
			}
			target.PendingVersion.Store(record.Version)
			if err := s.store(ctx, target.Name, record); err != nil {
				target.PendingVersion.Store(0)
				yield(site.Change{}, &NotStoredError{target.Name, err})
				return
			}
			published := false
			for change := range target.Apply(site.Read{Record: record}, cause, time.Now()) {
				published = published || change.After.Record() == record
				if !yield(change, nil) {
					return
				}
			}
			target.PendingVersion.Store(0)
			if published {
				return
			}
			// Another instance has switched the site at the same time, and this one came to
			// know of that record before its own was in memory.
		}
	}
}

// mutate returns the record that a switch makes of what has been read, nil if nothing is
// to change.
func mutate(ctx context.Context, target site.Configured, read site.Read, m site.Mutation) (*site.Record, error) {
	err := read.Err
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx) // too late: the client has been told that it failed
	}
	if err != nil && !errors.Is(err, site.ErrInvalid) {
		return nil, fmt.Errorf("%w; nothing has changed, repeat it when the storage answers", err)
	}
	return target.Mutate(m, time.Now())
}

func (s *Store) load(ctx context.Context, target *site.Site) site.Read {
	raw, err := s.storage.Load(ctx, Key(target.Name))
	return s.parse(target, raw, err)
}

// store stores a record, and then what tells other instances to look for it.
func (s *Store) store(ctx context.Context, name string, r *site.Record) error {
	if err := s.storage.Store(ctx, Key(name), r.Raw()); err != nil {
		return err
	}
	return s.storage.Store(ctx, MarkerKey, []byte(rand.Text()))
}

// Load reads the record of a site, and returns what that has come to.
func (s *Store) Load(ctx context.Context, target *site.Site) site.Read {
	ctx, cancel := storageContext(ctx)
	defer cancel()
	return s.load(ctx, target)
}

// Lacks reports whether what was read shows that the storage lacks the record of the
// state, or holds an older one. A read that failed shows nothing.
func Lacks(read site.Read, st *site.State) bool {
	return (read.Err == nil || errors.Is(read.Err, site.ErrInvalid)) && st.NewerThan(read.Record)
}

// Restore stores the state in memory again if what was read lacks it, or is older. It
// reports whether it did. The caller has the site's turn.
func (s *Store) Restore(ctx context.Context, target *site.Site, read site.Read) (stored bool, err error) {
	st := target.Current()
	if !Lacks(read, st) || ctx.Err() != nil {
		return false, nil
	}
	ctx, cancel := storageContext(ctx)
	defer cancel()
	err = s.store(ctx, target.Name, st.Record())
	return err == nil, err
}
