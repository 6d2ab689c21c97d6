// Package logging makes the registry's log, and leads the logs of the
// libraries inside it (klog, zap, grpc) into that one.
//
// The libraries write for operators of a control plane of many processes. A
// registry's operator wants a few lines that say what it waits for. So:
// library errors are shown unless they are listed as harmless, with the
// reason; everything else from libraries is shown with --log-level=debug only.
package logging

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"

	"google.golang.org/grpc/grpclog"
	"k8s.io/klog/v2"
)

// New makes the log.
func New(w io.Writer, level slog.Level, format string) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// Adopt leads the process-wide logs of libraries into l. It must run before
// the first library logs: klog's logger is not guarded against later changes.
// The caller calls stopping when the process is about to stop: from then on
// libraries report what they can no longer reach, and none of it matters.
func Adopt(l *slog.Logger) (stopping func()) {
	var stops atomic.Bool
	slog.SetLogLoggerLevel(slog.LevelDebug) // package log has no levels; what still uses it is not for operators
	slog.SetDefault(l)
	klog.SetSlogLogger(slog.New(library{l.With("from", "kubernetes").Handler(), kubernetesHarmless, &stops}))
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard)) // every failure it reports is also returned to the caller
	return func() { stops.Store(true) }
}

// library is the handler between a library and the log.
type library struct {
	slog.Handler
	harmless []string
	stopping *atomic.Bool
}

func (h library) Enabled(ctx context.Context, level slog.Level) bool {
	switch {
	case level >= slog.LevelError:
		return true
	case level < slog.LevelInfo:
		return false // logr turns klog's V(n) into level -n: more than even debug wants
	}
	return h.Handler.Enabled(ctx, slog.LevelDebug)
}

func (h library) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelError || h.stopping.Load() || h.isHarmless(r) {
		r.Level = slog.LevelDebug
		if !h.Handler.Enabled(ctx, r.Level) {
			return nil
		}
	}
	return h.Handler.Handle(ctx, r)
}

func (h library) isHarmless(r slog.Record) bool {
	if anyIn(r.Message, h.harmless) {
		return true
	}
	found := false
	r.Attrs(func(a slog.Attr) bool {
		found = (a.Key == "err" || a.Key == "error") && anyIn(a.Value.String(), h.harmless)
		return !found
	})
	return found
}

func (h library) WithAttrs(a []slog.Attr) slog.Handler {
	return library{h.Handler.WithAttrs(a), h.harmless, h.stopping}
}

func (h library) WithGroup(g string) slog.Handler {
	return library{h.Handler.WithGroup(g), h.harmless, h.stopping}
}

func anyIn(s string, subs []string) bool {
	for _, sub := range subs {
		if strings.Contains(s, sub) {
			return true
		}
	}
	return false
}

// kubernetesHarmless lists parts of error messages that a healthy registry
// produces, each with the reason why it does not matter.
var kubernetesHarmless = []string{
	// The lease reconciler reports the endpoint that a killed predecessor
	// left behind (pkg/controlplane/controller/kubernetesservice, Start).
	"Found stale data, removed previous endpoints on kubernetes service",
	// Start removes endpoints that a first start never had.
	"Error removing old endpoints from kubernetes service",
	// No manifest of allowed metric labels is given, on purpose
	// (k8s.io/component-base/metrics, SetLabelAllowListFromManifest).
	"The manifest file is empty, ignoring.",
	// Watches and requests whose other end went away.
	"context canceled",
	"http2: server connection lost",
	"use of closed network connection",
	// Controllers retry after a conflict; the retry decides.
	"the object has been modified; please apply your changes to the latest version and try again",
}
