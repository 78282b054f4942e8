// Package store keeps the records of sites in a storage that several instances may share:
// it reads them, switches them, writes them again where the storage has lost them, finds
// out which of them other instances have switched, and what those have made of it.
//
//	sites/<name>.json   a record (store.go)
//	journal.json        what was switched last (journal.go); who follows reads only that (follow.go)
//	instances/<x>.json  what an instance says of itself (report.go), which others read (fleet.go)
//
// What must outlive the storage is in a file beside it (memory.go).
//
// Nothing waits for the storage longer than Timeout. What a read or a switch changes in
// memory comes back as changes, for the caller to pass on; nothing is logged here. The
// package knows a storage by the few methods that it needs, and does not know Caddy.
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

// Storage is what is needed of a storage. Load returns an error that is fs.ErrNotExist
// where there is no value.
type Storage interface {
	Load(ctx context.Context, key string) ([]byte, error)
	Store(ctx context.Context, key string, value []byte) error
	Delete(ctx context.Context, key string) error
	List(ctx context.Context, path string, recursive bool) ([]string, error)
}

const (
	// Timeout is how long anything waits for the storage.
	Timeout = 10 * time.Second

	// MaxReads is how many reads are under way at once.
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

// Store is the records in a storage.
type Store struct {
	ctx       context.Context // ends with the config
	storage   Storage
	durations site.DurationParser
	self      *Self

	writing  turn         // of who changes the journal
	checking turn         // of who checks whether the storage answers
	checked  check        // the last time; guarded by checking
	trusted  bool         // see TrustAbsence
	emptied  atomic.Int64 // how often the storage has lost the report of this instance

	addedMu sync.Mutex
	added   map[string]time.Time // when an entry of a site was last added
	pruned  time.Time            // when old ones were last removed

	// reads limits the reads under way, and so what a storage that hangs can tie up.
	// stalled is set once one has waited in vain: the others do not each wait in their turn.
	reads   *semaphore.Weighted
	stalled atomic.Bool
}

// New returns the records in a storage, as an instance sees them. Durations parses those
// in a record. When ctx has ended, nothing goes on that nobody waits for.
func New(ctx context.Context, storage Storage, durations site.DurationParser, self *Self) *Store {
	return &Store{
		ctx: ctx, storage: storage, durations: durations, self: self,
		writing: newTurn(), checking: newTurn(),
		added: make(map[string]time.Time), reads: semaphore.NewWeighted(MaxReads),
	}
}

// TrustAbsence says that the storage is one that says what has failed: that something is not
// there is believed though the report of this instance cannot be stored. A disk that is full
// closes no site that was never switched.
func (s *Store) TrustAbsence() { s.trusted = true }

const sitesPath = "maintenance/sites"

// Key is where the record of a site is stored. Percent-encoding keeps : and * out of file
// names, which not every system takes.
func Key(name string) string { return sitesPath + "/" + url.QueryEscape(name) + ".json" }

// storageContext ends when the storage has had its time, or with ctx.
func storageContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, Timeout, ErrSilent)
}

// inTime does something with the storage, and returns when that is done or ctx has ended,
// whether or not the storage obeys it.
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

// turn is what one takes at a time.
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

// begin begins to read a key. It waits for its turn where many reads are under way, so
// that a config of many sites neither starts as many goroutines nor has the last of them
// give up before it has begun. A read that hangs does so on its own; see await.
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

// noteStalled notes that a read has waited in vain, if ctx says so.
func (s *Store) noteStalled(ctx context.Context) {
	if errors.Is(context.Cause(ctx), ErrSilent) {
		s.stalled.Store(true)
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

// parse returns what reading a record has come to, which is there or not.
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

// listAttempts is how often a storage is listed at once. One of files fails, or stops half
// way, if a file goes while it lists them; each value that is stored makes one go.
const listAttempts = 10

// emptyAttempts is how often it is listed if it says that there is nothing.
const emptyAttempts = 3

// errNotListed says that a list does not have what must be in it.
var errNotListed = errors.New("the storage returned an incomplete list")

// list returns the names in a directory, none if there is no such directory.
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

// namesOf returns the names in keys of JSON. Others are being written, or are in another
// directory, which some storages list with it.
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

// Listing is what listing the records has come to.
type Listing struct {
	Names []string // of the sites that have a record, or should have one
	site.Read
}

// List begins to list the sites that have a record, in place of reading one of target, and
// sends what that has come to. It adds those that were last known to be closed, and those of
// the journal, for what is there can be lost.
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

// listSites lists the sites that have a record. A storage says that there are fewer than there
// are if it is down, and some do if they list another way than is meant. So the list has to
// have those of these sites that have a record, and the same storage has to list the report of
// this instance.
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
		some = append(slices.Clip(some), "") // to see how reading one fails
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
// another instance may have switched the site, and tells of it in the journal before it
// stores the record and when it has. It yields what changes in memory on the
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

// commit stores a record. Whoever follows looks at the record for a while when it has seen
// the switch begin: should this instance end half way, all others come to the same.
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

// addDone adds to the journal that a record is stored. The record is what counts: if that
// fails, it is tried again, and others find it by themselves in the end.
func (s *Store) addDone(ctx context.Context, target *site.Site, r *site.Record) {
	target.NoteStored(r.Version)
	e := Entry{Site: target.Name, Version: r.Version, Enabled: r.Enabled, Done: true}
	with, _ := s.add(ctx, e)
	s.noteAdded(e)
	go s.lookAgain(e, with)
}

// addedFor is how long entries that this instance has added are remembered.
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

// addedLately returns the sites of entries that were added in the last minutes.
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
// reports whether it did. The caller has the site's turn, and tells others.
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
