// Package proxy is the service load balancer: it keeps the kernel's tables
// equal to what the catalogue says about services.
//
// Data goes one way: the catalogue's changes name services, package plan
// decides what this node must hold for each, a dataplane makes the kernel hold
// it: packages nftables, … (mode.go).
package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/conntrack"
	"github.com/rutter-project/rutter/internal/proxy/healthcheck"
	"github.com/rutter-project/rutter/internal/proxy/netns"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// Proxy programs the services of a catalogue into the network namespace it was
// started in. Its methods may be called by several goroutines.
//
//	New ─▶ Start ─▶ Apply (returns at once until the catalogue is synced;
//	                then everything is taken over, later only changes) … ─▶ Close
type Proxy struct {
	cat     *catalog.Catalog
	cfg     Config // not changed after New
	log     *slog.Logger
	metrics *metrics

	checks *healthcheck.Servers

	traffic traffic

	healthMu     sync.Mutex
	waitingSince time.Time // zero when nothing waits to be programmed
	updated      time.Time

	loops  sync.WaitGroup
	upkeep context.Context // of the loops
	stop   context.CancelFunc
	others sync.Once // that retired the other modes
	// retirements are under way, by mode.
	retirements map[string][]retirement

	mu           sync.Mutex
	held         // its data is nil before Start and after Close
	home         *netns.Namespace
	host         *netlink.Handle // interfaces and addresses of the namespace
	nodeFacts    plan.Node
	rulesNow     plan.Rules
	serviceCIDRs []netip.Prefix
	claims       *claims
	flows        flows
	counts       map[catalog.ServiceName]count // of services that have ports
	total        count
	skipped      map[catalog.ServiceName][]plan.Skip
	refused      map[catalog.ServiceName]error
	triggered    map[catalog.ServiceName]time.Time // newest change trigger that was accounted for
	started      time.Time
	adopted      bool // the kernel holds what the catalogue says; else everything is gone through
	lastApply    time.Time
	lastAdopt    time.Time // when all services were gone through
	lastErr      error
	repairs      int

	bridgesWarned []string
}

// New checks the configuration. Nothing is touched before Start.
func New(cat *catalog.Catalog, cfg Config) (*Proxy, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	p := &Proxy{
		cat: cat, cfg: cfg, log: cfg.Logger,
		serviceCIDRs: cfg.ServiceCIDRs,
		claims:       newClaims(),
		flows:        flows{held: make(map[catalog.ServiceName]conntrack.Wanted)},
		counts:       make(map[catalog.ServiceName]count),
		skipped:      make(map[catalog.ServiceName][]plan.Skip),
		refused:      make(map[catalog.ServiceName]error),
		triggered:    make(map[catalog.ServiceName]time.Time),
	}
	p.traffic.sums = make(map[catalog.ServiceName]map[endpointKey]*EndpointTraffic)
	if cfg.Registerer != nil && (!cfg.NoCounters || cfg.CountBytes) {
		if err := cfg.Registerer.Register(newTrafficCollector(p)); err != nil {
			return nil, fmt.Errorf("register the proxy's metrics: %w", err)
		}
	}
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(modeCollector{p}); err != nil {
			return nil, fmt.Errorf("register the proxy's metrics: %w", err)
		}
	}
	var err error
	if p.metrics, err = newMetrics(cfg.Registerer, cfg); err != nil {
		return nil, err
	}
	return p, nil
}

