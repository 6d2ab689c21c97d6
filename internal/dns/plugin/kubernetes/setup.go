package kubernetes

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
)

// Connection is how to reach the API of the cluster that a server block
// answers for: in-cluster credentials when all is empty. It is comparable, so
// that blocks with the same connection share one.
type Connection struct {
	Endpoint         string // URL
	Cert, Key, CA    string // files; all or none
	Kubeconfig       string // file; wins over Endpoint
	Context          string // of the kubeconfig; empty for the current one
	QPS              float32
	Burst            int
	MaxInflight      int
	KeepLabels       bool // the store must know the labels of objects
	Pods             bool // and pods
	WithoutEndpoints bool // and needs no endpoints
}

// Stores gives a server block its store. It is called when the block starts:
// the first call for a connection may begin to follow that cluster, for the
// life of the process.
type Stores func(ctx context.Context, conn Connection) (*Store, error)

// Setup returns the plugin's setup with the place that stores come from.
func Setup(stores Stores) plugin.Setup {
	return func(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
		if err := plugin.Once(lines); err != nil {
			return nil, err
		}
		p, err := parse(b, lines[0])
		if err != nil {
			return nil, err
		}
		k := p.handler
		b.OnStart(func(ctx context.Context) error {
			store, err := stores(ctx, p.conn)
			if err != nil {
				return plugin.Error(name, err)
			}
			k.store, k.view = store, store.view(p.sel)
			if len(b.Bind) == 0 {
				k.own = hostAddrs()
			}
			k.hostSearch = hostSearch("/etc/resolv.conf")
			return p.waitSynced(ctx, b, store)
		})
		b.OnShutdown(func() error {
			if k.view != nil {
				k.store.release(k.view)
			}
			return nil
		})
		return func(next plugin.Handler) plugin.Handler {
			k.next = next
			return k
		}, nil
	}
}

// waitSynced gives the first list some time, so that a server does not start by
// not knowing anything.
func (p *parsed) waitSynced(ctx context.Context, b *plugin.Block, store *Store) error {
	log := b.Log(name)
	deadline := time.NewTimer(p.startupTimeout)
	defer deadline.Stop()
	remind := time.NewTicker(500 * time.Millisecond)
	defer remind.Stop()
	for {
		select {
		case <-store.done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-remind.C:
			log.Info("waiting for Kubernetes API before starting server")
		case <-deadline.C:
			log.Warn("starting server with unsynced Kubernetes API")
			return nil
		}
	}
}

// hostAddrs are the addresses of this host that others may know it by.
func hostAddrs() []netip.Addr {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var own []netip.Addr
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLoopback() {
			own = append(own, p.Addr().Unmap())
		}
	}
	return own
}

// parsed is what one kubernetes directive says.
type parsed struct {
	handler        *Kubernetes
	conn           Connection
	sel            selection
	startupTimeout time.Duration
}

func parse(b *plugin.Block, d corefile.Directive) (*parsed, error) {
	k := &Kubernetes{options: options{ttl: 5}}
	p := &parsed{handler: k, startupTimeout: 5 * time.Second}
	if err := p.zones(b, d); err != nil {
		return nil, err
	}
	var namespaceLabels *corefile.Directive
	for i, prop := range d.Block {
		if err := p.property(b, prop); err != nil {
			return nil, err
		}
		if prop.Name.Text == "namespace_labels" {
			namespaceLabels = &d.Block[i]
		}
	}
	if p.sel.namespaces != nil && namespaceLabels != nil {
		return nil, corefile.Errorf(namespaceLabels.Name, "namespaces and namespace_labels exclude each other; keep one")
	}
	if k.zonal && k.noEndpoints {
		return nil, corefile.Errorf(d.Name, "zonal needs endpoints, and noendpoints leaves them out; remove one")
	}
	p.sel.pods = k.pods == podsVerified
	p.conn.Pods = p.sel.pods
	p.conn.KeepLabels = p.sel.labels != nil || p.sel.namespaceLabels != nil
	p.conn.WithoutEndpoints = k.noEndpoints
	return p, nil
}

