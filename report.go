package maintenance

import (
	"context"
	"crypto/rand"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"

	"example.com/caddy-maintenance/internal/inflight"
	"example.com/caddy-maintenance/internal/store"
)

// self is this process as an instance of the fleet, whichever config it runs.
var self = sync.OnceValue(func() *store.Self { return store.NewSelf(store.NewName(hostName())) })

// adoptName takes over the report of the process that used Caddy's data directory before, if
// that process has ended, so that nobody waits for it.
var adoptName = sync.OnceFunc(func() {
	directory := filepath.Join(caddy.AppDataDir(), "maintenance")
	if os.MkdirAll(directory, 0o700) != nil {
		return
	}
	file, err := os.OpenFile(filepath.Join(directory, "instance"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	if !lock(file) { // another process runs, or the system has no such locks
		_ = file.Close()
		return
	}
	heldName = file
	before, err := io.ReadAll(io.LimitReader(file, 1<<10))
	if own := self().Name(); err != nil || !sameHost(string(before), own) {
		_ = file.Truncate(0)
		_, _ = file.WriteAt([]byte(own), 0)
		return
	}
	self().Adopt(string(before))
})

// heldName is the file with the name of this process, locked while the process lives.
var heldName *os.File //nolint:unused // a file without a reference would be closed, and so unlocked

var reportName = regexp.MustCompile(`^(.+)-[0-9a-f]{8}$`)

// sameHost reports whether a and b are names of reports from one host.
func sameHost(a, b string) bool {
	of, as := reportName.FindStringSubmatch(a), reportName.FindStringSubmatch(b)
	return of != nil && as != nil && of[1] == as[1]
}

func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown host"
	}
	return name
}

// maxAnnounce is how long requests wait for the first report to be stored when a config
// starts. No usable storage takes that long.
const maxAnnounce = 2 * time.Second

const (
	leaveTimeout  = 3 * time.Second // to remove a report from the storage
	reportSpacing = time.Second     // between reports out of turn
)

// processReports is how this process reports.
var processReports = newReportState()

// reportState is how a process reports, whichever config it runs.
type reportState struct {
	turn    chan struct{} // holds a token while a report is stored or removed
	last    store.Report  // the last one stored, without the clock
	stored  time.Time     // when that was; zero if there was none
	failing bool          // the last one could not be stored
	by      *App          // whose config reports; nil if none does
}

func newReportState() *reportState { return &reportState{turn: make(chan struct{}, 1)} }

// prepareReports sets up what the config needs for reporting.
func (a *App) prepareReports(state *reportState) {
	a.report, a.configID = state, rand.Text()[:8]
	a.announced = make(chan struct{})
	a.setAnnounced = sync.OnceFunc(func() { close(a.announced) })
}

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

// hasReport reports whether the config has sites and follows other instances.
func (a *App) hasReport() bool { return len(a.sites.named) > 0 && a.SyncInterval > 0 }

// announce stores the last report of the process again when the config starts: its storage may
// be another one than that of the running config. It does not wait until this config runs,
// because requests wait for the announcement, up to maxAnnounce.
func (a *App) announce() {
	defer time.AfterFunc(maxAnnounce, a.setAnnounced).Stop()
	defer a.setAnnounced()
	if !a.hasReport() || a.report.take(a.ctx) != nil {
		return
	}
	defer a.report.release()
	if a.report.by == nil {
		a.report.by = a
	}
	a.report.last.Host, a.report.last.SyncInterval = a.instance, time.Duration(a.SyncInterval)
	a.putReport(a.report.last)
}

// takeOver makes this config the only one that reports.
func (a *App) takeOver() {
	if a.report.take(a.ctx) == nil {
		a.report.by = a
		a.report.release()
	}
}

// storeReport stores a report if it differs from the last one or ReportInterval is over.
func (a *App) storeReport(r store.Report) {
	if a.report.take(a.ctx) != nil {
		return
	}
	defer a.report.release()
	r.Host, r.SyncInterval, r.Stopping = a.instance, time.Duration(a.SyncInterval), caddy.Exiting()
	if a.report.by != a || reflect.DeepEqual(r, a.report.last) && time.Since(a.report.stored) < store.ReportInterval {
		return
	}
	a.putReport(r)
}

// putReport stores a report. The caller has the turn.
func (a *App) putReport(r store.Report) {
	if a.left {
		return
	}
	dated := r
	dated.Clock, dated.Config = time.Now().UTC(), a.configID
	// The write must not be cut short: otherwise the next one could overtake it.
	err := a.store.Report(context.WithoutCancel(a.ctx), dated)
	if err == nil {
		a.report.last, a.report.stored = r, time.Now()
	}
	if failed := a.report.failing; err != nil && !failed && a.ctx.Err() == nil {
		a.log.Warn("report of this instance cannot be stored; other instances list it as silent", zap.Error(err))
	}
	a.report.failing = err != nil
}

// leave removes the report of this process, which serves no sites any more.
func (a *App) leave() {
	if a.self == nil || a.SyncInterval <= 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	err := a.report.take(ctx)
	if err == nil {
		defer a.report.release()
		a.left = true
		if !a.self.Reports() {
			return
		}
		a.report.by, a.report.last = nil, store.Report{}
		ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
		defer cancel()
		err = a.store.Retire(ctx)
	}
	a.warnOfReport(err)
}

// warnOfReport warns of a report that could not be removed.
func (a *App) warnOfReport(err error) {
	if err != nil {
		a.log.Warn("report of this instance cannot be removed; other instances list it as silent until `caddy maintenance forget`, or for 10 minutes",
			zap.String("instance", a.self.Name()), zap.Error(err))
	}
}

// leaveWhenIdle removes the report when the last request in flight of these sites has ended.
func (a *App) leaveWhenIdle(list []*configuredSite) {
	for _, s := range list {
		<-s.inFlight.Idle()
	}
	if next, err := runningApp(); err != nil || !next.hasReport() {
		a.leave()
	}
}

// leaveStorage removes the report of this process from the storage of a config that was replaced
// or has failed, unless the running config has the same storage: then its report is there.
func (a *App) leaveStorage(next *App) {
	if !a.started {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	if err := a.report.take(ctx); err != nil {
		return // the storage hangs
	}
	defer a.report.release()
	if a.left {
		return
	}
	a.report.by, a.left = next, true
	a.store.Leave(next.configID)
	next.putReport(a.report.last)
	a.warnOfReport(a.store.RetireUnlessFrom(ctx, next.configID))
}

// exit terminates the requests of closed sites, for which no server waits any more, and removes
// the report.
func (a *App) exit() {
	a.sites.terminateClosed()
	a.leave()
}

// terminateClosed terminates the requests in flight of closed sites.
func (c *configSites) terminateClosed() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for s := range c.inMemory() {
		if v := s.view(); v.Blocks() && s.inFlight.Count() > 0 {
			inflight.Terminate(s.inFlight.All())
			select {
			case <-s.inFlight.Idle():
			case <-ctx.Done():
			}
		}
	}
}
