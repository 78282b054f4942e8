package site

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Record is a site's state as stored. Unknown fields are ignored, and known ones never change
// their meaning, so that instances of different versions of this module can share a storage.
type Record struct {
	// Version orders the records of a site. It is the time of the switch in microseconds, or
	// the highest version seen plus one, whichever is greater.
	Version int64     `json:"version"`
	Enabled bool      `json:"enabled"`
	Since   time.Time `json:"since,omitzero"`
	Options

	raw []byte // as stored
}

// MaxVersion is the highest valid version. It leaves room for later ones.
const MaxVersion = 1 << 62

// ErrInvalid says that a record exists but cannot be parsed.
var ErrInvalid = errors.New("the record is corrupt")

// ErrOutdated says that the record is missing, or older than one that is known to have been
// stored.
var ErrOutdated = errors.New("the record is missing or outdated: the journal lists a newer one")

// ParseRecord parses a record in its stored form.
func ParseRecord(raw []byte, durations DurationParser) (*Record, error) {
	var r struct {
		Record
		Enabled *bool `json:"enabled"`
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if r.Enabled == nil {
		return nil, fmt.Errorf("%w: enabled is missing", ErrInvalid)
	}
	if r.Version < 1 || r.Version > MaxVersion {
		return nil, fmt.Errorf("%w: version is %d", ErrInvalid, r.Version)
	}
	parsed := r.Record
	parsed.Enabled = *r.Enabled
	parsed.raw = raw
	parsed.resolve(durations)
	return &parsed, nil
}

// newRecord returns a record with its stored form.
func newRecord(version int64, enabled bool, since time.Time, o Options) (*Record, error) {
	r := &Record{Version: version, Enabled: enabled, Since: since, Options: o}
	raw, err := json.Marshal(r)
	r.raw = raw
	return r, err
}

// Raw returns the stored form of the record.
func (r *Record) Raw() []byte { return r.raw }

// NewerThan reports whether the record supersedes the other one.
func (r *Record) NewerThan(other *Record) bool {
	if r.Version != other.Version {
		return r.Version > other.Version
	}
	return bytes.Compare(r.raw, other.raw) > 0
}
