package ipvs

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/xtables"
)

// How connections come to their end:
//
// A TCP destination that a service leads to no more gets weight 0: its
// connections go on, new ones go elsewhere, those of clients with session
// affinity too. It is deleted when the kernel counts no connection to it. IPVS
// forgets one that sends nothing for 15 minutes (ipvs.tcpTimeout), so a dead
// endpoint does not stay.
//
// A UDP or SCTP destination gets weight 0 while its endpoint may still answer
// (it is draining, or excluded by a policy only), and is deleted at once when it
// may not: its flows go to another endpoint with their next packet.
//
// A virtual server whose service, or front end, is gone refuses new connections
// while established ones go through it. Then it goes, with its address.

// Sweep removes destinations and virtual servers that have drained.
func (d *Dataplane) Sweep() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.adopted {
		return nil
	}
	if err := d.sweep(); err != nil {
		_, err = d.finish(nil, err)
		return err
	}
	return nil
}

func (d *Dataplane) sweep() error {
	c, st := &d.committer, d.state
	clear(c.refused)
	c.batch.reset()
	c.ops = c.ops[:0]
	var unowned []*server
	for s := range st.draining {
		if !s.owned {
			unowned = append(unowned, s)
			continue
		}
		held, err := d.kernel.dests(s.front)
		if errors.Is(err, unix.ESRCH) {
			delete(st.draining, s)
			continue
		}
		if err != nil {
			return err
		}
		for _, h := range held {
			i, known := s.dest(h.addr)
			if known && s.dests[i].weight == 0 && h.weight == 0 && h.active+h.inactive == 0 {
				d.add(op{cmd: cmdDelDest, server: s, dest: h.addr})
			}
		}
	}
	if err := d.commitServers(); err != nil {
		return err
	}
	st.touched = unowned
	if err := d.bury(unowned); err != nil {
		return err
	}
	st.touched = nil
	if err := d.commitAddrs(false); err != nil {
		return err
	}
	err := d.commitElements(false)
	st.touchedElements, st.touchedAddrs = st.touchedElements[:0], st.touchedAddrs[:0]
	return err
}

// The time between two looks whether connections are left.
const drainEvery = 5 * time.Second

