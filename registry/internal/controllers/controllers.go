// Package controllers runs those of Kubernetes' controllers without which
// Services do not work:
//
//	endpoint, endpointslice, endpointslicemirroring   Service and Pods → endpoints
//	servicecidrs            further service ranges become usable, and go when unused
//	namespace               deleting a namespace ends
//	garbagecollector        slices of deleted Services go, pods of deleted sets go
//	statefulset, deployment, replicaset   Pods out of their templates
//	nodelifecycle           pods of a node that stopped reporting become unready
//	podgc                   pods of a deleted node go
//	nodeipam                each node's part of --pod-cidr
//
// There is no scheduler: pods made by a StatefulSet or Deployment stay Pending
// until somebody sets their node (a kube-scheduler may be run against the
// registry; its roles exist). There is no taint eviction: a process that was
// registered as a Pod is not deleted because its node was away for a while.
package controllers

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/rutter-project/rutter/registry/internal/config"
	corev1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/deployment"
	"k8s.io/kubernetes/pkg/controller/endpoint"
	"k8s.io/kubernetes/pkg/controller/endpointslice"
	"k8s.io/kubernetes/pkg/controller/endpointslicemirroring"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"
	"k8s.io/kubernetes/pkg/controller/namespace"
	"k8s.io/kubernetes/pkg/controller/nodeipam"
	"k8s.io/kubernetes/pkg/controller/nodeipam/ipam"
	"k8s.io/kubernetes/pkg/controller/nodelifecycle"
	"k8s.io/kubernetes/pkg/controller/podgc"
	"k8s.io/kubernetes/pkg/controller/replicaset"
	"k8s.io/kubernetes/pkg/controller/servicecidrs"
	"k8s.io/kubernetes/pkg/controller/statefulset"
)

// Options is what Run needs.
type Options struct {
	Loopback     *rest.Config
	ServiceCIDRs []netip.Prefix
	PodCIDRs     []netip.Prefix
}

// The controller manager's defaults (pkg/controller/*/config/v1alpha1).
const (
	endpointWorkers          = 5
	maxEndpointsPerSlice     = 100
	maxMirroredPerSubset     = 1000
	setWorkers               = 5
	namespaceWorkers         = 5
	namespaceResync          = 5 * time.Minute
	serviceCIDRWorkers       = 5
	garbageWorkers           = 10 // the manager's 20 are for clusters with far more owners than Services make
	terminatedPods           = 12500
	nodeMonitorPeriod        = 5 * time.Second
	nodeStartupGrace         = 60 * time.Second
	nodeMonitorGrace         = 50 * time.Second
	evictionRate             = 0.1
	secondaryEvictionRate    = 0.01
	largeCluster             = 50
	unhealthyZone            = 0.55
	garbageFirstSync         = 30 * time.Second
	garbageDiscoveryInterval = 5 * time.Minute // the set of kinds never changes here
)

