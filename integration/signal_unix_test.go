//go:build unix

package integration

import (
	"os"
	"syscall"
)

// Signals that stop a process and have it go on.
var sigStop, sigCont os.Signal = syscall.SIGSTOP, syscall.SIGCONT
