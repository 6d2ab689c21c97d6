// Package standalone runs the service proxy by itself, in the place of
// kube-proxy: its configuration, its ports, its events.
//
//	standalone.go  start, the loop from the catalogue to the kernel, stop
//	file.go        what happens when the configuration file changes
//	serve.go       what is answered on ports 10256 and 10249
//	events.go      what is told to the API server
package standalone

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/kubeapi"
	"github.com/rutter-project/rutter/internal/proxy"
	"github.com/rutter-project/rutter/internal/proxy/config"
	"github.com/rutter-project/rutter/internal/source/kube"
)

// Options are what Run is told besides the configuration.
type Options struct {
	Config *config.Config // complete and valid
	// File is watched (FollowFile) and read again by Load; neither without a
	// file.
	File   string
	Load   func() (*config.Config, []string, error)
	Master string // URL of the API server, in place of the kubeconfig's
	// Flags tells the command line's, as name=value, for /flagz. Nil: there is
	// no such page.
	Flags func() []string
	// NoCounters and CountBytes are as in proxy.Config.
	NoCounters, CountBytes bool

	Version string
	Log     *slog.Logger
}

// Init does what needs more than CAP_NET_ADMIN: kernel settings. What cannot be
// set is logged, and no error: in a container /proc may be read-only.
func Init(o Options) {
	for _, s := range o.Config.Settings(config.CPUs()) {
		if err := s.Apply(); err != nil {
			o.Log.Warn("connection tracking keeps the kernel's setting", "err", err)
		}
	}
}

// Run programs services until ctx is done. The kernel's tables stay.
func Run(ctx context.Context, o Options) error {
	node, err := nodeName(o.Config.HostnameOverride)
	if err != nil {
		return err
	}
	api, err := clientConfig(o)
	if err != nil {
		return err
	}
	client, err := kubeapi.New(api)
	if err != nil {
		return err
	}
	lock, err := await(ctx, o.Log)
	if lock == nil {
		return err
	}
	defer lock.Close()
	Init(o)
	oomScore(o)

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var loops sync.WaitGroup
	defer loops.Wait()
	defer cancel(nil)

	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	cat := catalog.New(catalog.Services | catalog.EndpointSlices | catalog.Nodes)
	events := NewEvents(client, node, o.Log)
	cfg := o.Config.Proxy()
	cfg.Node, cfg.Logger, cfg.Registerer, cfg.Event = node, o.Log, registry, events.Post
	cfg.NoCounters, cfg.CountBytes = o.NoCounters, o.CountBytes
	p, err := proxy.New(cat, cfg)
	if err != nil {
		return err
	}
	if err := p.Start(ctx); err != nil {
		return err
	}
	defer p.Close()

	if err := Serve(ctx, &loops, o, p, registry, events); err != nil {
		return err
	}
	source, err := kube.New(kube.Config{REST: api, Kinds: catalog.Services | catalog.EndpointSlices | catalog.Nodes, OnNode: node, Log: o.Log}, cat)
	if err != nil {
		return err
	}
	loops.Go(func() { source.Run(ctx) })
	loops.Go(func() { events.Run(ctx) })
	loops.Go(func() { WatchServiceCIDRs(ctx, api, p, o.Log) })
	if o.File != "" {
		loops.Go(func() {
			if FollowFile(ctx, o, p) {
				cancel(ErrChanged)
			}
		})
	}
	events.Post(proxy.Event{Reason: "Starting", Action: "StartKubeProxy"})
	o.Log.Info("the service proxy runs", "node", node, "api", api.Host)
	follow(ctx, cat, p, o.Log)
	if cause := context.Cause(ctx); errors.Is(cause, ErrChanged) {
		return cause
	}
	return nil
}

