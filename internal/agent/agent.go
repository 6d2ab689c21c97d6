// Package agent makes one node's services work: it wires the API watch, the
// catalogue, the service proxy and DNS together, and owns the order in which a
// change reaches the kernel and the name.
//
//	config.go    what it is told          dns.go       the DNS server
//	agent.go     start and stop           proxy.go     the service proxy's configuration
//	publish.go   the publish order        node.go      the Node object and its lease
//	status.go    the local API socket     snapshot.go  the catalogue on disk
package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/dns/cluster"
	"github.com/rutter-project/rutter/internal/dns/plugin/kubernetes"
	"github.com/rutter-project/rutter/internal/dns/server"
	"github.com/rutter-project/rutter/internal/heap"
	"github.com/rutter-project/rutter/internal/kubeapi"
	"github.com/rutter-project/rutter/internal/node/pod"
	"github.com/rutter-project/rutter/internal/node/route"
	"github.com/rutter-project/rutter/internal/proxy"
	"github.com/rutter-project/rutter/internal/proxy/standalone"
	"github.com/rutter-project/rutter/internal/source/kube"
	"github.com/rutter-project/rutter/internal/version"
)

const (
	// startupBound is how long DNS waits for the first complete picture before
	// it serves without (CoreDNS's startup_timeout), and how long a reachable
	// API may take for it before the saved catalogue is used.
	startupBound = 5 * time.Second
	// apiBound is how long the API may be unreachable at start when there is no
	// saved catalogue to serve from.
	apiBound = 10 * time.Second
	// heapFloor is the heap, in bytes, below which garbage is not hurried for.
	heapFloor = 10 << 20
	// sweepPeriod is how often dead pods are looked for.
	sweepPeriod = 10 * time.Second
	// stopBound is how long open queries may take at the end.
	stopBound = 5 * time.Second
)

const watched = catalog.Services | catalog.EndpointSlices | catalog.Namespaces | catalog.Nodes | catalog.Pods

// agent is one running agent.
type agent struct {
	cfg       Config
	started   time.Time
	cat       *catalog.Catalog
	source    *kube.Source
	proxy     *proxy.Proxy
	publisher *publisher
	dns       *server.Server
	saved     time.Time // of the snapshot that was restored
	waiting   atomic.Pointer[string]
	serving   atomic.Bool // DNS answers
	ready     atomic.Bool // and queries of this node reach it
}

