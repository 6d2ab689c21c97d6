package plugintest

import (
	"context"
	"strings"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
)

// Records is a plugin for tests that answers from records in its block:
//
//	records {
//	    a.test. 60 IN A 192.0.2.1
//	    b.test. SERVFAIL
//	}
//
// The answer has every record with the name asked for, in the asker's
// spelling, and the type asked for or CNAME. A name without any is NXDOMAIN; a
// line of a name and an rcode gives it that rcode.
func Records(effect plugin.Effect) plugin.Entry {
	return plugin.Entry{Name: "records", Effect: effect, Setup: func(_ *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
		h := &recordsHandler{rcodes: make(map[string]int)}
		for _, d := range lines[0].Block {
			words := []string{d.Name.Text}
			for _, a := range d.Args {
				words = append(words, a.Text)
			}
			if len(words) == 2 {
				h.rcodes[words[0]] = dns.StringToRcode[words[1]]
				continue
			}
			rr, err := dns.NewRR(strings.Join(words, " "))
			if err != nil {
				return nil, corefile.Errorf(d.Name, "%w", err)
			}
			h.list = append(h.list, rr)
		}
		return func(plugin.Handler) plugin.Handler { return h }, nil
	}}
}

type recordsHandler struct {
	list   []dns.RR
	rcodes map[string]int
}

func (h *recordsHandler) Name() string { return "records" }

func (h *recordsHandler) ServeDNS(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	q := r.Question[0]
	if rcode, ok := h.rcodes[strings.ToLower(q.Name)]; ok {
		if !plugin.ClientWrite(rcode) {
			return rcode, nil
		}
		return dns.RcodeSuccess, w.WriteMsg(Reply(r, rcode))
	}
	m := Reply(r, dns.RcodeSuccess)
	m.RecursionAvailable = false
	m.Authoritative = true
	known := false
	for _, rr := range h.list {
		if !strings.EqualFold(rr.Header().Name, q.Name) {
			continue
		}
		known = true
		if t := rr.Header().Rrtype; rr.Header().Class == q.Qclass && (t == q.Qtype || t == dns.TypeCNAME) {
			rr = dns.Copy(rr)
			rr.Header().Name = q.Name
			m.Answer = append(m.Answer, rr)
		}
	}
	if !known {
		m.Rcode = dns.RcodeNameError
	}
	return dns.RcodeSuccess, w.WriteMsg(m)
}
