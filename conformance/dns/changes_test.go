package dns

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rutter-project/rutter/conformance/peer"
)

const changesCorefile = `.:{PORT} {
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        kubeconfig {KUBECONFIG}
        pods verified
    }
}
`

// TestChanges: whatever happens to services and slices, both servers come to
// the same answers. After each of a walk of random changes that the seed
// decides, the two are compared once both have seen the last change.
func TestChanges(t *testing.T) {
	const seed, steps, perStep = 7, 12, 25
	env := newEnvironment(t)
	corefile := strings.ReplaceAll(changesCorefile, "{KUBECONFIG}", env.registry.Kubeconfig)
	core, err := peer.StartCoreDNS(env.programs.coredns, "coredns", t.TempDir(), corefile)
	if err != nil {
		t.Fatal(err)
	}
	defer core.Kill()
	rutter, err := peer.StartRutterDNS(env.programs.rutter, "rutter", t.TempDir(), corefile)
	if err != nil {
		t.Fatal(err)
	}
	defer rutter.Kill()
	c := &comparison{name: "changes", core: &client{addr: core.Addr}, rutter: &client{addr: rutter.Addr}, servers: [2]*peer.Nameserver{core, rutter}}
	defer c.core.close()
	defer c.rutter.close()

	w := &walk{client: env.registry, r: rand.New(rand.NewPCG(seed, 0))}
	queries, err := readCorpus(w.corpus())
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	for step := range steps {
		var done []string
		for range perStep {
			what, err := w.change(ctx)
			if err != nil {
				t.Fatalf("step %d: %s: %v", step, what, err)
			}
			done = append(done, what)
		}
		// Watches of different kinds have no order between them: a marker of
		// each kind tells that all before it has arrived.
		if err := w.mark(ctx, step); err != nil {
			t.Fatal(err)
		}
		for _, s := range c.servers {
			for _, kind := range []string{"service", "slice"} {
				if err := s.WaitForAnswer(fmt.Sprintf("%s-%d.walk.svc.cluster.local.", kind, step), dns.TypeA, 1); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, q := range queries {
			c.compareQuery(t, q)
		}
		if t.Failed() {
			t.Fatalf("step %d (seed %d), after\n  %s", step, seed, strings.Join(done, "\n  "))
		}
	}
	c.finish(t)
}

// walk changes a few services at random.
type walk struct {
	client *peer.Registry
	r      *rand.Rand
	n      int
}

const walkServices = 6

// corpus asks for everything that a change can show in.
func (w *walk) corpus() string {
	var b strings.Builder
	b.WriteString("@types A AAAA SRV TXT\nwalk.svc.cluster.local.\n")
	for i := range walkServices {
		name := fmt.Sprintf("w%d.walk.svc.cluster.local.", i)
		b.WriteString(name + "\n_http._tcp." + name + "\n_alt._tcp." + name + "\n")
		for h := range 4 {
			fmt.Fprintf(&b, "h%d.%s\n", h, name)
		}
		for k := range 6 {
			fmt.Fprintf(&b, "10-246-%d-%d.%s\n10.246.%[1]d.%[2]d\n", i, k, name)
		}
	}
	// Addresses above stand for their reverse names.
	var out strings.Builder
	for line := range strings.Lines(b.String()) {
		line = strings.TrimSpace(line)
		if rev, err := dns.ReverseAddr(line); err == nil {
			line = rev + " PTR"
		}
		out.WriteString(line + "\n")
	}
	return out.String()
}

// change makes one random change and says which.
func (w *walk) change(ctx context.Context) (string, error) {
	w.n++
	if w.n == 1 {
		_, err := w.client.Client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "walk"}}, metav1.CreateOptions{})
		return "namespace walk", err
	}
	services := w.client.Client.CoreV1().Services("walk")
	endpointSlices := w.client.Client.DiscoveryV1().EndpointSlices("walk")
	i := w.r.IntN(walkServices)
	name := fmt.Sprintf("w%d", i)
	switch w.r.IntN(6) {
	case 0:
		return "delete service " + name, ignoreMissing(services.Delete(ctx, name, metav1.DeleteOptions{}))
	case 1:
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}}
		switch w.r.IntN(3) {
		case 0:
			s.Spec.ClusterIP = fmt.Sprintf("10.96.200.%d", i+1)
		case 1:
			s.Spec.ClusterIP = corev1.ClusterIPNone
		case 2:
			s.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: fmt.Sprintf("w%d.walk.svc.cluster.local", w.r.IntN(walkServices))}
		}
		// A service's kind is changed by making it anew.
		err := ignoreMissing(services.Delete(ctx, name, metav1.DeleteOptions{}))
		if err == nil {
			_, err = services.Create(ctx, s, metav1.CreateOptions{})
		}
		return fmt.Sprintf("service %s with clusterIP %q, externalName %q", name, s.Spec.ClusterIP, s.Spec.ExternalName), err
	case 2:
		slice := fmt.Sprintf("%s-%d", name, w.r.IntN(2))
		return "delete slice " + slice, ignoreMissing(endpointSlices.Delete(ctx, slice, metav1.DeleteOptions{}))
	}
	// A slice made or changed: its endpoints, their readiness and host names,
	// its ports.
	s := w.slice(i, fmt.Sprintf("%s-%d", name, w.r.IntN(2)))
	what := fmt.Sprintf("slice %s with ports %v", s.Name, portNames(s))
	for _, e := range s.Endpoints {
		host := ""
		if e.Hostname != nil {
			host = *e.Hostname
		}
		what += fmt.Sprintf(" %s/%s/%t", e.Addresses[0], host, *e.Conditions.Ready)
	}
	old, err := endpointSlices.Get(ctx, s.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = endpointSlices.Create(ctx, s, metav1.CreateOptions{})
		return "create " + what, err
	}
	if err == nil {
		s.ResourceVersion = old.ResourceVersion
		_, err = endpointSlices.Update(ctx, s, metav1.UpdateOptions{})
	}
	return "update " + what, err
}

