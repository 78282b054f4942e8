// Package api holds what the admin API and the command share: paths and
// answers.
//
// The JSON of its types is public. A field is never renamed and never changes its
// meaning. The package does not know how a site gets into its state or how an answer is
// shown, and imports only the standard library.
package api

import "time"

// Path is where the admin endpoint answers with all sites, as an array of Site.
const Path = "/maintenance"

// TemplatesHeader is the header of that answer with the names with placeholders of the running
// config, one in each. Their sites are in the array if they are not off.
const TemplatesHeader = "Maintenance-Template"

// SitePath returns the path of one site. Names of sites need no escaping.
func SitePath(site string) string { return Path + "/" + site }

// InstancesPath is where the instances of the fleet are; under a site's path, as far as the
// site is concerned.
const InstancesPath = "/instances"

// PagePath is, under a site's path, where its page is.
const PagePath = "/page"

// SourceParameter picks one of several pages, by its source.
const SourceParameter = "source"

// MaxWait is the longest that a GET of a site waits for it to be drained. WaitParameter is
// the duration in its query.
const (
	MaxWait       = 30 * time.Second
	WaitParameter = "wait"
)

// States of a site.
const (
	StateOn      = "on"
	StateOff     = "off"
	StateUnknown = "unknown" // what is stored cannot be read; the site is blocked until it can be, or is switched
)

// Site is one site, as this instance sees it.
type Site struct {
	Site           string    `json:"site"`
	State          string    `json:"state"`
	Since          time.Time `json:"since,omitzero"` // when the state began; zero if the site was never switched
	Message        string    `json:"message,omitempty"`
	Reason         string    `json:"reason,omitempty"`      // for operators
	By             string    `json:"by,omitempty"`          // who, as the client has said
	From           time.Time `json:"from,omitzero"`         // when a maintenance begins that is scheduled
	RetryAfter     string    `json:"retry_after,omitempty"` // a duration, as it was given
	Until          time.Time `json:"until,omitzero"`
	Hold           string    `json:"hold,omitempty"`            // a duration, as it was given
	TerminateAfter string    `json:"terminate_after,omitempty"` // a duration, as it was given
	BypassSecret   bool      `json:"bypass_secret"`             // whether one is set
	Instance       string    `json:"instance"`                  // host name
	SyncInterval   string    `json:"sync_interval"`             // a duration, or SyncOff
	InFlight       int64     `json:"in_flight"`
	Held           int64     `json:"held"`
	Pages          []Page    `json:"pages"`                // sorted by source
	Error          string    `json:"error,omitempty"`      // why the state is unknown
	Configured     *bool     `json:"configured,omitempty"` // false if the site was on when a reload took its directive away
}

// SyncOff is the sync interval of an instance that reads its storage only when it loads a
// config or switches.
const SyncOff = "off"

// States of a page.
const (
	PageOK       = "ok"
	PageStale    = "stale"    // an older copy is shown
	PageFetching = "fetching" // there is none yet
	PageFailed   = "failed"   // the default page is shown
)

// Page is one custom page of a site.
type Page struct {
	Source       string    `json:"source"` // its URL without secrets, or its file
	State        string    `json:"state"`
	FetchedAt    time.Time `json:"fetched_at,omitzero"`
	Error        string    `json:"error,omitempty"`
	ShowsMessage bool      `json:"shows_message"` // whether it has a place for the message
}

// Instance is what an instance of the fleet has last said of itself, about a site or about
// all sites.
type Instance struct {
	Instance     string    `json:"instance"` // host name
	ID           string    `json:"id"`       // of this process: the host's name and a random part
	State        string    `json:"state"`
	InFlight     int64     `json:"in_flight"` // on the site, or on all sites that are not off
	Held         int64     `json:"held"`
	Seen         time.Time `json:"seen"`                   // when it was last heard of
	SyncInterval string    `json:"sync_interval"`          // a duration, or SyncOff
	ClockOffset  string    `json:"clock_offset,omitempty"` // how far its clock is ahead of this instance's, if by more than 30 s
	Drained      bool      `json:"drained"`                // the site is closed there and nothing is in flight
}

// The states of an instance.
const (
	InstanceConfirmed = "confirmed" // has applied everything that was stored before it was asked
	InstancePending   = "pending"   // has not answered yet
	InstanceSilent    = "silent"    // has not answered in time; it may still let requests in
	InstanceStopping  = "stopping"  // is about to exit
	InstanceAbsent    = "absent"    // its config does not have the site
)

// Error is the answer to every request that fails.
type Error struct {
	Error string `json:"error"`
}
