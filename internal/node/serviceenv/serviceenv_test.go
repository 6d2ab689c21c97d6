package serviceenv

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func service(namespace, name, ip string, ports ...corev1.ServicePort) corev1.Service {
	return corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       corev1.ServiceSpec{ClusterIP: ip, ClusterIPs: []string{ip}, Ports: ports},
	}
}

func port(name string, number int32, protocol corev1.Protocol) corev1.ServicePort {
	return corev1.ServicePort{Name: name, Port: number, Protocol: protocol}
}

func TestVariables(t *testing.T) {
	for _, c := range []struct {
		name    string
		service corev1.Service
		want    string
	}{
		{"one port", service("default", "web", "10.96.1.1", port("", 80, "TCP")), `
WEB_SERVICE_HOST=10.96.1.1
WEB_SERVICE_PORT=80
WEB_PORT=tcp://10.96.1.1:80
WEB_PORT_80_TCP=tcp://10.96.1.1:80
WEB_PORT_80_TCP_PROTO=tcp
WEB_PORT_80_TCP_PORT=80
WEB_PORT_80_TCP_ADDR=10.96.1.1
`},
		{"named ports, the same number twice", service("default", "my-dns", "10.96.0.10", port("dns", 53, "UDP"), port("dns-tcp", 53, "TCP")), `
MY_DNS_SERVICE_HOST=10.96.0.10
MY_DNS_SERVICE_PORT=53
MY_DNS_SERVICE_PORT_DNS=53
MY_DNS_SERVICE_PORT_DNS_TCP=53
MY_DNS_PORT=udp://10.96.0.10:53
MY_DNS_PORT_53_UDP=udp://10.96.0.10:53
MY_DNS_PORT_53_UDP_PROTO=udp
MY_DNS_PORT_53_UDP_PORT=53
MY_DNS_PORT_53_UDP_ADDR=10.96.0.10
MY_DNS_PORT_53_TCP=tcp://10.96.0.10:53
MY_DNS_PORT_53_TCP_PROTO=tcp
MY_DNS_PORT_53_TCP_PORT=53
MY_DNS_PORT_53_TCP_ADDR=10.96.0.10
`},
		{"IPv6 in brackets where a port follows; no protocol is TCP", service("default", "six", "fd00::1", port("", 443, "")), `
SIX_SERVICE_HOST=fd00::1
SIX_SERVICE_PORT=443
SIX_PORT=tcp://[fd00::1]:443
SIX_PORT_443_TCP=tcp://[fd00::1]:443
SIX_PORT_443_TCP_PROTO=tcp
SIX_PORT_443_TCP_PORT=443
SIX_PORT_443_TCP_ADDR=fd00::1
`},
		{"a name that begins with a digit stays so", service("default", "1svc", "10.96.1.2", port("", 132, "SCTP")), `
1SVC_SERVICE_HOST=10.96.1.2
1SVC_SERVICE_PORT=132
1SVC_PORT=sctp://10.96.1.2:132
1SVC_PORT_132_SCTP=sctp://10.96.1.2:132
1SVC_PORT_132_SCTP_PROTO=sctp
1SVC_PORT_132_SCTP_PORT=132
1SVC_PORT_132_SCTP_ADDR=10.96.1.2
`},
		{"no ports", service("default", "odd", "10.96.1.3"), "\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := "\n"
			for _, v := range Variables([]corev1.Service{c.service}) {
				got += v + "\n"
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestVisible(t *testing.T) {
	external := service("default", "external", "")
	external.Spec.Type = corev1.ServiceTypeExternalName
	all := []corev1.Service{
		service("default", "web", "10.96.1.1"), service("default", "kubernetes", "10.96.0.1"),
		service("shop", "web", "10.96.2.1"), service("shop", "cart", "10.96.2.2"),
		service("own", "kubernetes", "10.96.3.1"),
		service("default", "headless", "None"), service("default", "pending", ""), external,
	}
	for _, c := range []struct {
		namespace string
		links     bool
		want      string
	}{
		{"default", true, "kubernetes=10.96.0.1 web=10.96.1.1"},
		{"default", false, "kubernetes=10.96.0.1"},
		{"shop", true, "cart=10.96.2.2 kubernetes=10.96.0.1 web=10.96.2.1"},
		{"shop", false, "kubernetes=10.96.0.1"},
		{"own", true, "kubernetes=10.96.3.1"},
		{"own", false, "kubernetes=10.96.0.1"},
		{"empty", true, "kubernetes=10.96.0.1"},
	} {
		// The API lists in any order.
		for _, list := range [][]corev1.Service{all, reversed(all)} {
			var got []string
			for _, s := range Visible(list, c.namespace, c.links) {
				got = append(got, s.Name+"="+s.Spec.ClusterIP)
			}
			if got := strings.Join(got, " "); got != c.want {
				t.Errorf("%s, links %t: %s, want %s", c.namespace, c.links, got, c.want)
			}
		}
	}
}

func reversed(list []corev1.Service) (out []corev1.Service) {
	for i := len(list) - 1; i >= 0; i-- {
		out = append(out, list[i])
	}
	return out
}

func TestMerge(t *testing.T) {
	base := []string{"PATH=/bin", "WEB_PORT=tcp://10.96.1.1:80", "A=1"}
	got := Merge(base, []string{"WEB_PORT=80", "B=2", "B=3", "EMPTY="})
	if diff := cmp.Diff([]string{"PATH=/bin", "WEB_PORT=80", "A=1", "B=3", "EMPTY="}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if base[1] != "WEB_PORT=tcp://10.96.1.1:80" {
		t.Error("the base was changed")
	}
}

// Fits must say no where the kernel does, and only little before.
func TestFitsAgreesWithTheKernel(t *testing.T) {
	var stack unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_STACK, &stack); err != nil {
		t.Fatal(err)
	}
	try := func(env []string) (fits, runs bool) {
		args := []string{"/bin/true"}
		cmd := exec.Command(args[0])
		cmd.Env = env
		return Fits(args, env, stack.Cur, len(env)) == nil, cmd.Run() == nil
	}
	variables := func(n, size int) (env []string) {
		for i := range n {
			env = append(env, fmt.Sprintf("V%06d=%s", i, strings.Repeat("x", size-8)))
		}
		return env
	}
	for _, n := range []int{100, 20_000, 60_000, 200_000} {
		if fits, runs := try(variables(n, 30)); fits != runs {
			t.Errorf("%d variables: fits %t, runs %t", n, fits, runs)
		}
	}
	for _, size := range []int{128<<10 - 1, 128 << 10} {
		if fits, runs := try(variables(1, size)); fits != runs {
			t.Errorf("a variable of %d bytes: fits %t, runs %t", size, fits, runs)
		}
	}
}

func TestFitsNamesTheCause(t *testing.T) {
	var services []corev1.Service
	for i := range 2000 {
		services = append(services, service("default", fmt.Sprintf("service-with-a-long-name-%04d", i), "10.96.100.100", port("http", 80, "TCP")))
	}
	err := Fits([]string{"sh"}, Variables(services), 8<<20, len(services))
	if err != nil {
		t.Fatalf("2,000 services within the usual stack of 8 MiB: %v", err)
	}
	err = Fits([]string{"sh"}, Variables(services), 2<<20, len(services))
	if err == nil || !strings.Contains(err.Error(), "2000 services are visible here; start the pod with --enable-service-links=false") {
		t.Errorf("%v", err)
	}
}
