package maintenance

import (
	"bufio"
	"context"
	"io"
	"iter"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

const (
	cutGrace    = time.Second           // how long after its context a request's connection is cut, if it has not ended
	cutInterval = 50 * time.Millisecond // until it is cut again, for writers may set deadlines of their own
)

// passage is a request that was admitted, on its way through the app: what it
// takes to cut it off. Its writer and context are part of it, so that all of it
// is one allocation.
type passage struct {
	writer  passageWriter
	context passageContext
	gate    *Handler
	request *http.Request // as the gate has got it, and as the server logs it

	crowd      *crowd
	prev, next *passage

	mu       sync.Mutex
	returned bool // the handler has: nothing may be done to the connection
	done     bool // the request has ended, or left the gate
}

// newPassage returns the passage of a request that meets a gate. It has no part in the
// request's context yet.
func newPassage(h *Handler, w http.ResponseWriter, r *http.Request) *passage {
	p := &passage{gate: h, request: r}
	p.writer.ResponseWriter = w
	p.context.parent = r.Context()
	p.context.passage = p
	return p
}

// passages goes through the gates that have let a request in and whose handlers are at
// work for it, from the innermost one on.
func passages(ctx context.Context) iter.Seq[*passage] {
	return func(yield func(*passage) bool) {
		for p := passageOf(ctx); p != nil; p = passageOf(p.context.parent) {
			if !p.hasEnded() && !yield(p) {
				return
			}
		}
	}
}

func passageOf(ctx context.Context) *passage {
	p, _ := ctx.Value(passageKey{}).(*passage)
	return p
}

// serverContext is the context that ends when the server is done with the request.
func (p *passage) serverContext() context.Context {
	ctx := p.context.parent
	for outer := passageOf(ctx); outer != nil; outer = passageOf(ctx) {
		ctx = outer.context.parent
	}
	return ctx
}

// setContext changes the request in place: placeholders and error routes stay with
// this one, and would not see what is done to another.
func setContext(r *http.Request, ctx context.Context) { *r = *r.WithContext(ctx) }

// serve passes the request on. A handler may give up, as reverse_proxy does, when
// nothing can be sent any more; there is still the 503 to be sent then.
func (p *passage) serve(r *http.Request, next caddyhttp.Handler) error {
	defer func() {
		if p.writer.progress.Load() != cutBefore {
			return
		}
		if reason := recover(); reason != nil && reason != http.ErrAbortHandler {
			panic(reason)
		}
	}()
	return next.ServeHTTP(&p.writer, r)
}

// cut ends the request if it heeds its context, which proxied ones do within
// milliseconds. The cause is not one of our own: reverse_proxy would take that for
// a failure of the upstream. It reports whether it is the first to cut off a request
// that has not ended.
func (p *passage) cut() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done {
		return false // what is outside of the gate is none of its business
	}
	first := p.writer.cut()
	p.context.cancel()
	return first
}

// cutConnection ends the request if it waits for its client: to send the rest of
// an upload, or to receive more of a download. It reports whether it has not ended.
func (p *passage) cutConnection() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done || p.returned {
		return !p.done
	}
	expireRead(p.writer.ResponseWriter)
	if p.writer.progress.Load() != cutBefore { // else the 503 is still to be sent
		_ = http.NewResponseController(innermost(p.writer.ResponseWriter)).SetWriteDeadline(time.Now())
	}
	return true
}

// cutConnections ends what its context has not ended, again and again for a while.
func cutConnections(passages []*passage, end time.Time) {
	passages = slices.DeleteFunc(passages, func(p *passage) bool { return !p.cutConnection() })
	if len(passages) > 0 && time.Now().Before(end) {
		time.AfterFunc(cutInterval, func() { cutConnections(passages, end) })
	}
}

// handlerReturned keeps the connection from being cut until the request is resumed: it
// may soon be another request's.
func (p *passage) handlerReturned() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.returned = true
}

// resume continues a request that has failed, with the writer of its error routes.
func (p *passage) resume(w http.ResponseWriter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.writer.ResponseWriter = w
	p.returned = false
}

func (p *passage) hasEnded() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done
}

// end keeps the request from being cut. It reports whether it is the first to do so.
func (p *passage) end() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	first := !p.done
	p.done = true
	return first
}

// expireRead has what waits for more of the request fail. Caddy's own writer has to
// know, or it moves the deadline on.
func expireRead(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now())
}

// innermost is the server's own writer; those around it may move deadlines on.
func innermost(w http.ResponseWriter) http.ResponseWriter {
	for {
		outer, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return w
		}
		w = outer.Unwrap()
	}
}

// linger has the server keep an HTTP/1 connection for a moment when it has answered.
// If it were closed at once, a client that is still sending could lose the answer. The
// server does so for bodies that are too large; this is one of a byte where none may
// be.
func linger(w http.ResponseWriter) {
	_, _ = http.MaxBytesReader(innermost(w), io.NopCloser(strings.NewReader("x")), 0).Read(make([]byte, 1))
}

// abandon keeps the server from waiting for the rest of an upload, which it would
// do to use the connection again.
func abandon(w http.ResponseWriter, body io.Closer) {
	expireRead(w)
	if body != nil {
		_ = body.Close()
	}
}

// errorRoutes comes before the error routes of a server that has a gate. A request that
// has failed is still in flight there, and is cut off as any other. Caddy gives error
// routes the server's own writer, which no gate could keep from writing.
type errorRoutes struct{}

func (errorRoutes) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	for p := range passages(r.Context()) {
		inner := next
		next = caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			p.resume(w)
			return p.gate.serveAdmitted(p, r, inner)
		})
	}
	return next.ServeHTTP(w, r)
}

