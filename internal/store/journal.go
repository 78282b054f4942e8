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

// JournalKey holds the journal: what was switched last, for instances to follow.
const JournalKey = "maintenance/journal.json"

// maxEntries is how many entries the journal keeps.
const maxEntries = 64

// Entry is an entry of the journal: a switch that begins, one that has been stored, or a
// question, which makes every instance read the site's record.
//
// An ID stands at one place for good: what is added again gets another one. So whoever has
// seen an entry has seen all that was before it.
type Entry struct {
	ID      string `json:"id"`
	Site    string `json:"site,omitempty"`
	Version int64  `json:"version,omitempty"` // of the record; 0: a question
	Enabled bool   `json:"enabled,omitempty"`
	Done    bool   `json:"done,omitempty"` // the record has been stored

	// Sites are those that a question is about; none: it only wants to be answered.
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

// settled reports whether the entry stays as it is.
func (e Entry) settled() bool { return e.Done || e.Version == 0 }

// Journal is the entries, oldest first.
type Journal []Entry

func parseJournal(raw []byte) (Journal, error) {
	var j Journal
	err := json.Unmarshal(raw, &j)
	return slices.DeleteFunc(j, func(e Entry) bool { return e.Version < 0 || e.Version > site.MaxVersion }), err
}

// with returns the journal with an entry at its end. One that is done takes the place of
// the one that began the switch.
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

// index returns the place of an entry, -1 if it is not there.
func (j Journal) index(id string) int {
	return slices.IndexFunc(j, func(e Entry) bool { return e.ID == id })
}

// lastSettled returns the last entry that stays as it is, none if there is no such entry.
func (j Journal) lastSettled() string {
	for _, e := range slices.Backward(j) {
		if e.settled() {
			return e.ID
		}
	}
	return ""
}

// Version returns that of the newest record of the site that has been stored, 0 if the
// journal names none.
func (j Journal) Version(site string) (version int64) {
	for name, stored := range j.Stored() {
		if name == site {
			version = max(version, stored)
		}
	}
	return version
}

// basis returns the place of the entry that an instance must have applied to have a record of
// that version, or a newer one: a switch that has stored one, or the first question after it
// about the site. It returns -1 if there is none. Without a site, it is the last entry that
// stays.
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

// hasAny reports whether one of the entries is there.
func (j Journal) hasAny(others Journal) bool {
	return slices.ContainsFunc(others, func(e Entry) bool { return e.settled() && j.index(e.ID) >= 0 })
}

// readJournal reads the journal. One that is missing or damaged is empty.
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
		return nil, nil //nolint:nilerr // its entries are lost, as if it were missing; see Follower.Tick
	}
	return j, nil
}

// add adds entries to the journal, and returns it. Other instances may do that at the same
// time, and one of them lose its entries; see lookAgain. Without entries, a journal that is
// missing is stored.
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

// When whoever has added an entry looks whether it is still there.
var lookAgainAfter = []time.Duration{time.Second, 5 * time.Second}

// lookAgain adds an entry of a stored record again if another instance has changed the
// journal at the same time and the entry was lost, or if it could not be added. With it were
// other entries in the journal; when none of them is left, it is only too old.
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
			_, _ = s.add(ctx, e) // else all records are verified once a minute
		}
		cancel()
	}
}

// Journal reads the journal, as it is before records are read.
func (s *Store) Journal(ctx context.Context) (Journal, error) {
	ctx, cancel := storageContext(ctx)
	defer cancel()
	return s.readJournal(ctx)
}

// Stored yields the sites of records that have been stored, and the versions of these.
func (j Journal) Stored() iter.Seq2[string, int64] {
	return func(yield func(string, int64) bool) {
		for _, e := range j {
			if e.Done && !yield(e.Site, e.Version) {
				return
			}
		}
	}
}
