package integration

import (
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rutter-project/rutter/registry/internal/pki"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

var (
	creation = metav1.CreateOptions{}
	get      = metav1.GetOptions{}
	list     = metav1.ListOptions{}
	erase    = metav1.DeleteOptions{}
)

// TestAPI runs everything that one ordinary registry must do.
func TestAPI(t *testing.T) {
	r := start(t, filepath.Join(t.TempDir(), "data"))
	for _, tc := range []struct {
		name string
		test func(*testing.T, *registry)
	}{
		{"quiet log", testLog},
		{"namespaces", testNamespaces},
		{"services", testServices},
		{"endpoints", testEndpoints},
		{"node ranges", testNodeRanges},
		{"deployment", testDeployment},
		{"statefulset", testStatefulSet},
		{"agent may", testAgent},
		{"tokens", testTokens},
		{"anonymous", testAnonymous},
		{"certificates", testServingCertificate},
		{"version", testVersion},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.test(t, r)
		})
	}
}

// testLog: an ordinary start says little, and nothing that looks like trouble.
func testLog(t *testing.T, r *registry) {
	log := r.output()
	if strings.Contains(log, "level=ERROR") || strings.Contains(log, "level=WARN") || strings.Count(log, "\n") > 6 {
		t.Errorf("log of a normal start:\n%s", log)
	}
	for _, want := range []string{"etcd ready", "controllers started", "API server ready on https://127.0.0.1:"} {
		if !strings.Contains(log, want) {
			t.Errorf("log lacks %q:\n%s", want, log)
		}
	}
}

func testNamespaces(t *testing.T, r *registry) {
	ctx, c := t.Context(), r.admin()
	for _, name := range []string{"default", "kube-system", "kube-public", "kube-node-lease"} {
		if _, err := c.CoreV1().Namespaces().Get(ctx, name, get); err != nil {
			t.Error(err)
		}
	}
	namespace(t, c, "passing")
	service(t, c, "passing", "s", corev1.ServiceSpec{})
	if err := c.CoreV1().Namespaces().Delete(ctx, "passing", erase); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the namespace goes, with what is in it", func() error {
		_, err := c.CoreV1().Namespaces().Get(ctx, "passing", get)
		return gone(err)
	})
}

func testServices(t *testing.T, r *registry) {
	ctx, c := t.Context(), r.admin()
	namespace(t, c, "services")
	eventually(t, "the kubernetes service exists", func() error {
		s, err := c.CoreV1().Services("default").Get(ctx, "kubernetes", get)
		if err == nil && s.Spec.ClusterIP != "10.96.0.1" {
			t.Errorf("kubernetes has address %s", s.Spec.ClusterIP)
		}
		return err
	})
	s := service(t, c, "services", "web", corev1.ServiceSpec{})
	ip, err := netip.ParseAddr(s.Spec.ClusterIP)
	if err != nil || !netip.MustParsePrefix("10.96.0.0/16").Contains(ip) {
		t.Errorf("cluster IP %q", s.Spec.ClusterIP)
	}
	np := service(t, c, "services", "np", corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort})
	if p := np.Spec.Ports[0].NodePort; p < 30000 || p > 32767 {
		t.Errorf("node port %d", p)
	}
	if _, err := c.CoreV1().Services("services").Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "taken"},
		Spec:       corev1.ServiceSpec{ClusterIP: s.Spec.ClusterIP, Ports: ports},
	}, creation); !apierrors.IsInvalid(err) {
		t.Errorf("a taken cluster IP: %v", err)
	}
	for _, bad := range []string{"192.0.2.1", "10.96.0.0", "x"} {
		if _, err := c.CoreV1().Services("services").Create(ctx, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: "bad"},
			Spec:       corev1.ServiceSpec{ClusterIP: bad, Ports: ports},
		}, creation); !apierrors.IsInvalid(err) {
			t.Errorf("cluster IP %s: %v", bad, err)
		}
	}
}

