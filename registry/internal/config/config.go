// Package config turns the command line of rutter-registry into a validated
// Config. It is pure: nothing is created, opened or dialled, so that a wrong
// command line is refused before anything on the host has changed.
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// Config is everything the registry needs to know, parsed and checked.
type Config struct {
	DataDir string // absolute

	Bind netip.Addr
	Port uint16 // 0: the kernel picks one (used by tests)

	// Advertise is the address of this API server that the `kubernetes`
	// Service leads to. It equals Bind when Routable is false.
	Advertise netip.Addr
	// Routable says that Advertise may be an endpoint address. The API
	// refuses loopback endpoint addresses (pkg/apis/core/validation,
	// ValidateNonSpecialIP), so a loopback registry publishes none.
	Routable bool

	ServiceCIDRs []netip.Prefix // one, or one of each family; the first is the primary
	PodCIDRs     []netip.Prefix // likewise; the primary families agree

	ClusterDomain string

	Etcd Etcd

	LogLevel  slog.Level
	LogFormat string // "text" or "json"
}

// Etcd says where the data lives. Without endpoints, an etcd is run inside
// the process.
type Etcd struct {
	Endpoints []string
	CAFile    string
	CertFile  string
	KeyFile   string
	Prefix    string // begins with a slash
}

// External says whether etcd is somebody else's.
func (e Etcd) External() bool { return len(e.Endpoints) > 0 }

// ErrHelp is returned when --help was asked for and printed.
var ErrHelp = pflag.ErrHelp

// ErrVersion is returned when --version was asked for.
var ErrVersion = errors.New("version requested")

// Outbound finds the local address that the host would use to reach others,
// for one family. It is a parameter of Parse so that Parse stays pure.
type Outbound func(ipv6 bool) (netip.Addr, error)

// Defaults. The ranges are those of kubeadm and kind, so that documents and
// examples written for them fit.
const (
	defaultServiceCIDR = "10.96.0.0/16"
	defaultPodCIDR4    = "10.244.0.0/16"
	defaultPodCIDR6    = "fd00:10:244::/56"
	defaultDataDir     = "/var/lib/rutter/registry"
)

