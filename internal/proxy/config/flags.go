package config

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// Flags are kube-proxy's flags. Those that say what to do, and those that stay
// in force beside a file, are fields; the others go into Config.
type Flags struct {
	File          string // --config
	WriteConfigTo string
	Cleanup       bool
	InitOnly      bool
	Version       bool
	Master        string
	Hostname      string
	Config        *Config

	set *pflag.FlagSet
	// Deprecated: a port of 0 turns the server off.
	healthzPort, metricsPort int32
	verbosity                uint32
	logFormat                string
	detectMode               string
}

// Register adds the flags to f.
func (f *Flags) Register(set *pflag.FlagSet) {
	f.set = set
	c := New()
	f.Config = c
	set.StringVar(&f.File, "config", "", "KubeProxyConfiguration to read; it replaces what other flags say, but --hostname-override, --master, -v and --logging-format")
	set.StringVar(&f.WriteConfigTo, "write-config-to", "", "write the configuration in force to this file, and exit")
	set.BoolVar(&f.Cleanup, "cleanup", false, "remove everything from the kernel, and exit")
	set.BoolVar(&f.InitOnly, "init-only", false, "do what needs full root (kernel settings), and exit")
	set.BoolVar(&f.Version, "version", false, "print the version, and exit")
	set.StringVar(&f.Master, "master", "", "URL of the API server, in place of the kubeconfig's")
	set.StringVar(&f.Hostname, "hostname-override", "", "name of this node (default: the host's)")
	set.StringVar(&c.ClientConnection.Kubeconfig, "kubeconfig", "", "kubeconfig (default: the credentials of the pod)")
	set.StringVar(&c.ClientConnection.ContentType, "kube-api-content-type", c.ClientConnection.ContentType, "encoding of API requests")
	set.Float32Var(&c.ClientConnection.QPS, "kube-api-qps", c.ClientConnection.QPS, "API requests per second")
	set.Int32Var(&c.ClientConnection.Burst, "kube-api-burst", c.ClientConnection.Burst, "API requests at once")
	set.StringVar(&c.BindAddress, "bind-address", c.BindAddress, "address of this node, in place of the Node object's")
	set.StringVar(&c.HealthzBindAddress, "healthz-bind-address", c.HealthzBindAddress, "address and port of /healthz and /livez; empty for none")
	set.StringVar(&c.MetricsBindAddress, "metrics-bind-address", c.MetricsBindAddress, "address and port of /metrics; empty for none")
	set.BoolVar(&c.BindAddressHardFail, "bind-address-hard-fail", false, "end if a server's address is taken")
	set.BoolVar(&c.EnableProfiling, "profiling", false, "serve /debug/pprof beside /metrics")
	set.StringVar(&c.ShowHiddenMetricsForVersion, "show-hidden-metrics-for-version", "", "accepted")
	set.StringVar(&c.Mode, "proxy-mode", "", "nftables, iptables, ipvs or userspace (default: the best that this host can do)")
	set.Var(gates{&c.FeatureGates}, "feature-gates", "name=true or name=false, separated by commas")
	set.Var(&durationFlag{&c.ConfigSyncPeriod}, "config-sync-period", "how often the API server's objects are gone through")
	set.Var(int32Flag{c.IPTables.MasqueradeBit}, "iptables-masquerade-bit", "bit of the packet mark that asks for masquerading")
	set.BoolVar(&c.IPTables.MasqueradeAll, "masquerade-all", false, "masquerade all traffic to cluster IPs")
	set.BoolVar(c.IPTables.LocalhostNodePorts, "iptables-localhost-nodeports", true, "serve node ports on 127.0.0.1")
	set.Var(&durationFlag{&c.IPTables.SyncPeriod}, "iptables-sync-period", "the longest time between two syncs")
	set.Var(&durationFlag{&c.IPTables.MinSyncPeriod}, "iptables-min-sync-period", "the shortest time between two syncs")
	set.Var(&durationFlag{&c.IPVS.SyncPeriod}, "ipvs-sync-period", "the longest time between two syncs")
	set.Var(&durationFlag{&c.IPVS.MinSyncPeriod}, "ipvs-min-sync-period", "the shortest time between two syncs")
	set.StringVar(&c.IPVS.Scheduler, "ipvs-scheduler", "", "scheduler of mode ipvs")
	set.StringSliceVar(&c.IPVS.ExcludeCIDRs, "ipvs-exclude-cidrs", nil, "CIDRs that mode ipvs leaves alone")
	set.BoolVar(&c.IPVS.StrictARP, "ipvs-strict-arp", false, "answer ARP only for addresses of the interface asked on")
	set.Var(&durationFlag{&c.IPVS.TCPTimeout}, "ipvs-tcp-timeout", "timeout of mode ipvs")
	set.Var(&durationFlag{&c.IPVS.TCPFinTimeout}, "ipvs-tcpfin-timeout", "timeout of mode ipvs")
	set.Var(&durationFlag{&c.IPVS.UDPTimeout}, "ipvs-udp-timeout", "timeout of mode ipvs")
	set.StringVar(&f.detectMode, "detect-local-mode", "", "how local pods are told from other sources: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix")
	set.StringVar(&c.DetectLocal.BridgeInterface, "pod-bridge-interface", "", "bridge of the local pods")
	set.StringVar(&c.DetectLocal.InterfaceNamePrefix, "pod-interface-name-prefix", "", "beginning of the names of local pods' interfaces")
	set.StringVar(&c.ClusterCIDR, "cluster-cidr", "", "range of all pods; one of each family, separated by a comma")
	set.StringSliceVar(&c.NodePortAddresses, "nodeport-addresses", nil, "CIDRs of the addresses that node ports are served on, or primary")
	set.Var(int32Flag{c.OOMScoreAdj}, "oom-score-adj", "oom_score_adj of this process")
	set.Var(int32Flag{c.Conntrack.MaxPerCore}, "conntrack-max-per-core", "tracked connections per CPU; 0 leaves the kernel's limit")
	set.Var(int32Flag{c.Conntrack.Min}, "conntrack-min", "tracked connections at least")
	set.Var(&durationFlag{c.Conntrack.TCPEstablishedTimeout}, "conntrack-tcp-timeout-established", "timeout of idle TCP connections; 0 leaves the kernel's")
	set.Var(&durationFlag{c.Conntrack.TCPCloseWaitTimeout}, "conntrack-tcp-timeout-close-wait", "timeout of TCP connections in CLOSE_WAIT")
	set.BoolVar(&c.Conntrack.TCPBeLiberal, "conntrack-tcp-be-liberal", false, "track packets outside of the TCP window")
	set.Var(&durationFlag{&c.Conntrack.UDPTimeout}, "conntrack-udp-timeout", "timeout of UDP flows without an answer")
	set.Var(&durationFlag{&c.Conntrack.UDPStreamTimeout}, "conntrack-udp-timeout-stream", "timeout of UDP flows with answers")
	set.Int32Var(&f.healthzPort, "healthz-port", 10256, "port of /healthz if its address has none; 0 for no server")
	set.Int32Var(&f.metricsPort, "metrics-port", 10249, "port of /metrics if its address has none; 0 for no server")
	set.Uint32VarP(&f.verbosity, "v", "v", 0, "log more: 4 and above is debug")
	set.StringVar(&f.logFormat, "logging-format", "text", "text or json")
	// Accepted for the sake of command lines that have them.
	ignored := pflag.NewFlagSet("", pflag.ContinueOnError)
	for _, name := range []string{"boot-id-file", "machine-id-file", "vmodule", "log-flush-frequency", "log-text-info-buffer-size", "log-json-info-buffer-size"} {
		ignored.String(name, "", "accepted")
	}
	for _, name := range []string{"log-text-split-stream", "log-json-split-stream"} {
		ignored.Bool(name, false, "accepted")
	}
	ignored.VisitAll(func(x *pflag.Flag) { x.Hidden = true })
	set.AddFlagSet(ignored)
	for _, name := range []string{"healthz-port", "metrics-port"} {
		_ = set.MarkDeprecated(name, "give the port with the bind address")
	}
}

