// Package nfnetlink speaks netlink with the kernel's netfilter: nf_tables
// transactions, listings, single requests.
//
// The few messages that are needed are built into reused buffers: a change of
// one endpoint is some 200 bytes, and allocating nothing for it is simpler than
// a general encoder.
package nfnetlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Native is the byte order of netlink headers and of marks in registers.
var Native = binary.NativeEndian

// Batch is one nf_tables transaction: all of it is applied or nothing.
type Batch struct {
	Buf    []byte // the messages so far
	family byte
	seq    uint32
	msg    int // offset of the message being built
	last   int // offset of the last message inside the transaction
}

const (
	headerLen = unix.SizeofNlMsghdr + 4 // struct nlmsghdr, struct nfgenmsg
	// Nested marks the type of an attribute that holds attributes.
	Nested = unix.NLA_F_NESTED
)

// Reset begins a new transaction in the same buffer.
func (b *Batch) Reset(family byte, c *Conn) {
	b.Buf, b.family, b.seq, b.last = b.Buf[:0], family, c.seq, 0
	b.control(unix.NFNL_MSG_BATCH_BEGIN)
}

func (b *Batch) control(typ uint16) {
	b.header(typ, unix.NLM_F_REQUEST, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	b.End()
}

func (b *Batch) header(typ, flags uint16, family byte, resource uint16) {
	b.msg = len(b.Buf)
	b.Buf = append(b.Buf, make([]byte, headerLen)...)
	h := b.Buf[b.msg:]
	Native.PutUint16(h[4:], typ)
	Native.PutUint16(h[6:], flags)
	Native.PutUint32(h[8:], b.seq)
	b.seq++
	h[16] = family
	binary.BigEndian.PutUint16(h[18:], resource)
}

// Start begins a message; typ is subsystem<<8 | message. What is appended to Buf
// until End is part of it.
func (b *Batch) Start(typ, flags uint16) {
	b.header(typ, unix.NLM_F_REQUEST|flags, b.family, 0)
	b.last = b.msg
}

// End completes the message.
func (b *Batch) End() { Native.PutUint32(b.Buf[b.msg:], uint32(len(b.Buf)-b.msg)) }

// Attr appends an attribute.
func (b *Batch) Attr(typ uint16, v []byte) { b.Buf = AppendAttr(b.Buf, typ, v) }

// String appends an attribute that holds a C string.
func (b *Batch) String(typ uint16, s string) { b.Buf = AppendString(b.Buf, typ, s) }

// Uint32 appends an attribute that holds a number in network order.
func (b *Batch) Uint32(typ uint16, v uint32) { b.Buf = AppendUint32(b.Buf, typ, v) }

// Nest begins an attribute that holds attributes; EndNest, given what it
// returned, completes it.
func (b *Batch) Nest(typ uint16) int { b.Buf = AppendNest(b.Buf, typ); return len(b.Buf) - 4 }

// EndNest completes a nest.
func (b *Batch) EndNest(at int) { EndNest(b.Buf, at) }

// AppendAttr appends an attribute, padded.
func AppendAttr(b []byte, typ uint16, v []byte) []byte {
	b = Native.AppendUint16(b, uint16(4+len(v)))
	b = Native.AppendUint16(b, typ)
	b = append(b, v...)
	return pad(b, len(v))
}

// AppendString appends an attribute that holds a C string.
func AppendString(b []byte, typ uint16, s string) []byte {
	b = Native.AppendUint16(b, uint16(4+len(s)+1))
	b = Native.AppendUint16(b, typ)
	b = append(b, s...)
	b = append(b, 0)
	return pad(b, len(s)+1)
}

// AppendUint32 appends an attribute that holds a number in network order.
func AppendUint32(b []byte, typ uint16, v uint32) []byte {
	b = Native.AppendUint16(b, 8)
	b = Native.AppendUint16(b, typ)
	return binary.BigEndian.AppendUint32(b, v)
}

// AppendNest appends the head of an attribute that holds attributes; EndNest,
// given the offset of that head, completes it.
func AppendNest(b []byte, typ uint16) []byte {
	b = Native.AppendUint16(b, 4)
	return Native.AppendUint16(b, typ|Nested)
}

// EndNest completes the nest whose head is at an offset of b.
func EndNest(b []byte, at int) { Native.PutUint16(b[at:], uint16(len(b)-at)) }

func pad(b []byte, n int) []byte {
	for ; n%4 != 0; n++ {
		b = append(b, 0)
	}
	return b
}

// Attributes calls yield for each attribute of b.
func Attributes(b []byte, yield func(typ uint16, v []byte)) {
	for len(b) >= 4 {
		n := int(Native.Uint16(b))
		if n < 4 || n > len(b) {
			return
		}
		yield(Native.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[4:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

// Conn is a netlink socket in the network namespace it was opened in. It is
// used by one goroutine at a time.
type Conn struct {
	fd int
	// Port is our netlink port id: changes that carry another are not ours.
	Port uint32
	seq  uint32
	// MaxBatch is how many bytes one transaction may have.
	MaxBatch int
	recv     []byte
	wake     int // eventfd that ends Receive
}

// What one transaction may be at most: the kernel holds its nf_tables lock for
// as long as it lasts, some 20 ms for this much.
const maxTransaction = 512 << 10

// How long the kernel may take to answer before the state is taken for
// unknown.
const answerTimeout = 30 * time.Second

// Dial opens a socket.
func Dial() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket to netfilter: %w", err)
	}
	c := &Conn{fd: fd, recv: make([]byte, 64<<10)}
	if err := c.setUp(); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set up the netlink socket to netfilter: %w", err)
	}
	return c, nil
}

func (c *Conn) setUp() error {
	if err := unix.Bind(c.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	sa, err := unix.Getsockname(c.fd)
	if err != nil {
		return err
	}
	c.Port = sa.(*unix.SockaddrNetlink).Pid
	tv := unix.NsecToTimeval(int64(answerTimeout))
	if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return err
	}
	// A transaction is one datagram. In a user namespace the limit cannot be
	// lifted: transactions are smaller there.
	if unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 2*maxTransaction) != nil {
		_ = unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 2*maxTransaction)
	}
	// An answer to each message that fails must fit.
	if unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) != nil {
		_ = unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	}
	_ = unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	n, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil {
		return err
	}
	c.MaxBatch = min(n-4096, maxTransaction)
	return nil
}

