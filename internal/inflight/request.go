package inflight

import (
	"context"
	"io"
	"iter"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	// grace is how long a terminated request has to end after its context is canceled,
	// before its connection is broken.
	grace = time.Second

	// interval is how often a connection is then broken again, for another grace, since
	// writers may reset deadlines.
	interval = 50 * time.Millisecond
)

// Request is a request in flight. It contains the writer and the context by which it is
// terminated, so that all of it is one allocation.
type Request struct {
	// Gate is whatever admitted the request. The package does not use it.
	Gate any

	// Key groups the requests of a set.
	Key string

	// HTTP is the request as the gate received it, and as the server logs it.
	HTTP *http.Request

	outer   context.Context // of HTTP
	context requestContext
	cancel  context.CancelFunc
	writer  responseWriter

	set        *Set     // guarded by mu until the request is done, like shard
	prev, next *Request // in its shard
	shard      uint8

	mu              sync.Mutex
	handlerReturned bool // the connection must not be broken
	done            bool
}

func newRequest(w http.ResponseWriter, r *http.Request, gate any) *Request {
	q := &Request{Gate: gate, HTTP: r, outer: r.Context()}
	q.context.request = q
	q.context.Context, q.cancel = context.WithCancel(q.outer)
	q.writer.ResponseWriter = w
	return q
}

// requestContext is a context that can be canceled and that leads to its request. It embeds
// what context.WithCancel returns, so that package context recognizes it and starts no
// goroutine for derived contexts.
type requestContext struct {
	context.Context
	request *Request
}

// contextKey is the key of the innermost Request in a context.
type contextKey struct{}

func (c *requestContext) Value(key any) any {
	if key == (contextKey{}) {
		return c.request
	}
	return c.Context.Value(key)
}

func fromContext(ctx context.Context) *Request {
	q, _ := ctx.Value(contextKey{}).(*Request)
	return q
}

// Requests yields the Request of each gate that the HTTP request with that context has passed,
// innermost first, unless it is done.
func Requests(ctx context.Context) iter.Seq[*Request] {
	return func(yield func(*Request) bool) {
		for q := fromContext(ctx); q != nil; q = fromContext(q.outer) {
			if !q.isDone() && !yield(q) {
				return
			}
		}
	}
}

// Context returns the context to serve the request with. It is canceled when the request is
// terminated.
func (q *Request) Context() context.Context { return &q.context }

// Outer returns the context with which the gate received the request. Terminating the request
// does not cancel it.
func (q *Request) Outer() context.Context { return q.outer }

// Server returns the context that ends when the server is done with the request, regardless of
// which gates terminate it.
func (q *Request) Server() context.Context {
	ctx := q.outer
	for outer := fromContext(ctx); outer != nil; outer = fromContext(ctx) {
		ctx = outer.outer
	}
	return ctx
}

// Serve calls the handler and returns its error. If the request is terminated before anything
// has been sent, Serve returns that it is unanswered, whatever the handler returned, even if it
// aborted with http.ErrAbortHandler as a proxy does. If something has been sent, Serve aborts
// the response, which must not look complete.
func (q *Request) Serve(r *http.Request, handler func(http.ResponseWriter, *http.Request) error) (unanswered bool, err error) {
	body := r.Body
	err = q.serve(r, handler)
	switch q.writer.progress.Load() {
	case terminatedBefore:
		q.stopReading(body)
		return true, nil
	case terminatedAfter:
		q.stopReading(body)
		panic(http.ErrAbortHandler)
	}
	return false, err
}

func (q *Request) serve(r *http.Request, handler func(http.ResponseWriter, *http.Request) error) error {
	defer func() {
		if q.writer.progress.Load() != terminatedBefore {
			return
		}
		if reason := recover(); reason != nil && reason != http.ErrAbortHandler {
			panic(reason)
		}
	}()
	return handler(&q.writer, r)
}