// Start opens the dataplane and begins to keep it up, until ctx is done. What
// an earlier process left in the kernel goes on working.
func (p *Proxy) Start(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.data != nil {
		return errors.New("proxy: started twice")
	}
	var err error
	if p.home, err = netns.Present(); err != nil {
		return fmt.Errorf("proxy: %w", err)
	}
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		p.home.Close()
		return fmt.Errorf("proxy: open a netlink socket: %w", err)
	}
	p.host = host
	opened := false
	defer func() {
		if !opened {
			host.Close()
			p.home.Close()
		}
	}()
	p.nodeFacts = p.node()
	rules, err := p.rules(p.nodeFacts)
	if err != nil {
		return fmt.Errorf("proxy: %w", err)
	}
	p.rulesNow = rules
	m, err := selectMode(p.cfg.Mode, p.log)
	if err != nil {
		return err
	}
	if p.flows.cleaner, err = conntrack.Open(); err != nil {
		return err
	}
	p.upkeep, p.stop = context.WithCancel(ctx)
	if p.held, err = p.open(m); err != nil {
		p.flows.cleaner.Close()
		return err
	}
	p.checks = healthcheck.New(healthcheck.Config{
		Healthy: p.Healthy, Log: p.log,
		Failed: func(n catalog.ServiceName, err error) {
			p.event(Event{n, true, "FailedToStartServiceHealthcheck", "Listen", err.Error()})
		},
	})
	p.checks.Listen(rules.NodePortAddrs)
	p.localhostNodePorts()
	// Addresses that come later matter where node ports are served on some only.
	addrs := make(chan netlink.AddrUpdate, 16)
	if err := netlink.AddrSubscribe(addrs, p.upkeep.Done()); err != nil {
		p.log.Warn("addresses that this host gets later are not served node ports on", "err", err)
		addrs = nil
	}
	if rivals, err := p.data.Rivals(); err == nil && len(rivals) > 0 && !p.cfg.ReplacesKubeProxy {
		p.log.Warn("another service proxy has rules in this kernel, which may be in force before ours: stop kube-proxy and run kube-proxy --cleanup", "found", rivals)
	}
	opened = true
	p.started = time.Now()
	if len(p.cfg.NodeDNS) > 0 {
		if err := p.keepNodeDNS(); err != nil {
			p.log.Error("cannot keep DNS on this node", "err", err)
		}
	}
	p.loop(func() { p.keep(p.upkeep, addrs) })
	return nil
}

// Close ends the upkeep. The kernel's tables stay and go on working.
func (p *Proxy) Close() error {
	p.mu.Lock()
	if p.stop != nil {
		p.stop() // under the lock: retireOthers adds to the loops
	}
	p.mu.Unlock()
	p.loops.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.data == nil {
		return nil
	}
	p.checks.Close()
	err := errors.Join(p.data.Close(), p.flows.cleaner.Close())
	p.host.Close()
	p.home.Close()
	p.data = nil
	return err
}

// Apply brings the kernel up to date with the changed services, and returns
// when it confirmed. A service that the kernel refuses does not keep the others
// out: it is named by Status, and is no error.
//
// Before the catalogue is synced nothing is done: what is missing may only be
// late.
func (p *Proxy) Apply(ctx context.Context, ch catalog.Changes) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.data == nil {
		return errors.New("proxy: not started")
	}
	if !ch.Synced && !p.adopted {
		return nil
	}
	if !p.adopted || p.nodeChanged(&ch) {
		if err := p.refreshNode(); err != nil {
			return p.outcome(err)
		}
	}
	if !p.adopted {
		p.waiting()
		p.metrics.changed(p.cfg, len(ch.Services))
		return p.outcome(p.adopt(ctx))
	}
	if len(ch.Services) == 0 {
		return nil
	}
	p.waiting()
	p.metrics.changed(p.cfg, len(ch.Services))
	return p.outcome(p.apply(ctx, ch.Services))
}

func (p *Proxy) outcome(err error) error {
	p.lastErr = err
	if err == nil {
		p.done()
	} else {
		// What the kernel holds is not certain now: the next call looks.
		p.adopted = false
		p.metrics.failures.add(p.cfg, 1)
	}
	return err
}

