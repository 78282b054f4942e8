package maintenance

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

func TestChangesAreEmittedOnce(t *testing.T) {
	s := prepare(t)
	handled := s.handleEvents()
	s.reload("maintenance shop")
	s.put("shop", `{"message": "Back at three.", "until": "2999-01-01T00:00:00Z", "bypass_secret": "`+testSecret+`"}`)
	s.put("shop", `{"message": "Back at four."}`) // no change of what is on
	s.patch("shop", `{"message": "Back at five."}`)
	s.delete("shop")
	s.delete("shop")
	until := time.Now().Add(200 * time.Millisecond).UTC()
	s.put("shop", fmt.Sprintf(`{"until": %q}`, until.Format(time.RFC3339Nano)))
	handled.expect(t,
		`maintenance_enabled maintenance shop "Back at three." "2999-01-01T00:00:00Z" api`,
		`maintenance_disabled maintenance shop "Back at five." "" api`,
		fmt.Sprintf(`maintenance_enabled maintenance shop "" %q api`, until.Truncate(time.Second).Format(time.RFC3339)),
		fmt.Sprintf(`maintenance_disabled maintenance shop "" %q until`, until.Truncate(time.Second).Format(time.RFC3339)),
	)
	for range 3 {
		s.reload("maintenance shop") // is no change
	}
	s.put("shop", "")
	handled.expect(t, `maintenance_enabled maintenance shop "" "" api`)
	if strings.Contains(handled.all(), testSecret) {
		t.Error("a handler was told the secret")
	}
}

// An end that nobody has noticed before the next switch is told of all the same.
func TestEndBeforeTheNextSwitchIsEmitted(t *testing.T) {
	s := prepare(t)
	handled := s.handleEvents()
	s.reload("maintenance shop")
	for range 5 {
		s.put("shop", fmt.Sprintf(`{"until": %q}`, time.Now().Add(20*time.Millisecond).Format(time.RFC3339Nano)))
		eventually(t, func() error { return s.is("shop", "off") })
	}
	s.put("shop", "")
	var names []string
	for range 11 {
		names = append(names, strings.Fields(handled.next(t))[0])
	}
	for i, name := range names {
		if want := []string{"maintenance_enabled", "maintenance_disabled"}[i%2]; name != want {
			t.Fatalf("got %q", names)
		}
	}
}

func TestHandlersAreToldOfASiteThatBecomesKnown(t *testing.T) {
	s := prepare(t)
	handled := s.handleEvents()
	s.storage.setFault(failOn("load", "maintenance/"))
	s.reload("maintenance shop")
	s.storage.setFault(nil)
	eventually(t, func() error { return s.is("shop", "off") })
	s.put("shop", "")
	handled.expect(t, `maintenance_enabled maintenance shop "" "" api`)

	s.storage.set(recordKey("shop"), "{")
	s.restart("maintenance shop")
	s.put("shop", "")
	handled.expect(t, `maintenance_enabled maintenance shop "" "" api`)
}

// A switch is answered, and the next one made, while a handler is still at work.
func TestHandlersAreInNobodysWay(t *testing.T) {
	s := prepare(t)
	handled := s.handleEvents()
	s.reload("maintenance shop")
	for range 3 {
		s.put("shop", "")
		s.delete("shop")
	}
	s.wantStatus("/", 200)
	for i := range 6 {
		name := strings.Fields(handled.next(t))[0]
		if want := []string{"maintenance_enabled", "maintenance_disabled"}[i%2]; name != want {
			t.Errorf("event %d is %s, want %s", i, name, want)
		}
	}
}

