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
	// grace is how long a terminated request has to heed its context before its
	// connection is broken.
	grace = time.Second

	// From then on it is broken again and again for as long as that: writers set
	// deadlines of their own.
	interval = 50 * time.Millisecond
)

// Request is a request in flight. What it takes to terminate it, its writer and
// its context, is part of it, so that all of it is one allocation.
type Request struct {
	// Gate is whatever let the request in. The package does not look at it.
	Gate any

	// Key tells which requests of a set belong together.
	Key string

	// HTTP is the request as it came to the gate, and as the server logs it.
	HTTP *http.Request

	outer   context.Context // that the request came with
	context requestContext
	cancel  context.CancelFunc
	writer  responseWriter

	set        *Set     // guarded by mu until the request is done; so is shard
	prev, next *Request // in its shard
	shard      uint8

	mu              sync.Mutex
	handlerReturned bool // nothing may be done to the connection
	done            bool
}

func newRequest(w http.ResponseWriter, r *http.Request, gate any) *Request {
	q := &Request{Gate: gate, HTTP: r, outer: r.Context()}
	q.context.request = q
	q.context.Context, q.cancel = context.WithCancel(q.outer)
	q.writer.ResponseWriter = w
	return q
}

// requestContext is a context that can be canceled, and by which its request is
// found. It embeds what context.WithCancel returns: package context knows that as
// its own, and starts no goroutine for contexts that are derived from it.
type requestContext struct {
	context.Context
	request *Request
}

// contextKey is the key of the innermost request in a context.
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

// Requests returns what gates have made of the request with that context, as far
// as it is not done, from the innermost gate on.
func Requests(ctx context.Context) iter.Seq[*Request] {
	return func(yield func(*Request) bool) {
		for q := fromContext(ctx); q != nil; q = fromContext(q.outer) {
			if !q.isDone() && !yield(q) {
				return
			}
		}
	}
}

// Context is what the request is to be served with. It is canceled when the
// request is terminated.
func (q *Request) Context() context.Context { return &q.context }

// Outer is the context that the request came with to its gate. Terminating the
// request does not cancel it.
func (q *Request) Outer() context.Context { return q.outer }

// Server is the context that ends when the server is done with the request,
// whichever gates terminate it.
func (q *Request) Server() context.Context {
	ctx := q.outer
	for outer := fromContext(ctx); outer != nil; outer = fromContext(ctx) {
		ctx = outer.outer
	}
	return ctx
}

// Serve has the handler answer the request, and returns what that returns. If it is
// terminated meanwhile, Serve reports that it is unanswered where nothing has been
// sent yet, whatever the handler has made of that; a handler may abort, as a proxy
// does, when it can send nothing any more. Where something has been sent, Serve
// aborts the response: it must not look complete.
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

// TakeOver returns the writer by which to answer a request that Serve has returned
// unanswered. Gates further outside let that answer pass, though they may terminate
// the request, too.
func (q *Request) TakeOver() http.ResponseWriter {
	w := q.writer.ResponseWriter
	markAnswered(w)
	if q.HTTP.ProtoMajor == 1 {
		w.Header().Set("Connection", "close") // its next request could not be read
		if q.HTTP.ContentLength != 0 {
			closeGracefully(w)
		}
	}
	return w
}

// HandlerReturned keeps the connection from being broken until the request is
// resumed.
func (q *Request) HandlerReturned() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.handlerReturned = true
}

// Resume lets a request that has failed go on with the writer of its error routes.
func (q *Request) Resume(w http.ResponseWriter) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.writer.ResponseWriter = w
	q.handlerReturned = false
}

// Done takes the request out of its set: it is in flight no longer, and cannot be
// terminated. Done reports whether it was the last one. It may be called again, and
// reports false then.
func (q *Request) Done() (last bool) {
	return q.setDone() && q.set.take(q)
}

// setDone reports whether it is the first to do so.
func (q *Request) setDone() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	first := !q.done
	q.done = true
	return first
}

// move puts the request into another set. It is never in none.
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

// Terminate ends requests that are not done, and returns how many it is the first
// to terminate. It does not wait for them. Proxied requests heed their context and
// end within milliseconds; of those that do not, the connections are broken later.
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

// terminate has the context canceled without a cause of our own: a proxy would take
// that for a failure of its upstream.
func (q *Request) terminate() (first bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.done {
		return false // what is outside of the gate is none of its business
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

// breakConnection ends a request that waits for its client: to send the rest of an
// upload, or to receive more of a download. It reports whether it is not done.
func (q *Request) breakConnection() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.done || q.handlerReturned {
		return !q.done
	}
	expireRead(q.writer.ResponseWriter)
	if q.writer.progress.Load() != terminatedBefore { // else the answer is still to be sent
		expireWrite(q.writer.ResponseWriter)
	}
	return true
}

// stopReading keeps the server from waiting for the rest of an upload, which it
// would do to use the connection again.
//
// On HTTP/1 a proxy's goroutine may be about to read some more, with a deadline of its own. The
// server would wait for that when the handler has returned. The connection ends with this
// request, and so it can be broken until then.
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
