package site

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Options are the options of a maintenance.
type Options struct {
	Message        string    `json:"message,omitempty"`
	Reason         string    `json:"reason,omitempty"` // for operators
	By             string    `json:"by,omitempty"`     // for operators: who switched, according to the client
	RetryAfter     Duration  `json:"retry_after,omitzero"`
	From           time.Time `json:"from,omitzero"`
	Until          time.Time `json:"until,omitzero"`
	Hold           Duration  `json:"hold,omitzero"`
	TerminateAfter Duration  `json:"terminate_after,omitzero"`
	Bypass         *Bypass   `json:"bypass_secret,omitempty"`

	secret string // never stored; see hashSecret
}

const (
	maxMessage    = 1000 // characters
	maxReason     = 200
	minRetryAfter = time.Second
	maxHold       = 5 * time.Minute
)

// MaxBy is the maximum length of by, in characters.
const MaxBy = 100

// Duration is a duration in the form that an operator wrote.
type Duration struct {
	Text  string
	Value time.Duration // 0 if Text is empty or this version cannot parse it
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.Text), nil }

// UnmarshalText implements encoding.TextUnmarshaler. It does not set the value; see
// Options.resolve.
func (d *Duration) UnmarshalText(text []byte) error {
	*d = Duration{Text: string(text)}
	return nil
}

// DurationParser parses a duration.
type DurationParser func(string) (time.Duration, error)

// between parses a duration and checks its range; a most of 0 means no limit. The error says that
// a unit is missing if that is all there is to say, and else the rule.
func (parse DurationParser) between(text string, least, most time.Duration, rule string) (time.Duration, error) {
	fits := func(text string) bool {
		d, err := parse(text)
		return err == nil && d >= least && (most == 0 || d <= most)
	}
	d, err := parse(text)
	switch {
	case fits(text):
		return d, nil
	case err != nil && fits(text+"s"):
		return 0, fmt.Errorf("a unit is missing (for example %ss)", text)
	}
	return 0, errors.New(rule)
}

// Positive parses a duration above zero.
func (parse DurationParser) Positive(text string) (time.Duration, error) {
	return parse.between(text, 1, 0, "must be a duration above zero (for example 30s)")
}

// Option describes one of the Options for the admin API, the command, records and the log.
type Option struct {
	Name  string // in JSON and in the log
	Flag  string // of the command; empty if there is none
	Usage string // of the flag

	parse func(o *Options, text string, p Parser) error
	copy  func(to, from *Options)
	log   func(o *Options) (value any, set bool)
}

// Names of options that other packages handle specially.
const (
	OptionBy             = "by"
	OptionFrom           = "from"
	OptionUntil          = "until"
	OptionTerminateAfter = "terminate_after"
	OptionBypassSecret   = "bypass_secret"
)

