package forward

import (
	"bytes"
	"net/netip"
	"strings"
)

// nameservers returns the addresses of the nameserver lines of a file in
// resolv.conf(5) format, in order. Lines that make no sense are passed over, as
// the C library does.
func nameservers(file []byte) []netip.Addr {
	var list []netip.Addr
	for line := range bytes.Lines(file) {
		words := strings.Fields(string(line))
		if len(words) < 2 || words[0] != "nameserver" {
			continue // comments begin with # or ; and are no keyword either
		}
		if a, err := netip.ParseAddr(words[1]); err == nil {
			list = append(list, a)
		}
	}
	return list
}

// systemdStub tells whether all servers are systemd-resolved's local stub. A
// server that itself is in resolv.conf, or is asked by the stub, would be asked
// by its own upstream: a loop. systemd keeps the real servers in another file.
func systemdStub(list []netip.Addr) bool {
	for _, a := range list {
		if a != netip.AddrFrom4([4]byte{127, 0, 0, 53}) && a != netip.AddrFrom4([4]byte{127, 0, 0, 54}) {
			return false
		}
	}
	return len(list) > 0
}

// systemdServers is where systemd-resolved writes the servers it uses
// (systemd-resolved.service(8)).
const systemdServers = "/run/systemd/resolve/resolv.conf"
