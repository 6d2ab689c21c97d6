// Package erratic drops, delays and truncates replies on purpose, to test
// clients with.
package erratic

import (
	"context"
	"net"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
)

const name = "erratic"

type handler struct {
	drop, delay, truncate uint64 // every how many queries; 0: never
	pause                 time.Duration
	large                 bool

	queries atomic.Uint64
}

// Setup reads:
//
//	erratic {
//	    drop [AMOUNT]
//	    truncate [AMOUNT]
//	    delay [AMOUNT [DURATION]]
//	    large
//	}
func Setup(_ *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	h := &handler{drop: 2}
	dropSet := false
	for _, d := range lines {
		if err := d.Want(0, 0, "no argument"); err != nil {
			return nil, err
		}
		for _, p := range d.Block {
			set, err := h.property(p)
			if err != nil {
				return nil, err
			}
			dropSet = dropSet || set
		}
	}
	if (h.delay > 0 || h.truncate > 0) && !dropSet {
		h.drop = 0 // only what was asked for
	}
	return func(plugin.Handler) plugin.Handler { return h }, nil
}

func (h *handler) property(p corefile.Directive) (dropSet bool, err error) {
	amount := func(v *uint64, most int) error {
		if err := p.Want(0, most, "how often, as a number"); err != nil || len(p.Args) == 0 {
			return err
		}
		n, err := p.Args[0].Number(0, 1<<31-1)
		*v = uint64(n)
		return err
	}
	switch p.Name.Text {
	case "drop":
		return len(p.Args) > 0, amount(&h.drop, 1)
	case "truncate":
		h.truncate = 2
		return false, amount(&h.truncate, 1)
	case "delay":
		h.delay, h.pause = 2, 100*time.Millisecond
		if err := amount(&h.delay, 2); err != nil || len(p.Args) < 2 {
			return false, err
		}
		h.pause, err = p.Args[1].Duration()
		return false, err
	case "large":
		h.large = true
		return false, p.Flag()
	}
	return false, corefile.Unknown("property of erratic", p.Name, "drop", "truncate", "delay", "large")
}

func (h *handler) Name() string { return name }

// Ready is always true: it is there to be seen by the ready plugin.
func (h *handler) Ready() bool { return true }

// AutoPath is a search path, for the autopath plugin.
func (h *handler) AutoPath(*plugin.Request) []string {
	return []string{"a.example.org.", "b.example.org.", ""}
}

// ServeDNS answers A and AAAA with documentation addresses, other types with
// SERVFAIL, unless it is the query's turn to go wrong.
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	n := h.queries.Add(1) - 1
	turn := func(every uint64) bool { return every > 0 && n%every == 0 }
	if turn(h.drop) {
		return dns.RcodeSuccess, nil // as if written
	}
	if turn(h.delay) {
		select {
		case <-ctx.Done():
		case <-time.After(h.pause):
		}
	}
	m := new(dns.Msg)
	m.SetReply(r)
	m.Authoritative = true
	// Not a remainder: CoreDNS tests the bits, and clients see that.
	m.Truncated = h.truncate > 0 && n&h.truncate == 0
	hdr := dns.RR_Header{Name: r.Question[0].Name, Rrtype: r.Question[0].Qtype, Class: dns.ClassINET}
	switch r.Question[0].Qtype {
	case dns.TypeA:
		m.Answer = []dns.RR{&dns.A{Hdr: hdr, A: net.IPv4(192, 0, 2, 53)}}
		for h.large && len(m.Answer) < 30 {
			m.Answer = append(m.Answer, m.Answer[0])
		}
	case dns.TypeAAAA:
		m.Answer = []dns.RR{&dns.AAAA{Hdr: hdr, AAAA: net.ParseIP("2001:db8::53")}}
	default:
		return dns.RcodeServerFailure, nil
	}
	return dns.RcodeSuccess, w.WriteMsg(m)
}
