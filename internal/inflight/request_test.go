package inflight

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Context

func TestContextOfARequest(t *testing.T) {
	type key struct{}
	for _, terminated := range []bool{true, false} { // or else the client leaves
		outer, leave := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
		defer leave()
		q := new(Set).Add(nil, httptest.NewRequestWithContext(outer, http.MethodGet, "/", nil), nil, "")
		derived, cancel := context.WithCancel(q.Context())
		defer cancel()
		expect := func(want error) {
			t.Helper()
			for _, ctx := range []context.Context{q.Context(), derived} {
				// reverse_proxy would take another cause for a failure of the upstream.
				if !errors.Is(ctx.Err(), want) || context.Cause(ctx) != want || ctx.Value(key{}) != "value" {
					t.Errorf("terminated: %t, a context says %v %v %v", terminated, ctx.Err(), context.Cause(ctx), ctx.Value(key{}))
				}
			}
		}
		expect(nil)
		if terminated {
			q.terminate()
		} else {
			leave()
		}
		<-derived.Done()
		expect(context.Canceled)
		if (outer.Err() == nil) != terminated {
			t.Errorf("terminated: %t, the outer context says %v", terminated, outer.Err())
		}
	}
}

// The contexts of a proxied request derive from those of its gates, without a goroutine to
// watch them.
func TestDerivedContextsStartNoGoroutine(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 100 {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		outer := new(Set).Add(nil, r, nil, "")
		inner := new(Set).Add(nil, r.WithContext(outer.Context()), nil, "")
		_, cancel := context.WithCancel(inner.Context())
		defer cancel()
	}
	if more := runtime.NumGoroutine() - before; more > 10 {
		t.Errorf("%d goroutines more, for 100 requests", more)
	}
}

// Serving

func TestServeReturnsWhatHasBecomeOfTheRequest(t *testing.T) {
	failure := errors.New("failure")
	nothing := func(http.ResponseWriter) {}
	hints := func(w http.ResponseWriter) { w.WriteHeader(http.StatusEarlyHints) }
	header := func(w http.ResponseWriter) { w.WriteHeader(http.StatusOK) }
	body := func(w http.ResponseWriter) { _, _ = w.Write([]byte("body")) }
	file := func(w http.ResponseWriter) { _, _ = w.(io.ReaderFrom).ReadFrom(strings.NewReader("file")) }
	flush := func(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush() }
	returns := func(err error) func() error { return func() error { return err } }
	panics := func(reason any) func() error { return func() error { panic(reason) } }

	const aborted = "panic: net/http: abort Handler"
	for name, test := range map[string]struct {
		send      func(http.ResponseWriter)
		terminate bool
		end       func() error
		want      string // what is reported and returned
		aborted   bool
	}{
		"answers":          {body, false, returns(nil), "false <nil>", false},
		"fails":            {nothing, false, returns(failure), "false failure", false},
		"aborts":           {body, false, panics(http.ErrAbortHandler), aborted, false},
		"nothing, returns": {nothing, true, returns(nil), "true <nil>", false},
		"nothing, fails":   {nothing, true, returns(failure), "true <nil>", false},
		"nothing, aborts":  {nothing, true, panics(http.ErrAbortHandler), "true <nil>", false},
		"nothing, panics":  {nothing, true, panics("bug"), "panic: bug", false},
		"early hints":      {hints, true, returns(nil), "true <nil>", false},
		"header":           {header, true, returns(nil), aborted, true},
		"body":             {body, true, returns(nil), aborted, true},
		"file":             {file, true, returns(nil), aborted, true},
		"flushed":          {flush, true, returns(nil), aborted, true},
		"body, fails":      {body, true, returns(failure), aborted, true},
		"body, aborts":     {body, true, panics(http.ErrAbortHandler), aborted, true},
		"body, panics":     {body, true, panics("bug"), "panic: bug", true},
	} {
		server, closed := new(serverConn), false
		r := httptest.NewRequest(http.MethodPost, "/", closer(func() { closed = true }))
		q := new(Set).Add(server, r, nil, "")
		got := serve(q, func(w http.ResponseWriter, _ *http.Request) error {
			test.send(w)
			if test.terminate {
				q.terminate()
			}
			return test.end()
		})
		if got != test.want || q.Aborted() != test.aborted {
			t.Errorf("%s: got %s, aborted: %t, want %s, %t", name, got, q.Aborted(), test.want, test.aborted)
		}
		// The server does not wait for the rest of an upload then.
		if unread := server.takeBroken() == "read"; unread != closed || unread != test.terminate && !strings.HasPrefix(got, "panic") {
			t.Errorf("%s: the body is closed: %t, reading it ends: %t", name, closed, unread)
		}
	}
}

