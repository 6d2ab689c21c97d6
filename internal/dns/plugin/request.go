package plugin

import (
	"net"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// Request is a query with its client, and what is often asked about both.
type Request struct {
	W   dns.ResponseWriter
	Req *dns.Msg

	name string
}

func (r *Request) question() dns.Question {
	if r.Req == nil || len(r.Req.Question) == 0 {
		return dns.Question{}
	}
	return r.Req.Question[0]
}

// Name is the name asked for, in lower case and fully qualified.
func (r *Request) Name() string {
	if r.name == "" {
		r.name = strings.ToLower(dns.Fqdn(r.question().Name))
	}
	return r.name
}

// Forget drops what was derived from the question, after it was changed.
func (r *Request) Forget() { r.name = "" }

// QName is the name as the client spelled it.
func (r *Request) QName() string { return r.question().Name }

// QType is the type asked for, 0 without a question.
func (r *Request) QType() uint16 { return r.question().Qtype }

// QClass is the class asked for, 0 without a question.
func (r *Request) QClass() uint16 { return r.question().Qclass }

// Type is the type in text: "A", "TYPE65400".
func (r *Request) Type() string { return dns.Type(r.QType()).String() }

// Class is the class in text: "IN", "CLASS7".
func (r *Request) Class() string { return dns.Class(r.QClass()).String() }

// Remote is the client's address.
func (r *Request) Remote() netip.AddrPort { return addrPort(r.W.RemoteAddr()) }

// Local is the address the query was sent to.
func (r *Request) Local() netip.AddrPort { return addrPort(r.W.LocalAddr()) }

// Proto is "udp" or "tcp"; encrypted transports are tcp.
func (r *Request) Proto() string {
	if _, ok := r.W.RemoteAddr().(*net.UDPAddr); ok {
		return "udp"
	}
	return "tcp"
}

// Family is 1 for IPv4 and 2 for IPv6 (the values of ECS and of the metrics).
func (r *Request) Family() int {
	if r.Remote().Addr().Is4() {
		return 1
	}
	return 2
}

// Do tells whether the client set the DNSSEC OK bit.
func (r *Request) Do() bool {
	o := r.Req.IsEdns0()
	return o != nil && o.Do()
}

// Size is the largest reply the client can take: 65535 over TCP; over UDP what
// its OPT record says, never under 512 (RFC 6891 §6.2.3).
func (r *Request) Size() int {
	if r.Proto() == "tcp" {
		return dns.MaxMsgSize
	}
	if o := r.Req.IsEdns0(); o != nil && o.UDPSize() > dns.MinMsgSize {
		return int(o.UDPSize())
	}
	return dns.MinMsgSize
}

func addrPort(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.UDPAddr:
		ap = a.AddrPort()
	case *net.TCPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
