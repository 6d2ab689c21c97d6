package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/rutter-project/rutter/conformance/peer"
)

// quietPeriod is how long a proxy must have been idle before the next change:
// longer than kube-proxy's minSyncPeriod of a second.
const quietPeriod = 1200 * time.Millisecond

// proxyContender is a proxy in a mode. Each is measured on a ground of its own. A
// further mode is a further line.
type proxyContender struct {
	name   string
	mode   string // of KubeProxyConfiguration; empty: the whole agent
	rutter bool
	legacy bool   // with the iptables programs of before nf_tables
	than   string // whose figures its own are divided by
}

var proxyContenders = []proxyContender{
	{name: "Rutter nftables", mode: "nftables", rutter: true, than: kubeProxy},
	{name: "Rutter agent (with DNS)", rutter: true, than: kubeProxy},
	{name: "Rutter iptables", mode: "iptables", rutter: true, than: "kube-proxy iptables"},
	{name: "Rutter iptables-legacy", mode: "iptables", rutter: true, legacy: true, than: "kube-proxy iptables-legacy"},
	{name: "Rutter userspace", mode: "userspace", rutter: true, than: kubeProxy},
	{name: kubeProxy, mode: "nftables"},
	{name: "kube-proxy iptables", mode: "iptables"},
	{name: "kube-proxy iptables-legacy", mode: "iptables", legacy: true},
}

const kubeProxy = "kube-proxy nftables"

// proxyProcess is a running proxy and the way to its metrics.
type proxyProcess struct {
	*peer.Process
	metrics func() (net.Conn, error)
}

// start starts the proxyContender on a node.
func (c proxyContender) start(b *bench, dir string, reg *peer.Registry, node *peer.Netns) (*proxyProcess, error) {
	dir = filepath.Join(dir, strings.ReplaceAll(c.name, " ", "-"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if c.mode == "" {
		run, data := filepath.Join(dir, "run"), filepath.Join(dir, "data")
		if err := errors.Join(os.RemoveAll(run), os.RemoveAll(data), os.MkdirAll(run, 0o755), os.MkdirAll(data, 0o755)); err != nil {
			return nil, err
		}
		p, err := peer.Start(peer.Command{Name: "rutter-agent", Dir: dir, Netns: node, Args: []string{
			b.program("rutter"), "agent", "--kubeconfig", reg.Kubeconfig, "--node-name", "bench", "--node-ip", nodeAddress,
			"--cluster-cidr", podRange, "--run-dir", run, "--data-dir", data}})
		if err != nil {
			return nil, err
		}
		return &proxyProcess{p, func() (net.Conn, error) { return net.Dial("unix", filepath.Join(run, "agent.sock")) }}, nil
	}
	config := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, peer.ProxyConfig, reg.Kubeconfig, "bench", c.mode, podRange, ""), 0o644); err != nil {
		return nil, err
	}
	cmd := peer.Command{Name: "proxy", Dir: dir, Netns: node, Args: []string{b.program("peers/kube-proxy"), "--config", config}}
	if c.rutter {
		cmd.Args = []string{b.program("rutter"), "proxy", "--config", config}
	}
	if c.legacy {
		path, err := legacyPrograms(dir)
		if err != nil {
			return nil, err
		}
		cmd.Env = []string{"PATH=" + path + ":" + os.Getenv("PATH")}
	}
	p, err := peer.Start(cmd)
	if err != nil {
		return nil, err
	}
	return &proxyProcess{p, func() (conn net.Conn, err error) {
		return conn, node.Do(func() (err error) {
			conn, err = net.Dial("tcp", "127.0.0.1:10249")
			return err
		})
	}}, nil
}

// legacyPrograms is a directory in which iptables is iptables-legacy.
func legacyPrograms(dir string) (string, error) {
	bin := filepath.Join(dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return "", err
	}
	for _, v := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			target, err := exec.LookPath(v + "-legacy" + suffix)
			if err != nil {
				return "", fmt.Errorf("%w here: %w", errAbsent, err)
			}
			if err := os.Symlink(target, filepath.Join(bin, v+suffix)); err != nil && !errors.Is(err, os.ErrExist) {
				return "", err
			}
		}
	}
	return bin, nil
}

// errAbsent says that a proxyContender cannot take part.
var errAbsent = errors.New("not possible")

