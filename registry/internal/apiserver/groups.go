package apiserver

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apiserver/pkg/registry/generic"
	genericapiserver "k8s.io/apiserver/pkg/server"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	controlplane "k8s.io/kubernetes/pkg/controlplane/apiserver"
	kubeoptions "k8s.io/kubernetes/pkg/kubeapiserver/options"
	kubeletclient "k8s.io/kubernetes/pkg/kubelet/client"
	appsrest "k8s.io/kubernetes/pkg/registry/apps/rest"
	authenticationrest "k8s.io/kubernetes/pkg/registry/authentication/rest"
	authorizationrest "k8s.io/kubernetes/pkg/registry/authorization/rest"
	coordinationrest "k8s.io/kubernetes/pkg/registry/coordination/rest"
	corerest "k8s.io/kubernetes/pkg/registry/core/rest"
	discoveryrest "k8s.io/kubernetes/pkg/registry/discovery/rest"
	eventsrest "k8s.io/kubernetes/pkg/registry/events/rest"
	networkingrest "k8s.io/kubernetes/pkg/registry/networking/rest"
	rbacrest "k8s.io/kubernetes/pkg/registry/rbac/rest"

	// The groups' types, defaults and conversions register themselves.
	// autoscaling and policy are needed by subresources of apps (scale) and
	// of core (eviction).
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	_ "k8s.io/kubernetes/pkg/apis/authentication/install"
	_ "k8s.io/kubernetes/pkg/apis/authorization/install"
	_ "k8s.io/kubernetes/pkg/apis/autoscaling/install"
	_ "k8s.io/kubernetes/pkg/apis/coordination/install"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	_ "k8s.io/kubernetes/pkg/apis/discovery/install"
	_ "k8s.io/kubernetes/pkg/apis/events/install"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	_ "k8s.io/kubernetes/pkg/apis/policy/install"
	_ "k8s.io/kubernetes/pkg/apis/rbac/install"
)

// resources lists what is served: whole groups, less what nothing here acts on.
// A kind that is not served answers "no such resource", which is better than
// an object that waits for ever.
func resources() *serverstorage.ResourceConfig {
	c := serverstorage.NewResourceConfig()
	c.EnableVersions(
		corev1.SchemeGroupVersion, appsv1.SchemeGroupVersion, discoveryv1.SchemeGroupVersion,
		networkingv1.SchemeGroupVersion, coordinationv1.SchemeGroupVersion, eventsv1.SchemeGroupVersion,
		authenticationv1.SchemeGroupVersion, authorizationv1.SchemeGroupVersion, rbacv1.SchemeGroupVersion,
	)
	// persistentvolumeclaims stay: the StatefulSet controller's informer
	// needs them.
	for _, r := range []string{"persistentvolumes", "replicationcontrollers", "podtemplates", "resourcequotas", "limitranges", "componentstatuses", "bindings"} {
		c.DisableResources(corev1.SchemeGroupVersion.WithResource(r))
	}
	c.DisableResources(appsv1.SchemeGroupVersion.WithResource("daemonsets"))
	for _, r := range []string{"ingresses", "ingressclasses", "networkpolicies"} {
		c.DisableResources(networkingv1.SchemeGroupVersion.WithResource(r))
	}
	return c
}

// repairInterval is kube-apiserver's (pkg/controlplane, repairLoopInterval).
const repairInterval = 3 * time.Minute

// storageProviders builds the groups' storage; the order is that of discovery.
func storageProviders(c controlplane.CompletedConfig, ranges []serviceRange) ([]controlplane.RESTStorageProvider, error) {
	services := corerest.ServicesConfig{
		ClusterIPRange:   ranges[0].net,
		NodePortRange:    kubeoptions.DefaultServiceNodePortRange,
		IPRepairInterval: repairInterval,
	}
	if len(ranges) == 2 {
		services.SecondaryClusterIPRange = ranges[1].net
	}
	core, err := corerest.New(corerest.Config{
		GenericConfig: *c.NewCoreGenericConfig(),
		Proxy: corerest.ProxyConfig{
			Transport: c.Extra.ProxyTransport,
			// For logs and exec of pods; there is no kubelet, but the
			// storage does not build without.
			KubeletClientConfig: kubeletclient.KubeletClientConfig{Port: 10250, PreferredAddressTypes: []string{string(corev1.NodeInternalIP)}},
		},
		Services: services,
	}, c.Generic.Authorization.Authorizer)
	if err != nil {
		return nil, err
	}
	return []controlplane.RESTStorageProvider{
		core,
		authenticationrest.RESTStorageProvider{Authenticator: c.Generic.Authentication.Authenticator, APIAudiences: c.Generic.Authentication.APIAudiences},
		authorizationrest.RESTStorageProvider{Authorizer: c.Generic.Authorization.Authorizer, RuleResolver: c.Generic.RuleResolver},
		coordinationrest.RESTStorageProvider{},
		discoveryrest.StorageProvider{},
		networkingrest.RESTStorageProvider{},
		rbacStorage{rbacrest.RESTStorageProvider{Authorizer: c.Generic.Authorization.Authorizer}},
		appsrest.StorageProvider{},
		eventsrest.RESTStorageProvider{TTL: c.EventTTL},
	}, nil
}

// rbacStorage hides the provider's start hook, which sleeps a second and then
// writes some 200 objects one after the other; bootstrapRoles does its work.
type rbacStorage struct{ p rbacrest.RESTStorageProvider }

func (r rbacStorage) GroupName() string { return r.p.GroupName() }

func (r rbacStorage) NewRESTStorage(c serverstorage.APIResourceConfigSource, g generic.RESTOptionsGetter) (genericapiserver.APIGroupInfo, error) {
	return r.p.NewRESTStorage(c, g)
}