// Retire removes what this mode holds, when another has taken over. Established
// TCP connections go on: what they need goes when the last is closed, or ctx is
// done. Nothing of it is seen by new ones, which the other mode's rules catch.
func Retire(ctx context.Context, log *slog.Logger) error {
	k, err := dialIPVS()
	if err != nil {
		return nil // a kernel without IPVS holds nothing
	}
	k.close()
	d, err := openToRemove(log)
	if err != nil {
		return err
	}
	defer d.Close()
	if any, err := d.holdsAnything(); err != nil || !any {
		return err
	}
	// The rules go first: new packets are none of theirs.
	var errs []error
	for _, r := range d.rulesets {
		errs = append(errs, r.remove(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	t := time.NewTicker(drainEvery)
	defer t.Stop()
	for told := false; ; {
		d.mu.Lock()
		err := d.look()
		if err == nil {
			d.keepDraining()
			_, err = d.commit(ctx)
		}
		left := len(d.state.servers)
		d.mu.Unlock()
		if err != nil {
			return err
		}
		if left == 0 {
			return d.removeRest()
		}
		if !told {
			told = true
			log.Info("connections go on in the former mode until they are closed", "mode", "ipvs", "virtualServers", left)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}

// Cleanup removes at once everything that this mode, or kube-proxy's, holds in
// the present network namespace. Virtual servers of others stay.
func Cleanup() error {
	k, err := dialIPVS()
	if errors.Is(err, errNoIPVS) {
		return nil
	}
	if err != nil {
		return explain(err)
	}
	k.close()
	d, err := openToRemove(slog.New(slog.DiscardHandler))
	if err != nil {
		return explain(err)
	}
	defer d.Close()
	var errs []error
	for _, r := range d.rulesets {
		errs = append(errs, r.remove(context.Background()))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	err = d.look()
	if err == nil {
		d.keepDraining()
		c := &d.committer
		c.batch.reset()
		c.ops = c.ops[:0]
		for _, s := range d.state.servers {
			d.add(op{cmd: cmdDelService, server: s})
		}
		err = d.commitServers()
	}
	return errors.Join(append(errs, err, d.removeRest())...)
}

// openToRemove opens a dataplane that makes nothing.
func openToRemove(log *slog.Logger) (_ *Dataplane, err error) {
	d := &Dataplane{log: log, state: newState()}
	d.cfg.IPv4, d.cfg.IPv6 = true, true
	defer func() {
		if err != nil {
			err = errors.Join(err, d.closeAll())
		}
	}()
	if d.kernel, err = dialIPVS(); err != nil {
		return nil, err
	}
	if d.sets, err = dialIPSet(); err != nil {
		return nil, err
	}
	if d.device, err = dialDevice(); err != nil {
		return nil, err
	}
	if link, err := d.device.host.LinkByName(deviceName); err == nil {
		d.device.index = uint32(link.Attrs().Index)
	}
	for _, v6 := range []bool{false, true} {
		all, err := xtables.All(v6)
		if err != nil {
			continue // without the programs there are no rules of ours
		}
		for _, p := range all {
			d.rulesets = append(d.rulesets, &ruleset{programs: p, v6: v6})
		}
	}
	return d, nil
}

// removeRest removes the device and the sets, which nothing needs any more.
func (d *Dataplane) removeRest() error {
	return errors.Join(d.device.remove(), d.sets.destroy(false), d.sets.destroy(true))
}

// holdsAnything tells whether there is a device or set of this mode.
func (d *Dataplane) holdsAnything() (bool, error) {
	if d.device.index != 0 {
		return true, nil
	}
	for _, v6 := range []bool{false, true} {
		_, err := d.sets.typeOf(setName(setClusterIP, v6))
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, unix.ENOENT) {
			return false, nil // a kernel without ipset
		}
	}
	return false, nil
}

// Rivals names what another service proxy left in the kernel, or keeps there.
func (d *Dataplane) Rivals() ([]string, error) {
	// kube-proxy in this mode is taken over from, by its names. Its rules in
	// mode iptables are replaced, by theirs.
	return nil, nil
}

// Counters returns what was counted, by flow; a count begins anew with its
// virtual server or destination.
func (d *Dataplane) Counters() (map[dataplane.Flow]dataplane.Count, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.adopted || !d.cfg.Counters && !d.cfg.CountBytes {
		return nil, nil
	}
	counts := make(map[dataplane.Flow]dataplane.Count)
	for f, s := range d.state.servers {
		if !s.made || len(s.dests) == 0 {
			continue
		}
		held, err := d.kernel.dests(f)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return nil, explain(err)
		}
		for _, h := range held {
			if h.stats.connections == 0 {
				continue
			}
			n := dataplane.Count{Connections: h.stats.connections}
			if d.cfg.CountBytes {
				n.Packets, n.Bytes = h.stats.packets, h.stats.bytes
			}
			counts[dataplane.Flow{Front: addrPort(f), Protocol: f.proto, Endpoint: h.addr}] = n
		}
	}
	return counts, nil
}

// refresh plans those services again whose needs what changed around may touch.
func (d *Dataplane) refresh(ctx context.Context, concerns func(*service) bool) error {
	var again []*service
	for _, s := range d.state.services {
		if concerns(s) {
			again = append(again, s)
		}
	}
	for _, s := range again {
		d.state.drop(s.plan.Name)
	}
	for _, s := range again {
		needs, elements := d.around.needs(&s.plan)
		d.state.set(&s.plan, needs, elements)
	}
	refused, err := d.commit(ctx)
	for _, r := range refused {
		d.log.Error("the kernel refuses a service", "service", r.Service.String(), "err", r.Err)
	}
	return err
}

// KeepNodeDNS makes queries to those addresses of Rules.NodeDNS that are no
// cluster IPs stay on this node for d more: there is no virtual server for
// them. With 0 they go to the endpoints of the service at once. Queries to a
// cluster IP always go to an endpoint, here or on another node.
func (d *Dataplane) KeepNodeDNS(keep time.Duration) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dns != nil {
		d.dns.Stop()
		d.dns = nil
	}
	if keep > 0 {
		d.dns = time.AfterFunc(keep, func() {
			if err := d.KeepNodeDNS(0); err != nil {
				d.log.Error("cannot send DNS queries to other nodes", "err", err)
			}
		})
	}
	if d.around.keepDNS == (keep > 0) {
		return nil
	}
	d.around.keepDNS = keep > 0
	if !d.adopted {
		return nil
	}
	err := d.refresh(context.Background(), func(s *service) bool {
		return slices.ContainsFunc(d.around.rules.NodeDNS, func(a netip.AddrPort) bool { return s.has(a) })
	})
	_, err = d.finish(nil, err)
	return err
}