// closer is a body that notes when it is closed.
type closer func()

func (closer) Read([]byte) (int, error) { return 0, io.EOF }
func (c closer) Close() error           { c(); return nil }

// serve describes what Serve returns.
func serve(q *Request, handler func(http.ResponseWriter, *http.Request) error) (said string) {
	defer func() {
		if reason := recover(); reason != nil {
			said = fmt.Sprint("panic: ", reason)
		}
	}()
	return fmt.Sprint(q.Serve(q.HTTP, handler))
}

// sendAll sends in every possible way, and returns the errors that the handler gets.
func sendAll(w http.ResponseWriter) (errs []error) {
	controller := http.NewResponseController(w)
	w.Header().Add("From", "app")
	w.WriteHeader(http.StatusEarlyHints)
	w.WriteHeader(http.StatusSwitchingProtocols)
	w.WriteHeader(http.StatusEarlyHints) // too late
	_, writeErr := w.Write([]byte("body"))
	_, copyErr := io.Copy(w, io.LimitReader(strings.NewReader("file"), 3))
	_, _, hijackErr := controller.Hijack()
	return []error{writeErr, copyErr, hijackErr, controller.Flush()}
}

func TestWriterSendsWhatTheServersDoes(t *testing.T) {
	server := new(serverConn)
	q := new(Set).Add(server, httptest.NewRequest(http.MethodGet, "/", nil), nil, "")
	serve(q, func(w http.ResponseWriter, _ *http.Request) error {
		if err := errors.Join(sendAll(w)...); err != nil {
			t.Error(err)
		}
		if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		return w.(http.Pusher).Push("/style.css", nil)
	})
	want := []string{"103", "101", "body", "file: 3 bytes", "hijack", "flush", "full duplex", "push"}
	if !slices.Equal(server.sent, want) || server.header.Get("From") != "app" {
		t.Errorf("sent are %q with %v, want %q", server.sent, server.header, want)
	}
	bare := &responseWriter{ResponseWriter: httptest.NewRecorder()}
	if n, err := bare.ReadFrom(strings.NewReader("file")); n != 4 || err != nil || !errors.Is(bare.Push("/", nil), http.ErrNotSupported) {
		t.Errorf("a writer that can do less copies %d %v", n, err)
	}
}

func TestNothingIsSentAfterTermination(t *testing.T) {
	server := &serverConn{header: http.Header{"From": {"outside"}}}
	q := new(Set).Add(server, httptest.NewRequest(http.MethodGet, "/", nil), nil, "")
	serve(q, func(w http.ResponseWriter, _ *http.Request) error {
		q.terminate()
		q.terminate()
		for _, err := range sendAll(w) {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("the handler is told %v", err)
			}
		}
		return nil
	})
	if len(server.sent) > 0 || len(server.header.Values("From")) != 1 {
		t.Errorf("sent are %q with %v", server.sent, server.header)
	}
}

// A request is terminated only once, and not at all when it is done: handlers outside of the gate
// may still use it.
func TestTerminateEndsWhatIsNotDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s Set
		server := new(serverConn)
		q := s.Add(server, httptest.NewRequest(http.MethodGet, "/", nil), nil, "")
		add(&s)
		found := s.All()
		q.Done()
		if first, again := Terminate(found), Terminate(found); len(found) != 2 || first != 1 || again != 0 {
			t.Errorf("%d found, %d and then %d terminated, want 2, 1 and none", len(found), first, again)
		}
		pass(time.Minute)
		if q.Context().Err() != nil || serve(q, sendBody) != "false <nil>" || server.takeBroken() != "" {
			t.Error("a request that was done was terminated")
		}
	})
}

