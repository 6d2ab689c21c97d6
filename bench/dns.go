package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rutter-project/rutter/conformance/peer"
)

// corefile is the one that kubeadm installs, less lameduck (which only delays
// the end) with free ports, and a zone that is
// forwarded without a cache. Both CoreDNS and Rutter read it.
const corefile = `.:{PORT} {
    errors
    health 127.0.0.1:{PORT1}
    ready 127.0.0.1:{PORT2}
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        kubeconfig KUBECONFIG
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    prometheus 127.0.0.1:{PORT3}
    forward . UPSTREAM {
        max_concurrent 1000
    }
    cache 30
    loop
    reload
    loadbalance
}
nocache.test:{PORT} {
    errors
    forward . UPSTREAM
}
`

// endpointsPerService in the DNS part.
const endpointsPerService = 10

// querySet is one kind of query.
type querySet struct {
	name     string
	nxdomain float64 // share of the answers
	query    func(r *rand.Rand, services int) string
}

var querySets = []querySet{
	{"A, cluster IP", 0, queryA},
	{"A, headless × 10", 0, queryHeadless},
	{"SRV, headless × 10", 0, querySRV},
	{"NXDOMAIN", 1, queryNXDOMAIN},
	// What a pod's resolver asks: both families of names in the cluster, and
	// search-path misses of names outside.
	{"mix", 0.2, func(r *rand.Rand, services int) string {
		switch n := r.IntN(100); {
		case n < 35:
			return queryA(r, services)
		case n < 60:
			return strings.TrimSuffix(queryA(r, services), " A") + " AAAA"
		case n < 75:
			return queryHeadless(r, services)
		case n < 80:
			return querySRV(r, services)
		}
		return queryNXDOMAIN(r, services)
	}},
	{"A, forwarded and cached", 0, func(r *rand.Rand, _ int) string {
		return fmt.Sprintf("www-%d.example.test. A", r.IntN(1000))
	}},
	{"A, forwarded each time", 0, func(r *rand.Rand, _ int) string {
		return fmt.Sprintf("www-%d.nocache.test. A", r.IntN(1000))
	}},
}

func queryA(r *rand.Rand, services int) string {
	return service(r.IntN(services/10)*10+r.IntN(9)).fqdn() + " A"
}

func queryHeadless(r *rand.Rand, services int) string {
	return service(r.IntN(services/10)*10+9).fqdn() + " A"
}

func querySRV(r *rand.Rand, services int) string {
	return "_http._tcp." + service(r.IntN(services/10)*10+9).fqdn() + " SRV"
}

func queryNXDOMAIN(r *rand.Rand, _ int) string {
	return fmt.Sprintf("api-%d.example.com.ns%d.svc.cluster.local. A", r.IntN(1000), r.IntN(namespaces))
}

// contender is a server under load with what was seen of it.
type contender struct {
	name   string
	server *peer.Nameserver
	sets   []string // names of the query sets it can answer; nil: all
	blind  bool     // the echo: its answers mean nothing
	idle   peer.Memory
}

// measurement of one contender under one query set.
type measurement struct {
	perSecond []float64
	cpu       []time.Duration // per query, at full speed
	p50, p99  time.Duration   // at the common rate
	cpuAtRate time.Duration   // per query
}

// numbers are a flag of several, comma separated.
type numbers []int

func (n *numbers) String() string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(*n), " ", ","), "[]")
}

// Set reads them; each must be at least ten, for every tenth service is
// headless.
func (n *numbers) Set(s string) error {
	*n = nil
	for _, f := range strings.Split(s, ",") {
		v, err := strconv.Atoi(strings.TrimSpace(f))
		if err != nil || v < 10 {
			return fmt.Errorf("%q is no number of at least 10", f)
		}
		*n = append(*n, v)
	}
	slices.Sort(*n)
	return nil
}

