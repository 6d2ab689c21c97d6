// Package errors logs the errors that the plugins after it return.
package errors

import (
	"context"
	"log/slog"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
)

const name = "errors"

type handler struct {
	next     plugin.Handler
	log      *slog.Logger
	stack    bool
	patterns []*pattern
}

// pattern is a consolidate line: errors that match are counted for a period
// instead of logged one by one.
type pattern struct {
	period    time.Duration
	re        *regexp.Regexp
	level     slog.Level
	showFirst bool

	mu    sync.Mutex
	open  bool        // between start and shutdown; else errors are logged as they come
	count int         // in the running period; 0 when none runs
	timer *time.Timer // ends the running period
}

func (h *handler) Name() string { return name }

func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	if h.stack {
		defer h.logPanic()
	}
	rcode, err := plugin.NextOrFailure(name, h.next, ctx, w, r)
	if err == nil {
		return rcode, nil
	}
	text := err.Error()
	for _, p := range h.patterns {
		if p.re.MatchString(text) {
			if p.add(h.log) {
				h.write(p.level, rcode, w, r, text)
			}
			return rcode, err
		}
	}
	h.write(slog.LevelError, rcode, w, r, text)
	return rcode, err
}

// write logs one error in CoreDNS's form: "2 example.org. A: i/o timeout".
func (h *handler) write(level slog.Level, rcode int, w dns.ResponseWriter, r *dns.Msg, text string) {
	q := plugin.Request{W: w, Req: r}
	h.log.Log(context.Background(), level, strconv.Itoa(rcode)+" "+q.Name()+" "+q.Type()+": "+text)
}

// logPanic adds the stack to a panic that the server will recover from.
func (h *handler) logPanic() {
	if p := recover(); p != nil {
		h.log.Error("stack of a panic:\n" + strings.TrimSpace(string(debug.Stack())))
		panic(p)
	}
}

// add counts one error and tells whether it must be logged by itself.
func (p *pattern) add(log *slog.Logger) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.open {
		return true
	}
	if p.count++; p.count > 1 {
		return false
	}
	p.timer = time.AfterFunc(p.period, func() { p.flush(log) })
	return p.showFirst
}

// flush ends the running period.
func (p *pattern) flush(log *slog.Logger) {
	p.mu.Lock()
	n := p.count
	p.count = 0
	p.mu.Unlock()
	if n == 0 || n == 1 && p.showFirst {
		return
	}
	log.Log(context.Background(), p.level, strconv.Itoa(n)+" errors like '"+p.re.String()+"' occurred in last "+p.period.String())
}

func (h *handler) open() {
	for _, p := range h.patterns {
		p.mu.Lock()
		p.open = true
		p.mu.Unlock()
	}
}

// close logs what was counted and counts no more.
func (h *handler) close() {
	for _, p := range h.patterns {
		p.mu.Lock()
		p.open = false
		if p.timer != nil {
			p.timer.Stop()
		}
		p.mu.Unlock()
		p.flush(h.log)
	}
}
