package dns

import (
	"fmt"
	"net"
	"strings"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/conformance/peer"
)

// upstream is the resolver that both servers forward to. It behaves as the
// name's first label says, so that a corpus can ask for any behaviour; what an
// ordinary resolver does not do on demand cannot be had from one.
type upstream struct {
	addr    string
	servers []*dns.Server
}

func startUpstream() (*upstream, error) {
	port, err := peer.Port() // for both UDP and TCP
	if err != nil {
		return nil, err
	}
	pc, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", pc.LocalAddr().String())
	if err != nil {
		return nil, err
	}
	u := &upstream{addr: pc.LocalAddr().String()}
	u.servers = []*dns.Server{
		{PacketConn: pc, Handler: dns.HandlerFunc(answerUpstream(false))},
		{Listener: l, Handler: dns.HandlerFunc(answerUpstream(true))},
	}
	for _, s := range u.servers {
		go func() { _ = s.ActivateAndServe() }()
	}
	return u, nil
}

func (u *upstream) close() {
	for _, s := range u.servers {
		_ = s.Shutdown()
	}
}

func answerUpstream(tcp bool) func(dns.ResponseWriter, *dns.Msg) {
	return func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.RecursionAvailable = true
		name := q.Question[0].Name
		add := func(section *[]dns.RR, format string, args ...any) {
			rr, err := dns.NewRR(fmt.Sprintf(format, args...))
			if err != nil {
				panic(err)
			}
			*section = append(*section, rr)
		}
		soa := func(ttl int) {
			add(&m.Ns, "example.test. %d IN SOA ns.example.test. admin.example.test. 7 3600 600 86400 60", ttl)
		}
		truncate := false
		first, _, _ := strings.Cut(strings.ToLower(name), ".")
		a, aaaa := q.Question[0].Qtype == dns.TypeA, q.Question[0].Qtype == dns.TypeAAAA
		switch {
		case !dns.IsSubDomain("example.test.", strings.ToLower(name)):
			m.Rcode = dns.RcodeNameError
			add(&m.Ns, ". 300 IN SOA a.root. b.root. 1 2 3 4 300")
		case strings.HasPrefix(first, "nx"):
			m.Rcode = dns.RcodeNameError
			soa(120)
		case first == "servfail":
			m.Rcode = dns.RcodeServerFailure
		case first == "refused":
			m.Rcode = dns.RcodeRefused
		case first == "formerr":
			m.Rcode = dns.RcodeFormatError
		case first == "notimp":
			m.Rcode = dns.RcodeNotImplemented
		case first == "nosoa": // an empty answer without SOA
		case first == "nxnosoa":
			m.Rcode = dns.RcodeNameError
		case first == "drop":
			return
		case first == "aa" && a:
			m.Authoritative = true
			add(&m.Answer, "%s 300 IN A 192.0.2.1", name)
		case first == "ad" && a:
			m.AuthenticatedData = true
			add(&m.Answer, "%s 300 IN A 192.0.2.1", name)
		case first == "edns" && a: // tells what it was asked with
			add(&m.Answer, "%s 300 IN A 192.0.2.1", name)
			add(&m.Extra, `%s 300 IN TXT "cd %t ad %t rd %t edns %q"`, name, q.CheckingDisabled, q.AuthenticatedData, q.RecursionDesired, edns(q))
		case first == "case" && a: // the upstream's own spelling
			add(&m.Answer, "%s 300 IN A 192.0.2.1", strings.ToUpper(name))
		case first == "ttls" && a:
			add(&m.Answer, "%s 300 IN A 192.0.2.1", name)
			add(&m.Answer, "%s 40 IN A 192.0.2.2", name)
			add(&m.Ns, "example.test. 100 IN NS ns.example.test.")
			add(&m.Extra, "ns.example.test. 20 IN A 192.0.2.53")
		case first == "ttl0" && a:
			add(&m.Answer, "%s 0 IN A 192.0.2.1", name)
		case first == "ttl1" && a:
			add(&m.Answer, "%s 1 IN A 192.0.2.1", name)
		case first == "ttlmax" && a:
			add(&m.Answer, "%s 604800 IN A 192.0.2.1", name)
		case first == "cname" && (a || aaaa):
			add(&m.Answer, "%s 300 IN CNAME target.example.test.", name)
			if a {
				add(&m.Answer, "target.example.test. 60 IN A 192.0.2.3")
			} else {
				soa(60)
			}
		case first == "cnamenx":
			m.Rcode = dns.RcodeNameError
			add(&m.Answer, "%s 300 IN CNAME gone.example.test.", name)
			soa(60)
		case first == "wrongname" && a:
			m.Question[0].Name = "other.example.test."
			add(&m.Answer, "other.example.test. 300 IN A 192.0.2.1")
		case first == "wrongid" && a:
			m.Id++
			add(&m.Answer, "%s 300 IN A 192.0.2.1", name)
		case first == "big" && a:
			for i := range 100 {
				add(&m.Answer, "%s 300 IN A 198.51.100.%d", name, i)
			}
			truncate = !tcp
		case first == "oversize" && a: // more than was asked for, without TC
			for i := range 100 {
				add(&m.Answer, "%s 300 IN A 198.51.100.%d", name, i)
			}
		case first == "tc" && a:
			m.Truncated = !tcp
			if tcp {
				add(&m.Answer, "%s 300 IN A 192.0.2.9", name)
			}
		case first == "mx" && q.Question[0].Qtype == dns.TypeMX:
			add(&m.Answer, "%s 300 IN MX 10 mail.example.test.", name)
			add(&m.Extra, "mail.example.test. 300 IN A 192.0.2.25")
		case first == "referral":
			add(&m.Ns, "referral.example.test. 300 IN NS ns.referral.example.test.")
			add(&m.Extra, "ns.referral.example.test. 300 IN A 192.0.2.54")
		case a:
			add(&m.Answer, "%s 300 IN A 192.0.2.1", name)
		case aaaa:
			add(&m.Answer, "%s 300 IN AAAA 2001:db8::1", name)
		default:
			soa(120)
		}
		if o := q.IsEdns0(); o != nil {
			m.SetEdns0(1232, o.Do())
			if first == "ede" {
				m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeStaleAnswer, ExtraText: "old"})
			}
		}
		if truncate {
			size := dns.MinMsgSize
			if o := q.IsEdns0(); o != nil {
				size = int(o.UDPSize())
			}
			m.Truncate(size)
		}
		_ = w.WriteMsg(m)
	}
}
