package proxy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/nftables"
)

// drainer is a dataplane whose connections need this process.
type drainer interface {
	// Drain takes no new connections, and returns when none is left or ctx is
	// done.
	Drain(ctx context.Context) error
}

// Switch changes the mode, and what goes with it, of a proxy that works: what
// cfg says besides Mode, IPVS, MasqueradeAll, MasqueradeBit, NodePortAddresses and
// LocalhostNodePorts is not looked at. The kernel holds everything in
// the new mode before anything of the old is removed, and connections that
// stand go on. After an error the old mode goes on as if nothing was asked.
func (p *Proxy) Switch(ctx context.Context, cfg Config) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.data == nil || p.upkeep.Err() != nil {
		return errors.New("proxy: not started")
	}
	cfg.Node = p.cfg.Node
	if err := cfg.complete(); err != nil {
		return err
	}
	m, err := selectMode(cfg.Mode, p.log)
	if err != nil || m.name == p.mode.name {
		return err
	}
	start, before, rulesBefore := time.Now(), p.cfg, p.rulesNow
	was := p.mode.name
	p.setModeConfig(&cfg)
	old, err := p.replace(ctx, m)
	if err != nil {
		p.setModeConfig(&before)
		p.rulesNow = rulesBefore
		return fmt.Errorf("proxy: mode %s is kept: %w", was, err)
	}
	p.log.Info("the proxy's mode changed", "from", was, "to", m.name, "took", time.Since(start).Round(time.Microsecond))
	p.retiring(old.mode, func(ctx context.Context) { p.retire(ctx, old) })
	return nil
}

// retirement is the removal of what a mode left.
type retirement struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// retiring runs f, which removes what a mode left, unless the mode is opened
// again meanwhile. It is called under p.mu; f may not take it.
func (p *Proxy) retiring(m mode, f func(context.Context)) {
	ctx, cancel := context.WithCancel(p.upkeep)
	r := retirement{cancel, make(chan struct{})}
	if p.retirements == nil {
		p.retirements = make(map[string][]retirement)
	}
	p.retirements[m.name] = append(p.retirements[m.name], r)
	p.loops.Go(func() {
		defer close(r.done)
		defer cancel()
		if err := p.home.Enter(); err != nil {
			p.log.Error("what another mode left is not removed", "mode", m.name, "err", err)
			return
		}
		f(ctx)
	})
}

// reinstate ends the removal of what a mode left: it is about to be used.
func (p *Proxy) reinstate(m mode) {
	for _, r := range p.retirements[m.name] {
		r.cancel()
		<-r.done
	}
	delete(p.retirements, m.name)
}

// setModeConfig sets the part of the configuration that a mode brings along.
// It is only looked at under p.mu.
func (p *Proxy) setModeConfig(c *Config) {
	p.cfg.Mode, p.cfg.MasqueradeAll, p.cfg.MasqueradeBit = c.Mode, c.MasqueradeAll, c.MasqueradeBit
	p.cfg.IPVS = c.IPVS
	p.cfg.NodePortAddresses, p.cfg.LocalhostNodePorts = c.NodePortAddresses, c.LocalhostNodePorts
}

// held is a mode at work.
type held struct {
	mode    mode
	data    dataplane.Dataplane
	unwatch context.CancelFunc
}

// replace makes the kernel hold everything in another mode, and returns the
// present one, which is still in place.
func (p *Proxy) replace(ctx context.Context, m mode) (old held, err error) {
	if p.rulesNow, err = p.rules(p.nodeFacts); err != nil {
		return old, err
	}
	next, err := p.open(m)
	if err != nil {
		return old, err
	}
	old, adopted := p.held, p.adopted
	p.held = next
	if adopted {
		if err := p.adopt(ctx); err != nil {
			p.held, p.adopted = old, false // the services that were planned since are gone through
			next.unwatch()
			return old, errors.Join(err, next.data.Close(), m.cleanup())
		}
	}
	p.checks.Listen(p.rulesNow.NodePortAddrs)
	p.localhostNodePorts()
	if len(p.cfg.NodeDNS) > 0 {
		if err := p.keepNodeDNS(); err != nil {
			p.log.Error("cannot keep DNS on this node", "err", err)
		}
	}
	return old, nil
}

// retire removes a mode that another has taken over from.
func (p *Proxy) retire(ctx context.Context, old held) {
	old.unwatch()
	var errs []error
	if d, ok := old.data.(drainer); ok {
		errs = append(errs, d.Drain(ctx))
	}
	errs = append(errs, old.data.Close())
	if ctx.Err() == nil {
		errs = append(errs, old.mode.retire(ctx, p.log))
	}
	if err := errors.Join(errs...); err != nil && ctx.Err() == nil {
		p.log.Warn("cannot remove what the former mode left", "mode", old.mode.name, "err", err)
	}
}

// retireOthers removes what other modes, and kube-proxy, left in the kernel. It
// is called once, when the kernel holds everything in the present mode, so that
// no connection finds neither. Only who takes kube-proxy's place may remove
// what has kube-proxy's names.
func (p *Proxy) retireOthers() {
	if p.cfg.ReplacesKubeProxy && p.upkeep.Err() == nil {
		if err := nftables.CleanupKubeProxy(); err != nil {
			p.log.Warn("cannot remove what kube-proxy left", "err", err)
		}
	}
	for _, m := range modes() {
		if p.mode.kernelless || m.name == p.mode.name || p.upkeep.Err() != nil || m.shared && !p.cfg.ReplacesKubeProxy {
			continue
		}
		p.retiring(m, func(ctx context.Context) {
			if ctx.Err() != nil {
				return
			}
			if err := m.retire(ctx, p.log); err != nil && ctx.Err() == nil {
				p.log.Warn("cannot remove what another mode left", "mode", m.name, "err", err)
			}
		})
	}
}

// open opens the dataplane of a mode, and begins to watch what others do to it.
func (p *Proxy) open(m mode) (held, error) {
	p.reinstate(m)
	data, err := m.open(dataplane.Config{
		Rules: p.rulesNow, MasqueradeBit: *p.cfg.MasqueradeBit, IPv4: p.cfg.IPv4, IPv6: p.cfg.IPv6,
		Counters: !p.cfg.NoCounters, CountBytes: p.cfg.CountBytes, Logger: p.log,
	}, &p.cfg)
	if err != nil {
		return held{}, err
	}
	monitor, err := data.Monitor()
	if err != nil {
		return held{}, errors.Join(err, data.Close())
	}
	ctx, cancel := context.WithCancel(p.upkeep)
	p.loop(func() { p.watch(ctx, monitor) })
	return held{m, data, cancel}, nil
}
