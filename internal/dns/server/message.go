package server

import (
	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/wire"
)

// message makes the dns.Msg of a plain query from what was parsed already,
// which costs half of unpacking the message again. It returns nil for a name
// that needs escapes, and for EDNS options: those are a full parser's.
func message(q *wire.Query) *dns.Msg {
	if len(q.Options) > 0 {
		return nil
	}
	name, ok := plainName(q.Question[:len(q.Name)])
	if !ok {
		return nil
	}
	// One allocation for what belongs together.
	m := &struct {
		dns.Msg
		question [1]dns.Question
		opt      dns.OPT
		extra    [1]dns.RR
	}{}
	m.Id = q.ID
	m.RecursionDesired, m.AuthenticatedData, m.CheckingDisabled = q.RD, q.AD, q.CD
	m.Truncated = q.Raw[2]&0x02 != 0
	m.Authoritative = q.Raw[2]&0x04 != 0
	m.RecursionAvailable = q.Raw[3]&0x80 != 0
	m.Zero = q.Raw[3]&0x40 != 0
	m.Rcode = int(q.Raw[3] & 0x0f)
	m.question[0] = dns.Question{Name: name, Qtype: q.Type, Qclass: q.Class}
	m.Question = m.question[:1:1]
	if q.EDNS {
		m.opt.Hdr = dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}
		m.opt.SetUDPSize(q.Size)
		if q.DO {
			m.opt.SetDo()
		}
		m.extra[0] = &m.opt
		m.Extra = m.extra[:1:1]
	}
	return &m.Msg
}

// plainName writes an uncompressed wire name as text; ok is false if a byte of
// it would have to be escaped.
func plainName(b []byte) (name string, ok bool) {
	if len(b) == 1 {
		return ".", true
	}
	var text [256]byte
	n := copy(text[:], b[1:])
	for at := 0; at < len(b)-1; {
		l := int(b[at])
		for _, c := range b[at+1 : at+1+l] {
			if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
				return "", false
			}
		}
		at += 1 + l
		text[at-1] = '.'
	}
	return string(text[:n]), true
}
