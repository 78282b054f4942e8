//go:build !unix

package integration

import "os"

// Signals that stop a process and have it go on, which there are none of.
var sigStop, sigCont os.Signal = os.Interrupt, os.Interrupt