// refreshNode looks at the node again. If something that rules or plans depend
// on is new, everything is gone through.
func (p *Proxy) refreshNode() error {
	n := p.node()
	rules, err := p.rules(n)
	if err != nil {
		return fmt.Errorf("proxy: %w", err)
	}
	if !slices.Equal(rules.NodePortAddrs, p.rulesNow.NodePortAddrs) || !slices.Equal(rules.Detect.CIDRs, p.rulesNow.Detect.CIDRs) ||
		!slices.Equal(rules.ServiceCIDRs, p.rulesNow.ServiceCIDRs) {
		p.log.Info("the node changed", "nodePortAddresses", rules.NodePortAddrs, "serviceCIDRs", rules.ServiceCIDRs)
		if err := p.data.SetRules(rules); err != nil {
			return err
		}
		p.checks.Listen(rules.NodePortAddrs)
		p.rulesNow, p.adopted = rules, false
	}
	if n.Zone != p.nodeFacts.Zone || !slices.Equal(n.IPs, p.nodeFacts.IPs) {
		p.adopted = false
	}
	p.nodeFacts = n
	return nil
}

// SetServiceCIDRs tells the ranges of cluster IPs, in the place of the
// configuration's.
func (p *Proxy) SetServiceCIDRs(ctx context.Context, cidrs []netip.Prefix) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.data == nil {
		return errors.New("proxy: not started")
	}
	p.serviceCIDRs = cidrs
	if slices.Equal(cidrs, p.rulesNow.ServiceCIDRs) {
		return nil
	}
	adopted := p.adopted
	if err := p.refreshNode(); err != nil || !adopted {
		return p.outcome(err)
	}
	return p.outcome(p.adopt(ctx))
}

// adopt plans every service and makes the kernel hold just these.
func (p *Proxy) adopt(ctx context.Context) error {
	start := time.Now()
	p.lastAdopt = start
	var names []catalog.ServiceName
	p.cat.Services(func(n catalog.ServiceName, e catalog.Entry) bool {
		if e.Service != nil {
			names = append(names, n)
		}
		return true
	})
	// Who has a front end keeps it. Those that are gone release theirs first.
	slices.SortFunc(names, compareNames)
	names = append(p.claims.gone(p.cat), names...)
	clear(p.counts)
	clear(p.skipped)
	clear(p.refused)
	p.total = count{}
	plans, _ := p.plan(names)
	p.checks.Retain(func(n catalog.ServiceName) bool { e, ok := p.cat.Service(n); return ok && e.Service != nil })
	refused, err := p.data.Adopt(ctx, plans)
	p.settle(plans, refused)
	if err != nil {
		return err
	}
	p.adopted, p.lastApply = true, time.Now()
	p.others.Do(func() { p.retireOthers() })
	p.warnOfBridges()
	p.flows.orphans = true
	p.cleanFlows()
	p.metrics.full.observe(p.cfg, time.Since(start))
	p.log.Info("services programmed", "services", p.total.services, "ports", p.total.ports, "endpoints", p.total.endpoints,
		"refused", len(p.refused), "took", time.Since(start).Round(time.Microsecond))
	return nil
}

// apply plans the named services and programs them.
func (p *Proxy) apply(ctx context.Context, names []catalog.ServiceName) error {
	start := time.Now()
	plans, losers := p.plan(names)
	// Who loses a front end lets go of it before another takes it.
	if len(losers) > 0 {
		first := make([]plan.Service, 0, len(losers))
		for i := range plans {
			if _, ok := losers[plans[i].Name]; ok {
				first = append(first, plans[i])
			}
		}
		if _, err := p.data.Apply(ctx, first); err != nil {
			return err
		}
	}
	refused, err := p.data.Apply(ctx, plans)
	if len(refused) > 0 && start.Sub(p.lastAdopt) > retryEvery {
		// Perhaps the kernel does not hold what we think. Going through
		// everything tells.
		return p.adopt(ctx)
	}
	p.settle(plans, refused)
	if err != nil {
		return err
	}
	p.lastApply = time.Now()
	p.cleanFlows()
	p.metrics.partial.observe(p.cfg, p.lastApply.Sub(start))
	return nil
}
