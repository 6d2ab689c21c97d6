package plugin

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
)

func TestZones(t *testing.T) {
	zones := Zones{"example.org.", "a.example.org.", `b\.c.`}
	for name, want := range map[string]string{
		"example.org.": "example.org.", "x.example.org.": "example.org.", "xexample.org.": "",
		"a.example.org.": "a.example.org.", "y.a.example.org.": "a.example.org.",
		`x\.example.org.`: "", `x\\.example.org.`: "example.org.", // an escaped dot is no border, an escaped backslash before one is
		"org.": "", ".": "",
	} {
		if got := zones.Matches(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if !InZone("anything.", ".") || !InZone(".", ".") {
		t.Error("not everything is in the root")
	}
	if (Fall{}).Through("a.") || !(Fall{Zones: Zones{"."}}).Through("a.") {
		t.Error("fallthrough")
	}
	for text, want := range map[string]string{"Example.ORG": "example.org.", ".": ".", "": "", "a..b": ""} {
		if got, ok := NormalizeZone(text); got != want || ok != (want != "") {
			t.Errorf("%q: %q %v", text, got, ok)
		}
	}
}

func TestClientWrite(t *testing.T) {
	for rcode := range 24 {
		want := rcode != dns.RcodeServerFailure && rcode != dns.RcodeRefused && rcode != dns.RcodeFormatError && rcode != dns.RcodeNotImplemented
		if ClientWrite(rcode) != want {
			t.Errorf("rcode %d", rcode)
		}
	}
}

// named answers with its name, or passes on.
type named struct {
	name string
	next Handler
}

func (n named) Name() string { return n.name }

func (n named) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	return NextOrFailure(n.name, n.next, ctx, w, r)
}

func TestBuild(t *testing.T) {
	var setups []string
	setup := func(f func(*Block, []corefile.Directive) (New, error)) Setup {
		return func(b *Block, lines []corefile.Directive) (New, error) {
			setups = append(setups, lines[0].Name.Text)
			return f(b, lines)
		}
	}
	handler := func(name string) Setup {
		return setup(func(*Block, []corefile.Directive) (New, error) {
			return func(next Handler) Handler { return named{name, next} }, nil
		})
	}
	order := []Entry{
		{Name: "configures", Setup: setup(func(b *Block, _ []corefile.Directive) (New, error) { b.Root = "/etc"; return nil, nil })},
		{Name: "first", Setup: handler("first"), Effect: Observes},
		{Name: "second", Setup: handler("second"), Effect: Local},
		{Name: "once", Setup: setup(func(_ *Block, lines []corefile.Directive) (New, error) { return nil, Once(lines) })},
		{Name: "lacking"},
	}
	build := func(text string) (*Block, error) {
		setups = nil
		blocks, err := corefile.Parse("Corefile", []byte(text), corefile.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return Build(&Env{}, blocks[0], order, nil)
	}
	b, err := build("b.test a.test:5300 b.test:5300 {\n second\n first\n configures\n}")
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(setups, " "); got != "configures first second" {
		t.Errorf("set up in the order %s", got)
	}
	if got := strings.Join(b.Zones, " "); got != "b.test. a.test." {
		t.Errorf("zones %s", got)
	}
	if b.First().Name() != "first" || b.Handler("second") == nil || b.Handler("configures") != nil || b.Effect("second") != Local || b.Effect("unknown") != Changes {
		t.Errorf("handlers %v", b.Handlers())
	}
	if b.File("x") != "/etc/x" || b.File("/x") != "/x" {
		t.Error("root")
	}
	trace := &Trace{Origin: &Origin{}}
	rcode, err := NextOrFailure("server", b.First(), WithTrace(context.Background(), trace), nil, new(dns.Msg))
	if rcode != dns.RcodeServerFailure || err == nil || err.Error() != "plugin/second: no next plugin found" || trace.Reached() != "second" {
		t.Errorf("%d %v, reached %s", rcode, err, trace.Reached())
	}
	for text, want := range map[string]string{
		".\nlacking":    `Corefile:2: plugin "lacking" is one that CoreDNS has and Rutter does not; remove the line`,
		".\nsecnd":      `Corefile:2: unknown plugin "secnd"; did you mean "second"?`,
		".\nonce\nonce": "Corefile:3: once stands twice in this server block (first at Corefile:2); keep one",
		".\nFirst":      `Corefile:2: unknown plugin "First"; did you mean "first"?`,
	} {
		if _, err := build(text); err == nil || err.Error() != want {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestHooks(t *testing.T) {
	var ran []string
	b := &Block{}
	hook := func(name string, err error) func() error {
		return func() error { ran = append(ran, name); return err }
	}
	start := func(name string, err error) func(context.Context) error {
		f := hook(name, err)
		return func(context.Context) error { return f() }
	}
	b.OnStart(start("a", nil))
	b.OnStart(start("b", errors.New("no")))
	b.OnStart(start("c", nil))
	b.OnShutdown(hook("d", errors.New("d")))
	b.OnShutdown(hook("e", nil))
	b.OnFinalShutdown(hook("f", nil))
	if err := b.Start(context.Background()); err == nil || err.Error() != "no" {
		t.Error(err)
	}
	if err := b.Shutdown(); err == nil || err.Error() != "d" {
		t.Error(err)
	}
	if err := b.FinalShutdown(); err != nil {
		t.Error(err)
	}
	if got := strings.Join(ran, ""); got != "abdef" {
		t.Errorf("hooks ran: %s", got)
	}
}

type nowhere struct{ dns.ResponseWriter }

func (nowhere) RemoteAddr() net.Addr { return &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 5000} }

// A name that leads to itself through lookups ends after ten of them.
func TestLookupsEnd(t *testing.T) {
	asked := 0
	origin := &Origin{}
	origin.Serve = func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) {
		asked++
		m := new(dns.Msg)
		m.SetReply(r)
		if _, err := Lookup(ctx, w, r, "b.", dns.TypeA); err != nil {
			m.Rcode = dns.RcodeServerFailure
		}
		if err := w.WriteMsg(m); err != nil {
			t.Error(err)
		}
	}
	req := new(dns.Msg)
	req.SetQuestion("a.", dns.TypeA)
	m, err := Lookup(WithTrace(context.Background(), &Trace{Origin: origin}), nowhere{}, req, "a.", dns.TypeA)
	if err != nil || m == nil || asked != maxDepth {
		t.Errorf("%v %v after %d lookups", m, err, asked)
	}
	if _, err := Lookup(context.Background(), nowhere{}, req, "a.", dns.TypeA); err == nil {
		t.Error("a lookup without a server")
	}
}

func TestRequest(t *testing.T) {
	m := new(dns.Msg)
	m.SetQuestion("WwW.Example.org.", dns.TypeAAAA)
	q := Request{W: nowhere{}, Req: m}
	if q.Name() != "www.example.org." || q.QName() != "WwW.Example.org." || q.Type() != "AAAA" || q.Class() != "IN" || q.Proto() != "udp" || q.Family() != 1 || q.Size() != 512 || q.Do() {
		t.Errorf("%+v", q)
	}
	m.SetEdns0(100, true)
	if q.Size() != 512 || !q.Do() {
		t.Errorf("size %d, do %v", q.Size(), q.Do())
	}
	m.IsEdns0().SetUDPSize(4096)
	if q.Size() != 4096 {
		t.Errorf("size %d", q.Size())
	}
	if got := (&Request{Req: new(dns.Msg)}).Name(); got != "." {
		t.Errorf("no question: %q", got)
	}
}
