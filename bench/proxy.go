package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
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
var proxies = []struct {
	name  string
	start func(b *bench, dir string, reg *peer.Registry, ns *peer.Netns) (*peer.Process, error)
}{
	{"Rutter", func(b *bench, dir string, reg *peer.Registry, ns *peer.Netns) (*peer.Process, error) {
		return startAgent(b, dir, reg, ns)
	}},
	{"kube-proxy nftables", func(b *bench, dir string, reg *peer.Registry, ns *peer.Netns) (*peer.Process, error) {
		p, err := peer.StartKubeProxy(b.program("peers/kube-proxy"), "kube-proxy", dir, ns,
			fmt.Sprintf(peer.ProxyConfig, reg.Kubeconfig, "bench", "nftables", "10.128.0.0/9", ""))
		if err != nil {
			return nil, err
		}
		return p.Process, nil
	}},
}

// startAgent starts the whole agent, DNS included.
func startAgent(b *bench, dir string, reg *peer.Registry, ns *peer.Netns) (*peer.Process, error) {
	run, data := filepath.Join(dir, "run"), filepath.Join(dir, "data")
	if err := errors.Join(os.MkdirAll(run, 0o755), os.MkdirAll(data, 0o755)); err != nil {
		return nil, err
	}
	return peer.Start(peer.Command{Name: "rutter-agent", Dir: dir, Netns: ns, Args: []string{
		b.program("rutter"), "agent", "--kubeconfig", reg.Kubeconfig, "--node-name", "bench", "--node-ip", nodeAddress,
		"--cluster-cidr", "10.128.0.0/9", "--run-dir", run, "--data-dir", data}})
}

// proxyResult is what was seen of one proxy.
type proxyResult struct {
	name      string
	first     time.Duration // process start → everything in the kernel
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
	start func(*bench, string, *peer.Registry, *peer.Netns) (*peer.Process, error)) (*proxyResult, error) {
	ns, err := peer.NewNetns()
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	if err := errors.Join(ns.AddInterface("eth0", nodeAddress+"/24"), ns.Forward(reg.Address())); err != nil {
		return nil, err
	}
	nft, err := openNFTables(ns)
	if err != nil {
		return nil, err
	}
	defer nft.close()
	p, err := start(b, dir, reg, ns)
	if err != nil {
		return nil, err
	}
	defer p.Stop()

	r := &proxyResult{}
	if r.first, err = b.firstProgramming(p, nft); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, p.Log())
	}
	if err := p.Idle(quietPeriod, 2*time.Minute); err != nil {
		return nil, err
	}
	if r.firstCPU, err = p.CPUWithChildren(); err != nil {
		return nil, err
	}
	changes := 9
	if b.short {
		changes = 3
	}
	for i := range changes {
		if err := b.changeOne(ctx, reg, p, nft, i, r); err != nil {
			return nil, fmt.Errorf("changing one endpoint: %w\n%s", err, p.Log())
		}
		if i == 2 && r.fromWrite[i] > time.Second {
			break // three of those will do
		}
	}
	r.memory, err = p.Memory()
	return r, err
}

// firstProgramming is the time from the start of the process to the transaction
// that completed the services in the kernel. While a proxy works in several
// transactions the tables are listed at most ten times a second, and the last
// transaction before the list is the one that counts.
func (b *bench) firstProgramming(p *peer.Process, nft *nftables) (time.Duration, error) {
	all := make([]netip.Addr, b.cluster.services)
	for i := range all {
		all[i] = service(i).clusterIP()
	}
	var generation, listed uint32
	var changed, lastList time.Time
	for n := 0; ; time.Sleep(2 * time.Millisecond) {
		g, err := nft.generation()
		if err != nil {
			return 0, err
		}
		if g != generation {
			generation, changed = g, time.Now()
		}
		if generation != listed && time.Since(lastList) > 100*time.Millisecond {
			listed = generation
			if n, err = nft.holds(all); err != nil {
				return 0, err
			}
			if n == len(all) {
				return changed.Sub(p.Started), nil
			}
			lastList = time.Now()
		}
		if time.Since(p.Started) > 5*time.Minute {
			return 0, fmt.Errorf("only %d of %d services are in the kernel after 5 minutes", n, len(all))
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
	// This process's own watch sees the event when the proxy's does.
	w, err := endpointSlices.Watch(ctx, metav1.ListOptions{ResourceVersion: old.ResourceVersion,
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
	event := <-events
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
		if r.name == "kube-proxy nftables" {
			ref = r
		}
	}
	t := &table{title: "Service proxy, " + b.cluster.String()}
	t.add("", "first programming s", "of kube-proxy", "CPU s", "one endpoint, from API write ms", "of kube-proxy", "from watch event ms", "max", "CPU ms per change", "RSS MB")
	for _, r := range results {
		write, event := median(r.fromWrite), median(r.fromEvent)
		t.add(r.name,
			fmt.Sprintf("%.2f", r.first.Seconds()), ratio(r.first.Seconds(), ref.first.Seconds()), fmt.Sprintf("%.2f", r.firstCPU.Seconds()),
			millis(write), ratio(float64(write), float64(median(ref.fromWrite))), millis(event), millis(slices.Max(r.fromEvent)),
			millis(median(r.cpu)), megabytes(r.memory.Resident))
	}
	t.notes = append(t.notes,
		"first programming is from the start of the process, so it includes listing from the API; Rutter is the whole agent, DNS included",
		"changes are medians; CPU includes the nft processes that kube-proxy starts, and all that is done until the proxy is idle again")
	b.out.print(t)
}

func millis(d time.Duration) string { return fmt.Sprintf("%.2f", float64(d)/float64(time.Millisecond)) }
