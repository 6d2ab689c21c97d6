package apiserver

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/rutter-project/rutter/registry/internal/config"
	"github.com/rutter-project/rutter/registry/internal/etcd"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/kubernetes/pkg/controlplane/controller/defaultservicecidr"
)

// CheckServiceCIDRs compares the flags with the ranges that the data was made
// with. The API server would start with other ranges and then report, in an
// event, that the stored ones stay in force; the flag would silently mean
// nothing. One change is possible: the API server adds a second family to a
// stored single range.
func CheckServiceCIDRs(ctx context.Context, store etcd.Store, c config.Config) error {
	b, err := store.Get(ctx, "/servicecidrs/"+defaultservicecidr.DefaultServiceCIDRName)
	if err != nil || b == nil {
		return err
	}
	o, _, err := scheme.Codecs.UniversalDeserializer().Decode(b, nil, nil)
	if err != nil {
		return fmt.Errorf("reading the stored service ranges in %s: %w; is --etcd-prefix that of a Kubernetes API server of version 1.33 or later?", store.Where, err)
	}
	stored, ok := o.(*networkingv1.ServiceCIDR)
	if !ok {
		return fmt.Errorf("reading the stored service ranges in %s: found a %T", store.Where, o)
	}
	if stored.DeletionTimestamp != nil || fits(stored.Spec.CIDRs, c.ServiceCIDRs) {
		return nil
	}
	was := strings.Join(stored.Spec.CIDRs, ",")
	return fmt.Errorf("--service-cidr %s differs from %s, with which the data in %s was made; start with --service-cidr %s, and to have more addresses create a ServiceCIDR object", join(c.ServiceCIDRs), was, store.Where, was)
}

// fits says whether wanted is stored, or stored plus a second family.
func fits(stored []string, wanted []netip.Prefix) bool {
	w := make([]string, len(wanted))
	for i, p := range wanted {
		w[i] = p.String()
	}
	return slices.Equal(stored, w) || (len(stored) == 1 && len(w) == 2 && stored[0] == w[0])
}

func join(ps []netip.Prefix) string {
	s := make([]string, len(ps))
	for i, p := range ps {
		s[i] = p.String()
	}
	return strings.Join(s, ",")
}

// tryAllocate asks for a cluster IP without taking it.
func tryAllocate(ctx context.Context, client kubernetes.Interface) error {
	_, err := client.CoreV1().Services(metav1.NamespaceDefault).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "rutter-try-"},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 1}}},
	}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	return err
}
