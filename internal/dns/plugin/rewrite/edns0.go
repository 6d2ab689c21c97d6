package rewrite

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin/metadata"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

// ednsRule changes one option of the query's OPT record.
type ednsRule struct {
	action string // set, replace, append or unset
	code   uint16
	revert bool // the reply's OPT record shows the option as it was
	// option makes the option; nil when there is nothing to make it of.
	option func(ctx context.Context, q *query) dns.EDNS0
	// once: append adds no second option of the code.
	once bool
}

// newEDNS0Rule reads:
//
//	local set|replace|append|unset CODE [DATA] [revert]
//	nsid set|replace|append|unset [revert]
//	subnet set|replace|append|unset [V4BITS V6BITS] [revert]
func newEDNS0Rule(args []corefile.Token, at corefile.Token) (rewriter, error) {
	const want = "edns0 local|nsid|subnet set|replace|append|unset ..."
	if len(args) < 2 {
		return nil, tooFew(at, want)
	}
	r := &ednsRule{action: strings.ToLower(args[1].Text)}
	if !slices.Contains([]string{"set", "replace", "append", "unset"}, r.action) {
		return nil, corefile.Unknown("action on an EDNS option", args[1], "set", "replace", "append", "unset")
	}
	kind, rest := args[0], args[2:]
	if n := len(rest); n > 0 && rest[n-1].Text == "revert" && r.action != "unset" {
		r.revert, rest = true, rest[:n-1]
	}
	unset := r.action == "unset"
	words := func(n int, want string) error {
		if len(rest) == n {
			return nil
		}
		e := corefile.Errorf(at, "wrong arguments for edns0 %s %s", kind.Text, r.action)
		e.Expected = want
		return e
	}
	switch strings.ToLower(kind.Text) {
	case "local":
		if unset {
			if err := words(1, "a code"); err != nil {
				return nil, err
			}
			return r, r.setCode(rest[0])
		}
		if err := words(2, "a code and data"); err != nil {
			return nil, err
		}
		if err := r.setCode(rest[0]); err != nil {
			return nil, err
		}
		return r, r.setData(rest[1])
	case "nsid":
		r.code = dns.EDNS0NSID
		r.option = func(context.Context, *query) dns.EDNS0 { return &dns.EDNS0_NSID{Code: dns.EDNS0NSID} }
		return r, words(0, "nothing more")
	case "subnet":
		r.code, r.once = dns.EDNS0SUBNET, true
		if unset {
			return r, words(0, "nothing more")
		}
		if err := words(2, "the bits of IPv4 and of IPv6 addresses"); err != nil {
			return nil, err
		}
		return r, r.setSubnet(rest[0], rest[1])
	}
	return nil, corefile.Unknown("EDNS option", kind, "local", "nsid", "subnet")
}

func (r *ednsRule) setCode(t corefile.Token) error {
	n, err := strconv.ParseUint(t.Text, 0, 16)
	if err != nil {
		e := corefile.Errorf(t, "%q is no option code", t.Text)
		e.Expected = "a number such as 0xffee"
		return e
	}
	r.code = uint16(n)
	return nil
}

// variables are what data can be made of.
var variables = map[string]func(q *query) []byte{
	"qname":       func(q *query) []byte { return []byte(q.QName()) },
	"qtype":       func(q *query) []byte { return binary.BigEndian.AppendUint16(nil, q.QType()) },
	"client_ip":   func(q *query) []byte { return q.Remote().Addr().AsSlice() },
	"client_port": func(q *query) []byte { return binary.BigEndian.AppendUint16(nil, q.Remote().Port()) },
	"server_ip":   func(q *query) []byte { return q.Local().Addr().AsSlice() },
	"server_port": func(q *query) []byte { return binary.BigEndian.AppendUint16(nil, q.Local().Port()) },
	"protocol":    func(q *query) []byte { return []byte(q.Proto()) },
}

