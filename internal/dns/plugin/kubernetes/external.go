package kubernetes

import (
	"bytes"
	"net/netip"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/dns/plugin/reverse"
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

// Owns tells whether name (wire form, lower case) is one of a published service
// or of its addresses: what the cache plugin knows of it from elsewhere is out
// of date then.
func (k *Kubernetes) Owns(name []byte) bool {
	if bytes.HasSuffix(name, []byte("\x04arpa\x00")) {
		return k.ownsAddr(name)
	}
	var at [4]int // where the last labels before the zone begin
	for n, off := 0, 0; off < len(name); n++ {
		at[n%len(at)] = off
		if z := k.zoneAt(name[off:]); z && n >= 3 {
			svc, ns, under := at[(n-3)%4], at[(n-2)%4], at[(n-1)%4]
			if string(name[under:off]) != "\x03svc" {
				return false
			}
			s := k.view.service(name[svc:under], name[svc+1:ns], name[ns+1:under])
			return s != nil && s.now.Load() != nil
		} else if z || name[off] == 0 {
			return false
		}
		off += 1 + int(name[off])
	}
	return false
}

func (k *Kubernetes) ownsAddr(name []byte) bool {
	text, _, err := dns.UnpackDomainName(name, 0)
	if err != nil {
		return false
	}
	addr, ok := reverse.Addr(text)
	if !ok {
		return false
	}
	h := k.view.hash.addr(addr)
	for n := k.view.addrs.find(h); n != nil; n = n.next {
		if n.hash == h && n.value.addr == addr {
			return true
		}
	}
	return false
}

// zoneAt tells whether name is the origin of one of the block's zones.
func (k *Kubernetes) zoneAt(name []byte) bool {
	for i := range k.zones {
		if string(name) == string(k.zones[i].wire) {
			return true
		}
	}
	return false
}
