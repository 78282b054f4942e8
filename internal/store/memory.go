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

// Memory keeps what an instance last knew about sites that are not off, in a local file. It
// survives restarts, and losses of the storage.
//
// The file has a line for each change; the last line of a site counts. Several processes can
// append to it. A process that begins to use the file may compact it.
type Memory struct {
	path      string // empty if nothing is kept
	durations site.DurationParser

	mu      sync.Mutex
	records map[memoryKey]json.RawMessage // as in the file; nil before it is read
	pending []byte                        // lines that are not written yet

	saving sync.Mutex // held while the file is written
}

// memoryKey identifies a site of a storage.
type memoryKey struct {
	Storage string `json:"storage,omitempty"`
	Site    string `json:"site"`
}

// memoryLine is a line of the file.
type memoryLine struct {
	memoryKey
	Record json.RawMessage `json:"record,omitempty"` // missing if the site is off
}

// NewMemory returns the memory in a file. Without a path it keeps nothing.
func NewMemory(path string, durations site.DurationParser) *Memory {
	return &Memory{path: path, durations: durations}
}

// Record returns the last known record of a site of a storage, nil if the site was off or is
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

// read reads the file once. It ignores what cannot be read.
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
			continue // a process ended while writing this line
		}
		if delete(m.records, l.memoryKey); l.Record != nil {
			m.records[l.memoryKey] = l.Record
		}
	}
	if lines > 2*len(m.records)+maxEntries {
		m.rewrite()
	}
}

// rewrite compacts the file to the lines that count. If that fails, the file is unchanged.
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
		return lines // cannot happen for a parsed record
	}
	return append(append(lines, raw...), '\n')
}

// Keep remembers the record of a site that is not off, and forgets that of a site that is.
// Save writes this to the file.
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
		m.pending = append(lines, m.pending...) // for the next call
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
	// The line break ends a line that another process may have left incomplete.
	_, err = file.Write(append([]byte("\n"), lines...))
	return errors.Join(err, file.Close())
}