// zones takes the zones of the arguments, or those of the block.
func (p *parsed) zones(b *plugin.Block, d corefile.Directive) error {
	k := p.handler
	names := slices.Clone(b.Zones)
	if len(d.Args) > 0 {
		names = nil
		for _, a := range d.Args {
			zones, err := corefile.Zones(a.Text)
			if err != nil {
				return corefile.Errorf(a, "zone %q: %w", a.Text, err)
			}
			names = append(names, zones...)
		}
	}
	for _, n := range names {
		z := zone{text: n, wire: packName(n)}
		if k.primary.text == "" && !isReverse(n) {
			k.primary = z
		}
		k.zones = append(k.zones, z)
	}
	if k.primary.text == "" {
		return corefile.Errorf(d.Name, "only reverse zones (%s); name the cluster's domain too, first", strings.Join(names, " "))
	}
	slices.SortStableFunc(k.zones, func(a, b zone) int { return len(b.wire) - len(a.wire) })
	return nil
}

// isReverse is CoreDNS's notion: in-addr.arpa and ip6.arpa themselves count as
// forward zones.
func isReverse(zone string) bool {
	return strings.HasSuffix(zone, ".in-addr.arpa.") || strings.HasSuffix(zone, ".ip6.arpa.")
}

// packName is for names that are known to be valid.
func packName(n string) []byte {
	buf := make([]byte, 256)
	end, err := dns.PackDomainName(n, buf, 0, nil, false)
	if err != nil {
		return []byte{0}
	}
	return buf[:end:end]
}

var properties = []string{
	"endpoint", "tls", "kubeconfig", "apiserver_qps", "apiserver_burst", "apiserver_max_inflight",
	"namespaces", "namespace_labels", "labels", "pods", "endpoint_pod_names", "ttl", "noendpoints",
	"fallthrough", "ignore", "multicluster", "zonal", "startup_timeout",
}

func (p *parsed) property(b *plugin.Block, d corefile.Directive) error {
	k := p.handler
	switch d.Name.Text {
	case "endpoint":
		if len(d.Args) == 0 {
			return corefile.Arguments(d, "a URL")
		}
		p.conn.Endpoint = d.Args[0].Text // CoreDNS ignores further ones too
	case "tls":
		if len(d.Args) != 3 {
			return corefile.Arguments(d, "a certificate, a key and a CA file")
		}
		p.conn.Cert, p.conn.Key, p.conn.CA = b.File(d.Args[0].Text), b.File(d.Args[1].Text), b.File(d.Args[2].Text)
	case "kubeconfig":
		if len(d.Args) == 0 || len(d.Args) > 2 {
			return corefile.Arguments(d, "a file, and the name of a context if not the current one")
		}
		p.conn.Kubeconfig = d.Args[0].Text
		if _, err := os.Stat(p.conn.Kubeconfig); err != nil {
			return corefile.Errorf(d.Args[0], "kubeconfig: %w", err)
		}
		if len(d.Args) == 2 {
			p.conn.Context = d.Args[1].Text
		}
	case "apiserver_qps":
		v, err := number(d, 32)
		p.conn.QPS = float32(v)
		return err
	case "apiserver_burst":
		v, err := number(d, 0)
		p.conn.Burst = int(v)
		return err
	case "apiserver_max_inflight":
		v, err := number(d, 0)
		p.conn.MaxInflight = int(v)
		return err
	case "namespaces":
		if len(d.Args) == 0 {
			return corefile.Arguments(d, "names of namespaces")
		}
		for _, a := range d.Args {
			p.sel.namespaces = append(p.sel.namespaces, a.Text)
		}
	case "namespace_labels":
		sel, err := selector(d)
		p.sel.namespaceLabels = sel
		return err
	case "labels":
		sel, err := selector(d)
		p.sel.labels = sel
		return err
	case "pods":
		return k.podsMode(d)
	case "endpoint_pod_names":
		k.endpointPodNames = true
		return flag(d)
	case "noendpoints":
		k.noEndpoints = true
		return flag(d)
	case "zonal":
		k.zonal = true
		return flag(d)
	case "ttl":
		if len(d.Args) == 0 {
			return corefile.Arguments(d, "seconds, 0 to 3600")
		}
		ttl, err := strconv.Atoi(d.Args[0].Text)
		if err != nil || ttl < 0 || ttl > 3600 {
			return corefile.Errorf(d.Args[0], "ttl %q is not a number of seconds from 0 to 3600", d.Args[0].Text)
		}
		k.ttl = uint32(ttl)
	case "fallthrough":
		return k.fallthroughZones(d)
	case "ignore":
		for _, a := range d.Args { // none is accepted, and has no effect
			if a.Text != "empty_service" {
				return corefile.Unknown("word after ignore", a, "empty_service")
			}
			k.ignoreEmpty = true
		}
	case "multicluster":
		return corefile.Errorf(d.Name, "multicluster (ServiceImport objects of the Multi-Cluster Services API) is not supported by Rutter; remove the line, and the zone if it is only for that")
	case "startup_timeout":
		if len(d.Args) != 1 {
			return corefile.Arguments(d, "a duration")
		}
		t, err := time.ParseDuration(d.Args[0].Text)
		if err != nil || t < 0 {
			return corefile.Errorf(d.Args[0], "startup_timeout %q is not a duration such as 5s", d.Args[0].Text)
		}
		p.startupTimeout = t
	default:
		return corefile.Unknown("property of kubernetes", d.Name, properties...)
	}
	return nil
}

