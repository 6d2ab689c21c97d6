package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// archive is a cpio archive in the "newc" format, which the kernel unpacks as
// its initial RAM file system (Documentation/driver-api/early-userspace/
// buffer-format.rst). It keeps the first error.
type archive struct {
	w    *bufio.Writer
	seen map[string]bool
	n    int // inode number
	err  error
}

func newArchive(w io.Writer) *archive {
	return &archive{w: bufio.NewWriterSize(w, 1<<20), seen: map[string]bool{"/": true}}
}

// clean puts a path to where it is in the guest, whose /lib is a link to
// /usr/lib.
func clean(p string) string {
	p = path.Clean(p)
	for _, d := range []string{"/bin/", "/sbin/", "/lib/", "/lib64/"} {
		if strings.HasPrefix(p, d) {
			return "/usr" + p
		}
	}
	return p
}

func (a *archive) has(p string) bool { return a.seen[clean(p)] }

// entry writes an entry, after those of the directories it is in.
func (a *archive) entry(name string, mode uint32, size int64, body io.Reader) {
	name = clean(name)
	if a.seen[name] || a.err != nil {
		return
	}
	a.dir(path.Dir(name))
	a.seen[name] = true
	a.raw(strings.TrimPrefix(name, "/"), mode, size, body)
}

func (a *archive) raw(name string, mode uint32, size int64, body io.Reader) {
	a.n++
	// magic ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor
	// rdevminor namesize check
	n, err := fmt.Fprintf(a.w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.n, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name)+1, 0, name)
	a.pad(n, err)
	if body != nil && a.err == nil {
		n, err := io.CopyN(a.w, body, size)
		a.pad(int(n%4), err)
	}
}

func (a *archive) pad(n int, err error) {
	if a.err == nil {
		a.err = err
	}
	for ; n%4 != 0; n++ {
		_ = a.w.WriteByte(0)
	}
}

func (a *archive) dir(name string) {
	if clean(name) != "/" {
		a.entry(name, 0o040755, 0, nil)
	}
}

func (a *archive) symlink(name, target string) {
	a.entry(name, 0o120777, int64(len(target)), strings.NewReader(target))
}

func (a *archive) text(name string, mode uint32, b []byte) {
	a.entry(name, 0o100000|mode, int64(len(b)), strings.NewReader(string(b)))
}

// file adds the host's file under a name.
func (a *archive) file(name, from string) {
	if a.err != nil {
		return
	}
	f, err := os.Open(from)
	if err != nil {
		a.err = err
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		a.err = err
		return
	}
	a.entry(name, 0o100000|uint32(info.Mode().Perm()), info.Size(), f)
}

func (a *archive) close() error {
	a.raw("TRAILER!!!", 0, 0, nil)
	if a.err != nil {
		return a.err
	}
	return a.w.Flush()
}
