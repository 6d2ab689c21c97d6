// Package userspace makes this process hold a plan: it takes the connections to
// services itself and makes others to their endpoints. TCP and UDP; SCTP stays
// with the kernel.
//
// Traffic comes in one of two ways. With privilege, nf_tables translates service
// addresses as in nftables mode (capture.go), but to sockets of this process:
// policies, source ranges, refusals are the kernel's, which endpoint it is, and
// what happens if it does not answer, is decided here. Without privilege the
// sockets listen on the service addresses themselves (loopback.go), which must
// be addresses of this host: of 127.0.0.0/8, say.
//
// Read in this order: portal.go (a service port and its sockets), loop.go (how
// sockets are waited for), tcp.go, splice.go and udp.go (what happens to what
// comes), target.go (which endpoint).
package userspace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/netns"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// Dataplane relays what comes to services, in the network namespace it was
// opened in. Its methods may be called by several goroutines.
type Dataplane struct {
	cfg        dataplane.Config
	log        *slog.Logger
	countBytes bool
	mark       int // of connections to endpoints; 0 without privilege
	entry      entry
	loops      []*loop
	running    sync.WaitGroup

	fds   atomic.Int64 // descriptors of connections, sessions and sockets
	limit atomic.Int64 // of those
	told  atomic.Int64 // when it was last said that there are no more

	mu       sync.Mutex
	nextLoop int
	services map[catalog.ServiceName]map[portKey]*portal
	// listening are the addresses of the sockets.
	listening map[netip.AddrPort]struct{}
	closed    bool
}

// entry is how traffic gets to the sockets.
type entry interface {
	// fronts lists where a port's sockets listen.
	fronts(*portal, *plan.Port) []listener
	// adopt and apply direct traffic to them; what they do is as for a
	// Dataplane.
	adopt(context.Context, []plan.Service) ([]dataplane.Refusal, error)
	apply(context.Context, []plan.Service) ([]dataplane.Refusal, error)
	setRules(plan.Rules) error
	sweep() error
	keepNodeDNS(time.Duration) error
	monitor() (dataplane.Monitor, error)
	rivals() ([]string, error)
	// withdraw ends the directing: who takes over does it now.
	withdraw() error
	close() error
}

// listener is a front to listen on.
type listener struct {
	front
	sources []netip.Prefix
}

// reserve is how many descriptors are left for the rest of the process.
const reserve = 512

// Open makes the sockets' loops, and the kernel's tables, without services. With
// direct, sockets listen on the service addresses themselves, and no privilege
// is needed.
func Open(cfg dataplane.Config, direct bool) (*Dataplane, error) {
	d := &Dataplane{cfg: cfg, log: cfg.Logger, countBytes: cfg.CountBytes,
		services: make(map[catalog.ServiceName]map[portKey]*portal), listening: make(map[netip.AddrPort]struct{})}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return nil, fmt.Errorf("userspace: read the limit of open files: %w", err)
	}
	d.limit.Store(int64(min(limit.Cur, 4<<20)) - reserve)
	if d.limit.Load() < reserve {
		return nil, fmt.Errorf("userspace: only %d files may be open at once (ulimit -n): each connection takes two: allow %d or more", limit.Cur, 4*reserve)
	}
	var err error
	if direct {
		d.entry = newDirect(d)
	} else if d.entry, err = newCapture(d); err != nil {
		return nil, err
	} else {
		d.mark = 1 << cfg.MasqueradeBit
	}
	home, err := netns.Present()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("userspace: %w", err), d.entry.close())
	}
	defer home.Close()
	for range min(runtime.GOMAXPROCS(0), 16) {
		l, err := newLoop(d)
		if err == nil {
			err = d.start(l, home)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("userspace: %w", err), d.Close())
		}
	}
	return d, nil
}

// start runs a loop in the network namespace of Open's caller.
func (d *Dataplane) start(l *loop, home *netns.Namespace) error {
	started := make(chan error)
	d.running.Add(1)
	go func() {
		defer d.running.Done()
		err := home.Enter()
		started <- err
		if err == nil {
			l.run()
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	d.loops = append(d.loops, l)
	return nil
}

// lightest returns the loop for a new connection: the one that accepted it,
// unless it has notably more than another.
func (d *Dataplane) lightest(l *loop) *loop {
	best := l
	for _, o := range d.loops {
		if o.load.Load()+4 < best.load.Load() {
			best = o
		}
	}
	return best
}

// markOwn lets the kernel tell a connection to an endpoint from a client's.
func (d *Dataplane) markOwn(fd int) {
	if d.mark != 0 {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, d.mark)
	}
}

// full tells that no more descriptors may be used.
func (d *Dataplane) full() bool { return d.fds.Load() >= d.limit.Load() }

// warnFull says so, now and then.
func (d *Dataplane) warnFull() {
	now := time.Now().UnixNano()
	if last := d.told.Load(); now-last > int64(time.Minute) && d.told.CompareAndSwap(last, now) {
		d.log.Warn("new connections wait: as many files are open as may be (ulimit -n)", "limit", d.limit.Load())
	}
}

// Adopt takes up these services and no others.
func (d *Dataplane) Adopt(ctx context.Context, services []plan.Service) ([]dataplane.Refusal, error) {
	return d.program(services, true, func(s []plan.Service) ([]dataplane.Refusal, error) { return d.entry.adopt(ctx, s) })
}

// Apply takes up these services as planned; a plan without ports removes the
// service.
func (d *Dataplane) Apply(ctx context.Context, services []plan.Service) ([]dataplane.Refusal, error) {
	return d.program(services, false, func(s []plan.Service) ([]dataplane.Refusal, error) { return d.entry.apply(ctx, s) })
}

// program opens the sockets that services need, directs traffic to them, and
// closes those that are not needed any more.
func (d *Dataplane) program(services []plan.Service, all bool, direct func([]plan.Service) ([]dataplane.Refusal, error)) ([]dataplane.Refusal, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, errors.New("userspace: closed")
	}
	var refused []dataplane.Refusal
	var unused []func()
	known := make(map[catalog.ServiceName]bool, len(services))
	kept := make([]plan.Service, 0, len(services))
	for i := range services {
		s := &services[i]
		known[s.Name] = true
		free, err := d.take(s)
		unused = append(unused, free...)
		if err != nil {
			refused = append(refused, dataplane.Refusal{Service: s.Name, Err: err})
			if !all {
				continue
			}
			// Nobody else's sockets are to be found where it was.
			kept = append(kept, plan.Service{Name: s.Name})
			continue
		}
		kept = append(kept, *s)
	}
	if all {
		for name := range d.services {
			if !known[name] {
				free, _ := d.take(&plan.Service{Name: name})
				unused = append(unused, free...)
			}
		}
	}
	more, err := direct(kept)
	for _, f := range unused {
		f()
	}
	return append(refused, more...), err
}

