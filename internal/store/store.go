// Package store keeps the records of sites in a storage that several instances may share. It
// reads and switches records, restores those that the storage has lost, follows the switches
// of other instances, and finds out which instances have applied a switch.
//
//	sites/<name>.json   a record (store.go)
//	journal.json        the latest switches (journal.go); followers read only this (follow.go)
//	instances/<x>.json  an instance's report about itself (report.go); others read it (fleet.go)
//
// A local file keeps what must survive the loss of the storage (memory.go).
//
// Nothing waits for the storage longer than Timeout. Reads and switches return the changes in
// memory, and the caller passes them on. The package does not log. It accesses a storage by the
// few methods that it needs, and does not know Caddy.
package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"example.com/caddy-maintenance/internal/site"
)

// Storage is the part of a Caddy storage that this package needs. Load returns an error that
// is fs.ErrNotExist if there is no value.
type Storage interface {
	Load(ctx context.Context, key string) ([]byte, error)
	Store(ctx context.Context, key string, value []byte) error
	Delete(ctx context.Context, key string) error
	List(ctx context.Context, path string, recursive bool) ([]string, error)
}

const (
	// Timeout is the longest time that anything waits for the storage.
	Timeout = 10 * time.Second

	// MaxReads is the maximum number of reads at once.
	MaxReads = 32
)

// ErrSilent says that the storage did not answer in time.
var ErrSilent = fmt.Errorf("the storage did not answer within %s", Timeout)

// ErrBusy says that an earlier switch of the site still waits for the storage.
var ErrBusy = errors.New("an earlier switch is still waiting for the storage; nothing has changed; try again when the storage answers")

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

// Store gives access to the records in a storage.
type Store struct {
	ctx       context.Context // ends with the config
	storage   Storage
	durations site.DurationParser
	self      *Self

	writing  turn         // to change the journal
	checking turn         // to check whether the storage finds what it has
	checked  check        // the last one; guarded by checking
	trusted  bool         // see TrustAbsence
	emptied  atomic.Int64 // how often the storage has lost the report of this instance

	addedMu sync.Mutex
	added   map[string]time.Time // when this instance last added an entry of each site
	pruned  time.Time            // when old times were last removed

	// reads limits the reads at once, and so what a storage that hangs can tie up. stalled is
	// set when one has timed out, so that the others do not wait one after the other.
	reads   *semaphore.Weighted
	stalled atomic.Bool

	left atomic.Pointer[string] // the config that reports elsewhere; see Leave
}

// New returns a Store for an instance. durations parses the durations in records. Background
// work ends with ctx.
func New(ctx context.Context, storage Storage, durations site.DurationParser, self *Self) *Store {
	return &Store{
		ctx: ctx, storage: storage, durations: durations, self: self,
		writing: newTurn(), checking: newTurn(),
		added: make(map[string]time.Time), reads: semaphore.NewWeighted(MaxReads),
	}
}

// TrustAbsence says that the storage reliably tells a missing value from a failure. Then a value
// counts as missing even if the report of this instance could not be stored, so that a full disk
// does not close a site that was never switched.
func (s *Store) TrustAbsence() { s.trusted = true }

const sitesPath = "maintenance/sites"

// Key returns the key of a site's record. Percent-encoding keeps : and * out of file names,
// since not every system allows them.
func Key(name string) string { return sitesPath + "/" + url.QueryEscape(name) + ".json" }

// storageContext returns a context that ends after Timeout with ErrSilent, or with ctx.
func storageContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, Timeout, ErrSilent)
}

// inTime calls a function that uses the storage, and returns when it returns or ctx ends, even
// if the storage ignores ctx.
func inTime[T any](ctx context.Context, do func() (T, error)) (T, error) {
	done := make(chan result[T], 1)
	go func() {
		value, err := do()
		done <- result[T]{value, err}
	}()
	return await(ctx, done)
}

type result[T any] struct {
	value T
	err   error
}

