package corelog

import (
	"bytes"
	"errors"
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLines(t *testing.T) {
	var out bytes.Buffer
	level := new(slog.LevelVar)
	log := slog.New(New(&out, level))
	log.Info("text")
	log.Warn("text", "plugin", "forward", "to", "10.0.0.1:53")
	plugin := log.With("plugin", "kubernetes", "zone", "a b")
	plugin.Error("failed", "error", errors.New("no route"), slog.Attr{})
	plugin.WithGroup("g").Info("grouped", "k", 1)
	log.Debug("not shown")
	level.Set(slog.LevelDebug)
	log.Debug("shown")
	want := `[INFO] text
[WARNING] plugin/forward: text to=10.0.0.1:53
[ERROR] plugin/kubernetes: failed zone=a b error=no route
[INFO] plugin/kubernetes: grouped g.zone=a b g.k=1
[DEBUG] shown
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}
