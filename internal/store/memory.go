package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"example.com/caddy-maintenance/internal/site"
)

// Memory is what an instance last knew of sites that are not off, in a file of its own. It
// outlives the process, and what becomes of the storage meanwhile.
//
// The file has a line for each change, the last one of a site counts. It is written anew
// when a process begins to use it; several processes can add to it.
type Memory struct {
	path      string // none: nothing is kept
	durations site.DurationParser

	mu      sync.Mutex
	records map[memoryKey]json.RawMessage // as the file has them; nil: not read yet
	pending []byte                        // lines that have still to be written

	saving sync.Mutex // held while the file is written
}

// memoryKey is a site of a storage.
type memoryKey struct {
	Storage string `json:"storage,omitempty"`
	Site    string `json:"site"`
}

// memoryLine is a line of the file.
type memoryLine struct {
	memoryKey
	Record json.RawMessage `json:"record,omitempty"` // none: the site is off
}

// NewMemory returns the memory that is in the file. Without a path it keeps nothing.
func NewMemory(path string, durations site.DurationParser) *Memory {
	return &Memory{path: path, durations: durations}
}

// Record returns what was last known of a site of a storage, nil if the site was off or is
// not known.
func (m *Memory) Record(storage, name string) *site.Record {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.read()
	raw := m.records[memoryKey{storage, name}]
	if raw == nil {
		return nil
	}
	r, err := site.ParseRecord(raw, m.durations)
	if err != nil {
		return nil
	}
	return r
}

// Sites returns the sites of a storage that were not off.
func (m *Memory) Sites(storage string) (names []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.read()
	for key := range m.records {
		if key.Storage == storage {
			names = append(names, key.Site)
		}
	}
	return names
}

// read reads the file, once. What cannot be read is not known.
func (m *Memory) read() {
	if m.records != nil {
		return
	}
	m.records = make(map[memoryKey]json.RawMessage)
	if m.path == "" {
		return
	}
	raw, _ := os.ReadFile(m.path)
	lines := 0
	for line := range bytes.Lines(raw) {
		lines++
		var l memoryLine
		if json.Unmarshal(line, &l) != nil {
			continue // the process ended while it wrote this
		}
		if delete(m.records, l.memoryKey); l.Record != nil {
			m.records[l.memoryKey] = l.Record
		}
	}
	if lines > 2*len(m.records)+maxEntries {
		m.rewrite()
	}
}

// rewrite leaves the lines that count. If that fails, they are all still there.
func (m *Memory) rewrite() {
	var lines []byte
	for key, record := range m.records {
		lines = appendLine(lines, memoryLine{key, record})
	}
	temporary, err := os.CreateTemp(filepath.Dir(m.path), "last_known-*")
	if err != nil {
		return
	}
	_, err = temporary.Write(lines)
	if errors.Join(err, temporary.Close()) != nil || os.Rename(temporary.Name(), m.path) != nil {
		_ = os.Remove(temporary.Name())
	}
}

func appendLine(lines []byte, l memoryLine) []byte {
	raw, err := json.Marshal(l)
	if err != nil {
		return lines // which a record that was parsed does not come to
	}
	return append(append(lines, raw...), '\n')
}

// Keep keeps the record of a site that is not off, and drops that of one that is. Save
// writes that to the file.
func (m *Memory) Keep(storage, name string, st *site.State) {
	r := st.Record()
	if m.path == "" || r == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.read()
	key := memoryKey{storage, name}
	if r.Enabled && !st.Expired() {
		m.records[key] = r.Raw()
	} else {
		if m.records[key] == nil {
			return
		}
		delete(m.records, key)
	}
	m.pending = appendLine(m.pending, memoryLine{key, m.records[key]})
}

// Save writes what has changed.
func (m *Memory) Save() error {
	m.saving.Lock()
	defer m.saving.Unlock()
	m.mu.Lock()
	lines := m.pending
	m.pending = nil
	m.mu.Unlock()
	if len(lines) == 0 {
		return nil
	}
	err := m.write(lines)
	if err != nil {
		m.mu.Lock()
		m.pending = append(lines, m.pending...) // for the next time
		m.mu.Unlock()
	}
	return err
}

func (m *Memory) write(lines []byte) error {
	err := os.MkdirAll(filepath.Dir(m.path), 0o700)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	file, err := os.OpenFile(m.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	// A line that another process has not ended is one of its own.
	_, err = file.Write(append([]byte("\n"), lines...))
	return errors.Join(err, file.Close())
}
