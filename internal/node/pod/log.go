package pod

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

const (
	// LogFile is a detached pod's output; LogFile.1 is what came before it.
	LogFile = "log"
	// maxLog is where a log is turned over; the kubelet's containerLogMaxSize
	// defaults to the same.
	maxLog = 10 << 20
)

// OpenLog opens the log of a detached pod, for Stdio.Log. The run directory may
// be in memory, so it keeps at most twice maxLog.
func OpenLog(dir string) (io.WriteCloser, error) {
	return newRotated(filepath.Join(dir, LogFile), maxLog)
}

type rotated struct {
	path string
	max  int64
	file *os.File
	size int64
}

func newRotated(path string, max int64) (*rotated, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	return &rotated{path: path, max: max, file: f}, nil
}

func (r *rotated) Write(b []byte) (int, error) {
	if r.size > 0 && r.size+int64(len(b)) > r.max {
		if err := r.turn(); err != nil {
			return 0, err
		}
	}
	n, err := r.file.Write(b)
	r.size += int64(n)
	return n, err
}

func (r *rotated) turn() error {
	if err := errors.Join(r.file.Close(), os.Rename(r.path, r.path+".1")); err != nil {
		return fmt.Errorf("turning the log over: %w", err)
	}
	f, err := os.OpenFile(r.path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("turning the log over: %w", err)
	}
	r.file, r.size = f, 0
	return nil
}

func (r *rotated) Close() error { return r.file.Close() }

// pump copies a process's output into its log until the last writer is gone.
// A log that cannot be written must not block the process: the rest is read
// and dropped.
func pump(log io.WriteCloser, r *os.File) error {
	defer r.Close()
	_, err := io.Copy(log, r)
	if err != nil {
		_, _ = io.Copy(io.Discard, r)
		err = fmt.Errorf("writing the pod's log: %w", err)
	}
	return errors.Join(err, log.Close())
}