// Aborted reports whether the request was terminated in the middle of a response.
func (q *Request) Aborted() bool { return q.writer.progress.Load() == terminatedAfter }

// TakeOver returns the writer for the answer to a request that Serve has returned unanswered.
// Gates further outside let that answer pass, even if they terminate the request, too.
func (q *Request) TakeOver() http.ResponseWriter {
	w := q.writer.ResponseWriter
	markAnswered(w)
	if q.HTTP.ProtoMajor == 1 {
		w.Header().Set("Connection", "close") // the next request on it could not be read
		if q.HTTP.ContentLength != 0 {
			closeGracefully(w)
		}
	}
	return w
}

// HandlerReturned keeps the connection from being broken, until Resume.
func (q *Request) HandlerReturned() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.handlerReturned = true
}

// Resume continues a failed request with the writer of its error routes.
func (q *Request) Resume(w http.ResponseWriter) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.writer.ResponseWriter = w
	q.handlerReturned = false
}

// Done removes the request from its set: it is no longer in flight and cannot be terminated.
// Further calls do nothing.
func (q *Request) Done() {
	if q.setDone() {
		q.set.take(q)
	}
}

// setDone marks the request as done, and reports whether it was not done before.
func (q *Request) setDone() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	first := !q.done
	q.done = true
	return first
}

// move moves the request to another set. Meanwhile it is in at least one of the two.
func (q *Request) move(to *Set) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.done {
		return
	}
	to.count.Add(1)
	q.set.take(q)
	to.put(q)
	to.count.Add(-1)
}

func (q *Request) isIn(s *Set) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.set == s
}

func (q *Request) isDone() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.done
}

// Terminate terminates requests that are not done, and returns how many of them were not
// terminated before. It does not wait for them. Proxied requests obey their context and end
// within milliseconds. The connections of requests that do not are broken after a second.
func Terminate(requests []*Request) (terminated int) {
	for _, q := range requests {
		if q.terminate() {
			terminated++
		}
	}
	if len(requests) > 0 {
		requests, end := slices.Clone(requests), time.Now().Add(2*grace)
		time.AfterFunc(grace, func() { breakConnections(requests, end) })
	}
	return terminated
}

// terminate cancels the context without a cause: a proxy would take one for a failure of its
// upstream.
func (q *Request) terminate() (first bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.done {
		return false
	}
	first = q.writer.terminate()
	q.cancel()
	return first
}

func breakConnections(requests []*Request, end time.Time) {
	requests = slices.DeleteFunc(requests, func(q *Request) bool { return !q.breakConnection() })
	if len(requests) > 0 && time.Now().Before(end) {
		time.AfterFunc(interval, func() { breakConnections(requests, end) })
	}
}

// breakConnection ends a request that waits for its client to send more of an upload or to
// receive more of a download. It reports whether the request is not done.
func (q *Request) breakConnection() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.done || q.handlerReturned {
		return !q.done
	}
	expireRead(q.writer.ResponseWriter)
	if q.writer.progress.Load() != terminatedBefore { // otherwise TakeOver still needs to write
		expireWrite(q.writer.ResponseWriter)
	}
	return true
}

// stopReading keeps the server from waiting for the rest of an upload so that it can reuse the
// connection.
//
// On HTTP/1 a proxy's goroutine may be about to read more with a new deadline, and the server
// would wait for that after the handler has returned. The connection ends with this request,
// so it is safe to break it repeatedly.
func (q *Request) stopReading(body io.Closer) {
	w := q.writer.ResponseWriter
	expireRead(w)
	if q.HTTP.ProtoMajor == 1 {
		conn, end := serverWriter(w), time.Now().Add(grace)
		var again func()
		again = func() {
			expireRead(conn)
			if time.Now().Before(end) {
				time.AfterFunc(interval, again)
			}
		}
		time.AfterFunc(interval, again)
	}
	if body != nil {
		_ = body.Close()
	}
}
