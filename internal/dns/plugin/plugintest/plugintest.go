// Package plugintest runs plugins in tests: one server block without sockets,
// questions as lines of text, replies as zone file lines.
package plugintest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
)

// Server is one server block of a Corefile.
type Server struct {
	Block    *plugin.Block
	Log      *Log
	Registry *prometheus.Registry

	ctx    context.Context
	origin *plugin.Origin
}

// Log collects what was logged, a line each: level, plugin, text.
type Log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write is for the slog handler.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// NewEnv returns an Env with its own log and registry. What a test needs beyond
// it, it sets itself.
func NewEnv() (*plugin.Env, *Log) {
	log := &Log{}
	h := slog.NewTextHandler(log, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	})
	kept := &memo{values: make(map[any]any)}
	return &plugin.Env{
		Log:      slog.New(h),
		Registry: prometheus.NewRegistry(),
		Version:  "test",
		Listen:   net.Listen,
		Kept:     kept.get,
	}, log
}

type memo struct {
	mu     sync.Mutex
	values map[any]any
}

func (m *memo) get(key any, make func() any) any {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.values[key]
	if !ok {
		v = make()
		m.values[key] = v
	}
	return v
}

// Parse returns the first server block of a Corefile.
func Parse(text string, order []plugin.Entry) (corefile.ServerBlock, error) {
	here, lacking := plugin.Names(order)
	opts := corefile.OS()
	opts.Directives, opts.Missing = here, lacking
	blocks, err := corefile.Parse("Corefile", []byte(text), opts)
	if err != nil {
		return corefile.ServerBlock{}, err
	}
	if len(blocks) == 0 {
		return corefile.ServerBlock{}, errors.New("no server block")
	}
	return blocks[0], nil
}

// Build sets the first server block of a Corefile up.
func Build(env *plugin.Env, text string, order []plugin.Entry) (*plugin.Block, error) {
	sb, err := Parse(text, order)
	if err != nil {
		return nil, err
	}
	shared := &memo{values: make(map[any]any)}
	return plugin.Build(env, sb, order, shared.get)
}

// Start serves the first server block of a Corefile until the test ends.
func Start(t testing.TB, text string, order ...plugin.Entry) *Server {
	t.Helper()
	env, log := NewEnv()
	return StartIn(t, env, log, text, order...)
}

