package terminal

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// A terminal in a terminal: the test is the person at the outer one's master,
// a shell is the process at the inner one's slave.
func TestSession(t *testing.T) {
	person, outer, err := pty.Open()
	if err != nil {
		t.Skipf("needs pseudo-terminals: %v", err)
	}
	defer person.Close()
	defer outer.Close()
	if err := pty.Setsize(person, &pty.Winsize{Rows: 31, Cols: 97}); err != nil {
		t.Fatal(err)
	}
	before, err := term.GetState(int(outer.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(outer, outer, true)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", `stty size; stty -echo; echo ready; read line; echo "got $line"; trap 'echo interrupted; exit 7' INT; echo armed; sleep 60 & wait`)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.Slave, s.Slave, s.Slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	screen := &reader{t: t, from: person}
	screen.until("31 97\r\nready\r\n")
	if _, err := io.WriteString(person, "hello\n"); err != nil {
		t.Fatal(err)
	}
	screen.until("got hello\r\narmed\r\n")
	if _, err := io.WriteString(person, "\x03"); err != nil { // Ctrl-C is the process's
		t.Fatal(err)
	}
	screen.until("interrupted\r\n")
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 7 {
		t.Errorf("exit code %d", code)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	after, err := term.GetState(int(outer.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if *before != *after {
		t.Error("the terminal was not given back as it was")
	}
}

// What is typed after the session is for whoever reads the terminal next.
func TestCloseLeavesInputAlone(t *testing.T) {
	person, outer, err := pty.Open()
	if err != nil {
		t.Skipf("needs pseudo-terminals: %v", err)
	}
	defer person.Close()
	defer outer.Close()
	s, err := Open(outer, outer, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(person, "next\n"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	n, err := outer.Read(buf)
	if err != nil || string(buf[:n]) != "next\n" {
		t.Errorf("read %q, %v", buf[:n], err)
	}
}

// A process left in the background keeps the slave open; Close does not wait
// for it.
func TestCloseDoesNotWaitForBackground(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	s, err := Open(null, null, false)
	if err != nil {
		t.Skipf("needs pseudo-terminals: %v", err)
	}
	fd, err := unix.Dup(int(s.Slave.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	done := make(chan error, 1)
	go func() { done <- s.Close() }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Close hangs")
	}
}

func TestOpenNeedsATerminal(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if _, err := Open(r, w, true); err == nil || !strings.Contains(err.Error(), "needs a terminal") {
		t.Errorf("%v", err)
	}
}

type reader struct {
	t    *testing.T
	from *os.File
	text bytes.Buffer
}

// until reads the screen until it ends with want.
func (r *reader) until(want string) {
	r.t.Helper()
	buf := make([]byte, 256)
	for !strings.HasSuffix(r.text.String(), want) {
		if err := r.from.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			r.t.Fatal(err)
		}
		n, err := r.from.Read(buf)
		r.text.Write(buf[:n])
		if err != nil {
			r.t.Fatalf("the screen shows %q, want %q at the end: %v", r.text.String(), want, err)
		}
	}
}
