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
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/rutter-project/rutter/conformance/peer"
)

// nodeAddress is the address of the nodes, from TEST-NET-1 (RFC 5737).
const nodeAddress = "192.0.2.10"

// quietPeriod is how long a proxy must have been idle before the next change:
// longer than kube-proxy's minSyncPeriod of a second.
const quietPeriod = 1500 * time.Millisecond

// proxies are the contenders. Each runs in a network namespace of its own.
var proxies = []proxyContender{
	{"Rutter", startAgent},
	{kubeProxy, startKubeProxy},
}

const kubeProxy = "kube-proxy nftables"

type proxyContender struct {
	name  string
	start func(b *bench, dir string, reg *peer.Registry, ns *peer.Netns) (*proxyProcess, error)
}

// proxyProcess is a running proxy and the way to its metrics.
type proxyProcess struct {
	*peer.Process
	metrics func() (net.Conn, error)
}

func startKubeProxy(b *bench, dir string, reg *peer.Registry, ns *peer.Netns) (*proxyProcess, error) {
	p, err := peer.StartKubeProxy(b.program("peers/kube-proxy"), "kube-proxy", dir, ns,
		fmt.Sprintf(peer.ProxyConfig, reg.Kubeconfig, "bench", "nftables", "10.128.0.0/9", ""))
	if err != nil {
		return nil, err
	}
	return &proxyProcess{p.Process, func() (conn net.Conn, err error) {
		return conn, ns.Do(func() (err error) {
			conn, err = net.Dial("tcp", "127.0.0.1:10249")
			return err
		})
	}}, nil
}

// startAgent starts the whole agent, DNS included.
func startAgent(b *bench, dir string, reg *peer.Registry, ns *peer.Netns) (*proxyProcess, error) {
	run, data := filepath.Join(dir, "run"), filepath.Join(dir, "data")
	if err := errors.Join(os.MkdirAll(run, 0o755), os.MkdirAll(data, 0o755)); err != nil {
		return nil, err
	}
	p, err := peer.Start(peer.Command{Name: "rutter-agent", Dir: dir, Netns: ns, Args: []string{
		b.program("rutter"), "agent", "--kubeconfig", reg.Kubeconfig, "--node-name", "bench", "--node-ip", nodeAddress,
		"--cluster-cidr", "10.128.0.0/9", "--run-dir", run, "--data-dir", data}})
	if err != nil {
		return nil, err
	}
	return &proxyProcess{p, func() (net.Conn, error) { return net.Dial("unix", filepath.Join(run, "agent.sock")) }}, nil
}

// synced is how long the proxy says that its first pass over all services
// took: the sum of kube-proxy's metric for full passes, while there was one.
func (p *proxyProcess) synced() (time.Duration, error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return p.metrics() }}}
	res, err := client.Get("http://localhost/metrics")
	if err != nil {
		return 0, fmt.Errorf("reading metrics: %w", err)
	}
	defer res.Body.Close()
	const name = `kubeproxy_sync_full_proxy_rules_duration_seconds_sum{ip_family="IPv4"} `
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		if v, ok := strings.CutPrefix(lines.Text(), name); ok {
			s, err := strconv.ParseFloat(v, 64)
			return time.Duration(s * float64(time.Second)), err
		}
	}
	return 0, errors.Join(fmt.Errorf("the metrics have no %s", name), lines.Err())
}

// proxyResult is what was seen of one proxy.
type proxyResult struct {
	name      string
	first     time.Duration // process start → everything in the kernel
	synced    time.Duration // the part of it that was not reading from the API
	firstCPU  time.Duration
	fromWrite []time.Duration // API call → kernel
	fromEvent []time.Duration // watch event here → kernel
	cpu       []time.Duration // per change
	memory    peer.Memory
}

func (b *bench) proxy(ctx context.Context) error {
	dir, err := b.subdir("proxy")
	if err != nil {
		return err
	}
	reg, err := peer.StartRegistry(b.program("rutter-registry"), dir)
	if err != nil {
		return err
	}
	defer reg.Stop()
	if b.short {
		b.cluster.services = min(b.cluster.services, 1000)
	}
	b.say("proxy: loading %s into the API", b.cluster)
	if err := b.cluster.fill(ctx, reg.Client, func(n int) { b.say("proxy: %d services", n) }); err != nil {
		return err
	}
	if err := reg.AddNode(ctx, "bench", "", nodeAddress); err != nil {
		return err
	}
	var results []*proxyResult
	for _, p := range proxies {
		if !b.wanted(p.name) {
			continue
		}
		b.say("proxy: %s", p.name)
		r, err := b.measureProxy(ctx, dir, reg, p.start)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		r.name = p.name
		results = append(results, r)
	}
	b.printProxies(results)
	return nil
}