// testEndpoints: a ready Pod becomes an endpoint with its host name, and the
// slices of a deleted Service go.
func testEndpoints(t *testing.T, r *registry) {
	ctx, c := t.Context(), r.admin()
	namespace(t, c, "endpoints")
	node(t, c, "endpoints-node")
	s := service(t, c, "endpoints", "db", corev1.ServiceSpec{ClusterIP: "None", Selector: map[string]string{"app": "db"}})
	p := pod("db-0", map[string]string{"app": "db"})
	p.Spec.NodeName, p.Spec.Hostname, p.Spec.Subdomain = "endpoints-node", "db-0", "db"
	if _, err := c.CoreV1().Pods("endpoints").Create(ctx, p, creation); err != nil {
		t.Fatal(err)
	}
	setReady(t, c, "endpoints", "db-0", "10.244.7.1")
	slices := metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + s.Name}
	eventually(t, "the slice has the pod", func() error {
		l, err := c.DiscoveryV1().EndpointSlices("endpoints").List(ctx, slices)
		if err != nil {
			return err
		}
		for _, sl := range l.Items {
			for _, e := range sl.Endpoints {
				if e.Addresses[0] == "10.244.7.1" && e.Conditions.Ready != nil && *e.Conditions.Ready && e.Hostname != nil && *e.Hostname == "db-0" && *e.NodeName == "endpoints-node" {
					return nil
				}
			}
		}
		return fmt.Errorf("slices: %v", l.Items)
	})
	eventually(t, "the Endpoints object has it too", func() error {
		e, err := c.CoreV1().Endpoints("endpoints").Get(ctx, "db", get) //nolint:staticcheck // still served, still used
		if err == nil && (len(e.Subsets) != 1 || e.Subsets[0].Addresses[0].IP != "10.244.7.1") {
			err = fmt.Errorf("subsets %v", e.Subsets)
		}
		return err
	})
	if err := c.CoreV1().Services("endpoints").Delete(ctx, "db", erase); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the slices go with their service", func() error {
		l, err := c.DiscoveryV1().EndpointSlices("endpoints").List(ctx, slices)
		if err == nil && len(l.Items) > 0 {
			err = fmt.Errorf("%d left", len(l.Items))
		}
		return err
	})

	// Without a selector: Endpoints written by hand are mirrored.
	service(t, c, "endpoints", "byhand", corev1.ServiceSpec{})
	if _, err := c.CoreV1().Endpoints("endpoints").Create(ctx, &corev1.Endpoints{ //nolint:staticcheck // see above
		ObjectMeta: metav1.ObjectMeta{Name: "byhand"},
		Subsets:    []corev1.EndpointSubset{{Addresses: []corev1.EndpointAddress{{IP: "10.244.7.9"}}, Ports: []corev1.EndpointPort{{Port: 80}}}}, //nolint:staticcheck // see above
	}, creation); err != nil {
		t.Fatal(err)
	}
	eventually(t, "they are mirrored", func() error {
		l, err := c.DiscoveryV1().EndpointSlices("endpoints").List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=byhand"})
		if err == nil && (len(l.Items) != 1 || l.Items[0].Endpoints[0].Addresses[0] != "10.244.7.9") {
			err = fmt.Errorf("slices: %v", l.Items)
		}
		return err
	})
}

func testNodeRanges(t *testing.T, r *registry) {
	ctx, c := t.Context(), r.admin()
	seen := map[string]string{}
	for _, name := range []string{"range-a", "range-b"} {
		node(t, c, name)
		eventually(t, name+" gets a pod range", func() error {
			n, err := c.CoreV1().Nodes().Get(ctx, name, get)
			if err != nil {
				return err
			}
			if n.Spec.PodCIDR == "" {
				return errors.New("none yet")
			}
			p := netip.MustParsePrefix(n.Spec.PodCIDR)
			if p.Bits() != 24 || !netip.MustParsePrefix("10.244.0.0/16").Contains(p.Addr()) || seen[n.Spec.PodCIDR] != "" {
				t.Errorf("%s has %s, also %q", name, n.Spec.PodCIDR, seen[n.Spec.PodCIDR])
			}
			seen[n.Spec.PodCIDR] = name
			return nil
		})
	}
}

