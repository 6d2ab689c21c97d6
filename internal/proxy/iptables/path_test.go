package iptables

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rutter-project/rutter/internal/proxy/xtables"
)

// usePrograms skips the test when the host lacks a back end's programs, or its
// kernel what they write to. It is called inside a namespace.
func usePrograms(t *testing.T, b xtables.Backend, v6 bool) {
	base := "iptables-" + string(b)
	if v6 {
		base = "ip6tables-" + string(b)
	}
	if _, err := exec.LookPath(base + "-restore"); err != nil {
		t.Skip(err)
	}
	if out, err := exec.Command(base, "-w", "-t", "nat", "-S").CombinedOutput(); err != nil {
		t.Skipf("%s: %v: %s", base, err, out)
	}
}

// usePath makes a back end the one that is simply called iptables, for the
// length of the test.
func usePath(t testing.TB, b xtables.Backend) {
	dir := t.TempDir()
	for _, base := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			path, err := exec.LookPath(base + "-" + string(b) + suffix)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(path, filepath.Join(dir, base+suffix)); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Setenv("PATH", dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
}
