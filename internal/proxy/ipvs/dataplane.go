// Package ipvs makes the kernel hold a plan in its own load balancer, IPVS, as
// kube-proxy's mode of that name does, and with its names.
//
// A service address and port is a virtual server; its address is the host's, on
// the dummy device kube-ipvs0, because IPVS sees no other packets. What IPVS
// does not do, masquerading and filtering above all, is done by a handful of
// iptables rules that look into ipsets. A change of a service is a few netlink
// messages; the rules stay as they are.
//
// Read in this order: layout.go (what a service needs), state.go (what is held),
// commit.go (how that gets to the kernel), rules.go (the rules), drain.go (how
// connections come to their end), adopt.go (how a start takes over what a former
// process left). server.go, ipset.go, device.go and netlink.go speak with the
// kernel.
package ipvs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/netns"
	"github.com/rutter-project/rutter/internal/proxy/plan"
	"github.com/rutter-project/rutter/internal/proxy/xtables"
)

// Options are those of KubeProxyConfiguration's block ipvs.
type Options struct {
	// Scheduler is one of the kernel's, module ip_vs_…; empty: rr.
	Scheduler string
	// StrictARP keeps the host from answering ARP for service addresses, which
	// are on a device of its own (MetalLB and the like need that).
	StrictARP bool
	// SyncPeriod is how often it is looked whether all is in place; 0: 30 s.
	SyncPeriod time.Duration
	// TCPTimeout, TCPFinTimeout and UDPTimeout are how long IPVS remembers a
	// connection without packets; 0 leaves the kernel's values.
	TCPTimeout, TCPFinTimeout, UDPTimeout time.Duration
	// ExcludeCIDRs are of virtual servers that are never removed.
	ExcludeCIDRs []netip.Prefix
}

// Dataplane holds plans in IPVS, in the network namespace it was opened in. Its
// methods may be called by several goroutines.
type Dataplane struct {
	opts   Options
	cfg    dataplane.Config
	log    *slog.Logger
	kernel *kernel
	sets   *ipsets
	device *device
	space  *netns.Namespace

	mu       sync.Mutex
	rulesets []*ruleset
	around   surroundings
	state    *state
	committer
	adopted bool
	dns     *time.Timer // lets go of node DNS
}

// Open connects to the kernel, and makes what there must be before the first
// service: the device and sets, empty, and settings. What an earlier process, or
// kube-proxy, left is left working as it is until Adopt.
func Open(cfg dataplane.Config, opts Options) (_ *Dataplane, err error) {
	if opts.Scheduler == "" {
		opts.Scheduler = "rr"
	}
	if opts.SyncPeriod <= 0 {
		opts.SyncPeriod = 30 * time.Second
	}
	d := &Dataplane{opts: opts, cfg: cfg, log: cfg.Logger, state: newState(),
		around: surroundings{rules: cfg.Rules, scheduler: opts.Scheduler, v4: cfg.IPv4, v6: cfg.IPv6}}
	defer func() {
		if err != nil {
			err = explain(errors.Join(err, d.closeAll()))
		}
	}()
	if d.space, err = netns.Present(); err != nil {
		return nil, err
	}
	if d.kernel, err = dialIPVS(); err != nil {
		return nil, err
	}
	if d.sets, err = dialIPSet(); err != nil {
		return nil, err
	}
	if d.device, err = dialDevice(); err != nil {
		return nil, err
	}
	for _, f := range []struct{ on, v6 bool }{{cfg.IPv4, false}, {cfg.IPv6, true}} {
		if !f.on {
			continue
		}
		p, err := xtables.Find(context.Background(), d.log, f.v6)
		if err != nil {
			return nil, err
		}
		d.rulesets = append(d.rulesets, &ruleset{programs: p, v6: f.v6, mark: cfg.MasqueradeBit})
	}
	if err := d.kernel.checkScheduler(opts.Scheduler); err != nil {
		return nil, err
	}
	if err := d.space.Do(d.setSysctls); err != nil {
		return nil, err
	}
	if opts.TCPTimeout > 0 || opts.TCPFinTimeout > 0 || opts.UDPTimeout > 0 {
		s := func(d time.Duration) uint32 { return uint32(d.Seconds()) }
		if err := d.kernel.setTimeouts(s(opts.TCPTimeout), s(opts.TCPFinTimeout), s(opts.UDPTimeout)); err != nil {
			return nil, fmt.Errorf("set IPVS's timeouts: %w", err)
		}
	}
	return d, d.furnish()
}

