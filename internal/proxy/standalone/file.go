package standalone

import (
	"context"
	"errors"
	"os"
	"reflect"
	"slices"
	"time"

	"github.com/rutter-project/rutter/internal/proxy"
	"github.com/rutter-project/rutter/internal/proxy/config"
)

// ErrChanged ends Run when the configuration file has other content than it
// was started with. Whoever supervises the process starts it again.
var ErrChanged = errors.New("the configuration file changed: ending, to be started again with the new content")

// FollowFile watches the configuration file. A change of the mode is put into
// force by the process that runs, so that connections which need it go on; it
// returns true when another change asks for a new start, and false when ctx is
// done. With a file that is wrong things stay as they are.
func FollowFile(ctx context.Context, o Options, p *proxy.Proxy) (restart bool) {
	now := *o.Config
	WatchFile(ctx, o.File, func() bool {
		next, _, err := o.Load()
		switch {
		case err != nil:
			o.Log.Error("the configuration file changed and is wrong: the former content stays in force", "err", err)
		case reflect.DeepEqual(*next, now):
		case !onlyMode(now, *next):
			restart = true
		default:
			if err := p.Switch(ctx, next.Proxy()); err != nil {
				o.Log.Error("the mode cannot be changed", "err", err)
				return true
			}
			now = *next
		}
		return !restart
	})
	return restart
}

// onlyMode tells whether two configurations differ in the mode, and at most in
// the modes' options besides.
func onlyMode(a, b config.Config) bool {
	if a.Mode == b.Mode {
		return false
	}
	a.Mode, a.IPTables, a.IPVS, a.NFTables, a.NodePortAddresses = b.Mode, b.IPTables, b.IPVS, b.NFTables, b.NodePortAddresses
	return reflect.DeepEqual(a, b)
}

// How often a file is looked at. Looking at its content, not at events of its
// inode, also sees a ConfigMap volume's symbolic link being swapped.
const fileEvery = 2 * time.Second

// WatchFile calls changed each time the file's content is another, until that
// returns false or ctx is done. A file that is gone for a while has not
// changed.
func WatchFile(ctx context.Context, path string, changed func() (more bool)) {
	last, _ := os.ReadFile(path)
	tick := time.NewTicker(fileEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			now, err := os.ReadFile(path)
			if err != nil || len(now) == 0 || slices.Equal(now, last) {
				continue
			}
			if last = now; !changed() {
				return
			}
		}
	}
}
