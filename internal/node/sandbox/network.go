package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/node/route"
)

const (
	// netnsDir is where ip-netns(8) looks for names.
	netnsDir = "/run/netns"
	// linkPrefix begins the name of every interface of ours on the host.
	linkPrefix = route.LinkPrefix
	// podLink is the pod's end.
	podLink = "eth0"
)

// makeNetNS makes a network namespace and gives it a name that `ip netns` sees.
// A name that is taken is fs.ErrExist.
func makeNetNS(name string) error {
	if err := shareNetNSDir(); err != nil {
		return fmt.Errorf("preparing %s: %w", netnsDir, err)
	}
	path := filepath.Join(netnsDir, name)
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return fmt.Errorf("naming the network namespace: %w", err)
	}
	_ = f.Close()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("making a network namespace: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("naming the network namespace: %w", err)
		}
		return nil
	})
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// shareNetNSDir does what ip-netns(8) does before it adds a name: the
// directory becomes a shared mount, so that a namespace deleted on the host is
// not kept alive by the copies of its mount in other mount namespaces.
func shareNetNSDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	err := unix.Mount("", netnsDir, "", unix.MS_SHARED|unix.MS_REC, "")
	if err != unix.EINVAL {
		return err
	}
	if err := unix.Mount(netnsDir, netnsDir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return unix.Mount("", netnsDir, "", unix.MS_SHARED|unix.MS_REC, "")
}

func removeNetNS(name string) error {
	path := filepath.Join(netnsDir, name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("unmounting %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the network namespace's name: %w", err)
	}
	return nil
}

// network joins a pod's namespace to the host:
//
//	pod                                  host
//	eth0  ADDR/32 ───── veth ───── rut…  GATEWAY/32
//	default via GATEWAY onlink           ADDR/32 dev rut… src GATEWAY
//
// Point to point, no bridge: each packet between two pods, and each reply,
// passes the host's routing and so the hooks of its dataplane.
type network struct {
	alias string
	link  string
	netns string
	addrs []netip.Addr
	gates []netip.Addr // one per address
	mtu   int
}

func (n network) add() error {
	ns, err := os.Open(filepath.Join(netnsDir, n.netns))
	if err != nil {
		return err
	}
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = n.link, n.mtu
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: podLink, PeerMTU: uint32(n.mtu), PeerNamespace: netlink.NsFd(ns.Fd())}
	if err := netlink.LinkAdd(veth); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("interface %s exists already: `ip link delete %s` removes it", n.link, n.link)
		}
		return fmt.Errorf("adding veth pair %s: %w", n.link, err)
	}
	err = onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering network namespace %s: %w", n.netns, err)
		}
		return n.podEnd()
	})
	if err == nil {
		err = n.hostEnd()
	}
	if err != nil {
		return errors.Join(err, removeLink(n.link))
	}
	return nil
}

// hostEnd brings up the host's end and the route to the pod.
func (n network) hostEnd() error {
	link, err := netlink.LinkByName(n.link)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetAlias(link, n.alias); err != nil {
		return fmt.Errorf("naming %s's owner: %w", n.link, err)
	}
	if err := quiet(n.link); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bringing up %s: %w", n.link, err)
	}
	for i, gate := range n.gates {
		if err := addAddress(link, gate); err != nil {
			return err
		}
		r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: host(n.addrs[i]), Src: gate.AsSlice(), Scope: netlink.SCOPE_LINK, Protocol: route.Protocol}
		if gate.Is6() {
			r.Scope = netlink.SCOPE_UNIVERSE // IPv6 routes have no other
		}
		if err := netlink.RouteAdd(r); err != nil {
			return fmt.Errorf("adding the route to %s by %s: %w", n.addrs[i], n.link, err)
		}
	}
	return nil
}

// podEnd sets up lo and eth0; the calling thread is in the pod's namespace.
func (n network) podEnd() error {
	// The network is the pod's own, so any of its users may have any port.
	if err := route.SetSysctl("net/ipv4/ip_unprivileged_port_start", "0"); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bringing up the pod's lo: %w", err)
	}
	eth, err := netlink.LinkByName(podLink)
	if err != nil {
		return err
	}
	if err := quiet(podLink); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(eth); err != nil {
		return fmt.Errorf("bringing up the pod's %s: %w", podLink, err)
	}
	for i, addr := range n.addrs {
		if err := addAddress(eth, addr); err != nil {
			return err
		}
		r := &netlink.Route{LinkIndex: eth.Attrs().Index, Gw: n.gates[i].AsSlice(), Flags: int(netlink.FLAG_ONLINK), Dst: everything(addr)}
		if err := netlink.RouteAdd(r); err != nil {
			return fmt.Errorf("adding the pod's default route via %s: %w", n.gates[i], err)
		}
	}
	return nil
}

// quiet keeps an end of a veth from doing what only a LAN needs: listening to
// router advertisements, probing for duplicate addresses, and, for pods that
// reach each other or themselves by one interface, redirects.
func quiet(link string) error {
	for _, s := range []struct{ name, value string }{
		{"net/ipv4/conf/" + link + "/send_redirects", "0"},
		{"net/ipv4/conf/" + link + "/accept_redirects", "0"},
		{"net/ipv6/conf/" + link + "/disable_ipv6", "0"}, // which some hosts set by default
		{"net/ipv6/conf/" + link + "/accept_ra", "0"},
		{"net/ipv6/conf/" + link + "/accept_redirects", "0"},
		{"net/ipv6/conf/" + link + "/dad_transmits", "0"},
	} {
		if err := route.SetSysctl(s.name, s.value); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func addAddress(link netlink.Link, a netip.Addr) error {
	addr := &netlink.Addr{IPNet: host(a)}
	if a.Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("adding %s to %s: %w", a, link.Attrs().Name, err)
	}
	return nil
}

func removeLink(name string) error {
	link, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("removing interface %s: %w", name, err)
	}
	return nil
}

// host is the prefix of one address.
func host(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

func everything(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: make(net.IP, a.BitLen()/8), Mask: net.CIDRMask(0, a.BitLen())}
}

// alias marks a link as the run directory's, so that a sweep of another one
// leaves it alone.
func alias(runDir, id string) string { return aliasPrefix(runDir) + id }

func aliasPrefix(runDir string) string {
	if abs, err := filepath.Abs(runDir); err == nil {
		runDir = abs
	}
	// IFALIASZ is 256.
	const room = 200
	return "rutter " + runDir[max(0, len(runDir)-room):] + " "
}

// strangers lists links of the run directory that have no record.
func strangers(runDir string, known map[string]bool) ([]string, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("listing interfaces: %w", err)
	}
	var out []string
	for _, l := range links {
		a := l.Attrs()
		if strings.HasPrefix(a.Name, linkPrefix) && strings.HasPrefix(a.Alias, aliasPrefix(runDir)) && !known[a.Name] {
			out = append(out, a.Name)
		}
	}
	return out, nil
}
