package forward

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/clienttls"
	"github.com/rutter-project/rutter/internal/dns/plugin/scope"
)

// options are what a forward line says besides its upstreams.
type options struct {
	from          string
	except        plugin.Zones
	forceTCP      bool
	preferUDP     bool
	expire        time.Duration
	maxAge        time.Duration
	maxIdle       int
	readTimeout   time.Duration
	maxFails      int
	maxAttempts   int // without a reply, over all upstreams; 0: no limit
	policy        policy
	check         check
	maxConcurrent int
	errConcurrent error
	nextOn        []int // rcodes
	nextOnNoData  bool
	failover      []int
	failfast      bool
	tls           *tls.Config // from the tls properties; nil without
	tlsName       string
	dohGet        bool
	source        netip.Addr
	resolvers     []string // host:port; empty: the system's

	names []hostName // upstreams to be looked up at start
}

// maxUpstreams is how many a line may have.
const maxUpstreams = 15

// properties that a forward block may have.
var properties = []string{
	"except", "force_tcp", "prefer_udp", "expire", "max_age", "max_idle_conns", "read_timeout", "max_fails",
	"max_connect_attempts", "policy", "health_check", "max_concurrent", "next", "next_on_nodata", "failover",
	"failfast_all_unhealthy_upstreams", "tls", "tls_servername", "doh_method", "source_address", "resolver",
}

// Setup reads any number of forward lines. The first whose zone and exceptions
// a name fits answers.
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	m := newMetrics(b.Env.Registry)
	hash := corefile.Hash([]corefile.ServerBlock{{Directives: lines}})
	var handlers []*handler
	for _, d := range lines {
		h, err := parse(b, d)
		if err != nil {
			return nil, err
		}
		h.metrics, h.lines = m, hash
		b.OnStart(h.start)
		b.OnShutdown(h.stop)
		handlers = append(handlers, h)
	}
	b.AnyClass = true
	return func(next plugin.Handler) plugin.Handler {
		for _, h := range slices.Backward(handlers) {
			h.next = next
			next = h
		}
		return next
	}, nil
}

type everywhereKey struct{}

func parse(b *plugin.Block, d corefile.Directive) (*handler, error) {
	if err := d.Want(2, -1, "a zone and at least one upstream: forward . 192.0.2.1"); err != nil {
		return nil, err
	}
	everywhere := b.Env.Kept(everywhereKey{}, func() any { return new(atomic.Int64) }).(*atomic.Int64)
	h := &handler{log: b.Log(name), everywhere: everywhere, options: options{
		expire:      10 * time.Second,
		readTimeout: 2 * time.Second,
		maxFails:    2,
		maxAttempts: -1,
		policy:      random{},
		check:       check{interval: 500 * time.Millisecond, recurse: true, domain: "."},
	}}
	zones, err := d.Args[0].Zones()
	if err != nil {
		return nil, err
	}
	if len(zones) > 1 {
		h.log.Warn(fmt.Sprintf("%s:%d: %s is several reverse zones; only %s is forwarded", d.Name.File, d.Name.Line, d.Args[0].Text, zones[0]))
	}
	h.from = zones[0]
	for _, p := range d.Block {
		if err := h.property(b, p); err != nil {
			return nil, err
		}
	}
	if h.maxAge > 0 && h.maxAge < h.expire {
		e := corefile.Errorf(d.Name, "max_age %s is shorter than expire %s", h.maxAge, h.expire)
		e.Expected = "max_age to be 0 or at least expire"
		return nil, e
	}
	for _, t := range d.Args[1:] {
		if err := h.addUpstream(b, t); err != nil {
			return nil, err
		}
	}
	if n := len(h.upstreams) + len(h.names); n > maxUpstreams {
		e := corefile.Errorf(d.Name, "%d upstreams are too many", n)
		e.Expected = fmt.Sprintf("at most %d", maxUpstreams)
		return nil, e
	}
	if h.maxAttempts < 0 {
		h.maxAttempts = 2 * (len(h.upstreams) + len(h.names))
	}
	h.check.tcp = h.forceTCP
	h.scope, h.exceptScope = scope.Of(h.from), scope.Of(h.except...)
	h.sockets = make(map[*socket]struct{})
	return h, nil
}