// Run builds the controllers and runs them until ctx ends. started is called
// once, when all their caches are filled.
func Run(ctx context.Context, o Options, log *slog.Logger, started func()) error {
	conf := rest.CopyConfig(o.Loopback)
	conf.QPS = -1 // the client is in the same process as the server; queueing helps nobody
	client, err := kubernetes.NewForConfig(conf)
	if err != nil {
		return fmt.Errorf("building the controllers' client: %w", err)
	}
	metaConf := rest.CopyConfig(conf)
	metaConf.ContentType = "" // the metadata client negotiates its own
	meta, err := metadata.NewForConfig(metaConf)
	if err != nil {
		return fmt.Errorf("building the controllers' metadata client: %w", err)
	}
	// Informers of their own: the constructors add their handlers before they
	// have filled in the fields that the handlers use, so a factory that runs
	// already, such as the API server's, makes them crash (seen: statefulset).
	f := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(dropManagedFields))
	core, apps := f.Core().V1(), f.Apps().V1()

	// From here on the controllers own goroutines that end with ctx.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	endpoints := endpoint.NewEndpointController(ctx, core.Pods(), core.Services(), core.Endpoints(), client, 0)
	slices := endpointslice.NewController(ctx, core.Pods(), core.Services(), core.Nodes(), f.Discovery().V1().EndpointSlices(), maxEndpointsPerSlice, client, 0)
	mirror := endpointslicemirroring.NewController(ctx, core.Endpoints(), f.Discovery().V1().EndpointSlices(), core.Services(), maxMirroredPerSubset, client, 0)
	cidrs := servicecidrs.NewController(ctx, f.Networking().V1().ServiceCIDRs(), f.Networking().V1().IPAddresses(), client)
	namespaces := namespace.NewNamespaceController(ctx, client, meta, client.Discovery().ServerPreferredNamespacedResources, core.Namespaces(), namespaceResync, corev1.FinalizerKubernetes)
	statefulSets := statefulset.NewStatefulSetController(ctx, core.Pods(), apps.StatefulSets(), core.PersistentVolumeClaims(), apps.ControllerRevisions(), client)
	replicaSets := replicaset.NewReplicaSetController(ctx, apps.ReplicaSets(), core.Pods(), client, replicaset.BurstReplicas)
	deployments, err := deployment.NewDeploymentController(ctx, apps.Deployments(), apps.ReplicaSets(), core.Pods(), client)
	if err != nil {
		return fmt.Errorf("building the deployment controller: %w", err)
	}
	lifecycle, err := nodelifecycle.NewNodeLifecycleController(ctx, f.Coordination().V1().Leases(), core.Pods(), core.Nodes(), noDaemonSets{}, client,
		nodeMonitorPeriod, nodeStartupGrace, nodeMonitorGrace, evictionRate, secondaryEvictionRate, largeCluster, unhealthyZone)
	if err != nil {
		return fmt.Errorf("building the node lifecycle controller: %w", err)
	}
	podGC := podgc.NewPodGC(ctx, client, core.Pods(), core.Nodes(), terminatedPods)
	nodeRanges, err := newNodeIPAM(ctx, o, f, client)
	if err != nil {
		return fmt.Errorf("building the controller that gives nodes their pod ranges: %w", err)
	}

	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(client.Discovery()))
	informersStarted := make(chan struct{})
	graph := garbagecollector.NewDependencyGraphBuilder(ctx, meta, mapper, garbagecollector.DefaultIgnoredResources(),
		graphInformers{typed: f, meta: metadatainformer.NewSharedInformerFactory(meta, 0)}, informersStarted)
	garbage, err := garbagecollector.NewComposedGarbageCollector(ctx, client, meta, mapper, graph)
	if err != nil {
		return fmt.Errorf("building the garbage collector: %w", err)
	}

	f.Start(ctx.Done())
	close(informersStarted)
	var running sync.WaitGroup
	for _, run := range []func(){
		func() { endpoints.Run(ctx, endpointWorkers) },
		func() { slices.Run(ctx, endpointWorkers) },
		func() { mirror.Run(ctx, endpointWorkers) },
		func() { cidrs.Run(ctx, serviceCIDRWorkers) },
		func() { namespaces.Run(ctx, namespaceWorkers) },
		func() { statefulSets.Run(ctx, setWorkers) },
		func() { replicaSets.Run(ctx, setWorkers) },
		func() { deployments.Run(ctx, setWorkers) },
		func() { lifecycle.Run(ctx) },
		func() { podGC.Run(ctx) },
		func() { nodeRanges.Run(ctx) },
		func() { garbage.Run(ctx, garbageWorkers, garbageFirstSync) },
		func() { garbage.Sync(ctx, client.Discovery(), garbageDiscoveryInterval) },
	} {
		running.Go(run)
	}
	for kind, ok := range f.WaitForCacheSync(ctx.Done()) {
		if !ok && ctx.Err() == nil {
			log.Error("a controller's cache could not be filled", "kind", kind.String())
		}
	}
	// The collector's informers are its own: it makes them after it has asked
	// the server what there is.
	_ = wait.PollUntilContextTimeout(ctx, 20*time.Millisecond, garbageFirstSync, true, func(context.Context) (bool, error) {
		return garbage.IsSynced(klog.Background()), nil
	}) // if it fails the collector goes on trying, and says so
	if ctx.Err() == nil {
		started()
	}
	<-ctx.Done()
	running.Wait()
	return nil
}

// dropManagedFields saves the memory of what no controller reads, often the
// larger part of an object.
func dropManagedFields(o any) (any, error) {
	if a, err := apimeta.Accessor(o); err == nil {
		a.SetManagedFields(nil)
	}
	return o, nil
}

func newNodeIPAM(ctx context.Context, o Options, f informers.SharedInformerFactory, client kubernetes.Interface) (*nodeipam.Controller, error) {
	var pods []*net.IPNet
	var masks []int
	for _, p := range o.PodCIDRs {
		pods = append(pods, ipNet(p))
		masks = append(masks, config.NodeMask(p))
	}
	services := []*net.IPNet{nil, nil}
	for i, p := range o.ServiceCIDRs {
		services[i] = ipNet(p)
	}
	return nodeipam.NewNodeIpamController(ctx, f.Core().V1().Nodes(), nil, client, pods, services[0], services[1], masks, ipam.RangeAllocatorType)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
