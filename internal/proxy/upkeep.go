package proxy

import (
	"context"
	"errors"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/rutter-project/rutter/internal/proxy/dataplane"
)

// What happens without a change of the catalogue: the node's DNS server is
// kept in front while it lives, failures are tried again, and what others
// break in our tables is repaired.

const (
	retryEvery = 5 * time.Second
	sweepEvery = 30 * time.Second
	// Changes by others come in bursts: the repair waits for the end of one.
	repairAfter = 50 * time.Millisecond
	// Somebody who undoes every repair must not cost all of a CPU.
	repairAtMost = time.Second
)

func (p *Proxy) keep(ctx context.Context, addrs <-chan netlink.AddrUpdate) {
	var beat <-chan time.Time // never, if there is nothing to keep
	if len(p.cfg.NodeDNS) > 0 {
		t := time.NewTicker(p.cfg.NodeDNSTimeout / 3)
		defer t.Stop()
		beat = t.C
	}
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	retry := time.NewTicker(retryEvery)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-beat:
			p.locked(p.keepNodeDNS, "cannot keep DNS on this node")
		case <-sweep.C:
			p.locked(func() error {
				err := p.data.Sweep()
				if err != nil {
					p.metrics.cleanupFailures.add(p.cfg, 1)
				}
				return err
			}, "cannot remove unused chains")
		case _, ok := <-addrs:
			if !ok {
				addrs = nil
				continue
			}
			p.locked(func() error { return p.addrsChanged(ctx) }, "cannot follow the addresses of this host")
		case <-retry.C:
			p.locked(func() error { return p.retry(ctx) }, "cannot program services")
		}
	}
}

// addrsChanged looks whether node ports are to be served on other addresses.
func (p *Proxy) addrsChanged(ctx context.Context) error {
	before := p.adopted
	if err := p.refreshNode(); err != nil || !before || p.adopted {
		return err
	}
	return p.outcome(p.adopt(ctx))
}

// retry goes through everything after an error, or when the kernel refused
// something.
func (p *Proxy) retry(ctx context.Context) error {
	if p.lastErr == nil && len(p.refused) == 0 {
		p.cleanFlows()
		p.checks.Retry()
		return nil
	}
	return p.outcome(p.adopt(ctx))
}

func (p *Proxy) locked(f func() error, failed string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := f(); err != nil && !errors.Is(err, context.Canceled) {
		p.log.Error(failed, "err", err)
	}
}

// watch repairs our tables when somebody else changes them.
func (p *Proxy) watch(ctx context.Context, monitor dataplane.Monitor) {
	notices := make(chan dataplane.Intrusion, 1)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		err := monitor.Run(func(i dataplane.Intrusion) {
			select {
			case notices <- i:
			default: // one is waiting
			}
		})
		if err != nil {
			p.log.Error("changes of our tables by others go unnoticed from now on", "err", err)
		}
	}()
	defer func() {
		monitor.Close()
		<-stopped
	}()
	wait := repairAfter
	for {
		select {
		case <-ctx.Done():
			return
		case i := <-notices:
			if !sleep(ctx, wait) {
				return
			}
			select {
			case <-notices: // part of the same burst
			default:
			}
			start := time.Now()
			p.locked(func() error { return p.repair(ctx, i) }, "cannot repair our tables")
			// The next one soon again costs at most half of the time.
			wait = min(max(repairAfter, time.Since(start)), repairAtMost)
		}
	}
}

func (p *Proxy) repair(ctx context.Context, i dataplane.Intrusion) error {
	p.metrics.repairs.Inc()
	p.repairs++
	p.log.Warn("another program changed our tables; they are repaired", "process", i.Process, "pid", i.PID)
	if p.lastApply.IsZero() && !p.adopted {
		return nil // nothing was programmed yet; the first Apply looks at everything
	}
	if err := p.outcome(p.adopt(ctx)); err != nil || len(p.cfg.NodeDNS) == 0 {
		return err
	}
	return p.keepNodeDNS()
}

// sleep tells whether d passed before ctx was done.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (p *Proxy) keepNodeDNS() error {
	if p.cfg.NodeDNSAlive != nil && !p.cfg.NodeDNSAlive() {
		return nil // its elements time out
	}
	return p.data.KeepNodeDNS(p.cfg.NodeDNSTimeout)
}

// KeepNodeDNS makes queries stay on this node from now on; for a DNS server
// that begins to answer. Without it they do so within a third of
// NodeDNSTimeout.
func (p *Proxy) KeepNodeDNS() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.data == nil || len(p.cfg.NodeDNS) == 0 {
		return nil
	}
	return p.keepNodeDNS()
}

// ReleaseNodeDNS lets queries go to other nodes at once; for a DNS server that
// stops in an orderly way.
func (p *Proxy) ReleaseNodeDNS() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.data == nil || len(p.cfg.NodeDNS) == 0 {
		return nil
	}
	return p.data.KeepNodeDNS(0)
}

// loop runs f until it ends, as one of the loops that Close waits for.
func (p *Proxy) loop(f func()) {
	p.loops.Go(func() {
		if err := p.home.Enter(); err != nil {
			p.log.Error("the proxy's upkeep does not run", "err", err)
			return
		}
		f()
	})
}
