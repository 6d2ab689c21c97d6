package ipvs

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/proxy/nfnetlink"
)

// conn is a netlink socket of one protocol, in the network namespace it was
// opened in. Unlike an nf_tables transaction, a batch here is many requests,
// each of which succeeds or fails for itself.
type conn struct {
	fd   int
	seq  uint32
	recv []byte
}

// How long the kernel may take to answer.
const answerTimeout = 30 * time.Second

// What is sent at once. Each request that fails is answered, in a buffer of
// some 800 bytes: the receive buffer must have room if all do.
const (
	maxDatagram = 32 << 10
	recvBuffer  = 4 << 20
)

func dial(protocol int) (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	c := &conn{fd: fd, seq: 1, recv: make([]byte, 64<<10)}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind a netlink socket: %w", err)
	}
	tv := unix.NsecToTimeval(int64(answerTimeout))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set up a netlink socket: %w", err)
	}
	for _, o := range []struct{ force, plain, size int }{
		{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, recvBuffer}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, 4 * maxDatagram},
	} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o.force, o.size) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, o.plain, o.size)
		}
	}
	// Answers repeat only the header of what they answer.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	return c, nil
}

func (c *conn) close() error { return unix.Close(c.fd) }

// batch is requests to be sent together. Each is begun, its payload appended
// to buf, and ended; ends says where each ends.
type batch struct {
	buf  []byte
	ends []int
}

func (b *batch) reset() { b.buf, b.ends = b.buf[:0], b.ends[:0] }

// begin begins a request; payload that every request of the protocol begins
// with follows.
func (b *batch) begin(typ, flags uint16) {
	at := len(b.buf)
	b.buf = append(b.buf, make([]byte, unix.SizeofNlMsghdr)...)
	nfnetlink.Native.PutUint16(b.buf[at+4:], typ)
	nfnetlink.Native.PutUint16(b.buf[at+6:], unix.NLM_F_REQUEST|flags)
}

func (b *batch) end() {
	at := b.start(len(b.ends))
	nfnetlink.Native.PutUint32(b.buf[at:], uint32(len(b.buf)-at))
	b.ends = append(b.ends, len(b.buf))
}

func (b *batch) start(i int) int {
	if i == 0 {
		return 0
	}
	return b.ends[i-1]
}

// do carries out the requests, in order. failed is called for each that the
// kernel refuses, with its place in the batch. The error is that the answers
// were lost.
func (c *conn) do(b *batch, failed func(i int, err unix.Errno)) error {
	for first := 0; first < len(b.ends); {
		last := first
		for last+1 < len(b.ends) && b.ends[last+1]-b.start(first) <= maxDatagram {
			last++
		}
		if err := c.exchange(b, first, last, failed); err != nil {
			return err
		}
		first = last + 1
	}
	return nil
}

func (c *conn) exchange(b *batch, first, last int, failed func(int, unix.Errno)) error {
	base := c.seq
	for i := first; i <= last; i++ {
		h := b.buf[b.start(i):]
		nfnetlink.Native.PutUint32(h[8:], c.seq)
		c.seq++
		if i == last { // its answer comes after those of the others
			nfnetlink.Native.PutUint16(h[6:], nfnetlink.Native.Uint16(h[6:])|unix.NLM_F_ACK)
		}
	}
	if err := c.send(b.buf[b.start(first):b.ends[last]]); err != nil {
		return err
	}
	for {
		done := false
		err := c.receive(func(typ, _ uint16, seq uint32, p []byte) {
			i := int(seq - base)
			if typ != unix.NLMSG_ERROR || i < 0 || i > last-first || len(p) < 4 {
				return
			}
			if code := int32(nfnetlink.Native.Uint32(p)); code != 0 {
				failed(first+i, unix.Errno(-code))
			}
			done = done || i == last-first
		})
		if err != nil || done {
			return err
		}
	}
}

// one carries out a single request.
func (c *conn) one(b *batch) error {
	var refused error
	err := c.do(b, func(_ int, err unix.Errno) { refused = err })
	if err != nil {
		return err
	}
	return refused
}

// dump sends the only request of a batch, which asks for a listing, and calls f
// with the payload of each part. A listing that a change ran into is repeated,
// after reset.
func (c *conn) dump(b *batch, reset func(), f func(p []byte)) error {
	h := b.buf
	nfnetlink.Native.PutUint16(h[6:], nfnetlink.Native.Uint16(h[6:])|unix.NLM_F_DUMP)
	for range 20 {
		nfnetlink.Native.PutUint32(h[8:], c.seq)
		seq := c.seq
		c.seq++
		if err := c.send(h); err != nil {
			return err
		}
		done, interrupted := false, false
		var refused error
		for !done {
			err := c.receive(func(typ, flags uint16, s uint32, p []byte) {
				if s != seq {
					return
				}
				interrupted = interrupted || flags&unix.NLM_F_DUMP_INTR != 0
				switch typ {
				case unix.NLMSG_DONE:
					done = true
				case unix.NLMSG_ERROR:
					done = true
					if len(p) >= 4 {
						if code := int32(nfnetlink.Native.Uint32(p)); code != 0 {
							refused = unix.Errno(-code)
						}
					}
				default:
					f(p)
				}
			})
			if err != nil {
				return err
			}
		}
		if refused != nil || !interrupted {
			return refused
		}
		reset()
	}
	return errors.New("list what the kernel holds: it changes all the time")
}

func (c *conn) send(b []byte) error {
	for {
		switch err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err {
		case nil:
			return nil
		case unix.EINTR:
		default:
			return fmt.Errorf("send to the kernel: %w", err)
		}
	}
}

// receive reads one datagram and calls f for each message of it.
func (c *conn) receive(f func(typ, flags uint16, seq uint32, p []byte)) error {
	n, _, err := unix.Recvfrom(c.fd, c.recv, 0)
	switch {
	case err == unix.EINTR:
		return nil
	case err != nil:
		return fmt.Errorf("the kernel's answer was lost: %w", err)
	}
	for b := c.recv[:n]; len(b) >= unix.SizeofNlMsghdr; {
		n := int(nfnetlink.Native.Uint32(b))
		if n < unix.SizeofNlMsghdr || n > len(b) {
			return errors.New("receive from the kernel: malformed message")
		}
		f(nfnetlink.Native.Uint16(b[4:]), nfnetlink.Native.Uint16(b[6:]), nfnetlink.Native.Uint32(b[8:]), b[unix.SizeofNlMsghdr:n])
		b = b[min((n+3)&^3, len(b)):]
	}
	return nil
}
