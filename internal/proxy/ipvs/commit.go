package ipvs

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/dataplane"
)

// A change gets to the kernel in this order, so that whoever is sent on finds
// what must be there before him:
//
//	elements of sets that are new     packets that will come are masqueraded
//	virtual servers, destinations     a node's own packets are sent on
//	addresses that are new            so are those from outside
//	destinations that go              weight 0, or deleted
//	virtual servers that go           unless connections need them
//	addresses and elements that go

// op is a request about a virtual server.
type op struct {
	cmd    byte
	server *server
	dest   netip.AddrPort
	weight uint32
}

// committer carries out what the state says; its buffers are used again.
type committer struct {
	batch batch
	ops   []op
	gone  []*server
	// refused is what the kernel would not take, by service.
	refused map[catalog.ServiceName]error
}

// commit makes the kernel hold what was touched.
func (d *Dataplane) commit(ctx context.Context) ([]dataplane.Refusal, error) {
	c, st := &d.committer, d.state
	clear(c.refused)
	defer func() {
		st.touched, st.touchedElements, st.touchedAddrs = st.touched[:0], st.touchedElements[:0], st.touchedAddrs[:0]
		if cap(c.batch.buf) > 1<<20 { // going through everything takes much, changes little
			c.batch, c.ops = batch{}, nil
			st.touched, st.touchedElements, st.touchedAddrs = nil, nil, nil
		}
	}()
	if err := d.commitElements(true); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	// First what comes, then what goes.
	for _, grow := range []bool{true, false} {
		c.batch.reset()
		c.ops = c.ops[:0]
		for _, s := range st.touched {
			if grow {
				d.grow(s)
			} else {
				d.shrink(s)
			}
		}
		if err := d.commitServers(); err != nil {
			return nil, err
		}
		if grow {
			if err := d.commitAddrs(true); err != nil {
				return nil, err
			}
		}
	}
	if err := d.settle(); err != nil {
		return nil, err
	}
	if err := d.commitAddrs(false); err != nil {
		return nil, err
	}
	if err := d.commitElements(false); err != nil {
		return nil, err
	}
	var refusals []dataplane.Refusal
	for name, err := range c.refused {
		refusals = append(refusals, dataplane.Refusal{Service: name, Err: err})
	}
	return refusals, nil
}

func (d *Dataplane) add(o op) {
	c := &d.committer
	c.ops = append(c.ops, o)
	if o.cmd <= cmdGetService {
		var set *settings
		if o.cmd != cmdDelService {
			set = &o.server.want
		}
		d.kernel.service(&c.batch, o.cmd, o.server.front, set)
		return
	}
	d.kernel.dest(&c.batch, o.cmd, o.server.front, o.dest, o.weight)
}

// grow asks for the virtual server, and for destinations that are missing.
func (d *Dataplane) grow(s *server) {
	if !s.owned {
		return
	}
	switch {
	case !s.made:
		d.add(op{cmd: cmdNewService, server: s})
	case s.have != s.want:
		d.add(op{cmd: cmdSetService, server: s})
	}
	for _, t := range s.targets {
		i, had := s.dest(t)
		switch {
		case !had:
			d.add(op{cmd: cmdNewDest, server: s, dest: t, weight: 1})
		case s.dests[i].weight != 1:
			d.add(op{cmd: cmdSetDest, server: s, dest: t, weight: 1})
		}
	}
}

// shrink asks for what must go, to go.
func (d *Dataplane) shrink(s *server) {
	if !s.made {
		return
	}
	if !s.owned && !s.graceful() {
		d.add(op{cmd: cmdDelService, server: s})
		return
	}
	for _, have := range s.dests {
		if _, wanted := slices.BinarySearchFunc(s.targets, have.addr, netip.AddrPort.Compare); wanted {
			continue
		}
		switch {
		case !s.graceful() && !slices.Contains(s.serving, have.addr):
			d.add(op{cmd: cmdDelDest, server: s, dest: have.addr})
		case have.weight != 0:
			d.add(op{cmd: cmdSetDest, server: s, dest: have.addr})
		}
	}
}

// commitServers carries out the operations and notes what the kernel has now.
func (d *Dataplane) commitServers() error {
	c := &d.committer
	var failures map[int]unix.Errno
	err := d.kernel.do(&c.batch, func(i int, err unix.Errno) {
		if failures == nil {
			failures = make(map[int]unix.Errno)
		}
		failures[i] = err
	})
	if err != nil {
		return fmt.Errorf("program virtual servers: %w", err)
	}
	for i := range c.ops {
		o := &c.ops[i]
		err, failed := failures[i]
		switch {
		case !failed:
		case err == unix.ENOENT && o.cmd == cmdDelDest, err == unix.ESRCH && (o.cmd == cmdDelDest || o.cmd == cmdDelService),
			err == unix.EEXIST && o.cmd == cmdNewDest && o.weight == 1:
			// Somebody did it already.
		default:
			if err := o.refusal(err); o.server.owned {
				c.refuse(o.server.owner, err)
			} else {
				d.log.Warn("cannot remove a virtual server", "err", err)
			}
			continue
		}
		o.done(d.state)
	}
	return nil
}

func (c *committer) refuse(name catalog.ServiceName, err error) {
	if c.refused == nil {
		c.refused = make(map[catalog.ServiceName]error)
	}
	if c.refused[name] == nil {
		c.refused[name] = err
	}
}

