package main

import (
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/rutter-project/rutter/internal/agent"
	"github.com/rutter-project/rutter/internal/kubeapi"
	"github.com/rutter-project/rutter/internal/node/pod"
	"github.com/rutter-project/rutter/internal/node/sandbox"
)

// job is a pod's specification as flags give it.
type job struct {
	pod.Job
	podCIDRs, labels, ports, env       []string
	user, dnsPolicy                    string
	dns, dnsSearch, dnsOptions         []string
	readiness                          string
	initialDelay, period, timeout      time.Duration
	successThreshold, failureThreshold int32
}

func (j *job) register(f *pflag.FlagSet) {
	f.StringVar(&j.Kubeconfig, "kubeconfig", "", "kubeconfig of the API server (default $KUBECONFIG, else agent.kubeconfig in --run-dir)")
	f.StringVar(&j.RunDir, "run-dir", agent.DefaultRunDir, "directory for sockets, locks and the state of pods")
	f.StringVar(&j.NodeName, "node-name", "", "name of this node (default: what the agent here says, else the host name)")
	f.StringSliceVar(&j.podCIDRs, "pod-cidr", nil, "ranges to take the pod's addresses from, one per family (default: what the Node object says)")

	f.StringVarP(&j.Spec.Namespace, "namespace", "n", "default", "namespace of the pod")
	f.StringVar(&j.Spec.Name, "name", "", "name of the pod (default: made from the command)")
	f.StringArrayVarP(&j.labels, "label", "l", nil, "label of the pod, as KEY=VALUE; services select pods by labels")
	f.StringVar(&j.Spec.Hostname, "hostname", "", "host name of the pod (default its name)")
	f.StringVar(&j.Spec.Subdomain, "subdomain", "", "headless service below which the pod has a name: HOSTNAME.SUBDOMAIN.NAMESPACE.svc.DOMAIN; needs --hostname")
	f.StringArrayVar(&j.ports, "port", nil, "port the process listens on, as [NAME=]NUMBER[/tcp|udp|sctp]")
	f.StringArrayVarP(&j.env, "env", "e", nil, "environment variable, as NAME=VALUE, or NAME to take the caller's")
	f.StringVarP(&j.Spec.Dir, "workdir", "w", "", "working directory (default the present one)")
	f.StringVarP(&j.user, "user", "u", "", "user to run the command as, as NAME|UID[:GROUP|GID] (default the caller)")
	f.BoolVar(&j.Spec.Remove, "rm", false, "take the pod out of the API when the process ends (else it stays, Succeeded or Failed, until it is stopped)")
	f.DurationVar(&j.Spec.Grace, "grace", pod.DefaultGrace, "time for the process to end between TERM and KILL")

	f.StringVar(&j.readiness, "readiness", "", "readiness probe: http-get=PATH:PORT, https-get=PATH:PORT, tcp=:PORT or exec=COMMAND; PORT may be a --port's name")
	f.DurationVar(&j.initialDelay, "readiness-initial-delay", 0, "time before the first probe")
	f.DurationVar(&j.period, "readiness-period", 10*time.Second, "time between probes")
	f.DurationVar(&j.timeout, "readiness-timeout", time.Second, "time after which a probe has failed")
	f.Int32Var(&j.successThreshold, "readiness-success-threshold", 1, "successes in a row that make the pod ready")
	f.Int32Var(&j.failureThreshold, "readiness-failure-threshold", 3, "failures in a row that make it unready")

	f.StringVar(&j.dnsPolicy, "dns-policy", string(corev1.DNSClusterFirst), "ClusterFirst, Default (the host's resolvers) or None (only what --dns… say)")
	f.StringSliceVar(&j.dns, "dns", nil, "further nameserver")
	f.StringSliceVar(&j.dnsSearch, "dns-search", nil, "further search domain")
	f.StringSliceVar(&j.dnsOptions, "dns-option", nil, "resolver option, as NAME or NAME:VALUE; replaces one of the same name")
	f.StringSliceVar(&j.ClusterDNS, "cluster-dns", nil, "addresses of the cluster's DNS (default: what the agent here says)")
	f.StringVar(&j.Zone, "cluster-domain", "", "DNS domain of the cluster (default: what the agent here says)")
}

