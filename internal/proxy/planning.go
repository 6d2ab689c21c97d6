package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

func (p *Proxy) planner() plan.Planner {
	pl := plan.Planner{Node: p.nodeFacts, Options: plan.Options{NoExternalIPs: p.cfg.NoExternalIPs}}
	if len(p.cfg.NodeDNS) > 0 {
		pl.Extra = map[catalog.ServiceName][]netip.AddrPort{p.cfg.DNSService: p.cfg.NodeDNS}
	}
	return pl
}

// plan plans the named services, and those that gain or lose a front end by it.
// losers are those that may have had a front end which another has now.
func (p *Proxy) plan(names []catalog.ServiceName) (plans []plan.Service, losers map[catalog.ServiceName]struct{}) {
	planner := p.planner()
	plans = make([]plan.Service, 0, len(names))
	var at map[catalog.ServiceName]int // where in plans; made when a name comes again
	for i := 0; i < len(names); i++ {
		e, _ := p.cat.Service(names[i])
		s := planner.Service(names[i], &e)
		lost, heirs := p.claims.settle(&s)
		if j, again := at[s.Name]; again {
			plans[j] = s
		} else {
			plans = append(plans, s)
			if at != nil {
				at[s.Name] = len(plans) - 1
			}
		}
		if len(lost)+len(heirs) == 0 {
			continue
		}
		if at == nil {
			at, losers = make(map[catalog.ServiceName]int), make(map[catalog.ServiceName]struct{})
			for j := range plans {
				at[plans[j].Name] = j
			}
		}
		if len(heirs) > 0 {
			losers[s.Name] = struct{}{}
		}
		for _, n := range lost {
			losers[n] = struct{}{}
		}
		names = append(slices.Clip(names), append(lost, heirs...)...)
	}
	return plans, losers
}

// Walk tells what the kernel does with a packet, by the plan of what the
// catalogue holds now.
func (p *Proxy) Walk(pkt plan.Packet) (plan.Result, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.data == nil {
		return plan.Result{}, errors.New("proxy: not started")
	}
	addrs, err := p.localAddrs()
	if err != nil {
		return plan.Result{}, fmt.Errorf("proxy: %w", err)
	}
	var services []plan.Service
	planner := p.planner()
	p.cat.Services(func(n catalog.ServiceName, e catalog.Entry) bool {
		s := planner.Service(n, &e)
		p.claims.asHeld(&s)
		services = append(services, s)
		return true
	})
	return plan.NewTable(p.rulesNow, addrs, services).Walk(pkt), nil
}
