package userspace

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A loop serves sockets of one goroutine by epoll. Whatever belongs to a loop,
// connections, sessions, buffers, is touched by its goroutine only: no locks.
//
// Goroutines that wait in net.Conn.Read cost a park and a wake per message and
// direction, about as much as the system calls themselves; here one wait
// returns all sockets that have something.
type loop struct {
	d        *Dataplane
	epfd     int
	wake     int // an eventfd: something is in the inbox
	slots    []slot
	events   [256]unix.EpollEvent
	buf      []byte // what is read and not yet written
	pipes    []pipe // idle ones
	udp      batch
	idle     time.Duration // see sessionIdle
	idleRead time.Time

	now        time.Time // of this round
	nextTick   time.Time
	nextExpiry time.Time
	waiting    map[*conn]struct{} // dialing or held: they have a deadline
	ports      map[*udpPort]struct{}
	paused     []*acceptor // no descriptor was left for what they accept
	open       map[*conn]struct{}
	load       atomic.Int32 // connections

	mu      sync.Mutex
	inbox   []func()
	closing bool
	ended   bool
}

// slot is who is told of a descriptor's events. The generation tells an event
// for it from one for a descriptor that had the number before.
type slot struct {
	handler
	gen int32
}

type handler interface {
	ready(events uint32)
}

const (
	bufferSize = 64 << 10
	tickEvery  = 25 * time.Millisecond
	slowTick   = time.Second // where only sessions' ends are waited for
)

func newLoop(d *Dataplane) (*loop, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make an epoll set: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(epfd)
		return nil, fmt.Errorf("make an eventfd: %w", err)
	}
	l := &loop{d: d, epfd: epfd, wake: wake, buf: make([]byte, bufferSize), waiting: make(map[*conn]struct{}),
		open: make(map[*conn]struct{}), ports: make(map[*udpPort]struct{})}
	if err := l.add(wake, waker{l}, unix.EPOLLIN); err != nil {
		unix.Close(epfd)
		unix.Close(wake)
		return nil, fmt.Errorf("watch an eventfd: %w", err)
	}
	return l, nil
}

// add begins to tell h of events of fd, which are level-triggered.
func (l *loop) add(fd int, h handler, events uint32) error {
	if fd >= len(l.slots) {
		l.slots = append(l.slots, make([]slot, fd+64-len(l.slots))...)
	}
	s := &l.slots[fd]
	s.handler, s.gen = h, s.gen+1
	return unix.EpollCtl(l.epfd, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd), Pad: s.gen})
}

func (l *loop) modify(fd int, events uint32) {
	_ = unix.EpollCtl(l.epfd, unix.EPOLL_CTL_MOD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd), Pad: l.slots[fd].gen})
}

// forget ends it; closing a descriptor that only we have does so in the kernel.
func (l *loop) forget(fd int) {
	l.slots[fd].handler = nil
	l.slots[fd].gen++
}

// run serves until nothing is left after close.
func (l *loop) run() {
	defer l.end()
	for {
		n := l.poll()
		if n == 0 {
			var err error
			if n, err = unix.EpollWait(l.epfd, l.events[:], l.timeout()); err != nil {
				n = 0
			}
		}
		l.now = time.Now()
		for i := range n {
			ev := &l.events[i]
			// A handler before it may have closed this one.
			if s := &l.slots[ev.Fd]; s.gen == ev.Pad && s.handler != nil {
				s.ready(ev.Events)
			}
		}
		if !l.now.Before(l.nextTick) {
			l.tick()
		}
		l.mu.Lock()
		l.ended = l.closing && len(l.inbox) == 0 && len(l.open) == 0 && len(l.ports) == 0
		ended := l.ended
		l.mu.Unlock()
		if ended {
			return
		}
		// System calls that cannot block are made without a word to the
		// scheduler: others in this process, the DNS server first, get their
		// turn here.
		runtime.Gosched()
	}
}

// poll looks for events without waiting.
func (l *loop) poll() int {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(l.epfd), uintptr(unsafe.Pointer(&l.events[0])), uintptr(len(l.events)), 0, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

func (l *loop) timeout() int {
	every := time.Duration(0)
	switch {
	case len(l.waiting) > 0 || len(l.paused) > 0:
		every = tickEvery
	case len(l.ports) > 0:
		every = slowTick
	default:
		return -1
	}
	return int(every / time.Millisecond)
}

// tick does what is due.
func (l *loop) tick() {
	l.nextTick = l.now.Add(tickEvery)
	for c := range l.waiting {
		if !l.now.Before(c.deadline) {
			c.expired()
		}
	}
	paused := l.paused
	l.paused = nil
	for _, a := range paused {
		a.resume()
	}
	if l.now.Before(l.nextExpiry) {
		return
	}
	l.nextExpiry = l.now.Add(slowTick)
	for p := range l.ports {
		p.expire()
	}
}

// do has the loop call f soon. After the loop's end it is not called, and do
// tells so.
func (l *loop) do(f func()) bool {
	l.mu.Lock()
	if l.ended {
		l.mu.Unlock()
		return false
	}
	l.inbox = append(l.inbox, f)
	first := len(l.inbox) == 1
	l.mu.Unlock()
	if first {
		one := [8]byte{1, 0, 0, 0, 0, 0, 0, 1} // not zero in any byte order
		_, _ = unix.Write(l.wake, one[:])
	}
	return true
}

// call has the loop call f and waits for it.
func (l *loop) call(f func()) {
	done := make(chan struct{})
	if l.do(func() { f(); close(done) }) {
		<-done
	}
}

type waker struct{ *loop }

func (w waker) ready(uint32) {
	var b [8]byte
	_, _ = unix.Read(w.wake, b[:])
	w.mu.Lock()
	inbox := w.inbox
	w.inbox = nil
	w.mu.Unlock()
	for _, f := range inbox {
		f()
	}
}

// close lets run end when the last connection has ended.
func (l *loop) close() {
	l.do(func() {
		l.mu.Lock()
		l.closing = true
		l.mu.Unlock()
	})
}

func (l *loop) end() {
	for _, p := range l.pipes {
		p.close()
	}
	unix.Close(l.wake)
	unix.Close(l.epfd)
}
