package integration

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/fcgi"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"
)

// cutLimit is how long after its moment a request may be cut off in a test. On a
// machine that is not busy it takes milliseconds, or a second where the request
// waits for its client.
const cutLimit = 6 * time.Second

// G5: What does not end by itself is cut off at its moment, whatever it waits for,
// in a way that no client takes for its end. Nothing else is.
func TestWhatDoesNotEndIsCutOff(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		f := newCutFixture(t, k)
		var lasting []*lastingRequest
		for _, p := range f.protocols {
			for _, kind := range lastingKinds {
				if kind.only == "" || strings.Contains(kind.only, p.name) {
					lasting = append(lasting, f.begin(p, kind))
				}
			}
		}
		var untouched []*lastingRequest
		leaveAlone := func(p protocol, path string, header ...string) {
			r := f.begin(p, lastingKind{name: path, path: path, header: header})
			r.expectMore(t)
			untouched = append(untouched, r)
		}
		for _, p := range f.protocols {
			leaveAlone(p, "/wiki/trickle")
		}
		awaitInFlight(t, f.c, f.site, len(lasting))

		const after = time.Second
		before := time.Now()
		f.c.on(f.site, fmt.Sprintf(`{"message": "Back at three.", "terminate_after": "%s", "bypass_secret": "%s"}`, after, testSecret))
		moment := time.Now().Add(after)
		for _, p := range f.protocols {
			leaveAlone(p, "/bypassed/trickle")
			leaveAlone(p, "/trickle", "Cookie", f.passCookie(testSecret))
		}
		for n := len(lasting); n > 0 && !t.Failed(); time.Sleep(2 * time.Millisecond) {
			if n = f.c.status(f.site).InFlight; n > 0 && time.Since(moment) > cutLimit {
				t.Errorf("%d are still in flight", n)
			}
		}
		t.Logf("drained after %s", time.Since(moment))
		close(f.cut)

		var polls int64
		for _, r := range lasting {
			select {
			case <-r.ended:
			case <-time.After(patience):
				t.Fatalf("%s: its client still waits", r.name)
			}
			got := r.got
			t.Logf("%-60s %6s %d %v", r.name, r.at.Sub(moment).Round(time.Millisecond), got.code, got.err)
			if fault := r.kind.fault(got); fault != "" {
				t.Errorf("%s: %s: got %d %v %.300q %v", r.name, fault, got.code, got.header, got.body, got.err)
			}
			if early := before.Add(after).Sub(r.at); early > 0 {
				t.Errorf("%s: cut off %s before the moment", r.name, early)
			}
			if strings.HasSuffix(r.kind.path, "/poll") {
				polls++
			}
		}
		eventually(t, patience, "the app has seen its clients leave", func() bool { return f.left.Load() == polls })
		for _, r := range untouched {
			r.expectMore(t)
		}
		_, metrics, err := f.c.request(http.MethodGet, "/metrics", "")
		want := fmt.Sprintf(`caddy_maintenance_requests_total{outcome="terminated",site=%q} %d`, f.site, len(lasting))
		if err != nil || !strings.Contains(metrics, want) {
			t.Errorf("the metrics lack %s (%v)", want, err)
		}

		// For what was cut off, the proxy has not taken the app for broken.
		f.c.off(f.site)
		for _, p := range f.protocols {
			if code, err := fetch(p.client, f.url("/")); code != http.StatusOK || err != nil {
				t.Errorf("%s: got %d %v when the site is open again, want 200", p.name, code, err)
			}
		}
	})
}

// lastingKind is a request that does not end by itself.
type lastingKind struct {
	name   string
	path   string
	only   string // protocols
	method string
	header []string // names and values
	upload int64    // the length of an upload that stalls, -1 if that is not told
	pace   pace
	fault  func(got answer) string // empty if that is how it is to be cut off
}

type pace int

const (
	atOnce  pace = iota // reads what comes
	steady              // reads some of what comes
	stalled             // reads no more than the header before it has been cut off
)

