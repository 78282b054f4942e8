package maintenance

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
)

// sites holds every site that a loaded config refers to or that has a request
// in flight. It is what makes state outlive a config reload.
var sites = sitePool{byName: make(map[string]*site)}

type sitePool struct {
	mu     sync.Mutex
	byName map[string]*site

	events   eventQueue
	lastSync atomic.Pointer[time.Time]
}

// acquire returns the site of that name, which the caller must release. One
// that no config has referred to until now is loading: its record has to be read.
func (p *sitePool) acquire(name string) *site {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.byName[name]
	if !ok {
		s = newSite(name)
		p.byName[name] = s
	}
	if s.handlers == 0 {
		s.reload()
	}
	s.handlers++
	s.orphaned.Store(false)
	return s
}

// release ends what acquire began.
func (p *sitePool) release(s *site) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.handlers--
	p.dropIfUnused(s)
}

// retain keeps a site from being forgotten until it is let go. It reports false,
// and does nothing, if no config refers to the site any more.
func (p *sitePool) retain(s *site) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.handlers == 0 {
		return false
	}
	s.retained++
	return true
}

// letGo ends what retain began.
func (p *sitePool) letGo(s *site) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.retained--
	p.dropIfUnused(s)
}

// collect drops an orphaned site whose last request has ended.
func (p *sitePool) collect(s *site) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dropIfUnused(s)
}

func (p *sitePool) dropIfUnused(s *site) {
	s.orphaned.Store(s.handlers+s.retained == 0)
	if s.orphaned.Load() && s.inFlight.Load() == 0 && p.byName[s.name] == s {
		delete(p.byName, s.name)
	}
}

// site is what all handlers of one name share: its state and the number of
// requests that they have admitted.
type site struct {
	name  string
	state atomic.Pointer[state]

	// inFlight is written by every admitted request, and keeps a distance from
	// what every request reads.
	_        [64]byte
	inFlight atomic.Int64
	_        [56]byte
	idle     atomic.Pointer[chan struct{}] // closed when inFlight reaches 0; nil while nobody waits
	held     atomic.Int64                  // requests that wait for the end of a maintenance
	requests [len(outcomes)]atomic.Int64   // how many, by what has been done to them

	passages crowds // the admitted requests

	cutting  sync.Mutex
	cutTimer *time.Timer // until what is in flight is cut off, if it is to be; guarded by cutting

	telling sync.Mutex // others are told of changes in the order in which they come

	reading atomic.Int32 // reads of the record under way

	orphaned atomic.Bool // nothing but requests in flight is left
	handlers int         // of loaded configs; guarded by the pool
	retained int         // by requests of the admin API, and by what goes on for the site; guarded by the pool

	// switching holds a token while a switch of the site is under way. highest,
	// guarded by it, is the highest version that it has tried to store, which
	// may still come to be stored after a failure.
	switching chan struct{}
	highest   int64

	// storing is the version that a switch is about to store and to learn, 0 if
	// none is.
	storing atomic.Int64
}

func newSite(name string) *site {
	s := &site{name: name, switching: make(chan struct{}, 1)}
	st := newState(loading)
	st.closedAt = time.Now()
	s.state.Store(st)
	return s
}

// reload has requests wait until the record has been read again.
func (s *site) reload() {
	for {
		st := s.state.Load()
		next := newState(loading)
		next.record = st.record
		if s.replace(st, next) {
			return
		}
	}
}

