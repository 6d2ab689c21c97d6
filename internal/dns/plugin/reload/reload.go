// Package reload reads the Corefile again from time to time and, when it says
// something else, puts the new configuration in place of the running one.
package reload

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
)

const name = "reload"

const (
	defaultInterval = 30 * time.Second
	defaultJitter   = 15 * time.Second
	minInterval     = 2 * time.Second
	minJitter       = 1 * time.Second
)

// watcher is the one of a configuration, whichever blocks have the plugin.
type watcher struct {
	env              *plugin.Env
	log              *slog.Logger
	interval, jitter time.Duration
	started          bool
	failed           prometheus.Counter
	version          *prometheus.GaugeVec
}

type key struct{}

// loadedKey is for what was last put into service, kept over reloads.
type loadedKey struct{}

type loaded struct{ hash string }

// Setup reads: reload [INTERVAL] [JITTER]
//
// Of several lines the last one counts.
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	w := b.Shared(key{}, func() any { return newWatcher(b) }).(*watcher)
	for _, d := range lines {
		if err := w.parse(d); err != nil {
			return nil, err
		}
	}
	b.OnStart(w.start)
	return nil, nil
}

func newWatcher(b *plugin.Block) *watcher {
	return &watcher{
		env: b.Env, log: b.Log(name), interval: defaultInterval, jitter: defaultJitter,
		failed: plugin.Register(b.Env.Registry, prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "coredns", Subsystem: "reload", Name: "failed_total",
			Help: "Changed Corefiles that could not be put into service.",
		})),
		version: plugin.Register(b.Env.Registry, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "coredns", Subsystem: "reload", Name: "version_info",
			Help: "The hash of the running configuration, as a label; the value is always 1.",
		}, []string{"hash", "value"})),
	}
}

func (w *watcher) parse(d corefile.Directive) error {
	if err := d.Want(0, 2, "[INTERVAL] [JITTER]"); err != nil {
		return err
	}
	if err := d.NoBlock(); err != nil {
		return err
	}
	w.interval, w.jitter = defaultInterval, defaultJitter
	var err error
	if len(d.Args) > 0 {
		if w.interval, err = d.Args[0].DurationFrom(minInterval); err != nil {
			return err
		}
	}
	if len(d.Args) > 1 {
		if w.jitter, err = d.Args[1].Duration(); err != nil {
			return err
		}
		if w.jitter != 0 {
			if _, err = d.Args[1].DurationFrom(minJitter); err != nil {
				return err
			}
		}
	}
	w.jitter = min(w.jitter, w.interval/2)
	return nil
}

func (w *watcher) start(ctx context.Context) error {
	if w.started || w.env.Load == nil || w.env.Reload == nil {
		return nil
	}
	w.started = true
	// What runs is what this plugin's predecessor read, or else what the file
	// says now: it was read a moment ago.
	last := w.env.Kept(loadedKey{}, func() any { return new(loaded) }).(*loaded)
	running := last.hash
	last.hash = ""
	if running == "" {
		blocks, err := w.env.Load()
		if err != nil {
			w.log.Warn("Corefile cannot be read any more: " + err.Error())
		}
		running = corefile.Hash(blocks)
	}
	w.log.Info("Running configuration SHA512 = " + running)
	w.show(running)
	go w.watch(ctx, running, last) // ends with ctx, that is with the configuration
	return nil
}

func (w *watcher) show(running string) {
	w.version.Reset()
	w.version.WithLabelValues("sha512", running).Set(1)
}

func (w *watcher) watch(ctx context.Context, running string, last *loaded) {
	period := w.interval
	if w.jitter > 0 {
		period += rand.N(w.jitter) - w.jitter/2
	}
	tick := time.NewTicker(period)
	defer tick.Stop()
	refused := "" // a configuration that failed is not tried again until it changes
	said := ""    // what was logged of a file that cannot be read
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		blocks, err := w.env.Load()
		if err != nil {
			w.reloaded(err)
			if text := err.Error(); text != said {
				w.log.Warn("Corefile is not loaded, the old configuration keeps running: " + text)
				said = text
			}
			continue
		}
		said = ""
		hash := corefile.Hash(blocks)
		if hash == running {
			refused = ""
			w.reloaded(nil)
			continue
		}
		if hash == refused {
			continue
		}
		last.hash = hash
		if err := w.env.Reload(blocks); err != nil {
			last.hash = ""
			refused = hash
			w.failed.Inc()
			w.reloaded(err)
			w.show(running) // the new one may have shown itself already
			w.log.Error("Corefile changed but reload failed, the old configuration keeps running: " + err.Error())
			continue
		}
		w.reloaded(nil)
		return // the new configuration has a watcher of its own
	}
}

func (w *watcher) reloaded(err error) {
	if w.env.Reloaded != nil {
		w.env.Reloaded(err)
	}
}