// property reads one line of the block.
func (h *handler) property(b *plugin.Block, p corefile.Directive) error {
	one := func(what string) (corefile.Token, error) {
		if err := p.Want(1, 1, what); err != nil {
			return corefile.Token{}, err
		}
		return p.Args[0], nil
	}
	duration := func(v *time.Duration, least time.Duration) error {
		t, err := one("a duration")
		if err == nil {
			*v, err = t.DurationFrom(least)
		}
		return err
	}
	count := func(v *int) error {
		t, err := one("a number")
		if err == nil {
			*v, err = t.Count()
		}
		return err
	}
	flag := func(v *bool) error { *v = true; return p.Flag() }

	switch p.Name.Text {
	case "except":
		if err := p.Want(1, -1, "names"); err != nil {
			return err
		}
		zones, err := corefile.ZoneList(p.Args)
		h.except = append(h.except, zones...)
		return err
	case "force_tcp":
		return flag(&h.forceTCP)
	case "prefer_udp":
		return flag(&h.preferUDP)
	case "expire":
		return duration(&h.expire, 0)
	case "max_age":
		return duration(&h.maxAge, 0)
	case "max_idle_conns":
		return count(&h.maxIdle)
	case "read_timeout":
		return duration(&h.readTimeout, time.Nanosecond)
	case "max_fails":
		return count(&h.maxFails)
	case "max_connect_attempts":
		return count(&h.maxAttempts)
	case "policy":
		return h.setPolicy(p)
	case "health_check":
		return h.setCheck(p)
	case "max_concurrent":
		if err := count(&h.maxConcurrent); err != nil {
			return err
		}
		h.errConcurrent = fmt.Errorf("concurrent queries exceeded maximum %d", h.maxConcurrent)
		return nil
	case "next":
		return rcodes(p, &h.nextOn)
	case "next_on_nodata":
		return flag(&h.nextOnNoData)
	case "failover":
		if err := rcodes(p, &h.failover); err != nil {
			return err
		}
		if slices.Contains(h.failover, dns.RcodeSuccess) {
			return corefile.Errorf(p.Name, "failover on NOERROR would ask every upstream for every name; leave it out")
		}
		return nil
	case "failfast_all_unhealthy_upstreams":
		return flag(&h.failfast)
	case "tls":
		var err error
		h.tls, err = clienttls.Parse(b, p)
		return err
	case "tls_servername":
		t, err := one("a server name")
		h.tlsName = t.Text
		return err
	case "doh_method":
		t, err := one("POST or GET")
		if err != nil {
			return err
		}
		h.dohGet = strings.EqualFold(t.Text, "GET")
		t.Text = strings.ToUpper(t.Text)
		return t.OneOf("HTTP method for DNS", "POST", "GET")
	case "source_address":
		t, err := one("an IP address")
		if err != nil {
			return err
		}
		if h.source, err = netip.ParseAddr(t.Text); err != nil {
			return corefile.Errorf(t, "source_address %q is no IP address", t.Text)
		}
		return nil
	case "resolver":
		return h.setResolvers(p)
	}
	return corefile.Unknown("property of forward", p.Name, properties...)
}

func (h *handler) setPolicy(p corefile.Directive) error {
	if err := p.Want(1, 1, "random, round_robin or sequential"); err != nil {
		return err
	}
	switch t := p.Args[0]; t.Text {
	case "random":
		h.policy = random{}
	case "round_robin":
		h.policy = &roundRobin{}
	case "sequential":
		h.policy = sequential{}
	default:
		return corefile.Unknown("policy", t, "random", "round_robin", "sequential")
	}
	return nil
}

func (h *handler) setCheck(p corefile.Directive) error {
	const want = "DURATION [no_rec] [domain NAME]"
	if err := p.Want(1, -1, want); err != nil {
		return err
	}
	d, err := p.Args[0].DurationFrom(0)
	if err != nil {
		return err
	}
	h.check.interval = d
	for rest := p.Args[1:]; len(rest) > 0; {
		switch rest[0].Text {
		case "no_rec":
			h.check.recurse = false
			rest = rest[1:]
		case "domain":
			if len(rest) < 2 {
				return corefile.Arguments(p, want)
			}
			zone, ok := plugin.NormalizeZone(rest[1].Text)
			if !ok {
				return corefile.Errorf(rest[1], "%q is no domain name", rest[1].Text)
			}
			h.check.domain = zone
			rest = rest[2:]
		default:
			return corefile.Unknown("option of health_check", rest[0], "no_rec", "domain")
		}
	}
	return nil
}

