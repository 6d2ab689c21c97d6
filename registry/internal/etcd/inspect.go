package etcd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.uber.org/zap"
)

// inspect finds damage that etcd would meet in a goroutine of its own, where
// bbolt's panic ends the process with a stack trace and no advice, or would
// not notice and wait for ever. It reads the database's page tree once, as
// etcd then does again to learn which pages are free.
//
// What a first start left behind that was killed before it wrote anything is
// no damage: it is removed, so that this start is the first.
func inspect(dir string) error {
	db := filepath.Join(dir, "member", "snap", "db")
	if _, err := os.Stat(db); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	keys, err := holdsKeys(db)
	if err != nil {
		return err
	}
	logs, err := filepath.Glob(filepath.Join(dir, "member", "wal", "*.wal"))
	switch {
	case err != nil:
		return err
	case keys && len(logs) == 0:
		// A first start that was killed leaves an empty database without a
		// log, and etcd goes on from there. With keys but no log it would wait
		// for a leader that never comes.
		return fmt.Errorf("there is a database but no write-ahead log in %s", filepath.Join(dir, "member", "wal"))
	case keys || len(logs) == 0:
		return nil
	}
	return removeUnbegun(dir)
}

// holdsKeys tells whether a database has any revision of a key.
func holdsKeys(db string) (yes bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s is damaged: %v", db, p)
		}
	}()
	b, err := bbolt.Open(db, 0o600, &bbolt.Options{ReadOnly: true, PreLoadFreelist: true})
	if err != nil {
		return false, fmt.Errorf("opening %s: %w", db, err)
	}
	defer b.Close()
	err = b.View(func(tx *bbolt.Tx) error {
		if keys := tx.Bucket([]byte("key")); keys != nil { // etcd's bucket of all revisions (server/v3/storage/schema)
			k, _ := keys.Cursor().First()
			yes = k != nil
		}
		return nil
	})
	return yes, err
}

// removeUnbegun removes a member whose log commits nothing. etcd makes the log
// first and writes its own membership into it next (etcdserver, bootstrap.go).
// Killed in between, it finds a log when it starts again, so takes itself for
// a member that once was, which no membership knows: it never elects itself,
// and waits for ever. Nothing was ever acknowledged, so nothing is lost.
//
// The database lags behind the log by a tenth of a second at most, so with no
// key in it the log is short.
func removeUnbegun(dir string) error {
	logs := filepath.Join(dir, "member", "wal")
	w, err := wal.OpenForRead(zap.NewNop(), logs, walpb.Snapshot{})
	if err != nil {
		return nil // etcd repairs it, or says what is wrong
	}
	_, state, _, err := w.ReadAll()
	w.Close()
	if err != nil || state.Commit > 0 {
		return nil
	}
	if err := os.RemoveAll(filepath.Join(dir, "member")); err != nil {
		return fmt.Errorf("removing what a start left that was killed before it wrote anything: %w", err)
	}
	return nil
}
