package up

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// A child that ends by itself is started again: at once the first time, later
// with a growing pause, and with none again once it has run for a minute.
const (
	firstPause = 100 * time.Millisecond
	maxPause   = 5 * time.Second
	settled    = time.Minute
	// stopGrace is how long a child may take to end on SIGTERM.
	stopGrace = 15 * time.Second
)

// child is a program that up keeps running.
type child struct {
	name string
	path string
	args []string
	log  string // file that takes its output
	slog *slog.Logger
	lock *os.File // up's lock, which the child holds with it
	// ready is closed by the owner once the child was seen to work: until then
	// an end of the child is final, and its last words are the reason.
	ready chan struct{}
}

// run keeps the child running until ctx ends, then stops it. An error is
// returned only if the child ends before it was ready.
func (c *child) run(ctx context.Context) error {
	// The kernel sends the death signal when the *thread* that started the
	// child ends, so this goroutine keeps its thread for as long as the child
	// lives (prctl(2), PR_SET_PDEATHSIG).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	if err := os.MkdirAll(filepath.Dir(c.log), 0o700); err != nil {
		return fmt.Errorf("%s: log: %w", c.name, err)
	}
	out, err := os.OpenFile(c.log, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("%s: log: %w", c.name, err)
	}
	defer out.Close()

	pause := firstPause
	for {
		cmd := exec.CommandContext(ctx, c.path, c.args...)
		cmd.Stdout, cmd.Stderr = out, out
		cmd.ExtraFiles = []*os.File{c.lock}
		// Its own process group: Ctrl-C in the terminal is for up, which then
		// stops its children in order. If up dies, they are told to end.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.WaitDelay = stopGrace
		started := time.Now()
		err := cmd.Run()
		if ctx.Err() != nil {
			return nil
		}
		select {
		case <-c.ready:
		default:
			return fmt.Errorf("%s did not start: %s (whole log: %s)", c.name, lastWords(c.log, err), c.log)
		}
		if time.Since(started) > settled {
			pause = firstPause
		}
		c.slog.Warn("ended by itself; starting it again", "program", c.name, "how", describe(err), "pause", pause)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, maxPause)
	}
}

func describe(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

// lastWords is the last line that a program wrote, which by our rule is the
// reason why it ended.
func lastWords(path string, err error) string {
	b, rerr := os.ReadFile(path)
	if rerr != nil {
		return describe(errors.Join(err, rerr))
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if last := lines[len(lines)-1]; last != "" {
		return last
	}
	return describe(err)
}
