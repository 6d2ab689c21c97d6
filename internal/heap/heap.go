// Package heap suits the garbage collector to a server: busy, it lets a small
// heap grow before it collects; idle, it gives memory back.
//
// Go collects when the heap has doubled. A server with 5 MB of data and 100
// MB/s of garbage then collects twenty times a second, which costs a quarter of
// its CPU time and shrinks its stacks just before they grow again. Nobody
// counts a heap of some tens of MB, so let it grow to a floor first. A large
// heap on the other hand need not double.
package heap

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	period = 5 * time.Second
	// least is how much a heap beyond the floor may grow, in percent: at 40
	// MB of data and 50 MB/s of garbage two to three collections a second.
	least = 40
	// idle is the garbage per period below which a server has nothing to do,
	// or answers without making any.
	idle = 2 << 20
	// worthwhile is the garbage since memory was last given back that makes
	// another collection for its sake worth its work.
	worthwhile = 16 << 20
)

// Tune lets the heap grow to floor bytes between collections, or by 40 percent
// if it is larger, and gives memory back after a burst, until ctx ends. It
// does nothing when GOGC is set.
func Tune(ctx context.Context, floor uint64) {
	if os.Getenv("GOGC") == "" {
		tune(ctx, floor, period)
	}
}

func tune(ctx context.Context, floor uint64, period time.Duration) {
	t := time.NewTicker(period)
	defer t.Stop()
	defer debug.SetGCPercent(100)
	s := state{percent: 100}
	collected := afterCollections(ctx)
	for {
		was := s.percent
		live, _ := read()
		s.grow(live, floor)
		if s.percent != was {
			debug.SetGCPercent(s.percent) // stops the world, if briefly
		}
		select {
		case <-ctx.Done():
			return
		case <-collected: // the heap may have grown much since the last look
		case <-t.C:
			if _, allocated := read(); s.idle(allocated) {
				debug.FreeOSMemory()
			}
		}
	}
}

// afterCollections returns a channel that has something after each collection
// of garbage until ctx ends. Objects that nothing refers to are finalized then;
// each makes the next.
func afterCollections(ctx context.Context) <-chan struct{} {
	type sentinel struct{ _ *byte } // no tiny object, which may share its block and live on
	collected := make(chan struct{}, 1)
	var watch func(*sentinel)
	watch = func(*sentinel) {
		if ctx.Err() != nil {
			return
		}
		select {
		case collected <- struct{}{}:
		default:
		}
		runtime.SetFinalizer(new(sentinel), watch)
	}
	runtime.SetFinalizer(new(sentinel), watch)
	return collected
}

// state is what one look at the heap leaves for the next.
type state struct {
	percent   int
	allocated uint64 // in all, at the last look
	freed     uint64 // allocated when memory was last given back
}

// grow decides how much the heap may grow beyond what is live.
func (s *state) grow(live, floor uint64) {
	live = max(live, floor/32) // a start with nothing yet says little
	if want := max(least, int(100*floor/live)-100); want > s.percent*5/4 || want < s.percent*4/5 {
		s.percent = want
	}
}

// idle tells, once per period, whether to give memory back now.
func (s *state) idle(allocated uint64) (free bool) {
	free = allocated-s.allocated < idle && allocated-s.freed > worthwhile
	s.allocated = allocated
	if free {
		s.freed = allocated
	}
	return free
}

// read returns what the last collection left, and all that was ever allocated.
func read() (live, allocated uint64) {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64(), s[1].Value.Uint64()
}
