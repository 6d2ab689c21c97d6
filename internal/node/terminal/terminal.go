// Package terminal joins the caller's terminal to one of a pod's.
package terminal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Session is a pseudo-terminal whose master is copied from and to the caller's
// terminal, which is raw meanwhile: what is typed, Ctrl-C too, is for the
// process in the pod.
type Session struct {
	Slave *os.File // for the process

	master  *os.File
	in      *os.File
	state   *term.State
	resized chan os.Signal
	quit    *os.File // closing it ends the copying of input
	input   sync.WaitGroup
	output  chan struct{}
}

// Open begins a session; Close ends it. Without input, nothing is read from in,
// which need not be a terminal then.
func Open(in, out *os.File, input bool) (s *Session, err error) {
	if input && !term.IsTerminal(int(in.Fd())) {
		return nil, errors.New("-t with -i needs a terminal as standard input: leave out -t")
	}
	s = &Session{in: in, output: make(chan struct{}), resized: make(chan os.Signal, 1)}
	if s.master, s.Slave, err = pty.Open(); err != nil {
		return nil, fmt.Errorf("making a terminal: %w", err)
	}
	if s.master, err = throughPoller(s.master); err != nil {
		return nil, errors.Join(fmt.Errorf("making a terminal: %w", err), s.Slave.Close())
	}
	quitIn, quit, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, s.master.Close(), s.Slave.Close())
	}
	s.quit = quit
	if input {
		if s.state, err = term.MakeRaw(int(in.Fd())); err != nil {
			return nil, errors.Join(fmt.Errorf("setting the terminal to raw: %w", err), s.master.Close(), s.Slave.Close(), quit.Close(), quitIn.Close())
		}
		s.input.Go(func() { copyInput(s.master, in, quitIn) })
	} else {
		_ = quitIn.Close()
	}
	s.resize()
	signal.Notify(s.resized, unix.SIGWINCH)
	s.input.Go(func() {
		for range s.resized {
			s.resize()
		}
	})
	go func() {
		defer close(s.output)
		_, _ = io.Copy(out, s.master) // EIO when the last process has let go of the slave
	}()
	return s, nil
}

// throughPoller turns a file that blocks its thread in reads, as pty's do, into
// one whose reads a deadline can end.
func throughPoller(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	return os.NewFile(uintptr(fd), f.Name()), errors.Join(err, f.Close())
}

func (s *Session) resize() {
	if size, err := pty.GetsizeFull(s.in); err == nil {
		_ = pty.Setsize(s.Slave, size)
	}
}

// Close shows the rest of the output and gives the terminal back as it was.
func (s *Session) Close() error {
	signal.Stop(s.resized)
	close(s.resized)
	err := s.quit.Close()
	s.input.Wait()
	err = errors.Join(err, s.Slave.Close())
	// A process left in the background may keep the slave open for ever.
	const patience = 200 * time.Millisecond
	_ = s.master.SetReadDeadline(time.Now().Add(patience))
	<-s.output
	err = errors.Join(err, s.master.Close())
	if s.state != nil {
		err = errors.Join(err, term.Restore(int(s.in.Fd()), s.state))
	}
	return err
}

// copyInput copies until in ends or quit is closed. A read from a terminal
// cannot be broken off, so it is only begun when there is something to read.
func copyInput(to io.Writer, in, quit *os.File) {
	defer quit.Close()
	buf := make([]byte, 4096)
	fds := []unix.PollFd{{Fd: int32(in.Fd()), Events: unix.POLLIN}, {Fd: int32(quit.Fd())}}
	for {
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return
		}
		if fds[1].Revents != 0 {
			return
		}
		if fds[0].Revents == 0 {
			continue
		}
		n, err := in.Read(buf)
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
