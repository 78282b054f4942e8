package maintenance

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"
)

// record is a site's state as stored. Fields that are not known are ignored
// and those that are never change their meaning, so that instances of
// different versions of this module can share a storage.
type record struct {
	// Version orders the records of a site. It is the time of the switch in
	// microseconds, or one more than the highest version seen if that is more.
	Version int64     `json:"version"`
	Enabled bool      `json:"enabled"`
	Since   time.Time `json:"since,omitzero"`
	options

	raw []byte // as stored
}

// maxVersion leaves room to count on from.
const maxVersion = 1 << 62

// errCorrupt says that there is a record that nothing can be learned from.
var errCorrupt = errors.New("the record is corrupt")

func parseRecord(raw []byte) (*record, error) {
	var r struct {
		record
		Enabled *bool `json:"enabled"`
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, fmt.Errorf("%w: %w", errCorrupt, err)
	}
	if r.Enabled == nil {
		return nil, fmt.Errorf("%w: enabled is missing", errCorrupt)
	}
	if r.Version < 1 || r.Version > maxVersion {
		return nil, fmt.Errorf("%w: version is %d", errCorrupt, r.Version)
	}
	parsed := r.record
	parsed.Enabled = *r.Enabled
	parsed.raw = raw
	return &parsed, nil
}

// newRecord completes a record with its version and its stored form.
func newRecord(version int64, enabled bool, since time.Time, o options) (*record, error) {
	r := &record{Version: version, Enabled: enabled, Since: since, options: o}
	raw, err := json.Marshal(r)
	r.raw = raw
	return r, err
}

func (r *record) newerThan(other *record) bool {
	if r.Version != other.Version {
		return r.Version > other.Version
	}
	return bytes.Compare(r.raw, other.raw) > 0
}

// Percent-encoding keeps : and * out of file names, which not every system
// takes.
func recordKey(site string) string {
	return "maintenance/sites/" + url.QueryEscape(site) + ".json"
}

// options are what a switch can say about a maintenance.
type options struct {
	Message        string    `json:"message,omitempty"`
	RetryAfter     string    `json:"retry_after,omitempty"` // as given, a duration
	Until          time.Time `json:"until,omitzero"`
	Hold           string    `json:"hold,omitempty"`            // as given, a duration
	TerminateAfter string    `json:"terminate_after,omitempty"` // as given, a duration
	Pass           *pass     `json:"bypass_secret,omitempty"`

	secret string // as given; stored is only what becomes of it
}

const (
	maxMessage = 1000
	maxHold    = 5 * time.Minute
)

// set sets an option to a value in JSON; null clears it.
func (o *options) set(name string, value json.RawMessage) error {
	var text *string
	if err := json.Unmarshal(value, &text); err != nil {
		if name == "bypass_secret" {
			return errors.New("a string is accepted") // and what was given is not shown
		}
		return fmt.Errorf("%s given, a string is accepted%s", abridge(string(value)), suggestDuration(name, value))
	}
	if text != nil {
		return o.setText(name, *text)
	}
	switch name {
	case "message":
		o.Message = ""
	case "retry_after":
		o.RetryAfter = ""
	case "until":
		o.Until = time.Time{}
	case "hold":
		o.Hold = ""
	case "terminate_after":
		o.TerminateAfter = ""
	case "bypass_secret":
		o.Pass, o.secret = nil, ""
	}
	return nil
}

// setText sets an option to what an operator writes.
func (o *options) setText(name, text string) (err error) {
	switch name {
	case "message":
		o.Message, err = parseMessage(text)
	case "retry_after":
		o.RetryAfter, err = parseRetryAfter(text)
	case "until":
		o.Until, err = parseUntil(text)
	case "hold":
		o.Hold, err = parseHold(text)
	case "terminate_after":
		o.TerminateAfter, err = parseTerminateAfter(text)
	case "bypass_secret":
		o.secret, err = parseSecret(text)
	}
	return err
}

var optionNames = []string{"message", "retry_after", "until", "hold", "terminate_after", "bypass_secret"}

// suggestDuration says what to write in the place of a number of seconds.
func suggestDuration(name string, value json.RawMessage) string {
	text := string(value) + "s"
	if _, err := caddy.ParseDuration(text); err != nil || new(options).setText(name, text) != nil || name == "message" {
		return ""
	}
	return fmt.Sprintf(", such as %q", text)
}

