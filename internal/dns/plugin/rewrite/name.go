package rewrite

import (
	"context"
	"regexp"
	"strings"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

// nameRule changes the name asked for.
type nameRule struct {
	*match
	auto    bool // names in the reply are changed back
	answers []answer
}

// newNameRule reads: [KIND] FROM TO [answer auto|name RE TO|value RE TO]...
func newNameRule(args []corefile.Token, at corefile.Token) (rewriter, error) {
	if len(args) < 2 {
		return nil, tooFew(at, "name [exact|prefix|suffix|substring|regex] FROM TO")
	}
	kind := corefile.Token{Text: "exact"}
	if len(args) > 2 {
		kind, args = args[0], args[1:]
		kind.Text = strings.ToLower(kind.Text)
		if err := kind.OneOf("kind of match", kinds...); err != nil {
			return nil, err
		}
	}
	to := args[1]
	m, err := newMatch(kind.Text, args[0], strings.ToLower(dns.Fqdn(to.Text)))
	if err != nil {
		return nil, err
	}
	if m.re != nil {
		if err := checkGroups(m.re, to); err != nil {
			return nil, err
		}
	}
	r := &nameRule{match: m, auto: kind.Text == "exact"}
	auto, answers, err := answerRules(args[2:])
	if err != nil {
		return nil, err
	}
	r.answers = answers
	switch {
	case kind.Text == "suffix" && auto:
		// Suffixes can be swapped back in any name.
		back := func(s string) string {
			if before, ok := strings.CutSuffix(s, m.to); ok {
				return before + m.from
			}
			return s
		}
		r.answers = append([]answer{&renamer{owner: back, value: back}}, r.answers...)
	case auto:
		r.auto = true
	}
	return r, nil
}

func (r *nameRule) rewrite(_ context.Context, q *query) ([]answer, bool) {
	asked := q.Name()
	if !r.fits(asked) {
		return nil, false
	}
	now := r.replace(asked)
	q.Req.Question[0].Name = now
	if !r.auto {
		return r.answers, true
	}
	back := func(s string) string {
		if s == now {
			return asked
		}
		if before, ok := strings.CutSuffix(s, "."+now); ok {
			return before + "." + asked
		}
		return s
	}
	return append([]answer{&renamer{owner: back, value: back}}, r.answers...), true
}

// answerRules reads what follows FROM and TO.
func answerRules(args []corefile.Token) (auto bool, answers []answer, err error) {
	named := false
	for first := true; len(args) > 0; first = false {
		t := args[0]
		if t.Text == "answer" {
			if args = args[1:]; len(args) == 0 {
				return false, nil, tooFew(t, "answer auto, answer name RE TO or answer value RE TO")
			}
			t = args[0]
		} else if first {
			e := corefile.Errorf(t, "%q stands after the new name", t.Text)
			e.Expected = "answer, or the end of the rule"
			return false, nil, e
		}
		args = args[1:]
		auto, named = auto || t.Text == "auto", named || t.Text == "name"
		if auto && named {
			return false, nil, corefile.Errorf(t, "answer auto and answer name exclude each other")
		}
		switch t.Text {
		case "auto":
			continue
		case "name", "value":
		default:
			return false, nil, corefile.Unknown("answer rule", t, "auto", "name", "value")
		}
		if len(args) < 2 {
			return false, nil, tooFew(t, "answer "+t.Text+" RE TO")
		}
		re, err := args[0].Regexp()
		if err != nil {
			return false, nil, err
		}
		if err := checkGroups(re, args[1]); err != nil {
			return false, nil, err
		}
		f := replacer(re, strings.ToLower(dns.Fqdn(args[1].Text)))
		if t.Text == "name" {
			answers = append(answers, &renamer{owner: f})
		} else {
			answers = append(answers, &renamer{value: f})
		}
		args = args[2:]
	}
	return auto, answers, nil
}

func replacer(re *regexp.Regexp, to string) func(string) string {
	return func(s string) string {
		if groups := re.FindStringSubmatch(s); groups != nil {
			return expand(to, groups)
		}
		return s
	}
}

// renamer changes names in records; a nil function changes none.
type renamer struct {
	owner, value func(string) string
}

func (a *renamer) message(*dns.Msg) {}

func (a *renamer) record(rr dns.RR) {
	if a.owner != nil {
		rr.Header().Name = a.owner(rr.Header().Name)
	}
	if a.value != nil {
		if v := value(rr); v != nil && *v != "" {
			*v = a.value(*v)
		}
	}
}

// value returns the name in a record's data that is a target, if it has one.
func value(rr dns.RR) *string {
	switch rr := rr.(type) {
	case *dns.CNAME:
		return &rr.Target
	case *dns.DNAME:
		return &rr.Target
	case *dns.SOA:
		return &rr.Ns
	case *dns.SRV:
		return &rr.Target
	case *dns.MX:
		return &rr.Mx
	case *dns.NAPTR:
		return &rr.Replacement
	case *dns.NS:
		return &rr.Ns
	case *dns.PTR:
		return &rr.Ptr
	}
	return nil
}

// typeRule and classRule change what is asked for; the reply has the original
// question again.
type typeRule struct{ from, to uint16 }

func (r typeRule) rewrite(_ context.Context, q *query) ([]answer, bool) {
	if q.QType() != r.from {
		return nil, false
	}
	q.Req.Question[0].Qtype = r.to
	return nil, true
}

func (r typeRule) mayFit(q *wire.Query) bool { return q.Type == r.from }

type classRule struct{ from, to uint16 }

func (r classRule) rewrite(_ context.Context, q *query) ([]answer, bool) {
	if q.QClass() != r.from {
		return nil, false
	}
	q.Req.Question[0].Qclass = r.to
	return nil, true
}

func (r classRule) mayFit(q *wire.Query) bool { return q.Class == r.from }