func testDeployment(t *testing.T, r *registry) {
	ctx, c := t.Context(), r.admin()
	namespace(t, c, "deployment")
	labels := map[string]string{"app": "web"}
	if _, err := c.AppsV1().Deployments("deployment").Create(ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec:       appsv1.DeploymentSpec{Replicas: new(int32(2)), Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: template(labels)},
	}, creation); err != nil {
		t.Fatal(err)
	}
	pods := func(want int) {
		eventually(t, fmt.Sprintf("there are %d pods", want), func() error {
			sets, err := c.AppsV1().ReplicaSets("deployment").List(ctx, list)
			if err != nil {
				return err
			}
			l, err := c.CoreV1().Pods("deployment").List(ctx, list)
			if err == nil && len(l.Items) != want {
				err = fmt.Errorf("%d pods, %d sets", len(l.Items), len(sets.Items))
			}
			return err
		})
	}
	pods(2)
	if err := c.AppsV1().Deployments("deployment").Delete(ctx, "web", metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationBackground)}); err != nil {
		t.Fatal(err)
	}
	pods(0) // the garbage collector follows the owners down
}

func testStatefulSet(t *testing.T, r *registry) {
	ctx, c := t.Context(), r.admin()
	namespace(t, c, "statefulset")
	labels := map[string]string{"app": "db"}
	if _, err := c.AppsV1().StatefulSets("statefulset").Create(ctx, &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: "db"},
		Spec: appsv1.StatefulSetSpec{
			ServiceName: "db", Replicas: new(int32(2)), PodManagementPolicy: appsv1.ParallelPodManagement,
			Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: template(labels),
		},
	}, creation); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"db-0", "db-1"} {
		eventually(t, name+" exists", func() error {
			p, err := c.CoreV1().Pods("statefulset").Get(ctx, name, get)
			if err == nil && (p.Spec.Hostname != name || p.Spec.Subdomain != "db") {
				t.Errorf("%s is called %s.%s", name, p.Spec.Hostname, p.Spec.Subdomain)
			}
			return err
		})
	}
}

