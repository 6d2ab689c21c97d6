package iptables

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/rutter-project/rutter/internal/proxy/xtables"
)

// nodeDNS is what keeps queries on this node: packets to its DNS server pass by
// connection tracking, and so by all rules of table nat, for as long as the
// server's address was written to a list of the kernel's recent match within
// the last seconds. If the agent dies, nobody writes, and the kernel sends
// queries to the endpoints of the service.
type nodeDNS struct {
	seconds int
	made    bool // the rules are in table raw
}

const nodeDNSChain = "RUTTER-NODE-DNS"

// dnsList is the name of the kernel's list, /proc/net/xt_recent/NAME.
func (st *style) dnsList() string {
	if st.v6 {
		return "rutter-node-dns6"
	}
	return "rutter-node-dns"
}

func (f *family) dnsAddrs() (list []netip.AddrPort) {
	for _, a := range f.style.rules.NodeDNS {
		if a.Addr().Is6() == f.style.v6 {
			list = append(list, a)
		}
	}
	return list
}

func (f *family) hasNodeDNS() bool { return len(f.dnsAddrs()) > 0 }

// fixed makes the chains of a table that do not depend on services.
func (f *family) fixed(table string) []chain {
	if table != "raw" {
		return f.style.fixed(table)
	}
	c := chain{name: nodeDNSChain}
	for _, a := range f.dnsAddrs() {
		for _, way := range []struct{ addr, port, recent string }{{"-d", "--dport", "--rdest"}, {"-s", "--sport", "--rsource"}} {
			for _, proto := range []string{"udp", "tcp"} {
				c.rules = append(c.rules, fmt.Sprintf("%s %s -p %s -m %s %s %d -m recent --rcheck --seconds %d --name %s --mask %s %s -j CT --notrack",
					way.addr, host(a.Addr()), proto, proto, way.port, a.Port(), f.nodeDNS.seconds, f.style.dnsList(), f.style.hostMask(), way.recent))
			}
		}
	}
	return []chain{c}
}

func (f *family) jumps() []jump {
	list := jumps()
	if f.hasNodeDNS() {
		list = append(list, jump{"raw", "PREROUTING", nodeDNSChain, ""}, jump{"raw", "OUTPUT", nodeDNSChain, ""})
	}
	return list
}

// keepDNS writes the addresses into the list, or takes them out.
func (f *family) keepDNS(d time.Duration) error {
	addrs := f.dnsAddrs()
	if len(addrs) == 0 {
		return nil
	}
	seconds := f.nodeDNS.seconds
	if d > 0 {
		seconds = int((d + time.Second - 1) / time.Second)
	}
	if !f.nodeDNS.made || seconds != f.nodeDNS.seconds {
		if d == 0 && !f.nodeDNS.made {
			return nil
		}
		f.nodeDNS.seconds = seconds
		text, err := f.progs.Save(context.Background(), "raw")
		if err != nil {
			return fmt.Errorf("list table raw: %w", err)
		}
		var in input
		if f.frame(&in, "raw", listing{Table: xtables.Parse(string(text))}); in.Len() > 0 {
			if err := f.restore(context.Background(), &in); err != nil {
				return fmt.Errorf("make chain %s: %w", nodeDNSChain, err)
			}
		}
		f.nodeDNS.made = true
	}
	sign := "+"
	if d == 0 {
		sign = "-"
	}
	return f.progs.Do(func() error {
		seen := make(map[netip.Addr]bool)
		for _, a := range addrs {
			if seen[a.Addr()] {
				continue
			}
			seen[a.Addr()] = true
			if err := os.WriteFile("/proc/thread-self/net/xt_recent/"+f.style.dnsList(), []byte(sign+a.Addr().String()), 0); err != nil {
				f.nodeDNS.made = false // whoever removed the rules has removed the list
				return fmt.Errorf("keep queries to %s on this node: %w", a, err)
			}
		}
		return nil
	})
}
