package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/rutter-project/rutter/internal/agent"
	"github.com/rutter-project/rutter/internal/rootless"
	"github.com/rutter-project/rutter/internal/up"
)

func newUpCommand() *cobra.Command {
	defaults := agent.DefaultConfig()
	cfg := up.Config{
		RunDir: defaults.RunDir, DataDir: defaults.DataDir, ClusterDomain: defaults.ClusterDomain,
		NodeLocalDNS: defaults.NodeLocalDNS,
	}
	var logs logFlags
	var less rootlessFlag
	var serviceCIDRs, podCIDRs []netip.Prefix
	var etcd struct{ endpoints, ca, cert, key string }
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run the whole system on this host: registry, agent and, with --demo, some pods",
		Long: `Starts the embedded registry (a Kubernetes API server with its store) and the
agent on this host, keeps them running, and prints how to use them. With --demo
it also starts three web pods behind a service and two pods with names of their
own. Ctrl-C takes everything down and leaves only the data directory.

It needs root: it makes network namespaces and programs nftables. With --rootless
an ordinary user has it all in user and network namespaces of its own, where
` + "`rutter run`, `rutter shell`" + ` and the others find it; or, if the system forbids
those, with services on addresses of 127.0.0.0/8.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logs.logger(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			changed := cmd.Flags().Changed
			switch {
			case less.mode != "" && os.Geteuid() == 0 && !rootless.Inside():
				return usageError{fmt.Errorf("--rootless is for ordinary users: leave it out as root")}
			case less.mode == "" && os.Geteuid() != 0:
				return fmt.Errorf("up needs root: it makes network namespaces (CAP_SYS_ADMIN) and programs nftables (CAP_NET_ADMIN); try sudo, or `rutter up --rootless`")
			}
			cfg.Log, cfg.LogLevel, cfg.LogFormat = log, logs.level, logs.format
			cfg.Out = cmd.OutOrStdout()
			cfg.Terminal = term.IsTerminal(int(os.Stdout.Fd()))
			if cfg.NodeName == "" {
				if cfg.NodeName, err = os.Hostname(); err != nil {
					return fmt.Errorf("find the host name (or set --node-name): %w", err)
				}
				cfg.NodeName = strings.ToLower(cfg.NodeName)
			}
			if less.mode != "" && !rootless.Inside() {
				var why error
				if less.mode, why, err = rootless.Choose(cmd.Context(), less.mode); err != nil {
					return err
				}
				if why != nil {
					log.Warn("services are on addresses of 127.0.0.0/8 and pods are plain processes", "why", why)
				}
			}
			cfg.Rootless = less.mode
			if less.mode != "" && !changed("data-dir") {
				if cfg.DataDir, err = rootless.DataDir(less.mode); err != nil {
					return err
				}
			}
			if serviceCIDRs == nil {
				serviceCIDRs = defaults.ServiceCIDRs
				if less.mode == rootless.Userspace {
					serviceCIDRs = rootless.LoopbackServices
				}
			}
			if podCIDRs == nil {
				podCIDRs = defaults.ClusterCIDRs
			}
			if err := agent.Disjoint("--service-cidr", serviceCIDRs, "--pod-cidr", podCIDRs); err != nil {
				return usageError{err}
			}
			if cfg.APIPort < 1 || cfg.APIPort > 65535 {
				return usageError{fmt.Errorf("--api-port %d: want a port of 1-65535", cfg.APIPort)}
			}
			cfg.ServiceCIDR, cfg.PodCIDR = join(serviceCIDRs), join(podCIDRs)
			if cfg.ClusterDNS == nil {
				if cfg.ClusterDNS, err = up.ClusterDNS(serviceCIDRs); err != nil {
					return usageError{err}
				}
			}
			for flag, value := range map[string]string{
				"--etcd-endpoints": etcd.endpoints, "--etcd-cafile": etcd.ca, "--etcd-certfile": etcd.cert, "--etcd-keyfile": etcd.key,
			} {
				if value != "" {
					cfg.RegistryFlags = append(cfg.RegistryFlags, flag, value)
				}
			}
			if less.mode == "" {
				return up.Run(cmd.Context(), cfg)
			}
			if cfg.DataDir, err = filepath.Abs(cfg.DataDir); err != nil {
				return err
			}
			instance := rootless.Instance{RunDir: cfg.RunDir, Domain: cfg.ClusterDomain,
				Kubeconfig: filepath.Join(cfg.DataDir, "registry", "admin.kubeconfig")}
			for _, a := range cfg.ClusterDNS {
				instance.ClusterDNS = append(instance.ClusterDNS, a.String())
			}
			switch {
			case rootless.Inside():
				if cfg.NodeIP == nil {
					cfg.NodeIP = []netip.Addr{rootless.NodeIP}
				}
				return up.Run(cmd.Context(), cfg)
			case less.mode == rootless.Namespaces:
				return inNamespaces(cmd.Context(), instance)
			}
			state, err := rootless.StateDir()
			if err != nil {
				return err
			}
			if !changed("run-dir") {
				cfg.RunDir = filepath.Join(state, "run")
			}
			if cfg.NodeIP == nil {
				if cfg.NodeIP, err = rootless.HostIP(); err != nil {
					return err
				}
			}
			instance.RunDir = cfg.RunDir
			done, err := rootless.Here(instance)
			if err != nil {
				return err
			}
			defer done()
			return up.Run(cmd.Context(), cfg)
		},
	}
	f := cmd.Flags()
	f.Var(&less, "rootless", "run as an ordinary user: in namespaces of your own (namespaces), with nothing but sockets (userspace), or the first if the system allows it (auto)")
	f.Lookup("rootless").NoOptDefVal = string(rootless.Auto)
	f.BoolVar(&cfg.Demo, "demo", false, "start a demo: a service of three pods, and two pods with names of their own")
	f.StringVar(&cfg.RunDir, "run-dir", cfg.RunDir, "directory for sockets, locks, logs and the state of pods")
	f.StringVar(&cfg.DataDir, "data-dir", cfg.DataDir, "directory for the registry's data, keys and kubeconfigs")
	f.StringVar(&cfg.NodeName, "node-name", "", "name of this node (default the host name)")
	f.Var(addrsValue{&cfg.NodeIP}, "node-ip", "address of this node, one per family (default that of the default route)")
	f.Var(&prefixesValue{list: &serviceCIDRs}, "service-cidr", "range of service addresses; two, comma separated, for dual stack (default 10.96.0.0/16)")
	f.Var(&prefixesValue{list: &podCIDRs}, "pod-cidr", "range out of which this node's pods get addresses; two for dual stack (default 10.244.0.0/16)")
	f.StringVar(&cfg.ClusterDomain, "cluster-domain", cfg.ClusterDomain, "DNS domain of the cluster")
	f.Var(addrsValue{&cfg.ClusterDNS}, "cluster-dns", "DNS address of pods, in --service-cidr (default its tenth address)")
	f.Var(addrValue{&cfg.NodeLocalDNS}, "node-local-dns", "further address to answer DNS on")
	f.IntVar(&cfg.APIPort, "api-port", 6443, "port of the API server on 127.0.0.1")
	f.StringVar(&cfg.Corefile, "corefile", "", "Corefile to serve DNS by (default: the cluster domain, and the host's resolvers for the rest)")
	f.StringVar(&cfg.Registry, "registry", "", "path of rutter-registry (default: beside rutter, else in PATH)")
	f.StringVar(&etcd.endpoints, "etcd-endpoints", "", "URLs of an external etcd, comma separated, instead of the embedded one")
	f.StringVar(&etcd.ca, "etcd-cafile", "", "CA certificate of the external etcd")
	f.StringVar(&etcd.cert, "etcd-certfile", "", "client certificate for the external etcd")
	f.StringVar(&etcd.key, "etcd-keyfile", "", "key of --etcd-certfile")
	logs.register(f)
	return cmd
}
