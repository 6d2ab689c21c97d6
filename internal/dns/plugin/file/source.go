package file

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rutter-project/rutter/internal/dns/plugin/file/zone"
)

// File is a zone file that is read again when it changes.
type File struct {
	Origin string
	log    *slog.Logger
	zone   atomic.Pointer[zone.Zone]

	mu       sync.Mutex
	path     string
	modified time.Time
	failed   string // the last error, so that it is logged once
}

// NewFile returns the file of a zone, not read yet.
func NewFile(path, origin string, log *slog.Logger) *File {
	return &File{Origin: origin, path: path, log: log}
}

// Zone is the present version; nil before the first.
func (f *File) Zone() *zone.Zone { return f.zone.Load() }

// Path is where the file is.
func (f *File) Path() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.path
}

// Move says that the file is elsewhere from now on.
func (f *File) Move(path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.path = path
}

// Read reads the file for the first time.
func (f *File) Read() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	z, modified, err := f.parse()
	if err != nil {
		return err
	}
	f.modified = modified
	f.zone.Store(z)
	return nil
}

func (f *File) parse() (*zone.Zone, time.Time, error) {
	text, err := os.ReadFile(f.path)
	if err != nil {
		return nil, time.Time{}, err
	}
	info, err := os.Stat(f.path)
	if err != nil {
		return nil, time.Time{}, err
	}
	z, err := zone.Parse(bytes.NewReader(text), f.Origin, f.path)
	return z, info.ModTime(), err
}

// Reload reads the file again and takes it if its serial differs; with byTime,
// if it is newer. What is wrong with it is logged, and the old data stays.
func (f *File) Reload(byTime bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.zone.Load()
	if byTime && old != nil {
		if info, err := os.Stat(f.path); err == nil && !info.ModTime().After(f.modified) {
			return
		}
	}
	z, modified, err := f.parse()
	if err != nil {
		if text := err.Error(); text != f.failed {
			f.failed = text
			f.log.Error("zone " + f.Origin + " is not loaded, the old data stays: " + text)
		}
		return
	}
	f.failed = ""
	f.modified = modified
	if old != nil && !byTime && old.SOA.Serial == z.SOA.Serial {
		return
	}
	f.zone.Store(z)
	f.log.Info(fmt.Sprintf("zone %s loaded from %s with serial %d", f.Origin, f.path, z.SOA.Serial))
}

// Watch reloads every so often until ctx ends.
func (f *File) Watch(ctx context.Context, every time.Duration, byTime bool) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			f.Reload(byTime)
		}
	}
}
