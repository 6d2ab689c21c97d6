package proxy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/rutter-project/rutter/internal/proxy/testnet"
)

func TestBridgeProblems(t *testing.T) {
	testnet.New(t, "n").Do(func() {
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "cni0"}}
		if err := netlink.LinkAdd(bridge); err != nil {
			t.Skipf("this kernel has no bridges: %v", err)
		}
		port := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "pod1", MasterIndex: bridge.Index}, PeerName: "eth0"}
		must(netlink.LinkAdd(port))
		addr, err := netlink.ParseAddr("10.244.0.1/24")
		must(err)
		must(netlink.AddrAdd(bridge, addr))
		host, err := netlink.NewHandle()
		must(err)
		defer host.Close()
		on, off := func(bool) bool { return true }, func(bool) bool { return false }
		pods := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:244::/48")}
		for _, tc := range []struct {
			name     string
			pods     []netip.Prefix
			filtered func(bool) bool
			hairpin  bool
			want     []string // a word of each line
		}{
			{"a bridge that is not of pods", []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, off, false, nil},
			{"bridged packets pass by the tables", pods, off, false, []string{"bridge-nf-call-iptables=1"}},
			{"they do not, and no hairpin", pods, on, false, []string{"dev pod1 hairpin on"}},
			{"all is well", pods, on, true, nil},
		} {
			must(netlink.LinkSetHairpin(port, tc.hairpin))
			got, err := bridgeProblems(host, tc.pods, tc.filtered)
			must(err)
			if !slices.EqualFunc(got, tc.want, strings.Contains) {
				t.Errorf("%s: %q, want lines with %q", tc.name, got, tc.want)
			}
		}
	})
}
