// Package kubernetes answers for the services, endpoints and pods of a
// Kubernetes cluster, as the DNS specification 1.1.0 and CoreDNS's kubernetes
// plugin do.
//
// store.go holds what may be answered and view.go lays it out for finding;
// direct.go reads the name of a query and finds its answer, records.go writes
// it. chain.go uses the same code for queries in the chain of plugins and adds
// the rare answers that need more than memory: external names, the cluster's
// own name servers, zonal names.
package kubernetes

import (
	"net/netip"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

const name = "kubernetes"

// podMode says how A-B-C-D.NS.pod is answered.
type podMode uint8

const (
	podsDisabled podMode = iota
	podsInsecure         // the name's address, unverified
	podsVerified         // only if such a pod is there
)

// Kubernetes is the handler of one server block.
type Kubernetes struct {
	next    plugin.Handler
	zones   []zone // the longest first
	primary zone   // PTR targets end in it
	options
	fallthroughs [][]byte // zones in wire form; nil without fallthrough

	store *Store
	view  *view
	own   []netip.Addr // this host's, to be found among the endpoints

	hostSearch []string // of /etc/resolv.conf, for autopath
}

// zone is a name in both forms.
type zone struct {
	text string
	wire []byte
}

type options struct {
	pods             podMode
	endpointPodNames bool
	ttl              uint32
	noEndpoints      bool
	ignoreEmpty      bool
	zonal            bool
}

// Name is "kubernetes".
func (k *Kubernetes) Name() string { return name }

// Ready tells whether the catalogue is complete.
func (k *Kubernetes) Ready() bool { return k.store != nil && k.store.Synced() }

// Store returns the data that this block answers from.
func (k *Kubernetes) Store() *Store { return k.store }

// ServeDirect answers from memory.
func (k *Kubernetes) ServeDirect(q *wire.Query, a *wire.Answer) plugin.Outcome {
	return k.answer(q, a)
}