// Run runs the agent until ctx ends. It then stops answering DNS and leaves
// the kernel's tables working.
func Run(ctx context.Context, cfg Config) (err error) {
	unlock, err := lock(cfg)
	if err != nil {
		return err
	}
	defer unlock()
	if err := kubeapi.SaveNodeName(cfg.RunDir, cfg.NodeName); err != nil {
		return err
	}
	rest, err := kubeapi.Load(cfg.Kubeconfig)
	if err != nil {
		return err
	}
	api, err := kubeapi.New(rest)
	if err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	cluster.RegisterClientMetrics(registry)

	a := &agent{cfg: cfg, started: time.Now(), cat: catalog.New(watched)}
	a.wait("the API server")
	if a.source, err = kube.New(kube.Config{REST: rest, Kinds: watched, OnNode: cfg.NodeName, Log: cfg.Log}, a.cat); err != nil {
		return err
	}
	store := kubernetes.NewStore(registry)
	// fail ends the agent from within: DNS cannot go on.
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	dns, err := newDNS(cfg, store, registry, func(err error) { fail(err) })
	if err != nil {
		return err
	}
	a.dns = dns
	events := standalone.NewEvents(api, cfg.NodeName, cfg.Log)
	kubeProxy, err := kubeProxyOptions(cfg)
	if err != nil {
		return err
	}
	if a.proxy, err = proxy.New(a.cat, a.proxyConfig(kubeProxy, registry, events)); err != nil {
		return err
	}
	// Owned goroutines: they end with ctx, and Run waits for them.
	var running sync.WaitGroup
	defer running.Wait()
	defer fail(nil)
	running.Go(func() { heap.Tune(ctx, heapFloor) })
	running.Go(func() { a.source.Run(ctx) })
	if err := a.firstPicture(ctx, api); err != nil {
		return cause(ctx, err)
	}
	if err := a.proxy.Start(ctx); err != nil {
		return err
	}
	// From here on things are made. A first start that fails leaves none of
	// them behind; one that follows another agent leaves what that one made:
	// services work on it.
	defer func() {
		if err != nil && !hasWorked(cfg) {
			fail(nil)
			running.Wait() // who makes things has ended before they are removed
			err = errors.Join(err, cleanup(cfg))
		}
	}()
	defer a.proxy.Close()
	if err := a.recordModes(kubeProxy != nil); err != nil {
		return err
	}

	if kubeProxy != nil {
		standalone.Init(*kubeProxy)
		if err := standalone.Serve(ctx, &running, *kubeProxy, a.proxy, registry, events); err != nil {
			return err
		}
		running.Go(func() {
			if standalone.FollowFile(ctx, *kubeProxy, a.proxy) {
				fail(standalone.ErrChanged)
			}
		})
	}
	running.Go(func() { events.Run(ctx) })
	a.publisher = newPublisher(a.cat, a.proxy, store, registry, cfg.Log)
	waitSocket, err := serveStatus(ctx, filepath.Join(cfg.RunDir, Socket), a.status, a.serveTraffic, registry, cfg.Log)
	if err != nil {
		return err
	}
	running.Go(waitSocket)
	running.Go(func() { keepSnapshot(ctx, a.cat, cfg.snapshot(), cfg.Log) })
	reg := &registration{name: cfg.NodeName, addrs: func() ([]netip.Addr, error) { return nodeIPs(cfg) }, podCIDRs: cfg.PodCIDRs, dns: cfg.ClusterDNS, domain: cfg.ClusterDomain, shared: cfg.Loopback, cfg: rest, log: cfg.Log}
	running.Go(func() {
		if err := reg.run(ctx); err != nil {
			fail(fmt.Errorf("register the node: %w", err))
		}
	})

	a.wait("the Node object and its pod CIDR")
	if err := a.setUpNetwork(ctx); err != nil {
		return cause(ctx, err)
	}
	running.Go(func() { a.publisher.run(ctx) })
	running.Go(func() { a.sweepPods(ctx, api) })
	a.wait("the first complete picture of the cluster")
	if err := awaitSync(ctx, store); err != nil {
		return cause(ctx, err)
	}
	if err := dns.Start(ctx); err != nil {
		return err
	}
	a.serving.Store(true)
	running.Go(func() { reloadWhenTold(ctx, dns, cfg.Log) })
	if err := a.proxy.KeepNodeDNS(); err != nil {
		return fmt.Errorf("keep DNS queries on this node: %w", err)
	}
	if err := markWorked(cfg); err != nil {
		return err
	}
	a.ready.Store(true)
	cfg.Log.Info("agent ready", "node", cfg.NodeName, "dns", cfg.localDNS(), "took", time.Since(a.started).Round(time.Millisecond))

	<-ctx.Done()
	a.serving.Store(false)
	if err := a.proxy.ReleaseNodeDNS(); err != nil {
		cfg.Log.Warn("DNS not handed over", "error", err)
	}
	stopping, cancel := context.WithTimeout(context.Background(), stopBound)
	defer cancel()
	err = dns.Shutdown(stopping)
	return errors.Join(cause(ctx, nil), err)
}

// cause prefers the reason why ctx was ended from within over err; an end that
// was asked for is no error.
func cause(ctx context.Context, err error) error {
	switch c := context.Cause(ctx); {
	case c == nil:
		return err
	case errors.Is(c, context.Canceled):
		return nil
	default:
		return c
	}
}

// Cleanup removes what agents put into the kernel and on the host: tables,
// routes, addresses, settings.
func Cleanup(_ context.Context, cfg Config) error {
	unlock, err := lock(cfg)
	if err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	defer unlock()
	return cleanup(cfg)
}

