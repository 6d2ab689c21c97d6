// Package apiserver is the registry's API server: the code of kube-apiserver
// (k8s.io/kubernetes/pkg/controlplane/apiserver), with the API groups that
// Services need and without aggregation, custom resources, webhooks and
// priority-and-fairness.
//
// The order of calls is that of cmd/kube-apiserver/app: options, complete,
// validate, generic config, config, server, install APIs, prepare, run.
//
// Feature gates, the effective version, klog and the API scheme are globals
// of the libraries: one API server per process.
package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/rutter-project/rutter/registry/internal/config"
	"github.com/rutter-project/rutter/registry/internal/etcd"
	"k8s.io/apimachinery/pkg/runtime"
	genericapifilters "k8s.io/apiserver/pkg/endpoints/filters"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/healthz"
	"k8s.io/apiserver/pkg/util/notfoundhandler"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	api "k8s.io/kubernetes/pkg/apis/core"
	controlplane "k8s.io/kubernetes/pkg/controlplane/apiserver"
	"k8s.io/kubernetes/pkg/controlplane/controller/defaultservicecidr"
	"k8s.io/kubernetes/pkg/controlplane/controller/kubernetesservice"
	"k8s.io/kubernetes/pkg/controlplane/reconcilers"
	openapi "k8s.io/kubernetes/pkg/generated/openapi"
	netutils "k8s.io/utils/net"

	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	discoveryv1client "k8s.io/client-go/kubernetes/typed/discovery/v1"
)

// Files are the paths the API server reads; it follows changes of the
// certificates by itself (k8s.io/apiserver/pkg/server/dynamiccertificates).
type Files struct {
	CA, Cert, Key        string
	SAKey, SAPub         string
	AuthenticationConfig string // written by New
}

// Options is what New needs.
type Options struct {
	Config   config.Config
	Listener net.Listener // already bound, so that a taken port is found before anything starts
	Store    etcd.Store
	Files    Files
	Version  string // of Kubernetes, for /version
}

// Server is a built API server.
type Server struct {
	generic  *genericapiserver.GenericAPIServer
	client   *kubernetes.Clientset
	loopback *rest.Config
	usable   atomic.Bool
}

// usableCheck is the name of the readiness check that SetUsable satisfies.
const usableCheck = "rutter-registry"

// Endpoint reconciliation as kube-apiserver does it (pkg/controlplane,
// DefaultEndpointReconcilerInterval and -TTL).
const (
	endpointInterval = 10 * time.Second
	endpointTTL      = 15 * time.Second
)

// stopTime bounds the end of open requests when stopping.
const stopTime = time.Second