func (w *walk) slice(i int, name string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Namespace: "walk", Labels: map[string]string{discoveryv1.LabelServiceName: fmt.Sprintf("w%d", i)}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	for _, p := range [][]string{{"http"}, {"http", "alt"}, {"alt"}, nil}[w.r.IntN(4)] {
		port := int32(8000 + w.r.IntN(3))
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &p, Port: &port})
	}
	if len(s.Ports) == 2 {
		second := *s.Ports[0].Port + 1
		s.Ports[1].Port = &second
	}
	for k := range 6 {
		if w.r.IntN(2) == 0 {
			continue
		}
		ready := w.r.IntN(4) > 0
		e := discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.246.%d.%d", i, k)}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}
		if h := w.r.IntN(6); h < 4 {
			host := fmt.Sprintf("h%d", h)
			e.Hostname = &host
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

func portNames(s *discoveryv1.EndpointSlice) []string {
	var names []string
	for _, p := range s.Ports {
		names = append(names, fmt.Sprintf("%s=%d", *p.Name, *p.Port))
	}
	return names
}

// mark makes a service and, for a headless one made before, a slice.
func (w *walk) mark(ctx context.Context, step int) error {
	l := loader{client: w.client.Client, slices: map[string]int{}}
	port := int32(80)
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "walk", Name: name} }
	slice := &discoveryv1.EndpointSlice{ObjectMeta: meta(""), AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{{Port: &port}}, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.247.0.1"}}}}
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: fmt.Sprintf("slice-%d", step)}
	spec := corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: port}}}
	headless := spec
	headless.ClusterIP = corev1.ClusterIPNone
	return errors.Join(
		l.create(ctx, &corev1.Service{ObjectMeta: meta(fmt.Sprintf("slice-%d", step)), Spec: headless}),
		l.create(ctx, slice),
		l.create(ctx, &corev1.Service{ObjectMeta: meta(fmt.Sprintf("service-%d", step)), Spec: spec}))
}

func ignoreMissing(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