// Close closes the socket.
func (c *Conn) Close() error { return unix.Close(c.fd) }

// Listen makes the socket receive the notices of a multicast group, without
// those that the filter drops, and wait for them without limit.
func (c *Conn) Listen(group int, filter []unix.SockFilter) error {
	if len(filter) > 0 {
		if err := c.Filter(filter); err != nil {
			return err
		}
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make an eventfd: %w", err)
	}
	c.wake = wake
	return unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group)
}

// Filter makes the socket receive only what the filter passes, from now on. It
// may be called while another goroutine is in Receive.
func (c *Conn) Filter(filter []unix.SockFilter) error {
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.SetsockoptSockFprog(c.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program); err != nil {
		return fmt.Errorf("attach a filter to the netlink socket: %w", err)
	}
	return nil
}

// Receive waits for one datagram of notices and calls f for each message in it.
// The error is ErrUnknown if notices were lost and ErrClosed after Shutdown.
func (c *Conn) Receive(f func(typ uint16, seq uint32, payload []byte) error) error {
	for {
		fds := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}, {Fd: int32(c.wake), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for netfilter: %w", err)
		}
		if fds[1].Revents != 0 {
			return errors.Join(ErrClosed, unix.Close(c.wake), c.Close())
		}
		n, _, err := unix.Recvfrom(c.fd, c.recv, unix.MSG_DONTWAIT)
		switch {
		case err == unix.EINTR, err == unix.EAGAIN:
			continue
		case err == unix.ENOBUFS:
			return ErrUnknown
		case err != nil:
			return fmt.Errorf("receive from netfilter: %w", err)
		}
		return messages(c.recv[:n], f)
	}
}

// Shutdown ends Receive, which then closes the socket. It may be called while
// another goroutine is in Receive, and once.
func (c *Conn) Shutdown() {
	_, _ = unix.Write(c.wake, Native.AppendUint64(nil, 1))
}

// ErrClosed is what Receive returns after Shutdown.
var ErrClosed = errors.New("closed")

// Error is a refusal by the kernel, with its own words if it said any.
type Error struct {
	Errno unix.Errno
	Text  string
}

func (e *Error) Error() string {
	if e.Text != "" {
		return e.Errno.Error() + ": " + e.Text
	}
	return e.Errno.Error()
}

// Unwrap returns the errno.
func (e *Error) Unwrap() error { return e.Errno }

// ErrUnknown: the kernel's answer was lost, so what it holds is not known.
var ErrUnknown = errors.New("the kernel's answer was lost")

// Commit sends the transaction and waits for the kernel's word on it.
func (c *Conn) Commit(b *Batch) error {
	if b.last == 0 {
		return nil // nothing in it
	}
	first := Native.Uint32(b.Buf[8:])
	lastSeq := Native.Uint32(b.Buf[b.last+8:])
	// The acknowledgement of the last message is sent after the commit.
	Native.PutUint16(b.Buf[b.last+6:], Native.Uint16(b.Buf[b.last+6:])|unix.NLM_F_ACK)
	b.control(unix.NFNL_MSG_BATCH_END)
	c.seq = b.seq
	if err := c.send(b.Buf); err != nil {
		return err
	}
	var failed error
	for {
		done := false
		err := c.receive(func(typ uint16, seq uint32, payload []byte) error {
			if typ != unix.NLMSG_ERROR || seq-first > lastSeq-first {
				return nil // an answer to an earlier transaction
			}
			if err := parseError(payload); err != nil && failed == nil {
				failed = err
			}
			// An error for the first message is about the transaction as a
			// whole: no privilege, or the commit failed.
			done = done || seq == lastSeq || seq == first
			return nil
		})
		if err != nil {
			return err
		}
		if done {
			return failed
		}
	}
}

