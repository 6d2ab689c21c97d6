package route

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// LinkPrefix begins the name of every interface Rutter makes.
	LinkPrefix = "rut"
	// Protocol marks every route Rutter makes, as `proto 82` in `ip route`.
	// Numbers above 4 are user space's to choose (rtnetlink(7)); this one is
	// not in iproute2's rt_protos.
	Protocol = 82
)

// CheckCollision finds an address or route of the host that is not Rutter's and
// lies in, or around, one of the given CIDRs. what and flag are for the error.
func CheckCollision(what, flag string, cidrs ...netip.Prefix) error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("listing interfaces: %w", err)
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("listing addresses: %w", err)
	}
	for _, a := range addrs {
		have, name := prefix(a.IPNet.IP, a.IPNet.Mask), names[a.LinkIndex]
		for _, cidr := range cidrs {
			if !have.Overlaps(cidr) || strings.HasPrefix(name, LinkPrefix) || ours(name, have, cidr) {
				continue
			}
			return fmt.Errorf("%s %s collides with %s on interface %s: choose another with %s", what, cidr, have, name, flag)
		}
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("listing routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil || r.Protocol == Protocol || r.Table != unix.RT_TABLE_MAIN {
			continue
		}
		have, name := prefix(r.Dst.IP, r.Dst.Mask), names[r.LinkIndex]
		for _, cidr := range cidrs {
			// A wider route, such as a VPN's, only loses to the pods' own.
			inside := have.Overlaps(cidr) && have.Bits() >= cidr.Bits()
			if inside && !strings.HasPrefix(name, LinkPrefix) && !ours(name, have, cidr) {
				return fmt.Errorf("%s %s collides with the route to %s by interface %s: choose another with %s", what, cidr, have, name, flag)
			}
		}
	}
	return nil
}

// ours tells what Setup puts on lo: the gateway's address and, in IPv6, the
// local ones, which nothing distinguishes from somebody else's.
func ours(link string, have, cidr netip.Prefix) bool {
	return link == "lo" && have.IsSingleIP() && (have.Addr().Is6() || have.Addr() == cidr.Masked().Addr().Next())
}

func prefix(ip []byte, mask []byte) netip.Prefix {
	a, _ := netip.AddrFromSlice(ip)
	ones := 0
	for _, b := range mask {
		for ; b&0x80 != 0; b <<= 1 {
			ones++
		}
	}
	return netip.PrefixFrom(a.Unmap(), ones)
}

// MTU is that of the interface that leads out of the host, so that pods do not
// send what it cannot carry; without one, Ethernet's.
func MTU() int {
	const ethernet = 1500
	mtu := 0
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return ethernet
	}
	for _, r := range routes {
		if r.Dst != nil && !isDefault(r) {
			continue
		}
		if l, err := netlink.LinkByIndex(r.LinkIndex); err == nil && (mtu == 0 || l.Attrs().MTU < mtu) {
			mtu = l.Attrs().MTU
		}
	}
	if mtu == 0 {
		return ethernet
	}
	return mtu
}

func isDefault(r netlink.Route) bool {
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}