var lastingKinds = []lastingKind{
	{name: "long poll", path: "/poll", fault: noProblem},
	{name: "long poll, HEAD", path: "/poll", method: http.MethodHead, fault: no503},
	{name: "long poll after early hints", path: "/hints", fault: noProblem},
	{name: "header that encode keeps until there is more", path: "/encoded/header", header: gzip, fault: noProblem},
	{name: "page that templates collects", path: "/templates/page", fault: noProblem},
	{name: "stalled upload", path: "/upload", upload: 1 << 20, fault: noProblem},
	{name: "stalled upload, small", path: "/upload", upload: 1 << 10, fault: noProblem},
	{name: "stalled upload, chunked", path: "/upload", upload: -1, fault: noProblem},
	{name: "stalled upload, Expect: 100-continue", path: "/upload", upload: 1 << 20, header: expects, fault: noProblem},
	{name: "stalled upload that the app does not read", path: "/ignored", upload: 1 << 20, fault: noProblem},
	{name: "stalled upload that is being answered", path: "/early", upload: 1 << 20, only: "HTTP/2.0 HTTP/3.0", fault: looksComplete},
	{name: "stream", path: "/trickle", fault: looksComplete},
	{name: "stream, compressed", path: "/encoded/trickle", header: gzip, fault: looksComplete},
	{name: "events", path: "/events", fault: looksComplete},
	{name: "download with Content-Length", path: "/length", fault: looksComplete},
	{name: "stalled download", path: "/flood", pace: stalled, fault: looksComplete},
	{name: "stalled download, compressed", path: "/encoded/flood", header: gzip, pace: stalled, fault: looksComplete},
	{name: "stalled download of a file", path: "/files/large", pace: stalled, fault: looksComplete},
	{name: "download of a file", path: "/files/large", pace: steady, fault: looksComplete},
	{name: "stream of an error route", path: "/error/trickle", fault: looksComplete},
	{name: "stalled download of an error route", path: "/error/flood", pace: stalled, fault: looksComplete},
	{name: "stalled upload of an error route", path: "/error/upload", upload: 1 << 20, fault: noProblem},
	{name: "long poll of an error route", path: "/error/poll", fault: noProblem},
	{name: "FastCGI, stalled upload", path: "/fcgi/upload", upload: 1 << 20, fault: noProblem},
	{name: "FastCGI, stream", path: "/fcgi/trickle", fault: looksComplete},
	{name: "FastCGI, stalled download", path: "/fcgi/flood", pace: stalled, fault: looksComplete},
	{name: "WebSocket", path: "/socket", only: "HTTP/1.1", header: upgrade, fault: notClosed},
}

var (
	gzip    = []string{"Accept-Encoding", "gzip"}
	expects = []string{"Expect", "100-continue"}
	upgrade = []string{"Connection", "Upgrade", "Upgrade", "websocket"}
)

func no503(got answer) string {
	if got.err != nil || got.code != http.StatusServiceUnavailable || got.header.Get("Retry-After") != "300" {
		return "no 503"
	}
	return ""
}

func noProblem(got answer) string {
	var problem struct {
		Detail string `json:"detail"`
	}
	if err := json.Unmarshal([]byte(got.body), &problem); err != nil || problem.Detail != "Back at three." ||
		got.header.Get("Content-Type") != "application/problem+json" {
		return "no problem"
	}
	if got.header.Get("Content-Disposition") != "" {
		return "with a header of what was not sent"
	}
	return no503(got)
}

func looksComplete(got answer) string {
	if got.err == nil || errors.Is(got.err, os.ErrDeadlineExceeded) || errors.Is(got.err, context.Canceled) {
		return "not broken off"
	}
	return ""
}

// notClosed is for what has no end but that of the connection.
func notClosed(got answer) string {
	if got.err != nil || got.code != http.StatusSwitchingProtocols {
		return "not closed"
	}
	return ""
}

// cutFixture is a Caddy that speaks all protocols, and clients for them.
type cutFixture struct {
	t         *testing.T
	c         *caddy
	site      string // its name
	address   string
	protocols []protocol
	cut       chan struct{} // closed when all has been cut off
	ended     chan struct{} // closed when the test ends
	left      atomic.Int64  // clients that have left /poll
}

