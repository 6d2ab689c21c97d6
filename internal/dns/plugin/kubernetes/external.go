package kubernetes

import (
	"net/netip"

	"github.com/rutter-project/rutter/internal/catalog"
)

// What follows is for k8s_external, which answers from the same objects under
// other names.

// Exposed tells whether a namespace, in lower case, is visible to the block.
func (k *Kubernetes) Exposed(namespace string) bool { return k.view.exposed([]byte(namespace)) }

// Visible returns the Service of that name, in lower case, with its slices; nil
// when there is none that the block may show.
func (k *Kubernetes) Visible(name catalog.ServiceName) (*catalog.Service, []*catalog.EndpointSlice) {
	var buf [128]byte
	key := appendLabel(appendLabel(buf[:0], name.Name), name.Namespace)
	s := k.view.service(key, []byte(name.Name), []byte(name.Namespace))
	if s == nil {
		return nil, nil
	}
	svc := s.now.Load()
	if svc == nil {
		return nil, nil
	}
	return svc.obj, svc.slices
}

// EndpointLabel is the label that an endpoint has under its service.
func (k *Kubernetes) EndpointLabel(ep *catalog.Endpoint) string {
	var buf [64]byte
	name, dashed := k.hostname(ep, &buf)
	if dashed != nil {
		return string(dashed)
	}
	return name
}

// Serial is the time of the last change, for SOA records; 0 until the picture
// is complete.
func (k *Kubernetes) Serial() uint32 { return k.serial() }

// Own returns the services that this host is an endpoint of, and the host's
// addresses.
func (k *Kubernetes) Own() (services []*catalog.Service, addrs []netip.Addr) {
	k.ownServices(func(_ *slot, svc *service, _ *catalog.Endpoint) {
		services = append(services, svc.obj)
	})
	return services, k.own
}

// All calls yield for every published name until it returns false. The store is
// locked for writing meanwhile.
func (s *Store) All(yield func(catalog.ServiceName, catalog.Entry) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, e := range s.services {
		if !yield(name, e) {
			return
		}
	}
}
