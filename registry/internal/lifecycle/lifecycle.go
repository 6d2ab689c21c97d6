// Package lifecycle starts the parts of the registry in order, watches them
// and stops them in reverse:
//
//	port → external etcd answers → data directory → certificates
//	     → embedded etcd → API server → controllers
//
// What can fail because of the command line or the host fails first, before
// anything is written.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/rutter-project/rutter/registry/internal/apiserver"
	"github.com/rutter-project/rutter/registry/internal/config"
	"github.com/rutter-project/rutter/registry/internal/controllers"
	"github.com/rutter-project/rutter/registry/internal/datadir"
	"github.com/rutter-project/rutter/registry/internal/etcd"
	"github.com/rutter-project/rutter/registry/internal/pki"
)

// Times within which the parts must have stopped. They run one after the
// other; etcd's own is in package etcd.
const (
	controllersStop = 2 * time.Second
	serverStop      = 5 * time.Second
)

// Version is what --version and /version tell.
type Version struct{ Registry, Kubernetes, Etcd string }

// Run runs the registry until ctx ends, which is not an error, or until a part
// fails. fatal is
// called when etcd gives up in a goroutine of its own; it must not return.
func Run(ctx context.Context, c config.Config, v Version, log *slog.Logger, fatal func(error)) error {
	began := time.Now()
	err := run(ctx, c, v, log, began, fatal)
	if ctx.Err() != nil {
		if err != nil && !errors.Is(err, context.Canceled) {
			log.Debug("while stopping", "error", err)
		}
		log.Info("stopped", "ran", time.Since(began).Round(time.Second))
		return nil
	}
	return err
}

