package etcd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"
)

// inspect finds damage that etcd would meet in a goroutine of its own, where
// bbolt's panic ends the process with a stack trace and no advice, or would
// not notice and wait for ever. It reads the database's page tree once, as
// etcd then does again to learn which pages are free.
func inspect(dir string) (err error) {
	db := filepath.Join(dir, "member", "snap", "db")
	if _, err := os.Stat(db); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s is damaged: %v", db, p)
		}
	}()
	b, err := bbolt.Open(db, 0o600, &bbolt.Options{ReadOnly: true, PreLoadFreelist: true})
	if err != nil {
		return fmt.Errorf("opening %s: %w", db, err)
	}
	defer b.Close()
	wal := filepath.Join(dir, "member", "wal")
	logs, err := filepath.Glob(filepath.Join(wal, "*.wal"))
	if err != nil || len(logs) > 0 {
		return err
	}
	// A first start that was killed leaves an empty database without a log,
	// and etcd goes on from there. With keys but no log it would wait for a
	// leader that never comes.
	return b.View(func(tx *bbolt.Tx) error {
		keys := tx.Bucket([]byte("key")) // etcd's bucket of all revisions (server/v3/storage/schema)
		if keys == nil {
			return nil
		}
		if k, _ := keys.Cursor().First(); k != nil {
			return fmt.Errorf("there is a database but no write-ahead log in %s", wal)
		}
		return nil
	})
}
