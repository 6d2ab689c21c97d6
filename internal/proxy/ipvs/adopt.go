package ipvs

import (
	"context"
	"net/netip"
	"slices"

	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// Adopt makes the kernel hold these services and no others, changing only what
// differs from what it holds: what an earlier process left, or kube-proxy.
// Virtual servers of others stay: those whose address is not on kube-ipvs0 and
// that no set knows, and those in ExcludeCIDRs.
func (d *Dataplane) Adopt(ctx context.Context, services []plan.Service) ([]dataplane.Refusal, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	refused, err := d.adopt(ctx, services)
	d.adopted = err == nil
	return d.finish(refused, err)
}

func (d *Dataplane) adopt(ctx context.Context, services []plan.Service) ([]dataplane.Refusal, error) {
	if err := d.furnish(); err != nil {
		return nil, err
	}
	// On a host that serves nothing yet, packets are masqueraded before they are
	// sent on. Where another mode's rules serve under the same names, these are
	// replaced when everything is in place.
	serves, err := d.serves(ctx)
	if err != nil {
		return nil, err
	}
	if !serves {
		if err := d.writeRules(ctx); err != nil {
			return nil, err
		}
	}
	refused, err := d.takeOver(ctx, services)
	if err == nil && serves {
		err = d.writeRules(ctx)
	}
	return refused, err
}

// takeOver is Adopt without the rules.
func (d *Dataplane) takeOver(ctx context.Context, services []plan.Service) ([]dataplane.Refusal, error) {
	if err := d.look(); err != nil {
		return nil, err
	}
	d.plan(services)
	d.keepDraining()
	return d.commit(ctx)
}

func (d *Dataplane) serves(ctx context.Context) (bool, error) {
	for _, r := range d.rulesets {
		tables, err := r.read(ctx, "nat")
		if err != nil {
			return false, err
		}
		if len(tables["nat"].Chains["KUBE-SERVICES"]) > 0 {
			return true, nil
		}
	}
	return false, nil
}

// look replaces the state by what the kernel holds.
func (d *Dataplane) look() error {
	st := newState()
	for _, r := range d.rulesets {
		for id := range setCount {
			err := d.sets.elements(id, r.v6, func(e element) {
				st.elements[e] = count{made: true}
				st.touchedElements = append(st.touchedElements, e)
			})
			if err != nil {
				return err
			}
		}
	}
	if err := d.lookAddrs(st); err != nil {
		return err
	}
	list, err := d.kernel.servers()
	if err != nil {
		return err
	}
	st.found = make(map[front]*server, len(list))
	for _, l := range list {
		if l.is6() && !d.cfg.IPv6 || !l.is6() && !d.cfg.IPv4 {
			continue
		}
		s := &server{front: l.front, made: true, have: l.settings}
		held, err := d.kernel.dests(l.front)
		if err != nil {
			return err
		}
		for _, h := range held {
			s.dests = append(s.dests, dest{h.addr, h.weight})
		}
		slices.SortFunc(s.dests, func(a, b dest) int { return a.addr.Compare(b.addr) })
		st.found[l.front] = s
	}
	d.state = st
	return nil
}

// lookAddrs finds the addresses of kube-ipvs0, and those of other devices.
func (d *Dataplane) lookAddrs(st *state) error {
	addrs, err := d.device.addrs()
	if err != nil {
		return err
	}
	d.around.local = d.around.local[:0]
	for _, a := range addrs {
		switch {
		case a.index != d.device.index:
			d.around.local = append(d.around.local, a.Addr)
		case st == nil, a.Is6() && !d.cfg.IPv6, !a.Is6() && !d.cfg.IPv4, a.bits != a.BitLen(), a.Is6() && a.IsLinkLocalUnicast(), d.excluded(a.Addr):
		default:
			st.addrs[a.Addr] = count{made: true}
			st.touchedAddrs = append(st.touchedAddrs, a.Addr)
		}
	}
	slices.SortFunc(d.around.local, netip.Addr.Compare)
	d.around.local = slices.Compact(d.around.local)
	d.around.routers, err = d.device.routers()
	return err
}

func (d *Dataplane) excluded(a netip.Addr) bool {
	return slices.ContainsFunc(d.opts.ExcludeCIDRs, func(p netip.Prefix) bool { return p.Contains(a) })
}

// keepDraining takes over the virtual servers that are ours and no service's:
// what they need stays in place until no connection goes through them.
func (d *Dataplane) keepDraining() {
	st := d.state
	for f, s := range st.found {
		delete(st.found, f)
		var known []element
		for _, id := range []setID{setClusterIP, setExternalIP, setExternalIPLocal, setLoadBalancer, setLoadBalancerLocal} {
			if e := elementOf(id, f); st.elements[e].made {
				known = append(known, e)
			}
		}
		_, bound := st.addrs[f.addr]
		if !bound {
			all, local := nodePortSets(f.proto)
			for _, id := range []setID{all, local} {
				if e := elementOf(id, f); st.elements[e].made && d.around.isLocal(f.addr) {
					known = append(known, e)
				}
			}
		}
		if !bound && len(known) == 0 || d.excluded(f.addr) {
			continue // somebody else's
		}
		st.servers[f] = s
		st.hold(s, bound, known)
		st.touched = append(st.touched, s)
	}
	// Destinations that drain already are watched on.
	for _, s := range st.servers {
		if s.drains() {
			st.draining[s] = struct{}{}
		}
	}
}
