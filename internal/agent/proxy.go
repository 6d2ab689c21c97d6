package agent

import (
	"fmt"
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy"
	"github.com/rutter-project/rutter/internal/proxy/config"
	"github.com/rutter-project/rutter/internal/proxy/plan"
	"github.com/rutter-project/rutter/internal/proxy/standalone"
	"github.com/rutter-project/rutter/internal/version"
)

// dnsService is the service whose endpoints answer DNS when this node's agent
// does not.
var dnsService = catalog.ServiceName{Namespace: "kube-system", Name: "kube-dns"}

// kubeProxyOptions reads the KubeProxyConfiguration, nil without one. What it
// says of the API server and of the node's name is the agent's own to decide.
func kubeProxyOptions(cfg Config) (*standalone.Options, error) {
	if cfg.ProxyConfig == "" {
		return nil, nil
	}
	load := func() (*config.Config, []string, error) {
		c, warnings, err := config.Load(cfg.ProxyConfig)
		if err != nil {
			return nil, nil, err
		}
		c.Complete()
		if err := c.Validate(); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", cfg.ProxyConfig, err)
		}
		return c, warnings, nil
	}
	c, warnings, err := load()
	if err != nil {
		return nil, err
	}
	for _, w := range warnings {
		cfg.Log.Warn(w)
	}
	return &standalone.Options{Config: c, File: cfg.ProxyConfig, Load: load, Version: version.Get().Version, Log: cfg.Log}, nil
}

func (a *agent) proxyConfig(kubeProxy *standalone.Options, registry *prometheus.Registry, events *standalone.Events) proxy.Config {
	var cfg proxy.Config
	if kubeProxy != nil {
		cfg = kubeProxy.Config.Proxy()
	}
	if kubeProxy == nil || kubeProxy.Config.DetectLocalMode == config.LocalByClusterCIDR && len(cfg.Detect.CIDRs) == 0 {
		cfg.Detect = plan.Detector{Mode: plan.DetectCIDR, CIDRs: a.cfg.ClusterCIDRs}
	}
	if len(a.cfg.NodeIPs) > 0 {
		cfg.NodeIPs = a.cfg.NodeIPs
	}
	if a.cfg.Loopback {
		cfg.Mode = proxy.ModeLoopback
	}
	cfg.Node = a.cfg.NodeName
	cfg.ServiceCIDRs = a.cfg.ServiceCIDRs
	cfg.DNSService = dnsService
	cfg.NodeDNSAlive = a.serving.Load
	cfg.NoCounters, cfg.CountBytes = a.cfg.NoCounters, a.cfg.CountBytes
	cfg.Event = events.Post
	cfg.Logger, cfg.Registerer = a.cfg.Log, registry
	for _, addr := range a.cfg.localDNS() {
		cfg.NodeDNS = append(cfg.NodeDNS, netip.AddrPortFrom(addr, 53))
	}
	return cfg
}
