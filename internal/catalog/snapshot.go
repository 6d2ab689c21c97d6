package catalog

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// snapshotMagic names the file format. A change of the stored types changes
// the number: an agent that finds another one starts without the snapshot.
const snapshotMagic = "rutter catalogue 1\n"

// maxSnapshot bounds what is read back: 1 GiB is some 10 million endpoints.
const maxSnapshot = 1 << 30

// ErrNoSnapshot is returned by Restore when there is no file yet.
var ErrNoSnapshot = errors.New("no snapshot")

// snapshot is the stored form. Entries are flattened so that nothing is
// written twice.
type snapshot struct {
	Saved      time.Time
	Kinds      Kind
	Services   []*Service
	Slices     []*EndpointSlice
	Namespaces []*Namespace
	Nodes      []*Node
	Pods       []*Pod
}

// Save writes a synced catalogue to path: checksummed, readable by its owner
// only, put in place by rename so that a crash leaves the old file or the new.
// It costs O(everything); callers keep a distance between calls.
func (c *Catalog) Save(path string) (err error) {
	if !c.HasSynced() {
		return errors.New("save catalogue: it is not complete yet")
	}
	c.mu.RLock()
	s := snapshot{Saved: time.Now(), Kinds: c.synced}
	for _, e := range c.services {
		if e.Service != nil {
			s.Services = append(s.Services, e.Service)
		}
		s.Slices = append(s.Slices, e.Slices...)
	}
	for _, n := range c.namespaces {
		s.Namespaces = append(s.Namespaces, n)
	}
	for _, n := range c.nodes {
		s.Nodes = append(s.Nodes, n)
	}
	for _, p := range c.pods {
		s.Pods = append(s.Pods, p)
	}
	c.mu.RUnlock() // the values are immutable: encode without the lock

	// One name, so that a crash leaves one such file at most; the agent's lock
	// keeps others from it.
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("save catalogue: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("save catalogue to %s: %w", path, err)
		}
	}()
	sum := sha256.New()
	w := bufio.NewWriterSize(io.MultiWriter(f, sum), 1<<16)
	if _, err := w.WriteString(snapshotMagic); err != nil {
		return err
	}
	if err := gob.NewEncoder(w).Encode(&s); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if _, err := f.Write(sum.Sum(nil)); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// Restore fills in, from the file that Save wrote, the kinds that were not
// listed yet, and returns when that file was written. The catalogue then counts
// as synced, and Stale names the kinds that no list from the source has
// confirmed. A damaged or foreign file is an error and changes nothing.
func (c *Catalog) Restore(path string) (time.Time, error) {
	s, err := readSnapshot(path)
	if errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, ErrNoSnapshot
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("restore catalogue from %s: %w", path, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	missing := c.required &^ c.synced
	if lacks := missing &^ s.Kinds; lacks != 0 {
		return time.Time{}, fmt.Errorf("restore catalogue from %s: it lacks %s", path, lacks)
	}
	in := interner{strings: map[string]string{}, hints: map[string]*Hints{}}
	if missing&Services != 0 {
		for _, v := range s.Services {
			v.Name.Namespace = in.string(v.Name.Namespace)
			for i := range v.Ports {
				v.Ports[i].Name = in.string(v.Ports[i].Name)
			}
			c.setService(v.Name, v)
		}
	}
	if missing&EndpointSlices != 0 {
		for _, v := range s.Slices {
			in.slice(v)
			c.setSlice(v)
		}
	}
	if missing&Namespaces != 0 {
		for _, v := range s.Namespaces {
			c.setNamespace(v.Name, v)
		}
	}
	if missing&Nodes != 0 {
		for _, v := range s.Nodes {
			c.setNode(v.Name, v)
		}
	}
	if missing&Pods != 0 {
		for _, v := range s.Pods {
			c.setPod(ServiceName{v.Namespace, v.Name}, v)
		}
	}
	c.stale = missing
	c.addSynced(c.required)
	return s.Saved, nil
}

// Stale returns the kinds that are known only from a snapshot.
func (c *Catalog) Stale() Kind {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.stale
}

func readSnapshot(path string) (*snapshot, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSnapshot+1))
	switch {
	case err != nil:
		return nil, err
	case len(b) > maxSnapshot:
		return nil, fmt.Errorf("larger than %d bytes", maxSnapshot)
	case !bytes.HasPrefix(b, []byte(snapshotMagic)) || len(b) < len(snapshotMagic)+sha256.Size:
		return nil, errors.New("not a catalogue snapshot of this version")
	}
	body, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if got := sha256.Sum256(body); !bytes.Equal(got[:], sum) {
		return nil, errors.New("checksum does not match: the file is damaged")
	}
	var s snapshot
	if err := gob.NewDecoder(bytes.NewReader(body[len(snapshotMagic):])).Decode(&s); err != nil {
		return nil, err
	}
	return &s, nil
}

// interner gives equal strings and hints one copy again after decoding.
type interner struct {
	strings map[string]string
	hints   map[string]*Hints
}

func (in interner) string(s string) string {
	if t, ok := in.strings[s]; ok {
		return t
	}
	in.strings[s] = s
	return s
}

func (in interner) slice(s *EndpointSlice) {
	s.Namespace = in.string(s.Namespace)
	for i := range s.Ports {
		s.Ports[i].Name = in.string(s.Ports[i].Name)
	}
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		e.Node, e.Zone = in.string(e.Node), in.string(e.Zone)
		if e.Hints == nil {
			continue
		}
		key := fmt.Sprint(e.Hints.Zones, e.Hints.Nodes)
		if h, ok := in.hints[key]; ok {
			e.Hints = h
		} else {
			in.hints[key] = e.Hints
		}
	}
}
