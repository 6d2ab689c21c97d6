package apiserver

import (
	"context"
	"fmt"
	"net"
	"strings"

	"github.com/rutter-project/rutter/registry/internal/atomicfile"
	corev1 "k8s.io/api/core/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	apimachineryversion "k8s.io/apimachinery/pkg/version"
	"k8s.io/apiserver/pkg/admission/plugin/namespace/lifecycle"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/component-base/compatibility"
	logsapi "k8s.io/component-base/logs/api/v1"
	controlplaneoptions "k8s.io/kubernetes/pkg/controlplane/apiserver/options"
	kubeoptions "k8s.io/kubernetes/pkg/kubeapiserver/options"
)

// anonymous lets anybody ask for health, and nothing else.
const anonymous = `apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous:
  enabled: true
  conditions:
  - path: /healthz
  - path: /livez
  - path: /readyz
`

// gates are features that are on by default and useless with one registry.
var gates = map[string]bool{
	"UnknownVersionInteroperabilityProxy": false, // writes a peer lease every 10 s
	"APIServerIdentity":                   false, // a Lease object, renewed every 10 s; its readers are peers
}

// completeOptions sets kube-apiserver's options by its own types, so that a
// renamed one fails to compile instead of failing to start.
func completeOptions(ctx context.Context, o Options, bound *boundObjects) (controlplaneoptions.CompletedOptions, error) {
	var none controlplaneoptions.CompletedOptions
	// cmd/kube-apiserver/app registers the logging gates in an init function;
	// without them NewOptions panics.
	if err := logsapi.AddFeatureGates(utilfeature.DefaultMutableFeatureGate); err != nil {
		return none, fmt.Errorf("registering feature gates: %w", err)
	}
	if err := atomicfile.Write(o.Files.AuthenticationConfig, []byte(anonymous), 0o600); err != nil {
		return none, err
	}
	s := controlplaneoptions.NewOptions()
	if err := s.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return none, fmt.Errorf("setting the API server's version: %w", err)
	}
	if err := utilfeature.DefaultMutableFeatureGate.SetFromMap(gates); err != nil {
		return none, fmt.Errorf("setting feature gates: %w", err)
	}
	s.SystemNamespaces = append(s.SystemNamespaces, corev1.NamespaceNodeLease)

	s.GenericServerRunOptions.AdvertiseAddress = net.IP(o.Config.Advertise.AsSlice())
	s.SecureServing.Listener = o.Listener
	s.SecureServing.BindAddress = net.IP(o.Config.Bind.AsSlice())
	s.SecureServing.BindPort = o.Listener.Addr().(*net.TCPAddr).Port
	s.SecureServing.ServerCert.CertKey.CertFile = o.Files.Cert
	s.SecureServing.ServerCert.CertKey.KeyFile = o.Files.Key

	t := &s.Etcd.StorageConfig.Transport
	t.ServerList = o.Store.Endpoints
	t.TrustedCAFile, t.CertFile, t.KeyFile = o.Store.CAFile, o.Store.CertFile, o.Store.KeyFile
	s.Etcd.StorageConfig.Prefix = o.Store.Prefix

	a := s.Authentication
	a.ClientCert.ClientCA = o.Files.CA
	a.AuthenticationConfigFile = o.Files.AuthenticationConfig
	a.ServiceAccounts.Issuers = []string{"https://kubernetes.default.svc." + o.Config.ClusterDomain}
	a.ServiceAccounts.KeyFiles = []string{o.Files.SAPub}
	a.ServiceAccounts.OptionalTokenGetter = bound.getter
	s.ServiceAccountSigningKeyFile = o.Files.SAKey
	s.Authorization.Modes = []string{"RBAC"}

	s.Features.EnablePriorityAndFairness = false
	s.Features.EnableProfiling = false

	// Every plugin that is on by default but NamespaceLifecycle needs objects
	// or controllers that are not here (service accounts in each namespace,
	// priority and storage classes, policies); one of them, the mutating
	// admission policy, polls /openapi/v3 every 5 s even so.
	off := kubeoptions.DefaultOffAdmissionPlugins()
	for _, p := range kubeoptions.AllOrderedPlugins {
		if p != lifecycle.PluginName && !off.Has(p) {
			s.Admission.GenericAdmission.DisablePlugins = append(s.Admission.GenericAdmission.DisablePlugins, p)
		}
	}

	ranges := serviceRanges(o.Config.ServiceCIDRs)
	done, err := s.Complete(ctx, nil, []net.IP{ranges[0].first})
	if err != nil {
		return none, fmt.Errorf("completing the API server's options: %w", err)
	}
	if errs := done.Validate(); len(errs) > 0 {
		return none, fmt.Errorf("checking the API server's options: %w", utilerrors.NewAggregate(errs))
	}
	return done, nil
}

// served gives /version the version of the Kubernetes module that is inside;
// the libraries know it only when their build system stamps it.
type served struct {
	compatibility.EffectiveVersion
	version string
}

func (s served) Info() *apimachineryversion.Info {
	i := *s.EffectiveVersion.Info()
	i.GitVersion = s.version
	if p := strings.SplitN(strings.TrimPrefix(s.version, "v"), ".", 3); len(p) == 3 {
		i.Major, i.Minor = p[0], p[1]
	}
	i.GitCommit, i.GitTreeState, i.BuildDate = "", "", ""
	return &i
}
