// Package check tells whether a Corefile is valid and what it means, without
// opening a socket, starting anything or writing anywhere.
package check

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/server"
)

// Report is what there is to say about a Corefile.
type Report struct {
	File     string   `json:"file"`
	Valid    bool     `json:"valid"`
	Errors   []Error  `json:"errors,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
	// Hash is the SHA-512 that a running server logs and exports for this
	// configuration.
	Hash   string  `json:"sha512,omitempty"`
	Blocks []Block `json:"serverBlocks,omitempty"`
}

// Error is one mistake.
type Error struct {
	Text       string `json:"text"` // all of it, on one line
	File       string `json:"file,omitempty"`
	Line       int    `json:"line,omitempty"`
	Token      string `json:"token,omitempty"`
	Expected   string `json:"expected,omitempty"`
	Suggestion string `json:"suggestion,omitempty"`
}

// Block is one server block.
type Block struct {
	File      string   `json:"file"`
	Line      int      `json:"line"`
	Zones     []string `json:"zones"`
	Listeners []string `json:"listeners"` // "dns://:53"; an empty host is every address
	View      string   `json:"view,omitempty"`
	// Chain is the plugins that queries meet, in that order; Beside those that
	// shape the block or work next to it.
	Chain  []Plugin `json:"chain"`
	Beside []Plugin `json:"beside,omitempty"`
}

// Plugin is one plugin of a block.
type Plugin struct {
	Name   string `json:"name"`
	Lines  []int  `json:"lines"` // of its directives
	Effect string `json:"effect"`
	// Direct: queries can pass or be answered without the chain.
	Direct bool `json:"direct"`
}

// Check reads src as the Corefile of that name, with the plugins of order, and
// sets every server block up.
func Check(name string, src []byte, opts corefile.Options, order []plugin.Entry) *Report {
	r := &Report{File: name}
	warnings := &collector{}
	opts.Directives, opts.Missing = plugin.Names(order)
	opts.Warn = func(err error) { warnings.add(err.Error()) }
	blocks, err := corefile.Parse(name, src, opts)
	if err != nil {
		r.fail(err)
		return r
	}
	env := &plugin.Env{Log: slog.New(warnings), Registry: prometheus.NewRegistry(), Kept: memo()}
	shared := memo()
	for _, sb := range blocks {
		b, err := plugin.Build(env, sb, order, shared)
		if err != nil {
			r.fail(err)
			continue
		}
		r.Blocks = append(r.Blocks, describe(sb, b, order))
	}
	if len(r.Errors) == 0 {
		// What concerns several blocks, or only the server: schemes, listeners.
		quiet := slog.New(slog.DiscardHandler)
		if _, err := server.New(server.Config{Blocks: blocks, Plugins: order, Log: quiet}); err != nil {
			r.fail(err)
		}
	}
	r.Warnings = warnings.list()
	if r.Valid = len(r.Errors) == 0; r.Valid {
		r.Hash = corefile.Hash(blocks)
	}
	return r
}

// memo returns a function that makes the value of each key once.
func memo() func(key any, make func() any) any {
	values := make(map[any]any)
	return func(key any, make func() any) any {
		if _, ok := values[key]; !ok {
			values[key] = make()
		}
		return values[key]
	}
}

func (r *Report) fail(err error) {
	e := Error{Text: err.Error()}
	var at *corefile.Error
	if errors.As(err, &at) {
		e.File, e.Line, e.Token, e.Expected, e.Suggestion = at.File, at.Line, at.Token, at.Expected, at.Suggestion
	}
	r.Errors = append(r.Errors, e)
}

func describe(sb corefile.ServerBlock, b *plugin.Block, order []plugin.Entry) Block {
	out := Block{File: sb.Keys[0].Token.File, Line: sb.Keys[0].Token.Line, View: b.View, Zones: b.Zones}
	addrs := b.Bind
	if len(addrs) == 0 {
		addrs = []string{""}
	}
	for _, k := range sb.Keys {
		for _, a := range addrs {
			if strings.Contains(a, ":") {
				a = "[" + a + "]"
			}
			l := k.Scheme + "://" + a + ":" + k.Port
			if !slices.Contains(out.Listeners, l) {
				out.Listeners = append(out.Listeners, l)
			}
		}
	}
	lines := make(map[string][]int)
	for _, d := range sb.Directives {
		lines[d.Name.Text] = append(lines[d.Name.Text], d.Name.Line)
	}
	direct := b.Filter == nil // and as far as the plugins before let queries through; a view wants the whole message
	for _, e := range order {
		if len(lines[e.Name]) == 0 {
			continue
		}
		p := Plugin{Name: e.Name, Lines: lines[e.Name], Effect: e.Effect.String()}
		h := b.Handler(e.Name)
		if h == nil {
			out.Beside = append(out.Beside, p)
			continue
		}
		_, able := h.(plugin.Direct)
		direct = direct && (able || e.Effect.Transparent())
		p.Direct = direct
		out.Chain = append(out.Chain, p)
	}
	return out
}

// collector is a slog handler that keeps the texts of warnings and errors.
type collector struct {
	mu    sync.Mutex
	texts []string
}

func (c *collector) add(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.texts, text) {
		c.texts = append(c.texts, text)
	}
}

func (c *collector) list() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.texts)
}

// Enabled is for warnings and worse.
func (c *collector) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }

// Handle keeps the text.
func (c *collector) Handle(_ context.Context, r slog.Record) error {
	c.add(r.Message)
	return nil
}

// WithAttrs ignores the attributes.
func (c *collector) WithAttrs([]slog.Attr) slog.Handler { return c }

// WithGroup ignores the group.
func (c *collector) WithGroup(string) slog.Handler { return c }
