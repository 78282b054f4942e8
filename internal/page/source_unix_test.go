//go:build unix

package page

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Opening a FIFO waits until somebody writes to it.
//
// G7, G9
func TestFIFOIsRefusedAtOnce(t *testing.T) {
	dir := changeDir(t)
	noError(t, syscall.Mkfifo("fifo.html", 0o600))
	// If it is opened after all, the test fails instead of hanging.
	writer, err := os.OpenFile("fifo.html", os.O_RDWR, 0)
	noError(t, err)
	time.AfterFunc(time.Second, func() { writer.Close() })
	_, _, err = Check("fifo.html")
	if want := filepath.Join(dir, "fifo.html") + " is not a regular file"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
}
