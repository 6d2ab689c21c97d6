package forward

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// transport is how messages travel to an upstream.
type transport uint8

const (
	plain    transport = iota // UDP or TCP (RFC 1035)
	overTLS                   // RFC 7858
	overHTTP                  // RFC 8484
)

// upstream is one server that queries are forwarded to.
type upstream struct {
	addr      string // host:port, as metrics show it
	transport transport
	tls       *tls.Config
	timeout   time.Duration // for one reply
	source    netip.Addr    // to send from; invalid: any
	metrics   *metrics

	udp, tcp *pool // tcp carries TLS too
	http     *httpClient

	dialTime atomic.Int64 // running average, ns
	health   health
	known    known
}

// Dial time-outs adapt: twice the running average, within these bounds.
const (
	minDialTimeout = 1 * time.Second
	maxDialTimeout = 30 * time.Second
)

// start makes the pools; nothing is dialled before the first query.
func (u *upstream) start(o *options) {
	u.dialTime.Store(int64(maxDialTimeout / 2))
	newPool := func(network, label string) *pool {
		return &pool{
			label:   label,
			dial:    func(ctx context.Context) (net.Conn, error) { return u.dial(ctx, network) },
			stream:  network == "tcp",
			expire:  o.expire,
			maxAge:  o.maxAge,
			maxIdle: o.maxIdle,
		}
	}
	switch u.transport {
	case plain:
		u.udp, u.tcp = newPool("udp", "udp"), newPool("tcp", "tcp")
	case overTLS:
		u.tcp = newPool("tcp", "tcp-tls")
	case overHTTP:
		u.http = newHTTPClient(u, o)
	}
}

func (u *upstream) stop() {
	for _, p := range []*pool{u.udp, u.tcp} {
		if p != nil {
			p.close()
		}
	}
	if u.http != nil {
		u.http.close()
	}
}

func (u *upstream) tidy(now time.Time) {
	for _, p := range []*pool{u.udp, u.tcp} {
		if p != nil {
			p.tidy(now)
		}
	}
}

func (u *upstream) dial(ctx context.Context, network string) (net.Conn, error) {
	d := net.Dialer{}
	if u.source.IsValid() {
		if network == "udp" {
			d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(u.source, 0))
		} else {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(u.source, 0))
		}
	}
	if network == "udp" {
		return d.DialContext(ctx, network, u.addr) // never waits
	}
	timeout := min(max(2*time.Duration(u.dialTime.Load()), minDialTimeout), maxDialTimeout)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	start := time.Now()
	c, err := d.DialContext(ctx, network, u.addr)
	if err == nil && u.transport == overTLS {
		t := tls.Client(c, u.tls)
		if err = t.HandshakeContext(ctx); err != nil {
			c.Close()
		}
		c = t
	}
	// A quarter of each new time goes into the average.
	took := time.Since(start)
	old := u.dialTime.Load()
	u.dialTime.Store(old + (int64(took)-old)/4)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// exchange sends query over the pool's transport and returns the reply. The
// query's ID does not matter; the reply's is that of the query.
func (u *upstream) exchange(ctx context.Context, query *packed, stream bool) (*dns.Msg, error) {
	start := time.Now()
	raw, err := u.roundTrip(ctx, query, stream, u.metrics)
	if err != nil {
		return nil, err
	}
	return u.reply(query, raw, stream, start)
}

// reply unpacks the reply to query, which was sent at start.
func (u *upstream) reply(query *packed, raw []byte, stream bool, start time.Time) (*dns.Msg, error) {
	m := new(dns.Msg)
	if err := m.Unpack(raw); err != nil {
		return nil, &unpackError{upstream: u.addr, err: err}
	}
	m.Id = query.id
	u.metrics.duration(u.addr, m.Rcode, time.Since(start))
	if !stream && u.udp != nil && len(raw) > query.limit && !m.Truncated {
		// The upstream sent more than the client can take and did not say
		// so. The client has to ask over TCP.
		m.Answer, m.Ns, m.Extra, m.Truncated = nil, nil, nil, true
	}
	return m, nil
}

// roundTrip returns the reply to query. Its connection is counted in m unless
// that is nil.
func (u *upstream) roundTrip(ctx context.Context, query *packed, stream bool, m *metrics) ([]byte, error) {
	if u.transport == overHTTP {
		return u.http.exchange(ctx, query.buf[2:], u.timeout)
	}
	p := u.udp
	if stream || p == nil {
		p = u.tcp
	}
	// Other queries may be using the buffer's copy of an earlier attempt only
	// after it returned, so one buffer is enough.
	for try := 0; ; try++ {
		ch := make(chan result, 1)
		k, id, reused, err := p.get(ctx, ch)
		if err != nil {
			return nil, err
		}
		if m != nil {
			m.connection(u.addr, p.label, reused)
		}
		raw, err := k.exchange(ctx, query.buf, id, ch, u.timeout)
		if errors.Is(err, errStale) && try < maxStale {
			continue
		}
		return raw, err
	}
}

// maxStale bounds how many connections in a row may turn out to be closed.
const maxStale = 4

// packed is a query in wire form, with two bytes in front for a length.
type packed struct {
	buf   []byte
	id    uint16 // the client's
	limit int    // largest reply the client can take over UDP
}

func pack(r *dns.Msg, limit int) (*packed, error) {
	buf := make([]byte, 514)
	raw, err := r.PackBuffer(buf[2:])
	if err != nil {
		return nil, err
	}
	if &raw[0] == &buf[2] {
		buf = buf[:2+len(raw)]
	} else {
		buf = append(buf[:2], raw...)
	}
	return &packed{buf: buf, id: r.Id, limit: limit}, nil
}

type unpackError struct {
	upstream string
	err      error
}

func (e *unpackError) Error() string { return "reply of " + e.upstream + ": " + e.err.Error() }
func (e *unpackError) Unwrap() error { return e.err }
