package zone

import (
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// Kind of a result.
type Kind uint8

// The kinds of results.
const (
	Answer     Kind = iota // with records
	NoData                 // the name has no such records
	NoNode                 // as NoData, of a name without records of its own
	NameError              // the name does not exist
	Delegation             // the name is in a zone below
	Failure                // an alias leads outside and nobody knew
)

// Result is what a zone says to a question.
type Result struct {
	Kind              Kind
	Answer, Ns, Extra []dns.RR
	// Wildcard is the name that the records were made from, if it has an
	// asterisk.
	Wildcard string
}

// Query is a question to a zone.
type Query struct {
	Name string // lower case, fully qualified, in the zone
	Type uint16
	DO   bool
	// Outside looks names up that aliases lead to and that are not here.
	Outside func(name string, qtype uint16) (*dns.Msg, error)
}

// maxAliases is how many aliases of one zone are followed after the first.
const maxAliases = 9

// Lookup answers q.
func (z *Zone) Lookup(q Query) Result {
	wire, ok := wireName(q.Name)
	if !ok || !z.within(wire) {
		return Result{Kind: Failure}
	}
	if wire == z.origin {
		switch q.Type {
		case dns.TypeSOA:
			return Result{Answer: z.apex.signed(dns.TypeSOA, q.DO), Ns: z.ns(q.DO)}
		case dns.TypeNS:
			list := z.ns(q.DO)
			return Result{Answer: list, Extra: z.glue(list, q.DO)}
		}
	}
	n, encloser, cut := z.descend(wire)
	switch {
	case cut != nil && len(cut.rrs(dns.TypeDNAME)) > 0:
		return z.redirect(q, wire, cut)
	case cut != nil && q.Type == dns.TypeDS && cut.name == wire:
		return z.at(cut, q, "") // the parent's record (RFC 4035 §3.1.4.1)
	case cut != nil:
		return z.referral(cut, q.DO)
	case n != nil && z.besideWildcard(n):
		return z.at(z.nodes["\x01*"+parent(wire)], q, q.Name)
	case n != nil:
		return z.at(n, q, "")
	}
	if w := z.nodes["\x01*"+encloser.name]; w != nil {
		return z.at(w, q, q.Name)
	}
	r := Result{Kind: NameError, Ns: z.apex.signed(dns.TypeSOA, q.DO)}
	if q.DO {
		r.Ns = z.deny(r.Ns, wire, encloser.name)
	}
	return r
}

// besideWildcard tells whether a wildcard stands beside a name that has only
// names below it. The name exists, so the wildcard should not stand for it (RFC
// 4592 §2.2.2); CoreDNS lets it.
func (z *Zone) besideWildcard(n *node) bool {
	return n != z.apex && len(n.sets) == 0 && z.nodes["\x01*"+parent(n.name)] != nil
}

// bare tells whether a name has no records of its own. Those that make the zone
// do not count, which matters for what falls through (as in CoreDNS).
func (z *Zone) bare(n *node) bool {
	for t := range n.sets {
		if n != z.apex || t != dns.TypeSOA && t != dns.TypeNS && t != dns.TypeRRSIG {
			return false
		}
	}
	return true
}

// descend walks from the origin towards a name. It returns the name's node, or
// nil and the closest encloser; and the first node on the way where the zone is
// cut: by a delegation at or above the name, or by a DNAME above it.
func (z *Zone) descend(wire string) (n, encloser, cut *node) {
	path := []string{wire}
	for p := wire; p != z.origin; {
		p = parent(p)
		path = append(path, p)
	}
	for _, name := range slices.Backward(path) {
		if n = z.nodes[name]; n == nil {
			return nil, encloser, nil
		}
		switch {
		case name != wire && len(n.rrs(dns.TypeDNAME)) > 0:
			return nil, encloser, n
		case name != z.origin && len(n.rrs(dns.TypeNS)) > 0:
			return nil, encloser, n
		}
		encloser = n
	}
	return n, encloser, nil
}

// at answers from the node of the name itself, or from a wildcard, with owner
// in the place of the asterisk.
func (z *Zone) at(n *node, q Query, owner string) Result {
	wildcard := ""
	if owner != "" {
		wildcard = canonical(n.name)
	}
	if alias := n.rrs(dns.TypeCNAME); len(alias) > 0 && q.Type != dns.TypeCNAME {
		r := z.follow(named(n.signed(dns.TypeCNAME, q.DO), owner), alias[0].(*dns.CNAME).Target, q)
		r.Wildcard = wildcard
		return r
	}
	list := named(n.signed(q.Type, q.DO), owner)
	if len(n.rrs(q.Type)) == 0 {
		r := Result{Kind: NoData, Ns: z.apex.signed(dns.TypeSOA, q.DO), Wildcard: wildcard}
		if owner == "" && z.bare(n) {
			r.Kind = NoNode
		}
		if q.DO {
			if len(n.sets) == 0 {
				r.Ns = z.deny(r.Ns, n.name, "")
			} else {
				r.Ns = append(r.Ns, n.signed(dns.TypeNSEC, true)...)
			}
		}
		return r
	}
	r := Result{Answer: list, Ns: z.ns(q.DO), Extra: z.additional(list, q.DO), Wildcard: wildcard}
	if q.DO && owner != "" {
		// That no closer name exists has to be proven too.
		if wire, ok := wireName(owner); ok {
			if p := z.before(wire); p != nil {
				r.Ns = append(r.Ns, p.signed(dns.TypeNSEC, true)...)
			}
		}
	}
	return r
}

// named returns copies of the records with another owner, unless it is empty.
func named(list []dns.RR, owner string) []dns.RR {
	if owner == "" {
		return list
	}
	copies := make([]dns.RR, len(list))
	for i, rr := range list {
		copies[i] = dns.Copy(rr)
		copies[i].Header().Name = owner
	}
	return copies
}

// follow completes an answer that begins with an alias for target.
func (z *Zone) follow(answer []dns.RR, target string, q Query) Result {
	for range maxAliases {
		wire, ok := wireName(target)
		if !ok {
			return Result{Kind: Failure}
		}
		if !z.within(wire) || q.Type == dns.TypeNS || q.Type == dns.TypeSOA && wire == z.origin {
			return z.outside(answer, target, q) // those of the origin are special
		}
		n, _, cut := z.descend(wire)
		if cut != nil && len(cut.rrs(dns.TypeDNAME)) == 0 {
			r := z.referral(cut, q.DO)
			r.Answer = answer
			return r
		}
		if n == nil || cut != nil {
			// Not here, or made of a wildcard or a DNAME: from the start.
			return z.outside(answer, target, q)
		}
		alias := n.rrs(dns.TypeCNAME)
		if len(alias) == 0 || q.Type == dns.TypeCNAME {
			answer = append(answer, n.signed(q.Type, q.DO)...)
			return Result{Answer: answer, Ns: z.ns(q.DO), Extra: z.additional(answer, q.DO)}
		}
		answer = append(answer, n.signed(dns.TypeCNAME, q.DO)...)
		target = alias[0].(*dns.CNAME).Target
	}
	return Result{Answer: answer, Ns: z.ns(q.DO)}
}

// outside looks the target of an alias up elsewhere.
func (z *Zone) outside(answer []dns.RR, target string, q Query) Result {
	r := Result{Answer: answer}
	m, err := q.Outside(target, q.Type)
	if err != nil {
		r.Kind = Failure
	} else {
		r.Answer = append(r.Answer, m.Answer...)
		switch {
		case m.Rcode == dns.RcodeNameError:
			r.Kind = NameError
		case m.Rcode == dns.RcodeServerFailure:
			r.Kind = Failure
		case m.Rcode == dns.RcodeSuccess && len(m.Answer) == 0:
			r.Kind = NoData
		}
	}
	r.Ns = z.ns(q.DO)
	if r.Kind == NameError || r.Kind == NoData {
		r.Ns = z.apex.signed(dns.TypeSOA, q.DO)
	}
	r.Extra = z.additional(r.Answer, q.DO)
	return r
}

// redirect answers for a name below a DNAME (RFC 6672 §3).
func (z *Zone) redirect(q Query, wire string, n *node) Result {
	d := n.rrs(dns.TypeDNAME)[0].(*dns.DNAME)
	target, ok := wireName(d.Target)
	if !ok {
		return Result{Kind: Failure}
	}
	prefix := wire[:len(wire)-len(n.name)]
	if len(prefix)+len(target) > 255 {
		return Result{Kind: Failure} // YXDOMAIN would be right; CoreDNS makes it SERVFAIL
	}
	alias := &dns.CNAME{
		Hdr:    dns.RR_Header{Name: q.Name, Rrtype: dns.TypeCNAME, Class: d.Hdr.Class, Ttl: d.Hdr.Ttl},
		Target: canonical(prefix + target),
	}
	if strings.EqualFold(alias.Target, q.Name) {
		return Result{Kind: Failure} // a circle of one
	}
	var r Result
	if q.Type == dns.TypeCNAME {
		r = Result{Answer: []dns.RR{alias}, Ns: z.ns(q.DO)}
	} else {
		r = z.follow([]dns.RR{alias}, alias.Target, q)
	}
	if r.Kind != Failure || len(r.Answer) > 0 {
		r.Answer = append(n.signed(dns.TypeDNAME, q.DO), r.Answer...)
	}
	return r
}

// referral points to the name servers of a zone below.
func (z *Zone) referral(n *node, do bool) Result {
	list := slices.Clone(n.rrs(dns.TypeNS))
	r := Result{Kind: Delegation, Ns: list, Extra: z.glue(list, do)}
	if do {
		r.Ns = append(r.Ns, n.signed(dns.TypeDS, true)...)
	}
	return r
}

func (z *Zone) ns(do bool) []dns.RR { return z.apex.signed(dns.TypeNS, do) }

// glue returns the addresses of name servers that the zone's file has.
func (z *Zone) glue(list []dns.RR, do bool) []dns.RR {
	var extra []dns.RR
	for _, rr := range list {
		if ns, ok := rr.(*dns.NS); ok {
			extra = z.addresses(extra, ns.Ns, do)
		}
	}
	return extra
}

// additional returns the addresses in the zone of what the records point to,
// each target once.
func (z *Zone) additional(list []dns.RR, do bool) []dns.RR {
	var extra []dns.RR
	var done []string
	for _, rr := range list {
		target := ""
		switch rr := rr.(type) {
		case *dns.SRV:
			target = rr.Target
		case *dns.MX:
			target = rr.Mx
		case *dns.SVCB:
			target = rr.Target
		case *dns.HTTPS:
			target = rr.Target
		default:
			continue
		}
		wire, ok := wireName(target)
		if !ok || !z.within(wire) || slices.Contains(done, wire) {
			continue
		}
		done = append(done, wire)
		extra = z.addresses(extra, target, do)
	}
	return extra
}

func (z *Zone) addresses(extra []dns.RR, name string, do bool) []dns.RR {
	wire, ok := wireName(name)
	if !ok {
		return extra
	}
	if n := z.nodes[wire]; n != nil {
		for _, t := range []uint16{dns.TypeA, dns.TypeAAAA} {
			if len(n.rrs(t)) > 0 {
				extra = append(extra, n.signed(t, do)...)
			}
		}
	}
	return extra
}