// Table lists all options, in the order of errors and the log.
var Table = []Option{
	{
		Name: "message", Flag: "message",
		Usage: "Message for visitors: plain text, at most 1,000 characters",
		parse: func(o *Options, text string, _ Parser) (err error) {
			o.Message, err = parseText(text, maxMessage)
			return err
		},
		copy: func(to, from *Options) { to.Message = from.Message },
		log:  func(o *Options) (any, bool) { return o.Message, o.Message != "" },
	},
	{
		Name: "reason", Flag: "reason",
		Usage: "Reason, shown to operators only: plain text, at most 200 characters",
		parse: func(o *Options, text string, _ Parser) (err error) {
			o.Reason, err = parseText(text, maxReason)
			return err
		},
		copy: func(to, from *Options) { to.Reason = from.Reason },
		log:  func(o *Options) (any, bool) { return o.Reason, o.Reason != "" },
	},
	{
		Name:  OptionBy,
		parse: func(o *Options, text string, _ Parser) (err error) { o.By, err = parseText(text, MaxBy); return err },
		copy:  func(to, from *Options) { to.By = from.By },
		log:   func(o *Options) (any, bool) { return o.By, o.By != "" },
	},
	{
		Name: "retry_after", Flag: "retry-after",
		Usage: "How long clients are told to wait, at least 1s (default: as configured)",
		parse: func(o *Options, text string, p Parser) (err error) {
			o.RetryAfter, err = p.duration(text, minRetryAfter, 0, "must be a duration of at least 1s (for example 90s, 1.5h or 1d)")
			return err
		},
		copy: func(to, from *Options) { to.RetryAfter = from.RetryAfter },
		log:  func(o *Options) (any, bool) { return o.RetryAfter.Text, o.RetryAfter.Text != "" },
	},
	{
		Name: OptionFrom, Flag: "from",
		Usage: "When maintenance begins by itself, in the formats of --until; the site stays open until then",
		parse: func(o *Options, text string, p Parser) (err error) { o.From, err = parseTime(text, p.Now); return err },
		copy:  func(to, from *Options) { to.From = from.From },
		log:   func(o *Options) (any, bool) { return o.From.Format(time.RFC3339), !o.From.IsZero() },
	},
	{
		Name: OptionUntil, Flag: "until",
		Usage: "When maintenance ends by itself: 2006-01-02T15:04:05Z (RFC 3339), or 15:04 for the next such time in local time",
		parse: func(o *Options, text string, p Parser) (err error) { o.Until, err = parseTime(text, p.Now); return err },
		copy:  func(to, from *Options) { to.Until = from.Until },
		log:   func(o *Options) (any, bool) { return o.Until.Format(time.RFC3339), !o.Until.IsZero() },
	},
	{
		Name: "hold", Flag: "hold",
		Usage: "Hold each request up to this long before it gets the page, at most 5m",
		parse: func(o *Options, text string, p Parser) (err error) {
			o.Hold, err = p.duration(text, 1, maxHold, "must be a duration above zero, at most 5m (for example 30s)")
			return err
		},
		copy: func(to, from *Options) { to.Hold = from.Hold },
		log:  func(o *Options) (any, bool) { return o.Hold.Text, o.Hold.Text != "" },
	},
	{
		Name: OptionTerminateAfter, Flag: "terminate-after",
		Usage: "Terminate requests still in flight this long after maintenance begins, including WebSockets and downloads",
		parse: func(o *Options, text string, p Parser) (err error) {
			o.TerminateAfter, err = p.duration(text, 1, 0, "must be a duration above zero (for example 30s)")
			return err
		},
		copy: func(to, from *Options) { to.TerminateAfter = from.TerminateAfter },
		log:  func(o *Options) (any, bool) { return o.TerminateAfter.Text, o.TerminateAfter.Text != "" },
	},
	{
		Name: OptionBypassSecret, Flag: "bypass-secret",
		Usage: "Let through anyone who opens the secret link /.maintenance/<secret>; 16 to 128 characters from A-Z a-z 0-9 - _ (also --secret)",
		parse: func(o *Options, text string, _ Parser) (err error) { o.secret, err = parseSecret(text); return err },
		copy:  func(to, from *Options) { to.Bypass, to.secret = from.Bypass, from.secret },
		log:   func(o *Options) (any, bool) { return true, o.Bypass != nil },
	},
}

// optionNamed returns the option of that name in JSON, nil if there is none.
func optionNamed(name string) *Option {
	if i := slices.IndexFunc(Table, func(o Option) bool { return o.Name == name }); i >= 0 {
		return &Table[i]
	}
	return nil
}

// Log yields the options that are set, as log fields.
func (o *Options) Log() iter.Seq2[string, any] {
	return func(yield func(string, any) bool) {
		for _, option := range Table {
			if value, set := option.log(o); set && !yield(option.Name, value) {
				return
			}
		}
	}
}

// resolve sets the values of the durations of a record. A newer version may have written
// it, so what is not valid here is ignored or limited.
func (o *Options) resolve(durations DurationParser) {
	for _, d := range []struct {
		*Duration
		most time.Duration
	}{{&o.RetryAfter, 0}, {&o.Hold, maxHold}, {&o.TerminateAfter, 0}} {
		if d.Text == "" {
			continue
		}
		value, err := durations(d.Text)
		if err != nil {
			continue
		}
		d.Value = max(value, 0)
		if d.most > 0 {
			d.Value = min(d.Value, d.most)
		}
	}
}

// Parsing

// Parser parses the options that an operator gives.
type Parser struct {
	Durations DurationParser
	Now       time.Time
}

// Given holds the options that an operator gives. A cleared option has its zero value.
type Given struct {
	values Options
	names  []string
}

// apply returns base with the given options replaced.
func (g Given) apply(base Options) (Options, error) {
	for _, name := range g.names {
		optionNamed(name).copy(&base, &g.values)
	}
	if from, until := base.From, base.Until; !from.IsZero() && !until.IsZero() && !until.After(from) {
		return base, &InvalidError{fmt.Errorf("invalid until %q: must be later than from (%s)",
			until.Format(time.RFC3339), from.Format(time.RFC3339))}
	}
	return base, nil
}

// InvalidError says that options contradict each other.
type InvalidError struct{ Err error }

