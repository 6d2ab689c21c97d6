package route

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/rutter-project/rutter/internal/node/nodetest"
)

func TestMain(m *testing.M) { os.Exit(nodetest.Main(m)) }

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func dual(runDir string) Config {
	return Config{
		RunDir:       runDir,
		PodCIDRs:     prefixes("10.244.7.0/24", "fd00:10:244:7::/64"),
		ClusterCIDRs: prefixes("10.244.0.0/16", "fd00:10:244::/48"),
		ServiceCIDRs: prefixes("10.96.0.0/16", "fd00:10:96::/112"),
		LocalAddrs:   []netip.Addr{netip.MustParseAddr("169.254.20.10"), netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a")},
	}
}

// host is all that Setup may change, as the usual tools print it.
func host(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, c := range [][]string{
		{"ip", "-o", "addr", "show", "dev", "lo"},
		{"ip", "-4", "route", "show", "table", "all"},
		{"ip", "-6", "route", "show", "table", "all"},
		{"sysctl", "-n", "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv6.conf.lan.accept_ra"},
		{"nft", "list", "ruleset"},
	} {
		out, err := exec.Command(c[0], c[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", c, err, out)
		}
		b.Write(out)
	}
	return b.String()
}

// lan adds an interface that is configured by router advertisements.
func lan(t *testing.T) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "lan"
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "lan-peer"}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(veth); err != nil {
			t.Error(err)
		}
	})
	if err := SetSysctl("net/ipv6/conf/lan/accept_ra", "1"); err != nil {
		t.Fatal(err)
	}
}