// New builds the server. Nothing is served before Run.
func New(ctx context.Context, o Options) (*Server, error) {
	bound := &boundObjects{}
	opts, err := completeOptions(ctx, o, bound)
	if err != nil {
		return nil, err
	}
	generic, shared, storage, err := controlplane.BuildGenericConfig(opts, []*runtime.Scheme{legacyscheme.Scheme}, resources(), openapi.GetOpenAPIDefinitions)
	if err != nil {
		return nil, fmt.Errorf("configuring the API server: %w", err)
	}
	generic.EffectiveVersion = served{generic.EffectiveVersion, o.Version}
	// Watches are told to end first, so that agents reconnect at once
	// instead of finding a dead connection later.
	generic.ShutdownWatchTerminationGracePeriod = stopTime
	// Tracks the use of legacy service account tokens in Secrets; there are
	// none (no token controller makes them).
	generic.DisabledPostStartHooks.Insert("start-legacy-token-tracking-controller")

	conf, _, err := controlplane.CreateConfig(opts, generic, shared, storage, webhook.NewDefaultServiceResolver(), nil)
	if err != nil {
		return nil, fmt.Errorf("configuring the API server: %w", err)
	}
	reconciler := reconcilers.NewNoneEndpointReconciler()
	if o.Config.Routable {
		// The lease reconciler serves one registry and several on one etcd alike.
		masterLeases, err := storage.NewConfig(api.Resource("apiServerIPInfo"), &api.Endpoints{})
		if err != nil {
			return nil, fmt.Errorf("configuring endpoint leases: %w", err)
		}
		leases, err := reconcilers.NewLeases(masterLeases, "/masterleases/", endpointTTL)
		if err != nil {
			return nil, fmt.Errorf("configuring endpoint leases: %w", err)
		}
		reconciler = reconcilers.NewLeaseEndpointReconciler(reconcilers.NewEndpointsAdapter(
			corev1client.NewForConfigOrDie(generic.LoopbackClientConfig),
			discoveryv1client.NewForConfigOrDie(generic.LoopbackClientConfig)), leases)
	}

	c := conf.Complete()
	notFound := notfoundhandler.New(c.Generic.Serializer, genericapifilters.NoMuxAndDiscoveryIncompleteKey)
	cp, err := c.New(controlplane.KubeAPIServer, genericapiserver.NewEmptyDelegateWithCustomHandler(notFound))
	if err != nil {
		return nil, fmt.Errorf("building the API server: %w", err)
	}
	cp.GenericAPIServer.ShutdownTimeout = stopTime

	ranges := serviceRanges(o.Config.ServiceCIDRs)
	providers, err := storageProviders(c, ranges)
	if err != nil {
		return nil, fmt.Errorf("building the API's storage: %w", err)
	}
	if err := cp.InstallAPIs(providers...); err != nil {
		return nil, fmt.Errorf("installing the API groups: %w", err)
	}
	client, err := kubernetes.NewForConfig(c.Generic.LoopbackClientConfig)
	if err != nil {
		return nil, fmt.Errorf("building the loopback client: %w", err)
	}

	bound.client.Store(client)
	s := &Server{generic: cp.GenericAPIServer, client: client, loopback: c.Generic.LoopbackClientConfig}
	service := kubernetesservice.New(kubernetesservice.Config{
		PublicIP:           c.Generic.PublicAddress,
		EndpointReconciler: reconciler,
		EndpointInterval:   endpointInterval,
		ServiceIP:          ranges[0].first,
		ServicePort:        443,
		PublicServicePort:  o.Listener.Addr().(*net.TCPAddr).Port,
	}, client, shared.Core().V1().Services())
	g := s.generic
	g.AddPostStartHookOrDie("start-kubernetes-service-controller", func(h genericapiserver.PostStartHookContext) error {
		service.Start(h.Done())
		return nil
	})
	g.AddPreShutdownHookOrDie("stop-kubernetes-service-controller", func() error {
		service.Stop()
		return nil
	})
	// Without the default ServiceCIDR object no cluster IP can be allocated.
	g.AddPostStartHookOrDie("start-kubernetes-service-cidr-controller", func(h genericapiserver.PostStartHookContext) error {
		var second net.IPNet
		if len(ranges) == 2 {
			second = ranges[1].net
		}
		defaultservicecidr.NewController(ranges[0].net, second, client).Start(h)
		return nil
	})
	g.AddPostStartHookOrDie("rutter/bootstrap-roles", func(h genericapiserver.PostStartHookContext) error {
		return bootstrapRoles(h, client)
	})
	if err := g.AddReadyzChecks(healthz.NamedCheck(usableCheck, func(*http.Request) error {
		if !s.usable.Load() {
			return errors.New("the controllers are not running yet")
		}
		return nil
	})); err != nil {
		return nil, fmt.Errorf("adding the readiness check: %w", err)
	}
	return s, nil
}

// Run serves until ctx ends, then lets open requests finish (stopTime).
func (s *Server) Run(ctx context.Context) error {
	return s.generic.PrepareRun().RunWithContext(ctx)
}

// WaitUp waits until everything but SetUsable says that the server is ready:
// hooks are through (roles, default ServiceCIDR, first repair of addresses
// and ports) and the watch caches are filled. Then it waits until a cluster
// IP can be allocated: the allocator learns of its range through an informer,
// a little later.
func (s *Server) WaitUp(ctx context.Context) error {
	err := poll(ctx, func() error {
		return s.client.CoreV1().RESTClient().Get().AbsPath("/readyz").Param("exclude", usableCheck).Do(ctx).Error()
	})
	if err != nil {
		return err
	}
	return poll(ctx, func() error { return tryAllocate(ctx, s.client) })
}

// SetUsable makes /readyz say ok.
func (s *Server) SetUsable() { s.usable.Store(true) }

// WaitReady waits for /readyz itself.
func (s *Server) WaitReady(ctx context.Context) error {
	return poll(ctx, func() error {
		return s.client.CoreV1().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
}

// Loopback is the configuration of an all-powerful client inside the process.
func (s *Server) Loopback() *rest.Config { return rest.CopyConfig(s.loopback) }

// poll calls f until it succeeds or ctx ends; then it returns f's last error
// beside ctx's.
func poll(ctx context.Context, f func() error) error {
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
		case <-t.C:
		}
	}
}

// serviceRange is a service range in the API server's types.
type serviceRange struct {
	net   net.IPNet
	first net.IP
}

func serviceRanges(prefixes []netip.Prefix) []serviceRange {
	var out []serviceRange
	for _, p := range prefixes {
		_, n, err := netutils.ParseCIDRSloppy(p.String())
		if err != nil {
			panic("a netip.Prefix is always a CIDR: " + err.Error())
		}
		out = append(out, serviceRange{*n, net.IP(config.FirstAddr(p).AsSlice())})
	}
	return out
}
