// Package corelog writes log lines as CoreDNS does, which log collectors and
// people's eyes are used to: "[INFO] plugin/kubernetes: text".
package corelog

import (
	"context"
	"io"
	"log/slog"
	"sync"
)

// Handler is a slog.Handler. The attribute "plugin" becomes the prefix, others
// follow the text as key=value.
type Handler struct {
	mu     *sync.Mutex
	w      io.Writer
	level  slog.Leveler
	plugin string
	attrs  []slog.Attr
	group  string
}

// New returns a handler that writes lines of the level and above to w.
func New(w io.Writer, level slog.Leveler) *Handler {
	return &Handler{mu: new(sync.Mutex), w: w, level: level}
}

// Enabled compares with the least level.
func (h *Handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

// Handle writes one line.
func (h *Handler) Handle(_ context.Context, r slog.Record) error {
	b := make([]byte, 0, 256)
	switch {
	case r.Level >= slog.LevelError:
		b = append(b, "[ERROR] "...)
	case r.Level >= slog.LevelWarn:
		b = append(b, "[WARNING] "...)
	case r.Level >= slog.LevelInfo:
		b = append(b, "[INFO] "...)
	default:
		b = append(b, "[DEBUG] "...)
	}
	plugin := h.plugin
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "plugin" && plugin == "" {
			plugin = a.Value.String()
		}
		return true
	})
	if plugin != "" {
		b = append(b, "plugin/"...)
		b = append(b, plugin...)
		b = append(b, ": "...)
	}
	b = append(b, r.Message...)
	for _, a := range h.attrs {
		b = appendAttr(b, h.group, a)
	}
	r.Attrs(func(a slog.Attr) bool {
		if a.Key != "plugin" {
			b = appendAttr(b, h.group, a)
		}
		return true
	})
	b = append(b, '\n')
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := h.w.Write(b)
	return err
}

func appendAttr(b []byte, group string, a slog.Attr) []byte {
	if a.Equal(slog.Attr{}) {
		return b
	}
	b = append(b, ' ')
	b = append(b, group...)
	b = append(b, a.Key...)
	b = append(b, '=')
	return append(b, a.Value.Resolve().String()...)
}

// WithAttrs returns a handler that adds attrs to each line.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.attrs = c.attrs[:len(c.attrs):len(c.attrs)]
	for _, a := range attrs {
		if a.Key == "plugin" {
			c.plugin = a.Value.String()
		} else {
			c.attrs = append(c.attrs, a)
		}
	}
	return &c
}

// WithGroup puts the name before the keys that follow.
func (h *Handler) WithGroup(name string) slog.Handler {
	c := *h
	c.group += name + "."
	return &c
}
