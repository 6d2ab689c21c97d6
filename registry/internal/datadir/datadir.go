// Package datadir is the registry's directory on disk: where things are in
// it, and the lock that keeps a second registry out.
package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Dir is an opened, locked data directory. The lock ends with the process,
// however it ends: it is the kernel's (flock), not the file's existence.
type Dir struct {
	path string
	lock *os.File
}

// maxSocket is the longest path of a unix socket: sun_path has 108 bytes, one
// of them the terminator (unix(7)).
const maxSocket = 107

// Open makes the directory if need be and locks it.
func Open(path string) (*Dir, error) {
	d := &Dir{path: path}
	if n := len(d.EtcdSocket()); n > maxSocket {
		return nil, fmt.Errorf("--data-dir %s is too long: the socket path %s would have %d characters, at most %d are possible; choose a shorter one", path, d.EtcdSocket(), n, maxSocket)
	}
	if st, err := os.Stat(path); err == nil && !st.IsDir() {
		return nil, fmt.Errorf("--data-dir %s is not a directory; give a directory", path)
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the data directory %s: %w; make it writable for this user or give another --data-dir", path, cause(err))
	}
	f, err := os.OpenFile(filepath.Join(path, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot write in the data directory %s: %w; make it writable for this user or give another --data-dir", path, cause(err))
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("the data directory %s is in use by another rutter-registry%s; stop that one or give another --data-dir", path, owner(f))
		}
		return nil, fmt.Errorf("cannot lock %s: %w; the data directory must be on a local file system", f.Name(), err)
	}
	if err := f.Truncate(0); err == nil {
		fmt.Fprintf(f, "%d\n", os.Getpid()) // for the message above only
	}
	d.lock = f
	return d, nil
}

// Close releases the lock.
func (d *Dir) Close() error { return d.lock.Close() }

// Path is the directory itself.
func (d *Dir) Path() string { return d.path }

// Etcd is etcd's data directory.
func (d *Dir) Etcd() string { return filepath.Join(d.path, "etcd") }

// EtcdSocket is where the embedded etcd listens. It has no authentication of
// its own; the directory's mode protects it.
func (d *Dir) EtcdSocket() string { return filepath.Join(d.path, "etcd.sock") }

// PKI holds certificates and keys.
func (d *Dir) PKI() string { return filepath.Join(d.path, "pki") }

// AuthenticationConfig is the API server's authentication configuration file.
func (d *Dir) AuthenticationConfig() string { return filepath.Join(d.path, "authentication.yaml") }

// AdminKubeconfig is the file for the administrator.
func (d *Dir) AdminKubeconfig() string { return filepath.Join(d.path, "admin.kubeconfig") }

// AgentKubeconfig is the file for agents.
func (d *Dir) AgentKubeconfig() string { return filepath.Join(d.path, "agent.kubeconfig") }

func owner(f *os.File) string {
	b := make([]byte, 16)
	n, _ := f.ReadAt(b, 0)
	if pid := strings.TrimSpace(string(b[:n])); pid != "" {
		return " (process " + pid + ")"
	}
	return ""
}

// cause drops the path that os errors repeat.
func cause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
