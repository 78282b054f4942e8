package site

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var (
	now   = time.Date(2026, 1, 31, 2, 0, 0, 0, time.UTC)
	past  = now.Add(-time.Hour)
	ended = now.Add(-time.Minute)
	soon  = now.Add(time.Minute)
	later = now.Add(time.Hour)

	parser = Parser{Durations: time.ParseDuration, Now: now}
)

func given(t *testing.T, body string) Given {
	t.Helper()
	g, err := parser.Body([]byte(body))
	noError(t, err)
	return g
}

// stored returns the result of reading a record with these options.
func stored(t *testing.T, version int64, enabled bool, since time.Time, o Options) Read {
	t.Helper()
	r, err := newRecord(version, enabled, since, o)
	noError(t, err)
	if r, err = ParseRecord(r.raw, time.ParseDuration); err != nil {
		t.Fatal(err)
	}
	return Read{Record: r}
}

// noError ends the test if there is an error.
func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantEqual fails the test unless got and want are equal.
func wantEqual[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func apply(s *Site, read Read, at time.Time) (changes []Change) {
	return slices.Collect(s.Apply(read, Cause{Source: SourceSync}, at))
}

// The table of states (design, section 8): the result of each switch in each state.
func TestEveryStateMeetsEverySwitch(t *testing.T) {
	old := Options{Message: "Old."}
	reads := map[string]Read{
		"never":        {},
		"initially on": {},
		"off":          stored(t, 1, false, past, old),
		"on":           stored(t, 1, true, past, old),
		"ended":        stored(t, 1, true, past, Options{Message: "Old.", Until: ended}),
		"scheduled":    stored(t, 1, true, past, Options{Message: "Old.", From: soon}),
		"begun":        stored(t, 1, true, past, Options{Message: "Old.", From: ended}),
		"ended, begun": stored(t, 1, true, past, Options{Message: "Old.", From: past, Until: ended}),
		"unknown":      {Err: errors.New("disk full")},
		"invalid":      {Err: ErrInvalid},
	}
	message, none := given(t, `{"message": "New."}`), given(t, `{}`)
	from := given(t, `{"from": "`+later.Format(time.RFC3339)+`"}`)
	switches := []Mutation{On{Options: message}, On{Options: none}, Patch{message}, Patch{none}, Off{}, On{Options: from}, Patch{from}, On{none, true}, Patch{given(t, `{"from": null}`)}}
	times := map[time.Time]string{now: "now", past: "past", ended: "ended", soon: "soon", {}: "never"}
	for state, want := range map[string][9]string{
		"never":        {"on now New.", "on now ", "not on: off", "not on: off", "off never ", "off never  later", "not on: off", "on now ", "not on: off"},
		"initially on": {"on now New.", "on now ", "on now New.", "on now ", "off now ", "conflict", "conflict", "not off", "on now "},
		"off":          {"on now New.", "on now ", "not on: off", "not on: off", "nothing", "off past  later", "not on: off", "on now ", "not on: off"},
		"on":           {"on past New.", "on past ", "on past New.", "on past Old.", "off now ", "conflict", "conflict", "not off", "on past Old."},
		"ended":        {"on now New.", "on now ", "not on: off", "not on: off", "off ended ", "off ended  later", "not on: off", "on now ", "not on: off"},
		"scheduled":    {"on now New.", "on now ", "off past New. later", "off past Old. later", "off past ", "off past  later", "off past Old. later", "not off", "on now Old."},
		"begun":        {"on ended New.", "on ended ", "on ended New.", "on ended Old.", "off now ", "conflict", "conflict", "not off", "on ended Old."},
		"ended, begun": {"on now New.", "on now ", "not on: off", "not on: off", "off ended ", "off ended  later", "not on: off", "on now ", "not on: off"},
		"unknown":      {"on now New.", "on now ", "not on: unknown", "not on: unknown", "off now ", "off never  later", "not on: unknown", "not off", "not on: unknown"},
		"invalid":      {"on now New.", "on now ", "not on: unknown", "not on: unknown", "off now ", "off never  later", "not on: unknown", "not off", "not on: unknown"},
	} {
		for i, m := range switches {
			s := New("shop", now)
			apply(s, reads[state], now)
			c := Configured{s, state == "initially on"}
			r, err := c.Mutate(m, now)
			got := []string{"nothing"}
			switch notOn, notOff, conflict := new(NotOnError), new(NotOffError), new(ConflictError); {
			case errors.As(err, &notOn):
				got[0] = "not on: " + notOn.State
			case errors.As(err, &notOff):
				got[0] = "not off"
			case errors.As(err, &conflict):
				got[0] = "conflict"
			case err != nil:
				t.Fatal(err)
			}
			if r != nil {
				wantEqual(t, "a later version", r.Version > s.Current().Version(), true)
				again, err := ParseRecord(r.Raw(), time.ParseDuration)
				noError(t, err)
				restarted := New("shop", now)
				apply(s, Read{Record: r}, now)
				apply(restarted, Read{Record: again}, now)
				got = nil
				for _, s := range []*Site{s, restarted} {
					v := View{s.currentAt(now), c.InitiallyOn}
					is := fmt.Sprint(v.Word(), " ", times[v.Since()], " ", v.Options().Message)
					if v.Scheduled() {
						is += " later"
					}
					got = append(got, is)
				}
			}
			for _, got := range got {
				wantEqual(t, fmt.Sprintf("%s, %T %+v", state, m, m), got, want[i])
			}
		}
	}
}

// What is known about a site after one read and then another.
func TestNextState(t *testing.T) {
	on, off := stored(t, 2, true, past, Options{}), stored(t, 1, false, past, Options{})
	unreadable := Read{Err: errors.New("disk full")}
	tentative := Read{Err: errors.New("the config has ended"), Tentative: true}
	invalid := Read{Err: fmt.Errorf("%w: …", ErrInvalid)}
	missing := Read{}
	for name, test := range map[string]struct {
		first, second Read
		want          Kind
		word          string
		changes       int // by the second
	}{
		"read":                      {Read{Tentative: true}, on, Stored, "on", 1},
		"newer":                     {off, on, Stored, "on", 1},
		"older":                     {on, off, Stored, "on", 0},
		"the same":                  {on, on, Stored, "on", 0},
		"lost":                      {on, missing, Stored, "on", 0},
		"spoilt":                    {on, invalid, Stored, "on", 0},
		"unreadable later":          {on, unreadable, Stored, "on", 0},
		"unreadable":                {missing, unreadable, Unset, "off", 0},
		"unreadable at first":       {unreadable, unreadable, Unknown, "unknown", 0},
		"readable again":            {unreadable, on, Stored, "on", 1},
		"found to be missing":       {unreadable, missing, Unset, "off", 1},
		"removed when invalid":      {invalid, missing, Invalid, "unknown", 0},
		"mended":                    {invalid, off, Stored, "off", 1},
		"spoilt before it was read": {unreadable, invalid, Invalid, "unknown", 1},
		"tentative":                 {tentative, missing, Unset, "off", 1},
		"still loading":             {tentative, tentative, Loading, "unknown", 0},
	} {
		s := New("shop", now)
		apply(s, test.first, now)
		changes := len(apply(s, test.second, now))
		v := View{State: s.currentAt(now)}
		if v.Kind() != test.want || v.Word() != test.word || changes != test.changes {
			t.Errorf("%s: got kind %d, %s, %d changes, want %+v", name, v.Kind(), v.Word(), changes, test)
		}
	}
}

// A site that is back in the config is read again. If that fails, it keeps its state.
func TestReloadedSiteStaysAsItWasIfItCannotBeRead(t *testing.T) {
	s := New("shop", now)
	apply(s, stored(t, 1, true, past, Options{}), now)
	s.Reload(now)
	v := View{State: s.Current()}
	wantEqual(t, "kind", v.Kind(), Loading)
	wantEqual(t, "word", v.Word(), "unknown")
	wantEqual(t, "blocks", v.Blocks(), true)
	apply(s, Read{Err: errors.New("the config has ended"), Tentative: true}, now)
	wantEqual(t, "kind after a tentative read", s.Current().Kind(), Loading)
	apply(s, Read{Err: errors.New("disk full")}, now)
	wantEqual(t, "word", View{State: s.Current()}.Word(), "on")
}

func TestReadyWaitsForTheRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New("shop", time.Now())
		ready := make(chan error, 1)
		go func() { ready <- s.Ready(t.Context(), nil) }()
		synctest.Wait()
		wantEqual(t, "ready before its record has been read", len(ready), 0)
		apply(s, Read{}, time.Now())
		wantEqual(t, "ready", <-ready, nil)
	})
}

