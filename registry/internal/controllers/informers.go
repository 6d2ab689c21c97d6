package controllers

import (
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/informers"
	appsinformers "k8s.io/client-go/informers/apps/v1"
	appslisters "k8s.io/client-go/listers/apps/v1"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/tools/cache"
)

// graphInformers gives the garbage collector the informers that other
// controllers have anyway, and for all other kinds metadata only: it looks at
// owner references, and there is no reason to hold every Secret in memory.
type graphInformers struct {
	typed informers.SharedInformerFactory
	meta  metadatainformer.SharedInformerFactory
}

// heldAnyway are the kinds for which Run makes typed informers.
var heldAnyway = map[schema.GroupVersionResource]bool{
	corev1.SchemeGroupVersion.WithResource("endpoints"):              true,
	corev1.SchemeGroupVersion.WithResource("namespaces"):             true,
	corev1.SchemeGroupVersion.WithResource("nodes"):                  true,
	corev1.SchemeGroupVersion.WithResource("persistentvolumeclaims"): true,
	corev1.SchemeGroupVersion.WithResource("pods"):                   true,
	corev1.SchemeGroupVersion.WithResource("services"):               true,
	appsv1.SchemeGroupVersion.WithResource("controllerrevisions"):    true,
	appsv1.SchemeGroupVersion.WithResource("deployments"):            true,
	appsv1.SchemeGroupVersion.WithResource("replicasets"):            true,
	appsv1.SchemeGroupVersion.WithResource("statefulsets"):           true,
	coordinationv1.SchemeGroupVersion.WithResource("leases"):         true,
	discoveryv1.SchemeGroupVersion.WithResource("endpointslices"):    true,
	networkingv1.SchemeGroupVersion.WithResource("ipaddresses"):      true,
	networkingv1.SchemeGroupVersion.WithResource("servicecidrs"):     true,
}

func (g graphInformers) ForResource(r schema.GroupVersionResource) (informers.GenericInformer, error) {
	if heldAnyway[r] {
		return g.typed.ForResource(r)
	}
	return g.meta.ForResource(r), nil
}

func (g graphInformers) Start(stop <-chan struct{}) {
	g.typed.Start(stop)
	g.meta.Start(stop)
}

// noDaemonSets stands in for an informer of a kind that is not served. The
// node lifecycle controller takes one, waits for it and never reads it
// (pkg/controller/nodelifecycle, daemonSetStore).
type noDaemonSets struct{}

func (noDaemonSets) Informer() cache.SharedIndexInformer { return syncedInformer{} }

func (noDaemonSets) Lister() appslisters.DaemonSetLister {
	return appslisters.NewDaemonSetLister(cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{}))
}

var _ appsinformers.DaemonSetInformer = noDaemonSets{}

// syncedInformer has nothing and is always in step; the other methods are
// never called.
type syncedInformer struct{ cache.SharedIndexInformer }

func (syncedInformer) HasSynced() bool { return true }
