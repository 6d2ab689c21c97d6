package etcd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rutter-project/rutter/registry/internal/logging"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Embedded is the etcd inside this process.
type Embedded struct {
	etcd *embed.Etcd
	dir  string
	log  *slog.Logger
}

// startTime bounds the wait for a member to replay its log.
const startTime = 2 * time.Minute

// closeTime bounds Close. Everything acknowledged is in the write-ahead log
// and synced; what a longer wait would gain is a shorter replay.
const closeTime = 3 * time.Second

// StartEmbedded runs etcd on a unix socket; no TCP port is opened. fatal is
// called, from any goroutine, when etcd finds that it cannot go on; it must
// not return. etcd does that by zap's Fatal and Panic, also long after start.
func StartEmbedded(ctx context.Context, dir, socket string, log *slog.Logger, fatal func(error)) (*Embedded, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making etcd's directory: %w", err)
	}
	if err := inspect(dir); err != nil {
		return nil, unusable(dir, err.Error())
	}
	// The lock on the data directory says that nobody listens there.
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("removing the socket of a previous run: %w", err)
	}
	var ready atomic.Bool
	hook := fatalHook{dir: dir, ready: &ready, fatal: fatal}
	core := logging.ZapCore(log.With("from", "etcd"), func() bool { return !ready.Load() })

	c := embed.NewConfig()
	c.Name = "rutter"
	c.Dir = dir
	c.ListenClientUrls = []url.URL{{Scheme: "unix", Path: socket}}
	c.ListenPeerUrls = nil
	// Advertised URLs must have a host and a port; with one member nobody
	// ever dials them and nothing listens there.
	c.AdvertiseClientUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:2379"}}
	c.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:2380"}}
	c.InitialCluster = c.Name + "=" + c.AdvertisePeerUrls[0].String()
	// A lone member has nobody to lose an election to, so a short election
	// time costs nothing and it leads sooner; but each tick wakes the process.
	// Measured: 100/1000 ms (the default) ready after 0.8 s, 1.0 % of a
	// processor idle; 10/100 ms after 0.1 s, 2.0 %; 50/250 ms after 0.1 to
	// 0.2 s, 1.1 %.
	c.TickMs, c.ElectionMs = 50, 250
	// Give space back at a start after much was deleted (etcd documents
	// --bootstrap-defrag-threshold-megabytes); there is no operator to do it.
	c.BootstrapDefragThresholdMegabytes = 100
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(core, zap.WithFatalHook(hook), zap.WithPanicHook(hook)))

	e, err := embed.StartEtcd(c)
	if err != nil {
		return nil, unusable(dir, err.Error())
	}
	em := &Embedded{etcd: e, dir: dir, log: log}
	timeout := time.NewTimer(startTime)
	defer timeout.Stop()
	tell := time.NewTicker(5 * time.Second)
	defer tell.Stop()
	for began := time.Now(); ; {
		select {
		case <-e.Server.ReadyNotify():
			ready.Store(true)
			return em, nil
		case err := <-e.Err():
			em.Close()
			return nil, unusable(dir, err.Error())
		case <-ctx.Done():
			em.Close()
			return nil, ctx.Err()
		case <-timeout.C:
			em.Close()
			return nil, unusable(dir, fmt.Sprintf("it did not become ready within %v", startTime))
		case <-tell.C:
			log.Info("still waiting for etcd to replay its log", "after", time.Since(began).Round(time.Second))
		}
	}
}

// Store is how to reach it.
func (e *Embedded) Store() Store {
	u := e.etcd.Config().ListenClientUrls[0]
	return Store{Endpoints: []string{u.String()}, Prefix: "/registry", Where: e.dir}
}

// Err yields an error if etcd ends by itself.
func (e *Embedded) Err() <-chan error { return e.etcd.Err() }

// Close stops etcd: the raft loop ends, the database is committed and the
// files are closed. It does not close the gRPC server first, as embed's Close
// does: that waits for streams which the API server's storage leaves open, up
// to the request timeout of more than 5 s (embed, stopServers). The caller
// ends the process after Close.
func (e *Embedded) Close() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.etcd.Server.Stop()
	}()
	select {
	case <-done:
		os.Remove(e.etcd.Config().ListenClientUrls[0].Path) // tidiness; a start removes it too
	case <-time.After(closeTime):
		e.log.Warn("etcd did not stop in time; its log will be replayed at the next start", "waited", closeTime)
	}
}

// fatalHook turns zap's Fatal and Panic into one explained line.
type fatalHook struct {
	dir   string
	ready *atomic.Bool
	fatal func(error)
}

func (h fatalHook) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	what := e.Message
	for _, f := range fields {
		if err, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
			what += ": " + err.Error()
		}
	}
	if h.ready.Load() {
		h.fatal(fmt.Errorf("etcd cannot go on in %s: %s; if the disk is full make room, then start again", h.dir, oneLine(what)))
	} else {
		h.fatal(unusable(h.dir, what))
	}
	panic("unreachable: fatal returned")
}

// unusable explains a data directory that etcd refuses.
func unusable(dir, what string) error {
	return fmt.Errorf("etcd cannot use its data in %s: %s; restore the directory from a backup, or move it aside to start empty: mv %s %s.broken", dir, oneLine(what), dir, dir)
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
