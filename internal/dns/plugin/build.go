package plugin

import (
	"context"
	"errors"

	"github.com/rutter-project/rutter/internal/corefile"
)

// Build sets up the plugins of a server block and chains their handlers in the
// order's sequence. It validates only: nothing runs before Start.
func Build(env *Env, sb corefile.ServerBlock, order []Entry, shared func(key any, make func() any) any) (*Block, error) {
	b := &Block{Env: env, Keys: sb.Keys, Shared: shared, order: order}
	for _, k := range sb.Keys {
		if !contains(b.Zones, k.Zone) {
			b.Zones = append(b.Zones, k.Zone)
		}
	}
	lines := make(map[string][]corefile.Directive)
	for _, d := range sb.Directives {
		if err := known(order, d.Name); err != nil {
			return nil, err
		}
		lines[d.Name.Text] = append(lines[d.Name.Text], d)
	}
	var makers []New
	for _, e := range order {
		ds := lines[e.Name]
		if len(ds) == 0 {
			continue
		}
		maker, err := e.Setup(b, ds)
		if err != nil {
			return nil, err
		}
		if maker != nil {
			makers = append(makers, maker)
		}
	}
	b.handlers = make([]Handler, len(makers))
	var next Handler
	for i := len(makers) - 1; i >= 0; i-- {
		next = makers[i](next)
		b.handlers[i] = next
	}
	return b, nil
}

// Names splits an order list into the plugins that are here and those that
// only CoreDNS has.
func Names(order []Entry) (here, lacking []string) {
	for _, e := range order {
		if e.Setup != nil {
			here = append(here, e.Name)
		} else {
			lacking = append(lacking, e.Name)
		}
	}
	return here, lacking
}

func known(order []Entry, name corefile.Token) error {
	for _, e := range order {
		switch {
		case e.Name != name.Text:
		case e.Setup == nil:
			return corefile.Errorf(name, "plugin %q is one that CoreDNS has and Rutter does not; remove the line", name.Text)
		default:
			return nil
		}
	}
	here, _ := Names(order)
	return corefile.Unknown("plugin", name, here...)
}

func contains(z Zones, zone string) bool {
	for _, have := range z {
		if have == zone {
			return true
		}
	}
	return false
}

// First is where a query enters the block; nil when it has no handler.
func (b *Block) First() Handler {
	if len(b.handlers) == 0 {
		return nil
	}
	return b.handlers[0]
}

// Start runs the start hooks in order, up to the first error.
func (b *Block) Start(ctx context.Context) error {
	for _, f := range b.hooks.start {
		if err := f(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Shutdown runs the shutdown hooks.
func (b *Block) Shutdown() error { return runAll(b.hooks.shutdown) }

// FinalShutdown runs the hooks of the process's end.
func (b *Block) FinalShutdown() error { return runAll(b.hooks.finalShutdown) }

func runAll(hooks []func() error) error {
	var errs []error
	for _, f := range hooks {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}
