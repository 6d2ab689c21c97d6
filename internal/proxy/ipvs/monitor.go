package ipvs

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

func addrPort(f front) netip.AddrPort { return netip.AddrPortFrom(f.addr, f.port) }

// has tells whether the plan has a front end besides its cluster IPs.
func (s *service) has(a netip.AddrPort) bool {
	for i := range s.plan.Ports {
		p := &s.plan.Ports[i]
		if p.ClusterIP.Port() == a.Port() && slices.ContainsFunc(p.External, func(e plan.External) bool { return e.Addr == a.Addr() }) {
			return true
		}
	}
	return false
}

// Monitor looks for what others do to what is ours. Addresses and devices are
// told by the kernel. Of IPVS, ipset and rules it tells nothing: they are looked
// at every SyncPeriod.
type Monitor struct {
	d    *Dataplane
	addr chan netlink.AddrUpdate
	link chan netlink.LinkUpdate
	done chan struct{}
}

// Monitor begins to listen.
func (d *Dataplane) Monitor() (dataplane.Monitor, error) {
	m := &Monitor{d: d, addr: make(chan netlink.AddrUpdate, 64), link: make(chan netlink.LinkUpdate, 64), done: make(chan struct{})}
	// Our own changes are told, too: they are many, and a look at each is cheap.
	if err := netlink.AddrSubscribeWithOptions(m.addr, m.done, netlink.AddrSubscribeOptions{ReceiveBufferSize: 4 << 20}); err != nil {
		return nil, fmt.Errorf("ipvs: watch the addresses of this host: %w", err)
	}
	if err := netlink.LinkSubscribe(m.link, m.done); err != nil {
		close(m.done)
		return nil, fmt.Errorf("ipvs: watch the devices of this host: %w", err)
	}
	return m, nil
}

// Close ends Run.
func (m *Monitor) Close() { close(m.done) }

// Run calls notify when something of ours is missing.
func (m *Monitor) Run(notify func(dataplane.Intrusion)) error {
	period := time.NewTicker(m.d.opts.SyncPeriod)
	defer period.Stop()
	addr, link := m.addr, m.link
	for {
		select {
		case <-m.done:
			return nil
		case u, ok := <-addr:
			if !ok {
				addr = nil // the look at all addresses every period remains
				continue
			}
			a, ok := netip.AddrFromSlice(u.LinkAddress.IP)
			if ok && m.d.addrChanged(a.Unmap(), u.LinkIndex, u.NewAddr) {
				notify(dataplane.Intrusion{})
			}
		case u, ok := <-link:
			if !ok {
				link = nil
				continue
			}
			if u.Header.Type == unix.RTM_DELLINK && m.d.isDevice(u.Attrs().Index) {
				notify(dataplane.Intrusion{})
			}
		case <-period.C:
			whole, err := m.d.check()
			if err != nil {
				m.d.log.Warn("cannot look whether everything is in place", "err", err)
			} else if !whole {
				notify(dataplane.Intrusion{})
			}
		}
	}
}

func (d *Dataplane) isDevice(index int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return index == int(d.device.index)
}

// addrChanged follows the host's addresses, and tells whether one of ours was
// taken away.
func (d *Dataplane) addrChanged(a netip.Addr, index int, added bool) (intrusion bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.adopted {
		return false
	}
	if index == int(d.device.index) {
		n := d.state.addrs[a]
		return !added && n.made && n.refs > 0 && d.lacks(a)
	}
	if added != d.around.isLocal(a) {
		if err := d.followAddrs(); err != nil {
			d.log.Error("cannot follow the addresses of this host", "err", err)
		}
	}
	return false
}

// lacks tells whether the device really has an address no more: a notice may be
// of our own doing, and old.
func (d *Dataplane) lacks(a netip.Addr) bool {
	addrs, err := d.device.addrs()
	return err == nil && !slices.ContainsFunc(addrs, func(x address) bool { return x.Addr == a && x.index == d.device.index })
}

// followAddrs looks at the host's addresses again: node ports are served on
// them, and an external IP is not bound if it is one.
func (d *Dataplane) followAddrs() error {
	local, routers := slices.Clone(d.around.local), d.around.routers
	if err := d.lookAddrs(nil); err != nil {
		return err
	}
	if slices.Equal(local, d.around.local) && slices.Equal(routers, d.around.routers) {
		return nil
	}
	err := d.refresh(context.Background(), func(s *service) bool {
		return slices.ContainsFunc(s.plan.Ports, func(p plan.Port) bool { return p.ExternallyAccessible() })
	})
	_, err = d.finish(nil, err)
	return err
}

// check tells whether the kernel holds what it should. Destinations are not
// looked at one by one.
func (d *Dataplane) check() (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.adopted {
		return true, nil
	}
	if err := d.followAddrs(); err != nil {
		return true, err
	}
	list, err := d.kernel.servers()
	if err != nil {
		return true, explain(err)
	}
	present := make(map[front]settings, len(list))
	for _, l := range list {
		present[l.front] = l.settings
	}
	for f, s := range d.state.servers {
		if have, ok := present[f]; s.made && (!ok || have != s.have) {
			return false, nil
		}
	}
	addrs, err := d.device.addrs()
	if err != nil {
		return true, explain(err)
	}
	bound := make(map[netip.Addr]bool)
	for _, a := range addrs {
		if a.index == d.device.index {
			bound[a.Addr] = true
		}
	}
	for a, n := range d.state.addrs {
		if n.made && !bound[a] {
			return false, nil
		}
	}
	elements := 0
	for _, r := range d.rulesets {
		for id := range setCount {
			if err := d.sets.elements(id, r.v6, func(e element) {
				if d.state.elements[e].made {
					elements++
				}
			}); err != nil {
				return true, explain(err)
			}
		}
	}
	made := 0
	for _, n := range d.state.elements {
		if n.made {
			made++
		}
	}
	if elements != made {
		return false, nil
	}
	for _, r := range d.rulesets {
		if ok, err := r.intact(context.Background()); err != nil || !ok {
			return err != nil, err
		}
	}
	return true, nil
}
