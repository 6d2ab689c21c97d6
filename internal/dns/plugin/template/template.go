// Package template answers with records made of the question.
package template

import (
	"bytes"
	"context"
	"errors"
	"regexp"
	"strconv"
	"text/template"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/expression"
	"github.com/rutter-project/rutter/internal/dns/plugin/metadata"
	"github.com/rutter-project/rutter/internal/dns/plugin/scope"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

const name = "template"

type handler struct {
	next    plugin.Handler
	rules   []rule
	metrics *metrics
}

// rule is one template line.
type rule struct {
	class, qtype uint16
	zones        plugin.Zones
	scope        scope.Scope
	match        []*regexp.Regexp
	conditions   []*expression.Program
	vars         []variable

	answer, additional, authority []*template.Template

	rcode    int
	extended *dns.EDNS0_EDE
	fall     plugin.Fall
}

type variable struct {
	name  string
	value *expression.Program
}

// data is what templates can use.
type data struct {
	Zone, Name, Class, Type string
	Regex                   string
	Match                   []string
	Group                   map[string]string
	Message                 *dns.Msg
	Question                *dns.Question
	Remote                  string
	Var                     map[string]any

	ctx context.Context
}

// Meta returns a metadata value, empty when there is none.
func (d *data) Meta(label string) string {
	v, _ := metadata.Value(d.ctx, label)
	return v
}

func (h *handler) Name() string { return name }

// ServeDNS tries the rules in order. A rule whose zone, class and type fit but
// whose conditions do not ends the search, unless it falls through.
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	q := &plugin.Request{W: w, Req: r}
	for i := range h.rules {
		rule := &h.rules[i]
		zone := rule.zones.Matches(q.Name())
		if zone == "" || !fits(rule.class, q.QClass(), dns.ClassANY) || !fits(rule.qtype, q.QType(), dns.TypeANY) {
			continue
		}
		d, ok := rule.data(ctx, q, zone)
		switch {
		case ok:
			return h.answer(ctx, q, rule, d)
		case !rule.fall.Through(q.Name()):
			return dns.RcodeServerFailure, nil
		}
	}
	return plugin.NextOrFailure(name, h.next, ctx, w, r)
}

func fits(rule, asked, any uint16) bool { return rule == any || asked == any || rule == asked }

// ServeDirect lets queries pass that no rule is for.
func (h *handler) ServeDirect(q *wire.Query, _ *wire.Answer) plugin.Outcome {
	for i := range h.rules {
		rule := &h.rules[i]
		if fits(rule.class, q.Class, dns.ClassANY) && fits(rule.qtype, q.Type, dns.TypeANY) && rule.scope.Has(q) {
			return plugin.Chain
		}
	}
	return plugin.Next
}

// data returns what the rule's templates can use, if its conditions are true.
func (r *rule) data(ctx context.Context, q *plugin.Request, zone string) (*data, bool) {
	d := &data{
		Zone: zone, Name: q.Name(), Class: q.Class(), Type: q.Type(),
		Group: make(map[string]string), Message: q.Req, Question: &q.Req.Question[0],
		Remote: q.Remote().Addr().String(), ctx: ctx,
	}
	if q.QClass() == dns.ClassANY {
		d.Class = dns.Class(r.class).String()
	}
	if q.QType() == dns.TypeANY {
		d.Type = dns.Type(r.qtype).String()
	}
	matched := len(r.match) == 0
	if matched {
		d.Match = []string{q.Name()}
		d.Group["0"] = q.Name()
	}
	for _, re := range r.match {
		if d.Match = re.FindStringSubmatch(q.Name()); d.Match == nil {
			continue
		}
		matched, d.Regex = true, re.String()
		names := re.SubexpNames()
		for i, m := range d.Match {
			d.Group[strconv.Itoa(i)] = m
			if names[i] != "" {
				d.Group[names[i]] = m
			}
		}
		break
	}
	if !matched {
		return nil, false
	}
	if len(r.vars) == 0 && len(r.conditions) == 0 {
		return d, true
	}
	env := environment(ctx, q, d.Group)
	d.Var = make(map[string]any, len(r.vars))
	for _, v := range r.vars {
		value, err := v.value.Run(env)
		if err != nil {
			return nil, false
		}
		d.Var[v.name], env[v.name] = value, value
	}
	for _, c := range r.conditions {
		if !c.True(env) {
			return nil, false
		}
	}
	return d, true
}

