package errors

import (
	"context"
	"log/slog"
	"time"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
)

// Setup reads:
//
//	errors [stdout] {
//	    stacktrace
//	    consolidate DURATION REGEXP [LEVEL] [show_first]
//	}
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	if err := plugin.Once(lines); err != nil {
		return nil, err
	}
	h := &handler{log: b.Log(name)}
	d := lines[0]
	if err := d.Want(0, 1, "nothing, or stdout"); err != nil {
		return nil, err
	}
	if len(d.Args) == 1 && d.Args[0].Text != "stdout" {
		e := corefile.Errorf(d.Args[0], "errors cannot be written to %q", d.Args[0].Text)
		e.Expected = "nothing, or stdout"
		return nil, e
	}
	for _, p := range d.Block {
		switch p.Name.Text {
		case "stacktrace":
			if err := p.Flag(); err != nil {
				return nil, err
			}
			h.stack = true
		case "consolidate":
			c, err := consolidation(p)
			if err != nil {
				return nil, err
			}
			h.patterns = append(h.patterns, c)
		default:
			return nil, corefile.Unknown("property of errors", p.Name, "consolidate", "stacktrace")
		}
	}
	b.OnStart(func(context.Context) error { h.open(); return nil })
	b.OnShutdown(func() error { h.close(); return nil })
	return func(next plugin.Handler) plugin.Handler {
		h.next = next
		return h
	}, nil
}

var levels = map[string]slog.Level{
	"debug":   slog.LevelDebug,
	"info":    slog.LevelInfo,
	"warning": slog.LevelWarn,
	"error":   slog.LevelError,
}

func consolidation(p corefile.Directive) (*pattern, error) {
	const want = "DURATION REGEXP [warning|error|info|debug] [show_first]"
	if err := p.Want(2, 4, want); err != nil {
		return nil, err
	}
	period, err := p.Args[0].DurationFrom(time.Nanosecond)
	if err != nil {
		return nil, err
	}
	re, err := p.Args[1].Regexp()
	if err != nil {
		return nil, err
	}
	c := &pattern{period: period, re: re, level: slog.LevelError}
	rest := p.Args[2:]
	if len(rest) > 0 {
		if level, ok := levels[rest[0].Text]; ok {
			c.level = level
			rest = rest[1:]
		}
	}
	if len(rest) > 0 && rest[0].Text == "show_first" {
		c.showFirst = true
		rest = rest[1:]
	}
	if len(rest) > 0 {
		e := corefile.Unknown("word after the regular expression", rest[0], "debug", "info", "warning", "error", "show_first")
		if c.showFirst {
			e = corefile.Errorf(rest[0], "%q stands after show_first", rest[0].Text)
			e.Expected = "the level before show_first"
		}
		return nil, e
	}
	return c, nil
}
