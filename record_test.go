package maintenance

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

func TestRecordOrder(t *testing.T) {
	older := &record{Version: 1, raw: []byte("b")}
	for _, test := range []struct {
		r    record
		want bool
	}{
		{record{Version: 2, raw: []byte("a")}, true},
		{record{Version: 0, raw: []byte("c")}, false},
		{record{Version: 1, raw: []byte("c")}, true},
		{record{Version: 1, raw: []byte("a")}, false},
		{record{Version: 1, raw: []byte("b")}, false},
	} {
		if got := test.r.newerThan(older); got != test.want {
			t.Errorf("version %d %s is newer: %t, want %t", test.r.Version, test.r.raw, got, test.want)
		}
	}
}

func FuzzRecord(f *testing.F) {
	for _, seed := range []string{
		`{"version": 1, "enabled": true, "since": "2026-01-31T02:00:00Z", "message": "Hello.", "retry_after": "5m", "until": "2026-01-31T03:00:00Z"}`,
		`{"version": 1, "enabled": true, "hold": "a while", "terminate_after": "-1s", "bypass_secret": {"id": "", "secret_hash": "", "cookie_hash": ""}}`,
		`{"version": 1, "enabled": null}`, `{"enabled": true}`, `{"version": 1e3, "enabled": false}`, `{"VERSION": 1, "Enabled": true}`, `[]`, `null`, ``,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := parseRecord(raw)
		if err != nil {
			if !errors.Is(err, errCorrupt) {
				t.Errorf("%v does not say that the record is corrupt", err)
			}
			return
		}
		if r.Version < 1 || r.Version > maxVersion {
			t.Errorf("version is %d", r.Version)
		}
		again, err := newRecord(r.Version, r.Enabled, r.Since, r.options)
		if err != nil {
			return // a year that has no place in JSON
		}
		parsed, err := parseRecord(again.raw)
		if err != nil || parsed.Enabled != r.Enabled || parsed.Message != r.Message || !parsed.Since.Equal(r.Since) {
			t.Errorf("stored again as %s: %v", again.raw, err)
		}
		renderPage(r.options)
		if got := retryAfterSeconds(r.options, time.Minute); got < 1 {
			t.Errorf("Retry-After is %d", got)
		}
		if got := r.hold(); got < 0 || got > maxHold {
			t.Errorf("requests are held for %s", got)
		}
		if r.Pass.isSecret("") || r.Pass.isCookie("") {
			t.Errorf("nothing is a secret or a cookie of %s", raw)
		}
	})
}

func FuzzOptions(f *testing.F) {
	for _, seed := range []string{
		`{"message": "Hello.", "retry_after": "1.5h", "until": "2999-01-01T00:00:00+01:00"}`,
		`{"hold": "5m", "bypass_secret": "0123456789-ABCDEF"}`, `{"hold": "301s", "bypass_secret": null}`,
		`{"message": null}`, `{"retry_after": 300}`, `{"retry_after": "1d1d"}`, `{}{}`, `{"message": "\ud800"}`, `{"message": {"a": [1]}}`, ``,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		base := options{Message: "Old.", RetryAfter: "5m", Until: time.Now().Add(time.Hour).UTC().Truncate(time.Second)}
		merged, err := parseOptions(base, body)
		if err != nil {
			return
		}
		if !json.Valid(body) || bytes.TrimSpace(body)[0] != '{' {
			t.Errorf("accepted %q", body)
		}
		if utf8.RuneCountInString(merged.Message) > maxMessage || bytes.ContainsFunc([]byte(merged.Message), unicode.IsControl) {
			t.Errorf("accepted the message %q", merged.Message)
		}
		if merged.RetryAfter != "" && merged.retryAfter(0) < minRetryAfter {
			t.Errorf("accepted retry_after %q", merged.RetryAfter)
		}
		if hold := merged.hold(); (hold > 0) != (merged.Hold != "") || hold > maxHold {
			t.Errorf("accepted hold %q", merged.Hold)
		}
		secret := merged.secret
		merged.seal("shop", nil)
		if merged.Pass.isSecret(secret) != (secret != "") {
			t.Errorf("the secret %q is not known again", secret)
		}
		r, err := newRecord(1, true, time.Now(), merged)
		if err != nil {
			t.Fatalf("accepted what cannot be stored: %v", err)
		}
		if parsed, err := parseRecord(r.raw); err != nil || !reflect.DeepEqual(parsed.options, merged) {
			t.Errorf("%+v is stored as %s (%v)", merged, r.raw, err)
		}
	})
}
