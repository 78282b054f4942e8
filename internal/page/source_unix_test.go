//go:build unix

package page

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Opening a FIFO waits until somebody writes to it.
//
// G7, G9
func TestFIFOIsRefusedAtOnce(t *testing.T) {
	dir := changeDir(t)
	if err := syscall.Mkfifo("fifo.html", 0o600); err != nil {
		t.Fatal(err)
	}
	// One that is opened after all gets a writer, so that the test fails and does not
	// wait for ever.
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		fd := -1
		for fd < 0 {
			select {
			case <-ended:
				return
			default:
				fd, _ = syscall.Open("fifo.html", syscall.O_WRONLY|syscall.O_NONBLOCK, 0)
			}
		}
		syscall.Close(fd)
	}()
	_, _, err := Check("fifo.html")
	if want := filepath.Join(dir, "fifo.html") + " is not a regular file"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
}
