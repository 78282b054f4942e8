package integration

import (
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
)

// app is an application behind Caddy that knows how many requests reached it.
type app struct {
	*httptest.Server
	requests atomic.Int64
}

func newApp(t *testing.T, handler http.HandlerFunc) *app {
	t.Helper()
	a := new(app)
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.requests.Add(1)
		handler(w, r)
	}))
	t.Cleanup(a.Close)
	return a
}

// address is where Caddy finds the app.
func (a *app) address() string { return a.Listener.Addr().String() }

func welcome(w http.ResponseWriter, _ *http.Request) {
	_, _ = io.WriteString(w, "Welcome.\n")
}
