package peer

import (
	"fmt"
	"os"
	"path/filepath"
)

// Proxy is a service proxy in a network namespace of its own.
type Proxy struct {
	*Process
	Netns *Netns
}

// ProxyConfig is a KubeProxyConfiguration for a test: nothing global is
// touched, for conntrack's limits are read-only outside the first network
// namespace, and the sync periods are the defaults. The four values are the
// kubeconfig, the node's name, the mode and the pods' CIDR; lines of YAML may
// follow.
const ProxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection:
  kubeconfig: %s
hostnameOverride: %s
mode: %s
clusterCIDR: %s
conntrack:
  maxPerCore: 0
  min: 0
  tcpEstablishedTimeout: 0s
  tcpCloseWaitTimeout: 0s
%s`

// StartKubeProxy starts kube-proxy with a configuration file made from config,
// the text of a KubeProxyConfiguration. The namespace must lead to the API
// server (see [Netns.Forward]).
func StartKubeProxy(program, name, dir string, ns *Netns, config string) (*Proxy, error) {
	return startProxy(name, dir, ns, config, nil, program)
}

// StartRutterProxy is StartKubeProxy for `rutter proxy`, which reads the same
// configuration. env is added to this process's environment.
func StartRutterProxy(program, name, dir string, ns *Netns, config string, env ...string) (*Proxy, error) {
	return startProxy(name, dir, ns, config, env, program, "proxy")
}

func startProxy(name, dir string, ns *Netns, config string, env []string, args ...string) (*Proxy, error) {
	path := filepath.Join(dir, name+".yaml")
	if err := os.WriteFile(path, []byte(config), 0o644); err != nil {
		return nil, fmt.Errorf("writing the configuration of %s: %w", name, err)
	}
	p, err := Start(Command{Name: name, Dir: dir, Netns: ns, Env: env, Args: append(args, "--config", path)})
	if err != nil {
		return nil, err
	}
	return &Proxy{Process: p, Netns: ns}, nil
}
