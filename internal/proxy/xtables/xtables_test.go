package xtables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/proxy/testnet"
)

func TestParseVersion(t *testing.T) {
	for _, c := range []struct {
		text string
		v    Version
		b    Backend
	}{
		{"iptables v1.8.9 (nf_tables)\n", Version{1, 8, 9}, NFT},
		{"ip6tables v1.8.11 (legacy)\n", Version{1, 8, 11}, Legacy},
		{"iptables v1.6.1\n", Version{1, 6, 1}, Legacy},
		{"iptables v1.8 (nf_tables)", Version{1, 8, 0}, NFT},
	} {
		if v, b, err := parseVersion(c.text); v != c.v || b != c.b || err != nil {
			t.Errorf("%q: %s, %s, %v", c.text, v, b, err)
		}
	}
	if _, _, err := parseVersion("sh: not found"); err == nil {
		t.Error("no version gives no error")
	}
	if v := (Version{1, 6, 2}); !v.AtLeast(1, 6, 2) || v.AtLeast(1, 6, 3) || !v.AtLeast(1, 5, 9) || v.AtLeast(2, 0, 0) {
		t.Error("AtLeast is wrong")
	}
}

func TestFindLock(t *testing.T) {
	const locks = `1: POSIX  ADVISORY  WRITE 12 00:19:41 0 EOF
2: FLOCK  ADVISORY  WRITE 4711 00:19:42 0 EOF
2: -> FLOCK  ADVISORY  WRITE 4712 00:19:42 0 EOF
`
	if pid := findLock(locks, 42); pid != 4711 {
		t.Errorf("the holder is %d", pid)
	}
	if pid := findLock(locks, 43); pid != 0 {
		t.Errorf("a file without lock has holder %d", pid)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j KUBE-SERVICES\nCOMMIT\n")
	f.Add("-A x\n:\n-A  \n")
	f.Fuzz(func(t *testing.T, text string) {
		for name, rules := range Parse(text).Chains {
			if name == "" {
				t.Error("a chain without a name")
			}
			for _, r := range rules {
				if !strings.Contains(text, r) && !strings.Contains(text, "nfacct-name  ") {
					t.Errorf("rule %q is not in the text", r)
				}
			}
		}
	})
}

func FuzzFindLock(f *testing.F) {
	f.Add("1: FLOCK  ADVISORY  WRITE 4711 00:19:42 0 EOF\n", uint64(42))
	f.Fuzz(func(t *testing.T, text string, inode uint64) { findLock(text, inode) })
}

// eachBackend runs f for the programs of both back ends, in a namespace each.
func eachBackend(t *testing.T, f func(t *testing.T, n *testnet.Space, p *Programs)) {
	for _, b := range []Backend{NFT, Legacy} {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s v6=%t", b, v6), func(t *testing.T) {
				n := testnet.New(t, "xtables")
				var all []*Programs
				n.Do(func() {
					var err error
					if all, err = All(v6); err != nil {
						t.Skip(err)
					}
				})
				for _, p := range all {
					defer p.Close()
				}
				for _, p := range all {
					if p.Backend == b {
						f(t, n, p)
						return
					}
				}
				t.Skipf("no iptables programs of back end %s are installed", b)
			})
		}
	}
}

func TestRestoreAndSave(t *testing.T) {
	eachBackend(t, func(t *testing.T, _ *testnet.Space, p *Programs) {
		ctx := context.Background()
		skipUnlessWorking(t, p)
		err := p.Restore(ctx, []byte("*nat\n:ONE - [0:0]\n:TWO - [0:0]\n-A ONE -m comment --comment \"with blanks\" -j TWO\n-A ONE -p tcp -m tcp --dport 80 -j RETURN\nCOMMIT\n"))
		if err != nil {
			t.Fatal(err)
		}
		text, err := p.Save(ctx, "nat")
		if err != nil {
			t.Fatal(err)
		}
		got := Parse(string(text))
		want := []string{`-m comment --comment "with blanks" -j TWO`, "-p tcp -m tcp --dport 80 -j RETURN"}
		if !reflect.DeepEqual(got.Chains["ONE"], want) {
			t.Errorf("chain ONE has %q", got.Chains["ONE"])
		}
		if _, ok := got.Chains["TWO"]; !ok {
			t.Error("the empty chain TWO is not listed")
		}
		// What is refused changes nothing.
		var refusal *RestoreError
		err = p.Restore(ctx, []byte("*nat\n:ONE - [0:0]\n-A ONE -j NOWHERE\nCOMMIT\n"))
		if !errors.As(err, &refusal) {
			t.Fatalf("a jump to nowhere gives %v", err)
		}
		if text, err = p.Save(ctx, "nat"); err != nil || !reflect.DeepEqual(Parse(string(text)), got) {
			t.Errorf("after a refusal (%v) the table has changed: %s", err, text)
		}
	})
}