// The end of a maintenance is final. It is reported once, and before later changes. An end before
// the first read is not reported: whoever ran then has reported it.
func TestMaintenanceExpires(t *testing.T) {
	on := stored(t, 1, true, past, Options{Message: "Old.", Until: soon})
	s, restarted := New("shop", now), New("shop", now)
	apply(s, on, now)
	wantEqual(t, "ends before its time", len(slices.Collect(s.Tick(soon.Add(-1)))), 0)
	got := slices.Collect(s.Tick(soon))
	if len(got) != 1 || got[0].Cause.Source != SourceUntil || got[0].Before.Options().Message != "Old." || !got[0].After.Expired() {
		t.Fatalf("got %v, want the end", got)
	}
	apply(restarted, on, soon)
	for _, s := range []*Site{s, restarted} {
		wantEqual(t, "ends told again", len(slices.Collect(s.Tick(soon))), 0)
		if v := (View{State: s.currentAt(now)}); v.Word() != "off" || !v.Since().Equal(soon) {
			t.Errorf("when the clock is set back it is %s since %s", v.Word(), v.Since())
		}
	}

	s = New("shop", now)
	apply(s, on, now)
	got = apply(s, stored(t, 2, true, soon, Options{}), soon)
	if len(got) != 2 || got[0].Cause.Source != SourceUntil || got[1].Cause.Source != SourceSync || got[1].Before != got[0].After {
		t.Errorf("got %v, want the end and then what was read", got)
	}
}

