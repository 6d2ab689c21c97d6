package hosts

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rutter-project/rutter/internal/dns/plugin"
)

// source keeps a table as the file and the inline entries say.
type source struct {
	path    string
	inline  []byte
	zones   plugin.Zones
	reverse bool
	every   time.Duration // 0: the file is read once
	put     func(*table)
	log     *slog.Logger
	metrics *metrics

	modified time.Time // of the file that was read last
	size     int64
}

// start reads the file and goes on watching it until ctx ends.
func (s *source) start(ctx context.Context) error {
	s.load(true)
	if s.every > 0 {
		go s.watch(ctx) // ends with the configuration
	}
	return nil
}

func (s *source) watch(ctx context.Context) {
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.load(false)
		}
	}
}

// load reads the file if it is not as it was read last. A file that has gone
// leaves the table as it is.
func (s *source) load(first bool) {
	info, err := os.Stat(s.path)
	switch {
	case err == nil && info.IsDir():
		err = fmt.Errorf("%s is a directory", s.path)
	case err == nil && !first && info.ModTime().Equal(s.modified) && info.Size() == s.size:
		return
	}
	var file []byte
	if err == nil {
		file, err = os.ReadFile(s.path)
	}
	if err != nil {
		if !first {
			return
		}
		if errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("hosts file " + s.path + " does not exist; it will be read when it does")
		} else {
			s.log.Warn("hosts file: " + err.Error())
		}
	} else {
		s.modified, s.size = info.ModTime(), info.Size()
	}
	t := newTable()
	t.add(file, s.zones, s.reverse)
	t.add(s.inline, s.zones, s.reverse)
	s.put(t)
	s.metrics.entries.WithLabelValues(s.path).Set(float64(t.entries))
	if err == nil {
		s.metrics.read.Set(float64(info.ModTime().UnixNano()) / 1e9)
	}
}

// metrics keep CoreDNS's names and labels.
type metrics struct {
	entries *prometheus.GaugeVec // hostsfile
	read    prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) *metrics {
	return &metrics{
		entries: plugin.Register(r, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "coredns", Subsystem: "hosts", Name: "entries",
			Help: "Entries of the hosts file and the Corefile together.",
		}, []string{"hostsfile"})),
		read: plugin.Register(r, prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "coredns", Subsystem: "hosts", Name: "reload_timestamp_seconds",
			Help: "Modification time of the hosts file that was read last.",
		})),
	}
}
