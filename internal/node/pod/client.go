package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/kubeapi"
	"github.com/rutter-project/rutter/internal/node/sandbox"
)

// Find finds a pod of this node: the living one of that name, else the newest
// that ended or died.
func Find(runDir, namespace, name string) (sandbox.Entry, error) {
	pods, err := sandbox.List(runDir)
	if err != nil {
		return sandbox.Entry{}, err
	}
	var found *sandbox.Entry
	for i := range pods {
		if p := &pods[i]; p.Namespace == namespace && p.Name == name && (found == nil || p.Live || !found.Live) {
			found = p
		}
	}
	if found == nil {
		return sandbox.Entry{}, fmt.Errorf("no pod %s/%s on this node: `rutter ps` lists them (another namespace: -n)", namespace, name)
	}
	return *found, nil
}

// Command is a process to run in a pod that runs already.
type Command struct {
	Argv  []string
	Env   []string
	Dir   string
	Files [3]*os.File
	TTY   bool
}

// Exec runs a command in a living pod, passes on what comes from signals, and
// returns its exit code. When ctx ends, the command is killed.
func Exec(ctx context.Context, e sandbox.Entry, c Command, signals <-chan os.Signal) (int, error) {
	if !e.Live {
		return 1, fmt.Errorf("pod %s/%s does not run (%s)", e.Namespace, e.Name, Status(e))
	}
	conn, err := dial(e)
	if err != nil {
		return 1, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.CloseWrite() })
	defer stop()
	m := request{Exec: &execMessage{Argv: c.Argv, Env: c.Env, Dir: c.Dir, TTY: c.TTY}}
	if err := trySend(conn, m, c.Files[:]); err != nil {
		if errors.Is(err, unix.EMSGSIZE) {
			err = fmt.Errorf("the command line has more than %d bytes", maxMessage)
		}
		return 1, fmt.Errorf("asking pod %s/%s: %w", e.Namespace, e.Name, err)
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case <-done:
				return
			case sig := <-signals:
				if s, ok := sig.(unix.Signal); ok {
					send(conn, request{Signal: int(s)}, nil)
				}
			}
		}
	}()
	r, err := receiveReply(conn)
	if err != nil {
		return 1, fmt.Errorf("pod %s/%s ended: %w", e.Namespace, e.Name, err)
	}
	if r.Error != "" {
		return r.Code, errors.New(r.Error)
	}
	return r.Code, nil
}

// Stop ends a pod and takes it out of the API, whatever state it is in. grace
// is the time between TERM and KILL. It returns when the pod is gone.
func Stop(ctx context.Context, client func() (*kubeapi.Client, error), runDir string, e sandbox.Entry, grace time.Duration) error {
	if e.Live {
		conn, err := dial(e)
		if err == nil {
			err = trySend(conn, request{Stop: &stopMessage{grace}}, nil)
			if err == nil {
				_, err = receiveReply(conn)
			}
			_ = conn.Close()
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("asking pod %s/%s to stop: %w", e.Namespace, e.Name, err)
		}
		return waitGone(ctx, e)
	}
	c, err := client()
	if err != nil {
		return err
	}
	if e.UID != "" {
		if err := deletePod(ctx, c.Pods(e.Namespace), e.Name, uid(e)); err != nil {
			return fmt.Errorf("taking pod %s/%s out of the API: %w", e.Namespace, e.Name, c.Explain(err))
		}
	}
	if e.Ended() {
		return sandbox.Forget(runDir, e.ID)
	}
	_, err = sandbox.Sweep(ctx, runDir, false)
	return err
}

// StopAll ends all living pods of the run directory, all at once.
func StopAll(ctx context.Context, runDir string, grace time.Duration) error {
	pods, err := sandbox.List(runDir)
	if err != nil {
		return err
	}
	results := make(chan error)
	n := 0
	for _, e := range pods {
		if !e.Live {
			continue
		}
		n++
		go func() { results <- Stop(ctx, nil, runDir, e, grace) }()
	}
	var errs []error
	for range n {
		errs = append(errs, <-results)
	}
	return errors.Join(errs...)
}

// waitGone waits until the pod's supervisor has let go of it.
func waitGone(ctx context.Context, e sandbox.Entry) error {
	for sandbox.Alive(e) {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("waiting for pod %s/%s to end: %w", e.Namespace, e.Name, err)
		}
		sleep(ctx, 20*time.Millisecond)
	}
	return nil
}

func dial(e sandbox.Entry) (conn *net.UnixConn, err error) {
	err = throughDir(e.Dir, func(dir string) (err error) {
		conn, err = net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: dir + "/" + controlSocket, Net: "unixpacket"})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("pod %s/%s cannot be reached (is it just starting or ending?): %w", e.Namespace, e.Name, err)
	}
	return conn, nil
}

func receiveReply(conn *net.UnixConn) (reply, error) {
	buf := make([]byte, maxMessage)
	n, err := conn.Read(buf)
	if err != nil {
		return reply{}, err
	}
	if n == 0 {
		return reply{}, io.EOF
	}
	var r reply
	return r, json.Unmarshal(buf[:n], &r)
}

// Logs writes what a detached pod has put out so far, oldest first. With
// follow it goes on until the pod ends or ctx does.
func Logs(ctx context.Context, w io.Writer, e sandbox.Entry, follow bool) error {
	path := filepath.Join(e.Dir, LogFile)
	if err := copyFile(w, path+".1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("pod %s/%s has no log: only pods started with -d keep one", e.Namespace, e.Name)
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	for {
		alive := sandbox.Alive(e)
		if _, err := io.Copy(w, f); err != nil {
			return err
		}
		if !follow || !alive || ctx.Err() != nil {
			return nil
		}
		// Turned over: the rest of the old one has been read just now.
		if next, err := os.Open(path); err == nil {
			if same(f, next) {
				_ = next.Close()
			} else {
				_ = f.Close()
				f = next
				continue
			}
		}
		sleep(ctx, 200*time.Millisecond)
	}
}

func copyFile(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

func same(a, b *os.File) bool {
	x, err1 := a.Stat()
	y, err2 := b.Stat()
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

// Status is the word `rutter ps` has for a pod's state: its phase, or Dead if
// its supervisor died.
func Status(e sandbox.Entry) string {
	if !e.Live && !e.Ended() {
		return "Dead"
	}
	return e.Phase
}
