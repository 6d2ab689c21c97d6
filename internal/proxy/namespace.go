package proxy

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// namespace is the network namespace that a Proxy was started in. Its upkeep
// runs programs and opens sockets there, from whatever thread.
type namespace struct {
	file  *os.File
	inode uint64
}

func currentNamespace() (*namespace, error) {
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open the network namespace: %w; is /proc mounted?", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, fmt.Errorf("look at the network namespace: %w", err)
	}
	return &namespace{f, st.Ino}, nil
}

// enter puts the calling goroutine into the namespace, for good: its thread
// ends with it. In a process of one namespace it does nothing, and needs no
// privilege.
func (n *namespace) enter() error {
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return fmt.Errorf("look at the network namespace: %w", err)
	}
	var self unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &self); err != nil {
		return fmt.Errorf("look at the network namespace: %w", err)
	}
	if st.Ino == n.inode && self.Ino == n.inode {
		return nil
	}
	runtime.LockOSThread()
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the network namespace: %w", err)
	}
	return nil
}

func (n *namespace) close() { n.file.Close() }

// loop runs f until it ends, as one of the loops that Close waits for.
func (p *Proxy) loop(f func()) {
	p.loops.Go(func() {
		if err := p.home.enter(); err != nil {
			p.log.Error("the proxy's upkeep does not run", "err", err)
			return
		}
		f()
	})
}
