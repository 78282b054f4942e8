package cli

import (
	"testing"
	"time"
)

func TestTimeOfDayIsTheNextSuchTime(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		now        time.Time
		text, want string
	}{
		{time.Date(2026, 1, 31, 14, 0, 0, 0, time.UTC), "15:04", "2026-01-31T15:04:00Z"},
		{time.Date(2026, 1, 31, 15, 4, 0, 0, time.UTC), "15:04", "2026-02-01T15:04:00Z"},
		{time.Date(2026, 1, 31, 23, 59, 0, 0, time.UTC), "00:00", "2026-02-01T00:00:00Z"},
		// The night in which the clock goes forward.
		{time.Date(2026, 3, 28, 12, 0, 0, 0, berlin), "11:00", "2026-03-29T11:00:00+02:00"},
		// Other text is returned unchanged.
		{time.Date(2026, 1, 31, 14, 0, 0, 0, time.UTC), "24:00", "24:00"},
		{time.Date(2026, 1, 31, 14, 0, 0, 0, time.UTC), "2026-02-01T00:00:00Z", "2026-02-01T00:00:00Z"},
	} {
		if got := nextTimeOfDay(test.text, test.now); got != test.want {
			t.Errorf("at %s, %s is %s, want %s", test.now, test.text, got, test.want)
		}
	}
}

func TestDurationIsSaidRoughly(t *testing.T) {
	for d, want := range map[time.Duration]string{
		57*time.Minute - time.Millisecond: "57m",
		10*time.Minute - time.Millisecond: "10m",
		9*time.Minute + 59*time.Second:    "9m59s",
		5 * time.Minute:                   "5m",
		100 * time.Second:                 "1m40s",
		90 * time.Minute:                  "1h30m",
		26 * time.Hour:                    "26h",
		29700 * time.Millisecond:          "30s",
	} {
		if got := roughly(d); got != want {
			t.Errorf("%s is said as %s, want %s", d, got, want)
		}
	}
}

// Seconds are shown if they matter.
func TestClockTimeIsAsPreciseAsItIsNear(t *testing.T) {
	now := time.Date(2026, 1, 31, 4, 12, 30, 0, time.UTC)
	for after, want := range map[time.Duration]string{
		14 * time.Second:             "2026-01-31 04:12:44 UTC",
		-14 * time.Second:            "2026-01-31 04:12:16 UTC",
		10*time.Minute - time.Second: "2026-01-31 04:22:29 UTC",
		10 * time.Minute:             "2026-01-31 04:22 UTC",
		-10 * time.Minute:            "2026-01-31 04:02 UTC",
	} {
		if got := clockTime(now.Add(after), now); got != want {
			t.Errorf("%s from now is %s, want %s", after, got, want)
		}
	}
	if got := clockTime(time.Time{}, now); got != "-" {
		t.Errorf("no time is %s, want -", got)
	}
}
