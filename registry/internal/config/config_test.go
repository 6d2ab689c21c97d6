package config

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

// outboundFake answers like a host with one address of each family.
func outboundFake(ipv6 bool) (netip.Addr, error) {
	if ipv6 {
		return netip.MustParseAddr("2001:db8::10"), nil
	}
	return netip.MustParseAddr("192.0.2.10"), nil
}

func noRoute(bool) (netip.Addr, error) { return netip.Addr{}, errors.New("there is no default route") }

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		args      string
		bind      string
		advertise string
		routable  bool
		services  string
		pods      string
	}{
		{"", "127.0.0.1", "127.0.0.1", false, "10.96.0.0/16", "10.244.0.0/16"},
		{"--bind-address ::1", "::1", "::1", false, "10.96.0.0/16", "10.244.0.0/16"},
		{"--bind-address 10.0.0.5", "10.0.0.5", "10.0.0.5", true, "10.96.0.0/16", "10.244.0.0/16"},
		{"--bind-address 0.0.0.0", "0.0.0.0", "192.0.2.10", true, "10.96.0.0/16", "10.244.0.0/16"},
		{"--bind-address :: --service-cidr fd00:1::/108", "::", "2001:db8::10", true, "fd00:1::/108", "fd00:10:244::/56"},
		{"--bind-address 0.0.0.0 --advertise-address 10.9.9.9", "0.0.0.0", "10.9.9.9", true, "10.96.0.0/16", "10.244.0.0/16"},
		{"--advertise-address 10.9.9.9", "127.0.0.1", "10.9.9.9", true, "10.96.0.0/16", "10.244.0.0/16"},
		{"--service-cidr 10.96.0.0/16,fd00:1::/108", "127.0.0.1", "127.0.0.1", false, "10.96.0.0/16,fd00:1::/108", "10.244.0.0/16,fd00:10:244::/56"},
		{"--service-cidr fd00:1::/64,10.96.0.0/24 --pod-cidr fd00:2::/48", "127.0.0.1", "127.0.0.1", false, "fd00:1::/64,10.96.0.0/24", "fd00:2::/48"},
		{"--service-cidr 127.96.0.0/16", "127.0.0.1", "127.0.0.1", false, "127.96.0.0/16", "10.244.0.0/16"},
		{"--service-cidr 10.96.0.0/29", "127.0.0.1", "127.0.0.1", false, "10.96.0.0/29", "10.244.0.0/16"},
	} {
		c, _, err := Parse(strings.Fields(tc.args), outboundFake)
		if err != nil {
			t.Errorf("%q: %v", tc.args, err)
			continue
		}
		if got := c.Bind.String(); got != tc.bind {
			t.Errorf("%q: bind %s, want %s", tc.args, got, tc.bind)
		}
		if got := c.Advertise.String(); got != tc.advertise || c.Routable != tc.routable {
			t.Errorf("%q: advertise %s (routable %v), want %s (%v)", tc.args, got, c.Routable, tc.advertise, tc.routable)
		}
		if got := text(c.ServiceCIDRs); got != tc.services {
			t.Errorf("%q: services %s, want %s", tc.args, got, tc.services)
		}
		if got := text(c.PodCIDRs); got != tc.pods {
			t.Errorf("%q: pods %s, want %s", tc.args, got, tc.pods)
		}
	}
}

func text(ps []netip.Prefix) string {
	var s []string
	for _, p := range ps {
		s = append(s, p.String())
	}
	return strings.Join(s, ",")
}