func await[T any](ctx context.Context, done <-chan result[T]) (T, error) {
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return *new(T), context.Cause(ctx)
	}
}

// turn is a lock that can be waited for with a context.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (t turn) release() { <-t }

func (s *Store) storeInTime(ctx context.Context, key string, value []byte) error {
	_, err := inTime(ctx, func() (struct{}, error) { return struct{}{}, s.storage.Store(ctx, key, value) })
	return err
}

// Reading

// begin begins to read a key. If MaxReads reads are under way, it waits, so that a config with
// many sites starts few goroutines and no read times out before it begins. A read that hangs
// does not block its caller, who awaits the result.
func (s *Store) begin(ctx context.Context, key string) <-chan result[[]byte] {
	return begin(ctx, s, func() ([]byte, error) { return s.storage.Load(ctx, key) })
}

func begin[T any](ctx context.Context, s *Store, read func() (T, error)) <-chan result[T] {
	done := make(chan result[T], 1)
	if s.stalled.Load() {
		done <- result[T]{err: ErrSilent}
		return done
	}
	isOver := ctx.Err() != nil
	if s.reads.Acquire(ctx, 1) != nil {
		if !isOver {
			s.noteStalled(ctx)
		}
		done <- result[T]{err: context.Cause(ctx)}
		return done
	}
	go func() {
		value, err := read()
		s.reads.Release(1)
		done <- result[T]{value, err}
	}()
	return done
}

// noteStalled notes that a read has timed out, if ctx says so.
func (s *Store) noteStalled(ctx context.Context) {
	if errors.Is(context.Cause(ctx), ErrSilent) {
		s.stalled.Store(true)
	}
}

// Read begins to read the record of a site, and sends the result.
//
// A read is tentative while another one of the same site is under way. When a config ends, its
// reads fail, and that says nothing about the record.
func (s *Store) Read(ctx context.Context, target *site.Site) <-chan site.Read {
	target.Reading.Add(1)
	ctx, cancel := storageContext(ctx)
	reading := s.begin(ctx, Key(target.Name))
	done := make(chan site.Read, 1)
	go func() {
		defer cancel()
		raw, err := await(ctx, reading)
		s.noteStalled(ctx)
		there := !errors.Is(err, fs.ErrNotExist)
		if !there {
			err = s.checkAnswers(ctx, time.Now())
		}
		read := s.parse(target, there, raw, err)
		read.Tentative = target.Reading.Add(-1) > 0
		done <- read
	}()
	return done
}

// parse returns the result of reading a record. there says whether the record exists.
func (s *Store) parse(target *site.Site, there bool, raw []byte, err error) (read site.Read) {
	if err == nil && there {
		read.Record, err = site.ParseRecord(raw, s.durations)
	}
	if stored := target.StoredVersion.Load(); err == nil && versionOf(read.Record) < stored && target.Current().Version() < stored {
		read.Record, err = nil, site.ErrOutdated
	}
	if err != nil {
		read.Err = fmt.Errorf("reading state of site %s: %w", target.Name, err)
	}
	return read
}

func versionOf(r *site.Record) int64 {
	if r == nil {
		return 0
	}
	return r.Version
}

// Listing

// listAttempts is how often an incomplete listing is repeated. A storage of files fails, or
// stops half way, if a file is removed meanwhile; each stored value removes a temporary one.
const listAttempts = 10

// emptyAttempts is how often an empty listing is repeated.
const emptyAttempts = 3

// errNotListed says that a list lacks something that is in the storage.
var errNotListed = errors.New("the storage returned an incomplete list")

// list returns the names in a directory. It returns none if there is no such directory.
func (s *Store) list(ctx context.Context, directory string, isComplete func(names []string) bool) ([]string, error) {
	found := false
	for attempt := range listAttempts {
		keys, err := await(ctx, begin(ctx, s, func() ([]string, error) { return s.storage.List(ctx, directory, true) }))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		names := namesOf(keys, directory)
		if err == nil && isComplete(names) {
			return names, nil
		}
		if err := s.findReport(ctx); err != nil {
			return nil, err
		}
		found = found || len(keys) > 0
		if !found && isComplete(nil) && attempt+1 >= emptyAttempts {
			return nil, nil
		}
	}
	return nil, errNotListed
}

