package proxy

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// lockPort is a UDP port that nobody else wants: tcpmux never had one.
const lockPort = 1

var errLocked = errors.New("another agent runs on this host, in the same network namespace (pgrep -af 'rutter (agent|proxy)' shows it): stop it first")

// Lock locks this network namespace among Rutter's agents and proxies: their
// tables, routes and addresses have the same names, so two would undo each
// other's. It is held until the file is closed, or its process ends.
//
// The lock is a privileged port on loopback. It belongs to the namespace, so
// containers that share the host's network need no directory in common, and an
// ordinary user cannot take it. Without CAP_NET_BIND_SERVICE the namespace's own
// file is locked instead, which everybody could.
func Lock() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return lockFile()
	}
	// The loopback interface may be down.
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_FREEBIND, 1); err != nil {
		unix.Close(fd)
		return lockFile()
	}
	err = unix.Bind(fd, &unix.SockaddrInet4{Port: lockPort, Addr: [4]byte{127, 0, 0, 1}})
	if err == nil {
		return os.NewFile(uintptr(fd), "network namespace lock"), nil
	}
	unix.Close(fd)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, errLocked
	case errors.Is(err, unix.EACCES):
		return lockFile()
	}
	return nil, fmt.Errorf("lock the network namespace: bind to UDP port %d of 127.0.0.1: %w", lockPort, err)
}

func lockFile() (*os.File, error) {
	f, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("lock the network namespace: %w; is /proc mounted?", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errLocked
	}
	return nil, fmt.Errorf("lock the network namespace: %w", err)
}
