package etcd

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// TestUnbegunLog: a first start that was killed after etcd made its log, and
// before or while it wrote the first entry, can be repeated.
func TestUnbegunLog(t *testing.T) {
	for name, entries := range map[string][]raftpb.Entry{
		"no entry":              nil,
		"an entry, uncommitted": {{Term: 1, Index: 1, Type: raftpb.EntryConfChange}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			emptyDatabase(t, dir)
			meta, err := (&etcdserverpb.Metadata{NodeID: 1, ClusterID: 2}).Marshal()
			if err != nil {
				t.Fatal(err)
			}
			w, err := wal.Create(zap.NewNop(), filepath.Join(dir, "member", "wal"), meta)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Save(raftpb.HardState{}, entries); err != nil {
				t.Fatal(err)
			}
			w.Close()
			started(t, dir).Close()
		})
	}
}

// TestLogAheadOfDatabase: what the log acknowledged is there after a kill,
// though the database has nothing of it yet.
func TestLogAheadOfDatabase(t *testing.T) {
	dir := t.TempDir()
	e := started(t, dir)
	put(t, e)
	e.Close()
	if err := os.Remove(filepath.Join(dir, "member", "snap", "db")); err != nil {
		t.Fatal(err)
	}
	emptyDatabase(t, dir)
	e = started(t, dir)
	defer e.Close()
	if v, err := e.Store().Get(t.Context(), "/a"); err != nil || string(v) != "1" {
		t.Errorf("%q, %v", v, err)
	}
}

// started is an etcd at work on a directory.
func started(t *testing.T, dir string) *Embedded {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	e, err := StartEmbedded(t.Context(), dir, socket, slog.New(slog.DiscardHandler), func(err error) { panic(err) })
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func put(t *testing.T, e *Embedded) {
	t.Helper()
	s := e.Store()
	c, err := s.client(t.Context(), s.Endpoints)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Put(t.Context(), s.Prefix+"/a", "1"); err != nil {
		t.Fatal(err)
	}
}

// emptyDatabase is etcd's database before anything is written to it.
func emptyDatabase(t *testing.T, dir string) {
	t.Helper()
	snap := filepath.Join(dir, "member", "snap")
	if err := os.MkdirAll(snap, 0o700); err != nil {
		t.Fatal(err)
	}
	b, err := bbolt.Open(filepath.Join(snap, "db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}