// testAgent: the agent's whole allowance, and what lies just outside it.
func testAgent(t *testing.T, r *registry) {
	ctx, c := t.Context(), r.agent()
	me, err := c.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, creation)
	if err != nil {
		t.Fatal(err)
	}
	if me.Status.UserInfo.Username != pki.AgentUser || !strings.Contains(strings.Join(me.Status.UserInfo.Groups, " "), pki.AgentGroup) {
		t.Errorf("the agent is %v", me.Status.UserInfo)
	}
	const yes, no = true, false
	for _, tc := range []struct {
		verbs, group, resource, namespace string
		want                              bool
	}{
		{"get list watch", "", "services", "", yes},
		{"get list watch", "", "namespaces", "", yes},
		{"get list watch create update patch", "", "nodes", "", yes},
		{"update patch", "", "nodes/status", "", yes},
		{"get list watch create delete patch", "", "pods", "", yes},
		{"update patch", "", "pods/status", "", yes},
		{"get list watch", "discovery.k8s.io", "endpointslices", "", yes},
		{"get list watch", "networking.k8s.io", "servicecidrs", "", yes},
		{"create patch", "", "events", "", yes},
		{"create patch", "events.k8s.io", "events", "", yes},
		{"create get update patch", "coordination.k8s.io", "leases", "kube-node-lease", yes},
		{"get list watch", "", "configmaps", "kube-system", yes},

		{"get list watch create update patch delete", "", "secrets", "", no},
		{"get", "", "secrets", "kube-system", no},
		{"create update patch delete", "", "services", "", no},
		{"update patch", "", "services/status", "", no},
		{"create update patch delete", "", "namespaces", "", no},
		{"delete deletecollection", "", "nodes", "", no},
		{"update deletecollection", "", "pods", "", no},
		{"create get", "", "pods/exec", "", no},
		{"create", "", "serviceaccounts/token", "", no},
		{"get list watch", "", "configmaps", "", no},
		{"create update patch delete", "", "configmaps", "kube-system", no},
		{"create update patch delete", "discovery.k8s.io", "endpointslices", "", no},
		{"create update patch delete", "networking.k8s.io", "servicecidrs", "", no},
		{"get list create update", "coordination.k8s.io", "leases", "kube-system", no},
		{"delete list watch", "coordination.k8s.io", "leases", "kube-node-lease", no},
		{"get list create update patch bind escalate", "rbac.authorization.k8s.io", "clusterroles", "", no},
		{"create update", "rbac.authorization.k8s.io", "clusterrolebindings", "", no},
		{"create", "apps", "deployments", "", no},
		{"impersonate", "", "users", "", no},
		{"impersonate", "", "groups", "", no},
	} {
		for verb := range strings.FieldsSeq(tc.verbs) {
			resource, sub, _ := strings.Cut(tc.resource, "/")
			a, err := c.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
				Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
					Verb: verb, Group: tc.group, Resource: resource, Subresource: sub, Namespace: tc.namespace,
				}},
			}, creation)
			if err != nil {
				t.Fatal(err)
			}
			if a.Status.Allowed != tc.want {
				t.Errorf("%s %s.%s in %q: allowed %v, want %v", verb, tc.resource, tc.group, tc.namespace, a.Status.Allowed, tc.want)
			}
		}
	}
	// Not only the review says so.
	if _, err := c.CoreV1().Secrets("default").List(ctx, list); !apierrors.IsForbidden(err) {
		t.Errorf("listing secrets: %v", err)
	}
	if _, err := c.CoreV1().Services("").List(ctx, list); err != nil {
		t.Error(err)
	}
	if _, err := c.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "agent-node"}}, creation); err != nil {
		t.Error(err)
	}
}

// testTokens: a service account's token is accepted, and no longer when the
// account is deleted.
func testTokens(t *testing.T, r *registry) {
	ctx, c := t.Context(), r.admin()
	if _, err := c.CoreV1().ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "robot"}}, creation); err != nil {
		t.Fatal(err)
	}
	tok, err := c.CoreV1().ServiceAccounts("default").CreateToken(ctx, "robot", &authenticationv1.TokenRequest{}, creation)
	if err != nil {
		t.Fatal(err)
	}
	review := func() bool {
		rv, err := c.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: tok.Status.Token}}, creation)
		if err != nil {
			t.Fatal(err)
		}
		return rv.Status.Authenticated
	}
	if !review() {
		t.Error("the token is refused")
	}
	if err := c.CoreV1().ServiceAccounts("default").Delete(ctx, "robot", erase); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the token ends with its account", func() error { // accepted tokens are remembered for 10 s
		if review() {
			return errors.New("still accepted")
		}
		return nil
	})
}

// testAnonymous: health for everybody, nothing else.
func testAnonymous(t *testing.T, r *registry) {
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	for path, want := range map[string]int{
		"/healthz": 200, "/livez": 200, "/readyz": 200,
		"/": 401, "/version": 401, "/api": 401, "/metrics": 401, "/api/v1/services": 401, "/api/v1/secrets": 401, "/openapi/v2": 401,
	} {
		res, err := client.Get(r.url + path)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, res.StatusCode, want)
		}
	}
}