// Resolve returns the configuration in force: the file's, or the flags'. It is
// complete and valid.
func (f *Flags) Resolve() (c *Config, warnings []string, err error) {
	c = f.Config
	if f.File != "" {
		if c, warnings, err = Load(f.File); err != nil {
			return nil, warnings, err
		}
	} else {
		c.DetectLocalMode = f.detectMode
		f.periods(c)
		c.HealthzBindAddress = f.server("healthz", c.HealthzBindAddress, f.healthzPort)
		c.MetricsBindAddress = f.server("metrics", c.MetricsBindAddress, f.metricsPort)
	}
	if f.Hostname != "" || f.set.Changed("hostname-override") {
		c.HostnameOverride = f.Hostname
		if f.Hostname == "" {
			c.HostnameOverride = " " // named, but blank: an error
		}
	}
	if f.set.Changed("v") {
		c.Logging.Verbosity = f.verbosity
	}
	if f.set.Changed("logging-format") {
		c.Logging.Format = f.logFormat
	}
	c.Complete()
	off := []string{c.HealthzBindAddress, c.MetricsBindAddress}
	fill(&c.HealthzBindAddress, "0.0.0.0:0")
	fill(&c.MetricsBindAddress, "0.0.0.0:0")
	err = c.Validate()
	c.HealthzBindAddress, c.MetricsBindAddress = off[0], off[1]
	if err != nil {
		if f.File != "" {
			err = fmt.Errorf("%s: %w", f.File, err)
		}
		return nil, warnings, err
	}
	return c, append(warnings, c.Warnings()...), nil
}