// await waits until no other proxy or agent works here: while a process is
// replaced, the old one may end after the new one started. It returns nil, and
// no error, when ctx is done.
func await(ctx context.Context, log *slog.Logger) (*os.File, error) {
	for told := false; ; told = true {
		lock, err := proxy.Lock()
		if err == nil {
			return lock, nil
		}
		if !told {
			log.Warn("waiting", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(time.Second):
		}
	}
}

// follow hands each change of the catalogue to the proxy.
func follow(ctx context.Context, cat *catalog.Catalog, p *proxy.Proxy, log *slog.Logger) {
	sub := cat.Subscribe()
	defer sub.Close()
	for {
		ch, err := sub.Next(ctx)
		if err != nil {
			return
		}
		// The proxy tries again by itself, and counts as unhealthy meanwhile.
		if err := p.Apply(ctx, ch); err != nil && ctx.Err() == nil {
			log.Error("cannot program services; it is tried again", "err", err)
		}
	}
}

func nodeName(override string) (string, error) {
	name := override
	if name == "" {
		host, err := os.Hostname()
		if err != nil {
			return "", fmt.Errorf("read the host's name, or give it with --hostname-override: %w", err)
		}
		name = host
	}
	return strings.ToLower(strings.TrimSpace(name)), nil
}

func clientConfig(o Options) (*rest.Config, error) {
	c := &o.Config.ClientConnection
	var cfg *rest.Config
	var err error
	switch {
	case c.Kubeconfig == "" && o.Master == "":
		if cfg, err = rest.InClusterConfig(); err != nil {
			return nil, fmt.Errorf("no kubeconfig is given and this is no pod: set clientConnection.kubeconfig, or --kubeconfig: %w", err)
		}
	default:
		if cfg, err = clientcmd.BuildConfigFromFlags(o.Master, c.Kubeconfig); err != nil {
			return nil, fmt.Errorf("read kubeconfig %s: %w", c.Kubeconfig, err)
		}
	}
	cfg.UserAgent = "rutter-proxy/" + o.Version
	cfg.WarningHandler = rest.NoWarnings{}
	cfg.AcceptContentTypes, cfg.ContentType = c.AcceptContentTypes, c.ContentType
	cfg.QPS, cfg.Burst = c.QPS, int(c.Burst)
	return cfg, nil
}

// oomScore makes the kernel spare this process when memory runs out.
func oomScore(o Options) {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(int(*o.Config.OOMScoreAdj))), 0); err != nil {
		o.Log.Warn("oomScoreAdj is not set", "err", err)
	}
}

// How often the service CIDRs are read. They change once in a cluster's life.
const cidrsEvery = time.Minute

// WatchServiceCIDRs tells the proxy the ranges of cluster IPs. API servers that
// do not have the objects, or do not show them, leave it without.
func WatchServiceCIDRs(ctx context.Context, api *rest.Config, p *proxy.Proxy, log *slog.Logger) {
	client, err := rest.HTTPClientFor(api)
	if err != nil {
		log.Warn("service CIDRs are not read", "err", err)
		return
	}
	server, _, err := rest.DefaultServerUrlFor(api)
	if err != nil {
		log.Warn("service CIDRs are not read", "err", err)
		return
	}
	url := server.JoinPath("/apis/networking.k8s.io/v1/servicecidrs").String()
	tick := time.NewTicker(cidrsEvery)
	defer tick.Stop()
	for {
		cidrs, err := readServiceCIDRs(ctx, client, url)
		if err == nil {
			err = p.SetServiceCIDRs(ctx, cidrs)
		}
		if err != nil && ctx.Err() == nil {
			log.Debug("service CIDRs are not in force", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func readServiceCIDRs(ctx context.Context, client *http.Client, url string) ([]netip.Prefix, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	var list struct {
		Items []struct {
			Spec struct {
				CIDRs []string `json:"cidrs"`
			} `json:"spec"`
		} `json:"items"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	var cidrs []netip.Prefix
	for _, item := range list.Items {
		for _, s := range item.Spec.CIDRs {
			if p, err := netip.ParsePrefix(s); err == nil {
				cidrs = append(cidrs, p.Masked())
			}
		}
	}
	slices.SortFunc(cidrs, func(a, b netip.Prefix) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(cidrs), nil
}
