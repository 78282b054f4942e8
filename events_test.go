package maintenance

import (
	"context"
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
// source; "event" is what is emitted, with source, message and until. What happens is
// what a sync reads, or as for turn; "clock" looks whether a maintenance has ended.
func TestChangesAreToldAsTheyAre(t *testing.T) {
	cause := site.Cause{Source: site.SourceAPI, Client: "192.0.2.1:80"}
	// In a bubble it is midnight of 2000.
	const (
		on        = `{"version": 1, "enabled": true}`
		onFrom    = `on {"message": "Hello.", "from": "2000-01-01T00:01:00Z"}`
		onUntil   = `on {"message": "Hello.", "until": "2000-01-01T00:01:00Z"}`
		scheduled = "log maintenance scheduled: api\nevent maintenance_scheduled api \"Hello.\" \"\"\n"
		enabled   = "log maintenance enabled: api\nevent maintenance_enabled api \"Hello.\" \"2000-01-01T00:01:00Z\"\n"
		ended     = "log maintenance disabled: until\nevent maintenance_disabled until \"Hello.\" \"2000-01-01T00:01:00Z\"\n"
		unknown   = "log state of the site cannot be read; its requests are blocked until it can be read or the site is switched: <nil>\n"
		enabled0  = "log maintenance enabled: api\nevent maintenance_enabled api \"\" \"\"\n"
	)
	for name, test := range map[string]struct {
		stored string
		slow   time.Duration // that a record takes to be stored
		script string
		want   string
	}{
		"a switch": {"", 0, onUntil + `; on {"message": "Bye."}; off; off`, enabled +
			"log maintenance options changed: api\nlog maintenance disabled: api\nevent maintenance_disabled api \"Bye.\" \"\"\n"},
		"off that was never on": {"", 0, "off", "log maintenance stays off: api\n"},
		"another instance's": {"", 0, `read ` + on + `; read {"version": 2, "enabled": false}`, "log maintenance enabled: sync\n" +
			"event maintenance_enabled sync \"\" \"\"\nlog maintenance disabled: sync\nevent maintenance_disabled sync \"\" \"\"\n"},
		"a schedule": {"", 0, onFrom + `; patch {"message": "Bye."}; wait 1h; clock`, scheduled +
			"log maintenance scheduled: api\nevent maintenance_scheduled api \"Bye.\" \"\"\n" +
			"log maintenance enabled: from\nevent maintenance_enabled from \"Bye.\" \"\"\n"},
		"one that the next switch finds": {"", 0, onFrom + "; wait 1h; off", scheduled +
			"log maintenance enabled: from\nevent maintenance_enabled from \"Hello.\" \"\"\n" +
			"log maintenance disabled: api\nevent maintenance_disabled api \"Hello.\" \"\"\n"},
		"one that is canceled": {"", 0, onFrom + "; off; wait 1h; clock", scheduled + "log scheduled maintenance canceled: api\n" +
			"event maintenance_disabled api \"Hello.\" \"\"\n"},
		"one that is brought forward":       {"", 0, onFrom + "; on {}", scheduled + enabled0},
		"an end":                            {"", 0, onUntil + "; wait 1h; clock; clock", enabled + ended},
		"an end that the next switch finds": {"", 0, onUntil + "; wait 1h; on {}", enabled + ended + enabled0},
		"an end before it is stored":        {"", 5 * time.Second, `on {"until": "2000-01-01T00:00:01Z"}`, "log maintenance stays off: api\n"},
		"an end of long ago":                {`{"version": 1, "enabled": true, "until": "1999-01-01T00:00:00Z"}`, 0, "clock", ""},
		"one that was on before Caddy":      {on, 0, "clock", ""},
		"an unknown site that is on":        {"{", 0, "read " + on, unknown + "log state of the site is known again: sync\n"},
		"an unknown site that is switched":  {"{", 0, "on {}", unknown + enabled0},
		"an unknown site that is opened": {
			"{", 0, "off",
			unknown + "log maintenance disabled: api\nevent maintenance_disabled api \"\" \"\"\n",
		},
	} {
		noEventIsLeft(t)
		synctest.Test(t, func(t *testing.T) {
			storage := newTestStorage(t)
			if test.stored != "" {
				storage.set(shopKey, test.stored)
			}
			a, log := newTestApp(t, storage, "shop")
			shop := a.sites.named["shop"]
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
						fields := lines[i].ContextMap()
						fmt.Fprintf(&got, "log %s: %v\n", lines[i].Message, fields["source"])
						if fields["source"] == "api" && fields["client"] != cause.Client {
							t.Errorf("logged %v", fields)
						}
					}
					if i < len(events) {
						fmt.Fprintf(&got, "event %s\n", events[i])
					}
				}
			}
			tell()
			for step := range strings.SplitSeq(test.script, "; ") {
				switch what, given, _ := strings.Cut(step, " "); what {
				case "wait":
					sleep(given)
				case "clock":
					a.notifier.publish(shop, shop.Tick(time.Now()))
				case "read":
					a.readRecord(t, given)
				default:
					if err := a.switchSite(shop, parseMutation(what, given), cause); err != nil {
						t.Fatal(err)
					}
				}
				tell()
			}
			if got.String() != test.want {
				t.Errorf("%s: got\n%s\nwant\n%s", name, got.String(), test.want)
			}
		})
	}
}

// readRecord has the app find a record of shop in storage.
func (a *App) readRecord(t *testing.T, record string) {
	t.Helper()
	r, err := site.ParseRecord([]byte(record), caddy.ParseDuration)
	if err != nil {
		t.Fatal(err)
	}
	a.notifier.takeRead(a.sites.named["shop"], site.Read{Record: r})
}