// A handler that asks for the state, or switches back, meets a switch that is done.
func TestHandlersAreToldAfterTheAnswer(t *testing.T) {
	s := prepare(t)
	states := make(chan string, 1)
	handled := s.handleEvents()
	handled.before = func(string) { states <- s.status("shop")["state"].(string) }
	s.reload("maintenance shop")
	s.put("shop", "")
	handled.next(t)
	if got := <-states; got != "on" {
		t.Errorf("a handler saw the state %s, want on", got)
	}

	answered := make(chan struct{})
	sites.events.add(newEvent("maintenance_disabled", "shop", options{}, origin{source: "api", answered: answered}))
	select {
	case <-states:
		t.Error("a handler was told before the client had its answer")
	case <-time.After(100 * time.Millisecond):
	}
	close(answered)
	handled.next(t)
}

// What becomes of a handler is not Caddy's end, and the next event is told.
func TestHandlerThatPanicsEndsNothing(t *testing.T) {
	s := prepare(t)
	handled := s.handleEvents()
	handled.before = func(event string) {
		if strings.HasPrefix(event, "maintenance_enabled") {
			panic("out of order")
		}
	}
	s.reload("maintenance shop")
	s.put("shop", "")
	s.logged("event handler has panicked", "out of order", `"site":"shop"`)
	s.delete("shop")
	handled.expect(t, `maintenance_disabled maintenance shop "" "" api`)
}

// A reload while a handler is at work ends neither that nor the handlers after it.
func TestReloadDoesNotEndTheTelling(t *testing.T) {
	s := prepare(t)
	handled := s.handleEvents()
	s.options = strings.Replace(s.options, "events {", "events {\non maintenance_enabled maintenance_test", 1) // one more
	reloaded := make(chan struct{})
	handled.before = func(string) { <-reloaded }
	s.reload("maintenance shop")
	s.put("shop", "")
	s.reload("maintenance shop\nheader X-Config new")
	close(reloaded)
	handled.expect(t, `maintenance_enabled maintenance shop "" "" api`, `maintenance_enabled maintenance shop "" "" api`)
	if n := s.countLogged("context canceled"); n > 0 {
		t.Errorf("%d handlers were canceled", n)
	}
}

// Changes are told in the order in which they come, however long the log takes.
func TestEventsComeInTheOrderOfTheChanges(t *testing.T) {
	s := prepare(t)
	handled := s.handleEvents()
	s.reload("maintenance shop")
	s.polled()
	app, err := runningApp()
	if err != nil {
		t.Fatal(err)
	}
	log := pausingLog{paused: make(chan struct{}), goOn: make(chan struct{})}
	slow := &App{log: zap.New(log)}
	r, err := newRecord(time.Now().UnixMicro(), true, now(), options{})
	if err != nil {
		t.Fatal(err)
	}
	s.storage.set(shopKey, string(r.raw))
	go func() { _, _ = slow.takeIn(app.members["shop"], r.raw, nil) }()
	<-log.paused // the other instance's switch is known, and about to be told
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.delete("shop")
	}()
	select {
	case <-done:
		t.Error("a switch was answered before the one before it was told")
	case <-time.After(100 * time.Millisecond):
	}
	close(log.goOn)
	handled.expect(t, `maintenance_enabled maintenance shop "" "" sync`, `maintenance_disabled maintenance shop "" "" api`)
	<-done
}

// pausingLog is a log that takes a pause before each line.
type pausingLog struct{ paused, goOn chan struct{} }

func (pausingLog) Enabled(zapcore.Level) bool          { return true }
func (l pausingLog) With([]zapcore.Field) zapcore.Core { return l }
func (pausingLog) Sync() error                         { return nil }

func (l pausingLog) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	return checked.AddCore(entry, l)
}

func (l pausingLog) Write(zapcore.Entry, []zapcore.Field) error {
	l.paused <- struct{}{}
	<-l.goOn
	return nil
}

// A config that fails tells nobody; the running one tells of what came meanwhile.
func TestFailedConfigsEmitNothing(t *testing.T) {
	s := prepare(t)
	handled := s.handleEvents()
	s.reload("maintenance shop")
	for range 5 {
		s.failLate("maintenance shop")
		s.put("shop", "")
		s.delete("shop")
	}
	for range 5 {
		handled.expect(t, `maintenance_enabled maintenance shop "" "" api`, `maintenance_disabled maintenance shop "" "" api`)
	}
}

