package userspace

import "golang.org/x/sys/unix"

// Small messages are cheapest read and written. What fills the buffer again and
// again is a transfer: splice(2) moves it from socket to socket through a pipe,
// without copying it into this process and out again.

const (
	bulkAfter  = 4       // full buffers in a row
	bulkEnough = 8 << 10 // less than this at once is no transfer any more
	pipeSize   = 1 << 20
	idlePipes  = 32 // that a loop keeps
)

type pipe struct{ r, w int }

func (p pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}

// bulk is the transfer from a side to its peer.
type bulk struct {
	on    bool
	pipe  pipe
	held  int // bytes in the pipe
	fulls int
	never bool // no pipe can be had
}

// full counts full buffers.
func (b *bulk) full() {
	if b.fulls++; b.fulls < bulkAfter || b.never {
		return
	}
	b.on = true
}

func (l *loop) takePipe() (pipe, bool) {
	if n := len(l.pipes); n > 0 {
		p := l.pipes[n-1]
		l.pipes = l.pipes[:n-1]
		return p, true
	}
	var fds [2]int
	if unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC) != nil {
		return pipe{}, false
	}
	_, _ = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize) // more than a user may have: 64 KiB do
	return pipe{fds[0], fds[1]}, true
}

// release gives the pipe back; one that holds something cannot be used again.
func (b *bulk) release(l *loop) {
	if b.pipe == (pipe{}) {
		b.on, b.fulls = false, 0
		return
	}
	if b.held == 0 && len(l.pipes) < idlePipes {
		l.pipes = append(l.pipes, b.pipe)
	} else {
		b.pipe.close()
	}
	*b = bulk{}
}

// splice moves what the side has to its peer.
func (s *side) splice() {
	c, b := s.conn, &s.bulk
	if b.pipe == (pipe{}) {
		var ok bool
		if b.pipe, ok = c.l.takePipe(); !ok {
			b.on, b.never = false, true
			return
		}
	}
	for range readAtOnce {
		n, errno := spliceRaw(s.fd, b.pipe.w, pipeSize)
		switch {
		case errno == unix.EAGAIN || errno == unix.EINTR:
			return
		case errno != 0:
			c.abort()
			return
		case n == 0:
			s.ended()
			return
		}
		c.l.d.counted(c.target, 1, n)
		b.held += n
		if !s.drain() {
			return
		}
		if n < bulkEnough {
			b.release(c.l)
			return
		}
	}
}

// drain moves what the pipe holds to the peer. It tells whether all of it went.
func (s *side) drain() bool {
	c, b := s.conn, &s.bulk
	for b.held > 0 {
		n, errno := spliceRaw(b.pipe.r, s.peer.fd, b.held)
		switch {
		case errno == unix.EAGAIN || errno == unix.EINTR:
			s.watch()
			s.peer.watch()
			return false
		case errno != 0:
			c.abort()
			return false
		}
		b.held -= n
	}
	return true
}

func spliceRaw(from, to, max int) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(max), unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
	return int(n), errno
}
