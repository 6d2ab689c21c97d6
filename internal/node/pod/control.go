package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/node/sandbox"
	"github.com/rutter-project/rutter/internal/node/serviceenv"
)

// A supervisor listens on a socket in its pod's directory, which only root can
// reach. One connection is one request; a message is one JSON object in one
// packet, the first with the descriptors of the process to start.
const (
	controlSocket = "control"
	maxMessage    = 128 << 10
)

type request struct {
	Stop *stopMessage `json:"stop,omitempty"`
	Exec *execMessage `json:"exec,omitempty"`
	// Signal follows an Exec, for its process.
	Signal int `json:"signal,omitempty"`
}

type stopMessage struct {
	Grace time.Duration `json:"grace"`
}

type execMessage struct {
	Argv []string `json:"argv"`
	Env  []string `json:"env"` // above the pod's
	Dir  string   `json:"dir"` // empty: the pod's
	TTY  bool     `json:"tty"`
}

type reply struct {
	Error string `json:"error,omitempty"`
	Code  int    `json:"code"`
}

type control struct {
	pod      *Pod
	listener *net.UnixListener
}

func listenControl(p *Pod) (*control, error) {
	var l *net.UnixListener
	err := throughDir(p.box.Dir.Path(), func(dir string) (err error) {
		l, err = net.ListenUnix("unixpacket", &net.UnixAddr{Name: dir + "/" + controlSocket, Net: "unixpacket"})
		if err == nil {
			l.SetUnlinkOnClose(false) // by a path that is not valid any more
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &control{p, l}, nil
}

// Close ends the listening, for a pod that never came to serve.
func (c *control) Close() error { return c.listener.Close() }

// throughDir calls f with a short path to dir: a socket's path has only 108
// bytes (unix(7)), and a run directory may be anywhere.
func throughDir(dir string, f func(short string) error) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return f("/proc/self/fd/" + strconv.Itoa(int(d.Fd())))
}

// serve answers until ctx ends. It returns when all requests are done.
func (c *control) serve(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { _ = c.listener.Close() })
	defer stop()
	var requests sync.WaitGroup
	defer requests.Wait()
	for {
		conn, err := c.listener.AcceptUnix()
		if err != nil {
			if ctx.Err() == nil {
				c.pod.log.Error("the control socket failed", "pod", c.pod.spec.Name, "error", err)
			}
			return
		}
		requests.Go(func() {
			defer conn.Close()
			stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) })
			defer stop()
			c.answer(ctx, conn)
		})
	}
}

func (c *control) answer(ctx context.Context, conn *net.UnixConn) {
	req, files, err := receive(conn)
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	switch {
	case err != nil:
		send(conn, reply{Error: err.Error(), Code: 1}, nil)
	case req.Stop != nil:
		c.pod.Stop(req.Stop.Grace)
		send(conn, reply{}, nil)
	case req.Exec != nil && len(files) == 3:
		send(conn, c.exec(ctx, conn, req.Exec, files), nil)
	default:
		send(conn, reply{Error: "the request is not understood: is this rutter of the same version?", Code: 1}, nil)
	}
}

// exec runs a process in the pod for the client and passes its signals on. If
// the client goes away, so does the process.
func (c *control) exec(ctx context.Context, conn *net.UnixConn, m *execMessage, files []*os.File) reply {
	dir := m.Dir
	if dir == "" {
		dir = c.pod.spec.Dir
	}
	child, err := c.pod.box.Start(sandbox.Process{
		Argv: m.Argv, Env: serviceenv.Merge(c.pod.env, m.Env), Dir: dir, User: c.pod.spec.User, Files: [3]*os.File(files), TTY: m.TTY,
	})
	if err != nil {
		code := 1
		var start *sandbox.StartError
		if errors.As(err, &start) {
			code = start.Code
		}
		return reply{Error: err.Error(), Code: code}
	}
	for _, f := range files {
		_ = f.Close() // a terminal hangs up when its last user closes it
	}
	signals := make(chan int)
	go func() {
		defer close(signals)
		for {
			req, _, err := receive(conn)
			if err != nil {
				return
			}
			select {
			case signals <- req.Signal:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case <-child.Done():
			_ = conn.SetReadDeadline(time.Now())
			for range signals {
			}
			return reply{Code: child.Wait().Code}
		case sig, ok := <-signals:
			if !ok {
				child.KillSession()
				return reply{Code: child.Wait().Code}
			}
			_ = child.Signal(unix.Signal(sig))
		}
	}
}

func receive(conn *net.UnixConn) (request, []*os.File, error) {
	buf, oob := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(3*4))
	n, oobn, flags, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return request{}, nil, err
	}
	var files []*os.File
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return request{}, nil, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	if n == 0 {
		return request{}, files, net.ErrClosed
	}
	if flags&unix.MSG_TRUNC != 0 {
		return request{}, files, fmt.Errorf("the command line has more than %d bytes", maxMessage)
	}
	var req request
	if err := json.Unmarshal(buf[:n], &req); err != nil {
		return request{}, files, fmt.Errorf("reading a request: %w", err)
	}
	return req, files, nil
}

func send(conn *net.UnixConn, message any, files []*os.File) {
	// The only failure that matters, a peer that left, shows in the next read.
	_ = trySend(conn, message, files)
}

func trySend(conn *net.UnixConn, message any, files []*os.File) error {
	text, err := json.Marshal(message)
	if err != nil {
		return err
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	_, _, err = conn.WriteMsgUnix(text, oob, nil)
	return err
}