// namesOf returns the names of the JSON files among keys. It skips files that are being written,
// and those of other directories, which some storages list as well.
func namesOf(keys []string, directory string) []string {
	var names []string
	for _, key := range keys {
		name, ok := strings.CutSuffix(path.Base(key), ".json")
		if ok && strings.HasSuffix("/"+path.Dir(key), "/"+directory) {
			names = append(names, name)
		}
	}
	return names
}

// Listing is the result of listing the records.
type Listing struct {
	Names []string // of the sites that have or should have a record
	site.Read
}

// List begins to list the sites that have a record, instead of reading one for target, and sends
// the result. It adds the sites in closed and those of the journal, since the storage may have
// lost their records.
func (s *Store) List(ctx context.Context, target *site.Site, closed []string) <-chan Listing {
	target.Reading.Add(1)
	done := make(chan Listing, 1)
	go func() {
		ctx, cancel := storageContext(ctx)
		defer cancel()
		l := Listing{Names: closed}
		if j, err := s.readJournal(ctx); err == nil {
			for name := range j.Stored() {
				l.Names = append(l.Names, name)
			}
		}
		listed, err := s.listSites(ctx, l.Names)
		if err != nil {
			s.noteStalled(ctx)
			l.Err = fmt.Errorf("listing sites: %w", err)
		}
		l.Names = append(l.Names, listed...)
		l.Tentative = target.Reading.Add(-1) > 0
		done <- l
	}()
	return done
}

// listSites lists the sites that have a record. A storage may list too few when it is down, or
// because it lists differently from others. So the list must have those of some that have a
// record, and the storage must also list the report of this instance.
func (s *Store) listSites(ctx context.Context, some []string) ([]string, error) {
	names, err := s.listOnce(ctx, some)
	if errors.Is(err, errNotListed) {
		return s.listOnce(ctx, some) // a record may have been stored since the list was made
	}
	return names, err
}

func (s *Store) listOnce(ctx context.Context, some []string) ([]string, error) {
	escaped, err := s.list(ctx, sitesPath, func([]string) bool { return true })
	if err != nil {
		return nil, err
	}
	if err := s.findReport(ctx); err != nil {
		return nil, err
	}
	if _, err := s.listReports(ctx); err != nil {
		return nil, err
	}
	there := make(map[string]bool)
	for _, name := range escaped {
		if name, err := url.QueryUnescape(name); err == nil {
			there[name] = true
		}
	}
	if len(there) == 0 {
		some = append(slices.Clip(some), "") // to check that reading a missing record works
	}
	for _, name := range some {
		if there[name] {
			continue
		}
		switch _, err := await(ctx, s.begin(ctx, Key(name))); {
		case err == nil:
			return nil, errNotListed
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	return slices.Collect(maps.Keys(there)), nil
}

// Switching

// TakeTurn waits until no other switch of the site is under way. The caller must call EndTurn.
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

// TryTurn takes the site's turn if no switch of it is under way, and reports whether it did. If
// so, the caller must call EndTurn.
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

// Switch switches a site, first in storage and then in memory. It begins by reading the record,
// since another instance may have switched the site. It adds an entry to the journal before and
// after it stores the record. It yields the changes in memory; if it fails, an error comes last.
// The caller must have the site's turn, and must not stop before the end: a switch that has
// begun goes on until it is done or Timeout has passed.
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
			if err := s.commit(ctx, target.Site, record); err != nil {
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
			// Another instance switched the site at the same time, and its record was applied
			// here first. Switch again on top of it.
		}
	}
}

