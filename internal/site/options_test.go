package site

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestOptionsOfABody(t *testing.T) {
	for body, want := range map[string]string{
		`{}`:                                       `{"message":"Old.","retry_after":"5m"}`,
		`{"message": "New."}`:                      `{"message":"New.","retry_after":"5m"}`,
		`{"message": null}`:                        `{"retry_after":"5m"}`,
		`{"message": "Zurück: <b>&"}`:              `{"message":"Zurück: \u003cb\u003e\u0026","retry_after":"5m"}`,
		`{"retry_after": "1h"}`:                    `{"message":"Old.","retry_after":"1h"}`,
		`{"retry_after": null}`:                    `{"message":"Old."}`,
		`{"hold": "30s"}`:                          `{"message":"Old.","retry_after":"5m","hold":"30s"}`,
		`{"terminate_after": "1m30s"}`:             `{"message":"Old.","retry_after":"5m","terminate_after":"1m30s"}`,
		`{"reason": "Moving.", "by": "eve@web-1"}`: `{"message":"Old.","reason":"Moving.","by":"eve@web-1","retry_after":"5m"}`,
		`{"from": "2026-01-31T05:00:00+02:00"}`:    `{"message":"Old.","retry_after":"5m","from":"2026-01-31T03:00:00Z"}`,
		`{"until": "2026-01-31T05:00:00+02:00"}`:   `{"message":"Old.","retry_after":"5m","until":"2026-01-31T03:00:00Z"}`,
	} {
		g, err := parser.Body([]byte(body))
		noError(t, err)
		o, err := g.apply(Options{Message: "Old.", RetryAfter: Duration{"5m", 5 * time.Minute}})
		got, _ := json.Marshal(o)
		if err != nil || string(got) != want {
			t.Errorf("%s\ngot  %s (%v)\nwant %s", body, got, err, want)
		}
	}
}

func TestWrongBodyIsRefused(t *testing.T) {
	const (
		unknown = "unknown option %s; the options are message, reason, by, retry_after, from, until, hold, terminate_after, bypass_secret"
		control = `invalid message "%[1]s": must be one line of plain text, contains the control character %[2]s`
	)
	refused := map[string]string{
		"{\"message\": \"\xff\"}":   `invalid body: must be UTF-8`,
		`{"Message": "x"}`:          fmt.Sprintf(unknown, "Message"),
		`{"message": null, "x": 1}`: fmt.Sprintf(unknown, "x"),

		`{"message": "one\ntwo"}`:                          fmt.Sprintf(control, `one\ntwo`, "U+000A"),
		`{"message": "pay \u202elater"}`:                   fmt.Sprintf(control, `pay \u202elater`, "U+202E"),
		`{"message": "pay \u2069later"}`:                   fmt.Sprintf(control, `pay \u2069later`, "U+2069"),
		`{"message": "` + strings.Repeat("ä", 1001) + `"}`: `invalid message "` + strings.Repeat("ä", 39) + `…: must have at most 1000 characters, has 1001`,

		`{"retry_after": "300"}`:                 `invalid retry_after "300": a unit is missing (for example 300s)`,
		`{"hold": "600"}`:                        `invalid hold "600": must be a duration above zero, at most 5m (for example 30s)`,
		`{"terminate_after": "1.5"}`:             `invalid terminate_after "1.5": a unit is missing (for example 1.5s)`,
		`{"until": "9999-12-31T23:59:59-01:00"}`: `invalid until "9999-12-31T23:59:59-01:00": must be before the year 10000`,
		`{"until": "2026-01-31T02:00:00Z"}`: fmt.Sprintf(
			"invalid until %[1]q: must be in the future; it is now %[1]s", "2026-01-31T02:00:00Z"),
	}
	for body, why := range map[string]string{
		"": "", " ": "", "null": "", "[]": "", `"on"`: "",
		"{":               "; at byte 1: unexpected end of JSON input",
		"{}{}":            "; at byte 3: invalid character '{' after top-level value",
		"{message: x}":    "; at byte 2: invalid character 'm' looking for beginning of object key string",
		`{"message" "x"}`: `; at byte 12: invalid character '"' after object key`,
	} {
		refused[body] = `invalid body: must be one JSON object (for example {"message": "Back at three."})` + why
	}
	for _, test := range []struct{ option, want, values string }{
		{"message", `invalid message VALUE: must be a string`, `5 {} ["x"]`},
		{"retry_after", `invalid retry_after VALUE: must be a duration of at least 1s (for example 90s, 1.5h or 1d)`, `"soon" "0.5s" ""`},
		{"retry_after", `invalid retry_after VALUE: must be a string (for example "VALUEs")`, `60`},
		{"retry_after", `invalid retry_after VALUE: must be a string`, `0 -5`},
		{"hold", `invalid hold VALUE: must be a duration above zero, at most 5m (for example 30s)`, `"long" "-30s" "0s" "301s"`},
		{"hold", `invalid hold VALUE: must be a string (for example "VALUEs")`, `30`},
		{"hold", `invalid hold VALUE: must be a string`, `true 301`},
		{"terminate_after", `invalid terminate_after VALUE: must be a duration above zero (for example 30s)`, `"-1s" "0"`},
		{"terminate_after", `invalid terminate_after VALUE: must be a string (for example "VALUEs")`, `1.5`},
		{"terminate_after", `invalid terminate_after VALUE: must be a string`, `["30s"]`},
		{"until", `invalid until VALUE: must be an RFC 3339 time (for example 2026-01-31T03:00:00Z)`, `"later" "15:00"`},
		{"until", `invalid until VALUE: must be a string`, `1800000000`},
		{
			"bypass_secret", `invalid bypass_secret: must be 16 to 128 characters from A-Z a-z 0-9 - _`,
			`"Fifteen-letters" "Sixteen.letters." "Sixteen_letters-\n" "Sixteen-lettersé" "" "` + strings.Repeat("x", 129) + `"`,
		},
		{"bypass_secret", `invalid bypass_secret: must be a string`, `{"id":"x"} 1234567890123456`},
	} {
		for value := range strings.FieldsSeq(test.values) {
			refused[`{"`+test.option+`": `+value+`}`] = strings.ReplaceAll(test.want, "VALUE", value)
		}
	}
	for body, want := range refused {
		if _, err := parser.Body([]byte(body)); err == nil || err.Error() != want {
			t.Errorf("%s\ngot  %v\nwant %s", body, err, want)
		}
	}
}