func cleanup(cfg Config) error {
	var err error
	if !cfg.Loopback {
		err = errors.Join(proxy.Cleanup(usedModes(cfg)...), route.Teardown(cfg.RunDir))
	}
	for _, f := range []string{worked(cfg), modesFile(cfg)} {
		if rerr := os.Remove(f); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}

// modesFile names the modes that the agent's proxy had or may have had. Some
// have kube-proxy's names in the kernel: where none of them was used, these are
// a kube-proxy's.
func modesFile(cfg Config) string { return filepath.Join(cfg.RunDir, "proxy.modes") }

func (a *agent) recordModes(replacesKubeProxy bool) error {
	names := []string{a.proxy.Status().Mode}
	if replacesKubeProxy {
		names = proxy.Modes()
	}
	if err := os.WriteFile(modesFile(a.cfg), []byte(strings.Join(names, "\n")), 0o600); err != nil {
		return fmt.Errorf("record the proxy's mode: %w", err)
	}
	return nil
}

func usedModes(cfg Config) []string {
	text, err := os.ReadFile(modesFile(cfg))
	if err != nil {
		return []string{proxy.ModeNFTables}
	}
	return strings.Fields(string(text))
}

// worked is a file that says that an agent was ready here and what it made is
// in use. The run directory goes with a reboot, as the kernel's tables do.
func worked(cfg Config) string { return filepath.Join(cfg.RunDir, "agent.worked") }

func hasWorked(cfg Config) bool {
	_, err := os.Stat(worked(cfg))
	return err == nil
}

func markWorked(cfg Config) error {
	if err := os.WriteFile(worked(cfg), nil, 0o600); err != nil {
		return fmt.Errorf("mark the agent as working: %w", err)
	}
	return nil
}

// lock sees to it that one agent uses the directories, and one works on a host.
func lock(cfg Config) (unlock func(), err error) {
	for _, dir := range []string{cfg.RunDir, cfg.DataDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make directory: %w; choose others with --run-dir and --data-dir", err)
		}
	}
	f, err := os.OpenFile(filepath.Join(cfg.RunDir, "agent.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w; run as the user whose directory it is, root as a rule", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another agent runs on this node (it holds %s): stop it first", f.Name())
	}
	if cfg.Loopback {
		return func() { f.Close() }, nil // it has nothing in the kernel
	}
	network, err := proxy.Lock()
	if err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close(); network.Close() }, nil
}

// Alone says no if an agent works on this host, whatever its run directory.
func Alone() error {
	network, err := proxy.Lock()
	if err != nil {
		return err
	}
	return network.Close()
}

func (a *agent) wait(what string) { a.waiting.Store(&what) }

// firstPicture returns when there is something to serve: what the API lists or,
// if it is away, what was saved. It refuses to start on credentials that are
// wrong, and without an API when nothing was saved.
func (a *agent) firstPicture(ctx context.Context, api *kubeapi.Client) error {
	deadline := time.Now().Add(apiBound)
	for {
		attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
		_, err := api.Nodes().Get(attempt, a.cfg.NodeName)
		cancel()
		if err == nil || apierrors.IsNotFound(err) {
			break
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case !kubeapi.Unreachable(err):
			return api.Explain(err)
		case a.restore():
			return nil
		case time.Now().After(deadline):
			return api.Explain(err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(250 * time.Millisecond):
		}
	}
	// It answers, so the lists are moments away, and they are fresher than what
	// was saved: serving that first would take away what is newer than it.
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-a.cat.Synced():
	case <-time.After(startupBound):
		a.restore()
	}
	return nil
}

// restore fills the catalogue from what was saved, and tells whether it did.
func (a *agent) restore() bool {
	saved, err := a.cat.Restore(a.cfg.snapshot())
	switch {
	case errors.Is(err, catalog.ErrNoSnapshot):
		return false
	case err != nil:
		a.cfg.Log.Warn("saved catalogue not used", "error", err)
		return false
	}
	a.saved = saved
	n := a.cat.Counts()
	a.cfg.Log.Warn("the API is away: serving from the saved catalogue", "saved", saved.Format(time.RFC3339), "services", n.Services, "endpoints", n.Endpoints)
	return true
}

// setUpNetwork waits until the Node object is known and makes the node's own
// addresses and routes. The pod network is the agent's to make only where it
// registered the node; elsewhere a kubelet and its network plugin do that.
func (a *agent) setUpNetwork(ctx context.Context) error {
	if a.cfg.Loopback {
		return nil
	}
	sub := a.cat.Subscribe()
	defer sub.Close()
	cfg := route.Config{RunDir: a.cfg.RunDir, LocalAddrs: a.cfg.localDNS()}
	for {
		n := a.cat.Node(a.cfg.NodeName)
		if n != nil && !n.ByAgent {
			break
		}
		pods := a.cfg.PodCIDRs
		if n != nil && len(pods) == 0 {
			pods = n.PodCIDRs
		}
		if len(pods) > 0 {
			cfg.PodCIDRs, cfg.ClusterCIDRs, cfg.ServiceCIDRs = pods, a.cfg.ClusterCIDRs, a.cfg.ServiceCIDRs
			break
		}
		if _, err := sub.Next(ctx); err != nil {
			return err
		}
	}
	notes, err := route.Setup(ctx, cfg)
	for _, n := range notes {
		a.cfg.Log.Warn(n)
	}
	return err
}