// StartIn does so in an environment of the test's own.
func StartIn(t testing.TB, env *plugin.Env, log *Log, text string, order ...plugin.Entry) *Server {
	t.Helper()
	b, err := Build(env, text, order)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{Block: b, Log: log, Registry: env.Registry, ctx: ctx}
	s.origin = &plugin.Origin{Server: "dns://:53", Zone: b.Zones[0], Serve: s.serve}
	t.Cleanup(func() {
		cancel()
		if err := b.Shutdown(); err != nil {
			t.Errorf("shutdown: %v", err)
		}
	})
	if err := b.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

// serve runs the chain, and answers where the contract leaves it to the server.
func (s *Server) serve(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) {
	if plugin.TraceOf(ctx) == nil {
		ctx = plugin.WithTrace(ctx, &plugin.Trace{Origin: s.origin})
	}
	rcode, _ := plugin.NextOrFailure("server", s.Block.First(), ctx, w, r)
	if !plugin.ClientWrite(rcode) {
		m := new(dns.Msg)
		m.SetRcode(r, rcode)
		_ = w.WriteMsg(m)
	}
}

// Client is who asks, and how.
type Client struct {
	Remote netip.AddrPort // default 192.0.2.1:40000
	TCP    bool
}

// Query sends r and returns the reply, nil when there is none.
func (s *Server) Query(c Client, r *dns.Msg) *dns.Msg {
	if !c.Remote.IsValid() {
		c.Remote = netip.MustParseAddrPort("192.0.2.1:40000")
	}
	w := &Writer{Client: c}
	s.serve(s.ctx, w, r)
	return w.Msg
}

// Ask sends a question written as text: NAME TYPE [class CLASS] [do] [tcp]
// [ad] [cd] [nord] [size N] [from ADDR:PORT].
func (s *Server) Ask(question string) (*dns.Msg, error) {
	r, c, err := ParseQuestion(question)
	if err != nil {
		return nil, err
	}
	return s.Query(c, r), nil
}

// ParseQuestion reads what Ask takes.
func ParseQuestion(question string) (*dns.Msg, Client, error) {
	var c Client
	words := strings.Fields(question)
	if len(words) < 2 {
		return nil, c, fmt.Errorf("question %q has no type", question)
	}
	qtype, ok := dns.StringToType[words[1]]
	if !ok {
		return nil, c, fmt.Errorf("question %q: unknown type", question)
	}
	r := new(dns.Msg)
	r.SetQuestion(words[0], qtype)
	size, do, edns := uint16(4096), false, false
	for rest := words[2:]; len(rest) > 0; rest = rest[1:] {
		value := func() string {
			if rest = rest[1:]; len(rest) == 0 {
				rest = []string{""}
			}
			return rest[0]
		}
		var err error
		switch rest[0] {
		case "class":
			r.Question[0].Qclass = dns.StringToClass[value()]
		case "do":
			do, edns = true, true
		case "edns":
			edns = true
		case "size":
			edns = true
			_, err = fmt.Sscan(value(), &size)
		case "tcp":
			c.TCP = true
		case "ad":
			r.AuthenticatedData = true
		case "cd":
			r.CheckingDisabled = true
		case "nord":
			r.RecursionDesired = false
		case "from":
			c.Remote, err = netip.ParseAddrPort(value())
		default:
			err = fmt.Errorf("unknown word %q", rest[0])
		}
		if err != nil {
			return nil, c, fmt.Errorf("question %q: %w", question, err)
		}
	}
	if edns {
		r.SetEdns0(size, do)
	}
	return r, c, nil
}

// Text writes a reply as lines: the rcode with the flags that are set, then
// the records, those of authority and additional with a word in front.
func Text(m *dns.Msg) string {
	if m == nil {
		return "none\n"
	}
	var b strings.Builder
	if text, ok := dns.RcodeToString[m.Rcode]; ok {
		b.WriteString(text)
	} else {
		fmt.Fprintf(&b, "RCODE%d", m.Rcode)
	}
	for _, f := range []struct {
		set  bool
		name string
	}{{m.Authoritative, "aa"}, {m.Truncated, "tc"}, {m.RecursionAvailable, "ra"}, {m.AuthenticatedData, "ad"}} {
		if f.set {
			b.WriteString(" " + f.name)
		}
	}
	b.WriteByte('\n')
	records := func(prefix string, list []dns.RR) {
		for _, rr := range list {
			if opt, ok := rr.(*dns.OPT); ok {
				fmt.Fprintf(&b, "%sOPT size %d do %t", prefix, opt.UDPSize(), opt.Do())
				for _, o := range opt.Option {
					fmt.Fprintf(&b, " %d:%s", o.Option(), o)
				}
				b.WriteByte('\n')
				continue
			}
			b.WriteString(prefix + strings.Join(strings.Fields(rr.String()), " ") + "\n")
		}
	}
	records("", m.Answer)
	records("authority ", m.Ns)
	records("additional ", m.Extra)
	return b.String()
}

// Writer is a dns.ResponseWriter that keeps the last reply.
type Writer struct {
	Client Client
	Msg    *dns.Msg
}

// LocalAddr is 192.0.2.53:53.
func (w *Writer) LocalAddr() net.Addr { return w.addr(netip.MustParseAddrPort("192.0.2.53:53")) }

// RemoteAddr is the client's.
func (w *Writer) RemoteAddr() net.Addr { return w.addr(w.Client.Remote) }

func (w *Writer) addr(a netip.AddrPort) net.Addr {
	if w.Client.TCP {
		return net.TCPAddrFromAddrPort(a)
	}
	return net.UDPAddrFromAddrPort(a)
}

// WriteMsg keeps m as a client would see it: packed and unpacked.
func (w *Writer) WriteMsg(m *dns.Msg) error {
	raw, err := m.Pack()
	if err != nil {
		return err
	}
	_, err = w.Write(raw)
	return err
}

// Write keeps the message.
func (w *Writer) Write(raw []byte) (int, error) {
	m := new(dns.Msg)
	if err := m.Unpack(raw); err != nil {
		return 0, err
	}
	w.Msg = m
	return len(raw), nil
}

// Close does nothing.
func (w *Writer) Close() error { return nil }

// TsigStatus is always good.
func (w *Writer) TsigStatus() error { return nil }

// TsigTimersOnly does nothing.
func (w *Writer) TsigTimersOnly(bool) {}

// Hijack does nothing.
func (w *Writer) Hijack() {}

// Network is the transport.
func (w *Writer) Network() string { return w.RemoteAddr().Network() }

// Refuses checks that each text is refused by Setup with an error that has the
// fragment, and that the error names its place.
func Refuses(t *testing.T, order []plugin.Entry, cases [][2]string) {
	t.Helper()
	for _, c := range cases {
		env, _ := NewEnv()
		_, err := Build(env, ". {\n"+c[0]+"\n}\n", order)
		var at *corefile.Error
		switch {
		case err == nil:
			t.Errorf("%q is accepted", c[0])
		case !errors.As(err, &at):
			t.Errorf("%q: the error names no place: %v", c[0], err)
		case !strings.Contains(err.Error(), c[1]):
			t.Errorf("%q: got %q, want %q in it", c[0], err, c[1])
		case strings.Contains(err.Error(), "\n"):
			t.Errorf("%q: the error is not one line: %q", c[0], err)
		}
	}
}

// Accepts checks that Setup takes each text.
func Accepts(t *testing.T, order []plugin.Entry, texts ...string) {
	t.Helper()
	for _, text := range texts {
		env, _ := NewEnv()
		if _, err := Build(env, ". {\n"+text+"\n}\n", order); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// WriteFiles puts files in a new directory and returns it.
func WriteFiles(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// Metric returns the sum of a counter or gauge over the series that have the
// labels, given as name, value, name, value; for a histogram, the number of
// observations.
func (s *Server) Metric(t testing.TB, metric string, labels ...string) float64 {
	t.Helper()
	families, err := s.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != metric {
			continue
		}
	series:
		for _, m := range f.GetMetric() {
			have := make(map[string]string)
			for _, l := range m.GetLabel() {
				have[l.GetName()] = l.GetValue()
			}
			for i := 0; i+1 < len(labels); i += 2 {
				if have[labels[i]] != labels[i+1] {
					continue series
				}
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return sum
}

// Listening wraps a plugin's Listen so that *addr becomes the last address it
// listens on.
func Listening(listen func(network, addr string) (net.Listener, error), addr *string) func(network, addr string) (net.Listener, error) {
	return func(network, a string) (net.Listener, error) {
		l, err := listen(network, a)
		if err == nil {
			*addr = l.Addr().String()
		}
		return l, err
	}
}
