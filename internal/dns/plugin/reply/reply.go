// Package reply tells what kind of reply a message is.
package reply

import (
	"time"

	"github.com/miekg/dns"
)

// Kind of a reply.
type Kind uint8

// The kinds of replies (RFC 2308 §2).
const (
	Positive    Kind = iota // an answer, or NOERROR with nothing at all
	Referral                // name servers in authority, no answer
	NoName                  // NXDOMAIN
	NoData                  // NOERROR without answer, with the zone's SOA
	ServerError             // SERVFAIL, NOTIMP
	OtherError              // any other code, or signatures that have expired
	Meta                    // a transfer or a NOTIFY
	Update                  // a dynamic update
)

func (k Kind) String() string {
	return [...]string{"NOERROR", "DELEGATION", "NXDOMAIN", "NODATA", "SERVERERROR", "OTHERERROR", "META", "UPDATE"}[k]
}

// Class is a coarser kind.
type Class uint8

// The classes, as log and cache name them.
const (
	Success Class = iota
	Denial
	Error
)

func (c Class) String() string { return [...]string{"success", "denial", "error"}[c] }

// Class of a reply of kind k.
func (k Kind) Class() Class {
	switch k {
	case Positive, Referral:
		return Success
	case NoName, NoData:
		return Denial
	}
	return Error
}

// KindOf returns the kind of m at the time now; nil is an error.
func KindOf(m *dns.Msg, now time.Time) Kind {
	if m == nil {
		return OtherError
	}
	switch {
	case m.Opcode == dns.OpcodeUpdate:
		return Update
	case m.Opcode == dns.OpcodeNotify:
		return Meta
	case len(m.Question) > 0 && (m.Question[0].Qtype == dns.TypeAXFR || m.Question[0].Qtype == dns.TypeIXFR):
		return Meta
	}
	if o := m.IsEdns0(); o != nil && o.Do() && expired(m, now) {
		return OtherError
	}
	if len(m.Answer) > 0 && m.Rcode == dns.RcodeSuccess {
		return Positive
	}
	if len(m.Answer) > 0 && m.Rcode == dns.RcodeNameError {
		return OtherError
	}
	soa, ns := false, false
	for _, rr := range m.Ns {
		switch rr.Header().Rrtype {
		case dns.TypeSOA:
			soa = true
		case dns.TypeNS:
			ns = true
		}
	}
	switch {
	case soa && m.Rcode == dns.RcodeSuccess:
		return NoData
	case m.Rcode == dns.RcodeNameError:
		return NoName
	case m.Rcode == dns.RcodeServerFailure || m.Rcode == dns.RcodeNotImplemented:
		return ServerError
	case ns && m.Rcode == dns.RcodeSuccess:
		return Referral
	case m.Rcode == dns.RcodeSuccess:
		return Positive
	}
	return OtherError
}

// expired tells whether a signature in m is outside its validity period.
func expired(m *dns.Msg, now time.Time) bool {
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if sig, ok := rr.(*dns.RRSIG); ok && !sig.ValidityPeriod(now) {
				return true
			}
		}
	}
	return false
}