// Changes are logged in their order, however long the log takes.
func TestChangesAreToldInTheirOrder(t *testing.T) {
	noEventIsLeft(t)
	synctest.Test(t, func(t *testing.T) {
		storage := newTestStorage(t)
		a, _ := newTestApp(t, storage, "shop")
		emitted := holdEvents(t)
		switched := make(chan error, 1)
		switchOff := func() {
			known := storage.loads.Load()
			go func() {
				switched <- a.switchSite(a.sites.named["shop"], site.Off{}, site.Cause{Source: site.SourceAPI})
			}()
			for storage.loads.Load() == known {
				runtime.Gosched()
			}
			for range 1000 { // of its chances to be told too early
				runtime.Gosched()
			}
		}
		var logged atomic.Int64
		a.notifier.log = a.log.WithOptions(zap.Hooks(func(zapcore.Entry) error {
			if logged.Add(1) == 1 {
				switchOff()
			}
			return nil
		}))
		a.readRecord(t, `{"version": 1, "enabled": true}`)
		if err := <-switched; err != nil {
			t.Error(err)
		}
		want := []string{`maintenance_enabled sync "" ""`, `maintenance_disabled api "" ""`}
		if got := emitted(); !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// An event is emitted when the client has its answer. A client that does not read it, or an
// event handler that hangs, delays later events by a minute at most, and no switch at all.
func TestEventsWaitAMinuteAtMost(t *testing.T) {
	s := prepare(t)
	handled := s.handleEvents()
	s.reload("maintenance shop")
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		handled.events = make(chan string, 10)
		answered, hanging := make(chan struct{}), make(chan struct{})
		told := make(chan string, 4)
		handled.before = func(event string) {
			name := strings.Fields(event)[2]
			told <- fmt.Sprint(name, " ", time.Since(began))
			if name == "hangs" || name == "unanswered" {
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
		for _, want := range []string{"answered 1s", "hangs 1s", "unanswered 2m1s", "next 3m1s"} {
			if got := <-told; got != want {
				t.Errorf("told %s, want %s", got, want)
			}
		}
		close(hanging)
	})
	s.logged("event handlers have not returned", `"site":"hangs"`)
}

// Handlers, as Caddy calls them

const (
	plainEnabled  = `maintenance_enabled maintenance shop "" "" api`
	plainDisabled = `maintenance_disabled maintenance shop "" "" api`
)

// A config that loads or fails emits nothing; the running one emits what came meanwhile.
func TestChangesAreEmittedOnce(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		s := k.prepare(t)
		handled := s.handleEvents()
		s.reload("maintenance shop")
		s.put("shop", `{"message": "Back at three.", "until": "2999-01-01T00:00:00Z", "bypass_secret": "`+testSecret+`"}`)
		s.put("shop", `{"message": "Back at four."}`) // no change of what is on
		s.patch("shop", `{"message": "Back at five."}`)
		s.delete("shop")
		s.delete("shop")
		handled.expect(t, `maintenance_enabled maintenance shop "Back at three." "2999-01-01T00:00:00Z" api`,
			`maintenance_disabled maintenance shop "Back at five." "" api`)
		for range 3 {
			s.reload("maintenance shop")
			s.failLate("maintenance shop")
			s.put("shop", "")
			s.delete("shop")
		}
		for range 3 {
			handled.expect(t, plainEnabled, plainDisabled)
		}
	})
}

// An event handler that asks for the state, or switches back, finds the switch done. One that
// panics does not end Caddy, and the next event is emitted.
func TestHandlersAreToldAfterTheAnswer(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		s := k.prepare(t)
		handled := s.handleEvents()
		states := make(chan any, 2)
		handled.before = func(event string) {
			states <- s.status("shop")["state"]
			if event == plainEnabled {
				panic("out of order")
			}
		}
		s.reload("maintenance shop")
		s.put("shop", "")
		s.logged("event handler panicked", "out of order", `"site":"shop"`)
		s.delete("shop")
		handled.expect(t, plainDisabled)
		if first, second := <-states, <-states; first != "on" || second != "off" {
			t.Errorf("handlers saw the states %s and %s, want on and off", first, second)
		}
	})
}

// A reload while an event handler runs interrupts neither it nor the handlers after it.
func TestReloadDoesNotEndTheTelling(t *testing.T) {
	ofEachKind(t, func(t *testing.T, k kind) {
		s := k.prepare(t)
		handled := s.handleEvents()
		s.options = strings.Replace(s.options, "events {", "events {\non maintenance_enabled maintenance_test", 1) // one more
		begun, reloaded := make(chan struct{}, 2), make(chan struct{})
		handled.before = func(string) {
			begun <- struct{}{}
			<-reloaded
		}
		s.reload("maintenance shop")
		s.put("shop", "")
		<-begun
		s.reload("maintenance shop\nheader X-Config new")
		close(reloaded)
		handled.expect(t, plainEnabled, plainEnabled)
		if n := s.countLogged("context canceled"); n > 0 {
			t.Errorf("%d handlers were canceled", n)
		}
	})
}

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

// expect fails the test if these are not the events that come next.
func (h *handledEvents) expect(t *testing.T, events ...string) {
	t.Helper()
	for _, want := range events {
		select {
		case got := <-h.events:
			if got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("no event")
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
	data := e.Data
	line := fmt.Sprintf("%s %s %s %q %q %s", e.Name(), e.Origin().CaddyModule().ID,
		data["site"], data["message"], data["until"], data["source"])
	if more := fmt.Sprintf("%s %s %s", data["from"], data["reason"], data["by"]); len(data) != 7 || more != "  " {
		line += " " + more
	}
	handled := handling.Load()
	handled.before(line)
	select {
	case handled.events <- line:
	case <-handled.over:
	}
	return nil
}
