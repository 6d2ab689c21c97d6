// Package loop finds out at start whether a query that this server forwards
// comes back to it, and ends the process if so: it would spin until it is out
// of memory.
package loop

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

const name = "loop"

type handler struct {
	next  plugin.Handler
	log   *slog.Logger
	zone  string
	qname string
	addr  string // of this server
	fatal func(error)

	off  atomic.Bool
	seen atomic.Int32
}

// Setup reads: loop
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	if err := plugin.Once(lines); err != nil {
		return nil, err
	}
	if err := lines[0].Flag(); err != nil {
		return nil, err
	}
	host := "127.0.0.1"
	if len(b.Bind) > 0 {
		host = b.Bind[0]
	}
	k := b.Keys[0]
	h := &handler{
		log:   b.Log(name),
		zone:  k.Zone,
		qname: probeName(k.Zone),
		addr:  net.JoinHostPort(host, k.Port),
		fatal: b.Env.Fatal,
	}
	if k.Scheme != "dns" {
		h.off.Store(true) // the probe speaks plain DNS only
	}
	b.OnStart(func(ctx context.Context) error {
		if !h.off.Load() {
			go h.probe(ctx) // ends by itself, or with the configuration
		}
		return nil
	})
	return func(next plugin.Handler) plugin.Handler {
		h.next = next
		return h
	}, nil
}

// probeName is two random labels in zone: nobody else asks for it.
func probeName(zone string) string {
	number := func() string { return strconv.FormatUint(rand.Uint64(), 10) }
	return number() + "." + number() + "." + strings.TrimPrefix(zone, ".")
}

func (h *handler) Name() string { return name }

// ServeDNS counts how often the probe arrives: once from here, and again if it
// was forwarded around.
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	if h.off.Load() || len(r.Question) == 0 || r.Question[0].Qtype != dns.TypeHINFO || !strings.EqualFold(r.Question[0].Name, h.qname) {
		return plugin.NextOrFailure(name, h.next, ctx, w, r)
	}
	if h.seen.Add(1) > 2 {
		h.fatal(fmt.Errorf("plugin/loop: Loop (%s -> %s) detected for zone %q, see https://coredns.io/plugins/loop#troubleshooting. Query: \"HINFO %s\"",
			w.RemoteAddr(), h.addr, h.zone, h.qname))
	}
	return plugin.NextOrFailure(name, h.next, ctx, w, r)
}

// ServeDirect keeps the probe's type from being passed on unseen.
func (h *handler) ServeDirect(q *wire.Query, _ *wire.Answer) plugin.Outcome {
	if q.Type == dns.TypeHINFO && !h.off.Load() {
		return plugin.Chain
	}
	return plugin.Next
}

const (
	probeEvery = 1 * time.Second
	probeUntil = 30 * time.Second
	listenFor  = 2 * time.Second // after the reply, for what still goes round
)

// probe asks this server for the name until it replies, and then switches the
// handler off.
func (h *handler) probe(ctx context.Context) {
	defer h.off.Store(true)
	deadline := time.Now().Add(probeUntil)
	for time.Now().Before(deadline) {
		m := new(dns.Msg)
		m.SetQuestion(h.qname, dns.TypeHINFO)
		c := dns.Client{Timeout: 4 * time.Second}
		_, _, err := c.ExchangeContext(ctx, m, h.addr)
		wait := probeEvery
		if err == nil {
			wait = listenFor
		} else {
			h.seen.Store(0)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if err == nil {
			return
		}
	}
}