// take makes the portals of a service as planned. It returns what closes those
// that are not needed any more.
func (d *Dataplane) take(s *plan.Service) (unused []func(), err error) {
	portals := d.services[s.Name]
	if portals == nil {
		portals = make(map[portKey]*portal)
	}
	wanted := make(map[portKey]bool)
	var errs []error
	for i := range s.Ports {
		port := &s.Ports[i]
		if port.Protocol == catalog.SCTP || port.Is6() && !d.cfg.IPv6 || !port.Is6() && !d.cfg.IPv4 {
			continue
		}
		k := portKey{port.ClusterIP, port.Protocol}
		wanted[k] = true
		p := portals[k]
		if p == nil {
			p = newPortal(k)
			portals[k] = p
		}
		p.update(port)
		fronts := d.entry.fronts(p, port)
		for f, s := range p.socks {
			if !slices.ContainsFunc(fronts, func(l listener) bool { return l.front == f }) {
				delete(p.socks, f)
				unused = append(unused, func() { d.unlisten(s) })
			}
		}
		for _, f := range fronts {
			if err := d.listen(p, f.front, f.sources); err != nil {
				errs = append(errs, err)
			}
		}
	}
	for k, p := range portals {
		if wanted[k] {
			continue
		}
		delete(portals, k)
		for _, s := range p.socks {
			unused = append(unused, func() { d.unlisten(s) })
		}
	}
	if len(portals) > 0 {
		d.services[s.Name] = portals
	} else {
		delete(d.services, s.Name)
	}
	return unused, errors.Join(errs...)
}

// SetRules puts other rules into force: Adopt is to be called next.
func (d *Dataplane) SetRules(r plan.Rules) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cfg.Rules = r
	return d.entry.setRules(r)
}

// Sweep removes what past changes left unused, and forgets clients whose
// affinity has ended.
func (d *Dataplane) Sweep() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	for _, portals := range d.services {
		for _, p := range portals {
			if a := p.affinity.Load(); a != nil {
				a.mu.Lock()
				a.sweep(now)
				a.mu.Unlock()
			}
		}
	}
	return d.entry.sweep()
}

// KeepNodeDNS makes queries to Rules.NodeDNS stay on this node for t more.
func (d *Dataplane) KeepNodeDNS(t time.Duration) error { return d.entry.keepNodeDNS(t) }

// Monitor begins to listen for what others do to our tables.
func (d *Dataplane) Monitor() (dataplane.Monitor, error) { return d.entry.monitor() }

// Rivals names what another service proxy keeps in the kernel.
func (d *Dataplane) Rivals() ([]string, error) { return d.entry.rivals() }

// Counters counts by service port, as Front its cluster IP, and endpoint.
func (d *Dataplane) Counters() (map[dataplane.Flow]dataplane.Count, error) {
	if !d.cfg.Counters {
		return nil, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	counts := make(map[dataplane.Flow]dataplane.Count)
	for _, portals := range d.services {
		for k, p := range portals {
			for e, t := range p.targets {
				if n := t.count.connections.Load(); n > 0 {
					counts[dataplane.Flow{Front: k.addr, Protocol: k.proto, Endpoint: e}] = dataplane.Count{
						Connections: n, Packets: t.count.packets.Load(), Bytes: t.count.bytes.Load()}
				}
			}
		}
	}
	return counts, nil
}

// Relays tells whether an address is that of a socket that clients are directed
// to: their flows lead there, not to an endpoint.
func (d *Dataplane) Relays(a netip.AddrPort) bool {
	if a.Addr() != relayAddrs[0] && a.Addr() != relayAddrs[1] {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.listening[a]
	return ok
}

// Drain takes no new connections, and returns when the last one has ended or
// ctx is done.
func (d *Dataplane) Drain(ctx context.Context) error {
	d.mu.Lock()
	err := d.entry.withdraw()
	d.shut()
	d.mu.Unlock()
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		d.running.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// shut closes what listens, once.
func (d *Dataplane) shut() {
	if d.closed {
		return
	}
	d.closed = true
	for _, portals := range d.services {
		for _, p := range portals {
			for _, s := range p.socks {
				d.unlisten(s)
			}
		}
	}
	for _, l := range d.loops {
		l.close()
	}
}

// Close takes no new connections; those that stand go on for as long as the
// process lives. The kernel's tables stay: clients are refused until another
// process takes over.
func (d *Dataplane) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shut()
	return d.entry.close()
}
