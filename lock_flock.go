//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package maintenance

import (
	"os"
	"syscall"
)

// lock locks a file until the process ends. It returns false if another process has locked it.
func lock(file *os.File) bool {
	return syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil
}