// testServingCertificate: the names are covered, and a renewed certificate is
// served without a restart.
func testServingCertificate(t *testing.T, r *registry) {
	served := func() *tls.ConnectionState {
		conn, err := tls.Dial("tcp", strings.TrimPrefix(r.url, "https://"), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		s := conn.ConnectionState()
		return &s
	}
	before := served().PeerCertificates[0]
	for _, host := range []string{"localhost", "127.0.0.1", "::1", "10.96.0.1", "kubernetes.default.svc.cluster.local"} {
		if err := before.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	dir := filepath.Join(r.dir, "pki")
	a, err := pki.Open(dir, pki.Names{DNS: append(before.DNSNames, "renewed.example"), IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Ensure(time.Now()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(a.File("serving.crt"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	if string(block.Bytes) == string(before.Raw) {
		t.Fatal("the certificate on disk did not change; the test shows nothing")
	}
	eventually(t, "the new certificate is served", func() error {
		if string(served().PeerCertificates[0].Raw) != string(block.Bytes) {
			return errors.New("the old one is")
		}
		return nil
	})
}

func testVersion(t *testing.T, r *registry) {
	v, err := r.admin().Discovery().ServerVersion()
	if err != nil || !strings.HasPrefix(v.GitVersion, "v1.36.") || v.Minor != "36" {
		t.Errorf("%v, %v", v, err)
	}
}

// TestDualStack: both families everywhere.
func TestDualStack(t *testing.T) {
	r := start(t, filepath.Join(t.TempDir(), "data"), "--service-cidr", "10.96.0.0/16,fd00:96::/108")
	ctx, c := t.Context(), r.admin()
	policy := corev1.IPFamilyPolicyRequireDualStack
	s := service(t, c, "default", "both", corev1.ServiceSpec{IPFamilyPolicy: &policy})
	if len(s.Spec.ClusterIPs) != 2 || !netip.MustParsePrefix("fd00:96::/108").Contains(netip.MustParseAddr(s.Spec.ClusterIPs[1])) {
		t.Errorf("cluster IPs %v", s.Spec.ClusterIPs)
	}
	node(t, c, "both")
	eventually(t, "the node has a range of each family", func() error {
		n, err := c.CoreV1().Nodes().Get(ctx, "both", get)
		if err == nil && len(n.Spec.PodCIDRs) != 2 {
			err = fmt.Errorf("ranges %v", n.Spec.PodCIDRs)
		}
		return err
	})
}

// TestRoutable: with an address that others can reach, the kubernetes service
// leads to it.
func TestRoutable(t *testing.T) {
	r := start(t, filepath.Join(t.TempDir(), "data"), "--advertise-address", "10.9.9.9")
	c := r.admin()
	eventually(t, "the kubernetes service has the endpoint", func() error {
		l, err := c.DiscoveryV1().EndpointSlices("default").List(t.Context(), metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=kubernetes"})
		if err == nil && (len(l.Items) != 1 || len(l.Items[0].Endpoints) != 1 || l.Items[0].Endpoints[0].Addresses[0] != "10.9.9.9") {
			err = fmt.Errorf("slices %v", l.Items)
		}
		return err
	})
}

var ports = []corev1.ServicePort{{Port: 80}}

func namespace(t *testing.T, c kubernetes.Interface, name string) {
	t.Helper()
	if _, err := c.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, creation); err != nil {
		t.Fatal(err)
	}
}

func service(t *testing.T, c kubernetes.Interface, ns, name string, spec corev1.ServiceSpec) *corev1.Service {
	t.Helper()
	spec.Ports = ports
	s, err := c.CoreV1().Services(ns).Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, creation)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func node(t *testing.T, c kubernetes.Interface, name string) {
	t.Helper()
	if _, err := c.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, creation); err != nil {
		t.Fatal(err)
	}
}

// container stands for a process that no kubelet starts.
var container = corev1.Container{Name: "process", Image: "none"}

func pod(name string, labels map[string]string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{container}}}
}

func template(labels map[string]string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{container}}}
}

func setReady(t *testing.T, c kubernetes.Interface, ns, name, ip string) {
	t.Helper()
	p, err := c.CoreV1().Pods(ns).Get(t.Context(), name, get)
	if err != nil {
		t.Fatal(err)
	}
	p.Status.Phase = corev1.PodRunning
	p.Status.PodIP, p.Status.PodIPs = ip, []corev1.PodIP{{IP: ip}}
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	if _, err := c.CoreV1().Pods(ns).UpdateStatus(t.Context(), p, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// gone wants a not-found error.
func gone(err error) error {
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err == nil:
		return errors.New("it is still there")
	}
	return err
}