func (e *InvalidError) Error() string { return e.Err.Error() }

// Body parses the body of a request: one JSON object of options. A null clears an option,
// as in RFC 7396 (JSON Merge Patch).
func (p Parser) Body(body []byte) (Given, error) {
	if !utf8.Valid(body) {
		return Given{}, errors.New("invalid body: must be UTF-8")
	}
	const object = `invalid body: must be one JSON object (for example {"message": "Back at three."})`
	var fields map[string]json.RawMessage
	err := json.Unmarshal(body, &fields)
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok && len(bytes.TrimSpace(body)) > 0 {
		return Given{}, fmt.Errorf(object+"; at byte %d: %w", syntax.Offset, err)
	}
	if err != nil || fields == nil {
		return Given{}, errors.New(object)
	}
	var given Given
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		option := optionNamed(name)
		if option == nil {
			return Given{}, fmt.Errorf("unknown option %s; the options are %s", Truncate(name), strings.Join(optionNames(), ", "))
		}
		if err := p.field(&given.values, option, fields[name]); err != nil {
			return Given{}, err
		}
		given.names = append(given.names, name)
	}
	return given, nil
}

func optionNames() []string {
	names := make([]string, len(Table))
	for i, option := range Table {
		names[i] = option.Name
	}
	return names
}

// field sets an option to a value in JSON.
func (p Parser) field(o *Options, option *Option, value json.RawMessage) error {
	var text *string
	if err := json.Unmarshal(value, &text); err != nil {
		return option.invalid(option.Name, string(value), errors.New("must be a string"+p.suggestDuration(option, value)))
	}
	if text == nil {
		return nil
	}
	if why := option.parse(o, *text, p); why != nil {
		return option.invalid(option.Name, strconv.Quote(*text), why)
	}
	return nil
}

// invalid returns an error that says why the value of an option is invalid. It does not
// show a secret.
func (option *Option) invalid(called, value string, why error) error {
	if option.Name == OptionBypassSecret {
		return fmt.Errorf("invalid %s: %w", called, why)
	}
	return fmt.Errorf("invalid %s %s: %w", called, Truncate(value), why)
}

// suggestDuration returns the duration to write instead of a number of seconds. It returns
// nothing for an option that takes any text.
func (p Parser) suggestDuration(option *Option, value json.RawMessage) string {
	text := string(value) + "s"
	if _, err := p.Durations(text); err != nil || option.parse(new(Options), text, p) != nil || option.parse(new(Options), "x", p) == nil {
		return ""
	}
	return fmt.Sprintf(" (for example %q)", text)
}

// Check returns an error if the value of an option is invalid. The error calls the option by the
// name called.
func (p Parser) Check(name, called, text string) error {
	option := optionNamed(name)
	if why := option.parse(new(Options), text, p); why != nil {
		return option.invalid(called, strconv.Quote(text), why)
	}
	return nil
}

// duration parses a duration and checks its range. A most of 0 means no limit.
func (p Parser) duration(text string, least, most time.Duration, rule string) (Duration, error) {
	d, err := p.Durations.between(text, least, most, rule)
	if err != nil {
		return Duration{}, err
	}
	return Duration{text, d}, nil
}

func parseText(s string, most int) (string, error) {
	if n := utf8.RuneCountInString(s); n > most {
		return "", fmt.Errorf("must have at most %d characters, has %d", most, n)
	}
	if i := strings.IndexFunc(s, isControl); i >= 0 {
		return "", fmt.Errorf("must be one line of plain text, contains the control character %U", []rune(s[i:])[0])
	}
	return s, nil
}

// isControl reports whether a character is a control character, or one that overrides the
// direction of text and so can disguise it (Unicode Technical Report 36, section 2.9).
func isControl(r rune) bool {
	return unicode.IsControl(r) || 0x202A <= r && r <= 0x202E || 0x2066 <= r && r <= 0x2069
}

func parseTime(s string, now time.Time) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}, fmt.Errorf("must be an RFC 3339 time (for example %s)", now.Add(time.Hour).UTC().Format(time.RFC3339))
	}
	if !t.After(now) {
		return time.Time{}, fmt.Errorf("must be in the future; it is now %s", now.UTC().Format(time.RFC3339))
	}
	if t = t.UTC(); t.Year() > 9999 {
		return time.Time{}, errors.New("must be before the year 10000")
	}
	return t, nil
}

// Truncate shortens a value so that an error stays readable.
func Truncate(s string) string {
	const limit = 80
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}
