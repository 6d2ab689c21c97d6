package rewrite

import (
	"strings"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
)

// Setup reads, any number of times:
//
//	rewrite [continue|stop] FIELD ...
//
// where FIELD is name, type, class, ttl, rcode, cname or edns0. The words may
// also stand in a block, over several lines.
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	h := &handler{log: b.Log(name)}
	for _, d := range lines {
		r, err := h.parse(d)
		if err != nil {
			return nil, err
		}
		h.rules = append(h.rules, r)
	}
	return func(next plugin.Handler) plugin.Handler {
		h.next = next
		return h
	}, nil
}

var fields = []string{"name", "type", "class", "ttl", "rcode", "cname", "edns0"}

func (h *handler) parse(d corefile.Directive) (rule, error) {
	args := d.Args
	if d.HasBlock {
		if len(args) > 1 {
			return rule{}, corefile.Errorf(d.Name, "a rewrite rule stands on its line or in the block, not both")
		}
		args = flatten(args, d.Block)
	}
	var r rule
	if len(args) > 0 {
		switch strings.ToLower(args[0].Text) {
		case "continue":
			r.goOn = true
			args = args[1:]
		case "stop":
			args = args[1:]
		}
	}
	if len(args) == 0 {
		e := corefile.Errorf(d.Name, "rewrite has no rule")
		e.Expected = "[continue|stop] and one of " + strings.Join(fields, ", ")
		return r, e
	}
	field, args := args[0], args[1:]
	var err error
	switch strings.ToLower(field.Text) {
	case "name":
		r.rewriter, err = newNameRule(args, field)
	case "type":
		r.rewriter, err = newTypeRule(args, field)
	case "class":
		r.rewriter, err = newClassRule(args, field)
	case "ttl":
		r.rewriter, err = newTTLRule(args, field)
	case "rcode":
		r.rewriter, err = newRcodeRule(args, field)
	case "cname":
		r.rewriter, err = newCNAMERule(args, field, func(err error) { h.log.Error(err.Error()) })
	case "edns0":
		r.rewriter, err = newEDNS0Rule(args, field)
	case "answer":
		e := corefile.Errorf(field, "answer without a name rule")
		e.Expected = "rewrite name ... answer ..."
		err = e
	default:
		err = corefile.Unknown("field to rewrite", field, fields...)
	}
	return r, err
}

func flatten(words []corefile.Token, block []corefile.Directive) []corefile.Token {
	words = words[:len(words):len(words)]
	for _, d := range block {
		words = append(words, d.Name)
		words = append(words, d.Args...)
		words = flatten(words, d.Block)
	}
	return words
}

func newTypeRule(args []corefile.Token, at corefile.Token) (rewriter, error) {
	from, to, err := twoOf(args, at, "type", dns.StringToType)
	return typeRule{from, to}, err
}

func newClassRule(args []corefile.Token, at corefile.Token) (rewriter, error) {
	from, to, err := twoOf(args, at, "class", dns.StringToClass)
	return classRule{from, to}, err
}

func twoOf(args []corefile.Token, at corefile.Token, what string, known map[string]uint16) (from, to uint16, err error) {
	if len(args) != 2 {
		return 0, 0, tooFew(at, what+" FROM TO")
	}
	var v [2]uint16
	for i, t := range args {
		n, ok := known[strings.ToUpper(t.Text)]
		if !ok {
			return 0, 0, corefile.Errorf(t, "unknown %s %q", what, t.Text)
		}
		v[i] = n
	}
	return v[0], v[1], nil
}

func tooFew(at corefile.Token, want string) error {
	e := corefile.Errorf(at, "wrong number of words after %q", at.Text)
	e.Expected = want
	return e
}