// G4: Each instance tells its own handlers, once.
func TestEachInstanceEmitsTheChangesOfAll(t *testing.T) {
	storage := t.TempDir()
	var fleet [2]*process
	for i := range fleet {
		fleet[i] = newProcess(t)
		fleet[i].options = fmt.Sprintf(`
			storage file_system %s
			maintenance {
				sync_interval 100ms
			}
			events {
				on maintenance_enabled maintenance_test %s
				on maintenance_disabled maintenance_test %[2]s
			}`, storage, fleet[i].path("handled"))
		fleet[i].start()
	}
	var want [2][]string
	change := func(i int, method, body, state, event string) {
		fleet[i].must(method, body)
		fleet[1-i].await(state)
		want[i] = append(want[i], event+" api")
		want[1-i] = append(want[1-i], event+" sync")
	}
	for n := range 5 {
		change(n%2, http.MethodPut, `{"message": "Back."}`, "on", `maintenance_enabled maintenance shop "Back." ""`)
		change(0, http.MethodDelete, "", "off", `maintenance_disabled maintenance shop "Back." ""`)
	}
	for i := range fleet {
		eventually(t, func() error {
			content, err := os.ReadFile(fleet[i].path("handled"))
			if got := strings.Split(strings.TrimSpace(string(content)), "\n"); err == nil && !slices.Equal(got, want[i]) {
				err = fmt.Errorf("instance %d has told\n%s\nwant\n%s", i, content, strings.Join(want[i], "\n"))
			}
			return err
		})
	}
}

// Harness

// handledEvents are those that the handler has been told of.
type handledEvents struct {
	events chan string
	before func(event string)
	over   chan struct{} // closed with the test
	told   []string
}

// handling is the handler of the test that runs.
var handling atomic.Pointer[handledEvents]

// handleEvents has the configs that are loaded from now on tell of changes.
func (s *server) handleEvents() *handledEvents {
	s.options += "events {\non maintenance_enabled maintenance_test\non maintenance_disabled maintenance_test\n}"
	h := &handledEvents{events: make(chan string), before: func(string) {}, over: make(chan struct{})}
	s.t.Cleanup(func() { close(h.over) })
	handling.Store(h)
	return h
}

func (h *handledEvents) next(t *testing.T) string {
	t.Helper()
	select {
	case event := <-h.events:
		h.told = append(h.told, event)
		return event
	case <-time.After(20 * time.Second):
		t.Fatal("no event")
		return ""
	}
}

func (h *handledEvents) all() string { return strings.Join(h.told, "\n") }

// expect fails the test if these are not the events that come next, and no more.
func (h *handledEvents) expect(t *testing.T, events ...string) {
	t.Helper()
	for _, want := range events {
		if got := h.next(t); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// eventHandler tells the test of an event, or writes it to a file.
type eventHandler struct {
	File string `json:"file,omitempty"`
}

func (*eventHandler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "events.handlers.maintenance_test", New: func() caddy.Module { return new(eventHandler) }}
}

func (h *eventHandler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	d.Args(&h.File)
	return nil
}

func (h *eventHandler) Handle(_ context.Context, e caddy.Event) error {
	line := fmt.Sprintf("%s %s %s %q %q %s", e.Name(), e.Origin().CaddyModule().ID, e.Data["site"], e.Data["message"], e.Data["until"], e.Data["source"])
	if len(e.Data) != 4 {
		data, _ := json.Marshal(e.Data)
		line += string(data)
	}
	if h.File != "" {
		file, err := os.OpenFile(h.File, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer file.Close()
		_, err = fmt.Fprintln(file, line)
		return err
	}
	handled := handling.Load()
	handled.before(line)
	select {
	case handled.events <- line:
	case <-handled.over:
	}
	return nil
}
