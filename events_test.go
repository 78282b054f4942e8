package maintenance

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"example.com/caddy-maintenance/internal/site"
)

// What notify makes of changes, without Caddy: "log" is a line of the log, with its
// source; "event" is what is emitted, with source, message and until.
func TestChangesAreToldAsTheyAre(t *testing.T) {
	cause := site.Cause{Source: site.SourceAPI, Client: "192.0.2.1:80"}
	put := func(options string) func(*testing.T, *App) {
		return func(t *testing.T, a *App) {
			given, err := optionParser().Body([]byte(options))
			if err != nil {
				t.Fatal(err)
			}
			if err := a.switchSite(a.sites["shop"], site.On{Options: given}, cause); err != nil {
				t.Fatal(err)
			}
		}
	}
	off := func(t *testing.T, a *App) {
		if err := a.switchSite(a.sites["shop"], site.Off{}, cause); err != nil {
			t.Fatal(err)
		}
	}
	read := func(record string) func(*testing.T, *App) {
		return func(t *testing.T, a *App) {
			r, err := site.ParseRecord([]byte(record), caddy.ParseDuration)
			if err != nil {
				t.Fatal(err)
			}
			a.takeRead(a.sites["shop"], site.Read{Record: r})
		}
	}
	sleep := func(d time.Duration) func(*testing.T, *App) { return func(*testing.T, *App) { time.Sleep(d) } }
	clock := func(_ *testing.T, a *App) { a.publish(a.sites["shop"], a.sites["shop"].Expire(time.Now())) }
	// In a bubble it is midnight of 2000.
	const untilOne = `{"message": "Hello.", "until": "2000-01-01T00:01:00Z"}`
	for name, test := range map[string]struct {
		stored string
		slow   time.Duration // that a record takes to be stored
		steps  []func(*testing.T, *App)
		want   string
	}{
		"a switch": {steps: []func(*testing.T, *App){put(untilOne), put(`{"message": "Bye."}`), off, off}, want: `
			log maintenance enabled: api
			event maintenance_enabled api "Hello." "2000-01-01T00:01:00Z"
			log maintenance options changed: api
			log maintenance disabled: api
			event maintenance_disabled api "Bye." ""`},
		"off that was never on": {steps: []func(*testing.T, *App){off}, want: `
			log maintenance stays off: api`},
		"another instance's": {steps: []func(*testing.T, *App){read(`{"version": 1, "enabled": true}`), read(`{"version": 2, "enabled": false}`)}, want: `
			log maintenance enabled: sync
			event maintenance_enabled sync "" ""
			log maintenance disabled: sync
			event maintenance_disabled sync "" ""`},
		"an end": {steps: []func(*testing.T, *App){put(untilOne), sleep(time.Hour), clock, clock}, want: `
			log maintenance enabled: api
			event maintenance_enabled api "Hello." "2000-01-01T00:01:00Z"
			log maintenance disabled: until
			event maintenance_disabled until "Hello." "2000-01-01T00:01:00Z"`},
		"an end that the next switch finds": {steps: []func(*testing.T, *App){put(untilOne), sleep(time.Hour), put(`{}`)}, want: `
			log maintenance enabled: api
			event maintenance_enabled api "Hello." "2000-01-01T00:01:00Z"
			log maintenance disabled: until
			event maintenance_disabled until "Hello." "2000-01-01T00:01:00Z"
			log maintenance enabled: api
			event maintenance_enabled api "" ""`},
		"an end before it is stored": {slow: 5 * time.Second, steps: []func(*testing.T, *App){put(`{"until": "2000-01-01T00:00:01Z"}`)}, want: `
			log maintenance stays off: api`},
		"an end of long ago":           {stored: `{"version": 1, "enabled": true, "until": "1999-01-01T00:00:00Z"}`, steps: []func(*testing.T, *App){clock}},
		"one that was on before Caddy": {stored: `{"version": 1, "enabled": true}`},
		"an unknown site that is on": {stored: `{`, steps: []func(*testing.T, *App){read(`{"version": 1, "enabled": true}`)}, want: `
			log state of the site cannot be read; its requests are blocked until it can be, or until the site is switched: <nil>
			log state of the site is known again: sync`},
		"an unknown site that is switched": {stored: `{`, steps: []func(*testing.T, *App){put(`{}`)}, want: `
			log state of the site cannot be read; its requests are blocked until it can be, or until the site is switched: <nil>
			log maintenance enabled: api
			event maintenance_enabled api "" ""`},
		"an unknown site that is opened": {stored: `{`, steps: []func(*testing.T, *App){off}, want: `
			log state of the site cannot be read; its requests are blocked until it can be, or until the site is switched: <nil>
			log maintenance disabled: api
			event maintenance_disabled api "" ""`},
	} {
		t.Run(name, func(t *testing.T) {
			noEventIsLeft(t)
			synctest.Test(t, func(t *testing.T) {
				storage := newTestStorage(t)
				if test.stored != "" {
					storage.set(shopKey, test.stored)
				}
				a, log := newTestApp(t, storage, "shop")
				storage.setFault(func(_ context.Context, op, key string) error {
					if op == "store" && key == shopKey {
						time.Sleep(test.slow)
					}
					return nil
				})
				emitted := holdEvents(t)
				var got strings.Builder
				tell := func() {
					synctest.Wait()
					lines, events := log.TakeAll(), emitted()
					for i := range max(len(lines), len(events)) { // as many of each, but for lines without an event
						if i < len(lines) {
							fmt.Fprintf(&got, "\n\t\t\tlog %s: %v", lines[i].Message, lines[i].ContextMap()["source"])
							if fields := lines[i].ContextMap(); fields["source"] == "api" && fields["client"] != cause.Client {
								t.Errorf("logged %v", fields)
							}
						}
						if i < len(events) {
							fmt.Fprintf(&got, "\n\t\t\tevent %s", events[i])
						}
					}
				}
				tell()
				for _, step := range test.steps {
					step(t, a)
					tell()
				}
				if got.String() != test.want {
					t.Errorf("got %s\nwant %s", got.String(), test.want)
				}
			})
		})
	}
}

