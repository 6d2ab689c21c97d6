package agent

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rutter-project/rutter/internal/catalog"
)

// applyBound is how long a batch of names may wait for the dataplane. Past it
// the names are published all the same: an answer whose address does not work
// yet is better than none for every service in the batch.
const applyBound = 5 * time.Second

// sliceBound is how long the name of a new service waits for its first
// endpoint slice. The controller writes one, even an empty one, within
// milliseconds; without it the name would resolve to an address that refuses
// although its pods are ready. Past the bound there is no controller to wait
// for.
const sliceBound = time.Second

// retryDelay spaces attempts to program what the dataplane refused as a whole.
const retryDelay = time.Second

// dataplane is what the publisher needs of the service proxy.
type dataplane interface {
	// Apply programs the services named in ch and returns once the kernel
	// confirmed them. A service that is refused on its own is isolated and
	// reported by the dataplane; an error means that the batch as a whole is
	// not known to be in the kernel.
	Apply(ctx context.Context, ch catalog.Changes) error
}

// names is what the publisher needs of DNS.
type names interface {
	// Withdraw takes out of DNS what ch takes away, and publishes what needs
	// no dataplane (headless services, external names).
	Withdraw(cat *catalog.Catalog, ch catalog.Changes)
	// Publish makes DNS answer from what the catalogue holds of ch.
	Publish(cat *catalog.Catalog, ch catalog.Changes)
}

// publisher carries changes from the catalogue to the dataplane and to DNS, in
// the order that keeps this promise: a name is never answered with an address
// that does not work yet, and never with one that works no more.
//
//	removed names leave DNS → the kernel is programmed → new names enter DNS
type publisher struct {
	cat       *catalog.Catalog
	dataplane dataplane
	names     names
	log       *slog.Logger
	// observe is told about each batch: how many services it had, how long the
	// dataplane took, and whether it confirmed in time.
	observe func(services int, took time.Duration, err error)

	held map[catalog.ServiceName]time.Time // names that wait for their first slice, and until when

	mu    sync.Mutex
	state PublishStatus
}

// newPublisher makes the publisher of an agent, with its metrics.
func newPublisher(cat *catalog.Catalog, dataplane dataplane, names names, registry prometheus.Registerer, log *slog.Logger) *publisher {
	duration := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "rutter_publish_duration_seconds",
		Help:    "Time from taking a batch of changes out of the catalogue until the kernel confirmed it and the names were published.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 2, 16),
	})
	services := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "rutter_published_services_total",
		Help: "Services whose present state was published, counted once per change.",
	})
	unconfirmed := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "rutter_published_unconfirmed_services_total",
		Help: "Services that were published although the dataplane had not confirmed them in time.",
	})
	registry.MustRegister(duration, services, unconfirmed)
	return &publisher{cat: cat, dataplane: dataplane, names: names, log: log, observe: func(n int, took time.Duration, err error) {
		duration.Observe(took.Seconds())
		services.Add(float64(n))
		if err != nil {
			unconfirmed.Add(float64(n))
		}
	}}
}

// PublishStatus tells how far the node is behind the catalogue.
type PublishStatus struct {
	Ready       bool      // the first complete picture has been published
	LastApplied time.Time // last batch that the dataplane confirmed
	Unconfirmed int       // services published without confirmation, being retried
	Error       string    // why
}

func (p *publisher) status() PublishStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

// run publishes until ctx ends. It waits for a complete catalogue first: a
// partial one would remove working services from an adopted dataplane.
func (p *publisher) run(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-p.cat.Synced():
	}
	sub := p.cat.Subscribe()
	defer sub.Close()
	p.held = make(map[catalog.ServiceName]time.Time)
	var failed catalog.Changes // what the dataplane has not confirmed
	var retry <-chan time.Time
	for {
		var release <-chan time.Time
		if len(p.held) > 0 {
			release = time.After(p.nextRelease())
		}
		select {
		case <-ctx.Done():
			return
		case <-sub.C():
		case <-retry:
		case <-release:
			p.names.Publish(p.cat, catalog.Changes{Services: p.release(time.Now()), Synced: true})
			continue
		}
		ch := merge(failed, sub.Take())
		failed, retry = catalog.Changes{}, nil
		if ch.Empty() && p.status().Ready {
			continue
		}
		if err := p.batch(ctx, ch); err != nil && ctx.Err() == nil {
			failed = ch
			retry = time.After(retryDelay)
		}
	}
}

func (p *publisher) batch(ctx context.Context, ch catalog.Changes) error {
	p.names.Withdraw(p.cat, ch)
	start := time.Now()
	bounded, cancel := context.WithTimeout(ctx, applyBound)
	err := p.dataplane.Apply(bounded, ch)
	cancel()
	took := time.Since(start)
	if ctx.Err() != nil {
		return ctx.Err() // stopping: what is programmed and published stays
	}
	p.names.Publish(p.cat, p.hold(ch, start))
	p.observe(len(ch.Services), took, err)

	p.mu.Lock()
	defer p.mu.Unlock()
	first := !p.state.Ready
	p.state.Ready = true
	if err != nil {
		if p.state.Error != err.Error() { // say it once, not on each retry
			p.log.Error("dataplane not programmed; names are published without it and it is tried again", "services", len(ch.Services), "error", err)
		}
		p.state.Unconfirmed, p.state.Error = len(ch.Services), err.Error()
		return err
	}
	if p.state.Error != "" {
		p.log.Info("dataplane programmed again", "services", len(ch.Services), "took", took)
	}
	p.state.LastApplied, p.state.Unconfirmed, p.state.Error = time.Now(), 0, ""
	if first {
		p.log.Info("services published", "services", len(ch.Services), "took", took)
	}
	return nil
}

// hold takes out of ch the services that still wait for their first slice. The
// first picture is complete, so nothing in it waits.
func (p *publisher) hold(ch catalog.Changes, now time.Time) catalog.Changes {
	if !p.status().Ready {
		return ch
	}
	publish := ch
	publish.Services = make([]catalog.ServiceName, 0, len(ch.Services))
	for _, n := range ch.Services {
		e, _ := p.cat.Service(n)
		if e.Service == nil || !e.Service.Selected || !e.Service.HasClusterIP() || len(e.Slices) > 0 {
			delete(p.held, n)
			publish.Services = append(publish.Services, n)
			continue
		}
		if _, waits := p.held[n]; !waits {
			p.held[n] = now.Add(sliceBound)
		}
	}
	return publish
}

// release returns the names that have waited long enough.
func (p *publisher) release(now time.Time) (due []catalog.ServiceName) {
	for n, until := range p.held {
		if !now.Before(until) {
			due = append(due, n)
			delete(p.held, n)
		}
	}
	return due
}

func (p *publisher) nextRelease() time.Duration {
	next := sliceBound
	for _, until := range p.held {
		next = min(next, time.Until(until))
	}
	return next
}

// merge adds b to a, naming each object once.
func merge(a, b catalog.Changes) catalog.Changes {
	if a.Empty() {
		return b
	}
	return catalog.Changes{
		Services:   union(a.Services, b.Services),
		Namespaces: union(a.Namespaces, b.Namespaces),
		Nodes:      union(a.Nodes, b.Nodes),
		Pods:       union(a.Pods, b.Pods),
		Synced:     b.Synced,
	}
}

func union[K comparable](a, b []K) []K {
	seen := make(map[K]struct{}, len(a)+len(b))
	var out []K
	for _, list := range [...][]K{a, b} {
		for _, k := range list {
			if _, ok := seen[k]; !ok {
				seen[k] = struct{}{}
				out = append(out, k)
			}
		}
	}
	return out
}
