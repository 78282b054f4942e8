package site

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Options are what a switch can say about a maintenance.
type Options struct {
	Message        string    `json:"message,omitempty"`
	Reason         string    `json:"reason,omitempty"` // for operators
	By             string    `json:"by,omitempty"`     // who, as the client says, for operators
	RetryAfter     Duration  `json:"retry_after,omitzero"`
	From           time.Time `json:"from,omitzero"`
	Until          time.Time `json:"until,omitzero"`
	Hold           Duration  `json:"hold,omitzero"`
	TerminateAfter Duration  `json:"terminate_after,omitzero"`
	Bypass         *Bypass   `json:"bypass_secret,omitempty"`

	secret string // as given; stored is only what becomes of it
}

const (
	maxMessage    = 1000 // characters
	maxReason     = 200
	minRetryAfter = time.Second
	maxHold       = 5 * time.Minute
)

// MaxBy is how many characters the name of who switches may have.
const MaxBy = 100

// Duration is a duration as an operator has written it.
type Duration struct {
	Text  string
	Value time.Duration // 0 if it is not set, or not known to this version
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.Text), nil }

// UnmarshalText implements encoding.TextUnmarshaler. The value is left to be resolved.
func (d *Duration) UnmarshalText(text []byte) error {
	*d = Duration{Text: string(text)}
	return nil
}

// DurationParser parses what an operator writes for a duration.
type DurationParser func(string) (time.Duration, error)

// Option is one of Options: all that API, command, record and log need to know of it.
type Option struct {
	Name  string // in JSON and in the log
	Flag  string // of the command; none if it has none
	Usage string // of the flag

	parse func(o *Options, text string, p Parser) error
	copy  func(to, from *Options)
	log   func(o *Options) (value any, set bool)
}

// Names of options that need more than the table says.
const (
	OptionBy           = "by"
	OptionFrom         = "from"
	OptionUntil        = "until"
	OptionBypassSecret = "bypass_secret"
)

