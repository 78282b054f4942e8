// Package api holds what the admin API and the command share: paths and answers.
//
// The JSON of its types is public: no field is ever renamed or changes its meaning. The package
// does not know how a site gets into its state or how an answer is shown, and imports only the
// standard library.
package api

import "time"

// Path is the path of all sites. The answer is an array of Site.
const Path = "/maintenance"

// TemplatesHeader is a header of that answer. It has one value for each name in the running config
// that has placeholders. A site that gets its name from one is in the array only if it is not off,
// or is scheduled.
const TemplatesHeader = "Maintenance-Template"

// SitePath returns the path of one site. Site names need no escaping.
func SitePath(site string) string { return Path + "/" + site }

// InstancesPath is, under Path, the path of the instances of the fleet. Under a site's path, the
// answer is about that site.
const InstancesPath = "/instances"

// PagePath is, under a site's path, the path of its page.
const PagePath = "/page"

// SourceParameter is the query parameter that picks one of several pages by its source.
const SourceParameter = "source"

const (
	// WaitParameter is the query parameter that says how long a GET of a site, or of its
	// instances, waits for the site to be drained.
	WaitParameter = "wait"

	// MaxWait is the longest duration that it takes.
	MaxWait = 30 * time.Second
)

// States of a site.
const (
	StateOn      = "on"
	StateOff     = "off"
	StateUnknown = "unknown" // its state cannot be read; its requests are blocked until it can be, or the site is switched
)

// Site is one site, as this instance sees it.
type Site struct {
	Site           string    `json:"site"`
	State          string    `json:"state"`
	Since          time.Time `json:"since,omitzero"` // when the state began; zero if the site was never switched
	Message        string    `json:"message,omitempty"`
	Reason         string    `json:"reason,omitempty"`          // for operators; visitors never see it
	By             string    `json:"by,omitempty"`              // who switched it, as the client says
	From           time.Time `json:"from,omitzero"`             // when scheduled maintenance begins
	RetryAfter     string    `json:"retry_after,omitempty"`     // a duration, as it was given
	Until          time.Time `json:"until,omitzero"`            // when maintenance ends by itself
	Hold           string    `json:"hold,omitempty"`            // a duration, as it was given
	TerminateAfter string    `json:"terminate_after,omitempty"` // a duration, as it was given
	BypassSecret   bool      `json:"bypass_secret"`             // whether one is set
	Instance       string    `json:"instance"`                  // host name
	SyncInterval   string    `json:"sync_interval"`             // a duration, or SyncOff
	InFlight       int64     `json:"in_flight"`                 // requests that were let in and have not ended
	Held           int64     `json:"held"`                      // requests that wait for maintenance to end
	Pages          []Page    `json:"pages"`                     // sorted by source
	Error          string    `json:"error,omitempty"`           // why the state is unknown
	Configured     *bool     `json:"configured,omitempty"`      // false if the site was on when a reload removed its directive; else absent
}

// SyncOff is the sync interval of an instance that reads the storage only when it loads a config
// or switches a site.
const SyncOff = "off"

// States of a page.
const (
	PageOK       = "ok"
	PageStale    = "stale"    // an older copy is shown
	PageFetching = "fetching" // not fetched yet; the default page is shown
	PageFailed   = "failed"   // fetching failed; the default page is shown
)

// Page is one custom page of a site.
type Page struct {
	Source       string    `json:"source"` // its URL without userinfo and query, or its file
	State        string    `json:"state"`
	FetchedAt    time.Time `json:"fetched_at,omitzero"`
	Error        string    `json:"error,omitempty"`
	ShowsMessage bool      `json:"shows_message"` // whether the page that is shown has a place for the message
}

// Instance is the last report of an instance of the fleet, about one site or about all sites.
type Instance struct {
	Instance     string    `json:"instance"` // host name
	ID           string    `json:"id"`       // host name and a random part; the next process with the same data directory keeps it
	State        string    `json:"state"`
	InFlight     int64     `json:"in_flight"` // of the site, or of all sites that are not off
	Held         int64     `json:"held"`
	Seen         time.Time `json:"seen"`                   // when it last reported
	SyncInterval string    `json:"sync_interval"`          // a duration, or SyncOff
	ClockOffset  string    `json:"clock_offset,omitempty"` // about how far its clock is ahead (or behind: "-1m0s"), if by more than 30 s
	Drained      bool      `json:"drained"`                // it blocks the site's requests, and none is in flight
}

// States of an instance.
const (
	InstanceConfirmed = "confirmed" // has applied everything that was stored before the request
	InstancePending   = "pending"   // has not answered yet
	InstanceSilent    = "silent"    // has not answered in time, and may still let requests in
	InstanceStopping  = "stopping"  // is about to exit
	InstanceAbsent    = "absent"    // has a config without the site
)

// Error is the answer to every request that fails.
type Error struct {
	Error string `json:"error"`
}