// skipUnlessWorking skips the test on a kernel without what the programs write
// to: ip_tables may be left out of newer ones.
func skipUnlessWorking(t *testing.T, p *Programs) {
	if _, err := p.Run(t.Context(), "-t", "nat", "-S"); err != nil {
		t.Skip(err)
	}
}

// TestSaveMakesNothing: to look must not make tables.
func TestSaveMakesNothing(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *testnet.Space, p *Programs) {
		if text, err := p.Save(context.Background(), "nat"); err != nil || strings.Contains(string(text), "-A") {
			t.Errorf("an empty namespace has %q, %v", text, err)
		}
		if p.Backend == Legacy && p.hasTable("nat") {
			t.Error("looking at the table has made it")
		}
	})
}

func TestChoose(t *testing.T) {
	for _, c := range []struct {
		name  string
		rules map[Backend]string
		want  Backend // empty: the host's default
	}{
		{"nothing", nil, ""},
		{"more rules in legacy", map[Backend]string{Legacy: "*filter\n-A INPUT -j ACCEPT\nCOMMIT\n"}, Legacy},
		{"more rules in nft", map[Backend]string{NFT: "*filter\n-A INPUT -j ACCEPT\n-A INPUT -j ACCEPT\nCOMMIT\n", Legacy: "*filter\n-A INPUT -j ACCEPT\nCOMMIT\n"}, NFT},
		{"a hint outweighs rules", map[Backend]string{NFT: "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n", Legacy: "*filter\n-A INPUT -j ACCEPT\nCOMMIT\n"}, NFT},
		{"a hint in legacy", map[Backend]string{Legacy: "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n", NFT: "*filter\n-A INPUT -j ACCEPT\nCOMMIT\n"}, Legacy},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := testnet.New(t, "xtables")
			var all []*Programs
			n.Do(func() {
				var err error
				if all, err = All(false); err != nil {
					t.Skip(err)
				}
			})
			for _, p := range all {
				defer p.Close()
			}
			if len(all) < 2 {
				t.Skip("the programs of both iptables back ends are needed")
			}
			for _, p := range all {
				if r := c.rules[p.Backend]; r != "" {
					skipUnlessWorking(t, p)
					if err := p.Restore(t.Context(), []byte(r)); err != nil {
						t.Fatal(err)
					}
				}
			}
			var log strings.Builder
			p, err := Choose(t.Context(), slog.New(slog.NewTextHandler(&log, nil)), all)
			if err != nil {
				t.Fatal(err)
			}
			if c.want == "" {
				c.want = all[0].Backend
			}
			if p.Backend != c.want {
				t.Errorf("chosen: %s", p)
			}
			both := c.rules[NFT] != "" && c.rules[Legacy] != "" && c.name != "a hint outweighs rules"
			if told := strings.Contains(log.String(), "rules are in both"); both && !told {
				t.Errorf("a mix of rules is not told: %s", log.String())
			}
		})
	}
}

// TestLockHolder: who holds a lock is found, and the program's words are known.
func TestLockHolder(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "lock")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		t.Skip(err)
	}
	if pid := findLock(string(locks), st.Ino); pid != os.Getpid() {
		t.Errorf("the holder is %d, not this process (%d): %s", pid, os.Getpid(), locks)
	}
	e := (&Programs{}).refusal("iptables-restore", 4, "Another app is currently holding the xtables lock; still 1s 0us time ahead to have a chance to grab the lock...\n")
	var locked *LockedError
	if !errors.As(e, &locked) {
		t.Errorf("the lock's message gives %v", e)
	}
}