func (o *op) refusal(err unix.Errno) error {
	switch {
	case err == unix.ENOENT && (o.cmd == cmdNewService || o.cmd == cmdSetService):
		return fmt.Errorf("virtual server %s: this kernel has no scheduler %s: load module ip_vs_%[2]s, or choose another (ipvs.scheduler)", o.server.front, o.server.want.scheduler)
	case o.cmd >= cmdNewDest:
		return fmt.Errorf("virtual server %s, destination %s: %w", o.server.front, o.dest, err)
	}
	return fmt.Errorf("virtual server %s: %w", o.server.front, err)
}

func (o *op) done(st *state) {
	s := o.server
	switch o.cmd {
	case cmdNewService:
		s.made, s.have, s.dests = true, s.want, nil
	case cmdSetService:
		s.have = s.want
	case cmdDelService:
		s.made, s.dests = false, nil
	case cmdNewDest, cmdSetDest:
		i, had := s.dest(o.dest)
		if !had {
			s.dests = slices.Insert(s.dests, i, dest{addr: o.dest})
		}
		s.dests[i].weight = o.weight
	case cmdDelDest:
		if i, had := s.dest(o.dest); had {
			s.dests = slices.Delete(s.dests, i, i+1)
		}
	}
	if s.drains() {
		st.draining[s] = struct{}{}
	} else {
		delete(st.draining, s)
	}
}

// settle removes those virtual servers without a service that no connection
// needs.
func (d *Dataplane) settle() error {
	c := &d.committer
	c.gone = c.gone[:0]
	for _, s := range d.state.touched {
		if s.owned {
			continue
		}
		if s.made {
			d.state.draining[s] = struct{}{}
		}
		c.gone = append(c.gone, s)
	}
	return d.bury(c.gone)
}

// bury removes those of the servers, which are nobody's, that no established
// connection goes through.
func (d *Dataplane) bury(list []*server) error {
	c := &d.committer
	c.batch.reset()
	c.ops = c.ops[:0]
	for _, s := range list {
		if !s.made {
			continue
		}
		held, err := d.kernel.dests(s.front)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
		if !slices.ContainsFunc(held, func(h destination) bool { return h.active > 0 }) {
			d.add(op{cmd: cmdDelService, server: s})
		}
	}
	if err := d.commitServers(); err != nil {
		return err
	}
	for _, s := range list {
		if !s.made && !s.owned && d.state.servers[s.front] == s {
			d.state.forget(s)
		}
	}
	return nil
}

// commitElements adds elements that are missing from sets, or removes those
// that nobody needs.
func (d *Dataplane) commitElements(add bool) error {
	c, st := &d.committer, d.state
	c.batch.reset()
	var list []element
	for _, e := range st.touchedElements {
		if n := st.elements[e]; n.made != add && (n.refs > 0) == add {
			n.made = add // once; undone if it fails
			st.elements[e] = n
			d.sets.put(&c.batch, &e, add)
			list = append(list, e)
		}
	}
	err := d.sets.do(&c.batch, func(i int, err unix.Errno) {
		e := list[i]
		if !add && (err == unix.ENOENT || err == ipsetErrExist) {
			return
		}
		n := st.elements[e]
		n.made = !add
		st.elements[e] = n
		d.failed(fmt.Errorf("ipset %s: %w", setName(e.set, e.v6), explainSet(err, sets[e.set].typ)), e.addr, e.port)
	})
	if err != nil {
		return fmt.Errorf("program ipsets: %w", err)
	}
	if !add {
		for _, e := range list {
			if n := st.elements[e]; n.refs == 0 && !n.made {
				delete(st.elements, e)
			}
		}
	}
	return nil
}

// commitAddrs adds addresses that are missing to the device, or removes those
// that nobody needs.
func (d *Dataplane) commitAddrs(add bool) error {
	c, st := &d.committer, d.state
	c.batch.reset()
	var list []netip.Addr
	for _, a := range st.touchedAddrs {
		if n := st.addrs[a]; n.made != add && (n.refs > 0) == add {
			n.made = add
			st.addrs[a] = n
			d.device.put(&c.batch, a, add)
			list = append(list, a)
		}
	}
	err := d.device.do(&c.batch, func(i int, err unix.Errno) {
		if add && err == unix.EEXIST || !add && err == unix.EADDRNOTAVAIL {
			return
		}
		a := list[i]
		n := st.addrs[a]
		n.made = !add
		st.addrs[a] = n
		d.failed(fmt.Errorf("address %s on %s: %w", a, deviceName, err), a, 0)
	})
	if err != nil {
		return fmt.Errorf("program addresses: %w", err)
	}
	if !add {
		for _, a := range list {
			if n := st.addrs[a]; n.refs == 0 && !n.made {
				delete(st.addrs, a)
			}
		}
	}
	return nil
}

// failed notes a failure at the services that it is about.
func (d *Dataplane) failed(err error, a netip.Addr, port uint16) {
	found := false
	for _, s := range d.state.touched {
		if s.owned && (!a.IsValid() || s.addr == a) && (port == 0 || s.port == port) {
			d.committer.refuse(s.owner, err)
			found = true
		}
	}
	if !found {
		d.log.Warn("the kernel does not take a change", "err", err)
	}
}
