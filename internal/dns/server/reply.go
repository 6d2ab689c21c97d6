package server

import (
	"encoding/binary"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

// fit makes m what the client of req can take: an OPT record that mirrors the
// client's, and no more records than have room.
func fit(w dns.ResponseWriter, req, m *dns.Msg) {
	state := plugin.Request{W: w, Req: req}
	if o := req.IsEdns0(); o != nil {
		mirrorOPT(o, m)
	}
	m.Truncate(state.Size())
	m.Compress = true
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
