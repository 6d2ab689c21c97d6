// Package config reads a KubeProxyConfiguration, the configuration language of
// kube-proxy, with kube-proxy's flags, defaults and rules.
//
// types and defaults are here, load.go reads a file, flags.go the command
// line, validate.go finds what is wrong and says what is allowed, apply.go
// makes of it what package proxy understands.
package config

import (
	"time"

	"github.com/rutter-project/rutter/internal/proxy"
)

// The identity of the configuration format.
const (
	APIVersion = "kubeproxy.config.k8s.io/v1alpha1"
	Kind       = "KubeProxyConfiguration"
)

// Duration is a duration as the file has it: "30s". It is checked by Validate,
// which can name the field.
type Duration string

// Value is the duration; invalid text, which Validate reports, is 0.
func (d Duration) Value() time.Duration {
	v, _ := time.ParseDuration(string(d))
	return v
}

// Config is a KubeProxyConfiguration.
type Config struct {
	Kind       string `json:"kind"`
	APIVersion string `json:"apiVersion"`

	FeatureGates                map[string]bool  `json:"featureGates,omitempty"`
	ClientConnection            ClientConnection `json:"clientConnection"`
	Logging                     Logging          `json:"logging"`
	HostnameOverride            string           `json:"hostnameOverride"`
	BindAddress                 string           `json:"bindAddress"`
	HealthzBindAddress          string           `json:"healthzBindAddress"`
	MetricsBindAddress          string           `json:"metricsBindAddress"`
	BindAddressHardFail         bool             `json:"bindAddressHardFail"`
	EnableProfiling             bool             `json:"enableProfiling"`
	ShowHiddenMetricsForVersion string           `json:"showHiddenMetricsForVersion"`
	Mode                        string           `json:"mode"`
	IPTables                    IPTables         `json:"iptables"`
	IPVS                        IPVS             `json:"ipvs"`
	NFTables                    NFTables         `json:"nftables"`
	DetectLocalMode             string           `json:"detectLocalMode"`
	DetectLocal                 DetectLocal      `json:"detectLocal"`
	ClusterCIDR                 string           `json:"clusterCIDR"`
	NodePortAddresses           []string         `json:"nodePortAddresses"`
	OOMScoreAdj                 *int32           `json:"oomScoreAdj"`
	Conntrack                   Conntrack        `json:"conntrack"`
	ConfigSyncPeriod            Duration         `json:"configSyncPeriod"`
	PortRange                   string           `json:"portRange"`
	Winkernel                   Winkernel        `json:"winkernel"`
	WindowsRunAsService         bool             `json:"windowsRunAsService,omitempty"`
}

// ClientConnection is how the API server is reached.
type ClientConnection struct {
	Kubeconfig         string  `json:"kubeconfig"`
	AcceptContentTypes string  `json:"acceptContentTypes"`
	ContentType        string  `json:"contentType"`
	QPS                float32 `json:"qps"`
	Burst              int32   `json:"burst"`
}

// Logging is the part of component-base's logging block that has a meaning
// here; the rest is accepted.
type Logging struct {
	Format         string         `json:"format,omitempty"`
	FlushFrequency any            `json:"flushFrequency,omitempty"`
	Verbosity      uint32         `json:"verbosity,omitempty"`
	VModule        []any          `json:"vmodule,omitempty"`
	Options        map[string]any `json:"options,omitempty"`
}

// IPTables are the options of mode iptables.
type IPTables struct {
	MasqueradeBit      *int32   `json:"masqueradeBit"`
	MasqueradeAll      bool     `json:"masqueradeAll"`
	LocalhostNodePorts *bool    `json:"localhostNodePorts"`
	SyncPeriod         Duration `json:"syncPeriod"`
	MinSyncPeriod      Duration `json:"minSyncPeriod"`
}

// IPVS are the options of mode ipvs.
type IPVS struct {
	SyncPeriod    Duration `json:"syncPeriod"`
	MinSyncPeriod Duration `json:"minSyncPeriod"`
	Scheduler     string   `json:"scheduler"`
	ExcludeCIDRs  []string `json:"excludeCIDRs"`
	StrictARP     bool     `json:"strictARP"`
	TCPTimeout    Duration `json:"tcpTimeout"`
	TCPFinTimeout Duration `json:"tcpFinTimeout"`
	UDPTimeout    Duration `json:"udpTimeout"`
}

// NFTables are the options of mode nftables.
type NFTables struct {
	MasqueradeBit *int32   `json:"masqueradeBit"`
	MasqueradeAll bool     `json:"masqueradeAll"`
	SyncPeriod    Duration `json:"syncPeriod"`
	MinSyncPeriod Duration `json:"minSyncPeriod"`
}

// DetectLocal holds what detectLocalMode needs.
type DetectLocal struct {
	BridgeInterface     string `json:"bridgeInterface"`
	InterfaceNamePrefix string `json:"interfaceNamePrefix"`
}

// Conntrack are kernel settings of connection tracking. Nil is the default, 0
// leaves the kernel's value.
type Conntrack struct {
	MaxPerCore            *int32    `json:"maxPerCore"`
	Min                   *int32    `json:"min"`
	TCPEstablishedTimeout *Duration `json:"tcpEstablishedTimeout"`
	TCPCloseWaitTimeout   *Duration `json:"tcpCloseWaitTimeout"`
	TCPBeLiberal          bool      `json:"tcpBeLiberal"`
	UDPTimeout            Duration  `json:"udpTimeout"`
	UDPStreamTimeout      Duration  `json:"udpStreamTimeout"`
}

