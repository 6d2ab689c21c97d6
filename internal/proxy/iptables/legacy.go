package iptables

import (
	"fmt"
	"maps"
	"unsafe"

	"golang.org/x/sys/unix"
)

// legacy asks the kernel about the tables of the legacy back end.
type legacy struct {
	fd int
	v6 bool
}

// summary is what the kernel tells of a table without listing it
// (struct ipt_getinfo of linux/netfilter_ipv4/ip_tables.h).
type summary struct {
	name       [32]byte
	validHooks uint32
	hookEntry  [5]uint32
	underflow  [5]uint32
	entries    uint32
	size       uint32
}

func openLegacy(v6 bool) (*legacy, error) {
	domain := unix.AF_INET
	if v6 {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, fmt.Errorf("open a raw socket: %w", err)
	}
	return &legacy{fd, v6}, nil
}

// look returns what the tables are; nil for the nft back end.
func (w *watch) look() map[string]summary {
	if w.legacy == nil {
		return nil
	}
	now := make(map[string]summary)
	for _, t := range w.family.tables() {
		now[t] = w.legacy.table(t)
	}
	return now
}

// table returns what a table is. One that does not exist has no entries.
func (l *legacy) table(name string) (s summary) {
	level, getInfo := unix.SOL_IP, 64 // IPT_SO_GET_INFO
	if l.v6 {
		level = unix.SOL_IPV6
	}
	copy(s.name[:], name)
	size := uint32(unsafe.Sizeof(s))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(l.fd), uintptr(level), uintptr(getInfo), uintptr(unsafe.Pointer(&s)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return summary{}
	}
	return s
}

func (l *legacy) close() { _ = unix.Close(l.fd) }

// differs tells whether a table is not as we left it.
func (w *watch) differs() bool { return !maps.Equal(w.left, w.look()) }
