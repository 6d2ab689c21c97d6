package proxy_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy"
	"github.com/rutter-project/rutter/internal/proxy/testnet"
)

// Who holds the lock of iptables' legacy back end is shown by the status for as
// long as that lasts; then everything is programmed. Not parallel: it changes
// the environment.
func TestIPTablesLocked(t *testing.T) {
	dir := t.TempDir()
	for _, base := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			path, err := exec.LookPath(base + "-legacy" + suffix)
			if err != nil {
				t.Skip(err)
			}
			if err := os.Symlink(path, filepath.Join(dir, base+suffix)); err != nil {
				t.Fatal(err)
			}
		}
	}
	lock := filepath.Join(dir, "lock")
	t.Setenv("PATH", dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
	t.Setenv("XTABLES_LOCKFILE", lock) // not that of this host
	space := testnet.New(t, "node")
	var works error
	space.Do(func() { works = exec.Command("iptables", "-w", "-t", "nat", "-S").Run() })
	if works != nil {
		t.Skip("this kernel has no ip_tables: ", works)
	}
	cat := catalog.New(catalog.Services | catalog.EndpointSlices)
	cat.ReplaceServices([]*catalog.Service{service("web", "10.96.0.1")})
	cat.ReplaceSlices([]*catalog.EndpointSlice{slice("web", "10.244.0.2")})
	sub := cat.Subscribe()
	defer sub.Close()
	p, err := proxy.New(cat, proxy.Config{Node: "node", Mode: proxy.ModeIPTables, IPv4: true})
	if err != nil {
		t.Fatal(err)
	}
	space.Do(func() { err = p.Start(context.Background()) })
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	f, err := os.OpenFile(lock, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := p.Apply(t.Context(), sub.Take()); err == nil {
		t.Skip("these iptables programs know no XTABLES_LOCKFILE")
	}
	if s := p.Status(); s.Adopted || !strings.Contains(s.LastError, "holds the lock") {
		t.Errorf("while the lock is held: adopted %t, %q", s.Adopted, s.LastError)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		s := p.Status()
		if s.Adopted && s.LastError == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("long after the lock was let go: %+v", s)
		}
	}
}
