// Package serviceenv makes the environment variables by which a pod's process
// finds the services that existed when it started. Names, order and values are
// the kubelet's (pkg/kubelet/envvars of Kubernetes v1.36), but for the order
// of services, which is sorted here and random there.
package serviceenv

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// master is the service every pod sees, whatever its namespace and settings.
const master = "kubernetes"

// Visible picks the services a pod of namespace sees, sorted by name: those of
// its namespace if links is set, and always default/kubernetes, which a service
// of that name in the pod's own namespace replaces. Services without an address
// of their own (headless, ExternalName) have no variables.
func Visible(services []corev1.Service, namespace string, links bool) []corev1.Service {
	byName := make(map[string]corev1.Service)
	for _, s := range services {
		if s.Spec.Type == corev1.ServiceTypeExternalName || s.Spec.ClusterIP == "" || s.Spec.ClusterIP == corev1.ClusterIPNone {
			continue
		}
		own := links && s.Namespace == namespace
		if own || s.Namespace == metav1.NamespaceDefault && s.Name == master {
			if _, taken := byName[s.Name]; !taken || own {
				byName[s.Name] = s
			}
		}
	}
	out := make([]corev1.Service, 0, len(byName))
	for _, s := range byName {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b corev1.Service) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// Variables is the `NAME=value` list for services, in their order. Only a
// service's first cluster IP is shown.
func Variables(services []corev1.Service) []string {
	var env []string
	for i := range services {
		env = appendService(env, &services[i])
	}
	return env
}

func appendService(env []string, s *corev1.Service) []string {
	if len(s.Spec.Ports) == 0 {
		return env
	}
	add := func(name, value string) { env = append(env, name+"="+value) }
	name, ip := variable(s.Name), s.Spec.ClusterIP
	first := &s.Spec.Ports[0]

	add(name+"_SERVICE_HOST", ip)
	add(name+"_SERVICE_PORT", number(first))
	for i := range s.Spec.Ports {
		if p := &s.Spec.Ports[i]; p.Name != "" {
			add(name+"_SERVICE_PORT_"+variable(p.Name), number(p))
		}
	}
	// What Docker's container links used to set.
	add(name+"_PORT", url(ip, first))
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		prefix := name + "_PORT_" + number(p) + "_" + strings.ToUpper(protocol(p))
		add(prefix, url(ip, p))
		add(prefix+"_PROTO", protocol(p))
		add(prefix+"_PORT", number(p))
		add(prefix+"_ADDR", ip)
	}
	return env
}

func variable(name string) string { return strings.ToUpper(strings.ReplaceAll(name, "-", "_")) }

func number(p *corev1.ServicePort) string { return strconv.Itoa(int(p.Port)) }

func protocol(p *corev1.ServicePort) string {
	return strings.ToLower(cmp.Or(string(p.Protocol), string(corev1.ProtocolTCP)))
}

func url(ip string, p *corev1.ServicePort) string {
	return protocol(p) + "://" + net.JoinHostPort(ip, number(p))
}

// Merge puts own behind base; where both name a variable, own's value stands
// in base's place.
func Merge(base, own []string) []string {
	out := slices.Clone(base)
	at := make(map[string]int, len(out)+len(own))
	for i, v := range out {
		at[key(v)] = i
	}
	for _, v := range own {
		if i, ok := at[key(v)]; ok {
			out[i] = v
			continue
		}
		at[key(v)] = len(out)
		out = append(out, v)
	}
	return out
}

func key(v string) string {
	name, _, _ := strings.Cut(v, "=")
	return name
}

// The kernel's limits for what execve copies: MAX_ARG_STRLEN for a string, a
// quarter of the stack limit but at most 6 MiB for all (execve(2)). A string
// counts with its NUL and its pointer.
const (
	maxString = 128 << 10
	maxTotal  = 6 << 20
	pointer   = 8
)

// Fits checks that execve will take args and env under the given stack limit in
// bytes, so that the cause is named instead of "argument list too long".
func Fits(args, env []string, stack uint64, services int) error {
	limit := int(min(stack/4, maxTotal))
	total := 0
	for _, list := range [][]string{args, env} {
		for _, s := range list {
			if len(s) >= maxString {
				return fmt.Errorf("%.40s… has %d bytes: the kernel takes at most %d in one argument or variable", s, len(s), maxString-1)
			}
			total += len(s) + 1 + pointer
		}
	}
	if total > limit {
		return fmt.Errorf("the environment takes %d bytes, the kernel allows %d: %d services are visible here; start the pod with --enable-service-links=false or raise `ulimit -s`", total, limit, services)
	}
	return nil
}
