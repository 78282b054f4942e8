package maintenance

import (
	"bytes"
	"net/http"
	"time"

	"example.com/caddy-maintenance/internal/site"
)

const (
	maxHeld       = 1024     // requests of a site at once
	maxHeldMemory = 64 << 10 // bytes for each request

	// fieldMemory is what Go needs for a header field in addition to its bytes: in the
	// request's map, and again in the copy that Caddy logs.
	fieldMemory = 256
)

// hold is a request's wait for the end of a maintenance.
type hold struct {
	handler *Handler
	since   time.Time // when the first wait began
}

// holdEnd says how a wait ended.
type holdEnd int

const (
	blocked  holdEnd = iota // the time is over, or the request cannot be held
	released                // the site may be open
	canceled                // the client has left
	shutdown                // the config is being unloaded
)

// wait holds a request until the site leaves the state that v shows, if that state has a
// hold and there is room.
func (hd *hold) wait(w http.ResponseWriter, r *http.Request, v site.View) holdEnd {
	requeued := !hd.since.IsZero() // it keeps its place, even if new requests have filled the room
	if !requeued {
		hd.since = time.Now()
	}
	if hd.deadline(v).IsZero() || r.ContentLength < 0 || memoryOf(r) > maxHeldMemory {
		return blocked
	}
	held := &hd.handler.site.held
	defer held.Add(-1)
	if held.Add(1) > maxHeld && !requeued {
		return blocked
	}
	if !hd.readBody(w, r) {
		return hd.orShutdown(blocked)
	}
	wake := hd.deadline(v)
	if until := v.Options().Until; !until.IsZero() && until.Before(wake) {
		wake = until
	}
	timer := time.NewTimer(time.Until(wake))
	defer timer.Stop()
	over := false
	select {
	case <-v.Changed():
	case <-timer.C:
		over = !time.Now().Before(hd.deadline(v))
	case <-r.Context().Done():
	case <-hd.handler.stopping:
	}
	if r.Context().Err() != nil {
		return canceled
	}
	if over && hd.handler.site.Current() == v.State {
		return hd.orShutdown(blocked)
	}
	return hd.orShutdown(released)
}

// memoryOf estimates the memory of a request whose body, of known length, has been read.
func memoryOf(r *http.Request) int64 {
	memory := r.ContentLength + int64(len(r.RequestURI))
	for name, values := range r.Header {
		for _, value := range values {
			memory += int64(len(name) + len(value) + fieldMemory)
		}
	}
	return memory
}

// deadline returns until when a request is held in a state of the site, counted from its
// arrival; zero if it is not held. If the server has a write timeout, half of that is left to
// the app: otherwise the app could carry out a request whose client gets no response.
func (hd *hold) deadline(v site.View) time.Time {
	limit := v.Options().Hold.Value
	if limit == 0 {
		return time.Time{}
	}
	if half := hd.handler.writeTimeout / 2; half > 0 {
		limit = min(limit, half)
	}
	return hd.since.Add(limit)
}

// orShutdown returns end, or shutdown if the config is being unloaded.
func (hd *hold) orShutdown(end holdEnd) holdEnd {
	select {
	case <-hd.handler.stopping:
		return shutdown
	default:
		return end
	}
}

// readBody reads a request to its end: only then does the server notice when the client
// leaves. It returns false if the wait ends before.
func (hd *hold) readBody(w http.ResponseWriter, r *http.Request) bool {
	if _, ok := r.Body.(*bufferedBody); !ok && r.ContentLength > 0 {
		done, watched := make(chan struct{}), make(chan bool)
		go func() {
			inTime := hd.watch(done)
			if !inTime {
				_ = http.NewResponseController(w).SetReadDeadline(time.Now())
			}
			watched <- inTime
		}()
		content := bytes.NewBuffer(make([]byte, 0, r.ContentLength+bytes.MinRead))
		_, err := content.ReadFrom(r.Body)
		close(done)
		if inTime := <-watched; err != nil || !inTime {
			if r.ProtoMajor == 1 {
				w.Header().Set("Connection", "close") // the client's next request could not be read
			}
			return false
		}
		r.Body = &bufferedBody{bytes.NewReader(content.Bytes())}
	}
	return true
}

// watch returns true when done is closed, or false if the wait ends before. Once the site is
// open, the wait has no end.
func (hd *hold) watch(done <-chan struct{}) bool {
	for {
		v := hd.handler.site.view()
		var over <-chan time.Time
		if v.Blocks() {
			timer := time.NewTimer(time.Until(hd.deadline(v)))
			defer timer.Stop()
			over = timer.C
		}
		select {
		case <-done:
			return true
		case <-v.Changed():
		case <-over:
			return false
		case <-hd.handler.stopping:
			return false
		}
	}
}

// bufferedBody is a request's body that has been read.
type bufferedBody struct{ *bytes.Reader }

func (*bufferedBody) Close() error { return nil }