func (k *Kubernetes) podsMode(d corefile.Directive) error {
	if len(d.Args) != 1 {
		return corefile.Arguments(d, "disabled, insecure or verified")
	}
	switch d.Args[0].Text {
	case "disabled":
		k.pods = podsDisabled
	case "insecure":
		k.pods = podsInsecure
	case "verified":
		k.pods = podsVerified
	default:
		return corefile.Unknown("pods mode", d.Args[0], "disabled", "insecure", "verified")
	}
	return nil
}

// fallthroughZones takes the zones of a fallthrough line; words that are no
// zones are passed over, as in CoreDNS.
func (k *Kubernetes) fallthroughZones(d corefile.Directive) error {
	k.fallthroughs = nil
	if len(d.Args) == 0 {
		k.fallthroughs = [][]byte{{0}}
		return nil
	}
	for _, a := range d.Args {
		zones, err := corefile.Zones(a.Text)
		if err != nil {
			continue
		}
		for _, z := range zones {
			k.fallthroughs = append(k.fallthroughs, packName(z))
		}
	}
	return nil
}

func flag(d corefile.Directive) error {
	if len(d.Args) > 0 {
		return corefile.Arguments(d, "no argument")
	}
	return nil
}

// number reads the one argument: a float of bits, or an integer for 0.
func number(d corefile.Directive, bits int) (float64, error) {
	if len(d.Args) != 1 {
		return 0, corefile.Arguments(d, "a number")
	}
	var v float64
	var err error
	if bits > 0 {
		v, err = strconv.ParseFloat(d.Args[0].Text, bits)
	} else {
		var n int
		n, err = strconv.Atoi(d.Args[0].Text)
		v = float64(n)
	}
	if err == nil && v < 0 {
		err = errors.New("negative")
	}
	if err != nil {
		return 0, corefile.Errorf(d.Args[0], "%s %q is not a number from 0 up", d.Name.Text, d.Args[0].Text)
	}
	return v, nil
}

// selector reads a label selector, which may contain spaces. The grammar is
// that of `kubectl label` selectors that CoreDNS takes: != is not in it.
func selector(d corefile.Directive) (labels.Selector, error) {
	if len(d.Args) == 0 {
		return nil, corefile.Arguments(d, "a label selector")
	}
	words := make([]string, len(d.Args))
	for i, a := range d.Args {
		words[i] = a.Text
	}
	text := strings.Join(words, " ")
	ls, err := metav1.ParseToLabelSelector(text)
	if err != nil {
		return nil, corefile.Errorf(d.Args[0], "label selector %q: %w", text, err)
	}
	sel, err := metav1.LabelSelectorAsSelector(ls)
	if err != nil {
		return nil, corefile.Errorf(d.Args[0], "label selector %q: %w", text, err)
	}
	return sel, nil
}
