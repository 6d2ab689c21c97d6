package heap

import (
	"context"
	"runtime"
	"runtime/debug"
	"testing"
)

func TestPercent(t *testing.T) {
	const mb = 1 << 20
	for _, test := range []struct {
		live uint64
		want int
	}{{0, 3100}, {4 * mb, 1100}, {24 * mb, 100}, {40 * mb, 40}, {400 * mb, 40}} {
		if got := percent(test.live, 48*mb); got != test.want {
			t.Errorf("live %d MB: %d%%, want %d%%", test.live/mb, got, test.want)
		}
	}
}

func TestTuneSetsAndRestores(t *testing.T) {
	t.Setenv("GOGC", "")
	runtime.GC()
	if live() == 0 {
		t.Fatal("the runtime does not say how large the live heap is")
	}
	before := debug.SetGCPercent(100)
	t.Cleanup(func() { debug.SetGCPercent(before) })
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // one round, then the end
	Tune(ctx, 1<<30)
	if now := debug.SetGCPercent(100); now != 100 {
		t.Errorf("left at %d%%", now)
	}
}
