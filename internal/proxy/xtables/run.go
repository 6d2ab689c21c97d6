package xtables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Do calls f on a thread that is in the network namespace of the programs.
func (p *Programs) Do(f func() error) error { return p.space.Do(f) }

// run runs a program and returns what it printed. It has our network namespace
// because a child begins in that of the thread that makes it. started may be
// nil.
func (p *Programs) run(ctx context.Context, input []byte, started func(pid int), program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", program, err)
	}
	// Killed between two tables it would leave half: it is asked to end.
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	// Messages are recognised by their words.
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if err := p.space.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("%s: %w", program, err)
	}
	if started != nil {
		started(cmd.Process.Pid)
	}
	_, _ = stdin.Write(input) // one that does not read all says why when it ends
	stdin.Close()
	err = cmd.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return stdout.Bytes(), nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s: %w", program, ctx.Err())
	case errors.As(err, &exit):
		return nil, p.refusal(program, exit.ExitCode(), stderr.String())
	}
	return nil, fmt.Errorf("%s: %w", program, err)
}

// hasTable tells whether a table exists in the legacy back end: listing one
// that does not would make it.
func (p *Programs) hasTable(table string) bool {
	if p.Backend != Legacy {
		return true
	}
	list := "/proc/thread-self/net/ip_tables_names"
	if p.V6 {
		list = "/proc/thread-self/net/ip6_tables_names"
	}
	var names []byte
	err := p.space.Do(func() (err error) {
		names, err = os.ReadFile(list)
		return err
	})
	if errors.Is(err, os.ErrPermission) {
		return true
	}
	for name := range strings.Lines(string(names)) {
		if strings.TrimSpace(name) == table {
			return true
		}
	}
	return false
}

// lockFile is the lock that the programs of the legacy back end take turns by.
const lockFile = "/run/xtables.lock"

// lockHolder names the process that has the lock.
func lockHolder() string {
	info, err := os.Stat(lockFile)
	if err != nil {
		return ""
	}
	var s unix.Stat_t
	if unix.Stat(lockFile, &s) != nil || info.IsDir() {
		return ""
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return ""
	}
	pid := findLock(string(locks), s.Ino)
	if pid <= 0 {
		return ""
	}
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return fmt.Sprintf("process %d", pid)
	}
	return fmt.Sprintf("%s (pid %d)", strings.TrimSpace(string(name)), pid)
}

// findLock finds who holds a lock of a file in the text of /proc/locks:
//
//	1: FLOCK  ADVISORY  WRITE 4711 00:19:642 0 EOF
func findLock(text string, inode uint64) (pid int) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 6 || f[1] == "->" { // one that waits
			continue
		}
		i := strings.LastIndexByte(f[5], ':')
		if n, err := strconv.ParseUint(f[5][i+1:], 10, 64); err == nil && n == inode {
			pid, _ = strconv.Atoi(f[4])
			return pid
		}
	}
	return 0
}
