package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Process is what to start in a pod.
type Process struct {
	Argv []string // Argv[0] is looked up in Env's PATH, in the pod
	Env  []string
	Dir  string
	// Files are standard input, output and error. With TTY they are the slave
	// of a terminal, which becomes the process's controlling one.
	Files [3]*os.File
	TTY   bool
	// User is who the process is; nil is the caller.
	User *User
}

// User is a process's user and groups.
type User struct {
	UID, GID uint32
	Groups   []uint32 // supplementary
}

func (u *User) credential() *syscall.Credential {
	if u == nil {
		return nil
	}
	return &syscall.Credential{Uid: u.UID, Gid: u.GID, Groups: u.Groups}
}

// Exit codes of processes that could not be started, as shells and env(1) have
// them.
const (
	ExitNotExecutable = 126
	ExitNotFound      = 127
)

// StartError is a process that could not be started: Code is what a shell
// would exit with.
type StartError struct {
	Code int
	Err  error
}

func (e *StartError) Error() string { return e.Err.Error() }
func (e *StartError) Unwrap() error { return e.Err }

// Exit is how a process ended.
type Exit struct {
	Code   int // what a shell would report: 128 + Signal if killed by one
	Signal int
}

// Child is a process started in a pod.
type Child struct {
	process *os.Process
	done    chan struct{}
	exit    Exit // to be read after done is closed
}

// reap waits for the process, whoever else is interested: a PID namespace does
// not end before the last of its processes was waited for, also of those whose
// parent is outside (pid_namespaces(7)).
func (c *Child) reap() {
	defer close(c.done)
	state, err := c.process.Wait()
	if err != nil {
		c.exit = Exit{Code: 1} // somebody else waited for it; it is gone anyway
		return
	}
	c.exit = Exit{Code: state.ExitCode()}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		c.exit = Exit{Code: 128 + int(ws.Signal()), Signal: int(ws.Signal())}
	}
}

// Done is closed when the process has ended.
func (c *Child) Done() <-chan struct{} { return c.done }

// Wait waits until the process has ended. It may be called any number of times.
func (c *Child) Wait() Exit {
	<-c.done
	return c.exit
}

// Pid is the process's ID on the host.
func (c *Child) Pid() int { return c.process.Pid }

// Signal sends a signal to the process; one that has ended is no error.
func (c *Child) Signal(sig os.Signal) error {
	if err := c.process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("sending %v to process %d: %w", sig, c.process.Pid, err)
	}
	return nil
}

// KillSession kills the process and those of its children that stayed in its
// process group.
func (c *Child) KillSession() {
	select {
	case <-c.done: // the number may be another's
	default:
		_ = unix.Kill(-c.process.Pid, unix.SIGKILL)
	}
}

// Start starts a process in the pod's namespaces, as the leader of a session
// of its own.
//
// The kernel lets a single thread enter a mount namespace once it shares its
// root and working directory with no other (setns(2), CLONE_FS), so no helper
// program is needed.
func (s *Sandbox) Start(p Process) (*Child, error) {
	if s.Record.Shared {
		return s.startShared(p)
	}
	if s.pidfd < 0 {
		return nil, errors.New("the pod is over")
	}
	child := &Child{done: make(chan struct{})}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("entering the pod: %w", err)
		}
		const all = unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC
		if err := unix.Setns(s.pidfd, all); err != nil {
			return fmt.Errorf("entering the pod's namespaces: %w", err)
		}
		path, err := lookPath(p.Argv[0], p.Env, p.Dir)
		if err != nil {
			return err
		}
		if p.TTY && p.User != nil {
			// Programs open their terminal by its name, too.
			if err := p.Files[0].Chown(int(p.User.UID), -1); err != nil {
				return fmt.Errorf("giving the terminal to user %d: %w", p.User.UID, err)
			}
		}
		child.process, err = os.StartProcess(path, p.Argv, &os.ProcAttr{
			Dir:   p.Dir,
			Env:   p.Env,
			Files: p.Files[:],
			Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: p.TTY, Ctty: 0, Credential: p.User.credential()},
		})
		return startError(p.Argv[0], err)
	})
	if err != nil {
		return nil, err
	}
	go child.reap()
	return child, nil
}

func startError(program string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &StartError{ExitNotFound, fmt.Errorf("starting %s: %w", program, err)}
	case err != nil:
		return &StartError{ExitNotExecutable, fmt.Errorf("starting %s: %w", program, err)}
	}
	return nil
}

// lookPath finds a program as execvp(3) does, with the pod's PATH instead of
// this process's.
func lookPath(name string, env []string, dir string) (string, error) {
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		return name, nil
	}
	path := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, v := range env {
		if p, ok := strings.CutPrefix(v, "PATH="); ok {
			path = p
		}
	}
	var denied bool
	for _, d := range filepath.SplitList(path) {
		if d == "" {
			d = "."
		}
		if !filepath.IsAbs(d) {
			d = filepath.Join(dir, d)
		}
		file := filepath.Join(d, name)
		info, err := os.Stat(file)
		if err != nil || info.IsDir() {
			continue
		}
		if unix.Access(file, unix.X_OK) == nil {
			return file, nil
		}
		denied = true
	}
	if denied {
		return "", &StartError{ExitNotExecutable, fmt.Errorf("%s: no permission to execute it", name)}
	}
	return "", &StartError{ExitNotFound, fmt.Errorf("%s: no such command in PATH", name)}
}
