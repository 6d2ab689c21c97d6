package agent

import (
	"context"
	"log/slog"
	"time"

	"github.com/rutter-project/rutter/internal/catalog"
)

// snapshotSpacing is the least time between two snapshots. Writing one costs
// O(everything), so the spacing also grows to 100 times what the last write
// took: at most 1 % of one core, however large the cluster.
const snapshotSpacing = 30 * time.Second

// keepSnapshot saves the catalogue to path while it changes, and once more
// when ctx ends.
func keepSnapshot(ctx context.Context, cat *catalog.Catalog, path string, log *slog.Logger) {
	select {
	case <-ctx.Done():
		return
	case <-cat.Synced():
	}
	sub := cat.Subscribe()
	defer sub.Close()
	save := func() time.Duration {
		start := time.Now()
		if err := cat.Save(path); err != nil {
			log.Warn("catalogue not saved; a restart without the API would start empty", "error", err)
		}
		return time.Since(start)
	}
	for {
		select {
		case <-ctx.Done():
			if cat.Stale() == 0 {
				save()
			}
			return
		case <-sub.C():
		}
		sub.Take()
		if cat.Stale() != 0 {
			continue // what was restored is on disk already
		}
		took := save()
		select {
		case <-ctx.Done():
			save()
			return
		case <-time.After(max(snapshotSpacing, 100*took)):
		}
	}
}