// Winkernel is Windows' and ignored.
type Winkernel struct {
	NetworkName           string `json:"networkName"`
	SourceVip             string `json:"sourceVip"`
	EnableDSR             bool   `json:"enableDSR"`
	RootHnsEndpointName   string `json:"rootHnsEndpointName"`
	ForwardHealthCheckVip bool   `json:"forwardHealthCheckVip"`
}

// The modes.
const (
	ModeIPTables  = proxy.ModeIPTables
	ModeIPVS      = proxy.ModeIPVS
	ModeNFTables  = proxy.ModeNFTables
	ModeUserspace = proxy.ModeUserspace
)

// The modes of telling local pods from other sources.
const (
	LocalByClusterCIDR = "ClusterCIDR"
	LocalByNodeCIDR    = "NodeCIDR"
	LocalByBridge      = "BridgeInterface"
	LocalByPrefix      = "InterfaceNamePrefix"
)

// New is a configuration of defaults.
func New() *Config {
	c := &Config{}
	c.Default()
	return c
}

// Default fills in what is not set. A zero cannot be told from what is unset
// where kube-proxy cannot either.
func (c *Config) Default() {
	c.Kind, c.APIVersion = Kind, APIVersion
	fill(&c.BindAddress, "0.0.0.0")
	v6 := isIPv6(c.BindAddress)
	if v6 {
		c.HealthzBindAddress = withPort(c.HealthzBindAddress, "[::]", "10256")
		c.MetricsBindAddress = withPort(c.MetricsBindAddress, "[::1]", "10249")
	} else {
		c.HealthzBindAddress = withPort(c.HealthzBindAddress, "0.0.0.0", "10256")
		c.MetricsBindAddress = withPort(c.MetricsBindAddress, "127.0.0.1", "10249")
	}
	fill(&c.ClientConnection.ContentType, "application/vnd.kubernetes.protobuf")
	if c.ClientConnection.QPS == 0 {
		c.ClientConnection.QPS = 5
	}
	if c.ClientConnection.Burst == 0 {
		c.ClientConnection.Burst = 10
	}
	fill(&c.Logging.Format, "text")
	if c.Logging.FlushFrequency == nil {
		c.Logging.FlushFrequency = "5s"
	}
	period := func(d *Duration, def Duration) {
		if d.Value() == 0 && valid(*d) {
			*d = def
		}
	}
	period(&c.IPTables.SyncPeriod, "30s")
	period(&c.IPTables.MinSyncPeriod, "1s")
	period(&c.IPVS.SyncPeriod, "30s")
	period(&c.IPVS.MinSyncPeriod, "0s")
	period(&c.IPVS.TCPTimeout, "0s")
	period(&c.IPVS.TCPFinTimeout, "0s")
	period(&c.IPVS.UDPTimeout, "0s")
	period(&c.NFTables.SyncPeriod, "30s")
	period(&c.NFTables.MinSyncPeriod, "1s")
	period(&c.ConfigSyncPeriod, "15m0s")
	period(&c.Conntrack.UDPTimeout, "0s")
	period(&c.Conntrack.UDPStreamTimeout, "0s")
	pointer(&c.IPTables.MasqueradeBit, 14)
	pointer(&c.NFTables.MasqueradeBit, 14)
	pointer(&c.IPTables.LocalhostNodePorts, true)
	pointer(&c.OOMScoreAdj, -999)
	pointer(&c.Conntrack.MaxPerCore, 32768)
	pointer(&c.Conntrack.Min, 131072)
	pointer(&c.Conntrack.TCPEstablishedTimeout, "24h0m0s")
	pointer(&c.Conntrack.TCPCloseWaitTimeout, "1h0m0s")
}

// Complete fills in what depends on the platform, after file and flags. A mode
// that is not given stays so: the options are those of iptables, as with
// kube-proxy, and the dataplane is the best that the host can do.
func (c *Config) Complete() {
	fill(&c.DetectLocalMode, LocalByClusterCIDR)
	if (c.Mode == ModeNFTables || c.Mode == ModeUserspace) && len(c.NodePortAddresses) == 0 {
		c.NodePortAddresses = []string{"primary"}
	}
}

// block is what the block of the active mode says.
func (c *Config) block() (masqueradeAll bool, bit *int32, syncPeriod, minSyncPeriod Duration, field string) {
	switch c.Mode {
	case ModeNFTables, ModeUserspace:
		return c.NFTables.MasqueradeAll, c.NFTables.MasqueradeBit, c.NFTables.SyncPeriod, c.NFTables.MinSyncPeriod, "nftables"
	case ModeIPVS:
		return c.IPTables.MasqueradeAll, c.IPTables.MasqueradeBit, c.IPVS.SyncPeriod, c.IPVS.MinSyncPeriod, "ipvs"
	}
	return c.IPTables.MasqueradeAll, c.IPTables.MasqueradeBit, c.IPTables.SyncPeriod, c.IPTables.MinSyncPeriod, "iptables"
}

func fill(s *string, def string) {
	if *s == "" {
		*s = def
	}
}

func pointer[T any](p **T, def T) {
	if *p == nil {
		*p = &def
	}
}

func valid(d Duration) bool {
	if d == "" {
		return true
	}
	_, err := time.ParseDuration(string(d))
	return err == nil
}