// ready waits until the site's state has been read from storage, which it has
// been unless the process has only just begun.
func (s *site) ready(ctx context.Context) error {
	for {
		st := s.state.Load()
		if st.kind != loading {
			return nil
		}
		select {
		case <-st.replaced:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// admit lets a request in unless the site is in maintenance; one that was let
// in must leave. The site is looked at twice: with a look only before the
// count, a switch could report that nothing is in flight while a request slips
// through between the two; with a look only after it, blocked requests would
// show up in the count.
//
// A request that another gate of the site has let in, and counts, gets no passage.
func (s *site) admit(h *Handler, w http.ResponseWriter, r *http.Request) (st *state, p *passage, admitted bool) {
	if st = s.current(); st.blocks(h.initiallyOn) {
		return st, nil, false
	}
	for outer := range passages(r.Context()) {
		if outer.gate.site.site == s {
			return st, nil, true
		}
	}
	p = newPassage(h, w, r)
	s.passages.add(p)
	s.inFlight.Add(1)
	if st = s.current(); st.blocks(h.initiallyOn) {
		s.leave(p)
		return st, nil, false
	}
	return st, p, true
}

// leave ends what admit began. It may be called again.
func (s *site) leave(p *passage) {
	if !p.end() {
		return
	}
	p.leaveCrowd()
	if s.inFlight.Add(-1) > 0 {
		return
	}
	s.signalIdle()
	if s.orphaned.Load() {
		sites.collect(s)
	}
}

// idled returns a channel that is closed once nothing has been in flight for a
// moment.
func (s *site) idled() <-chan struct{} {
	idle := s.idle.Load()
	for idle == nil {
		fresh := make(chan struct{})
		if s.idle.CompareAndSwap(nil, &fresh) {
			idle = &fresh
		} else {
			idle = s.idle.Load()
		}
	}
	s.signalIdle()
	return *idle
}

// signalIdle wakes those who wait if nothing is in flight. The count is looked at
// after the channel: a request that brought it to 0 before anyone waited, and is
// late to say so, must not wake those who wait for others.
func (s *site) signalIdle() {
	idle := s.idle.Load()
	if idle != nil && s.inFlight.Load() == 0 && s.idle.CompareAndSwap(idle, nil) {
		close(*idle)
	}
}

// current returns the site's state, after ending a maintenance whose time is
// over.
func (s *site) current() *state {
	for {
		st := s.state.Load()
		if !st.overdue() {
			return st
		}
		s.replace(st, st.end())
	}
}

// replace puts next in the place of old, unless another state has done so.
func (s *site) replace(old, next *state) bool {
	if next.closed() {
		next.closedAt = old.closedAt
		if !old.closed() {
			next.closedAt = time.Now()
		}
	}
	if !s.state.CompareAndSwap(old, next) {
		return false
	}
	close(old.replaced)
	s.setCutTimer()
	return true
}

// setCutTimer has what is in flight cut off when its time has come.
func (s *site) setCutTimer() {
	s.cutting.Lock()
	defer s.cutting.Unlock()
	if s.cutTimer != nil {
		s.cutTimer.Stop()
		s.cutTimer = nil
	}
	if at := s.state.Load().cutsAt(); !at.IsZero() {
		s.cutTimer = time.AfterFunc(time.Until(at), s.cut)
	}
}

// cut ends what is still in flight, unless it is not to be ended any more.
func (s *site) cut() {
	st := s.current()
	if at := st.cutsAt(); at.IsZero() || time.Now().Before(at) {
		return
	}
	passages := s.passages.all()
	if now := s.state.Load(); !now.closed() || !now.closedAt.Equal(st.closedAt) {
		return // some of them may have been admitted since
	}
	terminated := 0
	for _, p := range passages {
		if p.cut() {
			terminated++
		}
	}
	if terminated > 0 {
		s.requests[wasTerminated].Add(int64(terminated))
		caddy.Log().Named("maintenance").Info("cut off what was still in flight", zap.String("site", s.name), zap.Int("requests", terminated))
	}
	end := time.Now().Add(2 * cutGrace)
	time.AfterFunc(cutGrace, func() { cutConnections(passages, end) })
}

// heldNow is how many requests are held.
func (s *site) heldNow() int64 {
	return min(s.held.Load(), maxHeld) // one that finds no place is counted for a moment
}

// learn takes in what there is in storage: a record, none, or an error where it
// could not be read. It returns the states before and after, or nil if that
// was no news.
func (s *site) learn(r *record, err error) (before, after *state) {
	for {
		st := s.current()
		next := st.after(r, err)
		if next == nil {
			return nil, nil
		}
		if s.replace(st, next) {
			return st, next
		}
	}
}

// A state is what is known of a site at one moment. It is replaced as a whole,
// and never changes what it says.
type state struct {
	kind     stateKind
	record   *record       // as stored, of recorded; of loading, the last one known
	ended    bool          // the record's until has passed; it does not begin again if the clock is set back
	reported atomic.Bool   // that it ended has been logged
	closedAt time.Time     // since when this instance lets nobody in, if it does not
	replaced chan struct{} // closed when another state takes its place
	page     *builtinPage
}

type stateKind int

// In the order of what is known: from neverSwitched on, the state is.
const (
	loading       stateKind = iota // being read from storage
	unknown                        // could not be read
	corrupt                        // there is a record that nothing can be learned from
	neverSwitched                  // there is no record
	recorded                       // what the record says
)

func newState(kind stateKind) *state {
	return &state{kind: kind, replaced: make(chan struct{}), page: stockPage}
}

func newRecordedState(r *record) *state {
	st := newState(recorded)
	st.record = r
	if st.overdue() {
		st.ended = true
		st.reported.Store(true)
	}
	if r.Enabled && !st.ended {
		st.page = renderPage(r.options)
	}
	return st
}

// after returns what is known of the site after reading its record, or nil if
// that tells no more than st does. Where there was a corrupt record, its absence
// tells nothing: whoever removed it has not said that the site may open.
func (st *state) after(r *record, err error) *state {
	var kind stateKind
	switch {
	case r != nil && (st.record == nil || r.newerThan(st.record)):
		return newRecordedState(r)
	case st.kind == loading && st.record != nil:
		return newRecordedState(st.record)
	case r != nil:
		return nil
	case errors.Is(err, errCorrupt):
		kind = corrupt
	case err != nil:
		kind = unknown
	default:
		kind = neverSwitched
	}
	if st.kind >= corrupt || kind <= st.kind {
		return nil
	}
	return newState(kind)
}

// newerThan reports whether the state is of a newer record than r, which may
// be nil.
func (st *state) newerThan(r *record) bool {
	return st.record != nil && (r == nil || st.record.newerThan(r))
}

// version is the version of the record, if there is one.
func (st *state) version() int64 {
	if st.record == nil {
		return 0
	}
	return st.record.Version
}

// overdue reports whether the maintenance has to end now.
func (st *state) overdue() bool {
	return st.kind == recorded && st.record.Enabled && !st.ended &&
		!st.record.Until.IsZero() && !time.Now().Before(st.record.Until)
}

func (st *state) end() *state {
	next := newState(recorded)
	next.record = st.record
	next.ended = true
	return next
}

// blocks reports whether requests are kept out.
func (st *state) blocks(initiallyOn bool) bool {
	switch st.kind {
	case recorded:
		return st.record.Enabled && !st.ended
	case neverSwitched:
		return initiallyOn
	default:
		return true
	}
}

// closed reports whether requests are kept out whatever the site's initial state.
func (st *state) closed() bool { return st.kind != neverSwitched && st.blocks(false) }

// cutsAt is when what is in flight is to be cut off, or zero.
func (st *state) cutsAt() time.Time {
	after := st.options().terminateAfter()
	if after == 0 {
		return time.Time{}
	}
	return st.closedAt.Add(after)
}

// on reports whether the site is known to be in maintenance.
func (st *state) on(initiallyOn bool) bool {
	return st.kind >= neverSwitched && st.blocks(initiallyOn)
}

// word is how the state is called in answers.
func (st *state) word(initiallyOn bool) string {
	switch {
	case st.kind < neverSwitched:
		return "unknown"
	case st.blocks(initiallyOn):
		return "on"
	default:
		return "off"
	}
}

// since is when the state began, or zero if the site was never switched or is
// unknown.
func (st *state) since() time.Time {
	switch {
	case st.kind != recorded:
		return time.Time{}
	case st.ended:
		return st.record.Until
	default:
		return st.record.Since
	}
}

// options are those of the maintenance that is on.
func (st *state) options() options {
	if st.kind != recorded || !st.record.Enabled || st.ended {
		return options{}
	}
	return st.record.options
}

// fields are how the state is logged.
func (st *state) fields() []zap.Field {
	var fields []zap.Field
	if since := st.since(); !since.IsZero() {
		fields = append(fields, zap.String("since", since.Format(time.RFC3339)))
	}
	o := st.options()
	if o.Message != "" {
		fields = append(fields, zap.String("message", o.Message))
	}
	if o.RetryAfter != "" {
		fields = append(fields, zap.String("retry_after", o.RetryAfter))
	}
	if !o.Until.IsZero() {
		fields = append(fields, zap.String("until", o.Until.Format(time.RFC3339)))
	}
	if o.Hold != "" {
		fields = append(fields, zap.String("hold", o.Hold))
	}
	if o.TerminateAfter != "" {
		fields = append(fields, zap.String("terminate_after", o.TerminateAfter))
	}
	if o.Pass != nil {
		fields = append(fields, zap.Bool("bypass_secret", true))
	}
	return fields
}
