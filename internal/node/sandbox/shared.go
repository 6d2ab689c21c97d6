package sandbox

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// Where an ordinary user may not make namespaces, a pod is a process of the host
// like any other: it has the host's addresses, and ports of its own choice on
// them. Only its directory is as for any pod.

// shared are the processes of such a pod.
type shared struct {
	mu       sync.Mutex
	children []*Child
}

func claimShared(cfg Config) (*Sandbox, error) {
	if len(cfg.Shared) == 0 {
		return nil, errors.New("this host has no address but loopback, which no endpoint may have: give it one, or name one of its own with --node-ip of `rutter up`")
	}
	unlock, err := lockRunDir(cfg.RunDir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	dir, err := makeDir(cfg.RunDir, newID())
	if err != nil {
		return nil, err
	}
	s := &Sandbox{Dir: dir, cfg: cfg, pidfd: -1}
	s.Record = Record{
		ID: dir.id(), Namespace: cfg.Namespace, Name: cfg.Pod, Shared: true,
		Addrs: cfg.Shared, Command: cfg.Command, Created: time.Now(), Phase: "Pending",
	}
	if err := s.Save(); err != nil {
		return nil, errors.Join(err, dir.Remove())
	}
	return s, nil
}

// startShared starts a process of the host, which the kernel kills if this
// process dies.
func (s *Sandbox) startShared(p Process) (*Child, error) {
	if p.User != nil {
		return nil, errors.New("--user: an ordinary user's processes are that user's")
	}
	child := &Child{done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// The death signal comes when the thread that started the child ends:
		// this goroutine keeps it (prctl(2), PR_SET_PDEATHSIG).
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		path, err := lookPath(p.Argv[0], p.Env, p.Dir)
		if err == nil {
			child.process, err = os.StartProcess(path, p.Argv, &os.ProcAttr{
				Dir: p.Dir, Env: p.Env, Files: p.Files[:],
				Sys: &syscall.SysProcAttr{Setsid: true, Setctty: p.TTY, Ctty: 0, Pdeathsig: syscall.SIGKILL},
			})
			err = startError(p.Argv[0], err)
		}
		started <- err
		if err == nil {
			child.reap()
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	s.shared.mu.Lock()
	defer s.shared.mu.Unlock()
	s.shared.children = append(s.shared.children, child)
	return child, nil
}

// killShared kills what was started and what that left in its process groups.
func (s *Sandbox) killShared() {
	s.shared.mu.Lock()
	defer s.shared.mu.Unlock()
	for _, c := range s.shared.children {
		c.KillSession()
	}
	s.shared.children = nil
}
