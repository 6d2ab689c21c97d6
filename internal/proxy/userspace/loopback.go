package userspace

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// Without privilege the sockets listen on the service addresses, as far as these
// are addresses of this host.

type direct struct {
	d *Dataplane
	// lowest is the lowest port that may be listened on.
	lowest uint16
}

// PortOffset is added to a port that only root may listen on: port 80 of a
// service is found at 8080, 443 at 8443, 53 at 8053.
const PortOffset = 8000

func newDirect(d *Dataplane) *direct { return &direct{d, LowestPort()} }

// LowestPort is the lowest port that a program without privilege may listen on.
func LowestPort() uint16 {
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start"); err == nil {
		if n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 16); err == nil {
			return uint16(n)
		}
	}
	return 1024
}

// Offered is where a service port is found, if ports below lowest may not be
// listened on.
func Offered(port, lowest uint16) uint16 {
	if port < lowest && port+PortOffset >= lowest {
		return port + PortOffset
	}
	return port
}

// fronts: cluster IP, node ports, and those external addresses that are local.
// A port that had endpoints and has none now is not listened on: who connects is
// refused. One that had none yet holds who comes, for a while.
func (e *direct) fronts(p *portal, port *plan.Port) []listener {
	var out []listener
	add := func(a netip.Addr, number uint16, local bool, sources []netip.Prefix) {
		if slices.Contains(e.d.cfg.Rules.NodeDNS, netip.AddrPortFrom(a, port.ClusterIP.Port())) {
			return // a DNS server of this node answers there
		}
		list, endpoints := clusterList, port.Cluster
		if local {
			list, endpoints = localList, port.Local
		}
		if len(endpoints) > 0 || !p.met {
			out = append(out, listener{front{netip.AddrPortFrom(a, number), list}, sources})
		}
	}
	number := Offered(port.ClusterIP.Port(), e.lowest)
	add(port.ClusterIP.Addr(), number, port.InternalLocal, nil)
	for _, x := range port.External {
		if x.Addr.IsLoopback() {
			add(x.Addr, number, port.ExternalLocal, x.Sources)
		}
	}
	if port.NodePort != 0 {
		for _, a := range e.d.cfg.Rules.NodePortAddrs {
			if a.Is6() == port.Is6() {
				add(a, port.NodePort, port.ExternalLocal, nil)
			}
		}
		if e.d.cfg.Rules.LocalhostNodePorts && !port.Is6() {
			add(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port.NodePort, port.ExternalLocal, nil)
		}
	}
	return out
}

func (e *direct) adopt(context.Context, []plan.Service) ([]dataplane.Refusal, error) { return nil, nil }
func (e *direct) apply(context.Context, []plan.Service) ([]dataplane.Refusal, error) { return nil, nil }
func (e *direct) setRules(plan.Rules) error                                          { return nil }
func (e *direct) sweep() error                                                       { return nil }
func (e *direct) keepNodeDNS(time.Duration) error                                    { return nil }
func (e *direct) rivals() ([]string, error)                                          { return nil, nil }
func (e *direct) withdraw() error                                                    { return nil }
func (e *direct) close() error                                                       { return nil }

// monitor: nobody else can change what a socket listens on.
func (e *direct) monitor() (dataplane.Monitor, error) { return quiet{make(chan struct{})}, nil }

type quiet struct{ ended chan struct{} }

func (q quiet) Run(func(dataplane.Intrusion)) error { <-q.ended; return nil }
func (q quiet) Close()                              { close(q.ended) }