// Request sends one message that is no transaction and waits for the kernel's
// word on it.
func (c *Conn) Request(family byte, typ, flags uint16, attrs []byte) error {
	b := Batch{family: family, seq: c.seq}
	b.Start(typ, flags|unix.NLM_F_ACK)
	b.Buf = append(b.Buf, attrs...)
	b.End()
	seq := c.seq
	c.seq = b.seq
	if err := c.send(b.Buf); err != nil {
		return err
	}
	for {
		done := false
		var failed error
		err := c.receive(func(typ uint16, s uint32, payload []byte) error {
			if typ == unix.NLMSG_ERROR && s == seq {
				done, failed = true, parseError(payload)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if done {
			return failed
		}
	}
}

func (c *Conn) send(b []byte) error {
	for {
		err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		switch err {
		case nil:
			return nil
		case unix.EINTR:
		default:
			return fmt.Errorf("send to netfilter: %w", err)
		}
	}
}

// receive reads one datagram and calls f for each message of it.
func (c *Conn) receive(f func(typ uint16, seq uint32, payload []byte) error) error {
	n, _, err := unix.Recvfrom(c.fd, c.recv, 0)
	switch {
	case err == unix.EINTR:
		return nil
	case err == unix.ENOBUFS, err == unix.EAGAIN:
		return ErrUnknown
	case err != nil:
		return fmt.Errorf("receive from netfilter: %w", err)
	}
	return messages(c.recv[:n], f)
}

func messages(b []byte, f func(typ uint16, seq uint32, payload []byte) error) error {
	for len(b) >= unix.SizeofNlMsghdr {
		n := int(Native.Uint32(b))
		if n < unix.SizeofNlMsghdr || n > len(b) {
			return errors.New("receive from netfilter: malformed message")
		}
		if err := f(Native.Uint16(b[4:]), Native.Uint32(b[8:]), b[unix.SizeofNlMsghdr:n]); err != nil {
			return err
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return nil
}

func parseError(p []byte) error {
	if len(p) < 4 {
		return errors.New("receive from netfilter: malformed error")
	}
	code := int32(Native.Uint32(p))
	if code == 0 {
		return nil
	}
	e := &Error{Errno: unix.Errno(-code)}
	// The header of the message in question follows (only that: CAP_ACK), then
	// Attributes of the extended acknowledgement.
	if len(p) > 4+unix.SizeofNlMsghdr {
		Attributes(p[4+unix.SizeofNlMsghdr:], func(typ uint16, v []byte) {
			if typ == unix.NLMSGERR_ATTR_MSG && len(v) > 0 {
				e.Text = string(v[:len(v)-1])
			}
		})
	}
	return e
}

// Dump asks for a listing and calls f with the Attributes of each object. A
// listing that a change ran into is repeated; reset makes f forget.
func (c *Conn) Dump(family byte, typ uint16, attrs []byte, reset func(), f func(attrs []byte)) error {
	for try := 0; ; try++ {
		interrupted, err := c.dumpOnce(family, typ, attrs, f)
		if err != nil || !interrupted {
			return err
		}
		if try == 20 {
			return errors.New("list what the kernel holds: it changes all the time")
		}
		reset()
		runtime.Gosched()
	}
}

func (c *Conn) dumpOnce(family byte, typ uint16, attrs []byte, f func([]byte)) (interrupted bool, err error) {
	seq := c.seq
	b := Batch{family: family, seq: seq}
	b.Start(typ, unix.NLM_F_DUMP)
	b.Buf = append(b.Buf, attrs...)
	b.End()
	c.seq = b.seq
	if err := c.send(b.Buf); err != nil {
		return false, err
	}
	for done := false; !done; {
		n, _, err := unix.Recvfrom(c.fd, c.recv, 0)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return false, fmt.Errorf("receive from netfilter: %w", err)
		}
		for rest := c.recv[:n]; len(rest) >= unix.SizeofNlMsghdr; {
			n := int(Native.Uint32(rest))
			if n < unix.SizeofNlMsghdr || n > len(rest) {
				return false, errors.New("receive from netfilter: malformed message")
			}
			m := rest[:n]
			rest = rest[min((n+3)&^3, len(rest)):]
			if Native.Uint32(m[8:]) != seq {
				continue
			}
			if Native.Uint16(m[6:])&unix.NLM_F_DUMP_INTR != 0 {
				interrupted = true
			}
			switch Native.Uint16(m[4:]) {
			case unix.NLMSG_DONE:
				done = true
			case unix.NLMSG_ERROR:
				err := parseError(m[unix.SizeofNlMsghdr:])
				if errors.Is(err, unix.EINTR) {
					return true, nil
				}
				return false, err
			default:
				if len(m) >= headerLen {
					f(m[headerLen:])
				}
			}
		}
	}
	return interrupted, nil
}
