package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
)

// The cluster under measurement: services svc-0, svc-1, … spread over ten
// namespaces, each with one slice of endpoints, written directly (the services
// have no selector).

const (
	namespaces = 10
	// parallel is the number of requests in flight while objects are made.
	// Each waits for etcd's fsync, which a batch of them shares.
	parallel = 64
)

// shape is how large a cluster is.
type shape struct {
	services, endpoints int  // endpoints of each service
	headless            bool // every tenth service is headless; else none
}

func (s shape) String() string {
	return fmt.Sprintf("%s services × %d endpoints", count(float64(s.services)), s.endpoints)
}

// shapes is a flag: 1000x10,10000x10.
type shapes []shape

func (s *shapes) String() string {
	var list []string
	for _, x := range *s {
		list = append(list, fmt.Sprintf("%dx%d", x.services, x.endpoints))
	}
	return strings.Join(list, ",")
}

func (s *shapes) Set(text string) error {
	*s = nil
	for _, f := range strings.Split(text, ",") {
		var x shape
		if n, err := fmt.Sscanf(f, "%dx%d", &x.services, &x.endpoints); n != 2 || err != nil || x.services < 1 || x.services > maxSize || x.endpoints < 1 || x.endpoints > 100 {
			return fmt.Errorf("%q: want services x endpoints of each, such as 1000x10, of at most %dx100", f, maxSize)
		}
		*s = append(*s, x)
	}
	return nil
}

// service is the i-th service of the cluster.
type service int

func (i service) namespace() string { return fmt.Sprintf("ns%d", int(i)/10%namespaces) }
func (i service) name() string      { return fmt.Sprintf("svc-%d", int(i)) }
func (i service) tenth() bool       { return i%10 == 9 }
func (i service) fqdn() string      { return i.name() + "." + i.namespace() + ".svc.cluster.local." }

// clusterIP is fixed, so that a generated zone file can name it. The first
// addresses of the range are left to the API server.
func (i service) clusterIP() netip.Addr { return ipv4(10<<24 | 96<<16 | 1024 + uint32(i)) }

// endpoint is the address of an endpoint, out of 10.128.0.0/9.
func (i service) endpoint(k, perService int) netip.Addr {
	return ipv4(10<<24 | 128<<16 | 256 + uint32(int(i)*perService+k))
}

func ipv4(v uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

func (i service) object(headless bool) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: i.namespace(), Name: i.name()},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{
			Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromInt32(8080)}}},
	}
	if headless && i.tenth() {
		s.Spec.ClusterIP = corev1.ClusterIPNone
	} else {
		s.Spec.ClusterIP = i.clusterIP().String()
	}
	return s
}

func (i service) slice(perService int) *discoveryv1.EndpointSlice {
	yes, name, port, tcp := true, "http", int32(8080), corev1.ProtocolTCP
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: i.namespace(), Name: i.name() + "-1",
			Labels: map[string]string{discoveryv1.LabelServiceName: i.name()}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &tcp}},
	}
	for k := range perService {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{i.endpoint(k, perService).String()},
			Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes},
		})
	}
	return s
}

// fill makes the cluster's objects; what exists stays.
func (s shape) fill(ctx context.Context, client kubernetes.Interface, progress func(done int)) error {
	for n := range namespaces {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("ns%d", n)}}
		if _, err := client.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("creating namespace %s: %w", ns.Name, err)
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next, done atomic.Int64
	var workers sync.WaitGroup
	for range parallel {
		workers.Go(func() {
			for ctx.Err() == nil {
				i := service(next.Add(1) - 1)
				if int(i) >= s.services {
					return
				}
				if err := s.create(ctx, client, i); err != nil {
					cancel(fmt.Errorf("creating service %s/%s: %w", i.namespace(), i.name(), err))
					return
				}
				if n := int(done.Add(1)); n%1000 == 0 {
					progress(n)
				}
			}
		})
	}
	workers.Wait()
	return context.Cause(ctx)
}

func (s shape) create(ctx context.Context, client kubernetes.Interface, i service) error {
	return errors.Join(
		makeOne(func() error {
			_, err := client.DiscoveryV1().EndpointSlices(i.namespace()).Create(ctx, i.slice(s.endpoints), metav1.CreateOptions{})
			return err
		}),
		makeOne(func() error { return createService(ctx, client, i.object(s.headless)) }))
}

// createService creates a service whose address may be left over from an
// attempt that timed out: the API server would free it minutes later.
func createService(ctx context.Context, client kubernetes.Interface, o *corev1.Service) error {
	_, err := client.CoreV1().Services(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
	if err == nil || !strings.Contains(err.Error(), "already allocated") {
		return err
	}
	if err := client.NetworkingV1().IPAddresses().Delete(ctx, o.Spec.ClusterIP, metav1.DeleteOptions{}); err != nil {
		return err
	}
	_, err = client.CoreV1().Services(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
	return err
}

// makeOne makes an object that may be there. A busy machine's etcd times out
// now and then; that is worth another try.
func makeOne(create func() error) error {
	for try := 0; ; try++ {
		err := create()
		switch {
		case err == nil, apierrors.IsAlreadyExists(err):
			return nil
		case try == 5 || !apierrors.IsInternalError(err) && !apierrors.IsServerTimeout(err) && !apierrors.IsTimeout(err) && !strings.Contains(err.Error(), "timed out"):
			return err
		}
		time.Sleep(time.Second)
	}
}
