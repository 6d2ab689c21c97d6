package proxy

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// Lock locks this network namespace among Rutter's agents and proxies: their
// tables, routes and addresses have the same names, so two would undo each
// other's. It is held until the file is closed, or its process ends. The file
// is the namespace's own, so neither a directory nor a right is needed.
func Lock() (*os.File, error) {
	f, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("lock the network namespace: %w; is /proc mounted?", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, errors.New("another agent runs on this host, in the same network namespace (pgrep -af 'rutter (agent|proxy)' shows it): stop it first")
	}
	return f, nil
}