func rcodes(p corefile.Directive, list *[]int) error {
	if err := p.Want(1, -1, "rcodes such as NXDOMAIN"); err != nil {
		return err
	}
	for _, t := range p.Args {
		code, ok := dns.StringToRcode[strings.ToUpper(t.Text)]
		if !ok {
			return corefile.Unknown("rcode", t, "NOERROR", "NXDOMAIN", "SERVFAIL", "REFUSED", "FORMERR", "NOTIMP")
		}
		*list = append(*list, code)
	}
	return nil
}

func (h *handler) setResolvers(p corefile.Directive) error {
	if err := p.Want(1, -1, "IP addresses"); err != nil {
		return err
	}
	for _, t := range p.Args {
		ap, ok := addrPort(t.Text, 53)
		if !ok {
			return corefile.Errorf(t, "resolver %q is no IP address", t.Text)
		}
		h.resolvers = append(h.resolvers, ap.String())
	}
	return nil
}

// addUpstream reads one TO.
func (h *handler) addUpstream(b *plugin.Block, t corefile.Token) error {
	rest, tr, port := t.Text, plain, uint16(53)
	if scheme, after, ok := strings.Cut(t.Text, "://"); ok {
		rest = after
		switch scheme {
		case "dns":
		case "tls":
			tr, port = overTLS, 853
		case "https":
			tr, port = overHTTP, 443
			if strings.Contains(rest, "/") {
				e := corefile.Errorf(t, "upstream %q has a path", t.Text)
				e.Expected = "https://HOST; the path is always /dns-query"
				return e
			}
		default:
			e := corefile.Unknown("transport", corefile.Token{Text: scheme, File: t.File, Line: t.Line}, "dns", "tls", "https")
			return e
		}
	}
	// A TLS name may follow the address: tls://9.9.9.9%dns.quad9.net. For
	// other transports the percent sign is an IPv6 zone's.
	tlsName := ""
	if tr != plain {
		rest, tlsName = cutTLSName(rest)
		if tlsName != "" && h.tlsName != "" {
			e := corefile.Errorf(t, "upstream %q and tls_servername both give a TLS name", t.Text)
			e.Expected = "one of them"
			return e
		}
	}
	if ap, ok := addrPort(rest, port); ok {
		h.add(tr, ap.String(), tlsName)
		return nil
	}
	if tr == plain {
		path := b.File(rest)
		list, err := h.fileServers(path)
		switch {
		case err == nil && len(list) == 0:
			e := corefile.Errorf(t, "file %s has no nameserver", path)
			e.Expected = "lines such as: nameserver 192.0.2.1"
			return e
		case err == nil:
			for _, a := range list {
				h.add(plain, netip.AddrPortFrom(a, 53).String(), "")
			}
			return nil
		case strings.Contains(rest, "/"):
			return corefile.Errorf(t, "upstream %w", err)
		}
	}
	host, err := parseHost(rest, port)
	if err != nil {
		e := corefile.Errorf(t, "%q is no upstream: %w", t.Text, err)
		e.Expected = "an IP address, a file like /etc/resolv.conf or a host name"
		return e
	}
	h.names = append(h.names, hostName{token: t, transport: tr, host: host.name, port: host.port, tlsName: tlsName})
	return nil
}

// cutTLSName takes %name out of an address; the port may come before or after.
func cutTLSName(s string) (addr, tlsName string) {
	before, after, ok := strings.Cut(s, "%")
	if !ok {
		return s, ""
	}
	if strings.HasPrefix(s, "[") {
		// [2001:db8::1%name]:853: what follows the bracket is the port.
		tlsName, port, _ := strings.Cut(after, "]")
		return before + "]" + port, tlsName
	}
	tlsName, port, hasPort := strings.Cut(after, ":")
	if hasPort {
		return before + ":" + port, tlsName
	}
	return before, tlsName
}

// addrPort reads IP, IP:port, [IPv6] or [IPv6]:port.
func addrPort(s string, port uint16) (netip.AddrPort, bool) {
	if a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")); err == nil {
		return netip.AddrPortFrom(a, port), true
	}
	ap, err := netip.ParseAddrPort(s)
	return ap, err == nil
}

// add makes an upstream unless the line has it already.
func (h *handler) add(tr transport, addr, tlsName string) {
	for _, u := range h.upstreams {
		if u.addr == addr && u.transport == tr {
			return
		}
	}
	u := &upstream{addr: addr, transport: tr, timeout: h.readTimeout, source: h.source}
	if tr != plain {
		u.tls = h.tlsConfig(addr, tlsName)
	}
	h.upstreams = append(h.upstreams, u)
}

func (h *handler) warn(ctx context.Context, format string, args ...any) {
	h.log.WarnContext(ctx, fmt.Sprintf(format, args...))
}
