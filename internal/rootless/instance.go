// Package rootless runs Rutter for an ordinary user: in user, network, mount
// and PID namespaces of its own where the system allows these, and finds a
// running instance again from other terminals.
//
//	rutter up ─▶ init, PID 1 of the namespaces (init.go) ─▶ rutter up ─▶ registry, agent, pods
//	rutter run, shell, … ─▶ nsenter into init's namespaces (enter.go)
package rootless

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Mode is how an ordinary user is served.
type Mode string

// The modes.
const (
	// Auto is Namespaces where the system allows it, else Userspace.
	Auto Mode = "auto"
	// Namespaces: everything as for root, in namespaces of its own.
	Namespaces Mode = "namespaces"
	// Userspace: nothing but sockets. Services are on addresses of 127.0.0.0/8,
	// pods are plain processes.
	Userspace Mode = "userspace"
)

// LoopbackServices is the range of service addresses in mode Userspace.
var LoopbackServices = []netip.Prefix{netip.MustParsePrefix("127.96.0.0/16")}

// Instance is a running system of this user.
type Instance struct {
	Mode Mode `json:"mode"`
	// PID is that of the first process in the namespaces, or of `rutter up`.
	PID int `json:"pid"`
	// RunDir is the run directory, as commands that need not enter see it.
	RunDir     string   `json:"runDir"`
	Kubeconfig string   `json:"kubeconfig"`
	ClusterDNS []string `json:"clusterDNS"`
	Domain     string   `json:"domain"`
}

// env tells a process where it is.
const (
	env       = "RUTTER_ROOTLESS"
	envInit   = "init"   // it is to set up the namespaces
	envInside = "inside" // it is in them
)

// Inside tells whether this process is in an instance's namespaces.
func Inside() bool { return os.Getenv(env) == envInside }

// StateDir is the directory of this user's instance, which only the user can
// look into. It is made if it does not exist.
func StateDir() (string, error) {
	base := os.Getenv("XDG_RUNTIME_DIR")
	if info, err := os.Stat(base); base == "" || err != nil || !info.IsDir() {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("rootless: neither XDG_RUNTIME_DIR nor HOME is set: set one of them to a directory of yours")
		}
		base = filepath.Join(home, ".local", "state")
	}
	dir := filepath.Join(base, "rutter")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("rootless: make the state directory: %w: set XDG_RUNTIME_DIR to a directory of yours", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return "", fmt.Errorf("rootless: %w", err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !info.IsDir() || ok && int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("rootless: %s must be a directory of your own that nobody else can enter: chmod 700 it, or set XDG_RUNTIME_DIR to another place", dir)
	}
	return dir, nil
}

// DataDir is where the data of a mode is kept between runs.
func DataDir(m Mode) (string, error) {
	base := os.Getenv("XDG_DATA_HOME")
	if base == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("rootless: neither XDG_DATA_HOME nor HOME is set: name a directory with --data-dir")
		}
		base = filepath.Join(home, ".local", "share")
	}
	return filepath.Join(base, "rutter", string(m)), nil
}

const (
	lockFile     = "lock"
	instanceFile = "instance.json"
	runDir       = "run"
)

// lock sees to it that a user has one instance at a time. The lock is held by
// every process of the instance, so that it is free when the last has ended.
func lock(state string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(state, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("rootless: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		i, _ := read(state)
		return nil, fmt.Errorf("rootless: another `rutter up --rootless` of yours is running (process %d): a user has one; stop it first", i.PID)
	}
	return f, nil
}

// Find returns the running instance of this user; ok is false if there is none.
func Find() (i Instance, ok bool, err error) {
	state, err := StateDir()
	if err != nil {
		return i, false, err
	}
	f, err := os.OpenFile(filepath.Join(state, lockFile), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return i, false, nil
	} else if err != nil {
		return i, false, fmt.Errorf("rootless: %w", err)
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil {
		return i, false, nil // nobody holds it
	}
	i, err = read(state)
	if errors.Is(err, fs.ErrNotExist) {
		return i, false, nil // about to begin
	}
	return i, err == nil, err
}

func read(state string) (i Instance, err error) {
	text, err := os.ReadFile(filepath.Join(state, instanceFile))
	if err == nil {
		err = json.Unmarshal(text, &i)
	}
	if err != nil {
		err = fmt.Errorf("rootless: read the running instance: %w", err)
	}
	return i, err
}

func (i Instance) write(state string) error {
	text, err := json.Marshal(i)
	if err != nil {
		return err
	}
	path := filepath.Join(state, instanceFile)
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return fmt.Errorf("rootless: record the instance: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("rootless: record the instance: %w", err)
	}
	return nil
}
