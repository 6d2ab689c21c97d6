package main

import (
	"github.com/spf13/cobra"

	"github.com/rutter-project/rutter/internal/agent"
)

func newAgentCommand() *cobra.Command {
	cfg := agent.DefaultConfig()
	var logs logFlags
	var cleanup bool
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Serve DNS and service addresses on this node",
		Long: `The agent watches the Kubernetes API and makes its services work on this node:
it programs the kernel (nftables) for the service addresses and answers DNS for
their names, a name never before its address works.

It needs root, or the capabilities CAP_NET_ADMIN and CAP_NET_BIND_SERVICE. On a
host without a kubelet it registers the Node object too. On SIGTERM it ends and
leaves the service addresses working; --cleanup removes them. SIGUSR1 reads the
Corefile again.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logs.logger(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			cfg.Log = log
			if err := cfg.Complete(); err != nil {
				return usageError{err}
			}
			if cleanup {
				return agent.Cleanup(cmd.Context(), cfg)
			}
			return agent.Run(cmd.Context(), cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Kubeconfig, "kubeconfig", "", "kubeconfig of the API server (default $KUBECONFIG, else agent.kubeconfig in --run-dir)")
	f.StringVar(&cfg.NodeName, "node-name", "", "name of this node (default the host name)")
	f.Var(addrsValue{&cfg.NodeIPs}, "node-ip", "address of this node, one per family (default that of the default route)")
	f.StringVar(&cfg.RunDir, "run-dir", cfg.RunDir, "directory for sockets, locks and the state of pods")
	f.StringVar(&cfg.DataDir, "data-dir", cfg.DataDir, "directory for the saved catalogue")
	f.StringVar(&cfg.Corefile, "corefile", "", "Corefile to serve DNS by (default: the cluster domain, and the host's resolvers for the rest)")
	f.StringVar(&cfg.ProxyConfig, "proxy-config", "", "KubeProxyConfiguration to balance by, with kube-proxy's ports 10256 and 10249 (default: cluster CIDR detection, no ports)")
	f.StringVar(&cfg.ClusterDomain, "cluster-domain", cfg.ClusterDomain, "DNS domain of the cluster")
	f.Var(addrsValue{&cfg.ClusterDNS}, "cluster-dns", "DNS address that pods use, answered on this node (default 10.96.0.10)")
	f.Var(addrValue{&cfg.NodeLocalDNS}, "node-local-dns", "further address to answer DNS on, the same on every node")
	f.Var(&prefixesValue{list: &cfg.ClusterCIDRs}, "cluster-cidr", "ranges of all pods of the cluster: traffic to service addresses from elsewhere is masqueraded")
	f.Var(&prefixesValue{list: &cfg.ServiceCIDRs}, "service-cidr", "ranges of the service addresses")
	f.Var(&prefixesValue{list: &cfg.PodCIDRs}, "pod-cidr", "ranges of this node's pods (default: what the Node object says)")
	registerCounters(f, &cfg.NoCounters, &cfg.CountBytes)
	f.BoolVar(&cfg.Loopback, "loopback", false, "do without privilege: serve services on their own addresses, which must be of 127.0.0.0/8, and let pods be plain processes")
	f.BoolVar(&cleanup, "cleanup", false, "remove what the agent put into the kernel, and exit")
	logs.register(f)
	return cmd
}
