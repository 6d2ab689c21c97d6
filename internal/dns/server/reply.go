package server

import (
	"encoding/binary"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

// pack returns the bytes that the client of req gets for m, in buf if they fit:
// with an OPT record that mirrors the client's, and no more records than have
// room. m is changed.
func pack(w dns.ResponseWriter, req, m *dns.Msg, buf []byte) ([]byte, error) {
	state := plugin.Request{W: w, Req: req}
	if o := req.IsEdns0(); o != nil {
		mirrorOPT(o, m)
	} else if m.Rcode > 0xf && m.IsEdns0() == nil {
		m.Rcode = dns.RcodeServerFailure // an extended code needs an OPT record (RFC 6891 §6.1.3)
	}
	if b := packAddresses(m, state.Size(), buf); b != nil {
		return b, nil
	}
	m.Truncate(state.Size())
	m.Compress = true
	return m.PackBuffer(buf)
}

// packAddresses packs the commonest reply: addresses of the name asked for, no
// options. It returns nil for any other, or when there is not enough room.
func packAddresses(m *dns.Msg, room int, buf []byte) []byte {
	if len(m.Question) != 1 || len(m.Ns) > 0 || len(m.Extra) > 1 || m.Rcode > 0xf || m.Opcode != dns.OpcodeQuery {
		return nil
	}
	var opt *dns.OPT
	if len(m.Extra) == 1 {
		var ok bool
		if opt, ok = m.Extra[0].(*dns.OPT); !ok || len(opt.Option) > 0 {
			return nil
		}
	}
	const head, question, longest, optSize = 12, 260, 28, 11
	if head+question+longest*len(m.Answer)+optSize > min(room, len(buf)) {
		return nil
	}
	q := m.Question[0]
	n, err := dns.PackDomainName(q.Name, buf, head, nil, false)
	if err != nil {
		return nil
	}
	binary.BigEndian.PutUint16(buf[n:], q.Qtype)
	binary.BigEndian.PutUint16(buf[n+2:], q.Qclass)
	n += 4
	for _, rr := range m.Answer {
		h := rr.Header()
		var data []byte
		switch rr := rr.(type) {
		case *dns.A:
			data = rr.A.To4()
		case *dns.AAAA:
			data = rr.AAAA.To16()
		}
		if len(data) == 0 || h.Name != q.Name {
			return nil
		}
		binary.BigEndian.PutUint16(buf[n:], 0xc000|head)
		binary.BigEndian.PutUint16(buf[n+2:], h.Rrtype)
		binary.BigEndian.PutUint16(buf[n+4:], h.Class)
		binary.BigEndian.PutUint32(buf[n+6:], h.Ttl)
		binary.BigEndian.PutUint16(buf[n+10:], uint16(len(data)))
		n += 12 + copy(buf[n+12:], data)
	}
	if opt != nil {
		copy(buf[n:], []byte{0, 0, byte(dns.TypeOPT)})
		binary.BigEndian.PutUint16(buf[n+3:], opt.Hdr.Class)
		binary.BigEndian.PutUint32(buf[n+5:], opt.Hdr.Ttl)
		buf[n+9], buf[n+10] = 0, 0
		n += optSize
	}
	binary.BigEndian.PutUint16(buf, m.Id)
	buf[2] = flag(m.Response, 0x80) | flag(m.Authoritative, 0x04) | flag(m.Truncated, 0x02) | flag(m.RecursionDesired, 0x01)
	buf[3] = flag(m.RecursionAvailable, 0x80) | flag(m.Zero, 0x40) | flag(m.AuthenticatedData, 0x20) | flag(m.CheckingDisabled, 0x10) | byte(m.Rcode)
	binary.BigEndian.PutUint64(buf[4:], 1<<48|uint64(len(m.Answer))<<32|uint64(len(m.Extra)))
	return buf[:n]
}

func flag(set bool, bit byte) byte {
	if set {
		return bit
	}
	return 0
}

// mirrorOPT gives m an OPT record with the client's size and DO bit. Options
// that m has already (an upstream's, an extended error) are kept, else those of
// the query are repeated that may be.
func mirrorOPT(query *dns.OPT, m *dns.Msg) {
	opt := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
	opt.SetUDPSize(query.UDPSize())
	if query.Do() {
		opt.SetDo()
	}
	if had := m.IsEdns0(); had != nil {
		opt.Option = had.Option
		extra := m.Extra[:0:0]
		for _, rr := range m.Extra {
			if rr.Header().Rrtype != dns.TypeOPT {
				extra = append(extra, rr)
			}
		}
		m.Extra = append(extra, opt)
		return
	}
	for _, o := range query.Option {
		switch o.Option() {
		case dns.EDNS0NSID, dns.EDNS0EXPIRE, dns.EDNS0COOKIE, dns.EDNS0TCPKEEPALIVE, dns.EDNS0PADDING:
			opt.Option = append(opt.Option, o)
		}
	}
	m.Extra = append(m.Extra[:len(m.Extra):len(m.Extra)], opt)
}

// writeError answers with nothing but an rcode.
func writeError(w dns.ResponseWriter, req *dns.Msg, rcode int) {
	m := new(dns.Msg)
	m.SetRcode(req, rcode)
	_ = w.WriteMsg(m) // the client is gone or will ask again
}

// writeBadVersion answers a query of an EDNS version that is not known (RFC
// 6891 §6.1.3), with OPT size 0 as CoreDNS.
func writeBadVersion(w dns.ResponseWriter, req *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(req)
	m.Rcode = dns.RcodeBadVers
	opt := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
	opt.SetExtendedRcode(dns.RcodeBadVers)
	m.Extra = []dns.RR{opt}
	if b, err := m.Pack(); err == nil {
		_, _ = w.Write(b)
	}
}

// refusal makes of the query b the answer to a message that is not worth
// parsing: its header with rcode, and no records. Question n bytes are kept.
func refusal(b, buf []byte, v wire.Verdict) []byte {
	buf = append(buf[:0], b[:12]...)
	// QR; of the query's flags RD, AD and CD. The opcode is repeated only for
	// NOTIMP (both as CoreDNS).
	buf[2] = 0x80 | b[2]&0x01
	buf[3] = b[3]&0x30 | dns.RcodeFormatError
	if v == wire.NotImp {
		buf[2] |= b[2] & 0x78
		buf[3] = b[3]&0x30 | dns.RcodeNotImplemented
	}
	binary.BigEndian.PutUint64(buf[4:], 0)
	return buf
}