func (b *bench) dns(ctx context.Context) error {
	dir, err := b.subdir("dns")
	if err != nil {
		return err
	}
	reg, err := peer.StartRegistry(b.program("rutter-registry"), dir)
	if err != nil {
		return err
	}
	defer reg.Stop()
	for _, services := range b.services {
		sub := filepath.Join(dir, fmt.Sprint(services))
		if err := os.Mkdir(sub, 0o755); err != nil {
			return err
		}
		if err := b.dnsAt(ctx, services, sub, reg); err != nil {
			return fmt.Errorf("%d services: %w", services, err)
		}
	}
	return nil
}

// dnsAt measures everybody with a number of services.
func (b *bench) dnsAt(ctx context.Context, services int, dir string, reg *peer.Registry) error {
	cluster := shape{services, endpointsPerService, true}
	b.say("dns: loading %s into the API", cluster)
	if err := cluster.fill(ctx, reg.Client, func(n int) { b.say("dns: %d services", n) }); err != nil {
		return err
	}
	contenders, err := b.startContenders(dir, services, reg)
	defer func() {
		for _, c := range contenders {
			c.server.Stop()
		}
	}()
	if err != nil {
		return err
	}
	rounds, seconds := 5, 1
	if b.short {
		rounds, seconds = 1, 1
	}
	r := rand.New(rand.NewPCG(1, 2)) // the same queries each time
	for _, set := range querySets {
		if !strings.Contains(set.name, b.queries) {
			continue
		}
		file := filepath.Join(dir, "queries.txt")
		var lines strings.Builder
		for range 10000 {
			lines.WriteString(set.query(r, services) + "\n")
		}
		if err := os.WriteFile(file, []byte(lines.String()), 0o644); err != nil {
			return err
		}
		b.say("dns: %s", set.name)
		title := fmt.Sprintf("DNS, %s, %s services", set.name, count(float64(services)))
		if err := b.loadAll(ctx, title, set, file, contenders, rounds, seconds); err != nil {
			return fmt.Errorf("%s: %w", set.name, err)
		}
	}
	return b.printMemory(cluster, contenders)
}

// loadAll runs one query set against everybody, in turns, and prints a table.
func (b *bench) loadAll(ctx context.Context, title string, set querySet, file string, all []*contender, rounds, seconds int) error {
	took := map[string]*measurement{}
	in := slices.DeleteFunc(slices.Clone(all), func(c *contender) bool {
		return c.sets != nil && !slices.Contains(c.sets, set.name)
	})
	for _, c := range in {
		took[c.name] = &measurement{}
	}
	for round := range rounds + 1 {
		for _, c := range in {
			l := load{file: file, addr: c.server.Addr, seconds: seconds, once: round == 0}
			res, cpu, err := b.observe(ctx, c, set, l)
			if err != nil {
				return err
			}
			if round > 0 { // the first one fills caches
				m := took[c.name]
				m.perSecond = append(m.perSecond, res.perSecond)
				m.cpu = append(m.cpu, cpu)
			}
		}
	}
	rate := 20000
	reference, limit := &measurement{}, &measurement{}
	if m, ok := took["echo"]; ok {
		limit = m
	}
	if m, ok := took["CoreDNS"]; ok {
		reference, rate = m, int(median(m.perSecond)/2)
	}
	for _, c := range in {
		res, cpu, err := b.observe(ctx, c, set, load{file: file, addr: c.server.Addr, seconds: seconds, rate: rate, latency: true})
		if err != nil {
			return err
		}
		m := took[c.name]
		m.p50, m.p99, m.cpuAtRate = percentile(res.latencies, 50), percentile(res.latencies, 99), cpu
	}
	t := &table{title: title}
	t.add("", "queries/s", "× CoreDNS", "of echo", "CPU µs", "of CoreDNS",
		fmt.Sprintf("at %s/s: CPU µs", count(float64(rate))), "of CoreDNS", "p50 µs", "p99 µs")
	for _, c := range in {
		m := took[c.name]
		t.add(c.name,
			count(median(m.perSecond)), ratio(median(m.perSecond), median(reference.perSecond)), ratio(median(m.perSecond), median(limit.perSecond)),
			micros(median(m.cpu)), ratio(float64(median(m.cpu)), float64(median(reference.cpu))),
			micros(m.cpuAtRate), ratio(float64(m.cpuAtRate), float64(reference.cpuAtRate)), micros(m.p50), micros(m.p99))
	}
	b.out.print(t)
	return nil
}

