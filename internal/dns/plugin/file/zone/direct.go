package zone

import (
	"encoding/binary"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/wire"
)

// packed is a set of records in wire form. Their owner is a pointer, to be set
// to where the name stands in the question.
type packed struct {
	records []byte
	owners  []int // where the pointers are
}

const pointer = 0xc000

func pack(list []dns.RR) *packed {
	p := &packed{}
	var buf [65535]byte
	for _, rr := range list {
		rr = dns.Copy(rr)
		rr.Header().Name = "." // one byte, to be replaced
		n, err := dns.PackRR(rr, buf[:], 0, nil, false)
		if err != nil || len(p.records)+n > 32<<10 {
			return nil // left to the chain
		}
		p.owners = append(p.owners, len(p.records))
		p.records = append(p.records, pointer>>8, 0)
		p.records = append(p.records, buf[1:n]...)
	}
	return p
}

// pack puts the sets that ServeDirect answers with into wire form.
func (z *Zone) pack() {
	for _, n := range z.nodes {
		n.packed = make(map[uint16]*packed, len(n.sets))
		for t, list := range n.sets {
			switch t {
			case dns.TypeNS, dns.TypeSOA:
				if n != z.apex {
					continue
				}
			case dns.TypeMX, dns.TypeSRV, dns.TypeSVCB, dns.TypeHTTPS, dns.TypeCNAME, dns.TypeDNAME, dns.TypeRRSIG, dns.TypeNSEC:
				continue // more goes with them
			}
			if p := pack(list); p != nil {
				n.packed[t] = p
			}
		}
	}
}

// append adds the set with the owner at offset in the message.
func (p *packed) append(a *wire.Answer, s wire.Section, offset int) bool {
	from := a.Len()
	if p == nil || !a.Append(s, p.records, len(p.owners)) {
		return false
	}
	b := a.Written()[from:]
	for _, at := range p.owners {
		binary.BigEndian.PutUint16(b[at:], uint16(pointer|offset))
	}
	return true
}

const headerLen = 12

// Direct writes the answer to q, which asks for a name in the zone, or returns
// false: for aliases, delegations, wildcards, signatures, additional records,
// and what does not fit. It answers as Lookup would.
func (z *Zone) Direct(q *wire.Query, a *wire.Answer) (kind Kind, ok bool) {
	depth := q.Labels() - z.labels
	if depth < 0 || q.DO || string(q.Question[:len(q.Name)]) != string(q.Name) {
		return 0, false
	}
	n := z.apex
	encloser := z.apex
	for i := depth - 1; i >= 0; i-- {
		if len(encloser.rrs(dns.TypeDNAME)) > 0 {
			return 0, false
		}
		if n = z.nodes[string(q.Suffix(i))]; n == nil {
			break
		}
		if len(n.rrs(dns.TypeNS)) > 0 {
			return 0, false
		}
		encloser = n
	}
	origin := headerLen + len(q.Name) - len(z.origin)
	a.Authoritative = true
	soa := func(k Kind) (Kind, bool) {
		return k, z.apex.packed[dns.TypeSOA].append(a, wire.AuthoritySection, origin)
	}
	if n == nil {
		var buf [256]byte
		w := append(append(buf[:0], "\x01*"...), encloser.name...)
		if z.nodes[string(w)] != nil {
			return 0, false
		}
		a.Rcode = dns.RcodeNameError
		return soa(NameError)
	}
	switch {
	case z.besideWildcard(n):
		return 0, false
	case z.bare(n) && len(n.rrs(q.Type)) == 0:
		return soa(NoNode)
	case len(n.rrs(dns.TypeCNAME)) > 0, n == z.apex && q.Type == dns.TypeNS:
		return 0, false
	case len(n.rrs(q.Type)) == 0:
		return soa(NoData)
	case !n.packed[q.Type].append(a, wire.AnswerSection, headerLen):
		return 0, false
	case len(z.apex.rrs(dns.TypeNS)) == 0:
		return Answer, true
	}
	return Answer, z.apex.packed[dns.TypeNS].append(a, wire.AuthoritySection, origin)
}