func (b *bench) measureProxy(ctx context.Context, dir string, reg *peer.Registry,
	start func(*bench, string, *peer.Registry, *peer.Netns) (*proxyProcess, error)) (*proxyResult, error) {
	r := &proxyResult{}
	return r, b.inNetns(reg, func(ns *peer.Netns) error {
		nft, err := openNFTables(ns)
		if err != nil {
			return err
		}
		defer nft.close()
		p, err := start(b, dir, reg, ns)
		if err != nil {
			return err
		}
		defer p.Stop()
		if err := b.follow(ctx, reg, p, nft, r); err != nil {
			return fmt.Errorf("%w\n%s", err, p.Log())
		}
		return nil
	})
}

// inNetns runs f with a network namespace that has a node's address and leads
// to the API server.
func (b *bench) inNetns(reg *peer.Registry, f func(*peer.Netns) error) (err error) {
	ns, err := peer.NewNetns()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ns.Close()) }()
	if err := errors.Join(ns.AddInterface("eth0", nodeAddress+"/24"), ns.Forward(reg.Address())); err != nil {
		return err
	}
	return f(ns)
}

// follow measures a proxy that has just been started.
func (b *bench) follow(ctx context.Context, reg *peer.Registry, p *proxyProcess, nft *nftables, r *proxyResult) (err error) {
	if r.first, err = firstProgramming(p.Process, nft, b.cluster); err != nil {
		return err
	}
	if err := p.Idle(quietPeriod, 2*time.Minute); err != nil {
		return err
	}
	if r.synced, err = p.synced(); err != nil {
		return err
	}
	if r.firstCPU, err = p.CPUWithChildren(); err != nil {
		return err
	}
	changes := 9
	if b.short {
		changes = 3
	}
	for i := range changes {
		if err := b.changeOne(ctx, reg, p.Process, nft, i, r); err != nil {
			return fmt.Errorf("changing one endpoint: %w", err)
		}
		if i == 2 && r.fromWrite[i] > time.Second {
			break // three of those will do
		}
	}
	r.memory, err = p.Memory()
	return err
}

// firstProgramming is the time from the start of the process to the transaction
// after which the kernel held all that it holds in the end. While a proxy works
// in several transactions the sets are listed four times a second; the last
// transaction before the list is the one that counts.
func firstProgramming(p *peer.Process, nft *nftables, cluster shape) (time.Duration, error) {
	all := make([]netip.Addr, cluster.services)
	for i := range all {
		all[i] = service(i).clusterIP()
	}
	var generation, listed uint32
	var changed, complete, lastList time.Time
	elements, found := 0, 0
	for ; ; time.Sleep(2 * time.Millisecond) {
		g, err := nft.generation()
		if err != nil {
			return 0, err
		}
		if g != generation {
			generation, changed = g, time.Now()
		}
		if generation != listed && time.Since(lastList) > 250*time.Millisecond {
			listed = generation
			before := changed
			n, f, err := nft.holds(all)
			if err != nil {
				return 0, err
			}
			if n != elements || f != found {
				elements, found, complete = n, f, before
			}
			lastList = time.Now()
		}
		if found == len(all) && time.Since(complete) > 3*time.Second {
			return complete.Sub(p.Started), nil
		}
		if time.Since(p.Started) > 5*time.Minute {
			return 0, fmt.Errorf("only %d of %d services are in the kernel after 5 minutes", found, len(all))
		}
		select {
		case <-p.Done():
			return 0, errors.New("it ended")
		default:
		}
	}
}