// periods: the flags of iptables count unless the mode is ipvs, so they drive
// nftables too.
func (f *Flags) periods(c *Config) {
	if c.Mode == ModeNFTables || c.Mode == ModeUserspace {
		c.NFTables.SyncPeriod, c.NFTables.MinSyncPeriod = c.IPTables.SyncPeriod, c.IPTables.MinSyncPeriod
		c.NFTables.MasqueradeAll = c.IPTables.MasqueradeAll
		c.NFTables.MasqueradeBit = c.IPTables.MasqueradeBit
	}
}

// server is the address of a server, empty for none. The default's host is of
// the family of --bind-address.
func (f *Flags) server(name, address string, port int32) string {
	if f.set.Changed(name+"-port") && port == 0 || f.set.Changed(name+"-bind-address") && address == "" {
		return ""
	}
	if !f.set.Changed(name + "-bind-address") {
		d := Config{BindAddress: f.Config.BindAddress}
		d.Default()
		address = d.HealthzBindAddress
		if name == "metrics" {
			address = d.MetricsBindAddress
		}
		if f.set.Changed(name + "-port") {
			return address[:strings.LastIndexByte(address, ':')+1] + strconv.Itoa(int(port))
		}
		return address
	}
	return withPort(address, "", strconv.Itoa(int(port)))
}

type durationFlag struct{ d *Duration }

func (d *durationFlag) String() string {
	if d.d == nil {
		return ""
	}
	return string(*d.d)
}
func (d *durationFlag) Type() string { return "duration" }
func (d *durationFlag) Set(s string) error {
	if !valid(Duration(s)) || s == "" {
		return fmt.Errorf("%q is not a duration such as 30s", s)
	}
	*d.d = Duration(s)
	return nil
}

type int32Flag struct{ n *int32 }

func (i int32Flag) String() string {
	if i.n == nil {
		return ""
	}
	return strconv.Itoa(int(*i.n))
}
func (i int32Flag) Type() string { return "int32" }
func (i int32Flag) Set(s string) error {
	n, err := strconv.ParseInt(s, 0, 32)
	if err != nil {
		return fmt.Errorf("%q is not a number", s)
	}
	*i.n = int32(n)
	return nil
}

type gates struct{ m *map[string]bool }

func (g gates) String() string { return "" }
func (g gates) Type() string   { return "gates" }
func (g gates) Set(s string) error {
	for _, part := range strings.Split(s, ",") {
		name, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		on, err := strconv.ParseBool(strings.TrimSpace(value))
		if !ok || err != nil {
			return fmt.Errorf("%q is not name=true or name=false", part)
		}
		if *g.m == nil {
			*g.m = make(map[string]bool)
		}
		(*g.m)[strings.TrimSpace(name)] = on
	}
	return nil
}