// furnish makes the device and the sets unless they exist.
func (d *Dataplane) furnish() error {
	if err := d.device.ensure(); err != nil {
		return err
	}
	for _, r := range d.rulesets {
		if err := d.sets.create(r.v6); err != nil {
			return err
		}
	}
	return nil
}

// explain names what is missing on this host when the kernel says no.
func explain(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("ipvs: %w: programming services needs CAP_NET_ADMIN in this network namespace: run as root, or grant the capability", err)
	}
	return fmt.Errorf("ipvs: %w", err)
}

// Probe tells what this host lacks for IPVS. It changes nothing, but a kernel
// that has IPVS as a module loads it.
func Probe() error {
	k, err := dialIPVS()
	if err != nil {
		return err
	}
	defer k.close()
	p, err := xtables.All(false)
	for _, x := range p {
		x.Close()
	}
	return err
}

// checkScheduler tells whether the kernel has a scheduler, by a virtual server
// on an address for documentation (RFC 5737), as kube-proxy does.
func (k *kernel) checkScheduler(name string) error {
	f := front{netip.AddrFrom4([4]byte{198, 51, 100, 0}), 20000, catalog.TCP}
	var b batch
	k.service(&b, cmdNewService, f, &settings{scheduler: name})
	k.service(&b, cmdDelService, f, nil)
	var refused unix.Errno
	err := k.do(&b, func(i int, err unix.Errno) {
		if i == 0 {
			refused = err
		}
	})
	switch {
	case err != nil:
		return err
	case refused == unix.ENOENT:
		return fmt.Errorf("this kernel has no scheduler %s: load module ip_vs_%[1]s, or choose another (ipvs.scheduler)", name)
	case refused != 0 && refused != unix.EEXIST:
		return fmt.Errorf("make a virtual server: %w", refused)
	}
	return nil
}

// Apply makes the kernel hold these services as planned; a plan without ports
// removes the service. Others are not touched.
func (d *Dataplane) Apply(ctx context.Context, services []plan.Service) ([]dataplane.Refusal, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.adopted {
		return nil, errors.New("ipvs: nothing was taken over yet")
	}
	d.plan(services)
	return d.finish(d.commit(ctx))
}

// plan notes what the services need. All let go of what they had before any
// takes something: a front end may go from one to another.
func (d *Dataplane) plan(services []plan.Service) {
	for i := range services {
		d.state.drop(services[i].Name)
	}
	for i := range services {
		needs, elements := d.around.needs(&services[i])
		d.state.set(&services[i], needs, elements)
	}
}

func (d *Dataplane) finish(refused []dataplane.Refusal, err error) ([]dataplane.Refusal, error) {
	if err != nil {
		d.adopted = false // what the kernel holds is not certain
		return refused, explain(err)
	}
	return refused, nil
}

// SetRules puts other rules into force.
func (d *Dataplane) SetRules(r plan.Rules) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.around.rules = r
	if !d.adopted {
		return nil // Adopt writes them
	}
	if err := d.writeRules(context.Background()); err != nil {
		return explain(err)
	}
	return nil
}

func (d *Dataplane) writeRules(ctx context.Context) error {
	var errs []error
	for _, r := range d.rulesets {
		if err := r.write(ctx, &d.around.rules); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Close ends the upkeep. What the kernel holds stays and goes on working.
func (d *Dataplane) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.adopted = false // who still watches, or counts, finds nothing to do
	return d.closeAll()
}

func (d *Dataplane) closeAll() error {
	var errs []error
	if d.dns != nil {
		d.dns.Stop()
	}
	if d.kernel != nil {
		errs = append(errs, d.kernel.close())
	}
	if d.sets != nil {
		errs = append(errs, d.sets.close())
	}
	if d.device != nil {
		errs = append(errs, d.device.close())
	}
	for _, r := range d.rulesets {
		errs = append(errs, r.programs.Close())
	}
	if d.space != nil {
		errs = append(errs, d.space.Close())
	}
	return errors.Join(errs...)
}
