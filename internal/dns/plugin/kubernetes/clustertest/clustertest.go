// Package clustertest is a catalogue with a service of every kind, for tests of
// DNS answers. The same objects were given to CoreDNS 1.14.7 when the expected
// answers were written.
package clustertest

import (
	"fmt"
	"net/netip"

	"github.com/rutter-project/rutter/internal/catalog"
)

// New returns the catalogue, synced.
func New() *catalog.Catalog {
	cat := catalog.New(catalog.Services | catalog.EndpointSlices | catalog.Namespaces | catalog.Pods)
	cat.ReplaceNamespaces([]*catalog.Namespace{{Name: "test"}, {Name: "other", Labels: map[string]string{"team": "a"}}})
	cat.ReplaceServices(services())
	cat.ReplaceSlices(slices())
	var pods []*catalog.Pod
	for i := range 3 {
		pods = append(pods, &catalog.Pod{Namespace: "test", Name: fmt.Sprintf("p%d", i), IPs: addrs(fmt.Sprintf("10.245.8.%d", i))})
	}
	cat.ReplacePods(pods)
	return cat
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func port(name string, number uint16, p catalog.Protocol) catalog.ServicePort {
	return catalog.ServicePort{Name: name, Port: number, Protocol: p}
}

func services() []*catalog.Service {
	const tcp, udp = catalog.TCP, catalog.UDP
	in := func(ns, name string) catalog.ServiceName { return catalog.ServiceName{Namespace: ns, Name: name} }
	ports := func(p ...catalog.ServicePort) []catalog.ServicePort { return p }
	list := []*catalog.Service{
		{Name: in("test", "web"), ClusterIPs: addrs("10.97.1.1", "fd00:97::11"), Ports: ports(port("http", 80, tcp), port("https", 443, tcp)), Labels: map[string]string{"app": "web"}},
		{Name: in("test", "v4only"), ClusterIPs: addrs("10.97.1.2"), Ports: ports(port("", 80, tcp))},
		{Name: in("test", "dns"), ClusterIPs: addrs("10.97.1.3"), Ports: ports(port("dns", 53, udp), port("dns-tcp", 53, tcp))},
		{Name: in("test", "noeps"), ClusterIPs: addrs("10.97.1.4"), Ports: ports(port("http", 80, tcp))},
		{Name: in("other", "web"), ClusterIPs: addrs("10.97.1.5"), Ports: ports(port("http", 80, tcp))},
	}
	for _, name := range []string{"hl", "sts", "hlempty", "hlnoport", "hlall", "hlv6", "big"} {
		list = append(list, &catalog.Service{Name: in("test", name), Headless: true, Ports: ports(port("x", 80, tcp))})
	}
	external := map[string]string{
		"ext": "example.org", "extself": "extself.test.svc.cluster.local", "extin": "web.test.svc.cluster.local",
		"extmiss": "nothere.test.svc.cluster.local", "extip": "10.1.2.3", "extweb": "web",
	}
	for i := range 13 {
		external[fmt.Sprintf("hop%d", i)] = fmt.Sprintf("hop%d.test.svc.cluster.local", i+1)
	}
	external["hop13"] = "web.test.svc.cluster.local"
	for name, target := range external {
		list = append(list, &catalog.Service{Name: in("test", name), Type: catalog.ExternalName, ExternalName: target})
	}
	return list
}

func slices() []*catalog.EndpointSlice {
	const tcp = catalog.TCP
	ready := func(addr, hostname string) catalog.Endpoint {
		return catalog.Endpoint{Addr: netip.MustParseAddr(addr), Hostname: hostname, Conditions: catalog.Ready | catalog.Serving}
	}
	unready := func(addr string) catalog.Endpoint { return catalog.Endpoint{Addr: netip.MustParseAddr(addr)} }
	withPod := func(ep catalog.Endpoint, pod string) catalog.Endpoint { ep.Pod = pod; return ep }
	ports := func(list ...catalog.EndpointPort) []catalog.EndpointPort { return list }
	http := ports(catalog.EndpointPort{Name: "http", Port: 8080, Protocol: tcp}, catalog.EndpointPort{Name: "https", Port: 8443, Protocol: tcp})
	x := ports(catalog.EndpointPort{Name: "x", Port: 80, Protocol: tcp})
	sql := ports(catalog.EndpointPort{Name: "sql", Port: 5432, Protocol: tcp})
	app := map[string]string{"app": "web"}
	list := []*catalog.EndpointSlice{
		{Namespace: "test", Name: "web-1", Service: "web", Ports: http, Labels: app, Endpoints: []catalog.Endpoint{withPod(ready("10.245.1.1", ""), "web-abc"), unready("10.245.1.2"), ready("10.245.1.3", "named")}},
		{Namespace: "test", Name: "web-2", Service: "web", Ports: http, IPv6: true, Endpoints: []catalog.Endpoint{ready("fd00:245::1", ""), ready("fd00:245::3", "named")}},
		{Namespace: "test", Name: "hl-1", Service: "hl", Ports: ports(catalog.EndpointPort{Name: "http", Port: 8080, Protocol: tcp}, catalog.EndpointPort{Name: "metrics", Port: 9090, Protocol: tcp}), Endpoints: []catalog.Endpoint{
			ready("10.245.2.1", ""), ready("10.245.2.2", ""), ready("10.245.2.3", ""), ready("10.245.2.4", ""), ready("10.245.2.5", ""), unready("10.245.2.9"),
		}},
		{Namespace: "test", Name: "hl-2", Service: "hl", Ports: ports(catalog.EndpointPort{Name: "http", Port: 8080, Protocol: tcp}), Endpoints: []catalog.Endpoint{ready("10.245.2.1", ""), ready("10.245.2.7", "")}},
		{Namespace: "test", Name: "sts-4", Service: "sts", Ports: sql, Endpoints: []catalog.Endpoint{ready("10.245.3.0", "sts-0"), ready("10.245.3.1", "sts-1"), ready("10.245.3.2", "sts-2")}},
		{Namespace: "test", Name: "sts-6", Service: "sts", Ports: sql, IPv6: true, Endpoints: []catalog.Endpoint{ready("fd00:245::3:0", "sts-0"), ready("fd00:245::3:1", "sts-1"), ready("fd00:245::3:2", "sts-2")}},
		{Namespace: "test", Name: "hlnoport-1", Service: "hlnoport", Endpoints: []catalog.Endpoint{ready("10.245.4.1", ""), ready("10.245.4.2", "")}},
		{Namespace: "test", Name: "hlall-1", Service: "hlall", Ports: x, Endpoints: []catalog.Endpoint{unready("10.245.4.9")}},
		{Namespace: "test", Name: "hlv6-1", Service: "hlv6", Ports: x, IPv6: true, Endpoints: []catalog.Endpoint{ready("2001:db8::", ""), ready("2001:db8::5", "")}},
		{Namespace: "other", Name: "web-1", Service: "web", Ports: http, Endpoints: []catalog.Endpoint{ready("10.245.1.1", "")}},
		{Namespace: "other", Name: "orphan-1", Service: "orphan", Ports: http, Endpoints: []catalog.Endpoint{ready("10.245.9.1", "")}},
	}
	for k := range 3 {
		big := &catalog.EndpointSlice{Namespace: "test", Name: fmt.Sprintf("big-%d", k), Service: "big", Ports: x}
		for i := range 100 {
			big.Endpoints = append(big.Endpoints, ready(fmt.Sprintf("10.246.%d.%d", k, i), ""))
		}
		list = append(list, big)
	}
	return list
}

// Questions is a corpus that reaches every kind of name, each to be asked with
// every type of Types.
func Questions() []string {
	return []string{
		"cluster.local.", "svc.cluster.local.", "pod.cluster.local.", "test.svc.cluster.local.", "nope.svc.cluster.local.",
		"test.pod.cluster.local.", "dns-version.cluster.local.", "ns.dns.cluster.local.", "x.cluster.local.", "a.b.c.cluster.local.",
		"web.test.svc.cluster.local.", "WeB.TeSt.SvC.ClUsTeR.lOcAl.", "v4only.test.svc.cluster.local.", "dns.test.svc.cluster.local.",
		"noeps.test.svc.cluster.local.", "hl.test.svc.cluster.local.", "sts.test.svc.cluster.local.", "hlempty.test.svc.cluster.local.",
		"hlnoport.test.svc.cluster.local.", "hlall.test.svc.cluster.local.", "hlv6.test.svc.cluster.local.", "big.test.svc.cluster.local.",
		"_http._tcp.web.test.svc.cluster.local.", "http.tcp.web.test.svc.cluster.local.", "_http._udp.web.test.svc.cluster.local.",
		"_._.web.test.svc.cluster.local.", "_._tcp.web.test.svc.cluster.local.", "_dns._udp.dns.test.svc.cluster.local.",
		"_._.hlnoport.test.svc.cluster.local.", "_x._tcp.hlnoport.test.svc.cluster.local.", "_http._tcp.hl.test.svc.cluster.local.",
		"_metrics._tcp.hl.test.svc.cluster.local.", "_nope._tcp.hl.test.svc.cluster.local.", "_sql._tcp.STS.test.svc.cluster.local.",
		"sts-0.sts.test.svc.cluster.local.", "sts-9.sts.test.svc.cluster.local.", "10-245-3-0.sts.test.svc.cluster.local.",
		"10-245-1-1.web.test.svc.cluster.local.", "10-245-1-2.web.test.svc.cluster.local.", "named.web.test.svc.cluster.local.",
		"web-abc.web.test.svc.cluster.local.", "2001-db8--0.hlv6.test.svc.cluster.local.", "2001-db8--5.hlv6.test.svc.cluster.local.",
		"x._http._tcp.web.test.svc.cluster.local.", "*.test.svc.cluster.local.", "ext.test.svc.cluster.local.",
		"extself.test.svc.cluster.local.", "extin.test.svc.cluster.local.", "extmiss.test.svc.cluster.local.", "extip.test.svc.cluster.local.",
		"extweb.test.svc.cluster.local.", "hop0.test.svc.cluster.local.", "hop2.test.svc.cluster.local.", "hop4.test.svc.cluster.local.", "_a._b.ext.test.svc.cluster.local.",
		"web.other.svc.cluster.local.", "orphan.other.svc.cluster.local.", "web.nope.svc.cluster.local.",
		"10-0-0-1.test.pod.cluster.local.", "10-245-8-1.test.pod.cluster.local.", "x.10-245-8-1.test.pod.cluster.local.",
		"10-245-8-1.nope.pod.cluster.local.", "2001-db8--1.test.pod.cluster.local.", "1-2-3-400.test.pod.cluster.local.",
		"1.1.97.10.in-addr.arpa.", "1.1.245.10.in-addr.arpa.", "2.1.245.10.in-addr.arpa.", "3.1.245.10.in-addr.arpa.",
		"1.2.245.10.in-addr.arpa.", "1.9.245.10.in-addr.arpa.", "9.9.9.9.in-addr.arpa.", "1.97.10.in-addr.arpa.", "in-addr.arpa.",
		"1.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.7.9.0.0.0.0.d.f.ip6.arpa.",
		"5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.",
		"example.org.", ".",
	}
}

// Types are the types to ask for.
func Types() []string {
	return []string{"A", "AAAA", "SRV", "PTR", "TXT", "SOA", "NS", "CNAME", "MX", "ANY", "HTTPS", "DS"}
}
