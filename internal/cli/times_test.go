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
		// What is no time of day is for others to judge.
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
		90 * time.Minute:                  "1h30m",
		26 * time.Hour:                    "26h0m",
		29700 * time.Millisecond:          "30s",
	} {
		if got := roughly(d); got != want {
			t.Errorf("%s is said as %s, want %s", d, got, want)
		}
	}
}
