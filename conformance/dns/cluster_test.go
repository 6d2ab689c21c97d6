package dns

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/rutter-project/rutter/conformance/peer"
)

// loadCluster puts testdata/cluster.yaml into the API, and what is too long to
// write there: a service with 300 endpoints and a chain of ExternalNames.
func loadCluster(ctx context.Context, reg *peer.Registry) error {
	text, err := os.ReadFile("testdata/cluster.yaml")
	if err != nil {
		return err
	}
	text = bytes.ReplaceAll(text, []byte("HOST_IP"), []byte(hostAddress().String()))
	if err := reg.AddNode(ctx, "node-a", "", "192.0.2.10"); err != nil {
		return err
	}
	l := loader{client: reg.Client, slices: map[string]int{}}
	for _, doc := range bytes.Split(text, []byte("\n---\n")) {
		obj, _, err := scheme.Codecs.UniversalDeserializer().Decode(doc, nil, nil)
		if err != nil {
			return fmt.Errorf("testdata/cluster.yaml: %w in\n%s", err, doc)
		}
		if err := l.create(ctx, obj); err != nil {
			return fmt.Errorf("testdata/cluster.yaml: %w in\n%s", err, doc)
		}
	}
	if err := l.big(ctx); err != nil {
		return err
	}
	return l.chain(ctx)
}

// hostAddress is an IPv4 address of this machine that is not loopback, or one
// of TEST-NET-1 if there is none.
func hostAddress() netip.Addr {
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() {
			return p.Addr()
		}
	}
	return netip.MustParseAddr("192.0.2.1")
}

type loader struct {
	client kubernetes.Interface
	slices map[string]int // per service, to name them
}

func (l *loader) create(ctx context.Context, obj any) error {
	core := l.client.CoreV1()
	switch o := obj.(type) {
	case *corev1.Namespace:
		_, err := core.Namespaces().Create(ctx, o, metav1.CreateOptions{})
		return err
	case *corev1.Service:
		made, err := core.Services(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
		if err != nil || len(o.Status.LoadBalancer.Ingress) == 0 {
			return err
		}
		made.Status = o.Status
		_, err = core.Services(o.Namespace).UpdateStatus(ctx, made, metav1.UpdateOptions{})
		return err
	case *discoveryv1.EndpointSlice:
		service := o.Labels[discoveryv1.LabelServiceName]
		l.slices[o.Namespace+"/"+service]++
		o.Name = fmt.Sprintf("%s-%s-%d", service, strings.ToLower(string(o.AddressType)), l.slices[o.Namespace+"/"+service])
		_, err := l.client.DiscoveryV1().EndpointSlices(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
		return err
	case *corev1.Pod:
		made, err := core.Pods(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		made.Status = o.Status
		_, err = core.Pods(o.Namespace).UpdateStatus(ctx, made, metav1.UpdateOptions{})
		return err
	}
	return fmt.Errorf("%T is not expected", obj)
}

// big is a headless service of 300 endpoints in three slices.
func (l *loader) big(ctx context.Context) error {
	if err := l.create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "big"},
		Spec:       corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	}); err != nil {
		return err
	}
	name, port := "http", int32(80)
	for s := range 3 {
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "prod", Labels: map[string]string{discoveryv1.LabelServiceName: "big"}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
		}
		for i := range 100 {
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.245.%d.%d", s, i+1)}})
		}
		if err := l.create(ctx, slice); err != nil {
			return err
		}
	}
	return nil
}

// chain is chain-13 → chain-12 → … → chain-0 → web.
func (l *loader) chain(ctx context.Context) error {
	target := "web.prod.svc.cluster.local"
	for i := range 14 {
		name := fmt.Sprintf("chain-%d", i)
		if err := l.create(ctx, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: name},
			Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: target},
		}); err != nil {
			return err
		}
		target = name + ".prod.svc.cluster.local"
	}
	return nil
}

// waitForKubernetesService waits for what the API server itself adds, so that
// both servers start from the same state.
func waitForKubernetesService(ctx context.Context, reg *peer.Registry) error {
	return reg.WaitFor("serving the service default/kubernetes", time.Minute, func() error {
		_, err := reg.Client.CoreV1().Services("default").Get(ctx, "kubernetes", metav1.GetOptions{})
		return err
	})
}