// Parse reads the command line (without the program's name). Every error is
// one line that names the flag, what is wrong and how to mend it.
func Parse(args []string, outbound Outbound) (Config, string, error) {
	fs := pflag.NewFlagSet("rutter-registry", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.Usage = func() {} // the caller prints what Parse returns
	var (
		dataDir       = fs.String("data-dir", defaultDataDir, "directory for etcd's data, certificates, keys and kubeconfigs")
		bind          = fs.String("bind-address", "127.0.0.1", "IP address to serve the API on; 0.0.0.0 or :: for all")
		port          = fs.String("secure-port", "6443", "port to serve the API on; 0 picks a free one")
		advertise     = fs.String("advertise-address", "", "IP address under which other hosts reach this API server (default: --bind-address, or this host's address when that is 0.0.0.0 or ::)")
		serviceCIDR   = fs.String("service-cidr", defaultServiceCIDR, "range of cluster IPs; two ranges, comma separated, for dual stack")
		podCIDR       = fs.String("pod-cidr", defaultPodCIDR4, "range out of which each node gets a part for its pods; two ranges, comma separated, for dual stack (default for IPv6: "+defaultPodCIDR6+")")
		domain        = fs.String("cluster-domain", "cluster.local", "DNS domain of the cluster, for the certificate's names")
		endpoints     = fs.String("etcd-endpoints", "", "URLs of an external etcd, comma separated (default: etcd runs inside this process)")
		etcdCA        = fs.String("etcd-cafile", "", "CA certificate of the external etcd")
		etcdCert      = fs.String("etcd-certfile", "", "client certificate for the external etcd")
		etcdKey       = fs.String("etcd-keyfile", "", "key of --etcd-certfile")
		etcdPrefix    = fs.String("etcd-prefix", "/registry", "prefix of all keys in etcd")
		level         = fs.String("log-level", "info", "debug, info, warn or error")
		format        = fs.String("log-format", "text", "text or json")
		version, help bool
	)
	fs.BoolVar(&version, "version", false, "print the version and exit")
	fs.BoolVarP(&help, "help", "h", false, "print this help and exit")
	usage := "rutter-registry serves the Kubernetes API that Services need, with etcd inside.\n\nUsage: rutter-registry [flags]\n\n" + fs.FlagUsages()
	if err := fs.Parse(args); err != nil {
		return Config{}, usage, fmt.Errorf("%w; see rutter-registry --help", err)
	}
	switch {
	case help:
		return Config{}, usage, ErrHelp
	case version:
		return Config{}, usage, ErrVersion
	case fs.NArg() > 0:
		return Config{}, usage, fmt.Errorf("unexpected argument %q; rutter-registry takes flags only, see rutter-registry --help", fs.Arg(0))
	}

	c := Config{Etcd: Etcd{CAFile: *etcdCA, CertFile: *etcdCert, KeyFile: *etcdKey}}
	var err error
	if *dataDir == "" {
		return c, usage, errors.New("--data-dir is empty; give a directory")
	}
	if c.DataDir, err = filepath.Abs(*dataDir); err != nil {
		return c, usage, fmt.Errorf("--data-dir %q: %w", *dataDir, err)
	}
	if c.Bind, err = parseAddr("--bind-address", *bind); err != nil {
		return c, usage, err
	}
	p, err := strconv.ParseUint(*port, 10, 16)
	if err != nil {
		return c, usage, fmt.Errorf("--secure-port %q is not a port; give 1 to 65535", *port)
	}
	c.Port = uint16(p)
	if c.ServiceCIDRs, err = parseRanges("--service-cidr", *serviceCIDR, checkServiceRange); err != nil {
		return c, usage, err
	}
	pods := *podCIDR
	if !fs.Changed("pod-cidr") {
		pods = defaultPodCIDRs(c.ServiceCIDRs)
	}
	if c.PodCIDRs, err = parseRanges("--pod-cidr", pods, checkPodRange); err != nil {
		return c, usage, err
	}
	if err := checkTogether(c.ServiceCIDRs, c.PodCIDRs); err != nil {
		return c, usage, err
	}
	if c.ClusterDomain, err = parseDomain(*domain); err != nil {
		return c, usage, err
	}
	if c.Etcd.Endpoints, err = parseEndpoints(*endpoints); err != nil {
		return c, usage, err
	}
	if c.Etcd.Prefix, err = checkEtcd(c.Etcd, *etcdPrefix, fs.Changed("etcd-prefix")); err != nil {
		return c, usage, err
	}
	if err := c.LogLevel.UnmarshalText([]byte(*level)); err != nil || !oneOf(strings.ToLower(*level), "debug", "info", "warn", "error") {
		return c, usage, fmt.Errorf("--log-level %q is not known; give debug, info, warn or error", *level)
	}
	if c.LogFormat = *format; !oneOf(c.LogFormat, "text", "json") {
		return c, usage, fmt.Errorf("--log-format %q is not known; give text or json", *format)
	}
	if err := c.setAdvertise(*advertise, outbound); err != nil {
		return c, usage, err
	}
	return c, usage, nil
}

// setAdvertise decides Advertise and Routable.
func (c *Config) setAdvertise(flag string, outbound Outbound) error {
	if flag != "" {
		a, err := parseAddr("--advertise-address", flag)
		if err != nil {
			return err
		}
		switch {
		case a.IsUnspecified():
			return fmt.Errorf("--advertise-address %s is not an address others can connect to; give one of this host's addresses", a)
		case a.IsLoopback() && !c.Bind.IsLoopback():
			return fmt.Errorf("--advertise-address %s is loopback while --bind-address %s is not; give an address other hosts can reach", a, c.Bind)
		}
		c.Advertise, c.Routable = a, !a.IsLoopback()
	} else {
		switch {
		case c.Bind.IsLoopback():
			c.Advertise = c.Bind
		case !c.Bind.IsUnspecified():
			c.Advertise, c.Routable = c.Bind, true
		default:
			a, err := outbound(c.ServiceCIDRs[0].Addr().Is6())
			if err != nil {
				return fmt.Errorf("--bind-address is %s and no address of this host could be chosen to advertise (%w); give --advertise-address", c.Bind, err)
			}
			c.Advertise, c.Routable = a, true
		}
	}
	if !c.Routable {
		return nil
	}
	// The endpoint of the `kubernetes` Service must be of that Service's family.
	if c.Advertise.Is6() != c.ServiceCIDRs[0].Addr().Is6() {
		return fmt.Errorf("the advertised address %s and the first --service-cidr %s are of different IP families; give --advertise-address, or put the other range first", c.Advertise, c.ServiceCIDRs[0])
	}
	for _, p := range c.ServiceCIDRs {
		if p.Contains(c.Advertise) {
			return fmt.Errorf("the advertised address %s lies inside --service-cidr %s; choose another range", c.Advertise, p)
		}
	}
	return nil
}

// LocalHost is the host part of the URL under which this host reaches the API.
func (c Config) LocalHost() netip.Addr {
	switch {
	case c.Bind == netip.IPv4Unspecified():
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case c.Bind == netip.IPv6Unspecified():
		return netip.IPv6Loopback()
	}
	return c.Bind
}

func parseAddr(flag, s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || a.Is4In6() {
		return netip.Addr{}, fmt.Errorf("%s %q is not an IP address; give one such as 127.0.0.1 or ::1", flag, s)
	}
	if a.IsMulticast() {
		return netip.Addr{}, fmt.Errorf("%s %s is a multicast address; give a unicast one", flag, a)
	}
	return a, nil
}

// label is RFC 1123's, as Kubernetes uses it for cluster domains.
var label = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

func parseDomain(s string) (string, error) {
	d := strings.TrimSuffix(strings.ToLower(s), ".")
	ok := d != "" && len(d) <= 200 // leaves room for names below it: a DNS name has at most 253 characters
	for l := range strings.SplitSeq(d, ".") {
		ok = ok && label.MatchString(l)
	}
	if !ok {
		return "", fmt.Errorf("--cluster-domain %q is not a DNS domain; give one such as cluster.local", s)
	}
	return d, nil
}

func parseEndpoints(s string) ([]string, error) {
	if s == "" {
		return nil, nil
	}
	var out []string
	scheme := ""
	for e := range strings.SplitSeq(s, ",") {
		e = strings.TrimSuffix(strings.TrimSpace(e), "/")
		u, err := url.Parse(e)
		if err != nil || !oneOf(u.Scheme, "http", "https") || u.Hostname() == "" || u.Port() == "" || u.Path != "" {
			return nil, fmt.Errorf("--etcd-endpoints: %q is not an etcd URL; give scheme, host and port, such as https://10.0.0.1:2379", e)
		}
		if scheme != "" && scheme != u.Scheme {
			return nil, fmt.Errorf("--etcd-endpoints mixes http and https; use one of them for all")
		}
		scheme = u.Scheme
		out = append(out, e)
	}
	return out, nil
}

// checkEtcd checks the etcd flags against each other and returns the prefix.
func checkEtcd(e Etcd, prefix string, prefixGiven bool) (string, error) {
	for _, f := range []struct{ flag, value string }{{"--etcd-cafile", e.CAFile}, {"--etcd-certfile", e.CertFile}, {"--etcd-keyfile", e.KeyFile}} {
		switch {
		case f.value == "":
		case !e.External():
			return "", fmt.Errorf("%s is given without --etcd-endpoints; the etcd inside this process needs no certificates", f.flag)
		case strings.HasPrefix(e.Endpoints[0], "http:"):
			return "", fmt.Errorf("%s is given but --etcd-endpoints uses http; write https:// in --etcd-endpoints", f.flag)
		}
	}
	if (e.CertFile == "") != (e.KeyFile == "") {
		return "", errors.New("--etcd-certfile and --etcd-keyfile belong together; give both or none")
	}
	if prefixGiven && !e.External() {
		return "", errors.New("--etcd-prefix is given without --etcd-endpoints; the etcd inside this process is not shared and needs no prefix")
	}
	p := "/" + strings.Trim(prefix, "/")
	if p == "/" {
		return "", fmt.Errorf("--etcd-prefix %q is empty; give one such as /registry", prefix)
	}
	return p, nil
}

func oneOf(s string, of ...string) bool {
	for _, o := range of {
		if s == o {
			return true
		}
	}
	return false
}
