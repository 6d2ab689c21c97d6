package plugintest

import (
	"net"
	"testing"

	"github.com/miekg/dns"
)

// Upstream serves h over UDP and TCP on one loopback port until the test ends,
// and returns its address.
func Upstream(t testing.TB, h dns.HandlerFunc) string {
	t.Helper()
	// The port that UDP got may be taken for TCP: try a few.
	for range 10 {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", pc.LocalAddr().String())
		if err != nil {
			pc.Close()
			continue
		}
		for _, s := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: l, Handler: h}} {
			started := make(chan struct{})
			s.NotifyStartedFunc = func() { close(started) }
			done := make(chan struct{})
			go func() {
				defer close(done)
				_ = s.ActivateAndServe()
			}()
			<-started
			t.Cleanup(func() {
				_ = s.Shutdown()
				<-done
			})
		}
		return pc.LocalAddr().String()
	}
	t.Fatal("no port is free for both UDP and TCP")
	return ""
}

// Reply returns a handler's answer: a reply to r with rcode and the records,
// given as zone file lines.
func Reply(r *dns.Msg, rcode int, records ...string) *dns.Msg {
	m := new(dns.Msg)
	m.SetRcode(r, rcode)
	m.RecursionAvailable = true
	for _, text := range records {
		rr, err := dns.NewRR(text)
		if err != nil {
			panic(err) // a typing error in a test
		}
		if rr.Header().Rrtype == dns.TypeSOA {
			m.Ns = append(m.Ns, rr)
		} else {
			m.Answer = append(m.Answer, rr)
		}
	}
	return m
}
