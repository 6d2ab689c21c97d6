// Package peer starts the programs that are compared: Rutter's and, for each
// job, the one it replaces. They run as they would in production, as processes
// of their own with their own configuration files, and end with the process
// that started them.
package peer

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stopTimeout is how long a process may take to end after SIGTERM. CoreDNS
// waits up to 5 s for open requests.
const stopTimeout = 10 * time.Second

// Process is a running program under observation.
type Process struct {
	Name    string
	Started time.Time

	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error // of Wait, set before done is closed
}

// Command says what to start.
type Command struct {
	Name  string   // of the process, and of its log file
	Args  []string // program and arguments
	Env   []string // added to this process's environment
	Dir   string   // where the log goes
	Netns *Netns   // nil: this process's own
}

// Start starts a process. Its output goes to Dir/Name.log. It is killed when
// this process ends, however that happens.
func Start(c Command) (*Process, error) {
	path := filepath.Join(c.Dir, c.Name+".log")
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", c.Name, err)
	}
	defer log.Close()
	cmd := exec.Command(c.Args[0], c.Args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	p := &Process{Name: c.Name, cmd: cmd, log: path, done: make(chan struct{})}
	start := func() error {
		p.Started = time.Now()
		return cmd.Start()
	}
	if c.Netns != nil {
		err = c.Netns.Do(start)
	} else {
		err = start()
	}
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", c.Name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// PID is the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Stop ends the process: SIGTERM, then SIGKILL. It may be called again.
func (p *Process) Stop() {
	_ = p.cmd.Process.Signal(unix.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// Kill ends the process with SIGKILL.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Signal sends a signal.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// CPU is the user and system time used so far, by all threads. It comes from
// the process's CPU clock, which counts nanoseconds; /proc/PID/stat counts
// hundredths of a second.
func (p *Process) CPU() (time.Duration, error) {
	// clock_getcpuclockid(3): the complement of the pid, and CPUCLOCK_SCHED.
	clock := int32(^p.PID()<<3 | 2)
	var ts unix.Timespec
	if err := unix.ClockGettime(clock, &ts); err != nil {
		return 0, fmt.Errorf("reading the CPU time of %s: %w", p.Name, err)
	}
	return time.Duration(ts.Nano()), nil
}

// CPUWithChildren adds the time of the children that have ended and been
// waited for, in hundredths of a second.
func (p *Process) CPUWithChildren() (time.Duration, error) {
	own, err := p.CPU()
	if err != nil {
		return 0, err
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
	if err != nil {
		return 0, fmt.Errorf("reading the CPU time of %s's children: %w", p.Name, err)
	}
	// proc_pid_stat(5): cutime and cstime are fields 16 and 17; the second
	// field, the name, may contain spaces but ends with the last parenthesis.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 15 {
		return 0, fmt.Errorf("reading the CPU time of %s's children: /proc/%d/stat is too short", p.Name, p.PID())
	}
	user, err1 := strconv.ParseInt(f[13], 10, 64)
	system, err2 := strconv.ParseInt(f[14], 10, 64)
	return own + time.Duration(user+system)*10*time.Millisecond, errors.Join(err1, err2)
}

// Idle waits until the process has no child and has used next to no CPU time
// for a while.
func (p *Process) Idle(while, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for {
		before, err := p.CPUWithChildren()
		if err != nil {
			return err
		}
		for start := time.Now(); time.Since(start) < while; time.Sleep(20 * time.Millisecond) {
			if p.hasChildren() {
				start = time.Now()
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("%s was still busy after %s", p.Name, timeout)
			}
		}
		after, err := p.CPUWithChildren()
		if err != nil {
			return err
		}
		if after-before < while/20 {
			return nil
		}
	}
}

func (p *Process) hasChildren() bool {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p.PID()))
	for _, l := range lists {
		if b, _ := os.ReadFile(l); len(b) > 0 {
			return true
		}
	}
	return false
}

// Memory is what a process has in RAM, in bytes.
type Memory struct {
	Resident  int64 // all of it
	Anonymous int64 // without the pages of its program file
}

// Memory reads /proc/PID/status.
func (p *Process) Memory() (Memory, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		return Memory{}, fmt.Errorf("reading the memory of %s: %w", p.Name, err)
	}
	var m Memory
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		if len(f) < 2 {
			continue
		}
		kb, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "VmRSS:":
			m.Resident = kb << 10
		case "RssAnon:":
			m.Anonymous = kb << 10
		}
	}
	return m, nil
}

// Log is what the process has written so far, at most the last 4 KiB.
func (p *Process) Log() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	if n := len(b) - 4096; n > 0 {
		b = b[n:]
	}
	return string(bytes.TrimSpace(b))
}

// WaitFor calls ready every few milliseconds until it returns nil. It fails
// when that takes longer than timeout or the process ends.
func (p *Process) WaitFor(what string, timeout time.Duration, ready func() error) error {
	deadline := time.Now().Add(timeout)
	for {
		err := ready()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not %s after %s: %w\n%s", p.Name, what, timeout, err, p.Log())
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended before it was %s: %w\n%s", p.Name, what, errors.Join(p.err, err), p.Log())
		case <-time.After(5 * time.Millisecond):
		}
	}
}