// complete reads the flags' texts into the specification.
func (j *job) complete(command []string) (err error) {
	if len(command) == 0 {
		return usageError{fmt.Errorf("no command given: rutter run [flags] -- COMMAND [ARG...]")}
	}
	for _, s := range j.podCIDRs {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return usageError{fmt.Errorf("--pod-cidr %q: want a range of addresses such as 10.244.0.0/24", s)}
		}
		j.PodCIDRs = append(j.PodCIDRs, p.Masked())
	}
	j.Spec.Command = command
	j.Kubeconfig = kubeapi.Path(j.Kubeconfig, j.RunDir)
	if j.NodeName == "" {
		if j.NodeName, err = kubeapi.NodeName(j.RunDir); err != nil {
			return err
		}
	}
	if j.Spec.Dir == "" {
		if j.Spec.Dir, err = os.Getwd(); err != nil {
			return fmt.Errorf("reading the working directory (or name one with --workdir): %w", err)
		}
	}
	if j.Spec.Labels, err = parseLabels(j.labels); err != nil {
		return usageError{err}
	}
	for _, s := range j.ports {
		p, err := parsePort(s)
		if err != nil {
			return usageError{err}
		}
		j.Spec.Ports = append(j.Spec.Ports, p)
	}
	if j.Spec.Env, err = parseEnv(j.env); err != nil {
		return usageError{err}
	}
	if err := j.completeUser(); err != nil {
		return usageError{err}
	}
	if err := j.completeDNS(); err != nil {
		return usageError{err}
	}
	if j.Spec.Readiness, err = j.parseReadiness(); err != nil {
		return usageError{err}
	}
	if err := j.Spec.Complete(); err != nil {
		return usageError{err}
	}
	return nil
}

// completeUser looks the user up on this host and sets what a login would:
// groups, HOME, USER and LOGNAME.
func (j *job) completeUser() error {
	if j.user == "" {
		return nil
	}
	name, group, hasGroup := strings.Cut(j.user, ":")
	u, err := user.Lookup(name)
	if err != nil {
		u, err = user.LookupId(name)
	}
	var out sandbox.User
	var groups []string
	switch uid, nerr := strconv.ParseUint(name, 10, 32); {
	case err == nil:
		if groups, err = u.GroupIds(); err != nil {
			return fmt.Errorf("--user %q: reading the user's groups: %w", j.user, err)
		}
		out.UID, out.GID = number(u.Uid), number(u.Gid)
		j.Spec.Env = append([]string{"HOME=" + u.HomeDir, "USER=" + u.Username, "LOGNAME=" + u.Username}, j.Spec.Env...)
	case nerr == nil: // nobody's number: as with chown, that is allowed
		out.UID, out.GID = uint32(uid), uint32(uid)
		j.Spec.Env = append([]string{"HOME=/"}, j.Spec.Env...)
	default:
		return fmt.Errorf("--user %q: this host has no user %s", j.user, name)
	}
	if hasGroup {
		groups = nil
		g, err := user.LookupGroup(group)
		if err == nil {
			group = g.Gid
		}
		gid, err := strconv.ParseUint(group, 10, 32)
		if err != nil {
			return fmt.Errorf("--user %q: this host has no group %s", j.user, group)
		}
		out.GID = uint32(gid)
	}
	for _, g := range groups {
		out.Groups = append(out.Groups, number(g))
	}
	j.Spec.User = &out
	return nil
}

// number reads an ID that the user database gave as text.
func number(s string) uint32 {
	n, _ := strconv.ParseUint(s, 10, 32)
	return uint32(n)
}

func (j *job) completeDNS() error {
	switch p := corev1.DNSPolicy(j.dnsPolicy); p {
	case corev1.DNSClusterFirst, corev1.DNSDefault:
		j.Spec.DNSPolicy = p
	case corev1.DNSNone:
		j.Spec.DNSPolicy = p
		if len(j.dns) == 0 {
			return fmt.Errorf("--dns-policy None needs at least one --dns")
		}
	default:
		return fmt.Errorf("--dns-policy %q: want ClusterFirst, Default or None", j.dnsPolicy)
	}
	if len(j.dns)+len(j.dnsSearch)+len(j.dnsOptions) == 0 {
		return nil
	}
	c := &corev1.PodDNSConfig{Nameservers: j.dns, Searches: j.dnsSearch}
	for _, o := range j.dnsOptions {
		name, value, has := strings.Cut(o, ":")
		option := corev1.PodDNSConfigOption{Name: name}
		if has {
			option.Value = &value
		}
		c.Options = append(c.Options, option)
	}
	j.Spec.DNSConfig = c
	return nil
}