// A scheduled maintenance begins by each instance's clock, and that is final. Each change by the
// clock is reported once, both of them if nobody has looked in between.
func TestScheduledMaintenanceBegins(t *testing.T) {
	record := stored(t, 1, true, past, Options{Message: "Soon.", From: soon, Until: later, TerminateAfter: Duration{Text: "1m"}})
	s := New("shop", now)
	apply(s, record, now)
	v := View{State: s.currentAt(soon.Add(-1))}
	if v.Blocks() || !v.Scheduled() || v.Word() != "off" || v.Since() != past || v.Options().Message != "Soon." || !v.TerminateAt().IsZero() {
		t.Errorf("before its time it is %s, scheduled %t, since %s", v.Word(), v.Scheduled(), v.Since())
	}
	wantEqual(t, "told before its time", len(slices.Collect(s.Tick(soon.Add(-1)))), 0)
	for range 2 {
		v = View{State: s.currentAt(soon)}
		if !v.On() || v.Scheduled() || v.Since() != soon || v.BlockedSince() != soon || v.TerminateAt() != soon.Add(time.Minute) {
			t.Errorf("at its time it is %s, since %s, blocks since %s", v.Word(), v.Since(), v.BlockedSince())
		}
	}
	wantEqual(t, "on when the clock is set back", View{State: s.currentAt(now)}.On(), true)
	got := slices.Collect(s.Tick(soon))
	if len(got) != 1 || got[0].Cause.Source != SourceFrom || got[0].Before.Options().Message != "Soon." {
		t.Errorf("got %v, want the beginning", got)
	}
	if got = slices.Collect(s.Tick(later)); len(got) != 1 || got[0].Cause.Source != SourceUntil {
		t.Errorf("got %v, want the end", got)
	}
	apply(s, stored(t, 2, true, past, record.Record.Options), now)
	if got = slices.Collect(s.Tick(later)); len(got) != 2 || got[0].Cause.Source != SourceFrom || got[1].Cause.Source != SourceUntil {
		t.Errorf("got %v, want the beginning and the end", got)
	}
	for at, want := range map[time.Time]string{now: "off", soon: "on", later: "off"} {
		restarted := New("shop", at)
		apply(restarted, record, at)
		wantEqual(t, "after a restart at "+at.String(), View{State: restarted.currentAt(at)}.Word(), want)
		wantEqual(t, "changes told then", len(slices.Collect(restarted.Tick(at))), 0)
	}
}

