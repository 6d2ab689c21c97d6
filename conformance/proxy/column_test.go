package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rutter-project/rutter/conformance/peer"
)

// kind is a proxy that is compared. To compare another dataplane, add it here:
// what it is expected to do is found by its words (see row.expected).
type kind struct {
	proxy string // kube-proxy or rutter
	mode  string // of KubeProxyConfiguration
	// backend is that of what is called iptables; empty: the host's.
	backend string
}

func (k kind) String() string { return strings.TrimSpace(k.proxy + " " + k.mode + " " + k.backend) }

var kinds = []kind{
	{"kube-proxy", "iptables", ""},
	{"kube-proxy", "nftables", ""},
	{"rutter", "nftables", ""},
	{"rutter", "iptables", "nft"},
	{"rutter", "iptables", "legacy"},
	{"rutter", "userspace", ""},
	{"kube-proxy", "ipvs", ""},
	{"rutter", "ipvs", ""},
}

// inVM tells that this runs on a kernel with IPVS, in an emulated machine
// (scripts/qemu.sh): mode ipvs is looked at there, the others elsewhere.
var inVM = os.Getenv("RUTTER_IPVS") != ""

// slowness is how many times longer things may take: an emulated machine is
// slow.
var slowness = map[bool]time.Duration{false: 1, true: 4}[inVM]

func (k kind) here() bool {
	return (k.mode == "ipvs") == inVM && (k.backend != "legacy" || legacyWorks())
}

// legacyWorks tells whether the kernel has what iptables' legacy back end
// writes to: newer ones may be built without.
var legacyWorks = sync.OnceValue(func() bool {
	cmd := exec.Command("iptables-legacy", "-w", "-t", "nat", "-S")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	return cmd.Run() == nil
})

// column is a kind of proxy at work: a world with its processes.
type column struct {
	kind
	world *world
	env   *environment
	dir   string
	edit  func(kind) string // of the configuration, for a variant
	nodes []string          // that have a proxy

	proxies map[string]*peer.Proxy // by node
	flows   map[string]*heldFlow   // held open by a scenario
	load    *traffic               // that a scenario started, or nil
	program string                 // other than the environment's, if not empty
}

// heldFlow is an open flow, and what it said first.
type heldFlow struct {
	flow
	first string
}

// proxyConfig is the configuration of every proxy. The sync periods are short:
// what is looked at is what is done, not when; and what kube-proxy repairs
// after a period it must repair within a row's patience.
const proxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection:
  kubeconfig: %s
hostnameOverride: %s
mode: %s
conntrack:
  maxPerCore: 0
  min: 0
  tcpEstablishedTimeout: 0s
  tcpCloseWaitTimeout: 0s
iptables:
  syncPeriod: %[4]s
  minSyncPeriod: 10ms
%[5]sipvs:
  syncPeriod: %[4]s
nftables:
  syncPeriod: %[4]s
  minSyncPeriod: 10ms
