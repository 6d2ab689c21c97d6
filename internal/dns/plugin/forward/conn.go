package forward

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// conn is a connection to an upstream that many queries share. A goroutine
// reads the replies and hands each to the query with its ID; it ends when the
// connection does.
type conn struct {
	net.Conn
	stream bool // TCP or TLS: messages have a length in front (RFC 1035 §4.2.2)
	born   time.Time

	write sync.Mutex // one message at a time on a stream

	mu      sync.Mutex
	waiting map[uint16]chan<- result
	retired bool  // takes no more queries; closed with its last one
	err     error // why it ended
	served  int   // queries so far
	idle    time.Time
}

type result struct {
	msg []byte
	err error
}

// errStale says that a connection which had served before ended without a
// reply: the upstream closes idle connections when it likes, so the query is
// worth another try at once.
var errStale = errors.New("connection was closed by the upstream")

func newConn(c net.Conn, stream bool, now time.Time) *conn {
	k := &conn{Conn: c, stream: stream, born: now, idle: now, waiting: make(map[uint16]chan<- result)}
	go k.read()
	return k
}

// add makes room for one query and returns its ID, or false when the
// connection is at its limit or takes no more.
func (k *conn) add(limit int, ch chan<- result) (id uint16, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.retired || k.err != nil || len(k.waiting) >= limit {
		return 0, false
	}
	// IDs are random, so that a forged reply has to be guessed (RFC 5452 §4.3).
	for {
		id = randomID()
		if _, taken := k.waiting[id]; !taken {
			break
		}
	}
	k.waiting[id] = ch
	k.served++
	return id, true
}

func randomID() uint16 {
	var b [2]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return binary.BigEndian.Uint16(b[:])
}

// exchange sends msg, whose ID must be the one that add returned with ch, and
// waits for its reply. The buffer has two bytes in front of the message for
// the length.
func (k *conn) exchange(ctx context.Context, buf []byte, id uint16, ch <-chan result, timeout time.Duration) ([]byte, error) {
	defer k.remove(id)
	binary.BigEndian.PutUint16(buf[2:], id)
	if err := k.send(buf, timeout); err != nil {
		return nil, err
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case r := <-ch:
		return r.msg, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-timer.C:
		// Nothing came: the path may be dead for this connection alone (a
		// vanished peer, a lost translation), so the next query takes another.
		k.retire()
		return nil, &net.OpError{Op: "read", Net: k.LocalAddr().Network(), Source: k.LocalAddr(), Addr: k.RemoteAddr(), Err: os.ErrDeadlineExceeded}
	}
}

func (k *conn) send(buf []byte, timeout time.Duration) error {
	if !k.stream {
		_, err := k.Write(buf[2:])
		return err
	}
	binary.BigEndian.PutUint16(buf, uint16(len(buf)-2))
	k.write.Lock()
	defer k.write.Unlock()
	if err := k.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return k.stale(err)
	}
	if _, err := k.Write(buf); err != nil {
		k.fail(err) // half a message may be out
		return k.stale(err)
	}
	return nil
}

// stale returns errStale instead of err if the connection has served before.
func (k *conn) stale(err error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.stream && k.served > 1 && !errors.Is(err, os.ErrDeadlineExceeded) {
		return errStale
	}
	return err
}

// remove ends the wait for a reply.
func (k *conn) remove(id uint16) {
	k.mu.Lock()
	delete(k.waiting, id)
	last := len(k.waiting) == 0
	if last {
		k.idle = time.Now()
	}
	done := last && k.retired
	k.mu.Unlock()
	if done {
		k.Close()
	}
}

// retire stops new queries from using the connection. Those that wait keep it.
func (k *conn) retire() {
	k.mu.Lock()
	k.retired = true
	done := len(k.waiting) == 0
	k.mu.Unlock()
	if done {
		k.Close()
	}
}

// fail ends the connection and every wait on it.
func (k *conn) fail(err error) {
	k.mu.Lock()
	if k.err == nil {
		k.err = err
	}
	waiting := k.waiting
	k.waiting = make(map[uint16]chan<- result)
	stale := k.stream && k.served > len(waiting)
	k.mu.Unlock()
	k.Close()
	if stale {
		err = errStale
	}
	for _, ch := range waiting {
		select {
		case ch <- result{err: err}:
		default:
		}
	}
}

// read delivers replies until the connection ends.
func (k *conn) read() {
	buf := make([]byte, 64<<10) // a datagram may be larger than what was asked for
	for {
		n, err := k.readMessage(buf)
		if err != nil {
			k.fail(err)
			return
		}
		if n < headerLen {
			continue
		}
		id := binary.BigEndian.Uint16(buf)
		k.mu.Lock()
		ch := k.waiting[id]
		k.mu.Unlock()
		if ch == nil {
			continue // late, repeated or forged
		}
		select {
		case ch <- result{msg: append([]byte(nil), buf[:n]...)}:
		default: // has its reply already
		}
	}
}

const headerLen = 12

func (k *conn) readMessage(buf []byte) (int, error) {
	if !k.stream {
		return k.Read(buf)
	}
	if _, err := io.ReadFull(k.Conn, buf[:2]); err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint16(buf))
	_, err := io.ReadFull(k.Conn, buf[:n])
	return n, err
}

// load is the number of queries that wait, and whether the connection can take
// more at all.
func (k *conn) load() (n int, usable bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.waiting), !k.retired && k.err == nil
}

// idleSince returns since when no query waits; ok is false when one does.
func (k *conn) idleSince() (t time.Time, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.idle, len(k.waiting) == 0
}
