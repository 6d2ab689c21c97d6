package sandbox

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// onThread runs f on an OS thread of its own, which ends with f: f may move it
// to other namespaces, where nothing else must ever run. Children that f starts
// begin where the thread is.
//
// The thread is never the process's first one. That one cannot end, and
// /proc/self shows its namespaces as the process's.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// Keep the first thread busy here while another one does it.
			done <- onThread(f)
			runtime.UnlockOSThread()
			return
		}
		// No unlock: the goroutine's end takes the thread with it.
		done <- f()
	}()
	return <-done
}