%[5]s%[6]s`

var syncPeriod = map[bool]time.Duration{false: time.Second, true: 4 * time.Second}[inVM]

// newColumn builds the world of a column; edit may be nil.
func newColumn(env *environment, k kind, name string, edit func(kind) string, nodes ...string) (*column, error) {
	w, err := newWorld()
	if err != nil {
		return nil, err
	}
	c := &column{kind: k, world: w, env: env, dir: filepath.Join(env.dir, strings.ReplaceAll(name, " ", "-"), strings.ReplaceAll(k.String(), " ", "-")),
		edit: edit, nodes: nodes, proxies: make(map[string]*peer.Proxy), flows: make(map[string]*heldFlow)}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return nil, errors.Join(err, w.close())
	}
	for _, n := range nodes {
		if err := errors.Join(w.spaces[n].Forward(env.registry.Address()), c.start(n)); err != nil {
			c.close()
			return nil, err
		}
	}
	return c, nil
}

// start starts the proxy of a node.
func (c *column) start(node string) error {
	block, rest := "", clusterCIDR
	if c.edit != nil {
		// Lines that are indented belong to the mode's block.
		rest = ""
		for line := range strings.Lines(c.edit(c.kind)) {
			if strings.HasPrefix(line, "  ") && rest == "" {
				block += line
			} else {
				rest += line
			}
		}
	}
	config := fmt.Sprintf(proxyConfig, c.env.registry.Kubeconfig, node, c.mode, syncPeriod, block, rest)
	name := fmt.Sprintf("%s-%s", c.proxy, node)
	program := c.program
	if program == "" {
		program = map[string]string{"kube-proxy": c.env.kubeProxy, "rutter": c.env.rutter}[c.proxy]
	}
	var p *peer.Proxy
	var err error
	switch c.proxy {
	case "kube-proxy":
		p, err = peer.StartKubeProxy(program, name, c.dir, c.world.spaces[node].Netns, config)
	case "rutter":
		p, err = peer.StartRutterProxy(program, name, c.dir, c.world.spaces[node].Netns, config, c.programs()...)
	default:
		err = fmt.Errorf("no proxy is called %s", c.proxy)
	}
	if err != nil {
		return err
	}
	c.proxies[node] = p
	return nil
}

// iptables is the name of a program of the back end.
func (k kind) iptables(program string) string {
	if k.backend != "" {
		program += "-" + k.backend
	}
	return program
}

// programs is an environment in which the programs of the back end are those
// that are called iptables.
func (c *column) programs() (env []string) {
	if c.backend == "" {
		return nil
	}
	dir := filepath.Join(c.dir, "programs")
	_ = os.MkdirAll(dir, 0o755)
	for _, program := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			if path, err := exec.LookPath(c.iptables(program) + suffix); err == nil {
				_ = os.Symlink(path, filepath.Join(dir, program+suffix)) // made before when a proxy is started again
			}
		}
	}
	return []string{
		"PATH=" + dir + string(filepath.ListSeparator) + os.Getenv("PATH"),
		"XTABLES_LOCKFILE=" + filepath.Join(c.dir, "lock"), // there is one for all namespaces of a host
	}
}

func (c *column) close() {
	if c.load != nil {
		c.load.end()
	}
	for _, f := range c.flows {
		_ = f.Close()
	}
	for _, p := range c.proxies {
		p.Stop()
	}
	_ = c.world.close()
}

// caughtUp waits until the proxies of the column serve the marker as it is now,
// in both families.
func (c *column) caughtUp(marker *service, port uint16, want string) error {
	for _, node := range c.nodes {
		for _, v6 := range []bool{false, true} {
			q := question{from: c.world.spaces[node], proto: "tcp", to: netip.AddrPortFrom(marker.front("cluster", v6), port), wait: patience}
			err := c.proxies[node].WaitFor("serving what the API holds", 60*time.Second, func() error {
				if o := q.ask(1); !strings.HasPrefix(o, want+"(") {
					return fmt.Errorf("the marker at %s: %s, want %s", q.to, o, want)
				}
				return nil
			})
			if err != nil {
				return fmt.Errorf("%s on %s: %w", c.kind, node, err)
			}
		}
	}
	return nil
}

// keepFlows lets connection tracking remember flows for the length of the test:
// those of UDP are looked at again after minutes, and those of SCTP never get
// beyond the first two packets. Its settings are there once a proxy uses it.
func (c *column) keepFlows() error {
	for _, node := range c.nodes {
		settings := []string{"net/netfilter/nf_conntrack_udp_timeout=3600", "net/netfilter/nf_conntrack_udp_timeout_stream=3600"}
		if c.env.sctp {
			settings = append(settings, "net/netfilter/nf_conntrack_sctp_timeout_cookie_wait=3600", "net/netfilter/nf_conntrack_sctp_timeout_cookie_echoed=3600")
		}
		if err := c.world.spaces[node].sysctl(settings...); err != nil {
			return err
		}
	}
	return nil
}

// tracksSCTP tells whether the kernel's connection tracking knows SCTP.
func (c *column) tracksSCTP() (yes bool) {
	_ = c.world.spaces[c.nodes[0]].Do(func() error {
		_, err := os.Stat("/proc/sys/net/netfilter/nf_conntrack_sctp_timeout_cookie_wait")
		yes = err == nil
		return nil
	})
	return yes
}

// run runs a program on a node.
func (c *column) run(node string, args ...string) error {
	return c.world.spaces[node].Do(func() error {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %s: %w: %s", c.kind, strings.Join(args, " "), err, out)
		}
		return nil
	})
}

// tables is what a node's kernel holds. Of many lines those that mention one of
// the words are kept, with what they are part of.
func (c *column) tables(node string, about ...string) string {
	var out []byte
	_ = c.world.spaces[node].Do(func() error {
		programs := [][]string{{"nft", "list", "ruleset"}}
		switch c.mode {
		case "ipvs":
			programs = [][]string{{"iptables-save"}, {"ip6tables-save"}, {"cat", "/proc/net/ip_vs"}, {"ip", "address", "show", "dev", "kube-ipvs0"}}
		case "iptables":
			programs = [][]string{{c.iptables("iptables") + "-save"}, {c.iptables("ip6tables") + "-save"}}
		}
		for _, p := range programs {
			o, err := exec.Command(p[0], p[1:]...).CombinedOutput()
			out = append(out, o...)
			if err != nil {
				out = fmt.Appendf(out, "%s: %v\n", strings.Join(p, " "), err)
			}
		}
		return nil
	})
	if len(about) == 0 {
		return string(out)
	}
	return excerpt(string(out), about)
}

// excerpt keeps the lines of a listing that mention a word, under the headings
// that they belong to.
func excerpt(text string, about []string) string {
	var b strings.Builder
	var headings []string
	for line := range strings.Lines(text) {
		trimmed := strings.TrimSpace(line)
		depth := len(line) - len(strings.TrimLeft(line, "\t"))
		if strings.HasSuffix(trimmed, "{") && depth < 2 {
			headings = append(headings[:min(depth, len(headings))], line)
			if !mentions(line, about) {
				continue
			}
		}
		if !mentions(line, about) {
			continue
		}
		for _, h := range headings {
			if h != line {
				b.WriteString(h)
			}
		}
		headings = nil
		b.WriteString(line)
	}
	return b.String()
}

func mentions(line string, about []string) bool {
	return slices.ContainsFunc(about, func(w string) bool { return w != "" && strings.Contains(line, w) })
}
