package sandbox

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The run directory holds
//
//	pods/lock        taken while a sandbox is added or swept
//	pods/last.json   the address last given out, per pod CIDR
//	pods/ID/lock     held, by a lock of its open file, for as long as the supervisor lives
//	pods/ID/record.json
//	pods/ID/…        the pod's files, log and control socket
//
// A directory whose lock can be taken is a dead pod's, however it died.
const (
	podsDir    = "pods"
	lockFile   = "lock"
	lastFile   = "last.json"
	recordFile = "record.json"
)

// Record is what the run directory knows of a pod.
type Record struct {
	ID        string       `json:"id"`
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	UID       string       `json:"uid,omitempty"` // empty until the API has given one
	NetNS     string       `json:"netns"`         // its name below /run/netns
	Link      string       `json:"link"`          // the host's end of its veth
	Addrs     []netip.Addr `json:"addrs"`
	Shared    bool         `json:"shared,omitempty"` // it has no namespaces and no link
	Command   []string     `json:"command"`
	Created   time.Time    `json:"created"`

	Phase    string    `json:"phase"`
	Ready    bool      `json:"ready"`
	ExitCode int       `json:"exitCode,omitempty"`
	Finished time.Time `json:"finished,omitzero"` // set when it ended and only this record and its log are left
}

// Ended tells whether the pod is over and its sandbox gone.
func (r *Record) Ended() bool { return !r.Finished.IsZero() }

// Dir is a pod's directory, held by its supervisor.
type Dir struct {
	path string
	lock *os.File
}

// Path is the directory's path.
func (d *Dir) Path() string { return d.path }

func (d *Dir) id() string { return filepath.Base(d.path) }

// File is the path of a file in the directory.
func (d *Dir) File(name string) string { return filepath.Join(d.path, name) }

// Save replaces the record on disk.
func (d *Dir) Save(r *Record) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return replaceFile(d.File(recordFile), text)
}

// Remove deletes the directory and lets go of it.
func (d *Dir) Remove() error {
	err := os.RemoveAll(d.path)
	return errors.Join(err, d.lock.Close())
}

// Release lets go of the directory and leaves it there.
func (d *Dir) Release() error { return d.lock.Close() }

// Entry is a directory found in the run directory.
type Entry struct {
	Record
	Dir  string `json:"dir"`
	Live bool   `json:"live"` // its supervisor lives
}

// List reads all pods of the run directory, oldest first. A missing run
// directory is an empty one.
func List(runDir string) ([]Entry, error) {
	dirs, err := os.ReadDir(filepath.Join(runDir, podsDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing pods: %w", err)
	}
	var out []Entry
	for _, d := range dirs {
		if !d.IsDir() {
			continue
		}
		e := Entry{Dir: filepath.Join(runDir, podsDir, d.Name())}
		text, err := os.ReadFile(filepath.Join(e.Dir, recordFile))
		if err != nil || json.Unmarshal(text, &e.Record) != nil {
			// Cut short by a crash: its name is all that is known, and enough
			// to take it away.
			e.Record = Record{ID: d.Name(), Link: linkPrefix + d.Name()}
		}
		e.Live = locked(filepath.Join(e.Dir, lockFile))
		out = append(out, e)
	}
	sortByAge(out)
	return out, nil
}

// Locks are those of the open file description (fcntl(2), F_OFD_SETLK): they
// end with the process however it ends, hold between goroutines too, and can
// be looked at without being taken.

// locked tells whether somebody holds the lock.
func locked(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	l := unix.Flock_t{Type: unix.F_WRLCK}
	return unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l) == nil && l.Type != unix.F_UNLCK
}

// takeLock opens the lock file and takes the lock: at once or, if wait is set,
// as soon as it is free. It is held until the file is closed.
func takeLock(path string, wait bool) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	cmd := unix.F_OFD_SETLK
	if wait {
		cmd = unix.F_OFD_SETLKW
	}
	for {
		if err = unix.FcntlFlock(f.Fd(), cmd, &unix.Flock_t{Type: unix.F_WRLCK}); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), f.Close())
	}
	return f, nil
}

// lockRunDir makes the run directory if need be and keeps others from adding
// or sweeping until the returned function is called.
func lockRunDir(runDir string) (unlock func(), err error) {
	dir := filepath.Join(runDir, podsDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the run directory: %w (another one: --run-dir)", err)
	}
	f, err := takeLock(filepath.Join(dir, lockFile), true)
	if err != nil {
		return nil, fmt.Errorf("locking the run directory: %w", err)
	}
	return func() { _ = f.Close() }, nil
}

// makeDir makes a pod's directory and takes it. The run directory is locked.
func makeDir(runDir, id string) (*Dir, error) {
	d := &Dir{path: filepath.Join(runDir, podsDir, id)}
	if err := os.Mkdir(d.path, 0o700); err != nil {
		return nil, fmt.Errorf("making the pod's directory: %w", err)
	}
	f, err := takeLock(d.File(lockFile), false)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("locking the pod's directory: %w", err), os.RemoveAll(d.path))
	}
	d.lock = f
	return d, nil
}

// idLength is what an interface's name has room for behind linkPrefix, and more
// than enough bits never to meet the same ID again.
const idLength = 10

// newID makes characters that are fit for interface and file names.
func newID() string { return strings.ToLower(rand.Text()[:idLength]) }

// replaceFile writes a file so that a reader, or a crash, finds the old text
// or the new.
func replaceFile(path string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// Alive tells whether the pod's supervisor still lives.
func Alive(e Entry) bool { return locked(filepath.Join(e.Dir, lockFile)) }
