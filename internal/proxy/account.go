package proxy

import (
	"cmp"
	"time"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// count is what a service adds to the totals. noLocal counts ports of which
// traffic to this node is dropped: policy, family.
type count struct {
	services, ports, endpoints int
	noLocal                    [2][2]int
}

func (c *count) add(o count, by int) {
	c.services += by * o.services
	c.ports += by * o.ports
	c.endpoints += by * o.endpoints
	for i := range c.noLocal {
		for f := range c.noLocal[i] {
			c.noLocal[i][f] += by * o.noLocal[i][f]
		}
	}
}

// settle records what became of the plans.
func (p *Proxy) settle(plans []plan.Service, refused []dataplane.Refusal) {
	for i := range plans {
		s := &plans[i]
		p.total.add(p.counts[s.Name], -1)
		delete(p.counts, s.Name)
		delete(p.refused, s.Name)
		delete(p.skipped, s.Name)
		if len(s.Ports) > 0 {
			c := count{services: 1, ports: len(s.Ports)}
			for j := range s.Ports {
				port := &s.Ports[j]
				c.endpoints += max(len(port.Cluster), len(port.Local))
				f := familyIndex(port.ClusterIP.Addr())
				if port.InternalLocal && port.Usable && len(port.Local) == 0 {
					c.noLocal[0][f]++
				}
				if port.ExternalLocal && port.Usable && len(port.Local) == 0 {
					c.noLocal[1][f]++
				}
			}
			p.counts[s.Name] = c
			p.total.add(c, 1)
		}
		if len(s.Skipped) > 0 && len(s.Ports) > 0 {
			p.skipped[s.Name] = s.Skipped
		}
		p.checks.Set(s.Name, s.HealthCheck)
		p.flows.changed(s)
		p.observeTrigger(s.Name)
	}
	for _, r := range refused {
		p.refused[r.Service] = r.Err
		p.event(Event{r.Service, true, "FailedToProgramService", "Program", "the kernel refuses this service: " + r.Err.Error()})
		p.log.Error("the kernel refuses a service; the others are in place", "service", r.Service.String(), "err", r.Err)
	}
	p.metrics.refused.Set(float64(len(p.refused)))
	for _, f := range families(p.cfg) {
		i := 0
		if f == "IPv6" {
			i = 1
		}
		p.metrics.noLocal.WithLabelValues("internal", f).Set(float64(p.total.noLocal[0][i]))
		p.metrics.noLocal.WithLabelValues("external", f).Set(float64(p.total.noLocal[1][i]))
	}
}

// observeTrigger feeds the network programming latency: from the change that
// an EndpointSlice tells of until now. Slices that changed before this process
// started say nothing about it.
func (p *Proxy) observeTrigger(name catalog.ServiceName) {
	e, _ := p.cat.Service(name)
	last := p.triggered[name]
	newest := last
	for _, s := range e.Slices {
		if t := s.ChangeTriggered; t.After(last) {
			if t.After(p.started) {
				p.metrics.latency.observe(p.cfg, time.Since(t))
			}
			if t.After(newest) {
				newest = t
			}
		}
	}
	if e.Service == nil && len(e.Slices) == 0 {
		delete(p.triggered, name)
	} else if newest != last {
		p.triggered[name] = newest
	}
}

func compareNames(a, b catalog.ServiceName) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