// counter reads the sum of a histogram of kube-proxy's, for IPv4, in seconds,
// and how often it was observed.
func (p *proxyProcess) counter(name string) (sum time.Duration, n int, err error) {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return p.metrics() }}}
	res, err := client.Get("http://localhost/metrics")
	if err != nil {
		return 0, 0, fmt.Errorf("reading metrics: %w", err)
	}
	defer res.Body.Close()
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		if v, ok := strings.CutPrefix(lines.Text(), name+`_sum{ip_family="IPv4"} `); ok {
			s, _ := strconv.ParseFloat(v, 64)
			sum = time.Duration(s * float64(time.Second))
		}
		if v, ok := strings.CutPrefix(lines.Text(), name+`_count{ip_family="IPv4"} `); ok {
			n, _ = strconv.Atoi(v)
		}
	}
	return sum, n, nil
}

const (
	fullSync    = "kubeproxy_sync_full_proxy_rules_duration_seconds"
	partialSync = "kubeproxy_sync_partial_proxy_rules_duration_seconds"
)

// proxy measures the proxyContenders in clusters of several sizes.
func (b *bench) proxy(ctx context.Context) error {
	if b.short {
		b.sizes = shapes{{services: 1, endpoints: 10}, {services: 200, endpoints: 10}}
	}
	var flows []sizedResults
	for i, size := range b.sizes {
		dir, err := b.subdir(fmt.Sprintf("proxy-%d", i))
		if err != nil {
			return err
		}
		results, err := b.proxySize(ctx, dir, size)
		flows = append(flows, sizedResults{size, results})
		if size.services > 1 && len(results) > 0 {
			b.printProxies(size, results)
		}
		if err != nil { // what was measured until then is worth something
			b.printConnections(flows)
			return fmt.Errorf("%s: %w", size, err)
		}
	}
	b.printConnections(flows)
	b.printThroughput(flows)
	return nil
}

// proxySize measures the proxyContenders in a cluster of one size.
func (b *bench) proxySize(ctx context.Context, dir string, size shape) ([]*proxyResult, error) {
	reg, err := peer.StartRegistry(b.program("rutter-registry"), dir)
	if err != nil {
		return nil, err
	}
	defer reg.Stop()
	b.say("proxy: loading %s into the API", size)
	if err := size.fill(ctx, reg.Client, func(n int) {
		if n%5000 == 0 {
			b.say("proxy: %d services", n)
		}
	}); err != nil {
		return nil, err
	}
	if err := reg.AddNode(ctx, "bench", "", nodeAddress); err != nil {
		return nil, err
	}
	course := &course{bench: b, ctx: ctx, reg: reg, size: size}
	if err := course.addBulk(); err != nil {
		return nil, err
	}
	results := []*proxyResult{}
	if direct, err := course.direct(); err != nil {
		return nil, err
	} else if b.wanted(directName) {
		results = append(results, direct)
	}
	for _, c := range proxyContenders {
		if !b.wanted(c.name) {
			continue
		}
		b.say("proxy: %s: %s", size, c.name)
		start := time.Now()
		r := &proxyResult{proxyContender: c}
		results = append(results, r)
		if r.err = course.run(dir, r); r.err != nil {
			b.say("proxy: %s: %v", c.name, r.err)
		}
		b.say("proxy: %s took %s", c.name, time.Since(start).Round(time.Second))
		if ctx.Err() != nil {
			return results, context.Cause(ctx)
		}
		if err := course.restore(); err != nil {
			return results, err
		}
	}
	return results, nil
}

// firstProgramming is the time from the start of the process until every
// service of a sample, spread over all of them, was connected to.
func (g *ground) firstProgramming(ctx context.Context, p *peer.Process, size shape, bound time.Duration) (time.Duration, error) {
	const sample = 500
	n := min(sample, size.services)
	vips := make([]netip.Addr, n)
	endpoints := make(map[netip.Addr][]netip.Addr, n)
	for i := range n {
		s := service(0)
		if n > 1 {
			s = service(i * (size.services - 1) / (n - 1)) // the last one too
		}
		vips[i] = s.clusterIP()
		for k := range size.endpoints {
			endpoints[vips[i]] = append(endpoints[vips[i]], s.endpoint(k, size.endpoints))
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-p.Done():
			cancel(fmt.Errorf("it ended: %s", lastLine(p.Log())))
		case <-ctx.Done():
		}
	}()
	served := func(vip netip.Addr) (time.Time, bool) {
		for _, e := range endpoints[vip] {
			if t, ok := g.server.first(e); ok {
				return t, true
			}
		}
		return time.Time{}, false
	}
	// A few tell when it is worth to ask all.
	few := []netip.Addr{vips[0], vips[n/2], vips[n-1]}
	if _, err := g.await(ctx, few, served, bound); err != nil {
		return 0, err
	}
	last, err := g.await(ctx, vips, served, bound)
	return last.Sub(p.Started), err
}

func lastLine(text string) string { return text[strings.LastIndexByte(text, '\n')+1:] }
