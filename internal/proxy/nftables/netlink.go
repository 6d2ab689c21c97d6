package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// The few netlink messages that are needed are built here, into one reused
// buffer: a change of one endpoint is some 200 bytes, and allocating nothing
// for it is simpler than a general encoder.

var native = binary.NativeEndian

// batch is one nf_tables transaction: all of it is applied or nothing.
type batch struct {
	b      []byte
	family byte
	seq    uint32
	msg    int // offset of the message being built
	last   int // offset of the last message inside the transaction
}

const (
	headerLen = unix.SizeofNlMsghdr + 4 // struct nlmsghdr, struct nfgenmsg
	nested    = unix.NLA_F_NESTED
)

func (b *batch) reset(family byte, seq uint32) {
	b.b, b.family, b.seq, b.last = b.b[:0], family, seq, 0
	b.control(unix.NFNL_MSG_BATCH_BEGIN)
}

func (b *batch) control(typ uint16) {
	b.header(typ, unix.NLM_F_REQUEST, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	b.end()
}

func (b *batch) header(typ, flags uint16, family byte, resource uint16) {
	b.msg = len(b.b)
	b.b = append(b.b, make([]byte, headerLen)...)
	h := b.b[b.msg:]
	native.PutUint16(h[4:], typ)
	native.PutUint16(h[6:], flags)
	native.PutUint32(h[8:], b.seq)
	b.seq++
	h[16] = family
	binary.BigEndian.PutUint16(h[18:], resource)
}

// start begins a message of the nf_tables subsystem.
func (b *batch) start(typ, flags uint16) {
	b.header(unix.NFNL_SUBSYS_NFTABLES<<8|typ, unix.NLM_F_REQUEST|flags, b.family, 0)
	b.last = b.msg
}

func (b *batch) end() { native.PutUint32(b.b[b.msg:], uint32(len(b.b)-b.msg)) }

func (b *batch) bytes(typ uint16, v []byte) { b.b = appendAttr(b.b, typ, v) }

func (b *batch) str(typ uint16, s string) { b.b = appendString(b.b, typ, s) }

func (b *batch) u32(typ uint16, v uint32) { b.b = appendUint32(b.b, typ, v) }

func (b *batch) nest(typ uint16) int { b.b = appendNest(b.b, typ); return len(b.b) - 4 }

func (b *batch) endNest(at int) { endNest(b.b, at) }

func appendAttr(b []byte, typ uint16, v []byte) []byte {
	b = native.AppendUint16(b, uint16(4+len(v)))
	b = native.AppendUint16(b, typ)
	b = append(b, v...)
	return pad(b, len(v))
}

func appendString(b []byte, typ uint16, s string) []byte {
	b = native.AppendUint16(b, uint16(4+len(s)+1))
	b = native.AppendUint16(b, typ)
	b = append(b, s...)
	b = append(b, 0)
	return pad(b, len(s)+1)
}

func appendUint32(b []byte, typ uint16, v uint32) []byte {
	b = native.AppendUint16(b, 8)
	b = native.AppendUint16(b, typ)
	return binary.BigEndian.AppendUint32(b, v)
}

func appendNest(b []byte, typ uint16) []byte {
	b = native.AppendUint16(b, 4)
	return native.AppendUint16(b, typ|nested)
}

func endNest(b []byte, at int) { native.PutUint16(b[at:], uint16(len(b)-at)) }

func pad(b []byte, n int) []byte {
	for ; n%4 != 0; n++ {
		b = append(b, 0)
	}
	return b
}

// attributes calls yield for each attribute of b.
func attributes(b []byte, yield func(typ uint16, v []byte)) {
	for len(b) >= 4 {
		n := int(native.Uint16(b))
		if n < 4 || n > len(b) {
			return
		}
		yield(native.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[4:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

// conn is a netlink socket in the network namespace it was opened in. It is
// used by one goroutine at a time.
type conn struct {
	fd      int
	port    uint32 // our netlink port id: changes that carry another are not ours
	seq     uint32
	maxSend int // bytes that one transaction may have
	recv    []byte
}

// What one transaction may be at most: the kernel holds its nf_tables lock for
// as long as it lasts, some 20 ms for this much.
const maxTransaction = 1 << 20

// How long the kernel may take to answer before the state is taken for
// unknown.
const answerTimeout = 30 * time.Second

func dial() (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket to netfilter: %w", err)
	}
	c := &conn{fd: fd, recv: make([]byte, 64<<10)}
	if err := c.setUp(); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set up the netlink socket to netfilter: %w", err)
	}
	return c, nil
}

func (c *conn) setUp() error {
	if err := unix.Bind(c.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	sa, err := unix.Getsockname(c.fd)
	if err != nil {
		return err
	}
	c.port = sa.(*unix.SockaddrNetlink).Pid
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
	c.maxSend = min(n-4096, maxTransaction)
	return nil
}

func (c *conn) close() error { return unix.Close(c.fd) }

// kernelError is a refusal by the kernel, with its own words if it said any.
type kernelError struct {
	errno unix.Errno
	text  string
}

func (e *kernelError) Error() string {
	if e.text != "" {
		return e.errno.Error() + ": " + e.text
	}
	return e.errno.Error()
}

func (e *kernelError) Unwrap() error { return e.errno }

// errUnknown: the kernel's answer was lost, so what it holds is not known.
var errUnknown = errors.New("the kernel's answer was lost")

// commit sends the transaction and waits for the kernel's word on it.
func (c *conn) commit(b *batch) error {
	if b.last == 0 {
		return nil // nothing in it
	}
	first := native.Uint32(b.b[8:])
	lastSeq := native.Uint32(b.b[b.last+8:])
	// The acknowledgement of the last message is sent after the commit.
	native.PutUint16(b.b[b.last+6:], native.Uint16(b.b[b.last+6:])|unix.NLM_F_ACK)
	b.control(unix.NFNL_MSG_BATCH_END)
	c.seq = b.seq
	if err := c.send(b.b); err != nil {
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

func (c *conn) send(b []byte) error {
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
func (c *conn) receive(f func(typ uint16, seq uint32, payload []byte) error) error {
	n, _, err := unix.Recvfrom(c.fd, c.recv, 0)
	switch {
	case err == unix.EINTR:
		return nil
	case err == unix.ENOBUFS, err == unix.EAGAIN:
		return errUnknown
	case err != nil:
		return fmt.Errorf("receive from netfilter: %w", err)
	}
	return messages(c.recv[:n], f)
}

func messages(b []byte, f func(typ uint16, seq uint32, payload []byte) error) error {
	for len(b) >= unix.SizeofNlMsghdr {
		n := int(native.Uint32(b))
		if n < unix.SizeofNlMsghdr || n > len(b) {
			return errors.New("receive from netfilter: malformed message")
		}
		if err := f(native.Uint16(b[4:]), native.Uint32(b[8:]), b[unix.SizeofNlMsghdr:n]); err != nil {
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
	code := int32(native.Uint32(p))
	if code == 0 {
		return nil
	}
	e := &kernelError{errno: unix.Errno(-code)}
	// The header of the message in question follows (only that: CAP_ACK), then
	// attributes of the extended acknowledgement.
	if len(p) > 4+unix.SizeofNlMsghdr {
		attributes(p[4+unix.SizeofNlMsghdr:], func(typ uint16, v []byte) {
			if typ == unix.NLMSGERR_ATTR_MSG && len(v) > 0 {
				e.text = string(v[:len(v)-1])
			}
		})
	}
	return e
}

// dump asks for a listing and calls f with the attributes of each object. A
// listing that a change ran into is repeated; reset makes f forget.
func (c *conn) dump(family byte, typ uint16, attrs []byte, reset func(), f func(attrs []byte)) error {
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

func (c *conn) dumpOnce(family byte, typ uint16, attrs []byte, f func([]byte)) (interrupted bool, err error) {
	seq := c.seq
	b := batch{family: family, seq: seq}
	b.start(typ, unix.NLM_F_DUMP)
	b.b = append(b.b, attrs...)
	b.end()
	c.seq = b.seq
	if err := c.send(b.b); err != nil {
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
			n := int(native.Uint32(rest))
			if n < unix.SizeofNlMsghdr || n > len(rest) {
				return false, errors.New("receive from netfilter: malformed message")
			}
			m := rest[:n]
			rest = rest[min((n+3)&^3, len(rest)):]
			if native.Uint32(m[8:]) != seq {
				continue
			}
			if native.Uint16(m[6:])&unix.NLM_F_DUMP_INTR != 0 {
				interrupted = true
			}
			switch native.Uint16(m[4:]) {
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