func (r *ednsRule) setData(t corefile.Token) error {
	local := func(data []byte) dns.EDNS0 { return &dns.EDNS0_LOCAL{Code: r.code, Data: data} }
	if word, ok := strings.CutPrefix(t.Text, "{"); ok && strings.HasSuffix(word, "}") {
		word = strings.TrimSuffix(word, "}")
		r.once = true
		if f := variables[word]; f != nil {
			r.option = func(_ context.Context, q *query) dns.EDNS0 { return local(f(q)) }
			return nil
		}
		if !metadata.ValidLabel(word) {
			e := corefile.Errorf(t, "unknown variable %q", t.Text)
			e.Expected = "{qname}, {qtype}, {client_ip}, {client_port}, {protocol}, {server_ip}, {server_port} or a metadata label such as {plugin/label}"
			return e
		}
		r.option = func(ctx context.Context, _ *query) dns.EDNS0 {
			if v, ok := metadata.Value(ctx, word); ok && v != "" {
				return local([]byte(v))
			}
			return nil
		}
		return nil
	}
	data := []byte(t.Text)
	if digits, ok := strings.CutPrefix(t.Text, "0x"); ok {
		var err error
		if data, err = hex.DecodeString(digits); err != nil {
			return corefile.Errorf(t, "%q is not hexadecimal: %w", t.Text, err)
		}
	}
	r.option = func(context.Context, *query) dns.EDNS0 { return local(data) }
	return nil
}

func (r *ednsRule) setSubnet(v4, v6 corefile.Token) error {
	bits4, err := v4.Number(0, 32)
	if err != nil {
		return err
	}
	bits6, err := v6.Number(0, 128)
	if err != nil {
		return err
	}
	r.option = func(_ context.Context, q *query) dns.EDNS0 {
		addr := q.Remote().Addr().WithZone("")
		family, bits := uint16(1), bits4
		if addr.Is6() {
			family, bits = 2, bits6
		}
		return &dns.EDNS0_SUBNET{
			Code: dns.EDNS0SUBNET, Family: family, SourceNetmask: uint8(bits),
			Address: netip.PrefixFrom(addr, bits).Masked().Addr().AsSlice(),
		}
	}
	return nil
}

func (r *ednsRule) mayFit(*wire.Query) bool { return true }

// ednsChange is a change that the reply must know of.
type ednsChange struct {
	code   uint16
	revert bool
	was    dns.EDNS0 // nil: the option was not there
}

func (r *ednsRule) rewrite(ctx context.Context, q *query) ([]answer, bool) {
	var option dns.EDNS0
	if r.action != "unset" {
		if option = r.option(ctx, q); option == nil {
			return nil, false
		}
	}
	o := q.opt()
	if r.action == "unset" {
		o.Option = slices.DeleteFunc(o.Option, func(e dns.EDNS0) bool { return e.Option() == r.code })
		return nil, true
	}
	i := slices.IndexFunc(o.Option, func(e dns.EDNS0) bool { return e.Option() == r.code })
	switch {
	case i >= 0 && r.action != "append":
		q.edns = append(q.edns, ednsChange{r.code, r.revert, o.Option[i]})
		o.Option[i] = option
	case i >= 0 && r.once, i < 0 && r.action == "replace":
		return nil, false
	default:
		q.edns = append(q.edns, ednsChange{r.code, r.revert, nil})
		o.Option = append(o.Option, option)
	}
	return nil, true
}

// revertEDNS makes the reply's OPT record show the options that it would have
// without the changes that are to be hidden. Without an OPT record in the reply
// the server repeats the query's; changed options are repeated too.
func (q *query) revertEDNS(m *dns.Msg) {
	if len(q.edns) == 0 {
		return
	}
	o := m.IsEdns0()
	if o == nil {
		asked := q.opt()
		m.SetEdns0(asked.UDPSize(), asked.Do())
		o = m.IsEdns0()
		for _, e := range asked.Option {
			if repeated(e.Option()) || slices.ContainsFunc(q.edns, func(c ednsChange) bool { return c.code == e.Option() && e.Option() != dns.EDNS0SUBNET }) {
				o.Option = append(o.Option, e)
			}
		}
	}
	for _, c := range slices.Backward(q.edns) {
		i := slices.IndexFunc(o.Option, func(e dns.EDNS0) bool { return e.Option() == c.code })
		switch {
		case !c.revert || i < 0:
		case c.was == nil:
			o.Option = slices.Delete(o.Option, i, i+1)
		default:
			o.Option[i] = c.was
		}
	}
}

// repeated tells which of a query's options replies repeat anyway.
func repeated(code uint16) bool {
	switch code {
	case dns.EDNS0NSID, dns.EDNS0EXPIRE, dns.EDNS0COOKIE, dns.EDNS0TCPKEEPALIVE, dns.EDNS0PADDING:
		return true
	}
	return false
}
