package cli

import (
	"strings"
	"time"
)

// nextTimeOfDay returns the next time, in RFC 3339, that a clock where now is shows a time
// of day such as 15:04. What is none is returned as it is.
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

// clockTime is a time as an operator reads it, where now is.
func clockTime(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.In(now.Location()).Format("2006-01-02 15:04 MST")
}

func sinceWords(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	return " since " + clockTime(t, now)
}

// roughly is a duration without what is too small to matter.
func roughly(d time.Duration) string {
	if d >= time.Minute {
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	}
	return d.Round(time.Second).String()
}