// observe runs one load and returns the server's CPU time per query with it.
func (b *bench) observe(ctx context.Context, c *contender, set querySet, l load) (*loadResult, time.Duration, error) {
	before, err := c.server.CPU()
	if err != nil {
		return nil, 0, err
	}
	res, err := l.run(ctx)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w\n%s", c.name, err, c.server.Log())
	}
	after, err := c.server.CPU()
	if err != nil {
		return nil, 0, err
	}
	if !c.blind {
		if err := res.check(set.nxdomain); err != nil {
			return nil, 0, fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return res, (after - before) / time.Duration(res.completed), nil
}

// startContenders starts the servers. Those of Debian that are not installed
// are left out.
func (b *bench) startContenders(dir string, services int, reg *peer.Registry) (all []*contender, err error) {
	up, err := startEcho(dir, "upstream")
	if err != nil {
		return nil, err
	}
	all = append(all, &contender{name: "upstream", server: up, sets: []string{}})
	text := corefile
	if b.corefile != "" {
		file, err := os.ReadFile(b.corefile)
		if err != nil {
			return all, err
		}
		text = string(file)
	}
	text = strings.NewReplacer("KUBECONFIG", reg.Kubeconfig, "UPSTREAM", up.Addr).Replace(text)

	starts := map[string]func() (*contender, error){
		"Rutter": func() (*contender, error) {
			s, err := peer.StartRutterDNS(b.program("rutter"), "rutter", dir, text)
			return &contender{server: s}, err
		},
		"echo": func() (*contender, error) {
			s, err := startEcho(dir, "echo")
			return &contender{server: s, blind: true}, err
		},
		"CoreDNS": func() (*contender, error) {
			s, err := peer.StartCoreDNS(b.program("peers/coredns"), "coredns", dir, text)
			return &contender{server: s}, err
		},
	}
	order := []string{"Rutter", "echo", "CoreDNS"}
	for _, d := range debianServers {
		if d.missing() {
			b.say("dns: %s is not installed, left out", d.name)
			continue
		}
		starts[d.name] = func() (*contender, error) {
			s, err := d.start(dir, services, up.Addr)
			return &contender{server: s, sets: d.sets}, err
		}
		order = append(order, d.name)
	}
	for _, name := range order {
		if !b.wanted(name) {
			continue
		}
		c, err := starts[name]()
		if err != nil {
			return all, err
		}
		c.name = name
		all = append(all, c)
		if !c.blind {
			last := service(services/10*10 - 1)
			if err := c.server.WaitForAnswer(last.fqdn(), 1, endpointsPerService); err != nil {
				return all, err
			}
		}
		if c.idle, err = c.server.Memory(); err != nil {
			return all, err
		}
	}
	return all, nil
}

// startEcho starts this program as the echo, or as the upstream.
func startEcho(dir, kind string) (*peer.Nameserver, error) {
	port, err := peer.Port()
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s := &peer.Nameserver{Addr: fmt.Sprintf("127.0.0.1:%d", port)}
	s.Process, err = peer.Start(peer.Command{Name: kind, Dir: dir, Args: []string{self, kind, s.Addr}})
	return s, err
}

func (b *bench) printMemory(cluster shape, all []*contender) error {
	t := &table{title: fmt.Sprintf("DNS, resident memory in MB with %s", cluster)}
	t.add("", "synced", "after the load", "anonymous")
	var errs []error
	for _, c := range all {
		if c.name == "upstream" {
			continue
		}
		m, err := c.server.Memory()
		errs = append(errs, err)
		t.add(c.name, megabytes(c.idle.Resident), megabytes(m.Resident), megabytes(m.Anonymous))
	}
	b.out.print(t)
	return errors.Join(errs...)
}