// Contradicting options are rejected.
func TestOptionsThatDoNotFitAreRefused(t *testing.T) {
	s := New("shop", now)
	apply(s, stored(t, 1, true, past, Options{From: soon, Until: later}), now)
	for _, m := range []Mutation{
		Patch{given(t, `{"from": "2026-01-31T03:00:00Z"}`)},
		Patch{given(t, `{"until": "2026-01-31T02:01:00Z"}`)},
		On{Options: given(t, `{"from": "2026-01-31T03:00:00Z", "until": "2026-01-31T02:30:00Z"}`)},
	} {
		_, err := Configured{Site: s}.Mutate(m, now)
		if invalid := new(InvalidError); !errors.As(err, &invalid) {
			t.Errorf("%+v: got %v", m, err)
		}
	}
}

// Time to terminate counts from when this instance began to block.
func TestTerminateAt(t *testing.T) {
	minute := Options{TerminateAfter: Duration{Text: "1m"}}
	s := New("shop", now)
	later := Options{TerminateAfter: Duration{Text: "2m"}}
	other := Options{Message: "x", TerminateAfter: Duration{Text: "1m"}}
	at := func(seconds int) time.Time { return now.Add(time.Duration(seconds) * time.Second) }
	for i, step := range []struct {
		name          string
		enabled       bool
		options       Options
		seconds, want int // 0 for never
	}{
		{"off", false, Options{}, 0, 0},
		{"on, long ago by another's clock", true, minute, 10, 70},
		{"other options", true, other, 20, 70},
		{"later", true, later, 30, 130},
		{"cleared", true, Options{}, 40, 0},
		{"set again", true, minute, 50, 70},
		{"opened", false, Options{}, 60, 0},
		{"on again", true, minute, 65, 125},
	} {
		apply(s, stored(t, int64(i+1), step.enabled, past, step.options), at(step.seconds))
		got := s.currentAt(at(step.seconds)).TerminateAt()
		if got.IsZero() != (step.want == 0) || step.want > 0 && !got.Equal(at(step.want)) {
			t.Errorf("%s: got %s, want %d s from %s", step.name, got, step.want, now)
		}
	}
}

// A sync does not publish a record that a switch on this instance is about to publish.
func TestPendingRecordIsLeftToItsSwitch(t *testing.T) {
	s := New("shop", now)
	apply(s, Read{}, now)
	r, err := Configured{Site: s}.Mutate(On{Options: given(t, "{}")}, now)
	noError(t, err)
	s.PendingVersion.Store(r.Version)
	wantEqual(t, "changes by a sync", len(apply(s, Read{Record: r}, now)), 0)
	if got := slices.Collect(s.Apply(Read{Record: r}, Cause{Source: SourceAPI}, now)); len(got) != 1 || got[0].Cause.Source != SourceAPI {
		t.Errorf("got %v, want one change by the API", got)
	}
}

// A version is higher than all that a switch has tried to store, even those that failed, and
// than that of an instance whose clock is ahead.
func TestVersionsOnlyRise(t *testing.T) {
	s := New("shop", now)
	ahead := now.Add(time.Hour).UnixMicro()
	apply(s, stored(t, ahead, false, past, Options{}), now)
	last := ahead
	for range 3 {
		r, err := Configured{Site: s}.Mutate(On{Options: given(t, "{}")}, now) // and it is not published
		if err != nil || r.Version <= last {
			t.Fatalf("got version %d (%v), want one above %d", r.Version, err, last)
		}
		last = r.Version
	}
}

// No change of a site is yielded while the caller still handles the one before.
func TestChangesComeOneAfterTheOther(t *testing.T) {
	s := New("shop", now)
	var version, last atomic.Int64
	var told atomic.Bool
	var appliers sync.WaitGroup
	for range 8 {
		appliers.Go(func() {
			for range 50 {
				read := stored(t, version.Add(1), true, past, Options{})
				for change := range s.Apply(read, Cause{Source: SourceSync}, now) {
					if !told.CompareAndSwap(false, true) {
						t.Error("told of two changes at once")
					}
					runtime.Gosched()
					if before := last.Swap(change.After.Version()); change.Before.Version() != before {
						t.Errorf("told of a change from %d after one to %d", change.Before.Version(), before)
					}
					told.Store(false)
				}
			}
		})
	}
	appliers.Wait()
	wantEqual(t, "the last version", last.Load(), 400)
}
