// Package expression evaluates conditions on queries, in the language of
// github.com/expr-lang/expr.
package expression

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"strconv"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/vm"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/metadata"
)

// Env is what an expression can use: names and functions.
type Env map[string]any

// Of returns the functions that describe q. For compiling, q may be nil.
func Of(ctx context.Context, q *plugin.Request) Env {
	return Env{
		"incidr":      inCIDR,
		"metadata":    func(label string) string { v, _ := metadata.Value(ctx, label); return v },
		"type":        func() string { return q.Type() },
		"name":        func() string { return q.Name() },
		"class":       func() string { return q.Class() },
		"proto":       func() string { return q.Proto() },
		"size":        func() int { return q.Req.Len() },
		"client_ip":   func() string { return q.Remote().Addr().String() },
		"port":        func() string { return strconv.Itoa(int(q.Remote().Port())) },
		"id":          func() int { return int(q.Req.Id) },
		"opcode":      func() int { return q.Req.Opcode },
		"do":          func() bool { return q.Do() },
		"bufsize":     func() int { return q.Size() },
		"server_ip":   func() string { return q.Local().Addr().String() },
		"server_port": func() string { return strconv.Itoa(int(q.Local().Port())) },
	}
}

// With returns the environment with more in it.
func (e Env) With(more Env) Env {
	all := maps.Clone(e)
	maps.Copy(all, more)
	return all
}

func inCIDR(ip, cidr string) (bool, error) {
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return false, errors.New("first argument is not an IP address")
	}
	p, err := netip.ParsePrefix(cidr)
	if err != nil {
		return false, err
	}
	return p.Contains(a.WithZone("").Unmap()), nil
}

// Program is a compiled expression.
type Program struct {
	program *vm.Program
	text    string
}

// Compile checks text against the names in env. The error points at t.
func Compile(t corefile.Token, text string, env Env) (*Program, error) {
	p, err := expr.Compile(text, expr.Env(map[string]any(env)), expr.DisableBuiltin("type"))
	if err != nil {
		return nil, corefile.Errorf(t, "expression %q: %s", text, firstLine(err))
	}
	return &Program{p, text}, nil
}

// firstLine is the error without the drawing of where it is.
func firstLine(err error) string {
	text := err.Error()
	for i := range len(text) {
		if text[i] == '\n' {
			return text[:i]
		}
	}
	return text
}

// Run returns the value of the expression.
func (p *Program) Run(env Env) (any, error) {
	v, err := expr.Run(p.program, map[string]any(env))
	if err != nil {
		return nil, fmt.Errorf("expression %q: %s", p.text, firstLine(err))
	}
	return v, nil
}

// Zero is a value of the expression's type, so that others can be compiled
// that use its value under a name; nil when the type shows only when it runs.
func (p *Program) Zero() any {
	if t := p.program.Node().Type(); t != nil && t.Kind() != reflect.Interface {
		return reflect.Zero(t).Interface()
	}
	return nil
}

// True tells whether the value is true; any other value and an error are not.
func (p *Program) True(env Env) bool {
	v, err := p.Run(env)
	b, ok := v.(bool)
	return err == nil && ok && b
}
