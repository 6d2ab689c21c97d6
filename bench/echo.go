package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The bare echo is the limit for any DNS server on the machine: it receives a
// datagram, sets the QR bit and sends it back, in batches, on one socket per
// CPU. Nothing is looked at and nothing looked up.
//
// The upstream that the servers forward to is the same with an answer: one A
// record for every question, so that it is never what limits them.

const (
	echoBatch  = 64   // datagrams per system call
	echoBuffer = 4096 // bytes; dnsperf's EDNS size
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// reply turns a query of n bytes, in a buffer with room behind it, into its
// reply and returns the reply's length.
type reply func(b []byte, n int) int

func replyEcho(b []byte, n int) int {
	b[2] |= 0x80 // QR
	return n
}

// replyA answers 192.0.2.1 with a TTL of 300 s. Whatever followed the question
// goes.
func replyA(b []byte, n int) int {
	end := 12
	for end < n && b[end] != 0 {
		end += int(b[end]) + 1
	}
	end += 5 // the root, type and class
	if end > n {
		return 0
	}
	b[2], b[3] = 0x80|b[2]&0x79, 0x80 // QR, opcode and RD as asked; RA
	copy(b[4:], []byte{0, 1, 0, 1, 0, 0, 0, 0})
	return end + copy(b[end:], []byte{0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 44, 0, 4, 192, 0, 2, 1})
}

// echo answers on addr until the process ends.
func echo(addr string, f reply) error {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) {
			err = errors.Join(
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20))
		}), err)
	}}
	failed := make(chan error)
	for range runtime.GOMAXPROCS(0) {
		pc, err := lc.ListenPacket(context.Background(), "udp4", addr)
		if err != nil {
			return fmt.Errorf("echo: %w", err)
		}
		conn, err := pc.(*net.UDPConn).SyscallConn()
		if err != nil {
			return fmt.Errorf("echo: %w", err)
		}
		go func() { failed <- echoSocket(conn, f) }()
	}
	return <-failed
}

// echoSocket serves one socket. Go's poller parks it when nothing is there.
func echoSocket(conn syscall.RawConn, f reply) error {
	var (
		msgs    [echoBatch]mmsghdr
		vectors [echoBatch]unix.Iovec
		names   [echoBatch]unix.RawSockaddrInet4
		buffers [echoBatch][echoBuffer]byte
	)
	for i := range msgs {
		vectors[i].Base = &buffers[i][0]
		msgs[i].hdr.Iov, msgs[i].hdr.Iovlen = &vectors[i], 1
		msgs[i].hdr.Name = (*byte)(unsafe.Pointer(&names[i]))
	}
	var received, sent int
	receive := func(fd uintptr) bool {
		for i := range msgs {
			vectors[i].Len = echoBuffer - 64 // room for an answer
			msgs[i].hdr.Namelen = unix.SizeofSockaddrInet4
		}
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&msgs)), echoBatch, unix.MSG_DONTWAIT, 0, 0)
		if errno != 0 {
			n = 0
		}
		received = int(n)
		return errno != unix.EAGAIN
	}
	send := func(fd uintptr) bool {
		for sent < received {
			n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&msgs[sent])), uintptr(received-sent), unix.MSG_DONTWAIT, 0, 0)
			switch errno {
			case 0:
				sent += int(n)
			case unix.EAGAIN:
				return false
			default:
				sent++ // this one cannot be sent
			}
		}
		return true
	}
	for {
		if err := conn.Read(receive); err != nil {
			return fmt.Errorf("echo: %w", err)
		}
		for i := range received {
			vectors[i].Len = uint64(f(buffers[i][:], int(msgs[i].n)))
		}
		sent = 0
		if err := conn.Write(send); err != nil {
			return fmt.Errorf("echo: %w", err)
		}
	}
}
