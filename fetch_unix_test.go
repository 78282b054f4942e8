//go:build unix

package maintenance

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Opening a FIFO waits until somebody writes to it.
//
// G7, G9
func TestPageThatIsAFIFOIsRefusedAtOnce(t *testing.T) {
	dir := changeDir(t)
	fifo := filepath.Join(dir, "fifo.html")
	makeFIFO(t, fifo)
	writeFile(t, "page.html", "<p>Mine.")
	s := start(t, shopWith("page.html"))
	s.untilPages("shop", "ok")

	// Somebody comes after all, so that a test that fails does not wait for ever.
	go func() {
		for {
			select {
			case <-time.After(10 * time.Second):
			case <-t.Context().Done():
				return
			}
			for _, path := range []string{fifo, filepath.Join(dir, "page.html")} {
				if fd, err := syscall.Open(path, syscall.O_WRONLY|syscall.O_NONBLOCK, 0); err == nil {
					syscall.Close(fd)
				}
			}
		}
	}()

	t.Setenv("TEST_PAGE", fifo)
	for _, page := range []string{"fifo.html", fifo, "{env.TEST_PAGE}"} {
		within(t, "the load", 5*time.Second, func() {
			want := "page: " + fifo + " is not a regular file"
			if err := s.load(shopWith(page)); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("page %s: got %v, want %s", page, err, want)
			}
		})
		s.wantPage("/", "<p>Mine.")
	}

	remove(t, "page.html")
	makeFIFO(t, "page.html")
	s.put("shop", "")
	s.untilPages("shop", "stale")
	s.wantPage("/", "<p>Mine.")
}

func makeFIFO(t *testing.T, path string) {
	t.Helper()
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
}
