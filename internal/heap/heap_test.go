package heap

import (
	"context"
	"runtime"
	"runtime/debug"
	"testing"
)

const mb = 1 << 20

func TestPercent(t *testing.T) {
	for _, test := range []struct {
		live uint64
		want int
	}{{0, 3100}, {4 * mb, 700}, {16 * mb, 100}, {40 * mb, 40}, {400 * mb, 40}} {
		s := state{percent: 100}
		s.next(test.live, 0, 32*mb)
		if s.percent != test.want {
			t.Errorf("live %d MB: %d%%, want %d%%", test.live/mb, s.percent, test.want)
		}
	}
	s := state{percent: 100}
	if s.next(15*mb, 0, 32*mb); s.percent != 100 {
		t.Errorf("a small change was followed: %d%%", s.percent)
	}
}

// Memory is given back once after each burst, not during it.
func TestGivesBack(t *testing.T) {
	s := state{percent: 100}
	for i, look := range []struct {
		allocated uint64
		want      bool
	}{{10 * mb, false}, {11 * mb, false}, {300 * mb, false}, {600 * mb, false}, {601 * mb, true}, {601 * mb, false}, {610 * mb, false}, {611 * mb, false}, {620 * mb, false}, {621 * mb, true}} {
		if got := s.next(5*mb, look.allocated, 32*mb); got != look.want {
			t.Errorf("look %d: %v", i, got)
		}
	}
}

func TestTuneRestores(t *testing.T) {
	t.Setenv("GOGC", "")
	runtime.GC()
	if live, allocated := read(); live == 0 || allocated == 0 {
		t.Fatal("the runtime does not say how large the heap is")
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
