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

// Start starts a process in the pod's namespaces, as the leader of a session
// of its own. It is this process's child: Wait on it as on any other.
//
// The kernel lets a single thread enter a mount namespace once it shares its
// root and working directory with no other (setns(2), CLONE_FS), so no helper
// program is needed.
func (s *Sandbox) Start(p Process) (*os.Process, error) {
	if s.pidfd < 0 {
		return nil, errors.New("the pod is over")
	}
	var child *os.Process
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
		child, err = os.StartProcess(path, p.Argv, &os.ProcAttr{
			Dir:   p.Dir,
			Env:   p.Env,
			Files: p.Files[:],
			Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: p.TTY, Ctty: 0},
		})
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return &StartError{ExitNotFound, fmt.Errorf("starting %s: %w", p.Argv[0], err)}
		case err != nil:
			return &StartError{ExitNotExecutable, fmt.Errorf("starting %s: %w", p.Argv[0], err)}
		}
		return nil
	})
	return child, err
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
	return "", &StartError{ExitNotFound, fmt.Errorf("%s: no such command in PATH (%s)", name, path)}
}
