package kubeapi

import (
	"fmt"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"
)

// Leases are a node's sign of life (namespace kube-node-lease).
type Leases struct {
	Resource[coordinationv1.Lease, coordinationv1.LeaseList]
}

// NewLeases makes a client for the leases of a namespace.
func NewLeases(cfg *rest.Config, namespace string) (*Leases, error) {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, coordinationv1.SchemeGroupVersion)
	utilruntime.Must(coordinationv1.AddToScheme(scheme))
	c := rest.CopyConfig(cfg)
	c.APIPath = "/apis"
	gv := coordinationv1.SchemeGroupVersion
	c.GroupVersion = &gv
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	c.ContentType = runtime.ContentTypeProtobuf
	c.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("making a lease client for %s: %w", cfg.Host, err)
	}
	return &Leases{Resource[coordinationv1.Lease, coordinationv1.LeaseList]{
		&Client{core: client, params: runtime.NewParameterCodec(scheme), host: cfg.Host}, "leases", namespace,
	}}, nil
}