// environment is what expressions can use: what views have, and the groups of
// the regular expression by name or number.
func environment(ctx context.Context, q *plugin.Request, groups map[string]string) expression.Env {
	return expression.Of(ctx, q).With(expression.Env{
		"group": func(key any) string {
			switch k := key.(type) {
			case int:
				return groups[strconv.Itoa(k)]
			case string:
				return groups[k]
			}
			return ""
		},
	})
}

func (h *handler) answer(ctx context.Context, q *plugin.Request, r *rule, d *data) (int, error) {
	o := plugin.OriginOf(ctx)
	h.metrics.matches.WithLabelValues(o.Server, d.Zone, o.View, d.Class, d.Type).Inc()
	if r.rcode == dns.RcodeServerFailure {
		return dns.RcodeServerFailure, nil
	}
	m := new(dns.Msg)
	m.SetReply(q.Req)
	m.Authoritative = true
	m.Rcode = r.rcode
	for _, t := range r.answer {
		rr, err := h.record(o, t, d)
		if err != nil {
			return dns.RcodeServerFailure, err
		}
		m.Answer = append(m.Answer, rr)
		c, ok := rr.(*dns.CNAME)
		if !ok || q.QType() != dns.TypeA && q.QType() != dns.TypeAAAA {
			continue
		}
		if up, err := plugin.Lookup(ctx, q.W, q.Req, c.Target, q.QType()); err == nil {
			m.Answer = append(m.Answer, up.Answer...)
			m.Truncated = up.Truncated
		}
	}
	for _, section := range []struct {
		from []*template.Template
		to   *[]dns.RR
	}{{r.additional, &m.Extra}, {r.authority, &m.Ns}} {
		for _, t := range section.from {
			rr, err := h.record(o, t, d)
			if err != nil {
				return dns.RcodeServerFailure, err
			}
			*section.to = append(*section.to, rr)
		}
	}
	if r.extended != nil {
		m.SetEdns0(4096, true)
		e := *r.extended
		opt := m.IsEdns0()
		opt.Option = append(opt.Option, &e)
	}
	return dns.RcodeSuccess, q.W.WriteMsg(m)
}

// record makes a record of a template; its name says which section it is for.
func (h *handler) record(o *plugin.Origin, t *template.Template, d *data) (dns.RR, error) {
	var text bytes.Buffer
	if err := t.Execute(&text, d); err != nil {
		h.metrics.templates.WithLabelValues(o.Server, d.Zone, o.View, d.Class, d.Type, t.Name(), t.Root.String()).Inc()
		return nil, plugin.Error(name, err)
	}
	rr, err := dns.NewRR(text.String())
	if err == nil && rr == nil {
		err = errEmpty
	}
	if err != nil {
		h.metrics.records.WithLabelValues(o.Server, d.Zone, o.View, d.Class, d.Type, t.Name(), t.Root.String()).Inc()
		return nil, plugin.Error(name, err)
	}
	return rr, nil
}

var errEmpty = errors.New("the template made no record")

// metrics keep CoreDNS's names and labels.
type metrics struct {
	matches            *prometheus.CounterVec // server, zone, view, class, type
	templates, records *prometheus.CounterVec // and section, template
}

func newMetrics(r prometheus.Registerer) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return plugin.Register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "coredns", Subsystem: "template", Name: name, Help: help,
		}, append([]string{"server", "zone", "view", "class", "type"}, labels...)))
	}
	return &metrics{
		matches:   counter("matches_total", "Queries that a template answered."),
		templates: counter("template_failures_total", "Templates that could not be executed.", "section", "template"),
		records:   counter("rr_failures_total", "Templates that made no valid record.", "section", "template"),
	}
}