func TestLogOfOptions(t *testing.T) {
	body := `{"bypass_secret": "0123456789-ABCDEF", "until": "2026-01-31T03:00:00Z", "message": "Hello.", "hold": "30s"}`
	o, err := given(t, body).apply(Options{})
	noError(t, err)
	o.hashSecret("shop", nil)
	want := map[string]any{"message": "Hello.", "until": "2026-01-31T03:00:00Z", "hold": "30s", "bypass_secret": true}
	if got := maps.Collect(o.Log()); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestRecordOrder(t *testing.T) {
	older := &Record{Version: 1, raw: []byte("b")}
	for _, newer := range []Record{{Version: 2, raw: []byte("a")}, {Version: 1, raw: []byte("c")}} {
		wantEqual(t, "newer", newer.NewerThan(older), true)
		wantEqual(t, "older is newer", older.NewerThan(&newer), false)
	}
	wantEqual(t, "the same is newer", older.NewerThan(older), false)
}

// Records of a newer version are used as far as possible.
func TestRecordOfANewerVersion(t *testing.T) {
	for text, want := range map[string][3]time.Duration{"later": {}, "-1s": {}, "1h": {time.Hour, maxHold, time.Hour}} {
		raw := fmt.Appendf(nil, `{"version": 1, "enabled": true, "colour": {"red": 1},
			"retry_after": %q, "hold": %[1]q, "terminate_after": %[1]q}`, text)
		r, err := ParseRecord(raw, time.ParseDuration)
		noError(t, err)
		for i, got := range []Duration{r.RetryAfter, r.Hold, r.TerminateAfter} {
			wantEqual(t, "duration", got, Duration{text, want[i]})
		}
	}
}

func TestInvalidRecords(t *testing.T) {
	for _, raw := range []string{
		``, `null`, `{}`, `[]`, `{"version": 1}`, `{"version": 0, "enabled": false}`, `{"version": -1, "enabled": false}`,
		`{"version": 9223372036854775807, "enabled": false}`, `{"version": 1, "enabled": "false"}`, `{"version": 1, "enabled": false`,
		`{"version": 1, "enabled": false, "since": "yesterday"}`, `{"version": 1, "enabled": false, "hold": 5}`,
	} {
		if r, err := ParseRecord([]byte(raw), time.ParseDuration); !errors.Is(err, ErrInvalid) || r != nil {
			t.Errorf("%s: got %v %v", raw, r, err)
		}
	}
}

func FuzzRecord(f *testing.F) {
	for _, seed := range []string{
		`{"version": 1, "enabled": true, "since": "2026-01-31T02:00:00Z", "message": "Hello.", "until": "2026-01-31T03:00:00Z"}`,
		`{"version": 1, "enabled": true, "hold": "a while", "terminate_after": "-1s"}`, `{"version": 1, "enabled": null}`, `null`,
		`{"version": 1, "enabled": true, "bypass_secret": {"id": "", "secret_hash": "", "cookie_hash": ""}}`, `[]`, ``,
		`{"enabled": true}`, `{"version": 1e3, "enabled": false}`, `{"VERSION": 1, "Enabled": true}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := ParseRecord(raw, time.ParseDuration)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%v does not say that the record is invalid", err)
			}
			return
		}
		if r.Version < 1 || r.Version > MaxVersion {
			t.Errorf("version is %d", r.Version)
		}
		if again, err := newRecord(r.Version, r.Enabled, r.Since, r.Options); err == nil { // else the year is not valid in JSON
			parsed, err := ParseRecord(again.raw, time.ParseDuration)
			same := err == nil && parsed.Enabled == r.Enabled && parsed.Since.Equal(r.Since)
			if !same || !maps.Equal(maps.Collect(parsed.Log()), maps.Collect(r.Log())) {
				t.Errorf("stored again as %s: %v", again.raw, err)
			}
		}
		if r.Hold.Value < 0 || r.Hold.Value > maxHold || r.TerminateAfter.Value < 0 || r.RetryAfter.Value < 0 {
			t.Errorf("durations are %v", r.Options)
		}
		if r.Bypass.IsSecret("") || r.Bypass.IsCookie("") {
			t.Errorf("nothing is a secret or a cookie of %s", raw)
		}
	})
}

func FuzzOptions(f *testing.F) {
	for _, seed := range []string{
		`{"message": "Hello.", "retry_after": "1.5h", "until": "2999-01-01T00:00:00+01:00"}`,
		`{"hold": "5m", "bypass_secret": "0123456789-ABCDEF"}`, `{"hold": "301s", "bypass_secret": null}`,
		`{"message": null}`, `{"retry_after": 300}`, `{"retry_after": "1d1d"}`, `{}{}`, `{"message": "\ud800"}`, ``,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		g, err := parser.Body(body)
		if err != nil {
			return
		}
		if !json.Valid(body) || bytes.TrimSpace(body)[0] != '{' {
			t.Errorf("accepted %q", body)
		}
		o, err := g.apply(Options{Message: "Old.", RetryAfter: Duration{"5m", 5 * time.Minute}, Until: soon})
		if err != nil {
			return
		}
		if utf8.RuneCountInString(o.Message) > maxMessage || strings.ContainsFunc(o.Message, isControl) {
			t.Errorf("accepted the message %q", o.Message)
		}
		wantEqual(t, "accepted a retry_after", o.RetryAfter.Value >= minRetryAfter, o.RetryAfter.Text != "")
		wantEqual(t, "accepted a hold", o.Hold.Value > 0 && o.Hold.Value <= maxHold, o.Hold.Text != "")
		secret := o.secret
		o.hashSecret("shop", nil)
		wantEqual(t, "the secret is known again", o.Bypass.IsSecret(secret), secret != "")
		r, err := newRecord(1, true, now, o)
		if err != nil {
			t.Fatalf("accepted what cannot be stored: %v", err)
		}
		if parsed, err := ParseRecord(r.raw, time.ParseDuration); err != nil || !reflect.DeepEqual(parsed.Options, o) {
			t.Errorf("%+v is stored as %s (%v)", o, r.raw, err)
		}
	})
}
