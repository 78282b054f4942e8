package maintenance

import (
	"context"
	"crypto/rand"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"

	"example.com/caddy-maintenance/internal/store"
)

// maxAnnounce is how long requests wait for the first report to be stored when a config
// starts. No usable storage takes that long.
const maxAnnounce = 2 * time.Second

const (
	leaveTimeout  = 3 * time.Second // to remove a report from the storage
	reportSpacing = time.Second     // between reports out of turn
)

// processReports is how this process reports.
var processReports = newReportState()

// reportState is how a process reports, whichever config it runs. The reporters of its configs
// share it.
type reportState struct {
	turn    chan struct{} // holds a token while a report is stored or removed
	last    store.Report  // the last one stored, without the clock
	stored  time.Time     // when that was; zero if there was none
	failing bool          // the last one could not be stored
	by      *reporter     // of the config that reports; nil if none does

	// leaving is that of a replaced config whose requests are still in flight, if no later one
	// reports.
	leaving atomic.Pointer[reporter]
}

func newReportState() *reportState { return &reportState{turn: make(chan struct{}, 1)} }

// take waits for the turn to store or remove the report, which the caller must release.
func (s *reportState) take(ctx context.Context) error {
	select {
	case s.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *reportState) release() { <-s.turn }

// reporter stores what this instance reports to the others while its config runs, and removes the
// report when no config runs any more. Its zero value does not report.
type reporter struct {
	ctx      context.Context // ends with the config
	log      *zap.Logger
	instance instance
	store    *store.Store
	sites    *configSites
	process  *reportState
	configID string // in its reports
	started  bool
	left     bool // it must not report any more; guarded by the turn of process

	announced    chan struct{} // closed when the first report is stored, or takes too long
	setAnnounced func()        // closes it

	next      chan store.Report // the next report to store
	submitted time.Time         // when the last one was handed over
}

func newReporter(ctx context.Context, log *zap.Logger, own instance, st *store.Store, s *configSites, process *reportState) reporter {
	announced := make(chan struct{})
	return reporter{
		ctx: ctx, log: log, instance: own, store: st, sites: s, process: process,
		configID:     rand.Text()[:8],
		announced:    announced,
		setAnnounced: sync.OnceFunc(func() { close(announced) }),
		next:         make(chan store.Report, 1),
	}
}

// enabled reports whether the config has sites and follows other instances.
func (r *reporter) enabled() bool { return r.instance.interval > 0 && len(r.sites.named) > 0 }

// start announces this instance.
func (r *reporter) start() {
	if r.enabled() && r.instance.self == self() {
		adoptName() // before the report of that name is taken for another instance
	}
	r.started = true
	go r.announce()
}

// announce stores the last report of the process again when the config starts: its storage may
// be another one than that of the running config. It does not wait until this config runs,
// because requests wait for the announcement, up to maxAnnounce.
func (r *reporter) announce() {
	defer time.AfterFunc(maxAnnounce, r.setAnnounced).Stop()
	defer r.setAnnounced()
	if !r.enabled() || r.process.take(r.ctx) != nil {
		return
	}
	defer r.process.release()
	if r.process.by == nil {
		r.process.by = r
	}
	r.process.last.Host, r.process.last.SyncInterval = r.instance.host, r.instance.interval
	r.put(r.process.last)
}

// takeOver makes this config the only one that reports.
func (r *reporter) takeOver() {
	if r.process.take(r.ctx) == nil {
		r.process.by = r
		r.process.release()
	}
}

// submit hands over a report, in place of an older one that is not stored yet.
func (r *reporter) submit(report store.Report) {
	select {
	case <-r.next:
	default:
	}
	r.next <- report
	r.submitted = time.Now()
}

// storeSubmitted stores reports until the config ends. No sync waits for it.
func (r *reporter) storeSubmitted() {
	for {
		select {
		case report := <-r.next:
			r.storeNew(report)
		case <-r.ctx.Done():
			return
		}
	}
}

// storeNew stores a report if it differs from the last one or ReportInterval is over.
func (r *reporter) storeNew(report store.Report) {
	if r.process.take(r.ctx) != nil {
		return
	}
	defer r.process.release()
	report.Host, report.SyncInterval, report.Stopping = r.instance.host, r.instance.interval, caddy.Exiting()
	if r.process.by != r || reflect.DeepEqual(report, r.process.last) && time.Since(r.process.stored) < store.ReportInterval {
		return
	}
	r.put(report)
}

// put stores a report. The caller has the turn.
func (r *reporter) put(report store.Report) {
	if r.left {
		return
	}
	dated := report
	dated.Clock, dated.Config = time.Now().UTC(), r.configID
	// The write must not be cut short: otherwise the next one could overtake it.
	err := r.store.Report(context.WithoutCancel(r.ctx), dated)
	if err == nil {
		r.process.last, r.process.stored = report, time.Now()
	}
	if failed := r.process.failing; err != nil && !failed && r.ctx.Err() == nil {
		r.log.Warn("report of this instance cannot be stored; other instances list it as silent", zap.Error(err))
	}
	r.process.failing = err != nil
}

// leave removes the report of this process, which serves no sites any more.
func (r *reporter) leave() {
	if r.instance.self == nil || r.instance.interval <= 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	err := r.process.take(ctx)
	if err == nil {
		defer r.process.release()
		r.left = true
		r.store.Leave("")
		if !r.instance.self.Reports() {
			return
		}
		r.process.by, r.process.last = nil, store.Report{}
		ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
		defer cancel()
		err = r.store.Retire(ctx)
	}
	r.warnOfReport(err)
}

// warnOfReport warns of a report that could not be removed.
func (r *reporter) warnOfReport(err error) {
	if err != nil {
		r.log.Warn("report of this instance cannot be removed; other instances list it as silent until `caddy maintenance forget`, or for 10 minutes",
			zap.String("instance", r.instance.self.Name()), zap.Error(err))
	}
}

// leaveWhenIdle removes the report when the last request in flight of these sites has ended.
func (r *reporter) leaveWhenIdle(list []*configuredSite) {
	r.process.leaving.Store(r)
	defer r.process.leaving.CompareAndSwap(r, nil)
	for _, s := range list {
		<-s.inFlight.Idle()
	}
	if next, err := runningApp(); err != nil || !next.reporter.enabled() {
		r.leave()
	}
}

// handBack leaves the report, after this config has failed, to a replaced config whose requests are
// still in flight. If there is none, it removes the report.
func (r *reporter) handBack() {
	if r.process == nil {
		return // it failed before it could report
	}
	if leaving := r.process.leaving.Load(); leaving != nil {
		r.leaveStorage(leaving)
		return
	}
	r.leave()
}

// leaveStorage removes the report of this process from the storage of a config that was replaced
// or has failed, unless the running config has the same storage: then its report is there.
func (r *reporter) leaveStorage(next *reporter) {
	if !r.started {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	if err := r.process.take(ctx); err != nil {
		return // the storage hangs
	}
	defer r.process.release()
	if r.left {
		return
	}
	r.process.by, r.left = next, true
	r.store.Leave(next.configID)
	next.put(r.process.last)
	r.warnOfReport(r.store.RetireUnlessFrom(ctx, next.configID))
}
