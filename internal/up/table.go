package up

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rutter-project/rutter/internal/agent"
	"github.com/rutter-project/rutter/internal/kubeapi"
	"github.com/rutter-project/rutter/internal/proxy/userspace"
	"github.com/rutter-project/rutter/internal/rootless"
)

// printServices prints what can be reached, as a person would ask for it.
func (u *Up) printServices(ctx context.Context, api *kubeapi.Client) error {
	services, err := api.Services(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list services: %w", api.Explain(err))
	}
	pods, err := api.Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list pods: %w", api.Explain(err))
	}
	fmt.Fprintln(u.cfg.Out)
	w := tabwriter.NewWriter(u.cfg.Out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "SERVICE\tADDRESS\tPORTS\tENDPOINTS")
	for _, s := range services.Items {
		var ports []string
		for _, p := range s.Spec.Ports {
			ports = append(ports, u.port(&s, &p))
		}
		address := strings.Join(s.Spec.ClusterIPs, ",")
		switch {
		case s.Spec.Type == corev1.ServiceTypeExternalName:
			address = s.Spec.ExternalName
		case address == corev1.ClusterIPNone:
			address = "headless"
		}
		fmt.Fprintf(w, "%s.%s\t%s\t%s\t%s\n", s.Name, s.Namespace, address, strings.Join(ports, ","), u.endpoints(&s, pods.Items))
	}
	return w.Flush()
}

// port is where a service port is found.
func (u *Up) port(s *corev1.Service, p *corev1.ServicePort) string {
	if u.cfg.Rootless == rootless.Userspace {
		at := userspace.Offered(uint16(p.Port), userspace.LowestPort())
		if s.Name == "kube-dns" && s.Namespace == metav1.NamespaceSystem {
			at = (&agent.Config{Loopback: true}).DNSPort()
		}
		if int32(at) != p.Port {
			return fmt.Sprintf("%d/%s at %d", p.Port, p.Protocol, at)
		}
	}
	return fmt.Sprintf("%d/%s", p.Port, p.Protocol)
}

func (u *Up) endpoints(s *corev1.Service, pods []corev1.Pod) string {
	if len(s.Spec.Selector) == 0 {
		if s.Name == "kube-dns" && s.Namespace == metav1.NamespaceSystem {
			return "the agent on this node"
		}
		return "-"
	}
	var out []string
	for _, p := range pods {
		if p.Namespace != s.Namespace || p.Status.PodIP == "" || !selects(s.Spec.Selector, p.Labels) {
			continue
		}
		out = append(out, p.Status.PodIP+" ("+p.Name+")")
	}
	if out == nil {
		return "none"
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return true
}

func (u *Up) dnsAddresses() string {
	var list []string
	for _, a := range u.cfg.ClusterDNS {
		list = append(list, a.String())
	}
	if u.cfg.Rootless == rootless.Userspace {
		port := (&agent.Config{Loopback: true}).DNSPort()
		return fmt.Sprintf("port %d of %s and 127.0.0.1", port, strings.Join(list, ", "))
	}
	return strings.Join(append(list, u.cfg.NodeLocalDNS.String()), " and ")
}

func (u *Up) printHints() {
	self := u.self
	if rel, err := relative(self); err == nil {
		self = rel
	}
	if u.cfg.Rootless != "" {
		u.printRootlessHints(self)
		return
	}
	run := self + " run"
	if u.cfg.RunDir != agent.DefaultRunDir {
		run += " --run-dir " + u.cfg.RunDir
	}
	fmt.Fprintf(u.cfg.Out, `
Try in a second terminal:

  %s -it --rm --name curl -- bash     # a pod of your own; then in it:
      nslookup web; curl http://web/; env | grep WEB_SERVICE

  export KUBECONFIG=%s
  kubectl get services,endpointslices,pods

  curl -X POST -d readyz=err http://POD/readyz   # for POD one of web's addresses: it leaves the
                                                 # service, and comes back with readyz=ok

Ctrl-C takes everything down.
`, run, u.adminKubeconfig())
}

func (u *Up) printRootlessHints(self string) {
	if u.cfg.Rootless == rootless.Namespaces {
		fmt.Fprintf(u.cfg.Out, `
Try in a second terminal:

  %[1]s shell                          # a shell where all of this is; then in it:
      curl http://web/; kubectl get services,endpointslices,pods

  %[1]s run -it --rm --name curl -- bash     # a pod of your own; then in it:
      nslookup web; curl http://web/; env | grep WEB_SERVICE

Ctrl-C takes everything down.
`, self)
		return
	}
	port := (&agent.Config{Loopback: true}).DNSPort()
	fmt.Fprintf(u.cfg.Out, `
Try in a second terminal:

  dig @127.0.0.1 -p %[2]d web.default.svc.%[3]s
  %[1]s run --rm --name curl -- sh -c 'curl -s $WEB_SERVICE_HOST:$WEB_SERVICE_PORT'
  %[1]s shell -- kubectl get services,endpointslices,pods

A port that only root may listen on is found at %[4]d more: 80 at %[5]d. Pods are plain processes
with this host's addresses: each listens on a port of its own, named with --port.

Ctrl-C takes everything down.
`, self, port, u.cfg.ClusterDomain, userspace.PortOffset, 80+userspace.PortOffset)
}

// relative shortens a path below the working directory, as a person would type
// it.
func relative(path string) (string, error) {
	wd, err := filepath.Abs(".")
	if err != nil {
		return "", err
	}
	rel, err := filepath.Rel(wd, path)
	if err != nil || strings.HasPrefix(rel, "..") {
		return "", fmt.Errorf("%s is not below %s", path, wd)
	}
	if !strings.Contains(rel, "/") {
		rel = "./" + rel // a shell would look in PATH
	}
	return rel, nil
}
