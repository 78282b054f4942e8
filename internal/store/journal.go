package store

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io/fs"
	"iter"
	"slices"
	"time"

	"example.com/caddy-maintenance/internal/site"
)

// JournalKey is the key of the journal: the latest switches, for instances to follow.
const JournalKey = "maintenance/journal.json"

// maxEntries is how many entries the journal keeps.
const maxEntries = 64

// Entry is an entry of the journal: a switch that has begun, a switch that is done, or a
// question, which makes every instance read the sites' records.
//
// An ID never changes its position: an entry that is added again gets a new one. So an
// instance that has seen an entry has seen all before it.
type Entry struct {
	ID      string `json:"id"`
	Site    string `json:"site,omitempty"`
	Version int64  `json:"version,omitempty"` // of the record; 0 for a question
	Enabled bool   `json:"enabled,omitempty"`
	Done    bool   `json:"done,omitempty"` // the record has been stored

	// Sites are the sites of a question. Without any, it only asks for an answer.
	Sites []string `json:"sites,omitempty"`
}

// names returns the sites that the entry is about.
func (e Entry) names() []string {
	if e.Site != "" {
		return []string{e.Site}
	}
	return e.Sites
}

// concerns reports whether the entry is about a site.
func (e Entry) concerns(site string) bool { return e.Site == site || slices.Contains(e.Sites, site) }

// settled reports whether the entry is final: not a switch that has only begun.
func (e Entry) settled() bool { return e.Done || e.Version == 0 }

// Journal is a list of entries, oldest first.
type Journal []Entry

func parseJournal(raw []byte) (Journal, error) {
	var j Journal
	err := json.Unmarshal(raw, &j)
	return slices.DeleteFunc(j, func(e Entry) bool { return e.Version < 0 || e.Version > site.MaxVersion }), err
}

// with returns the journal with an entry appended. A switch that is done replaces its entry
// from when it began.
func (j Journal) with(e Entry) Journal {
	next := make(Journal, 0, len(j)+1)
	for _, old := range j {
		if e.Done && old.Version == e.Version && old.Site == e.Site && !old.Done {
			continue
		}
		next = append(next, old)
	}
	next = append(next, e)
	return next[max(0, len(next)-maxEntries):]
}

// index returns the index of an entry, -1 if it is not there.
func (j Journal) index(id string) int {
	return slices.IndexFunc(j, func(e Entry) bool { return e.ID == id })
}

// lastSettled returns the ID of the last settled entry, "" if there is none.
func (j Journal) lastSettled() string {
	for _, e := range slices.Backward(j) {
		if e.settled() {
			return e.ID
		}
	}
	return ""
}

// Version returns the version of the newest stored record of a site in the journal, 0 if there
// is none.
func (j Journal) Version(site string) (version int64) {
	for name, stored := range j.Stored() {
		if name == site {
			version = max(version, stored)
		}
	}
	return version
}

// basis returns the index of the entry that an instance must have applied to have a record of
// that version or a newer one: the switch that has stored it, or else the first question about
// the site after older switches. It returns -1 if there is none. If site is empty, it returns
// the last settled entry.
func (j Journal) basis(site string, version int64) int {
	if site == "" {
		return j.index(j.lastSettled())
	}
	question := -1
	for i, e := range slices.Backward(j) {
		switch {
		case !e.concerns(site):
		case e.Version == 0:
			question = i
		case e.Done && e.Version >= version:
			return i
		default:
			return question // an older switch, or one that has only begun: later questions tell
		}
	}
	return question
}

// hasAny reports whether the journal has one of the settled entries of another one.
func (j Journal) hasAny(others Journal) bool {
	return slices.ContainsFunc(others, func(e Entry) bool { return e.settled() && j.index(e.ID) >= 0 })
}

// lost returns the sites of stored records whose entries in an earlier journal are missing,
// although newer ones have not pushed them out: an older copy of the storage was put back, or two
// instances have changed the journal at the same time.
func (j Journal) lost(earlier Journal) (sites []string) {
	pushedOut := len(j) == maxEntries
	for _, e := range earlier {
		switch {
		case j.index(e.ID) >= 0:
			pushedOut = false
		case e.Done && !pushedOut && j.Version(e.Site) < e.Version:
			sites = append(sites, e.Site)
		}
	}
	return sites
}

// readJournal reads the journal. A missing or damaged one counts as empty.
func (s *Store) readJournal(ctx context.Context) (Journal, error) {
	raw, err := await(ctx, s.begin(ctx, JournalKey))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, s.findReport(ctx)
	}
	if err != nil {
		return nil, err
	}
	j, err := parseJournal(raw)
	if err != nil {
		return nil, nil //nolint:nilerr // as if it were missing; see Follower.Tick
	}
	return j, nil
}

// add adds entries to the journal and returns it. If other instances do so at the same time,
// entries may be lost; see lookAgain. Without entries, add only stores a missing journal.
func (s *Store) add(ctx context.Context, entries ...Entry) (Journal, error) {
	if err := s.writing.take(ctx); err != nil {
		return nil, err
	}
	defer s.writing.release()
	j, err := s.readJournal(ctx)
	if err != nil || j != nil && len(entries) == 0 {
		return j, err
	}
	for _, e := range entries {
		e.ID = rand.Text()[:16]
		j = j.with(e)
	}
	if j == nil {
		j = Journal{}
	}
	raw, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	return j, s.storeInTime(ctx, JournalKey, raw)
}

// lookAgainAfter is when an instance that has added an entry checks that it is still there.
var lookAgainAfter = []time.Duration{time.Second, 5 * time.Second}

// lookAgain adds an entry of a stored record again if it could not be added, or if it was lost
// because another instance changed the journal at the same time. with is the journal with the
// entry: if none of its entries is left, this one has not been lost but has grown too old.
func (s *Store) lookAgain(e Entry, with Journal) {
	added := time.Now()
	for _, after := range lookAgainAfter {
		timer := time.NewTimer(time.Until(added.Add(after)))
		select {
		case <-timer.C:
		case <-s.ctx.Done():
			timer.Stop()
			return
		}
		ctx, cancel := storageContext(s.ctx)
		j, err := s.readJournal(ctx)
		if err == nil && j.Version(e.Site) < e.Version && (len(j) < maxEntries || j.hasAny(with)) {
			_, _ = s.add(ctx, e) // if this fails, others find the record when they verify it
		}
		cancel()
	}
}

// Journal reads the journal.
func (s *Store) Journal(ctx context.Context) (Journal, error) {
	ctx, cancel := storageContext(ctx)
	defer cancel()
	return s.readJournal(ctx)
}

// Stored yields the site and the version of each stored record in the journal.
func (j Journal) Stored() iter.Seq2[string, int64] {
	return func(yield func(string, int64) bool) {
		for _, e := range j {
			if e.Done && !yield(e.Site, e.Version) {
				return
			}
		}
	}
}
