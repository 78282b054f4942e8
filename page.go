package maintenance

import (
	"cmp"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"example.com/caddy-maintenance/internal/page"
	"example.com/caddy-maintenance/internal/site"
)

// respond answers a request with the 503 in the form that its client prefers: the page, a
// problem in JSON, or plain text.
func (h *Handler) respond(w http.ResponseWriter, r *http.Request, st *site.State, retryAfter int64) {
	shown := represent(r, h.view, st, retryAfter)
	header := w.Header()
	for _, name := range bodyHeaders {
		delete(header, name)
	}
	deleteCacheHeaders(header)
	if shown.encoding != "" {
		header.Set("Content-Encoding", shown.encoding)
	}
	setEach(header,
		"Retry-After", strconv.FormatInt(retryAfter, 10),
		"Cache-Control", "no-store",
		"Content-Type", shown.contentType,
		"Content-Length", strconv.Itoa(len(shown.body)),
		"X-Content-Type-Options", "nosniff",
		"Referrer-Policy", "no-referrer",
	)
	if h.Refresh > 0 {
		header.Set("Refresh", strconv.FormatInt(page.Seconds(time.Duration(h.Refresh)), 10))
	}
	header.Add("Vary", "Accept, Accept-Encoding")
	if r.ProtoMajor == 1 && r.Header.Get("Expect") != "" {
		// Otherwise the server would read the body to keep the connection.
		header.Set("Connection", "close")
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	if r.Method != http.MethodHead {
		_, _ = w.Write(shown.body)
	}
}

// representation is a body with its headers.
type representation struct {
	contentType, encoding string
	body                  []byte
}

// represent returns a page in the form that the client prefers: HTML, a problem in JSON, or
// plain text.
func represent(r *http.Request, v *siteView, st *site.State, retryAfter int64) representation {
	content := contentOf(st.Options())
	switch page.Negotiate(r.Header["Accept"], r.Header.Get("Sec-Fetch-Dest")) {
	case page.MediaHTML:
		shown := v.HTML(r.Context(), content, st.Changed())
		if len(shown.Gzip) > 0 && page.AcceptsGzip(r.Header["Accept-Encoding"]) {
			return representation{shown.ContentType, "gzip", shown.Gzip}
		}
		return representation{shown.ContentType, "", shown.HTML}
	case page.MediaJSON:
		return representation{"application/problem+json", "", page.Problem(content, retryAfter)}
	default:
		return representation{"text/plain; charset=utf-8", "", page.PlainText(content)}
	}
}

// contentOf returns what the options say to visitors.
func contentOf(o *site.Options) page.Content { return page.Content{Message: o.Message, Until: o.Until} }

// retryAfter returns the value of the Retry-After header.
func (h *Handler) retryAfter(o *site.Options) int64 {
	return retryAfter(o, time.Duration(h.RetryAfter))
}

// retryAfter returns what the switch says, else a countdown to the end of the maintenance,
// else the configured time.
func retryAfter(o *site.Options, configured time.Duration) int64 {
	if o.RetryAfter.Value == 0 && !o.Until.IsZero() {
		return page.SecondsUntil(o.Until, time.Now())
	}
	return page.Seconds(cmp.Or(o.RetryAfter.Value, configured))
}

// setEach sets headers by their canonical names, with one allocation for all values. No two
// responses may share values: other handlers change them in place.
func setEach(header http.Header, namesAndValues ...string) {
	for i := 0; i < len(namesAndValues); i += 2 {
		header[namesAndValues[i]] = namesAndValues[i+1 : i+2 : i+2]
	}
}

// bodyHeaders, in canonical form, describe the body that an earlier handler expected.
var bodyHeaders = []string{"Content-Encoding", "Etag", "Last-Modified"}

// cacheHeaders, in canonical form, are older and vendor-specific fields that can contradict
// Cache-Control.
var cacheHeaders = []string{"Edge-Control", "Expires", "Pragma", "Surrogate-Control", "X-Accel-Expires"}

// deleteCacheHeaders deletes cacheHeaders, and the fields that target certain caches: by
// convention their names end in -Cache-Control (RFC 9213, section 2.3).
func deleteCacheHeaders(header http.Header) {
	for name := range header {
		if strings.HasSuffix(name, "-Cache-Control") || slices.Contains(cacheHeaders, name) {
			delete(header, name)
		}
	}
}

// appHeaders, in canonical form, are fields that the app may have set for its own response
// before the request was terminated.
var appHeaders = []string{
	"Content-Disposition", "Content-Language", "Content-Range", "Location", "Sec-Websocket-Accept", "Sec-Websocket-Extensions",
	"Sec-Websocket-Protocol", "Set-Cookie", "Trailer", "Transfer-Encoding", "Upgrade",
}