// mutate returns the record that results from a switch after a read, nil if nothing changes.
func mutate(ctx context.Context, target site.Configured, read site.Read, m site.Mutation) (*site.Record, error) {
	err := read.Err
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx) // too late: the client has got an error
	}
	if err != nil && !errors.Is(err, site.ErrInvalid) && !errors.Is(err, site.ErrOutdated) {
		return nil, fmt.Errorf("%w; nothing has changed; try again when the storage answers", err)
	}
	return target.Mutate(m, time.Now())
}

func (s *Store) load(ctx context.Context, target *site.Site) site.Read {
	raw, err := s.storage.Load(ctx, Key(target.Name))
	if errors.Is(err, fs.ErrNotExist) {
		return s.parse(target, false, nil, s.findReport(ctx))
	}
	return s.parse(target, true, raw, err)
}

// commit stores a record. The journal says beforehand that the switch has begun, and followers
// then read the record for a while: if this instance crashes half way, they all end up with the
// same state.
func (s *Store) commit(ctx context.Context, target *site.Site, r *site.Record) error {
	e := Entry{Site: target.Name, Version: r.Version, Enabled: r.Enabled}
	if _, err := s.add(ctx, e); err != nil {
		return err
	}
	if err := s.storage.Store(ctx, Key(target.Name), r.Raw()); err != nil {
		return err
	}
	s.addDone(ctx, target, r)
	return nil
}

// addDone adds to the journal that a record is stored. If that fails, it is tried again later;
// the switch is valid, and others find the record at the latest when they verify it.
func (s *Store) addDone(ctx context.Context, target *site.Site, r *site.Record) {
	target.NoteStored(r.Version)
	e := Entry{Site: target.Name, Version: r.Version, Enabled: r.Enabled, Done: true}
	with, _ := s.add(ctx, e)
	s.noteAdded(e)
	go s.lookAgain(e, with)
}

// addedFor is how long this instance remembers entries that it has added.
const addedFor = 5 * time.Minute

// noteAdded remembers an entry.
func (s *Store) noteAdded(e Entry) {
	s.addedMu.Lock()
	defer s.addedMu.Unlock()
	now := time.Now()
	if now.Sub(s.pruned) > time.Minute {
		maps.DeleteFunc(s.added, func(_ string, at time.Time) bool { return now.Sub(at) > addedFor })
		s.pruned = now
	}
	s.added[e.Site] = now
}

// addedLately returns the sites of entries that this instance has added in the last minutes.
func (s *Store) addedLately() []string {
	s.addedMu.Lock()
	defer s.addedMu.Unlock()
	return slices.Collect(maps.Keys(s.added))
}

// AddEntry adds to the journal that the record of the state in memory is stored, so that
// other instances read it.
func (s *Store) AddEntry(ctx context.Context, target *site.Site) {
	if r := target.Current().Record(); r != nil {
		ctx, cancel := storageContext(ctx)
		defer cancel()
		s.addDone(ctx, target, r)
	}
}

// Load reads the record of a site, and waits for the result.
func (s *Store) Load(ctx context.Context, target *site.Site) site.Read {
	ctx, cancel := storageContext(ctx)
	defer cancel()
	return s.load(ctx, target)
}

// Lacks reports whether a read shows that the storage lacks the record of the state or has an
// older one. A failed read does not show that.
func Lacks(read site.Read, st *site.State) bool {
	return (read.Err == nil || errors.Is(read.Err, site.ErrInvalid)) && st.NewerThan(read.Record)
}

// Restore stores the record in memory again if the storage Lacks it, and reports whether it did.
// The caller must have the site's turn, and tells other instances by AddEntry.
func (s *Store) Restore(ctx context.Context, target *site.Site, read site.Read) (stored bool, err error) {
	st := target.Current()
	if !Lacks(read, st) || ctx.Err() != nil {
		return false, nil
	}
	ctx, cancel := storageContext(ctx)
	defer cancel()
	err = s.storage.Store(ctx, Key(target.Name), st.Record().Raw())
	return err == nil, err
}
