package cli

import (
	"strings"
	"time"
)

// nextTimeOfDay returns the next time, in RFC 3339, at which a clock in the time zone of now shows
// a time of day such as 15:04. It returns any other text unchanged.
func nextTimeOfDay(text string, now time.Time) string {
	clock, err := time.Parse("15:04", text)
	if err != nil {
		return text
	}
	at := func(day int) time.Time {
		return time.Date(now.Year(), now.Month(), day, clock.Hour(), clock.Minute(), 0, 0, now.Location())
	}
	next := at(now.Day())
	if !next.After(now) {
		next = at(now.Day() + 1)
	}
	return next.Format(time.RFC3339)
}

// secondsMatter is how close to now a time is shown with its seconds.
const secondsMatter = 10 * time.Minute

// clockTime is a time as an operator reads it, in the time zone of now.
func clockTime(t, now time.Time) string {
	switch local := t.In(now.Location()); {
	case t.IsZero():
		return "-"
	case now.Sub(t).Abs() < secondsMatter:
		return local.Format("2006-01-02 15:04:05 MST")
	default:
		return local.Format("2006-01-02 15:04 MST")
	}
}

func sinceWords(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	return " since " + clockTime(t, now)
}

// roughly is a duration in minutes, or with its seconds if it is short.
func roughly(d time.Duration) string {
	unit := time.Minute
	if d < secondsMatter {
		unit = time.Second
	}
	text := d.Round(unit).String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
