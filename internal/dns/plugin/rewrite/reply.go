package rewrite

import (
	"context"
	"math"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

// replyRule changes replies to names that fit.
type replyRule struct {
	*match
	answer answer
}

func (r *replyRule) rewrite(_ context.Context, q *query) ([]answer, bool) {
	if !r.fits(q.Name()) {
		return nil, false
	}
	return []answer{r.answer}, true
}

// matchOf reads [KIND] NAME, given how many words follow.
func matchOf(args []corefile.Token, after int) (*match, error) {
	kind := corefile.Token{Text: "exact"}
	if len(args) == after+2 {
		kind, args = args[0], args[1:]
		kind.Text = strings.ToLower(kind.Text)
		if err := kind.OneOf("kind of match", kinds...); err != nil {
			return nil, err
		}
	}
	return newMatch(kind.Text, args[0], "")
}

// newTTLRule reads: [KIND] NAME TTL|MIN-MAX|MIN-|-MAX
func newTTLRule(args []corefile.Token, at corefile.Token) (rewriter, error) {
	const want = "ttl [exact|prefix|suffix|substring|regex] NAME SECONDS|MIN-MAX|MIN-|-MAX"
	if len(args) < 2 || len(args) > 3 {
		return nil, tooFew(at, want)
	}
	m, err := matchOf(args, 1)
	if err != nil {
		return nil, err
	}
	t := args[len(args)-1]
	low, high, ok := ttlRange(t.Text)
	if !ok {
		e := corefile.Errorf(t, "%q is no TTL", t.Text)
		e.Expected = "seconds, or a range such as 30-300, 30- or -300"
		return nil, e
	}
	return &replyRule{m, ttlAnswer{low, high}}, nil
}

func ttlRange(s string) (low, high uint32, ok bool) {
	from, to, isRange := strings.Cut(s, "-")
	number := func(s string, missing uint32) uint32 {
		if s == "" {
			return missing
		}
		n, err := strconv.ParseUint(s, 10, 32)
		ok = ok && err == nil
		return uint32(n)
	}
	ok = s != "" && s != "-"
	low = number(from, 0)
	if !isRange {
		return low, low, ok
	}
	high = number(to, math.MaxInt32) // RFC 2181 §8
	return low, high, ok && low <= high
}

type ttlAnswer struct{ low, high uint32 }

func (a ttlAnswer) record(rr dns.RR) { rr.Header().Ttl = min(max(rr.Header().Ttl, a.low), a.high) }
func (ttlAnswer) message(*dns.Msg)   {}

// newRcodeRule reads: [KIND] NAME FROM TO
func newRcodeRule(args []corefile.Token, at corefile.Token) (rewriter, error) {
	if len(args) < 3 || len(args) > 4 {
		return nil, tooFew(at, "rcode [exact|prefix|suffix|substring|regex] NAME FROM TO")
	}
	m, err := matchOf(args, 2)
	if err != nil {
		return nil, err
	}
	var a rcodeAnswer
	if a.from, err = rcode(args[len(args)-2]); err != nil {
		return nil, err
	}
	if a.to, err = rcode(args[len(args)-1]); err != nil {
		return nil, err
	}
	return &replyRule{m, a}, nil
}

func rcode(t corefile.Token) (int, error) {
	if n, err := strconv.ParseUint(t.Text, 10, 32); err == nil && n <= 23 {
		return int(n), nil
	}
	if n, ok := dns.StringToRcode[strings.ToUpper(t.Text)]; ok {
		return n, nil
	}
	return 0, corefile.Unknown("rcode", t, "NOERROR", "NXDOMAIN", "SERVFAIL", "REFUSED", "FORMERR", "NOTIMP")
}

type rcodeAnswer struct{ from, to int }

func (rcodeAnswer) record(dns.RR) {}

func (a rcodeAnswer) message(m *dns.Msg) {
	if m.Rcode == a.from {
		m.Rcode = a.to
	}
}

// cnameRule gives aliases in replies another target and looks that up.
type cnameRule struct {
	*match
	log func(error)
}

// newCNAMERule reads: [KIND] FROM TO
func newCNAMERule(args []corefile.Token, at corefile.Token, log func(error)) (rewriter, error) {
	if len(args) < 2 || len(args) > 3 {
		return nil, tooFew(at, "cname [exact|prefix|suffix|substring|regex] FROM TO")
	}
	to := args[len(args)-1]
	m, err := matchOf(args, 1)
	if err != nil {
		return nil, err
	}
	m.to = strings.ToLower(to.Text)
	if m.kind == "exact" {
		m.to = dns.Fqdn(m.to)
	} else {
		m.from = strings.ToLower(args[len(args)-2].Text) // parts of names get no dot here
	}
	return &cnameRule{m, log}, nil
}

func (r *cnameRule) mayFit(*wire.Query) bool { return true }

func (r *cnameRule) rewrite(ctx context.Context, q *query) ([]answer, bool) {
	return []answer{&cnameAnswer{rule: r, ctx: ctx, q: q}}, true
}

type cnameAnswer struct {
	rule *cnameRule
	ctx  context.Context
	q    *query
}

func (*cnameAnswer) record(dns.RR) {}

// message keeps the aliases up to the one that fits and puts what the new
// target has in the place of the rest.
func (a *cnameAnswer) message(m *dns.Msg) {
	for i, rr := range m.Answer {
		c, ok := rr.(*dns.CNAME)
		if !ok || !a.rule.fits(strings.ToLower(c.Target)) {
			continue
		}
		target := a.rule.replace(strings.ToLower(c.Target))
		up, err := plugin.Lookup(a.ctx, a.q.W, a.q.Req, target, a.q.original.Qtype)
		if err != nil {
			a.rule.log(err)
			return
		}
		c.Target = target
		kept := m.Answer[:0:0]
		for _, rr := range m.Answer[:i+1] {
			if rr.Header().Rrtype == dns.TypeCNAME {
				kept = append(kept, rr)
			}
		}
		m.Answer = append(kept, up.Answer...)
		m.Truncated = up.Truncated
		return
	}
}