// pass lets time pass, and waits for everything that is due.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func sendBody(w http.ResponseWriter, _ *http.Request) error {
	_, err := w.Write([]byte("body"))
	return err
}

// The connection

// A handler that ignores the context gets a second, and cannot prolong it: one of Caddy's writers
// extends deadlines with each write.
func TestConnectionIsBrokenWhereTheContextIsNotHeeded(t *testing.T) {
	nothing := func(http.ResponseWriter, *http.Request) error { return nil }
	for want, send := range map[string]func(http.ResponseWriter, *http.Request) error{
		"outer, read": nothing, "outer, read, write": sendBody,
	} {
		synctest.Test(t, func(t *testing.T) {
			var s Set
			server := new(serverConn)
			q := s.Add(&outerWriter{server}, httptest.NewRequest(http.MethodGet, "/", nil), nil, "")
			_ = send(&q.writer, q.HTTP)
			requests := s.All()
			Terminate(requests)
			clear(requests) // it is the caller's
			pass(grace - 1)
			for range 20 {
				if got := server.takeBroken(); got != "" {
					t.Fatalf("%q are expired too early", got)
				}
				pass(interval)
				if got := server.takeBroken(); got != want {
					t.Fatalf("%q are expired, want %q", got, want)
				}
			}
			pass(2 * grace)
			server.takeBroken()
			pass(time.Hour)
			if got := server.takeBroken(); got != "" || s.Count() != 1 {
				t.Errorf("%d in flight, %q are expired too late", s.Count(), got)
			}
			Terminate(s.All())
			q.Done()
			pass(time.Hour)
			if got := server.takeBroken(); got != "" {
				t.Errorf("%q are expired after it was done", got)
			}
		})
	}
}

// After the handler has returned, the connection may serve another request, unless error routes
// continue with this one.
func TestConnectionIsLeftToTheNextRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s Set
		server, errorRoutes := new(serverConn), new(serverConn)
		q := s.Add(server, httptest.NewRequest(http.MethodGet, "/", nil), nil, "")
		q.HandlerReturned()
		if n := Terminate(s.All()); n != 1 || s.Count() != 1 || q.Context().Err() == nil {
			t.Errorf("%d terminated, %d in flight, want 1 and 1", n, s.Count())
		}
		pass(grace + interval/2)
		if server.takeBroken() != "" {
			t.Error("the connection was broken after the handler had returned")
		}
		q.Resume(errorRoutes)
		pass(interval)
		if server.takeBroken() != "" || errorRoutes.takeBroken() == "" {
			t.Error("the connection was not broken after the request had been resumed")
		}
	})
}

// A client that is still sending can read the answer, and its connection is closed, since more of
// the upload may be on its way. Other clients keep their connections.
func TestUploadUnderWayGetsTheAnswer(t *testing.T) {
	var s Set
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := s.Add(w, r, nil, "")
		defer q.Done()
		unanswered, _ := q.Serve(r.WithContext(q.Context()), func(_ http.ResponseWriter, r *http.Request) error {
			_, _ = r.Body.Read(make([]byte, 1))
			Terminate([]*Request{q})
			<-r.Context().Done()
			return nil
		})
		if unanswered {
			w := q.TakeOver()
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, "page")
		}
	}))
	defer server.Close()
	for name, length := range map[string]int64{"chunked": -1, "of known length": 1 << 40, "none": 0} {
		for range 10 {
			var upload io.Reader
			if length != 0 {
				upload = endless{}
			}
			request, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, upload)
			request.ContentLength = length
			answer, err := server.Client().Do(request)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			body, err := io.ReadAll(answer.Body)
			answer.Body.Close()
			if answer.StatusCode != http.StatusServiceUnavailable || string(body) != "page" || err != nil || !answer.Close {
				t.Errorf("%s: got %d %q %v, closed: %t", name, answer.StatusCode, body, err, answer.Close)
			}
		}
	}
}