// sweepPods takes away, now and then, what pods left whose supervisor died: on
// this host, and in the API, where they would go on being endpoints. On a node
// of a kubelet there are none.
func (a *agent) sweepPods(ctx context.Context, api *kubeapi.Client) {
	tick := time.NewTicker(sweepPeriod)
	defer tick.Stop()
	for {
		if node := a.cat.Node(a.cfg.NodeName); node != nil && node.ByAgent {
			a.sweepOnce(ctx, api)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (a *agent) sweepOnce(ctx context.Context, api *kubeapi.Client) {
	n, err := pod.Sweep(ctx, pod.SweepConfig{RunDir: a.cfg.RunDir, NodeName: a.cfg.NodeName, Client: api})
	switch {
	case ctx.Err() != nil:
	case err != nil && !kubeapi.Unreachable(err):
		a.cfg.Log.Warn("dead pods not removed", "error", err)
	case n > 0:
		a.cfg.Log.Info("removed what dead pods left", "pods", n)
	}
}

// nodeIPs are the configured addresses, or those of the default routes.
func nodeIPs(cfg Config) ([]netip.Addr, error) {
	if len(cfg.NodeIPs) > 0 {
		return cfg.NodeIPs, nil
	}
	var out []netip.Addr
	for _, s := range defaultRouteIPs() {
		if addr, err := netip.ParseAddr(s); err == nil {
			out = append(out, addr)
		}
	}
	return out, nil
}

func (a *agent) status() Status {
	n := a.cat.Counts()
	s := Status{
		Version: version.Get().Version,
		Node:    a.cfg.NodeName,
		Started: a.started,
		Publish: a.publisher.status(),
		Proxy:   a.proxy.Status(),
		Waiting: *a.waiting.Load(),
		Catalog: CatalogStatus{
			Services: n.Services, Endpoints: n.Endpoints, Slices: n.Slices,
			Namespaces: n.Namespaces, Nodes: n.Nodes, Pods: n.Pods, SnapshotSaved: a.saved,
		},
	}
	s.Ready = s.Publish.Ready && a.ready.Load()
	if s.Ready {
		s.Waiting = ""
	}
	for _, addr := range a.cfg.localDNS() {
		if a.serving.Load() {
			s.DNS.Listening = append(s.DNS.Listening, netip.AddrPortFrom(addr, a.cfg.DNSPort()).String())
		}
	}
	if f := a.dns.ReloadFailure(); f != nil {
		s.DNS.ReloadError, s.DNS.ReloadErrorSince = f.Err.Error(), f.Since
		s.Degraded = append(s.Degraded, fmt.Sprintf("the Corefile cannot be loaded since %s, DNS serves by the one before: %s", f.Since.Format(time.RFC3339), f.Err))
	}
	for _, w := range a.source.Status() {
		s.API = append(s.API, APIStatus{Kind: w.Kind.String(), Connected: w.Connected, Since: w.Since, LastEvent: w.LastEvent, Error: w.Error})
		if !w.Connected && w.Error != "" {
			s.Degraded = append(s.Degraded, fmt.Sprintf("the watch of %s is down since %s: %s", w.Kind, w.Since.Format(time.RFC3339), w.Error))
		}
	}
	if stale := a.cat.Stale(); stale != 0 {
		s.Catalog.Stale = stale.String()
		s.Degraded = append(s.Degraded, fmt.Sprintf("%s are known from the catalogue saved at %s only", stale, a.saved.Format(time.RFC3339)))
	}
	if s.Publish.Unconfirmed > 0 {
		s.Degraded = append(s.Degraded, fmt.Sprintf("%d services are published without the dataplane's confirmation: %s", s.Publish.Unconfirmed, s.Publish.Error))
	}
	for _, r := range s.Proxy.Refused {
		s.Degraded = append(s.Degraded, fmt.Sprintf("service %s is not in the kernel: %s", r.Service, r.Error))
	}
	return s
}
