package inflight

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

// responseWriter records whether anything has been sent. If the request is terminated before
// that, it sends nothing.
type responseWriter struct {
	http.ResponseWriter
	progress  atomic.Int32
	discarded http.Header // what the handler sets after terminatedBefore
}

const (
	nothingSent int32 = iota
	headerSent
	terminatedBefore // terminated when nothing had been sent
	terminatedAfter  // terminated when something had been sent
	answered         // a gate further inside has terminated and answered it; not terminated again
)

// terminate marks the request as terminated, and reports whether it was not before. Calls must
// not overlap.
func (w *responseWriter) terminate() bool {
	if w.progress.Load() == nothingSent {
		w.discarded = make(http.Header)
	}
	return w.progress.CompareAndSwap(nothingSent, terminatedBefore) || w.progress.CompareAndSwap(headerSent, terminatedAfter)
}

// begin notes that something is about to be sent, and reports whether that is allowed.
func (w *responseWriter) begin() bool {
	switch w.progress.Load() {
	case headerSent, answered:
		return true
	}
	return w.progress.CompareAndSwap(nothingSent, headerSent)
}

// markAnswered lets the answer to a terminated request pass the gates further outside.
func markAnswered(w http.ResponseWriter) {
	for {
		if outer, ok := w.(*responseWriter); ok {
			outer.progress.CompareAndSwap(nothingSent, answered)
		}
		outer, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return
		}
		w = outer.Unwrap()
	}
}

// Unwrap supports http.ResponseController.
func (w *responseWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *responseWriter) Header() http.Header {
	if w.progress.Load() == terminatedBefore {
		return w.discarded
	}
	return w.ResponseWriter.Header()
}

func (w *responseWriter) WriteHeader(status int) {
	informational := status < 200 && status != http.StatusSwitchingProtocols
	if informational && w.progress.Load() == nothingSent || !informational && w.begin() {
		w.ResponseWriter.WriteHeader(status)
	}
}

func (w *responseWriter) Write(b []byte) (int, error) {
	if !w.begin() {
		return 0, context.Canceled
	}
	return w.ResponseWriter.Write(b)
}

// ReadFrom lets the server's writer use sendfile.
func (w *responseWriter) ReadFrom(r io.Reader) (int64, error) {
	if !w.begin() {
		return 0, context.Canceled
	}
	if inner, ok := w.ResponseWriter.(io.ReaderFrom); ok {
		return inner.ReadFrom(r)
	}
	return io.Copy(w.ResponseWriter, r)
}

func (w *responseWriter) FlushError() error {
	if !w.begin() {
		return context.Canceled
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

func (w *responseWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if !w.begin() { // after a hijack, nothing else can be sent
		return nil, nil, context.Canceled
	}
	return http.NewResponseController(w.ResponseWriter).Hijack()
}

func (w *responseWriter) Push(target string, options *http.PushOptions) error {
	if pusher, ok := w.ResponseWriter.(http.Pusher); ok {
		return pusher.Push(target, options)
	}
	return http.ErrNotSupported
}

// serverWriter returns the server's own writer. Writers around it may extend deadlines.
func serverWriter(w http.ResponseWriter) http.ResponseWriter {
	for {
		outer, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return w
		}
		w = outer.Unwrap()
	}
}

// expireRead makes reads of the request fail. It tells the writers around the server's, which
// would otherwise extend the deadline.
func expireRead(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now())
}

// expireWrite makes writes of the response fail.
func expireWrite(w http.ResponseWriter) {
	_ = http.NewResponseController(serverWriter(w)).SetWriteDeadline(time.Now())
}

// closeGracefully makes the server keep an HTTP/1 connection for a moment after the answer. If
// the server closed it at once, a client that is still sending could lose the answer. The
// server does this for bodies that are too large, so closeGracefully fakes one: one byte with
// a limit of zero.
func closeGracefully(w http.ResponseWriter) {
	_, _ = http.MaxBytesReader(serverWriter(w), io.NopCloser(strings.NewReader("x")), 0).Read(make([]byte, 1))
}

// Interface guards
var (
	_ http.Pusher   = (*responseWriter)(nil)
	_ http.Hijacker = (*responseWriter)(nil)
	_ io.ReaderFrom = (*responseWriter)(nil)
)
