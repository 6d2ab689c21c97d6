package kubeapi

import (
	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/client-go/rest"
)

// Leases are nodes' signs of life.
type Leases = Resource[coordinationv1.Lease, coordinationv1.LeaseList]

// NewLeases makes a client for the leases of a namespace.
func NewLeases(cfg *rest.Config, namespace string) (Leases, error) {
	c, err := newClient(cfg, "/apis", coordinationv1.SchemeGroupVersion, coordinationv1.AddToScheme)
	if err != nil {
		return Leases{}, err
	}
	return Leases{c, "leases", namespace}, nil
}
