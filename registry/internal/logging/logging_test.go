package logging

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"go.uber.org/zap"
	"k8s.io/klog/v2"
)

// TestLibraries: what of a library's log is shown at which level.
func TestLibraries(t *testing.T) {
	for _, tc := range []struct {
		say         func()
		info, debug string // the level it appears with, "" for not at all
	}{
		{func() { klog.Info("hello") }, "", "DEBUG"},
		{func() { klog.V(2).Info("hello") }, "", ""},
		{func() { klog.Warning("hello") }, "", "DEBUG"},
		{func() { klog.Error("hello") }, "ERROR", "ERROR"},
		{func() { klog.ErrorS(errors.New("no"), "hello") }, "ERROR", "ERROR"},
		{func() { klog.ErrorS(errors.New("context canceled"), "hello") }, "", "DEBUG"},
		{func() { klog.Error("The manifest file is empty, ignoring. hello") }, "", "DEBUG"},
		{func() { klog.FromContext(t.Context()).Error(nil, "hello") }, "ERROR", "ERROR"},
	} {
		for level, want := range map[slog.Level]string{slog.LevelInfo: tc.info, slog.LevelDebug: tc.debug} {
			var b bytes.Buffer
			Adopt(New(&b, level, "text"))
			tc.say()
			check(t, b.String(), level, want)
		}
	}
}

// TestStopping: a library's errors while stopping are for debugging only.
func TestStopping(t *testing.T) {
	for level, want := range map[slog.Level]string{slog.LevelInfo: "", slog.LevelDebug: "DEBUG"} {
		var b bytes.Buffer
		Adopt(New(&b, level, "text"))()
		klog.Error("hello")
		check(t, b.String(), level, want)
	}
}

func TestZap(t *testing.T) {
	quiet := false
	for _, tc := range []struct {
		say         func(*zap.Logger)
		quiet       bool
		info, debug string
	}{
		{func(l *zap.Logger) { l.Debug("hello") }, false, "", ""},
		{func(l *zap.Logger) { l.Info("hello") }, false, "", "DEBUG"},
		{func(l *zap.Logger) { l.Warn("hello") }, false, "", "DEBUG"},
		{func(l *zap.Logger) { l.Error("hello", zap.Int("n", 1)) }, false, "ERROR", "ERROR"},
		{func(l *zap.Logger) { l.With(zap.String("a", "b")).Error("hello") }, false, "ERROR", "ERROR"},
		{func(l *zap.Logger) { l.Error("hello") }, true, "", "DEBUG"},
		{func(l *zap.Logger) { l.Error("failed to update storage version hello") }, false, "", "DEBUG"},
	} {
		for level, want := range map[slog.Level]string{slog.LevelInfo: tc.info, slog.LevelDebug: tc.debug} {
			var b bytes.Buffer
			quiet = tc.quiet
			tc.say(zap.New(ZapCore(New(&b, level, "text"), func() bool { return quiet })))
			check(t, b.String(), level, want)
		}
	}
}

func check(t *testing.T, got string, level slog.Level, want string) {
	t.Helper()
	if want == "" {
		if got != "" {
			t.Errorf("at %v: %q, want nothing", level, got)
		}
		return
	}
	if !strings.Contains(got, "level="+want) || !strings.Contains(got, "hello") || strings.Count(got, "\n") != 1 {
		t.Errorf("at %v: %q, want one line at %s", level, got, want)
	}
}