// endless is a body without an end.
type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

// Nested gates

// A client that has not been sent anything gets one complete answer, even if another gate further
// outside terminates the request before or while it is sent.
func TestGatesInAChainAnswerOnce(t *testing.T) {
	for name, want := range map[string]string{
		"inner": "503", "inner, then outer while it answers": "503", "both": "503 by outer", "outer": "503 by outer",
	} {
		server := new(serverConn)
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		outer := new(Set).Add(server, r, nil, "")
		r.ProtoMajor = 2
		got := serve(outer, func(w http.ResponseWriter, r *http.Request) error {
			inner := new(Set).Add(&outerWriter{w}, r.WithContext(outer.Context()), nil, "")
			unanswered, err := inner.Serve(inner.HTTP, func(http.ResponseWriter, *http.Request) error {
				if name != "outer" {
					inner.terminate()
				}
				if name == "both" || name == "outer" {
					outer.terminate()
				}
				return nil
			})
			if unanswered {
				w := inner.TakeOver()
				if name == "inner, then outer while it answers" && outer.terminate() {
					t.Error("it is terminated though it is being answered")
				}
				w.Header().Set("Retry-After", "1")
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			return err
		})
		if got == "true <nil>" {
			w := outer.TakeOver()
			w.WriteHeader(http.StatusServiceUnavailable)
			server.sent = append(server.sent, "by outer")
		}
		if sent := strings.Join(server.sent, " "); sent != want || (server.header.Get("Retry-After") == "1") == strings.Contains(want, "outer") {
			t.Errorf("%s: sent are %q with %v, want %q", name, sent, server.header, want)
		}
	}
}

// serverConn stands for the server's own writer. It adds what is sent to sent, and deadlines that
// have passed to broken.
type serverConn struct {
	header http.Header
	sent   []string

	mu     sync.Mutex
	broken []string
}

func (s *serverConn) takeBroken() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	broken := strings.Join(s.broken, ", ")
	s.broken = nil
	return broken
}

func (s *serverConn) Header() http.Header {
	if s.header == nil {
		s.header = make(http.Header)
	}
	return s.header
}

func (s *serverConn) WriteHeader(status int) { s.sent = append(s.sent, fmt.Sprint(status)) }
func (s *serverConn) FlushError() error      { s.sent = append(s.sent, "flush"); return nil }

func (s *serverConn) Write(b []byte) (int, error) {
	s.sent = append(s.sent, string(b))
	return len(b), nil
}

func (s *serverConn) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(io.Discard, r)
	s.sent = append(s.sent, fmt.Sprintf("file: %d bytes", n))
	return n, err
}

func (s *serverConn) EnableFullDuplex() error { s.sent = append(s.sent, "full duplex"); return nil }

func (s *serverConn) Push(string, *http.PushOptions) error {
	s.sent = append(s.sent, "push")
	return nil
}

func (s *serverConn) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	s.sent = append(s.sent, "hijack")
	return nil, nil, nil
}

func (s *serverConn) SetReadDeadline(time.Time) error  { return s.expire("read") }
func (s *serverConn) SetWriteDeadline(time.Time) error { return s.expire("write") }

func (s *serverConn) expire(what string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = append(s.broken, what)
	return nil
}

// outerWriter extends write deadlines, as one of Caddy's writers does, and must be told of read
// deadlines.
type outerWriter struct{ http.ResponseWriter }

func (w *outerWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *outerWriter) SetReadDeadline(t time.Time) error {
	if server, ok := w.ResponseWriter.(*serverConn); ok {
		_ = server.expire("outer")
	}
	return http.NewResponseController(w.ResponseWriter).SetReadDeadline(t)
}

func (w *outerWriter) SetWriteDeadline(time.Time) error { return nil }