// Table has all options, in the order in which errors and the log name them.
var Table = []Option{
	{
		Name: "message", Flag: "message",
		Usage: "A sentence for visitors, plain text of at most 1,000 characters",
		parse: func(o *Options, text string, _ Parser) (err error) {
			o.Message, err = parseText(text, maxMessage)
			return err
		},
		copy: func(to, from *Options) { to.Message = from.Message },
		log:  func(o *Options) (any, bool) { return o.Message, o.Message != "" },
	},
	{
		Name: "reason", Flag: "reason",
		Usage: "Why, for operators: plain text of at most 200 characters, which visitors never see",
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
			o.RetryAfter, err = p.duration(text, minRetryAfter, 0, `a duration of at least 1s is accepted, such as "90s", "1.5h" or "1d"`)
			return err
		},
		copy: func(to, from *Options) { to.RetryAfter = from.RetryAfter },
		log:  func(o *Options) (any, bool) { return o.RetryAfter.Text, o.RetryAfter.Text != "" },
	},
	{
		Name: OptionFrom, Flag: "from",
		Usage: "When maintenance begins by itself, as --until has it; the site stays open until then",
		parse: func(o *Options, text string, p Parser) (err error) { o.From, err = parseTime(text, p.Now); return err },
		copy:  func(to, from *Options) { to.From = from.From },
		log:   func(o *Options) (any, bool) { return o.From.Format(time.RFC3339), !o.From.IsZero() },
	},
	{
		Name: OptionUntil, Flag: "until",
		Usage: "When maintenance ends by itself, as 2006-01-02T15:04:05Z (RFC 3339) or as 15:04, the next such time in local time",
		parse: func(o *Options, text string, p Parser) (err error) { o.Until, err = parseTime(text, p.Now); return err },
		copy:  func(to, from *Options) { to.Until = from.Until },
		log:   func(o *Options) (any, bool) { return o.Until.Format(time.RFC3339), !o.Until.IsZero() },
	},
	{
		Name: "hold", Flag: "hold",
		Usage: "Hold each request up to this long before it gets the page, at most 5m",
		parse: func(o *Options, text string, p Parser) (err error) {
			o.Hold, err = p.duration(text, 1, maxHold, `a duration above zero of at most 5m0s is accepted, such as "30s"`)
			return err
		},
		copy: func(to, from *Options) { to.Hold = from.Hold },
		log:  func(o *Options) (any, bool) { return o.Hold.Text, o.Hold.Text != "" },
	},
	{
		Name: "terminate_after", Flag: "terminate-after",
		Usage: "Cut off what is still in flight this long after, WebSockets and downloads included",
		parse: func(o *Options, text string, p Parser) (err error) {
			o.TerminateAfter, err = p.duration(text, 1, 0, `a duration above zero is accepted, such as "30s"`)
			return err
		},
		copy: func(to, from *Options) { to.TerminateAfter = from.TerminateAfter },
		log:  func(o *Options) (any, bool) { return o.TerminateAfter.Text, o.TerminateAfter.Text != "" },
	},
	{
		Name: OptionBypassSecret, Flag: "bypass-secret",
		Usage: "Let in who opens /.maintenance/<secret>, 16 to 128 of A-Z a-z 0-9 - _ (also --secret)",
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

// Log returns the options that are set, as the log has them.
func (o *Options) Log() iter.Seq2[string, any] {
	return func(yield func(string, any) bool) {
		for _, option := range Table {
			if value, set := option.log(o); set && !yield(option.Name, value) {
				return
			}
		}
	}
}

// resolve finds the values of durations, in a record that may be of a newer version.
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

// Parser parses what an operator gives.
type Parser struct {
	Durations DurationParser
	Now       time.Time
}

// Given are the options that an operator gives, and what to. One that is cleared is given
// its zero value.
type Given struct {
	values Options
	names  []string
}

// apply returns the options with the given ones in their place, and the others as they were.
func (g Given) apply(base Options) (Options, error) {
	for _, name := range g.names {
		optionNamed(name).copy(&base, &g.values)
	}
	if from, until := base.From, base.Until; !from.IsZero() && !until.IsZero() && !until.After(from) {
		return base, &InvalidError{fmt.Errorf("until: invalid time %q: maintenance begins at %s (from); give a later time",
			until.Format(time.RFC3339), from.Format(time.RFC3339))}
	}
	return base, nil
}

// InvalidError says that options do not fit together, or to the state of the site.
type InvalidError struct{ Err error }

func (e *InvalidError) Error() string { return e.Err.Error() }

// Body parses the body of a request, one JSON object of options. A null clears one, as
// RFC 7396 (JSON Merge Patch) has it.
func (p Parser) Body(body []byte) (Given, error) {
	if !utf8.Valid(body) {
		return Given{}, errors.New("the body is not valid UTF-8")
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil || fields == nil {
		return Given{}, errors.New(`the body is not one JSON object, such as {"message": "Back at three."}`)
	}
	var given Given
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		option := optionNamed(name)
		if option == nil {
			return Given{}, fmt.Errorf("unknown option %s; the options are %s", Truncate(name), strings.Join(optionNames(), ", "))
		}
		if err := p.field(&given.values, option, fields[name]); err != nil {
			return Given{}, fmt.Errorf("%s: %w", name, err)
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
		if option.Name == OptionBypassSecret {
			return errors.New("a string is accepted") // and what was given is not shown
		}
		return fmt.Errorf("%s given, a string is accepted%s", Truncate(string(value)), p.suggestDuration(option, value))
	}
	if text == nil {
		return nil
	}
	return option.parse(o, *text, p)
}

// suggestDuration says what to write in the place of a number of seconds, for an option
// that does not take just any text.
func (p Parser) suggestDuration(option *Option, value json.RawMessage) string {
	text := string(value) + "s"
	if _, err := p.Durations(text); err != nil || option.parse(new(Options), text, p) != nil || option.parse(new(Options), "x", p) == nil {
		return ""
	}
	return fmt.Sprintf(", such as %q", text)
}

// Check returns what is wrong with the value of an option.
func (p Parser) Check(name, text string) error {
	return optionNamed(name).parse(new(Options), text, p)
}

// duration parses a duration in that range; most is 0 where there is no limit.
func (p Parser) duration(text string, least, most time.Duration, accepted string) (Duration, error) {
	d, err := p.Durations(text)
	if err != nil || d < least || most > 0 && d > most {
		return Duration{}, fmt.Errorf("%s given, %s", Truncate(fmt.Sprintf("%q", text)), accepted)
	}
	return Duration{text, d}, nil
}

func parseText(s string, most int) (string, error) {
	if n := utf8.RuneCountInString(s); n > most {
		return "", fmt.Errorf("%d characters given, at most %d are accepted", n, most)
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

func parseTime(s string, now time.Time) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}, fmt.Errorf(`%s given, a time as in RFC 3339 is accepted, such as %s`,
			Truncate(fmt.Sprintf("%q", s)), now.Add(time.Hour).UTC().Format(time.RFC3339))
	}
	if !t.After(now) {
		return time.Time{}, fmt.Errorf("%s given, a time in the future is accepted; it is %s now",
			s, now.UTC().Format(time.RFC3339))
	}
	if t = t.UTC(); t.Year() > 9999 {
		return time.Time{}, fmt.Errorf("%s given, a time before the year 10000 is accepted", s)
	}
	return t, nil
}

// Truncate keeps an error readable whatever was given.
func Truncate(s string) string {
	const limit = 80
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}