// protocol has a client for what stalls, too: that takes from the others on the
// same connection what they may send.
type protocol struct {
	name             string
	client, stalling *http.Client
}

func newCutFixture(t *testing.T, k kind) *cutFixture {
	t.Helper()
	f := &cutFixture{t: t, site: k.name, address: freeAddress(t), cut: make(chan struct{}), ended: make(chan struct{})}
	if k.template != "" {
		f.site = "127.0.0.1" // the host that the certificate is for
	}
	upstream := newApp(t, f.serve)
	php := listen(t, "127.0.0.1:0")
	go func() { _ = fcgi.Serve(php, http.HandlerFunc(f.serve)) }()
	t.Cleanup(func() { close(f.ended) })
	f.c = newCaddy(t)
	write(t, filepath.Join(f.c.dir, "files", "large"), "")
	if err := os.Truncate(filepath.Join(f.c.dir, "files", "large"), 1<<40); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewTLSServer(nil) // which has a certificate for 127.0.0.1
	s.Close()
	key, err := x509.MarshalPKCS8PrivateKey(s.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	trusted := x509.NewCertPool()
	trusted.AddCert(s.Certificate())
	for _, block := range []*pem.Block{{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}, {Type: "PRIVATE KEY", Bytes: key}} {
		write(t, filepath.Join(f.c.dir, block.Type), string(pem.EncodeToMemory(block)))
	}
	f.c.start(f.c.caddyfile() + fmt.Sprintf(`
https://%s {
	tls CERTIFICATE "PRIVATE KEY"
	log {
		output discard
	}
	@shop not path /wiki/*
	maintenance @shop %s {
		bypass /bypassed/*
	}
	maintenance /wiki/* wiki
	@encoded path /encoded/*
	encode @encoded gzip
	templates /templates/*
	error /error/* 502
	handle_path /files/* {
		root files
		file_server
	}
	reverse_proxy /fcgi/* %s {
		flush_interval -1
		transport fastcgi
	}
	reverse_proxy %s {
		fail_duration 30s
		max_fails 1
	}
	handle_errors {
		reverse_proxy /error/* %[4]s
	}
}
`, f.address, cmp.Or(k.template, k.name), php.Addr(), upstream.address()))

	config := &tls.Config{RootCAs: trusted}
	for _, name := range []string{"HTTP/1.1", "HTTP/2.0", "HTTP/3.0"} {
		client := func() *http.Client {
			if name == "HTTP/3.0" {
				transport := &http3.Transport{TLSClientConfig: config.Clone(), DisableCompression: true}
				t.Cleanup(func() { transport.Close() })
				return &http.Client{Timeout: patience, Transport: transport}
			}
			transport := &http.Transport{
				Protocols: new(http.Protocols), TLSClientConfig: config.Clone(),
				DisableCompression: true, ExpectContinueTimeout: patience,
			}
			transport.Protocols.SetHTTP1(name == "HTTP/1.1")
			transport.Protocols.SetHTTP2(name != "HTTP/1.1")
			t.Cleanup(transport.CloseIdleConnections)
			return &http.Client{Timeout: patience, Transport: transport}
		}
		f.protocols = append(f.protocols, protocol{name, client(), client()})
	}
	return f
}

func (f *cutFixture) url(path string) string { return "https://" + f.address + path }

// passCookie opens the link with a secret.
func (f *cutFixture) passCookie(secret string) string {
	f.t.Helper()
	client := *f.protocols[0].client
	client.CheckRedirect = visitors.CheckRedirect
	got := ask(&client, http.MethodGet, f.url("/.maintenance/"+secret), nil)
	cookie, _, ok := strings.Cut(got.header.Get("Set-Cookie"), ";")
	if !ok {
		f.t.Fatalf("the link got %+v and no cookie", got)
	}
	return cookie
}

// serve is an app whose answers go on until Caddy leaves.
func (f *cutFixture) serve(w http.ResponseWriter, r *http.Request) {
	controller := http.NewResponseController(w)
	send := func(s string) error {
		_, err := io.WriteString(w, s)
		return errors.Join(err, controller.Flush())
	}
	wait := func() {
		select {
		case <-r.Context().Done():
		case <-f.ended:
		}
	}
	switch r.URL.Path[strings.LastIndex(r.URL.Path, "/"):] {
	case "/poll":
		wait()
		f.left.Add(1)
	case "/hints":
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		wait()
	case "/header", "/page":
		w.Header().Set("Content-Disposition", "attachment")
		w.Header().Set("Content-Type", "text/html")
		_ = controller.Flush()
		wait()
	case "/upload":
		_, _ = io.Copy(io.Discard, r.Body)
	case "/ignored":
		wait()
	case "/early":
		_ = controller.EnableFullDuplex()
		_ = send("early")
		_, _ = io.Copy(io.Discard, r.Body)
	case "/trickle":
		for send(".") == nil {
			time.Sleep(20 * time.Millisecond)
		}
	case "/events":
		w.Header().Set("Content-Type", "text/event-stream")
		_ = send("data: one\n\n")
		wait()
	case "/length":
		w.Header().Set("Content-Length", "1000")
		_ = send("not all of it")
		wait()
	case "/flood":
		for flood := strings.Repeat("flood", 10_000); send(flood) == nil; {
		}
	case "/socket":
		newPatientApp(f.t).ServeHTTP(w, r)
	default:
		welcome(w, r)
	}
}

type lastingRequest struct {
	name  string
	kind  lastingKind
	reads atomic.Int64  // of the body
	got   answer        // when nothing more came
	at    time.Time     // when that was
	ended chan struct{} // closed then
}

func (f *cutFixture) begin(p protocol, kind lastingKind) *lastingRequest {
	r := &lastingRequest{name: p.name + " " + kind.name, kind: kind, ended: make(chan struct{})}
	go func() {
		r.got = f.send(p, r)
		r.at = time.Now()
		close(r.ended)
	}()
	return r
}

// expectMore returns when more has come.
func (r *lastingRequest) expectMore(t *testing.T) {
	t.Helper()
	before := r.reads.Load()
	eventually(t, patience, r.name+" goes on", func() bool {
		select {
		case <-r.ended:
			t.Fatalf("%s has ended: %+v", r.name, r.got)
		default:
		}
		return r.reads.Load() > before+1
	})
}

func (f *cutFixture) send(p protocol, request *lastingRequest) (got answer) {
	kind := request.kind
	r, err := http.NewRequest(kind.method, f.url(kind.path), nil)
	if err != nil {
		return answer{err: err}
	}
	r.Header.Set("Accept", "application/json")
	for i := 0; i < len(kind.header); i += 2 {
		r.Header.Set(kind.header[i], kind.header[i+1])
	}
	if kind.upload != 0 {
		body, upload := io.Pipe()
		go func() { _, _ = io.WriteString(upload, "not all of it") }()
		r.Method, r.Body, r.ContentLength = http.MethodPost, body, kind.upload
	}
	client := p.client
	if kind.pace == stalled {
		client = p.stalling
	}
	response, err := client.Do(r)
	if err != nil {
		return answer{err: err}
	}
	defer response.Body.Close()
	got = answer{code: response.StatusCode, header: response.Header}
	if response.Proto != p.name {
		got.err = fmt.Errorf("it was answered over %s", response.Proto)
		return got
	}
	if kind.pace == stalled {
		<-f.cut
	}
	for buffer := make([]byte, 64<<10); ; {
		n, err := response.Body.Read(buffer)
		request.reads.Add(1)
		if got.body += string(buffer[:n]); len(got.body) > 1000 {
			got.body = got.body[:1000]
		}
		if err != nil {
			if err != io.EOF {
				got.err = err
			}
			return got
		}
		if kind.pace == steady {
			time.Sleep(5 * time.Millisecond)
		}
	}
}