// Changes are told in the order in which they come, however long the log takes.
func TestChangesAreToldInTheirOrder(t *testing.T) {
	noEventIsLeft(t)
	synctest.Test(t, func(t *testing.T) {
		storage := newTestStorage(t)
		a, _ := newTestApp(t, storage, "shop")
		emitted := holdEvents(t)
		switched := make(chan error, 1)
		switchOff := func() {
			known := storage.loads.Load()
			go func() { switched <- a.switchSite(a.sites["shop"], site.Off{}, site.Cause{Source: site.SourceAPI}) }()
			for storage.loads.Load() == known {
				runtime.Gosched()
			}
			for range 1000 { // of its chances to be told too early
				runtime.Gosched()
			}
		}
		var logged atomic.Int64
		a.log = a.log.WithOptions(zap.Hooks(func(zapcore.Entry) error {
			if logged.Add(1) == 1 {
				switchOff()
			}
			return nil
		}))
		r, err := site.ParseRecord([]byte(`{"version": 1, "enabled": true}`), caddy.ParseDuration)
		if err != nil {
			t.Fatal(err)
		}
		a.takeRead(a.sites["shop"], site.Read{Record: r})
		if err := <-switched; err != nil {
			t.Error(err)
		}
		want := []string{`maintenance_enabled sync "" ""`, `maintenance_disabled api "" ""`}
		if got := emitted(); !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// A handler is told when the client has its answer. Neither a client that does not take it
// nor a handler that hangs keeps later events for longer than a minute, nor whoever adds one.
func TestEventsWaitAMinuteAtMost(t *testing.T) {
	s := prepare(t)
	handled := s.handleEvents()
	s.reload("maintenance shop")
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		handled.events = make(chan string, 10)
		answered, hanging := make(chan struct{}), make(chan struct{})
		told := make(chan string, 10)
		handled.before = func(event string) {
			name := strings.Fields(event)[2]
			told <- fmt.Sprint(name, " ", time.Since(began))
			if name == "hangs" {
				<-hanging
			}
		}
		var queue eventQueue
		add := func(name string, answered <-chan struct{}) {
			queue.add(event{"maintenance_enabled", map[string]any{"site": name, "message": "", "until": "", "source": "api"}, answered})
		}
		add("answered", answered)
		add("hangs", nil)
		add("unanswered", make(chan struct{}))
		add("next", nil)
		time.Sleep(time.Second)
		close(answered)
		time.Sleep(5 * time.Minute)
		var got []string
		for range len(told) {
			got = append(got, <-told)
		}
		if want := []string{"answered 1s", "hangs 1s", "unanswered 2m1s", "next 2m1s"}; !slices.Equal(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
		close(hanging)
	})
	s.logged("event handlers have not returned", `"site":"hangs"`)
}

// Handlers, as Caddy calls them

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

// Harness

// noEventIsLeft waits until the events of other tests have been emitted.
func noEventIsLeft(t *testing.T) {
	t.Helper()
	eventually(t, func() error {
		events.mu.Lock()
		defer events.mu.Unlock()
		if n := len(events.events); n > 0 {
			return fmt.Errorf("%d events are left", n)
		}
		return nil
	})
}

// holdEvents keeps events in the queue, behind one whose client does not take its answer
// for a minute, and has emitted return them.
func holdEvents(t *testing.T) (emitted func() []string) {
	held := make(chan struct{})
	events.add(event{answered: held})
	t.Cleanup(func() {
		close(held)
		synctest.Wait()
	})
	return func() (list []string) {
		events.mu.Lock()
		defer events.mu.Unlock()
		if len(events.events) == 0 { // the minute is over
			events.events = []event{{answered: held}}
			go events.emit()
			return nil
		}
		for _, e := range events.events[1:] {
			list = append(list, fmt.Sprintf("%s %s %q %q", e.name, e.data["source"], e.data["message"], e.data["until"]))
		}
		events.events = events.events[:1]
		return list
	}
}

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

// eventHandler tells the test of an event.
type eventHandler struct{}

func (*eventHandler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "events.handlers.maintenance_test", New: func() caddy.Module { return new(eventHandler) }}
}

func (*eventHandler) UnmarshalCaddyfile(*caddyfile.Dispenser) error { return nil }

func (*eventHandler) Handle(_ context.Context, e caddy.Event) error {
	line := fmt.Sprintf("%s %s %s %q %q %s", e.Name(), e.Origin().CaddyModule().ID, e.Data["site"], e.Data["message"], e.Data["until"], e.Data["source"])
	if len(e.Data) != 4 {
		data, _ := json.Marshal(e.Data)
		line += string(data)
	}
	handled := handling.Load()
	handled.before(line)
	select {
	case handled.events <- line:
	case <-handled.over:
	}
	return nil
}
