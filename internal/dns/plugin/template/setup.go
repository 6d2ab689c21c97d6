package template

import (
	"context"
	"regexp"
	"strconv"
	"strings"
	"text/template"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/expression"
	"github.com/rutter-project/rutter/internal/dns/plugin/scope"
)

var properties = []string{"match", "var", "expr", "answer", "additional", "authority", "rcode", "ederror", "fallthrough", "upstream"}

// Setup reads, any number of times:
//
//	template CLASS TYPE [ZONES...] {
//	    match REGEXP...
//	    var NAME EXPRESSION
//	    expr EXPRESSION
//	    answer RECORD
//	    additional RECORD
//	    authority RECORD
//	    rcode CODE
//	    ederror CODE [TEXT]
//	    fallthrough [ZONES...]
//	}
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	h := &handler{metrics: newMetrics(b.Env.Registry)}
	for _, d := range lines {
		r, err := parse(b, d)
		if err != nil {
			return nil, err
		}
		h.rules = append(h.rules, *r)
	}
	return func(next plugin.Handler) plugin.Handler {
		h.next = next
		return h
	}, nil
}

func parse(b *plugin.Block, d corefile.Directive) (*rule, error) {
	if err := d.Want(2, -1, "a class and a type: template IN A"); err != nil {
		return nil, err
	}
	r := &rule{}
	var ok bool
	if r.class, ok = dns.StringToClass[d.Args[0].Text]; !ok {
		return nil, corefile.Unknown("class", d.Args[0], "IN", "CH", "HS", "ANY")
	}
	if r.qtype, ok = dns.StringToType[d.Args[1].Text]; !ok {
		e := corefile.Errorf(d.Args[1], "unknown type %q", d.Args[1].Text)
		e.Expected = "a record type in capitals, or ANY"
		return nil, e
	}
	zones, err := corefile.ZoneList(d.Args[2:])
	if err != nil {
		return nil, err
	}
	if r.zones = zones; len(zones) == 0 {
		r.zones = b.Zones
	}
	r.scope = scope.Of(r.zones...)
	env := environment(context.Background(), nil, nil)
	for _, p := range d.Block {
		if err := r.property(p, env); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (r *rule) property(p corefile.Directive, env expression.Env) error {
	records := func(to *[]*template.Template) error {
		if err := p.Want(1, -1, "a record in quotes"); err != nil {
			return err
		}
		for _, t := range p.Args {
			tmpl, err := template.New(p.Name.Text).Funcs(template.FuncMap{"parseInt": strconv.ParseUint}).Parse(t.Text)
			if err != nil {
				return corefile.Errorf(t, "template %q: %w", t.Text, err)
			}
			*to = append(*to, tmpl)
		}
		return nil
	}
	switch p.Name.Text {
	case "match":
		return r.addMatch(p)
	case "var":
		return r.addVariable(p, env)
	case "expr":
		if err := p.Want(1, -1, "an expression"); err != nil {
			return err
		}
		c, err := expression.Compile(p.Args[0], joined(p.Args), env)
		r.conditions = append(r.conditions, c)
		return err
	case "answer":
		return records(&r.answer)
	case "additional":
		return records(&r.additional)
	case "authority":
		return records(&r.authority)
	case "rcode":
		if err := p.Want(1, 1, "an rcode such as NXDOMAIN"); err != nil {
			return err
		}
		code, ok := dns.StringToRcode[p.Args[0].Text]
		if !ok {
			return corefile.Unknown("rcode", p.Args[0], "NOERROR", "NXDOMAIN", "SERVFAIL", "REFUSED", "FORMERR", "NOTIMP")
		}
		r.rcode = code
		return nil
	case "ederror":
		return r.setExtended(p)
	case "fallthrough":
		zones, err := corefile.ZoneList(p.Args)
		if len(zones) == 0 {
			zones = []string{"."}
		}
		r.fall.Zones = zones
		return err
	case "upstream":
		return nil // of old versions; means nothing
	}
	return corefile.Unknown("property of template", p.Name, properties...)
}

func (r *rule) addMatch(p corefile.Directive) error {
	if err := p.Want(1, -1, "a regular expression"); err != nil {
		return err
	}
	for _, t := range p.Args {
		re, err := t.Regexp()
		if err != nil {
			return err
		}
		r.match = append(r.match, re)
	}
	return nil
}

var identifier = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// addVariable compiles a variable; later expressions can use it.
func (r *rule) addVariable(p corefile.Directive, env expression.Env) error {
	if err := p.Want(2, -1, "a name and an expression"); err != nil {
		return err
	}
	t := p.Args[0]
	if _, taken := env[t.Text]; taken {
		return corefile.Errorf(t, "variable name %q is taken", t.Text)
	}
	if !identifier.MatchString(t.Text) {
		return corefile.Errorf(t, "%q is no name for a variable", t.Text)
	}
	value, err := expression.Compile(p.Args[1], joined(p.Args[1:]), env)
	if err != nil {
		return err
	}
	env[t.Text] = value.Zero()
	r.vars = append(r.vars, variable{t.Text, value})
	return nil
}

func joined(words []corefile.Token) string {
	texts := make([]string, len(words))
	for i, w := range words {
		texts[i] = w.Text
	}
	return strings.Join(texts, " ")
}

func (r *rule) setExtended(p corefile.Directive) error {
	if err := p.Want(1, 2, "a code and a text"); err != nil {
		return err
	}
	code, err := p.Args[0].Number(0, 65535)
	if err != nil {
		return err
	}
	r.extended = &dns.EDNS0_EDE{InfoCode: uint16(code)}
	if len(p.Args) == 2 {
		r.extended.ExtraText = p.Args[1].Text
	}
	return nil
}