func parseLabels(list []string) (map[string]string, error) {
	out := make(map[string]string, len(list))
	for _, s := range list {
		for _, one := range strings.Split(s, ",") {
			key, value, ok := strings.Cut(one, "=")
			if !ok || key == "" {
				return nil, fmt.Errorf("--label %q: want KEY=VALUE", one)
			}
			out[key] = value
		}
	}
	return out, nil
}

func parseEnv(list []string) ([]string, error) {
	var out []string
	for _, s := range list {
		name, _, given := strings.Cut(s, "=")
		if name == "" {
			return nil, fmt.Errorf("--env %q: want NAME=VALUE or NAME", s)
		}
		if !given {
			value, set := os.LookupEnv(name)
			if !set {
				continue
			}
			s = name + "=" + value
		}
		out = append(out, s)
	}
	return out, nil
}

func parsePort(s string) (corev1.ContainerPort, error) {
	p := corev1.ContainerPort{Protocol: corev1.ProtocolTCP}
	rest := s
	if name, after, ok := strings.Cut(rest, "="); ok {
		p.Name, rest = name, after
	}
	if number, protocol, ok := strings.Cut(rest, "/"); ok {
		p.Protocol, rest = corev1.Protocol(strings.ToUpper(protocol)), number
	}
	n, err := strconv.ParseUint(rest, 10, 16)
	if err != nil || n == 0 {
		return p, fmt.Errorf("--port %q: want [NAME=]NUMBER[/tcp|udp|sctp] with a number of 1-65535", s)
	}
	switch p.Protocol {
	case corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP:
	default:
		return p, fmt.Errorf("--port %q: the protocol is tcp, udp or sctp", s)
	}
	p.ContainerPort = int32(n)
	return p, nil
}

func (j *job) parseReadiness() (*corev1.Probe, error) {
	if j.readiness == "" {
		return nil, nil
	}
	p := &corev1.Probe{SuccessThreshold: j.successThreshold, FailureThreshold: j.failureThreshold}
	for _, d := range []struct {
		flag  string
		value time.Duration
		least time.Duration
		to    *int32
	}{
		{"initial-delay", j.initialDelay, 0, &p.InitialDelaySeconds},
		{"period", j.period, time.Second, &p.PeriodSeconds},
		{"timeout", j.timeout, time.Second, &p.TimeoutSeconds},
	} {
		if d.value < d.least || d.value%time.Second != 0 {
			return nil, fmt.Errorf("--readiness-%s %s: the API has whole seconds here, at least %s", d.flag, d.value, d.least)
		}
		*d.to = int32(d.value / time.Second)
	}
	if p.SuccessThreshold < 1 || p.FailureThreshold < 1 {
		return nil, fmt.Errorf("--readiness-success-threshold and --readiness-failure-threshold are at least 1")
	}
	kind, what, _ := strings.Cut(j.readiness, "=")
	switch kind {
	case "exec":
		if what == "" {
			return nil, fmt.Errorf("--readiness exec: which command?")
		}
		p.Exec = &corev1.ExecAction{Command: []string{"/bin/sh", "-c", what}}
	case "tcp", "http-get", "https-get":
		i := strings.LastIndexByte(what, ':')
		if i < 0 || i == len(what)-1 {
			return nil, fmt.Errorf("--readiness %q: the port is missing, as in %s=:80", j.readiness, kind)
		}
		port := intstr.Parse(what[i+1:])
		if kind == "tcp" {
			p.TCPSocket = &corev1.TCPSocketAction{Port: port, Host: what[:i]}
			break
		}
		p.HTTPGet = &corev1.HTTPGetAction{Path: what[:i], Port: port, Scheme: corev1.URISchemeHTTP}
		if kind == "https-get" {
			p.HTTPGet.Scheme = corev1.URISchemeHTTPS
		}
		if p.HTTPGet.Path == "" {
			p.HTTPGet.Path = "/"
		}
	default:
		return nil, fmt.Errorf("--readiness %q: want http-get=PATH:PORT, https-get=PATH:PORT, tcp=:PORT or exec=COMMAND", j.readiness)
	}
	return p, nil
}