// changeOne replaces an endpoint of a service by one with a new address and
// waits for that address to be in the kernel.
func (b *bench) changeOne(ctx context.Context, reg *peer.Registry, p *peer.Process, nft *nftables, i int, r *proxyResult) error {
	m, err := nft.watchTransactions()
	if err != nil {
		return err
	}
	defer m.close()
	s := service((i*997 + 13) % b.cluster.services)
	endpointSlices := reg.Client.DiscoveryV1().EndpointSlices(s.namespace())
	old, err := endpointSlices.Get(ctx, s.name()+"-1", metav1.GetOptions{})
	if err != nil {
		return err
	}
	// This process's own watch sees the event when the proxy's does. It begins
	// now: the slice's own version may be older than the server's memory.
	now, err := endpointSlices.List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return err
	}
	w, err := endpointSlices.Watch(ctx, metav1.ListOptions{ResourceVersion: now.ResourceVersion,
		FieldSelector: fields.OneTermEqualSelector("metadata.name", old.Name).String()})
	if err != nil {
		return err
	}
	defer w.Stop()
	cpuBefore, err := p.CPUWithChildren()
	if err != nil {
		return err
	}

	addr := ipv4(10<<24 | 254<<16 | uint32(time.Now().UnixNano()&0xffff)) // new each time
	changed := old.DeepCopy()
	changed.Endpoints[b.cluster.endpoints/2].Addresses = []string{addr.String()}
	m.want <- addr
	events := make(chan time.Time, 1)
	go func() {
		defer close(events)
		for e := range w.ResultChan() {
			if s, ok := e.Object.(*discoveryv1.EndpointSlice); ok && e.Type == watch.Modified && s.ResourceVersion != old.ResourceVersion {
				events <- time.Now()
				return
			}
		}
	}()
	written := time.Now()
	if _, err := endpointSlices.Update(ctx, changed, metav1.UpdateOptions{}); err != nil {
		return err
	}
	var inKernel time.Time
	select {
	case inKernel = <-m.found:
	case <-time.After(time.Minute):
		return fmt.Errorf("endpoint %s of %s/%s was not in the kernel after a minute", addr, s.namespace(), s.name())
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	event, ok := <-events
	if !ok {
		return errors.New("the watch of this benchmark ended before its event")
	}
	r.fromWrite = append(r.fromWrite, inKernel.Sub(written))
	r.fromEvent = append(r.fromEvent, max(0, inKernel.Sub(event)))
	if err := p.Idle(quietPeriod, 2*time.Minute); err != nil {
		return err
	}
	cpuAfter, err := p.CPUWithChildren()
	if err != nil {
		return err
	}
	r.cpu = append(r.cpu, cpuAfter-cpuBefore)
	return nil
}

func (b *bench) printProxies(results []*proxyResult) {
	ref := &proxyResult{}
	for _, r := range results {
		if r.name == kubeProxy {
			ref = r
		}
	}
	t := &table{title: "Service proxy, first programming, " + b.cluster.String()}
	t.add("", "start → kernel s", "× faster", "of which sync s", "× faster", "CPU s", "× less", "RSS MB after")
	for _, r := range results {
		t.add(r.name,
			seconds(r.first), ratio(ref.first.Seconds(), r.first.Seconds()),
			seconds(r.synced), ratio(ref.synced.Seconds(), r.synced.Seconds()),
			seconds(r.firstCPU), ratio(ref.firstCPU.Seconds(), r.firstCPU.Seconds()),
			megabytes(r.memory.Resident))
	}
	t.notes = []string{
		"from the start of the process, so listing from the API is included; sync is the rest, by the proxy's own metric",
		"Rutter is the whole agent, DNS included; CPU includes the nft processes that kube-proxy starts"}
	b.out.print(t)

	t = &table{title: "Service proxy, one endpoint changed, " + b.cluster.String()}
	t.add("", "API write → kernel ms", "× faster", "watch event → kernel ms", "max ms", "× faster", "CPU ms", "× less")
	for _, r := range results {
		write, event, cpu := median(r.fromWrite), median(r.fromEvent), median(r.cpu)
		t.add(r.name,
			millis(write), ratio(float64(median(ref.fromWrite)), float64(write)),
			millis(event), millis(slices.Max(r.fromEvent)), ratio(float64(median(ref.fromEvent)), float64(event)),
			millis(cpu), ratio(float64(median(ref.cpu)), float64(cpu)))
	}
	t.notes = []string{"medians of several changes; the watch event is the one that this benchmark's own watch gets; CPU until the proxy is idle again"}
	b.out.print(t)
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f", d.Seconds()) }

func millis(d time.Duration) string { return fmt.Sprintf("%.2f", float64(d)/float64(time.Millisecond)) }
