package inflight

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

// A client that is still sending is not kept from reading the answer, and its connection is
// closed: there may be more of the upload on its way. Others keep theirs.
func TestUploadUnderWayGetsTheAnswer(t *testing.T) {
	var s Set
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := s.Add(w, r, nil)
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

// endless is a body that goes on and on.
type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }
