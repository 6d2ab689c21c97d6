package config

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Validate returns what is wrong, each with field, value and what is allowed,
// in one line.
func (c *Config) Validate() error {
	v := &validator{}
	v.durations(c)
	if _, err := netip.ParseAddr(c.BindAddress); err != nil {
		v.wrong("bindAddress", c.BindAddress, "an IP address")
	}
	v.hostPort("healthzBindAddress", c.HealthzBindAddress)
	v.hostPort("metricsBindAddress", c.MetricsBindAddress)
	if c.Mode != "" {
		v.oneOf("mode", c.Mode, ModeIPTables, ModeIPVS, ModeNFTables, ModeUserspace)
	}
	v.oneOf("detectLocalMode", c.DetectLocalMode, LocalByClusterCIDR, LocalByNodeCIDR, LocalByBridge, LocalByPrefix)
	switch c.DetectLocalMode {
	case LocalByBridge:
		v.required("detectLocal.bridgeInterface", c.DetectLocal.BridgeInterface, "in mode BridgeInterface")
	case LocalByPrefix:
		v.required("detectLocal.interfaceNamePrefix", c.DetectLocal.InterfaceNamePrefix, "in mode InterfaceNamePrefix")
	case LocalByClusterCIDR:
		v.clusterCIDR(c.ClusterCIDR)
	}
	if c.HostnameOverride != "" && strings.TrimSpace(c.HostnameOverride) == "" {
		v.wrong("hostnameOverride", c.HostnameOverride, "a name that is not blank")
	}
	v.within("iptables.masqueradeBit", c.IPTables.MasqueradeBit, 0, 31)
	v.within("nftables.masqueradeBit", c.NFTables.MasqueradeBit, 0, 31)
	v.within("oomScoreAdj", c.OOMScoreAdj, -1000, 1000)
	v.atLeast0("clientConnection.burst", int64(c.ClientConnection.Burst))
	v.atLeast0("conntrack.maxPerCore", int64(*c.Conntrack.MaxPerCore))
	v.atLeast0("conntrack.min", int64(*c.Conntrack.Min))
	v.nodePortAddresses(c.NodePortAddresses)
	for i, e := range c.IPVS.ExcludeCIDRs {
		if _, err := netip.ParsePrefix(e); err != nil {
			v.wrong(fmt.Sprintf("ipvs.excludeCIDRs[%d]", i), e, "a CIDR such as 10.0.0.0/8")
		}
	}
	v.oneOf("logging.format", c.Logging.Format, "text", "json")
	_, _, period, least, block := c.block()
	switch {
	case !valid(period) || !valid(least):
	case period.Value() <= 0:
		v.wrong(block+".syncPeriod", string(period), "more than 0")
	case least.Value() > period.Value():
		v.wrong(block+".minSyncPeriod", string(least), fmt.Sprintf("at most %s.syncPeriod, %s", block, period))
	}
	if valid(c.ConfigSyncPeriod) && c.ConfigSyncPeriod.Value() <= 0 {
		v.wrong("configSyncPeriod", string(c.ConfigSyncPeriod), "more than 0")
	}
	return v.err()
}

type validator struct{ problems []string }

func (v *validator) wrong(field, value, allowed string) {
	v.problems = append(v.problems, fmt.Sprintf("%s is %q: must be %s", field, value, allowed))
}

func (v *validator) err() error {
	if len(v.problems) == 0 {
		return nil
	}
	return errors.New(strings.Join(v.problems, "; "))
}

func (v *validator) durations(c *Config) {
	fields := []struct {
		field string
		value Duration
	}{
		{"iptables.syncPeriod", c.IPTables.SyncPeriod}, {"iptables.minSyncPeriod", c.IPTables.MinSyncPeriod},
		{"ipvs.syncPeriod", c.IPVS.SyncPeriod}, {"ipvs.minSyncPeriod", c.IPVS.MinSyncPeriod},
		{"ipvs.tcpTimeout", c.IPVS.TCPTimeout}, {"ipvs.tcpFinTimeout", c.IPVS.TCPFinTimeout}, {"ipvs.udpTimeout", c.IPVS.UDPTimeout},
		{"nftables.syncPeriod", c.NFTables.SyncPeriod}, {"nftables.minSyncPeriod", c.NFTables.MinSyncPeriod},
		{"conntrack.tcpEstablishedTimeout", *c.Conntrack.TCPEstablishedTimeout}, {"conntrack.tcpCloseWaitTimeout", *c.Conntrack.TCPCloseWaitTimeout},
		{"conntrack.udpTimeout", c.Conntrack.UDPTimeout}, {"conntrack.udpStreamTimeout", c.Conntrack.UDPStreamTimeout},
		{"configSyncPeriod", c.ConfigSyncPeriod},
	}
	for _, f := range fields {
		if d, err := time.ParseDuration(string(f.value)); err != nil {
			v.wrong(f.field, string(f.value), "a duration such as 30s or 1h30m")
		} else if d < 0 {
			v.wrong(f.field, string(f.value), "0 or more")
		}
	}
}

func (v *validator) hostPort(field, value string) {
	if a, err := netip.ParseAddrPort(value); err != nil || a.Port() == 0 && !strings.HasSuffix(value, ":0") {
		v.wrong(field, value, "an IP address and port such as 0.0.0.0:10256 or [::]:10256")
	}
}

func (v *validator) oneOf(field, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		v.wrong(field, value, "one of "+strings.Join(allowed, ", "))
	}
}

func (v *validator) required(field, value, when string) {
	if value == "" {
		v.wrong(field, value, "set "+when)
	}
}

func (v *validator) within(field string, value *int32, least, most int32) {
	if *value < least || *value > most {
		v.wrong(field, strconv.Itoa(int(*value)), fmt.Sprintf("from %d to %d", least, most))
	}
}

func (v *validator) atLeast0(field string, value int64) {
	if value < 0 {
		v.wrong(field, strconv.FormatInt(value, 10), "0 or more")
	}
}

func (v *validator) clusterCIDR(value string) {
	if value == "" {
		return
	}
	var families [2]int
	for _, part := range strings.Split(value, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(part))
		if err != nil {
			v.wrong("clusterCIDR", value, "a CIDR, or one of each family separated by a comma")
			return
		}
		if p.Addr().Is6() {
			families[1]++
		} else {
			families[0]++
		}
	}
	if families[0] > 1 || families[1] > 1 {
		v.wrong("clusterCIDR", value, "a CIDR, or one of each family separated by a comma")
	}
}

func (v *validator) nodePortAddresses(list []string) {
	for i, a := range list {
		field := fmt.Sprintf("nodePortAddresses[%d]", i)
		if a == "primary" {
			if len(list) > 1 {
				v.wrong(field, a, "the only entry")
			}
		} else if _, err := netip.ParsePrefix(a); err != nil {
			v.wrong(field, a, `a CIDR such as 10.0.0.0/8, or the single word "primary"`)
		}
	}
}
