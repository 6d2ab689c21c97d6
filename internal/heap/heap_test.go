package heap

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

const mb = 1 << 20

func TestPercent(t *testing.T) {
	for _, test := range []struct {
		live uint64
		want int
	}{{0, 3100}, {4 * mb, 700}, {16 * mb, 100}, {40 * mb, 40}, {400 * mb, 40}} {
		s := state{percent: 100}
		s.grow(test.live, 32*mb)
		if s.percent != test.want {
			t.Errorf("live %d MB: %d%%, want %d%%", test.live/mb, s.percent, test.want)
		}
	}
	s := state{percent: 100}
	if s.grow(15*mb, 32*mb); s.percent != 100 {
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
		if got := s.idle(look.allocated); got != look.want {
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

// A heap that grows fast between two periods is collected in time: what it may
// grow to follows each collection.
func TestFollowsCollections(t *testing.T) {
	before := debug.SetGCPercent(100)
	t.Cleanup(func() { debug.SetGCPercent(before) })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); tune(ctx, 64*mb, time.Hour) }()
	defer func() { cancel(); <-done }()
	percent := func() int {
		s := []metrics.Sample{{Name: "/gc/gogc:percent"}}
		metrics.Read(s)
		return int(s[0].Value.Uint64())
	}
	for deadline := time.Now().Add(time.Minute); percent() < 1000; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("a small heap may grow by %d%% only", percent())
		}
	}
	live := make([]byte, 100*mb)
	runtime.GC()
	for start := time.Now(); percent() > 100; time.Sleep(time.Millisecond) {
		if time.Since(start) > time.Minute {
			t.Fatalf("after a collection that left %d MB the heap may grow by %d%%", len(live)/mb, percent())
		}
		runtime.GC() // the finalizer runs after one, the look is at the one before
	}
	runtime.KeepAlive(live)
}