func parseMessage(s string) (string, error) {
	if n := utf8.RuneCountInString(s); n > maxMessage {
		return "", fmt.Errorf("%d characters given, at most %d are accepted", n, maxMessage)
	}
	if i := strings.IndexFunc(s, isControl); i >= 0 {
		return "", fmt.Errorf("a control character (%U) given, one line of plain text is accepted", []rune(s[i:])[0])
	}
	return s, nil
}

// isControl reports whether a character does something to the text around it. Those that
// override its direction can make it read as another one (Unicode Technical Report 36,
// section 2.9).
func isControl(r rune) bool {
	return unicode.IsControl(r) || 0x202A <= r && r <= 0x202E || 0x2066 <= r && r <= 0x2069
}

func parseRetryAfter(s string) (string, error) {
	d, err := caddy.ParseDuration(s)
	if err != nil || d < minRetryAfter {
		return "", fmt.Errorf(`%s given, a duration of at least %s is accepted, such as "90s", "1.5h" or "1d"`, abridge(fmt.Sprintf("%q", s)), minRetryAfter)
	}
	return s, nil
}

func parseHold(s string) (string, error) {
	d, err := caddy.ParseDuration(s)
	if err != nil || d <= 0 || d > maxHold {
		return "", fmt.Errorf(`%s given, a duration above zero of at most %s is accepted, such as "30s"`, abridge(fmt.Sprintf("%q", s)), maxHold)
	}
	return s, nil
}

func parseTerminateAfter(s string) (string, error) {
	d, err := caddy.ParseDuration(s)
	if err != nil || d <= 0 {
		return "", fmt.Errorf(`%s given, a duration above zero is accepted, such as "30s"`, abridge(fmt.Sprintf("%q", s)))
	}
	return s, nil
}

func parseUntil(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}, fmt.Errorf(`%s given, a time as in RFC 3339 is accepted, such as %s`,
			abridge(fmt.Sprintf("%q", s)), time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	}
	if !t.After(time.Now()) {
		return time.Time{}, fmt.Errorf("%s given, a time in the future is accepted; it is %s now",
			s, time.Now().UTC().Format(time.RFC3339))
	}
	if t = t.UTC(); t.Year() > 9999 {
		return time.Time{}, fmt.Errorf("%s given, a time before the year 10000 is accepted", s)
	}
	return t, nil
}

// abridge keeps an error readable whatever was given.
func abridge(s string) string { return abridgeTo(80, s) }

func abridgeTo(limit int, s string) string {
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}

// parseOptions applies the body of a request, one JSON object of options, to
// base as RFC 7396 (JSON Merge Patch) has it.
func parseOptions(base options, body []byte) (options, error) {
	if !utf8.Valid(body) {
		return options{}, errors.New("the body is not valid UTF-8")
	}
	var given map[string]json.RawMessage
	if err := json.Unmarshal(body, &given); err != nil || given == nil {
		return options{}, errors.New(`the body is not one JSON object, such as {"message": "Back at three."}`)
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if !slices.Contains(optionNames, name) {
			return options{}, fmt.Errorf("unknown option %s; the options are %s", abridge(name), strings.Join(optionNames, ", "))
		}
		if err := base.set(name, given[name]); err != nil {
			return options{}, fmt.Errorf("%s: %w", name, err)
		}
	}
	return base, nil
}

// seal puts what is stored of a secret in its place. A secret that is the same as
// before stays the same to those who have its cookie.
func (o *options) seal(site string, before *pass) {
	switch {
	case o.secret == "":
		return
	case before.isSecret(o.secret):
		o.Pass = before
	default:
		o.Pass = newPass(site, o.secret)
	}
	o.secret = ""
}

// hold returns how long requests are held, 0 if they are not.
func (o options) hold() time.Duration {
	if o.Hold == "" {
		return 0 // without the cost of an error, for this is asked for each blocked request
	}
	d, err := caddy.ParseDuration(o.Hold)
	if err != nil {
		return 0
	}
	return min(max(d, 0), maxHold)
}

// terminateAfter returns the option as a duration, 0 if it is not set.
func (o options) terminateAfter() time.Duration {
	d, err := caddy.ParseDuration(o.TerminateAfter)
	if o.TerminateAfter == "" || err != nil {
		return 0
	}
	return max(d, 0)
}

// retryAfter returns the option as a duration, or other where it is not set or
// a newer version has written what this one cannot read.
func (o options) retryAfter(other time.Duration) time.Duration {
	if o.RetryAfter == "" {
		return other
	}
	d, err := caddy.ParseDuration(o.RetryAfter)
	if err != nil {
		return other
	}
	return d
}