// addErrorRoutes puts errorRoutes before those of the server, once. Caddy provisions
// them after the routes that lead to a gate.
func addErrorRoutes(server *caddyhttp.Server) {
	if server.Errors == nil || len(server.Errors.Routes) == 0 {
		return // a request that fails ends at once
	}
	if handlers := server.Errors.Routes[0].Handlers; len(handlers) > 0 && handlers[0] == caddyhttp.MiddlewareHandler(errorRoutes{}) {
		return
	}
	server.Errors.Routes = slices.Insert(server.Errors.Routes, 0,
		caddyhttp.Route{Handlers: []caddyhttp.MiddlewareHandler{errorRoutes{}}})
}

// passageWriter knows whether anything has been sent, and sends no more once the
// request has been cut off before that.
type passageWriter struct {
	caddyhttp.ResponseWriterWrapper
	progress  atomic.Int32
	once      sync.Once
	discarded http.Header // what the app sets when it is too late
}

const (
	nothingSent int32 = iota
	headerSent
	cutBefore // anything was sent
	cutAfter
	answered // by a gate further inside, which has cut the request off: it is not cut again
)

// cut reports whether this was the first.
func (w *passageWriter) cut() bool {
	return w.progress.CompareAndSwap(nothingSent, cutBefore) || w.progress.CompareAndSwap(headerSent, cutAfter)
}

// begin reports whether there may be sent more.
func (w *passageWriter) begin() bool {
	switch w.progress.Load() {
	case headerSent, answered:
		return true
	}
	return w.progress.CompareAndSwap(nothingSent, headerSent)
}

// markAnswered lets the answer of a request that has been cut off pass the gates further
// outside, which may cut it off too.
func markAnswered(w http.ResponseWriter) {
	for {
		if outer, ok := w.(*passageWriter); ok {
			outer.progress.CompareAndSwap(nothingSent, answered)
		}
		outer, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return
		}
		w = outer.Unwrap()
	}
}

func (w *passageWriter) Header() http.Header {
	if w.progress.Load() == cutBefore {
		w.once.Do(func() { w.discarded = make(http.Header) })
		return w.discarded
	}
	return w.ResponseWriter.Header()
}

func (w *passageWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if !w.begin() { // for nothing can be sent in the handler's place afterwards
		return nil, nil, context.Canceled
	}
	return http.NewResponseController(w.ResponseWriter).Hijack()
}

func (w *passageWriter) WriteHeader(status int) {
	informational := status < 200 && status != http.StatusSwitchingProtocols
	if informational && w.progress.Load() == nothingSent || !informational && w.begin() {
		w.ResponseWriter.WriteHeader(status)
	}
}

func (w *passageWriter) Write(b []byte) (int, error) {
	if !w.begin() {
		return 0, context.Canceled
	}
	return w.ResponseWriter.Write(b)
}

func (w *passageWriter) ReadFrom(r io.Reader) (int64, error) {
	if !w.begin() {
		return 0, context.Canceled
	}
	return w.ResponseWriterWrapper.ReadFrom(r)
}

func (w *passageWriter) FlushError() error {
	if !w.begin() {
		return context.Canceled
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// passageContext is the request's context until somebody waits for its end, and
// one that can be canceled from then on: many requests never need that.
type passageContext struct {
	parent     context.Context
	passage    *passage
	cancelable atomic.Pointer[cancelable]
}

// passageKey is the key of the passage in a request's context.
type passageKey struct{}

type cancelable struct {
	context.Context
	cancel context.CancelFunc
}

func (c *passageContext) current() context.Context {
	if own := c.cancelable.Load(); own != nil {
		return own.Context
	}
	return c.parent
}

func (c *passageContext) own() *cancelable {
	if own := c.cancelable.Load(); own != nil {
		return own
	}
	own := new(cancelable)
	own.Context, own.cancel = context.WithCancel(c.parent)
	if !c.cancelable.CompareAndSwap(nil, own) {
		own.cancel()
	}
	return c.cancelable.Load()
}

func (c *passageContext) cancel() { c.own().cancel() }

func (c *passageContext) Deadline() (time.Time, bool) { return c.parent.Deadline() }
func (c *passageContext) Done() <-chan struct{}       { return c.own().Done() }
func (c *passageContext) Err() error                  { return c.current().Err() }

func (c *passageContext) Value(key any) any {
	if key == (passageKey{}) {
		return c.passage
	}
	return c.current().Value(key)
}

// crowds are the passages of a site, in several parts so that requests seldom wait
// for one another.
type crowds [16]crowd

type crowd struct {
	mu    sync.Mutex
	first *passage
	_     [48]byte
}

func (c *crowds) add(p *passage) {
	crowd := &c[rand.Uint32()%uint32(len(c))] //nolint:gosec // no secret
	crowd.mu.Lock()
	defer crowd.mu.Unlock()
	p.crowd, p.next, crowd.first = crowd, crowd.first, p
	if p.next != nil {
		p.next.prev = p
	}
}

func (p *passage) leaveCrowd() {
	p.crowd.mu.Lock()
	defer p.crowd.mu.Unlock()
	if p.prev != nil {
		p.prev.next = p.next
	} else {
		p.crowd.first = p.next
	}
	if p.next != nil {
		p.next.prev = p.prev
	}
	p.prev, p.next = nil, nil
}

// all returns the passages that have not ended.
func (c *crowds) all() []*passage {
	var list []*passage
	for i := range c {
		c[i].mu.Lock()
		for p := c[i].first; p != nil; p = p.next {
			list = append(list, p)
		}
		c[i].mu.Unlock()
	}
	return list
}
