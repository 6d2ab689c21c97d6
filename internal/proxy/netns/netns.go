// Package netns keeps work in one network namespace, whatever thread it is done
// on: sockets, programs and settings are those of the thread's. In a process of
// one namespace, which is all but tests, it needs no privilege.
package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace.
type Namespace struct {
	file  *os.File
	inode uint64
}

// Present is the calling thread's.
func Present() (*Namespace, error) {
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open the network namespace: %w; is /proc mounted?", err)
	}
	var s unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &s); err != nil {
		f.Close()
		return nil, fmt.Errorf("look at the network namespace: %w", err)
	}
	return &Namespace{f, s.Ino}, nil
}

// Close lets go of it.
func (n *Namespace) Close() error { return n.file.Close() }

// Enter puts the calling goroutine into the namespace, for good: its thread
// ends with it. In a process of one namespace it does nothing.
func (n *Namespace) Enter() error {
	runtime.LockOSThread()
	var thread, process unix.Stat_t
	if err := errors.Join(unix.Stat("/proc/thread-self/ns/net", &thread), unix.Stat("/proc/self/ns/net", &process)); err != nil {
		return fmt.Errorf("look at the network namespace: %w", err)
	}
	if thread.Ino == n.inode && process.Ino == n.inode {
		runtime.UnlockOSThread()
		return nil
	}
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the network namespace: %w", err)
	}
	return nil
}

// Do calls f in the namespace, on another goroutine, and waits for it.
func (n *Namespace) Do(f func() error) error {
	ch := make(chan error, 1)
	go func() {
		if err := n.Enter(); err != nil {
			ch <- err
			return
		}
		// Where Enter did nothing, all threads are alike.
		ch <- f()
	}()
	return <-ch
}
