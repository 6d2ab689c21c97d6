package sandbox

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/rutter-project/rutter/internal/node/nodetest"
)

func TestNextFree(t *testing.T) {
	for _, c := range []struct {
		name, cidr, last string
		used             string
		want             string
	}{
		{"first of all", "10.1.0.0/24", "", "", "10.1.0.2"},
		{"behind the last", "10.1.0.0/24", "10.1.0.2", "", "10.1.0.3"},
		{"over what is used", "10.1.0.0/24", "10.1.0.2", "10.1.0.3 10.1.0.4", "10.1.0.5"},
		{"round the end, never the broadcast address", "10.1.0.0/29", "10.1.0.6", "", "10.1.0.2"},
		{"only the last one is left", "10.1.0.0/29", "10.1.0.6", "10.1.0.2 10.1.0.3 10.1.0.4 10.1.0.5", "10.1.0.6"},
		{"none is left", "10.1.0.0/30", "", "10.1.0.2", ""},
		{"last of another CIDR below", "10.1.0.0/24", "10.0.0.7", "", "10.1.0.2"},
		{"last of another CIDR above", "10.1.0.0/24", "10.2.0.7", "", "10.1.0.2"},
		{"host bits are ignored", "10.1.0.99/24", "", "", "10.1.0.2"},
		{"IPv6 has no broadcast", "fd00::/126", "fd00::2", "fd00::2", "fd00::3"},
		{"IPv6 wide", "fd00::/64", "fd00::ff", "", "fd00::100"},
		{"end of the address space", "255.255.255.252/30", "255.255.255.254", "255.255.255.254", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			used := make(map[netip.Addr]bool)
			for _, u := range strings.Fields(c.used) {
				used[netip.MustParseAddr(u)] = true
			}
			var last netip.Addr
			if c.last != "" {
				last = netip.MustParseAddr(c.last)
			}
			got, ok := nextFree(netip.MustParsePrefix(c.cidr).Masked(), last, used)
			text := ""
			if ok {
				text = got.String()
			}
			if text != c.want {
				t.Errorf("got %q, want %q", text, c.want)
			}
		})
	}
}

// Claims at the same time never share an address, one that is given back is
// not the next to go out, and a full CIDR says so.
func TestClaimsAtOnce(t *testing.T) {
	nodetest.Need(t)
	dir := t.TempDir()
	cfg := Config{RunDir: dir, Namespace: "default", Pod: "a", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.9.0/28")}}
	const room = 13 // 16 less network, gateway, broadcast
	var mu sync.Mutex
	var all []*Sandbox
	seen := make(map[netip.Addr]bool)
	var wg sync.WaitGroup
	for range room {
		wg.Go(func() {
			s, err := Claim(cfg)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if seen[s.Record.Addrs[0]] {
				t.Errorf("%s went out twice", s.Record.Addrs[0])
			}
			seen[s.Record.Addrs[0]] = true
			all = append(all, s)
		})
	}
	wg.Wait()
	if _, err := Claim(cfg); err == nil || !strings.Contains(err.Error(), "no free address in pod CIDR 10.244.9.0/28: 13 are in use") {
		t.Errorf("a full CIDR: %v", err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, podsDir)); err != nil || len(left) != room+2 {
		t.Errorf("the failed claim left something: %d entries, %v", len(left), err)
	}
	freed := all[0].Record.Addrs[0]
	for _, s := range all[:2] {
		if err := s.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	got := make(map[netip.Addr]bool)
	for range 2 {
		s, err := Claim(cfg)
		if err != nil {
			t.Fatal(err)
		}
		got[s.Record.Addrs[0]] = true
		all = append(all, s)
	}
	if !got[freed] || len(got) != 2 {
		t.Errorf("got %v, want the two that were freed, %s among them", got, freed)
	}
	for _, s := range all[2:] {
		if err := s.Remove(); err != nil {
			t.Fatal(err)
		}
	}
}

// The kernel's routes count too: a run directory may have been deleted.
func TestClaimPassesOverRoutedAddresses(t *testing.T) {
	nodetest.Need(t)
	first := build(t, t.TempDir(), "a")
	second := claim(t, t.TempDir(), "b") // knows nothing of the first's records
	for i := range first.Record.Addrs {
		if first.Record.Addrs[i] == second.Record.Addrs[i] {
			t.Errorf("%s went out twice", second.Record.Addrs[i])
		}
	}
}

func TestClaimRefuses(t *testing.T) {
	nodetest.Need(t)
	for _, c := range []struct{ cidr, want string }{
		{"10.244.9.0/31", "has no room for pods"},
		{"127.0.0.0/24", "pod CIDR 127.0.0.0/24 collides with 127.0.0.1/8 on interface lo: choose another with --pod-cidr"},
	} {
		_, err := Claim(Config{RunDir: t.TempDir(), Namespace: "d", Pod: "p", PodCIDRs: []netip.Prefix{netip.MustParsePrefix(c.cidr)}})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.cidr, err, c.want)
		}
	}
	if _, err := Claim(Config{RunDir: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "no pod CIDR") {
		t.Errorf("no CIDR: %v", err)
	}
}
