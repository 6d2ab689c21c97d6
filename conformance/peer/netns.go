package peer

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Netns is a network namespace without a name: it is gone when it is closed
// and no process is left in it, so a killed test leaves nothing behind.
type Netns struct {
	handle    netns.NsHandle
	listeners []net.Listener
}

// ErrPrivilege says that a namespace could not be made for want of
// CAP_SYS_ADMIN. Tests skip on it.
var ErrPrivilege = errors.New("making a network namespace needs CAP_SYS_ADMIN (root)")

// NewNetns makes a namespace with its loopback interface up.
func NewNetns() (*Netns, error) {
	n := &Netns{handle: netns.None()}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			if errors.Is(err, unix.EPERM) {
				return ErrPrivilege
			}
			return fmt.Errorf("making a network namespace: %w", err)
		}
		var err error
		if n.handle, err = netns.Get(); err != nil {
			return fmt.Errorf("opening a network namespace: %w", err)
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("finding the loopback interface: %w", err)
		}
		return netlink.LinkSetUp(lo)
	})
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// Handle is the namespace's descriptor. It is valid until Close.
func (n *Netns) Handle() netns.NsHandle { return n.handle }

// Do runs f on a thread inside the namespace. Sockets that f opens stay
// there; goroutines that it starts do not.
func (n *Netns) Do(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(n.handle); err != nil {
			return fmt.Errorf("entering a network namespace: %w", err)
		}
		return f()
	})
}

// onThread runs f, which changes the network namespace, on a thread of its
// own and brings the thread back. A thread that cannot be brought back stays
// locked to its goroutine and ends with it. (Processes started by f ask to be
// killed when their parent's thread ends, so the usual case must keep it.)
func onThread(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		before, err := netns.Get()
		if err != nil {
			result <- fmt.Errorf("opening this network namespace: %w", err)
			return
		}
		defer before.Close()
		err = f()
		if back := netns.Set(before); back != nil {
			result <- errors.Join(err, fmt.Errorf("leaving a network namespace: %w", back))
			return
		}
		runtime.UnlockOSThread()
		result <- err
	}()
	return <-result
}

// AddInterface adds an interface with an address that leads nowhere: a veth
// whose other end stays in the namespace too. (A dummy device would do, but not
// every kernel has them.)
func (n *Netns) AddInterface(name, prefix string) error {
	return n.Do(func() error {
		addr, err := netlink.ParseAddr(prefix)
		if err != nil {
			return err
		}
		link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "-end"}
		if err := netlink.LinkAdd(link); err != nil {
			return fmt.Errorf("adding interface %s: %w", name, err)
		}
		end, err := netlink.LinkByName(link.PeerName)
		if err != nil {
			return fmt.Errorf("finding interface %s: %w", link.PeerName, err)
		}
		if err := errors.Join(netlink.LinkSetUp(link), netlink.LinkSetUp(end), netlink.AddrAdd(link, addr)); err != nil {
			return fmt.Errorf("setting up interface %s: %w", name, err)
		}
		return nil
	})
}

// Forward makes the outside's TCP address reachable under the same address
// inside, until Close. That is how a program in the namespace reaches an API
// server on the host's loopback without a link between the two.
func (n *Netns) Forward(addr string) error {
	var l net.Listener
	err := n.Do(func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	})
	if err != nil {
		return fmt.Errorf("listening on %s in a network namespace: %w", addr, err)
	}
	n.listeners = append(n.listeners, l)
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go relay(in, addr)
		}
	}()
	return nil
}

// relay copies both ways until both directions have ended.
func relay(in net.Conn, addr string) {
	defer in.Close()
	out, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer out.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(out, in)
		_ = out.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(in, out)
	_ = in.(*net.TCPConn).CloseWrite()
	<-done
}

// Close ends the forwarding and lets the namespace go.
func (n *Netns) Close() error {
	var errs []error
	for _, l := range n.listeners {
		errs = append(errs, l.Close())
	}
	n.listeners = nil
	if n.handle.IsOpen() {
		errs = append(errs, n.handle.Close())
	}
	if err := errors.Join(errs...); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("closing a network namespace: %w", err)
	}
	return nil
}
