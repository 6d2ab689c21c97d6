// Package metadata lets plugins say things about a query under a label
// (plugin/name), for other plugins to use: in log lines, view expressions,
// rewrite rules and templates.
package metadata

import (
	"context"
	"strings"
	"sync"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
)

const name = "metadata"

// Func computes a value when it is asked for.
type Func func() string

// Provider is a handler that has something to say about queries. It is asked
// before the query enters the chain and calls Set.
type Provider interface {
	Metadata(ctx context.Context, q *plugin.Request)
}

type key struct{}

// labels are the values of one query. Handlers may go on in other goroutines,
// so it has a lock.
type labels struct {
	mu     sync.RWMutex
	values map[string]Func
}

// New returns a context that keeps metadata.
func New(ctx context.Context) context.Context {
	if _, ok := ctx.Value(key{}).(*labels); ok {
		return ctx
	}
	return context.WithValue(ctx, key{}, &labels{values: make(map[string]Func)})
}

// Set gives label a value; the later call wins. It does nothing, and says so,
// when the query's block has no metadata plugin or the label has no slash.
func Set(ctx context.Context, label string, f Func) bool {
	l, ok := ctx.Value(key{}).(*labels)
	if !ok || !ValidLabel(label) {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.values[label] = f
	return true
}

// Value returns the value of label; ok is false when nobody set it.
func Value(ctx context.Context, label string) (value string, ok bool) {
	l, _ := ctx.Value(key{}).(*labels)
	if l == nil {
		return "", false
	}
	l.mu.RLock()
	f := l.values[label]
	l.mu.RUnlock()
	if f == nil {
		return "", false
	}
	return f(), true
}

// All returns every label that is set with its value.
func All(ctx context.Context) map[string]string {
	l, _ := ctx.Value(key{}).(*labels)
	if l == nil {
		return nil
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	m := make(map[string]string, len(l.values))
	for k, f := range l.values {
		m[k] = f()
	}
	return m
}

// ValidLabel tells whether label has the form plugin/name.
func ValidLabel(label string) bool {
	before, after, found := strings.Cut(label, "/")
	return found && before != "" && after != ""
}

// Setup reads: metadata [ZONES...]
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	if err := plugin.Once(lines); err != nil {
		return nil, err
	}
	if err := lines[0].NoBlock(); err != nil {
		return nil, err
	}
	zones, err := corefile.ZoneList(lines[0].Args)
	if err != nil {
		return nil, err
	}
	h := &handler{block: b, zones: zones}
	if len(zones) == 0 {
		h.zones = b.Zones
	}
	b.OnStart(func(context.Context) error {
		for _, other := range b.Handlers() {
			if p, ok := other.(Provider); ok {
				h.providers = append(h.providers, p)
			}
		}
		return nil
	})
	return func(next plugin.Handler) plugin.Handler {
		h.next = next
		return h
	}, nil
}

type handler struct {
	next      plugin.Handler
	block     *plugin.Block
	zones     plugin.Zones
	providers []Provider
}

func (h *handler) Name() string { return name }

func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	return plugin.NextOrFailure(name, h.next, h.Collect(ctx, w, r), w, r)
}

// Collector is implemented by the metadata handler: a view's expressions need
// the values before the query enters the chain.
type Collector interface {
	Collect(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) context.Context
}

// Collect asks the providers if the query is in one of the plugin's zones and
// has not been through here before.
func (h *handler) Collect(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) context.Context {
	if _, ok := ctx.Value(key{}).(*labels); ok {
		return ctx
	}
	q := &plugin.Request{W: w, Req: r}
	if h.zones.Matches(q.Name()) == "" {
		return ctx
	}
	ctx = New(ctx)
	for _, p := range h.providers {
		p.Metadata(ctx, q)
	}
	return ctx
}
