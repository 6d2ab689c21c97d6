// Package whoami tells clients the address, port and protocol they ask from.
package whoami

import (
	"context"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
)

const name = "whoami"

type handler struct{}

// Setup reads: whoami
func Setup(_ *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	for _, d := range lines {
		if err := d.Flag(); err != nil {
			return nil, err
		}
	}
	return func(plugin.Handler) plugin.Handler { return handler{} }, nil
}

func (handler) Name() string { return name }

// ServeDNS answers any name and type with nothing, and puts the client's
// address and port into the additional section.
func (handler) ServeDNS(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	q := &plugin.Request{W: w, Req: r}
	m := new(dns.Msg)
	m.SetReply(r)
	m.Authoritative = true
	client := q.Remote()
	addr := client.Addr().WithZone("")
	hdr := dns.RR_Header{Name: q.QName(), Class: q.QClass()}
	if addr.Is4() {
		hdr.Rrtype = dns.TypeA
		m.Extra = append(m.Extra, &dns.A{Hdr: hdr, A: addr.AsSlice()})
	} else {
		hdr.Rrtype = dns.TypeAAAA
		m.Extra = append(m.Extra, &dns.AAAA{Hdr: hdr, AAAA: addr.AsSlice()})
	}
	owner := "_" + q.Proto() + "." + q.QName()
	if q.QName() == "." {
		owner = "_" + q.Proto() + "."
	}
	m.Extra = append(m.Extra, &dns.SRV{
		Hdr:    dns.RR_Header{Name: owner, Rrtype: dns.TypeSRV, Class: q.QClass()},
		Port:   client.Port(),
		Target: ".",
	})
	return dns.RcodeSuccess, w.WriteMsg(m)
}
