package logging

import (
	"context"
	"log/slog"

	"go.uber.org/zap/zapcore"
)

// zapCore writes zap entries to a slog handler.
type zapCore struct {
	h slog.Handler
	// quiet holds back everything below debug; etcd reports its start-up
	// failures twice, once as log lines and once as the error or the fatal
	// entry that is explained to the user.
	quiet func() bool
}

// ZapCore is the core for a library that logs with zap. While quiet returns
// true its errors are shown at debug level only.
func ZapCore(l *slog.Logger, quiet func() bool) zapcore.Core {
	return zapCore{l.Handler(), quiet}
}

// etcdHarmless is kubernetesHarmless for etcd.
var etcdHarmless = []string{
	// A first start has no raft term to record yet; the monitor tries again
	// every few seconds (etcdserver/version/monitor.go).
	"failed to update storage version",
}

func (c zapCore) level(l zapcore.Level, message string) slog.Level {
	if l >= zapcore.ErrorLevel && !c.quiet() && !anyIn(message, etcdHarmless) {
		return slog.LevelError
	}
	return slog.LevelDebug
}

func (c zapCore) Enabled(l zapcore.Level) bool {
	return l >= zapcore.InfoLevel && c.h.Enabled(context.Background(), c.level(l, ""))
}

func (c zapCore) With(fields []zapcore.Field) zapcore.Core {
	return zapCore{c.h.WithAttrs(attrs(fields)), c.quiet}
}

func (c zapCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c zapCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := c.level(e.Level, e.Message)
	if !c.h.Enabled(context.Background(), level) {
		return nil
	}
	r := slog.NewRecord(e.Time, level, e.Message, 0)
	r.AddAttrs(attrs(fields)...)
	return c.h.Handle(context.Background(), r)
}

func (zapCore) Sync() error { return nil }

func attrs(fields []zapcore.Field) []slog.Attr {
	enc := zapcore.NewMapObjectEncoder()
	out := make([]slog.Attr, 0, len(fields))
	for _, f := range fields {
		f.AddTo(enc)
		if v, ok := enc.Fields[f.Key]; ok {
			out = append(out, slog.Any(f.Key, v))
		}
	}
	return out
}
