// Package heap keeps the garbage collector from working hard on a small heap.
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
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	period = 5 * time.Second
	// least is how much a heap beyond the floor may grow, in percent: at 40
	// MB of data and 50 MB/s of garbage two to three collections a second.
	least = 40
)

// Tune lets the heap grow to floor bytes between collections, or by 40 percent
// if it is larger, until ctx ends. It does nothing when GOGC is set.
func Tune(ctx context.Context, floor uint64) {
	if os.Getenv("GOGC") != "" {
		return
	}
	was := 100
	t := time.NewTicker(period)
	defer t.Stop()
	for {
		if now := percent(live(), floor); now > was*5/4 || now < was*4/5 {
			debug.SetGCPercent(now)
			was = now
		}
		select {
		case <-ctx.Done():
			debug.SetGCPercent(100)
			return
		case <-t.C:
		}
	}
}

// percent is the growth that makes the heap reach the floor.
func percent(live, floor uint64) int {
	live = max(live, floor/32) // a start with nothing yet says little
	return max(least, int(100*floor/live)-100)
}

// live is what the last collection left.
func live() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	if s[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return s[0].Value.Uint64()
}