func run(ctx context.Context, c config.Config, v Version, log *slog.Logger, began time.Time, fatal func(error)) error {
	since := func() string { return fmt.Sprintf("%.1fs", time.Since(began).Seconds()) }

	ln, err := listen(ctx, c)
	if err != nil {
		return err
	}
	defer ln.Close()
	c.Port = uint16(ln.Addr().(*net.TCPAddr).Port)

	store := etcd.External(c.Etcd)
	if c.Etcd.External() {
		if err := store.Probe(ctx, log); err != nil {
			return err
		}
		log.Info("external etcd answers, after "+since(), "endpoints", store.Where)
	}
	dir, err := datadir.Open(c.DataDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	log.Info("starting", "version", v.Registry, "kubernetes", v.Kubernetes, "data", dir.Path())

	creds, err := newCredentials(dir, c)
	if err != nil {
		return err
	}
	if err := creds.ensure(log); err != nil {
		return err
	}

	var etcdEnded <-chan error // nil, and so never ready, with an external etcd
	if !c.Etcd.External() {
		e, err := etcd.StartEmbedded(ctx, dir.Etcd(), dir.EtcdSocket(), log, fatal)
		if err != nil {
			return err
		}
		defer e.Close()
		store, etcdEnded = e.Store(), e.Err()
		log.Info("etcd ready, after " + since())
	}
	if err := apiserver.CheckServiceCIDRs(ctx, store, c); err != nil {
		return err
	}

	server, err := apiserver.New(ctx, apiserver.Options{
		Config: c, Listener: ln, Store: store, Version: v.Kubernetes,
		Files: apiserver.Files{
			CA: creds.authority.File("ca.crt"), Cert: creds.authority.File("serving.crt"), Key: creds.authority.File("serving.key"),
			SAKey: creds.authority.File("sa.key"), SAPub: creds.authority.File("sa.pub"),
			AuthenticationConfig: dir.AuthenticationConfig(),
		},
	})
	if err != nil {
		return err
	}

	// The server outlives ctx by the time the controllers take to stop.
	serverCtx, stopServer := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServer()
	serverEnded := make(chan error, 1)
	go func() { serverEnded <- server.Run(serverCtx) }()

	partCtx, stopParts := context.WithCancel(ctx)
	defer stopParts()
	var parts sync.WaitGroup
	partEnded := make(chan error, 2)
	parts.Go(func() {
		if err := runControllers(partCtx, c, server, log, since); err != nil && partCtx.Err() == nil {
			partEnded <- err
		}
	})
	parts.Go(func() {
		if err := creds.renewForEver(partCtx, log); err != nil {
			partEnded <- err
		}
	})

	var failure error
	select {
	case <-ctx.Done():
		log.Info("stopping")
	case failure = <-partEnded:
	case err := <-etcdEnded:
		failure = fmt.Errorf("etcd ended: %w", err)
	case err := <-serverEnded:
		if err == nil {
			err = errors.New("no reason given")
		}
		failure = fmt.Errorf("the API server ended: %w", err)
		serverEnded <- nil
	}
	stopParts()
	if !within(controllersStop, parts.Wait) {
		log.Debug("controllers are busy; not waiting for them")
	}
	stopServer()
	if !within(serverStop, func() {
		if err := <-serverEnded; err != nil {
			log.Debug("the API server reported while stopping", "error", err)
		}
	}) {
		log.Debug("the API server has open requests; not waiting for them")
	}
	return failure
}

// slowStart is when a start that is not ready yet says what it waits for.
const slowStart = 10 * time.Second

// runControllers waits for the server, runs the controllers and declares the
// registry ready.
func runControllers(ctx context.Context, c config.Config, server *apiserver.Server, log *slog.Logger, since func() string) error {
	up := make(chan struct{})
	go func() {
		t := time.NewTicker(slowStart)
		defer t.Stop()
		for {
			select {
			case <-up:
				return
			case <-ctx.Done():
				return
			case <-t.C:
				log.Info("still waiting for the API server; see /readyz?verbose", "after", since())
			}
		}
	}()
	err := server.WaitUp(ctx)
	close(up)
	if err != nil {
		return fmt.Errorf("waiting for the API server: %w", err)
	}
	ready := sync.OnceFunc(func() {
		server.SetUsable()
		if err := server.WaitReady(ctx); err != nil {
			return // stopping
		}
		// Starting leaves some 20 MB of garbage that the collector, paced by
		// the heap's growth, would keep for long in an idle registry.
		debug.FreeOSMemory()
		log.Info(fmt.Sprintf("API server ready on https://%s after %s", hostPort(c.LocalHost(), c.Port), since()))
	})
	started := func() {
		log.Info("controllers started, after " + since())
		ready()
	}
	run := func(ctx context.Context) error {
		return controllers.Run(ctx, controllers.Options{
			Loopback: server.Loopback(), ServiceCIDRs: c.ServiceCIDRs, PodCIDRs: c.PodCIDRs,
		}, log, started)
	}
	if !c.Etcd.External() {
		return run(ctx)
	}
	return controllers.RunElected(ctx, server.Loopback(), log, run, ready)
}

// listen binds the port. It does so before anything else and keeps it.
func listen(ctx context.Context, c config.Config) (net.Listener, error) {
	network := "tcp" // "::" then takes IPv4 too, as kube-apiserver does
	if c.Bind.Is4() {
		network = "tcp4"
	}
	addr := hostPort(c.Bind, c.Port)
	ln, err := (&net.ListenConfig{}).Listen(ctx, network, addr)
	switch {
	case err == nil:
		return ln, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("port %d on %s is in use; stop what uses it (ss -ltnp shows it) or give another --secure-port", c.Port, c.Bind)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("--bind-address %s is not an address of this host; ip addr shows those that are", c.Bind)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("this user may not listen on port %d; give a --secure-port of 1024 or more", c.Port)
	}
	return nil, fmt.Errorf("cannot listen on %s: %w; check --bind-address and --secure-port", addr, err)
}

func hostPort(a netip.Addr, port uint16) string {
	return net.JoinHostPort(a.String(), strconv.Itoa(int(port)))
}

// within says whether f returned in time.
func within(d time.Duration, f func()) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

// newCredentials opens the certificate directory with the names that the
// flags ask for.
func newCredentials(dir *datadir.Dir, c config.Config) (*credentials, error) {
	names := pki.Names{
		DNS: []string{
			"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc." + c.ClusterDomain,
		},
		IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()},
	}
	if host, err := os.Hostname(); err == nil && host != "" && host != "localhost" {
		names.DNS = append(names.DNS, host)
	}
	for _, a := range []netip.Addr{c.Bind, c.Advertise} {
		if !a.IsUnspecified() {
			names.IPs = append(names.IPs, a)
		}
	}
	for _, p := range c.ServiceCIDRs {
		names.IPs = append(names.IPs, config.FirstAddr(p))
	}
	a, err := pki.Open(dir.PKI(), names)
	if err != nil {
		return nil, err
	}
	return &credentials{authority: a, dir: dir, c: c}, nil
}