func TestSetupAndTeardown(t *testing.T) {
	nodetest.Need(t)
	lan(t)
	before := host(t)
	dir := t.TempDir()

	notes, err := Setup(context.Background(), dual(dir))
	if err != nil {
		t.Fatal(err)
	}
	if len(notes) != 0 {
		t.Errorf("notes %q on an empty host", notes)
	}
	after := host(t)
	for _, want := range []string{
		"inet 10.244.7.1/32 scope global lo:rut",
		"10.96.0.0/16 dev lo proto 82 scope link src 10.244.7.1",
		"local 169.254.20.10 dev lo table local proto 82 scope host",
		"local 10.96.0.10 dev lo table local proto 82 scope host",
		"fd00:10:96::/112 dev lo proto 82 src fd00:10:244:7::1",
		"inet6 fd00:10:96::a/128 scope global nodad",
		"\n1\n1\n2\n", // forwarding on, and the lan still takes advertisements
		"ip saddr 10.244.7.0/24 masquerade fully-random",
		"ip6 saddr fd00:10:244:7::/64 masquerade fully-random",
		"ip daddr 10.244.0.0/16 return",
		`oifname "rut*" return`,
	} {
		if !strings.Contains(after, want) {
			t.Errorf("missing %q in\n%s", want, after)
		}
	}

	// Again, as after kill -9: nothing changes, and what was before the first
	// time is what is restored.
	if _, err := Setup(context.Background(), dual(dir)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(after, host(t)); diff != "" {
		t.Errorf("the second Setup changed (-first +second):\n%s", diff)
	}
	for range 2 {
		if err := Teardown(dir); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, host(t)); diff != "" {
			t.Errorf("left behind (-before +after):\n%s", diff)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left in the run directory: %v", left)
	}
}

func TestSetupDropsWhatIsNoLongerWanted(t *testing.T) {
	nodetest.Need(t)
	dir := t.TempDir()
	t.Cleanup(func() {
		if err := Teardown(dir); err != nil {
			t.Error(err)
		}
	})
	if _, err := Setup(context.Background(), dual(dir)); err != nil {
		t.Fatal(err)
	}
	// The node's agent is started anew with other ranges, IPv4 only.
	next := Config{RunDir: dir, PodCIDRs: prefixes("10.99.1.0/24"), ServiceCIDRs: prefixes("10.98.0.0/16"), LocalAddrs: []netip.Addr{netip.MustParseAddr("10.98.0.10")}}
	if _, err := Setup(context.Background(), next); err != nil {
		t.Fatal(err)
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: Protocol, Table: 0}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range routes {
		got = append(got, r.Dst.String())
	}
	slices.Sort(got)
	if diff := cmp.Diff([]string{"10.98.0.0/16", "10.98.0.10/32"}, got); diff != "" {
		t.Errorf("our routes (-want +got):\n%s", diff)
	}
}

func TestCheckCollision(t *testing.T) {
	nodetest.Need(t)
	lan(t)
	for _, c := range []struct {
		name  string
		setup []string // arguments of ip, undone by the same with "del"
		cidr  string
		want  string
	}{
		{"address inside", []string{"addr", "add", "10.244.7.9/32", "dev", "lan"}, "10.244.7.0/24", "pod CIDR 10.244.7.0/24 collides with 10.244.7.9/32 on interface lan: choose another with --pod-cidr"},
		{"subnet around", []string{"addr", "add", "10.0.0.5/8", "dev", "lan"}, "10.244.7.0/24", "pod CIDR 10.244.7.0/24 collides with 10.0.0.5/8 on interface lan: choose another with --pod-cidr"},
		{"same route", []string{"route", "add", "10.244.7.0/24", "dev", "lan"}, "10.244.7.0/24", "pod CIDR 10.244.7.0/24 collides with the route to 10.244.7.0/24 by interface lan: choose another with --pod-cidr"},
		{"IPv6 address", []string{"-6", "addr", "add", "fd00:7::9/64", "dev", "lan"}, "fd00:7::/64", "pod CIDR fd00:7::/64 collides with fd00:7::9/64 on interface lan: choose another with --pod-cidr"},
		{"wider route", []string{"route", "add", "10.0.0.0/8", "dev", "lan"}, "10.244.7.0/24", ""},
		{"elsewhere", []string{"addr", "add", "192.168.1.5/24", "dev", "lan"}, "10.244.7.0/24", ""},
		{"default route", []string{"route", "add", "default", "dev", "lan"}, "10.244.7.0/24", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			run(t, "ip", "link", "set", "lan", "up")
			run(t, "ip", c.setup...)
			undo := slices.Clone(c.setup)
			undo[slices.Index(undo, "add")] = "del"
			defer run(t, "ip", undo...)
			got := ""
			if err := CheckCollision("pod CIDR", "--pod-cidr", netip.MustParsePrefix(c.cidr)); err != nil {
				got = err.Error()
			}
			if got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
}

func TestForwardingBlocked(t *testing.T) {
	nodetest.Need(t)
	run(t, "nft", "add", "table", "ip", "filter")
	defer run(t, "nft", "delete", "table", "ip", "filter")
	run(t, "nft", "add", "chain", "ip", "filter", "FORWARD", "{ type filter hook forward priority 0; policy drop; }")
	notes := forwardingBlocked()
	if len(notes) != 1 || !strings.Contains(notes[0], "chain FORWARD of table filter drops forwarded packets by default") {
		t.Errorf("notes %q", notes)
	}
}

func TestSetupWithoutPodsTouchesNoForwarding(t *testing.T) {
	nodetest.Need(t)
	lan(t)
	before := host(t)
	dir := t.TempDir()
	if _, err := Setup(context.Background(), Config{RunDir: dir, LocalAddrs: []netip.Addr{netip.MustParseAddr("169.254.20.10")}}); err != nil {
		t.Fatal(err)
	}
	got := strings.Replace(host(t), "local 169.254.20.10 dev lo table local proto 82 scope host \n", "", 1)
	if diff := cmp.Diff(before, got); diff != "" {
		t.Errorf("changed more than the address (-before +after):\n%s", diff)
	}
	if err := Teardown(dir); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}
