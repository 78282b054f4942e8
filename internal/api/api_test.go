package api

import (
	"encoding/json"
	"testing"
	"time"
)

// Scripts read these fields, and people compare what they have seen before.
func TestAnswersKeepTheirJSON(t *testing.T) {
	at := time.Date(2026, 1, 31, 2, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		answer any
		want   string
	}{
		{
			Site{Site: "shop", State: StateOff, Instance: "web-1", SyncInterval: "2s", Pages: []Page{}},
			`{"site":"shop","state":"off","bypass_secret":false,"instance":"web-1","sync_interval":"2s","in_flight":0,"held":0,"pages":[]}`,
		},
		{
			Site{
				Site: "shop", State: StateOn, Since: at, Message: "Back at three.", RetryAfter: "10m", Until: at.Add(time.Hour), Hold: "30s",
				TerminateAfter: "1m", BypassSecret: true, Instance: "web-1", SyncInterval: SyncOff, InFlight: 3, Held: 2,
				Pages: []Page{{Source: "https://example.com/", State: PageStale, FetchedAt: at, Error: "EOF", ShowsMessage: true}},
			},
			`{"site":"shop","state":"on","since":"2026-01-31T02:00:00Z","message":"Back at three.","retry_after":"10m",` +
				`"until":"2026-01-31T03:00:00Z","hold":"30s","terminate_after":"1m","bypass_secret":true,"instance":"web-1",` +
				`"sync_interval":"off","in_flight":3,"held":2,` +
				`"pages":[{"source":"https://example.com/","state":"stale","fetched_at":"2026-01-31T02:00:00Z","error":"EOF","shows_message":true}]}`,
		},
		{Page{Source: "/srv/page.html", State: PageOK}, `{"source":"/srv/page.html","state":"ok","shows_message":false}`},
	} {
		if got, err := json.Marshal(test.answer); err != nil || string(got) != test.want {
			t.Errorf("%+v is\n%s %v, want\n%s", test.answer, got, err, test.want)
		}
	}
}
