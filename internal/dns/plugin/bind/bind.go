// Package bind chooses the addresses that a server block listens on.
package bind

import (
	"net"
	"net/netip"
	"slices"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
)

// Setup reads, any number of times, addresses adding up:
//
//	bind ADDRESS|INTERFACE... {
//	    except ADDRESS|INTERFACE...
//	}
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	for _, d := range lines {
		addrs, err := addresses(d)
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			if !slices.Contains(b.Bind, a) {
				b.Bind = append(b.Bind, a)
			}
		}
	}
	return nil, nil
}

func addresses(d corefile.Directive) ([]string, error) {
	const want = "addresses or interface names"
	if err := d.Want(1, -1, want); err != nil {
		return nil, err
	}
	addrs, err := expand(d.Args)
	if err != nil {
		return nil, err
	}
	for _, p := range d.Block {
		if p.Name.Text != "except" {
			return nil, corefile.Unknown("property of bind", p.Name, "except")
		}
		if err := p.Want(1, -1, want); err != nil {
			return nil, err
		}
		not, err := expand(p.Args)
		if err != nil {
			return nil, err
		}
		addrs = slices.DeleteFunc(addrs, func(a string) bool { return slices.Contains(not, a) })
	}
	if len(addrs) == 0 {
		return nil, corefile.Errorf(d.Name, "bind leaves no address to listen on; except takes all of them away, or the interface has none")
	}
	return addrs, nil
}

// expand replaces interface names by the addresses that the interfaces have
// now, link-local ones with their zone.
func expand(words []corefile.Token) ([]string, error) {
	var addrs []string
	for _, t := range words {
		if a, err := netip.ParseAddr(t.Text); err == nil {
			addrs = append(addrs, a.String())
			continue
		}
		iface, err := net.InterfaceByName(t.Text)
		if err != nil {
			e := corefile.Errorf(t, "%q is neither an IP address nor a network interface", t.Text)
			e.Expected, e.Suggestion = "", nearestInterface(t)
			return nil, e
		}
		list, err := iface.Addrs()
		if err != nil {
			return nil, corefile.Errorf(t, "addresses of interface %s: %w", t.Text, err)
		}
		for _, n := range list {
			ipnet, ok := n.(*net.IPNet)
			if !ok {
				continue
			}
			a, _ := netip.AddrFromSlice(ipnet.IP)
			if a = a.Unmap(); a.IsLinkLocalUnicast() && a.Is6() {
				a = a.WithZone(iface.Name)
			}
			addrs = append(addrs, a.String())
		}
	}
	return addrs, nil
}

func nearestInterface(t corefile.Token) string {
	list, err := net.Interfaces()
	if err != nil {
		return ""
	}
	names := make([]string, len(list))
	for i := range list {
		names[i] = list[i].Name
	}
	return corefile.Unknown("interface", t, names...).Suggestion
}
