package plugin

import (
	"context"
	"errors"
	"fmt"

	"github.com/miekg/dns"
)

// maxDepth bounds lookups within lookups: a CNAME chain that leads back into
// this server.
const maxDepth = 10

// Lookup asks this server for name and qtype from the start, through routing
// and the whole chain, cache included, as the client of w (CoreDNS calls it an
// upstream lookup). The EDNS properties of r carry over.
func Lookup(ctx context.Context, w dns.ResponseWriter, r *dns.Msg, name string, qtype uint16) (*dns.Msg, error) {
	t := TraceOf(ctx)
	if t == nil || t.Origin == nil || t.Origin.Serve == nil {
		return nil, errors.New("no server to look the name up with")
	}
	if t.Depth >= maxDepth {
		return nil, fmt.Errorf("looking up %s: more than %d lookups deep", name, maxDepth)
	}
	req := new(dns.Msg)
	req.SetQuestion(dns.Fqdn(name), qtype)
	if o := r.IsEdns0(); o != nil {
		req.SetEdns0(dns.MaxMsgSize, o.Do())
	} else {
		req.SetEdns0(dns.MaxMsgSize, false)
	}
	rec := &Capture{ResponseWriter: w}
	t.Origin.Serve(WithTrace(ctx, &Trace{Origin: t.Origin, Depth: t.Depth + 1}), rec, req)
	if rec.Msg == nil {
		return nil, fmt.Errorf("looking up %s: no reply", name)
	}
	return rec.Msg, nil
}

// Capture is a ResponseWriter that keeps the reply and sends nothing.
type Capture struct {
	dns.ResponseWriter
	Msg *dns.Msg
}

// WriteMsg keeps m.
func (c *Capture) WriteMsg(m *dns.Msg) error {
	c.Msg = m
	return nil
}

// Write keeps the message in buf.
func (c *Capture) Write(buf []byte) (int, error) {
	m := new(dns.Msg)
	if err := m.Unpack(buf); err != nil {
		return 0, err
	}
	c.Msg = m
	return len(buf), nil
}

// Recorder passes the reply on and remembers it.
type Recorder struct {
	dns.ResponseWriter
	Msg   *dns.Msg // nil when nothing was written, or only raw bytes
	Rcode int
	Len   int // uncompressed length, as CoreDNS's {rsize}
}

// NewRecorder returns a recorder in front of w.
func NewRecorder(w dns.ResponseWriter) *Recorder { return &Recorder{ResponseWriter: w} }

// WriteMsg records m and writes it.
func (r *Recorder) WriteMsg(m *dns.Msg) error {
	r.Rcode = m.Rcode
	r.Len += m.Len() // a transfer is many messages
	r.Msg = m
	return r.ResponseWriter.WriteMsg(m)
}

// Write records the length of buf and writes it.
func (r *Recorder) Write(buf []byte) (int, error) {
	n, err := r.ResponseWriter.Write(buf)
	r.Len += n
	return n, err
}
