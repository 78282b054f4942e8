package maintenance

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"

	"example.com/caddy-maintenance/internal/site"
)

// event is what the events app emits when a maintenance begins, is scheduled or ends.
type event struct {
	name     string
	data     map[string]any
	answered <-chan struct{} // closed when the client that made the change has its answer; nil without a client
}

// events holds the events that are not emitted yet. It outlives configs.
var events eventQueue

// emitLater emits an event when the client that made the change has its answer.
func emitLater(name, siteName string, o *site.Options, cause site.Cause) {
	events.add(event{
		name: name,
		data: map[string]any{
			"site": siteName, "message": o.Message, "reason": o.Reason, "by": o.By,
			"from": formatTime(o.From), "until": formatTime(o.Until), "source": string(cause.Source),
		},
		answered: cause.Answered,
	})
}

// formatTime formats a time for events and placeholders, the zero time as "".
func formatTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Format(time.RFC3339)
}

// eventQueue holds events until they are emitted. Event handlers may be slow, so changes of a
// site do not wait for them.
type eventQueue struct {
	mu     sync.Mutex
	events []event // the first is being emitted
}

func (q *eventQueue) add(e event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.events = append(q.events, e)
	if len(q.events) == 1 {
		go q.emit()
	}
}

// emit emits the events until the queue is empty.
func (q *eventQueue) emit() {
	for {
		q.mu.Lock()
		e := q.events[0]
		q.mu.Unlock()
		e.emit()
		q.mu.Lock()
		q.events = q.events[1:]
		done := len(q.events) == 0
		q.mu.Unlock()
		if done {
			return
		}
	}
}

// maxEventTime is how long the handlers of an event may take before the next event is
// emitted.
const maxEventTime = time.Minute

// emit calls the event handlers of the config that runs by then. A reload does not interrupt
// them, and their panic does not end Caddy.
func (e event) emit() {
	timer := time.NewTimer(maxEventTime)
	defer timer.Stop()
	if e.answered != nil {
		select {
		case <-e.answered:
		case <-timer.C: // the client does not read its answer
		}
		timer.Reset(maxEventTime)
	}
	app, err := runningApp()
	if err != nil || app.events == nil {
		return
	}
	log := caddy.Log().Named("maintenance").With(zap.String("event", e.name), zap.Any("site", e.data["site"]))
	ctx := app.ctx
	var cancel context.CancelFunc
	ctx.Context, cancel = context.WithTimeout(context.WithoutCancel(app.ctx), maxEventTime)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer cancel()
		defer func() {
			if reason := recover(); reason != nil {
				log.Error("event handler panicked", zap.Any("reason", reason), zap.Stack("stack"))
			}
		}()
		app.events.Emit(ctx, e.name, e.data)
	}()
	select {
	case <-done:
	case <-timer.C:
		log.Warn("event handlers have not returned; the next event no longer waits for them", zap.Duration("after", maxEventTime))
	}
}
