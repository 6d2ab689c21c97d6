package server

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
)

// listenerKey is where a listener listens: an empty addr means every address.
type listenerKey struct{ addr, port string }

// generation is one configuration while it serves.
type generation struct {
	blocks []*block
	routes map[listenerKey]*routes
	ctx    context.Context // ends with the generation
	cancel context.CancelFunc
	open   atomic.Int64 // queries in its chains
	shared shared
}

// block is a server block ready to answer.
type block struct {
	*plugin.Block
	first     plugin.Handler
	direct    []step
	observers []plugin.Observer
}

// step is a handler that is asked on the direct path.
type step struct {
	name    string
	handler plugin.Direct
	relay   plugin.Relay // the handler, if it is one
}

// compile sets up the plugins of all blocks and the routes to them.
func (s *Server) compile(blocks []corefile.ServerBlock) (*generation, error) {
	gen := &generation{routes: make(map[listenerKey]*routes)}
	gen.ctx, gen.cancel = context.WithCancel(context.Background())
	for _, sb := range blocks {
		for _, k := range sb.Keys {
			if k.Scheme != "dns" {
				return nil, corefile.Errorf(k.Token, "%s:// is not served by Rutter yet; use dns:// or no scheme", k.Scheme)
			}
		}
		pb, err := plugin.Build(s.env, sb, s.cfg.Plugins, gen.shared.get)
		if err != nil {
			return nil, err
		}
		b := &block{Block: pb, first: pb.First()}
		b.direct = directSteps(pb)
		for _, h := range pb.Handlers() {
			if o, ok := h.(plugin.Observer); ok {
				b.observers = append(b.observers, o)
			}
		}
		gen.blocks = append(gen.blocks, b)
		addrs := pb.Bind
		if len(addrs) == 0 {
			addrs = []string{""}
		}
		for _, k := range sb.Keys {
			for _, addr := range addrs {
				if err := s.addRoute(gen, listenerKey{addr, k.Port}, k, b); err != nil {
					return nil, err
				}
			}
		}
	}
	return gen, nil
}

func (s *Server) addRoute(gen *generation, key listenerKey, k corefile.Key, b *block) error {
	r := gen.routes[key]
	if r == nil {
		r = &routes{gen: gen, server: s, key: key, zones: make(map[string]*zone), timeouts: b.Timeouts, sockets: b.Sockets}
		gen.routes[key] = r
	}
	name, err := packName(k.Zone)
	if err != nil {
		return fmt.Errorf("zone %q: %w", k.Zone, err)
	}
	z := r.zones[name]
	if z == nil {
		z = &zone{name: k.Zone}
		r.zones[name] = z
		r.lengths[len(name)>>6] |= 1 << (len(name) & 63)
	}
	for _, t := range z.targets {
		if t.block == b {
			return nil // the key stands twice in one block
		}
	}
	r.anyClass = r.anyClass || b.AnyClass
	for _, h := range b.Handlers() {
		if d, ok := h.(plugin.DropObserver); ok && r.drops == nil {
			r.drops = d
		}
	}
	z.targets = append(z.targets, &target{
		block:  b,
		origin: &plugin.Origin{Server: key.String(), Zone: k.Zone, View: b.View, Serve: r.serve},
	})
	return nil
}

// directSteps lists the handlers to ask on the direct path: up to the first
// that neither has a direct form nor lets answers pass unseen.
func directSteps(b *plugin.Block) []step {
	var steps []step
	for _, h := range b.Handlers() {
		if d, ok := h.(plugin.Direct); ok {
			relay, _ := h.(plugin.Relay)
			steps = append(steps, step{h.Name(), d, relay})
		} else if !b.Effect(h.Name()).Transparent() {
			break
		}
	}
	return steps
}

func packName(name string) (string, error) {
	var buf [256]byte
	n, err := dns.PackDomainName(name, buf[:], 0, nil, false)
	return string(buf[:n]), err
}

// start runs the start hooks of all blocks. They get the generation's context,
// which also ends if ctx does meanwhile.
func (g *generation) start(ctx context.Context) error {
	unlink := context.AfterFunc(ctx, g.cancel)
	defer unlink()
	for _, b := range g.blocks {
		if err := b.Start(g.ctx); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// enter and leave count the queries in the generation's chains.
func (g *generation) enter() { g.open.Add(1) }
func (g *generation) leave() { g.open.Add(-1) }

// drain waits until no query is in the generation's chains.
func (g *generation) drain(limit time.Duration) {
	deadline := time.Now().Add(limit)
	for g.open.Load() > 0 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
}

func (g *generation) stop() error {
	g.cancel()
	var errs []error
	for _, b := range g.blocks {
		errs = append(errs, b.Shutdown())
	}
	return errors.Join(errs...)
}

func (g *generation) finalShutdown() error {
	var errs []error
	for _, b := range g.blocks {
		errs = append(errs, b.FinalShutdown())
	}
	return errors.Join(errs...)
}
