package proxy

import (
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/conntrack"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// flows remembers which datagram front ends each service had, and cleans the
// connection tracking table when that changes.
type flows struct {
	cleaner *conntrack.Cleaner
	held    map[catalog.ServiceName]conntrack.Wanted
	pending conntrack.Wanted // to clean; kept when cleaning failed
	orphans bool             // a clean of everything is due
	lastErr string
}

// relayer is a dataplane that directs flows to sockets of its own.
type relayer interface{ Relays(netip.AddrPort) bool }

// datagram is where the UDP and SCTP flows of a planned service may lead.
func datagram(s *plan.Service) conntrack.Wanted {
	var w conntrack.Wanted
	for i := range s.Ports {
		p := &s.Ports[i]
		if p.Protocol == catalog.TCP {
			continue
		}
		if w == nil {
			w = make(conntrack.Wanted)
		}
		w[conntrack.Front{Addr: p.ClusterIP.Addr(), Port: p.ClusterIP.Port(), Protocol: p.Protocol}] = p.Serving
		for _, e := range p.External {
			w[conntrack.Front{Addr: e.Addr, Port: p.ClusterIP.Port(), Protocol: p.Protocol}] = p.Serving
		}
		if p.NodePort != 0 {
			w[conntrack.Front{Addr: unspecified(p.Is6()), Port: p.NodePort, Protocol: p.Protocol}] = p.Serving
		}
	}
	return w
}

// changed notes which front ends must be cleaned for the service.
func (f *flows) changed(s *plan.Service) {
	now, before := datagram(s), f.held[s.Name]
	if maps.EqualFunc(now, before, slices.Equal) {
		return
	}
	for front := range before {
		if _, ok := now[front]; !ok {
			f.want(front, nil) // nobody's now, if no other service says otherwise
		}
	}
	for front, endpoints := range now {
		if was, had := before[front]; !had || !slices.Equal(was, endpoints) {
			f.want(front, endpoints)
		}
	}
	if now == nil {
		delete(f.held, s.Name)
	} else {
		f.held[s.Name] = now
	}
}

func (f *flows) want(front conntrack.Front, endpoints []netip.AddrPort) {
	if f.pending == nil {
		f.pending = make(conntrack.Wanted)
	}
	if endpoints == nil && f.pending[front] != nil {
		return // it changed hands
	}
	f.pending[front] = endpoints
}

// cleanFlows removes the flows that what was programmed made stale. It comes
// after the programming, or new ones would be made meanwhile.
func (p *Proxy) cleanFlows() {
	f := &p.flows
	if len(f.pending) == 0 && !f.orphans {
		return
	}
	if p.mode.kernelless {
		f.pending, f.orphans = nil, false // none were tracked
		return
	}
	start := time.Now()
	addrs, err := p.localAddrs()
	if err != nil {
		f.failed(p.log, err)
		return
	}
	node := conntrack.Node{Addrs: addrs}
	if r, ok := p.data.(relayer); ok {
		node.Relays = r.Relays
	}
	if f.orphans {
		// An orphan is what belongs to none of the front ends: all must be known.
		for _, fronts := range f.held {
			for front, endpoints := range fronts {
				f.want(front, endpoints)
			}
		}
		node.Orphans = p.serviceCIDRs
	}
	n, err := f.cleaner.Clean(f.pending, node)
	p.metrics.flowsRemoved.add(p.cfg, n)
	if err != nil {
		f.failed(p.log, err)
		return
	}
	p.metrics.flowsDuration.observe(p.cfg, time.Since(start))
	if n > 0 {
		p.log.Debug("stale flows removed", "flows", n, "frontEnds", len(f.pending))
	}
	f.pending, f.orphans, f.lastErr = nil, false, ""
}

// failed logs an error once, not with each try.
func (f *flows) failed(log *slog.Logger, err error) {
	if err.Error() != f.lastErr {
		log.Error("cannot remove stale flows; it is tried again every few seconds", "err", err)
	}
	f.lastErr = err.Error()
}
