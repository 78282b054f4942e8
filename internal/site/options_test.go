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
		control = "message: a control character (%s) given, one line of plain text is accepted"
	)
	refused := map[string]string{
		"{\"message\": \"\xff\"}":   `the body is not valid UTF-8`,
		`{"Message": "x"}`:          fmt.Sprintf(unknown, "Message"),
		`{"message": null, "x": 1}`: fmt.Sprintf(unknown, "x"),

		`{"message": "one\ntwo"}`:                          fmt.Sprintf(control, "U+000A"),
		`{"message": "pay \u202elater"}`:                   fmt.Sprintf(control, "U+202E"),
		`{"message": "pay \u2069later"}`:                   fmt.Sprintf(control, "U+2069"),
		`{"message": "` + strings.Repeat("ä", 1001) + `"}`: `message: 1001 characters given, at most 1000 are accepted`,

		`{"until": "9999-12-31T23:59:59-01:00"}`: `until: 9999-12-31T23:59:59-01:00 given, a time before the year 10000 is accepted`,
		`{"until": "2026-01-31T02:00:00Z"}`: fmt.Sprintf(
			"until: %[1]s given, a time in the future is accepted; it is %[1]s now", "2026-01-31T02:00:00Z"),
	}
	for _, body := range []string{"", " ", "null", "[]", "{}{}", "on", "{", "{}}", `{"message" "x"}`} {
		refused[body] = `the body is not one JSON object, such as {"message": "Back at three."}`
	}
	for _, test := range []struct{ option, want, values string }{
		{"message", "VALUE given, a string is accepted", `5 {} ["x"]`},
		{"retry_after", `VALUE given, a duration of at least 1s is accepted, such as "90s", "1.5h" or "1d"`, `"soon" "0.5s" "300" ""`},
		{"retry_after", `VALUE given, a string is accepted, such as "VALUEs"`, `60`},
		{"retry_after", `VALUE given, a string is accepted`, `0 -5`},
		{"hold", `VALUE given, a duration above zero of at most 5m0s is accepted, such as "30s"`, `"long" "-30s" "0s" "301s"`},
		{"hold", `VALUE given, a string is accepted, such as "VALUEs"`, `30`},
		{"hold", `VALUE given, a string is accepted`, `true 301`},
		{"terminate_after", `VALUE given, a duration above zero is accepted, such as "30s"`, `"-1s" "30"`},
		{"terminate_after", `VALUE given, a string is accepted, such as "VALUEs"`, `1.5`},
		{"terminate_after", `VALUE given, a string is accepted`, `["30s"]`},
		{"until", `VALUE given, a time as in RFC 3339 is accepted, such as 2026-01-31T03:00:00Z`, `"later" "15:00"`},
		{"until", `VALUE given, a string is accepted`, `1800000000`},
		{
			"bypass_secret", `what is given does not fit, 16 to 128 of A-Z a-z 0-9 - _ are accepted`,
			`"Fifteen-letters" "Sixteen.letters." "Sixteen_letters-\n" "Sixteen-lettersé" "" "` + strings.Repeat("x", 129) + `"`,
		},
		{"bypass_secret", `a string is accepted`, `{"id":"x"} 1234567890123456`},
	} {
		for value := range strings.FieldsSeq(test.values) {
			refused[`{"`+test.option+`": `+value+`}`] = test.option + ": " + strings.ReplaceAll(test.want, "VALUE", value)
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

// What a newer version may write is used as far as this one can.
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
		if again, err := newRecord(r.Version, r.Enabled, r.Since, r.Options); err == nil { // else a year that has no place in JSON
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