// TestRefused: every message is one line and names the flag.
func TestRefused(t *testing.T) {
	for _, tc := range []struct{ args, want string }{
		{"--nope", "unknown flag: --nope"},
		{"extra", `unexpected argument "extra"`},
		{"--data-dir=", "--data-dir is empty"},
		{"--bind-address localhost", `--bind-address "localhost" is not an IP address`},
		{"--bind-address 224.0.0.1", "--bind-address 224.0.0.1 is a multicast address"},
		{"--bind-address fe80::1%eth0", "--bind-address"},
		{"--bind-address ::ffff:10.0.0.1", "--bind-address"},
		{"--secure-port 65536", `--secure-port "65536" is not a port`},
		{"--secure-port -1", `--secure-port "-1" is not a port`},
		{"--secure-port http", `--secure-port "http" is not a port`},
		{"--advertise-address 0.0.0.0", "--advertise-address 0.0.0.0 is not an address others can connect to"},
		{"--bind-address 0.0.0.0 --advertise-address 127.0.0.1", "--advertise-address 127.0.0.1 is loopback"},
		{"--bind-address 10.0.0.5 --service-cidr fd00::/108", "different IP families"},
		{"--bind-address 10.96.0.5", "lies inside --service-cidr 10.96.0.0/16"},
		{"--service-cidr 10.96.0.0", `--service-cidr: "10.96.0.0" is not an address range`},
		{"--service-cidr 10.96.0.1/16", "did you mean 10.96.0.0/16?"},
		{"--service-cidr 10.96.0.0/30", "at least 8 addresses"},
		{"--service-cidr fd00::/126", "at least 8 addresses"},
		{"--service-cidr fd00::/63", "is too large"},
		{"--service-cidr 224.0.0.0/16", "is not a range of unicast addresses"},
		{"--service-cidr 169.254.0.0/16", "is not a range of unicast addresses"},
		{"--service-cidr ::ffff:10.0.0.0/112", "is not an address range"},
		{"--service-cidr 10.96.0.0/16,10.97.0.0/16", "two ranges of one family"},
		{"--service-cidr 10.96.0.0/16,fd00::/108,10.97.0.0/16", "has 3 ranges"},
		{"--service-cidr 10.96.0.0/16,", `"" is not an address range`},
		{"--pod-cidr 10.244.0.0/25", "--pod-cidr: 10.244.0.0/25 is too small"},
		{"--pod-cidr fd00::/113 --service-cidr fd01::/108", "--pod-cidr: fd00::/113 is too small"},
		{"--pod-cidr 127.0.0.0/16", "--pod-cidr: 127.0.0.0/16 is loopback"},
		{"--pod-cidr 10.0.0.0/8", "--service-cidr 10.96.0.0/16 and --pod-cidr 10.0.0.0/8 overlap"},
		{"--pod-cidr fd00::/56", "put the same IP family first in both"},
		{"--service-cidr 10.96.0.0/16,fd00::/108 --pod-cidr fd01::/56,10.244.0.0/16", "put the same IP family first in both"},
		{"--cluster-domain cluster_local", `--cluster-domain "cluster_local"`},
		{"--cluster-domain .", `--cluster-domain "."`},
		{"--etcd-endpoints 10.0.0.1:2379", "--etcd-endpoints"},
		{"--etcd-endpoints http://10.0.0.1", "--etcd-endpoints"},
		{"--etcd-endpoints http://10.0.0.1:1,https://10.0.0.2:1", "mixes http and https"},
		{"--etcd-cafile ca", "--etcd-cafile is given without --etcd-endpoints"},
		{"--etcd-endpoints http://10.0.0.1:1 --etcd-cafile ca", "--etcd-cafile is given but --etcd-endpoints uses http"},
		{"--etcd-endpoints https://10.0.0.1:1 --etcd-certfile c", "belong together"},
		{"--etcd-prefix /x", "--etcd-prefix is given without --etcd-endpoints"},
		{"--etcd-endpoints http://10.0.0.1:1 --etcd-prefix /", `--etcd-prefix "/" is empty`},
		{"--log-level loud", `--log-level "loud"`},
		{"--log-level info+1", `--log-level "info+1"`},
		{"--log-format xml", `--log-format "xml"`},
	} {
		_, _, err := Parse(strings.Fields(tc.args), outboundFake)
		if err == nil {
			t.Errorf("%q: accepted", tc.args)
			continue
		}
		if !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %q, want one line with %q", tc.args, err, tc.want)
		}
	}
	_, _, err := Parse([]string{"--bind-address", "0.0.0.0"}, noRoute)
	if err == nil || !strings.Contains(err.Error(), "give --advertise-address") {
		t.Errorf("no route: %v", err)
	}
}

func TestHelpAndVersion(t *testing.T) {
	_, usage, err := Parse([]string{"--help"}, noRoute)
	if !errors.Is(err, ErrHelp) || !strings.Contains(usage, "--service-cidr") {
		t.Errorf("help: %v, %q", err, usage)
	}
	if _, _, err := Parse([]string{"--version"}, noRoute); !errors.Is(err, ErrVersion) {
		t.Errorf("version: %v", err)
	}
}

func TestEtcd(t *testing.T) {
	c, _, err := Parse(strings.Fields("--etcd-endpoints https://a:2379/,https://b:2379 --etcd-prefix x/y/"), noRoute)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(c.Etcd.Endpoints, " "); got != "https://a:2379 https://b:2379" || c.Etcd.Prefix != "/x/y" || !c.Etcd.External() {
		t.Errorf("got %q %q", got, c.Etcd.Prefix)
	}
}

func TestNodeMask(t *testing.T) {
	for _, tc := range []struct {
		pods string
		want int
	}{
		{"10.244.0.0/16", 24}, {"10.244.1.0/24", 24},
		{"fd00::/40", 56}, {"fd00::/47", 63}, {"fd00::/48", 64}, {"fd00::/56", 64}, {"fd00::/57", 65}, {"fd00::/64", 72}, {"fd00::/112", 120},
	} {
		p := netip.MustParsePrefix(tc.pods)
		got := NodeMask(p)
		if got != tc.want {
			t.Errorf("%s: /%d, want /%d", p, got, tc.want)
		}
		if p.Addr().Is6() && got-p.Bits() > 16 {
			t.Errorf("%s: /%d makes more than 2^16 node ranges", p, got)
		}
	}
}

func TestLocalHost(t *testing.T) {
	for bind, want := range map[string]string{"0.0.0.0": "127.0.0.1", "::": "::1", "10.0.0.5": "10.0.0.5", "127.0.0.1": "127.0.0.1"} {
		if got := (Config{Bind: netip.MustParseAddr(bind)}).LocalHost().String(); got != want {
			t.Errorf("%s: %s, want %s", bind, got, want)
		}
	}
}

// FuzzParse: no command line makes it panic, and every refusal is one line.
func FuzzParse(f *testing.F) {
	f.Add("--service-cidr", "10.96.0.0/16,fd00::/108")
	f.Add("--cluster-domain", "a.b.")
	f.Add("--etcd-endpoints", "http://[::1]:2379")
	f.Fuzz(func(t *testing.T, flag, value string) {
		c, _, err := Parse([]string{flag, value}, outboundFake)
		if err == nil && (len(c.ServiceCIDRs) == 0 || !c.Advertise.IsValid()) {
			t.Errorf("accepted %q %q without a range or address", flag, value)
		}
	})
}
