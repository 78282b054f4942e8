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

// responseWriter knows whether anything has been sent, and sends no more once the
// request has been terminated before that.
type responseWriter struct {
	http.ResponseWriter
	progress  atomic.Int32
	discarded http.Header // what the handler sets when it is too late
}

const (
	nothingSent int32 = iota
	headerSent
	terminatedBefore // anything was sent
	terminatedAfter
	answered // by a gate further inside, which has terminated the request: it is not terminated again
)

// terminate reports whether this was the first time. It must not be called by two at
// once.
func (w *responseWriter) terminate() bool {
	if w.progress.Load() == nothingSent {
		w.discarded = make(http.Header)
	}
	return w.progress.CompareAndSwap(nothingSent, terminatedBefore) || w.progress.CompareAndSwap(headerSent, terminatedAfter)
}

// begin reports whether more may be sent.
func (w *responseWriter) begin() bool {
	switch w.progress.Load() {
	case headerSent, answered:
		return true
	}
	return w.progress.CompareAndSwap(nothingSent, headerSent)
}

// markAnswered lets the answer to a terminated request pass the gates further
// outside.
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

// Unwrap is for http.ResponseController.
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

// ReadFrom leaves a file to the server's writer, which has the system send it.
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
	if !w.begin() { // for nothing can be sent in the handler's place afterwards
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

// serverWriter is the server's own writer. Those around it may move deadlines on.
func serverWriter(w http.ResponseWriter) http.ResponseWriter {
	for {
		outer, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return w
		}
		w = outer.Unwrap()
	}
}

// expireRead has what waits for more of the request fail. The writers around the
// server's have to know, or they move the deadline on.
func expireRead(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now())
}

// expireWrite has what waits to send more of the response fail.
func expireWrite(w http.ResponseWriter) {
	_ = http.NewResponseController(serverWriter(w)).SetWriteDeadline(time.Now())
}

// closeGracefully has the server keep an HTTP/1 connection for a moment when it has
// answered. If it closed the connection at once, a client that is still sending could
// lose the answer. The server does so for bodies that are too large; this is one of a
// byte where none may be.
func closeGracefully(w http.ResponseWriter) {
	_, _ = http.MaxBytesReader(serverWriter(w), io.NopCloser(strings.NewReader("x")), 0).Read(make([]byte, 1))
}

// Interface guards
var (
	_ http.Pusher   = (*responseWriter)(nil)
	_ http.Hijacker = (*responseWriter)(nil)
	_ io.ReaderFrom = (*responseWriter)(nil)
)
