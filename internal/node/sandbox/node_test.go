package sandbox

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/node/nodetest"
	"github.com/rutter-project/rutter/internal/node/route"
)

// answerIn listens in the calling thread's network namespace, or in the one
// named, and tells each client which address it came from.
func answerIn(t *testing.T, netns, address string) {
	t.Helper()
	var l net.Listener
	err := onThread(func() (err error) {
		if netns != "" {
			ns, err := os.Open("/run/netns/" + netns)
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
		}
		l, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			_, _ = io.WriteString(c, host)
			_ = c.Close()
		}
	}()
}

// The node as Setup makes it, with packets: what leaves the cluster is
// masqueraded, what stays is not; the node's DNS address answers; the node has
// a way to services without a default route.
func TestNodeWithPods(t *testing.T) {
	nodetest.Need(t)
	dir := t.TempDir()
	run(t, "ip", "netns", "add", "outside")
	t.Cleanup(func() { run(t, "ip", "netns", "delete", "outside") })
	for _, args := range []string{
		"link add out type veth peer name eth0 netns outside",
		"link set out up", "-n outside link set eth0 up", "-n outside link set lo up",
		"addr add 192.0.2.1/24 dev out", "-n outside addr add 192.0.2.2/24 dev eth0",
		"-6 addr add 2001:db8::1/64 dev out nodad", "-n outside -6 addr add 2001:db8::2/64 dev eth0 nodad",
	} {
		run(t, "ip", strings.Fields(args)...)
	}
	_, err := route.Setup(context.Background(), route.Config{
		RunDir: dir, PodCIDRs: dual,
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")},
		LocalAddrs:   []netip.Addr{netip.MustParseAddr("169.254.20.10"), netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a")},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := route.Teardown(dir); err != nil {
			t.Error(err)
		}
	})
	client, server := build(t, dir, "client"), build(t, dir, "server")
	answerIn(t, "outside", "[::]:80")
	answerIn(t, server.Record.NetNS, "[::]:80")
	answerIn(t, "", "169.254.20.10:53")
	answerIn(t, "", "[fd00:10:96::a]:53")

	// The dataplane's part, for one service.
	rules := fmt.Sprintf(`table inet services {
	chain both {
		ip daddr 10.96.1.1 tcp dport 8080 dnat ip to %s:80
		ip6 daddr fd00:10:96::101 tcp dport 8080 dnat ip6 to [%s]:80
	}
	chain output { type nat hook output priority -100; jump both; }
	chain prerouting { type nat hook prerouting priority -100; jump both; }
}
`, server.Record.Addrs[0], server.Record.Addrs[1])
	nft := exec.Command("nft", "-f", "-")
	nft.Stdin = strings.NewReader(strings.ReplaceAll(rules, "; jump both; }", "\n\tjump both\n\t}"))
	if out, err := nft.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Cleanup(func() { run(t, "nft", "delete", "table", "inet", "services") })

	gate4, gate6 := Gateway(dual[0]).String(), Gateway(dual[1]).String()
	for _, c := range []struct{ from, to, seen string }{
		{"pod", "192.0.2.2:80", "192.0.2.1"}, // masqueraded
		{"pod", "[2001:db8::2]:80", "2001:db8::1"},
		{"pod", "POD4:80", "CLIENT4"}, // not
		{"pod", "[POD6]:80", "CLIENT6"},
		{"pod", "10.96.1.1:8080", "CLIENT4"},
		{"pod", "[fd00:10:96::101]:8080", "CLIENT6"},
		{"pod", "169.254.20.10:53", "CLIENT4"},
		{"pod", "[fd00:10:96::a]:53", "CLIENT6"},
		{"host", "10.96.1.1:8080", gate4},
		{"host", "[fd00:10:96::101]:8080", gate6},
		{"host", "169.254.20.10:53", "169.254.20.10"},
	} {
		names := strings.NewReplacer("POD4", server.Record.Addrs[0].String(), "POD6", server.Record.Addrs[1].String(),
			"CLIENT4", client.Record.Addrs[0].String(), "CLIENT6", client.Record.Addrs[1].String())
		to, want := names.Replace(c.to), names.Replace(c.seen)
		dial := func() error {
			conn, err := net.DialTimeout("tcp", to, 5*time.Second)
			if err != nil {
				return err
			}
			defer conn.Close()
			text, err := io.ReadAll(conn)
			if got := strings.TrimPrefix(string(text), "::ffff:"); err == nil && got != want {
				t.Errorf("from %s to %s: seen as %s, want %s", c.from, to, got, want)
			}
			return err
		}
		err := error(nil)
		if c.from == "host" {
			err = dial()
		} else {
			err = onThread(func() error {
				if err := client.enterNetNS(); err != nil {
					return err
				}
				return dial() // its socket is made by this thread: one literal address, one goroutine
			})
		}
		if err != nil {
			t.Errorf("from %s to %s: %v", c.from, to, err)
		}
	}
}

func TestSingleFamily(t *testing.T) {
	nodetest.Need(t)
	for _, cidr := range dual {
		dir := t.TempDir()
		s, err := Claim(Config{RunDir: dir, Namespace: "default", Pod: "single", PodCIDRs: []netip.Prefix{cidr}})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Build(context.Background(), files("single")); err != nil {
			t.Fatal(err)
		}
		answerIn(t, s.Record.NetNS, "[::]:80")
		conn, err := net.DialTimeout("tcp", net.JoinHostPort(s.Record.Addrs[0].String(), "80"), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(conn)
		_ = conn.Close()
		if got, want := strings.TrimPrefix(string(text), "::ffff:"), Gateway(cidr).String(); got != want {
			t.Errorf("%s: seen as %s, want %s", cidr, got, want)
		}
		if err := s.Remove(); err != nil {
			t.Fatal(err)
		}
	}
}
