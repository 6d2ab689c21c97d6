package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/kubeapi"
	"github.com/rutter-project/rutter/internal/node/nodetest"
	"github.com/rutter-project/rutter/internal/node/sandbox"
	"github.com/rutter-project/rutter/test/registry"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case sandbox.PauseCommand:
			if sandbox.Pause() != nil {
				os.Exit(1)
			}
			return
		case SuperviseCommand:
			if Supervise(context.Background()) != nil {
				os.Exit(1)
			}
			return
		}
	}
	os.Exit(nodetest.Main(m))
}

const nodeName = "node-a"

// fixture is a node with a registry: real ones, in namespaces of their own.
type fixture struct {
	reg    *registry.Registry
	admin  *kubeapi.Client
	runDir string
}

func (f *fixture) job(spec Spec) Job {
	return Job{Spec: spec, RunDir: f.runDir, Kubeconfig: f.reg.Agent(), NodeName: nodeName}
}

func (f *fixture) pods() kubeapi.Resource[corev1.Pod, corev1.PodList] { return f.admin.Pods("default") }

// TestPods shares one registry among its parts, which run one after the other.
// Each leaves host, run directory and API as it found them.
func TestPods(t *testing.T) {
	nodetest.Need(t)
	reg := registry.Start(t, "--service-cidr", "10.96.0.0/16,fd00:10:96::/112", "--pod-cidr", "10.244.0.0/16,fd00:10:244::/56")
	admin, err := kubeapi.Open(reg.Admin())
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{reg, admin, t.TempDir()}
	for _, part := range []struct {
		name string
		run  func(*testing.T, *fixture)
	}{
		{"NodeIsWaitedFor", testNodeIsWaitedFor}, // makes the Node, which stays
		{"ExitCodes", testExitCodes},
		{"EndedPodStays", testEndedPodStays},
		{"Object", testObject},
		{"Environment", testEnvironment},
		{"User", testUser},
		{"Readiness", testReadiness},
		{"Conditions", testConditions},
		{"DeletedThroughTheAPI", testDeleted},
		{"SuccessorOfTheSameName", testSuccessor},
		{"Context", testContext},
		{"Failures", testFailures},
		{"Detached", testDetached},
		{"Exec", testExec},
		{"SupervisorKilled", testSupervisorKilled},
		{"Outage", testOutage},
	} {
		t.Run(part.name, func(t *testing.T) {
			before := f.state(t)
			part.run(t, f)
			// A supervisor lets go of its pod before it exits.
			after := f.state(t)
			for range 100 {
				if after == before {
					break
				}
				time.Sleep(50 * time.Millisecond)
				after = f.state(t)
			}
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("left behind (-before +after):\n%s", diff)
			}
		})
	}
}

// state is everything that pods may leave.
func (f *fixture) state(t *testing.T) string {
	t.Helper()
	list, err := f.pods().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, p := range list.Items {
		fmt.Fprintln(&b, "pod", p.Name, p.Status.Phase)
	}
	out, err := exec.Command("sh", "-c", `ip -o -br link; ip route show table all | grep -v fe80; ls /run/netns 2>/dev/null; ls "$0/pods" 2>/dev/null | grep -v -e lock -e last.json; true`, f.runDir).CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range slices.Sorted(maps.Values(nodetest.Processes(t, "rutter "))) {
		fmt.Fprintln(&b, command)
	}
	return b.String() + string(out)
}

// run is a pod in this process.
type run struct {
	pod  *Pod
	done chan struct{}
	exit Exit
	err  error
	out  *os.File // what the process prints
}

func (f *fixture) config(t *testing.T, progress func(string)) Config {
	t.Helper()
	cfg, err := f.job(Spec{}).Config(slog.New(slog.DiscardHandler), progress)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// start runs a pod and returns once it runs, or could not be made to.
func (f *fixture) start(t *testing.T, ctx context.Context, spec Spec) *run {
	t.Helper()
	if spec.Dir == "" {
		spec.Dir = "/"
	}
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	r := &run{done: make(chan struct{}), out: out}
	running := make(chan *Pod, 1)
	cfg := f.config(t, nil)
	go func() {
		defer close(r.done)
		r.exit, r.err = Run(ctx, cfg, spec, Stdio{Files: [3]*os.File{null, w, w}}, func(p *Pod) {
			_ = w.Close()
			running <- p
		})
		_ = w.Close()
		_ = null.Close()
	}()
	select {
	case r.pod = <-running:
	case <-r.done:
	}
	t.Cleanup(func() {
		if r.pod != nil {
			r.pod.Stop(0)
		}
		<-r.done
		_ = out.Close()
	})
	return r
}

// output waits for the end and returns all that was printed.
func (r *run) output(t *testing.T) string {
	t.Helper()
	text, err := io.ReadAll(r.out)
	if err != nil {
		t.Fatal(err)
	}
	<-r.done
	if r.err != nil {
		t.Fatal(r.err)
	}
	return string(text)
}

// says waits for a line of output.
func (r *run) says(t *testing.T, want string) {
	t.Helper()
	got, buf := "", make([]byte, 1)
	for !strings.HasSuffix(got, want+"\n") {
		if _, err := r.out.Read(buf); err != nil {
			t.Fatalf("it said %q, not %q: %v", got, want, err)
		}
		got += string(buf)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func shell(script string) []string { return []string{"sh", "-c", script} }

func testNodeIsWaitedFor(t *testing.T, f *fixture) {
	lines := make(chan string, 10)
	cfg := f.config(t, func(s string) { lines <- s })
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	stdio := Stdio{Files: [3]*os.File{null, null, null}}

	// Given up while it waits: the reason is named.
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := Run(ctx, cfg, Spec{Command: []string{"true"}, Dir: "/"}, stdio, nil)
		done <- err
	}()
	const why = "node node-a is not registered: is `rutter up` or `rutter agent` running here, under this name (--node-name)?"
	if got := <-lines; got != "waiting: "+why {
		t.Errorf("progress %q", got)
	}
	cancel()
	if err := <-done; err == nil || !strings.Contains(err.Error(), why) {
		t.Errorf("error %v", err)
	}

	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName, Annotations: map[string]string{ClusterDNSAnnotation: "10.96.0.10,fd00:10:96::a", ClusterDomainAnnotation: "cluster.test"}},
		Spec:       corev1.NodeSpec{PodCIDR: "10.244.7.0/24", PodCIDRs: []string{"10.244.7.0/24", "fd00:10:244:7::/64"}},
	}
	if node, err = f.admin.Nodes().Create(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	status := `{"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.7"},{"type":"Hostname","address":"node-a"}]}}`
	if _, err = f.admin.Nodes().Patch(t.Context(), node.Name, types.MergePatchType, []byte(status), "status"); err != nil {
		t.Fatal(err)
	}
	if exit, err := Run(t.Context(), cfg, Spec{Command: []string{"true"}, Dir: "/", Remove: true}, stdio, nil); err != nil || exit.Code != 0 {
		t.Errorf("the node is there: %+v, %v", exit, err)
	}
}

func TestPodCIDRs(t *testing.T) {
	node := func(cidrs ...string) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: corev1.NodeSpec{PodCIDRs: cidrs}}
		if len(cidrs) > 0 {
			n.Spec.PodCIDR = cidrs[0]
		}
		return n
	}
	old := node()
	old.Spec.PodCIDR = "10.1.0.0/24"
	for _, c := range []struct {
		node *corev1.Node
		flag []netip.Prefix
		want string
	}{
		{node("10.1.0.0/24", "fd00::/64"), nil, "[10.1.0.0/24 fd00::/64] <nil>"},
		{old, nil, "[10.1.0.0/24] <nil>"},
		{node("10.1.0.0/24"), []netip.Prefix{netip.MustParsePrefix("10.2.0.0/24")}, "[10.2.0.0/24] <nil>"},
		{node(), nil, "[] node n has no pod CIDR: start its agent with --pod-cidr, or name one here with --pod-cidr"},
		{node("nonsense"), nil, `[] pod CIDR of node n: netip.ParsePrefix("nonsense"): no '/'`},
	} {
		got, err := (&Pod{cfg: Config{PodCIDRs: c.flag}}).podCIDRs(c.node)
		if s := fmt.Sprint(got, " ", err); s != c.want {
			t.Errorf("got  %s\nwant %s", s, c.want)
		}
	}
}

func testExitCodes(t *testing.T, f *fixture) {
	for _, c := range []struct {
		command []string
		want    Exit
		err     string
	}{
		{[]string{"true"}, Exit{}, ""},
		{shell("exit 7"), Exit{Code: 7}, ""},
		{shell("kill -9 $$"), Exit{Code: 137, Signal: 9}, ""},
		{shell("kill -TERM $$"), Exit{Code: 143, Signal: 15}, ""},
		{[]string{"no-such-command"}, Exit{Code: 127}, "no-such-command: no such command in PATH"},
		{[]string{"/etc/passwd"}, Exit{Code: 126}, "permission denied"},
	} {
		r := f.start(t, t.Context(), Spec{Command: c.command, Remove: true})
		<-r.done
		if r.exit != c.want {
			t.Errorf("%v: %+v, want %+v", c.command, r.exit, c.want)
		}
		if (r.err == nil) != (c.err == "") || r.err != nil && !strings.Contains(r.err.Error(), c.err) {
			t.Errorf("%v: error %v, want %q", c.command, r.err, c.err)
		}
	}
}

func testEndedPodStays(t *testing.T, f *fixture) {
	for code, phase := range map[int]corev1.PodPhase{0: corev1.PodSucceeded, 3: corev1.PodFailed} {
		r := f.start(t, t.Context(), Spec{Name: "ended", Command: shell(fmt.Sprint("exit ", code))})
		<-r.done
		pod, err := f.pods().Get(t.Context(), "ended")
		if err != nil {
			t.Fatal(err)
		}
		end := pod.Status.ContainerStatuses[0].State.Terminated
		if pod.Status.Phase != phase || end == nil || int(end.ExitCode) != code || ready(pod) != corev1.ConditionFalse {
			t.Errorf("exit %d: phase %s, %+v, ready %s", code, pod.Status.Phase, end, ready(pod))
		}
		e, err := Find(f.runDir, "default", "ended")
		if err != nil {
			t.Fatal(err)
		}
		if e.Live || !e.Ended() || e.ExitCode != code || Status(e) != string(phase) {
			t.Errorf("its record: %+v", e)
		}
		// An ordinary sweep leaves it to be looked at; a stop removes it.
		if n, err := f.sweep(t, false); n != 0 || err != nil {
			t.Errorf("swept %d, %v", n, err)
		}
		if err := f.stop(t, "ended", 0); err != nil {
			t.Fatal(err)
		}
		if _, err := f.pods().Get(t.Context(), "ended"); !apierrors.IsNotFound(err) {
			t.Errorf("still in the API: %v", err)
		}
	}
	// kubectl delete of an ended pod: the record goes with the next sweep.
	<-f.start(t, t.Context(), Spec{Name: "ended", Command: []string{"true"}}).done
	if err := f.pods().Delete(t.Context(), "ended", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.sweep(t, false); err != nil {
		t.Fatal(err)
	}
	if e, err := Find(f.runDir, "default", "ended"); err == nil {
		t.Errorf("its record is still there: %+v", e)
	}
}

func (f *fixture) sweep(t *testing.T, ended bool) (int, error) {
	t.Helper()
	return Sweep(t.Context(), SweepConfig{RunDir: f.runDir, NodeName: nodeName, Client: f.config(t, nil).Client, Ended: ended})
}

func (f *fixture) stop(t *testing.T, name string, grace time.Duration) error {
	t.Helper()
	e, err := Find(f.runDir, "default", name)
	if err != nil {
		t.Fatal(err)
	}
	return Stop(t.Context(), func() (*kubeapi.Client, error) { return f.config(t, nil).Client, nil }, f.runDir, e, grace)
}

func ready(pod *corev1.Pod) corev1.ConditionStatus {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status
		}
	}
	return ""
}

// What the API knows of a running pod, and what the pod knows of itself.
func testObject(t *testing.T, f *fixture) {
	value := "7"
	r := f.start(t, t.Context(), Spec{
		Name: "db-0", Hostname: "db-0", Subdomain: "db", Labels: map[string]string{"app": "db"},
		Ports:     []corev1.ContainerPort{{Name: "sql", ContainerPort: 5432, Protocol: corev1.ProtocolTCP}},
		Env:       []string{"LITERAL=$(HOME) $$(X)"},
		DNSConfig: &corev1.PodDNSConfig{Searches: []string{"example.test"}, Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: &value}}},
		Command:   shell(`hostname; cat /etc/hosts /etc/resolv.conf; echo "$LITERAL"; echo end; exec sleep 1000`), Grace: 5 * time.Second,
	})
	pod, err := f.pods().Get(t.Context(), "db-0")
	if err != nil {
		t.Fatal(err)
	}
	c := pod.Spec.Containers[0]
	if pod.Spec.NodeName != nodeName || pod.Spec.Hostname != "db-0" || pod.Spec.Subdomain != "db" || pod.Labels["app"] != "db" ||
		c.Image != "none" || c.Ports[0].Name != "sql" || *pod.Spec.TerminationGracePeriodSeconds != 5 {
		t.Errorf("spec: %+v", pod.Spec)
	}
	st := pod.Status
	if st.Phase != corev1.PodRunning || ready(pod) != corev1.ConditionTrue || st.HostIP != "192.0.2.7" || len(st.PodIPs) != 2 || st.PodIP != st.PodIPs[0].IP ||
		!st.ContainerStatuses[0].Ready || st.ContainerStatuses[0].State.Running == nil {
		t.Errorf("status: %+v", st)
	}
	var kinds []string
	for _, c := range st.Conditions {
		kinds = append(kinds, string(c.Type)+"="+string(c.Status))
	}
	slices.Sort(kinds)
	if got, want := strings.Join(kinds, " "), "ContainersReady=True Initialized=True PodReadyToStartContainers=True PodScheduled=True Ready=True"; got != want {
		t.Errorf("conditions %s", got)
	}
	want := fmt.Sprintf(`db-0
%[1]s	db-0.db.default.svc.cluster.test	db-0
%[2]s	db-0.db.default.svc.cluster.test	db-0
search default.svc.cluster.test svc.cluster.test cluster.test example.test
nameserver 10.96.0.10
nameserver fd00:10:96::a
options ndots:7
$(HOME) $$(X)
end
`, st.PodIPs[0].IP, st.PodIPs[1].IP)
	buf := make([]byte, 4096)
	got := ""
	for !strings.HasSuffix(got, "end\n") {
		n, err := r.out.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got += string(buf[:n])
	}
	var own []string // without what is the same in every hosts file, and the host's searches
	for line := range strings.Lines(got) {
		if strings.Contains(line, "localhost") || strings.HasPrefix(line, "fe00:") || strings.HasPrefix(line, "#") {
			continue
		}
		own = append(own, line)
	}
	if diff := cmp.Diff(want, strings.Join(own, "")); diff != "" {
		t.Errorf("inside (-want +got):\n%s", diff)
	}
	r.pod.Stop(5 * time.Second)
	<-r.done
	if r.err != nil || r.exit.Signal != int(unix.SIGTERM) {
		t.Errorf("stopped: %+v, %v", r.exit, r.err)
	}
}

func testEnvironment(t *testing.T, f *fixture) {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.ServiceSpec{
		Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Port: 80}},
	}}
	svc, err := f.admin.Services("default").Create(t.Context(), svc)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.admin.Services("default").Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	}()
	t.Setenv("KUBECONFIG", "/secret")
	print := shell(`echo "$WEB_SERVICE_HOST|$WEB_PORT|$KUBERNETES_SERVICE_PORT|$KUBECONFIG|$HOSTNAME|${PATH:+path}"`)
	for _, c := range []struct {
		name string
		spec Spec
		want string
	}{
		{"links", Spec{}, svc.Spec.ClusterIP + "|tcp://" + svc.Spec.ClusterIP + ":80|443||env|path"},
		{"no links", Spec{NoServiceLinks: true}, "||443||env|path"},
		{"own above the services'", Spec{Env: []string{"WEB_PORT=80", "HOSTNAME=me"}}, svc.Spec.ClusterIP + "|80|443||me|path"},
	} {
		c.spec.Name, c.spec.Command, c.spec.Remove = "env", print, true
		if got := f.start(t, t.Context(), c.spec).output(t); got != c.want+"\n" {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	// In another namespace only the API's own service is seen.
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}
	if _, err := f.admin.Namespaces().Create(t.Context(), ns); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	if got := f.start(t, t.Context(), Spec{Name: "env", Namespace: "shop", Command: print, Remove: true}).output(t); got != "||443||env|path\n" {
		t.Errorf("another namespace: %q", got)
	}
}

// The process, its probes and what is executed beside it are the pod's user.
func testUser(t *testing.T, f *fixture) {
	as := &sandbox.User{UID: 1234, GID: 2345}
	e := f.detach(t, Spec{Name: "u", User: as, Command: shell("id -u; exec sleep 1000"), Readiness: &corev1.Probe{
		ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: shell(`test "$(id -u)" = 1234`)}},
	}})
	eventually(t, "ready by a probe of its user", func() bool { e, _ = Find(f.runDir, "default", "u"); return e.Ready })
	var log strings.Builder
	if err := Logs(t.Context(), &log, e, false); err != nil || log.String() != "1234\n" {
		t.Errorf("log %q, %v", log.String(), err)
	}
	if code, err := Exec(t.Context(), e, Command{Argv: shell(`test "$(id -u):$(id -g)" = 1234:2345`), Files: [3]*os.File{os.Stdin, os.Stdout, os.Stderr}}, nil); code != 0 || err != nil {
		t.Errorf("exec: %d, %v", code, err)
	}
	pod, err := f.pods().Get(t.Context(), "u")
	if err != nil || *pod.Spec.SecurityContext.RunAsUser != 1234 || *pod.Spec.SecurityContext.RunAsGroup != 2345 {
		t.Errorf("%+v, %v", pod.Spec.SecurityContext, err)
	}
	if err := f.stop(t, "u", 0); err != nil {
		t.Fatal(err)
	}
}

func testReadiness(t *testing.T, f *fixture) {
	flag := filepath.Join(t.TempDir(), "ready")
	probes := map[string]corev1.ProbeHandler{
		"exec": {Exec: &corev1.ExecAction{Command: []string{"test", "-e", flag}}},
		"tcp":  {TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("sql")}},
	}
	// Listens while the flag is there.
	server := `import socket, os, time
while True:
  while not os.path.exists('` + flag + `'): time.sleep(.02)
  s = socket.create_server(('', 5432)); s.settimeout(.05)
  while os.path.exists('` + flag + `'):
    try: s.accept()[0].close()
    except TimeoutError: pass
  s.close()
`
	for name, handler := range probes {
		t.Run(name, func(t *testing.T) {
			r := f.start(t, t.Context(), Spec{
				Name: "probed", Command: []string{"python3", "-c", server}, Grace: time.Second, Remove: true,
				Ports:     []corev1.ContainerPort{{Name: "sql", ContainerPort: 5432, Protocol: corev1.ProtocolTCP}},
				Readiness: &corev1.Probe{ProbeHandler: handler, PeriodSeconds: 1, FailureThreshold: 1, TimeoutSeconds: 1},
			})
			is := func(want corev1.ConditionStatus) {
				t.Helper()
				eventually(t, "ready "+string(want), func() bool {
					pod, err := f.pods().Get(t.Context(), "probed")
					if err != nil {
						t.Fatal(err)
					}
					e, err := Find(f.runDir, "default", "probed")
					return err == nil && ready(pod) == want && e.Ready == (want == corev1.ConditionTrue) && pod.Status.ContainerStatuses[0].Ready == e.Ready
				})
			}
			is(corev1.ConditionFalse)
			if err := os.WriteFile(flag, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			is(corev1.ConditionTrue)
			if err := os.Remove(flag); err != nil {
				t.Fatal(err)
			}
			is(corev1.ConditionFalse)
			eventually(t, "events for kubectl describe", func() bool {
				list, err := f.admin.Events("default").List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.uid=" + string(r.pod.uid)})
				if err != nil {
					t.Fatal(err)
				}
				reasons := make(map[string]bool)
				for _, e := range list.Items {
					reasons[e.Reason] = true
				}
				return reasons[reasonStarted] && reasons[reasonUnhealthy]
			})
			r.pod.Stop(0)
			<-r.done
		})
	}
}

// What others write into the status stays, unless it is wrong.
func testConditions(t *testing.T, f *fixture) {
	r := f.start(t, t.Context(), Spec{Name: "c", Command: []string{"sleep", "1000"}, Grace: time.Second})
	patch := `{"status":{"conditions":[{"type":"example.com/gate","status":"True"},{"type":"Ready","status":"False"}]}}`
	if _, err := f.pods().Patch(t.Context(), "c", types.StrategicMergePatchType, []byte(patch), "status"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "ready again", func() bool {
		pod, err := f.pods().Get(t.Context(), "c")
		if err != nil {
			t.Fatal(err)
		}
		return ready(pod) == corev1.ConditionTrue && slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == "example.com/gate" })
	})
	r.pod.Stop(0)
	<-r.done
}

func testDeleted(t *testing.T, f *fixture) {
	stubborn := `trap 'echo term' TERM; echo armed; while :; do sleep 0.05; done`
	polite := `trap 'echo term; exit 5' TERM; echo armed; while :; do sleep 0.05; done`
	for _, c := range []struct {
		name   string
		script string
		grace  int64
		want   Exit
		term   bool
	}{
		{"it obeys", polite, 30, Exit{Code: 5}, true},
		{"it does not", stubborn, 1, Exit{Code: 137, Signal: 9}, true},
		{"no grace", polite, 0, Exit{Code: 137, Signal: 9}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := f.start(t, t.Context(), Spec{Name: "victim", Command: shell(c.script), Grace: 100 * time.Second})
			r.says(t, "armed")
			if err := f.pods().Delete(t.Context(), "victim", metav1.DeleteOptions{GracePeriodSeconds: &c.grace}); err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(r.out)
			if err != nil {
				t.Fatal(err)
			}
			<-r.done
			if r.err != nil || r.exit != c.want || strings.Contains(string(text), "term") != c.term {
				t.Errorf("%+v, %v, %q", r.exit, r.err, text)
			}
			if _, err := f.pods().Get(t.Context(), "victim"); !apierrors.IsNotFound(err) {
				t.Errorf("still in the API: %v", err)
			}
		})
	}
}

// A pod deleted by force makes room for one of the same name at once, which
// must not be taken for it.
func testSuccessor(t *testing.T, f *fixture) {
	first := f.start(t, t.Context(), Spec{Name: "twin", Command: []string{"sleep", "1000"}})
	now := int64(0)
	if err := f.pods().Delete(t.Context(), "twin", metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		t.Fatal(err)
	}
	stand := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "twin"}, Spec: corev1.PodSpec{
		NodeName: "elsewhere", Containers: []corev1.Container{{Name: "c", Image: "i"}},
	}}
	stand, err := f.pods().Create(t.Context(), stand)
	if err != nil {
		t.Fatal(err)
	}
	<-first.done
	if first.exit.Signal != int(unix.SIGKILL) {
		t.Errorf("the first: %+v, %v", first.exit, first.err)
	}
	got, err := f.pods().Get(t.Context(), "twin")
	if err != nil || got.UID != stand.UID || got.Status.Phase == corev1.PodFailed {
		t.Errorf("the second was touched: %+v, %v", got, err)
	}
	if err := f.pods().Delete(t.Context(), "twin", metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		t.Fatal(err)
	}
}

// The end of the caller's context is TERM, grace, KILL; signals pass through.
func testContext(t *testing.T, f *fixture) {
	ctx, cancel := context.WithCancel(t.Context())
	r := f.start(t, ctx, Spec{Name: "ctx", Command: shell(`trap 'echo usr1' USR1; trap 'exit 6' TERM; echo armed; while :; do sleep 0.05; done`), Grace: 30 * time.Second})
	r.says(t, "armed")
	r.pod.Signal(unix.SIGUSR1)
	r.says(t, "usr1")
	cancel()
	<-r.done
	if r.exit.Code != 6 || r.err != nil {
		t.Errorf("%+v, %v", r.exit, r.err)
	}
}

// Nothing half-created stays behind; TestPods compares.
func testFailures(t *testing.T, f *fixture) {
	taken := f.start(t, t.Context(), Spec{Name: "taken", Command: []string{"sleep", "1000"}})
	for _, c := range []struct {
		name string
		spec Spec
		want string
	}{
		{"name taken", Spec{Name: "taken", Command: []string{"true"}}, "pod default/taken exists already: choose another --name"},
		{"no namespace", Spec{Namespace: "absent", Command: []string{"true"}}, "namespace absent does not exist: `kubectl create namespace absent` makes it"},
		{"no command", Spec{}, "no command given"},
		{"bad name", Spec{Name: "Not_Good", Command: []string{"true"}}, `--name "Not_Good": `},
		{"refused by the API", Spec{Name: "bad", Command: []string{"true"}, Labels: map[string]string{"a b": "c"}}, "metadata.labels"},
		{"port of no name", Spec{Command: []string{"true"}, Readiness: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("x")}}}}, `no port named "x"`},
		{"too large an environment", Spec{Command: []string{"true"}, Env: []string{"A=" + strings.Repeat("x", 128<<10)}}, "the kernel takes at most"},
		{"no such directory", Spec{Command: []string{"true"}, Dir: "/no/such/dir"}, "no such file or directory"},
	} {
		before := f.state(t)
		r := f.start(t, t.Context(), c.spec)
		<-r.done
		if r.err == nil || !strings.Contains(r.err.Error(), c.want) || strings.Contains(r.err.Error(), "\n") {
			t.Errorf("%s: %v, want %q in one line", c.name, r.err, c.want)
		}
		if diff := cmp.Diff(before, f.state(t)); diff != "" {
			t.Errorf("%s left behind (-before +after):\n%s", c.name, diff)
		}
	}
	taken.pod.Stop(0)
	<-taken.done
}

func (f *fixture) detach(t *testing.T, spec Spec) sandbox.Entry {
	t.Helper()
	spec.Dir = "/"
	name, _, err := Detach(t.Context(), f.job(spec), func(line string) { t.Log(line) })
	if err != nil {
		t.Fatal(err)
	}
	e, err := Find(f.runDir, "default", name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if sandbox.Alive(e) {
			_ = Stop(context.Background(), nil, f.runDir, e, 0)
		}
	})
	return e
}

func testDetached(t *testing.T, f *fixture) {
	e := f.detach(t, Spec{Name: "bg", Command: shell(`echo out; echo err >&2; trap 'echo bye; exit 0' TERM; echo armed; while :; do sleep 0.05; done`)})
	if !e.Live || Status(e) != "Running" || !e.Ready {
		t.Errorf("%+v", e)
	}
	eventually(t, "its log", func() bool {
		var log strings.Builder
		return Logs(t.Context(), &log, e, false) == nil && log.String() == "out\nerr\narmed\n"
	})
	followed := make(chan string, 1)
	go func() {
		var log strings.Builder
		if err := Logs(context.Background(), &log, e, true); err != nil {
			log.WriteString(err.Error())
		}
		followed <- log.String()
	}()
	if err := StopAll(t.Context(), f.runDir, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	// The follower may find the log gone before the last line; what it has is
	// the beginning.
	if got := <-followed; !strings.HasPrefix("out\nerr\narmed\nbye\n", got) || len(got) < len("out\nerr\narmed\n") {
		t.Errorf("followed %q", got)
	}
	if _, err := Find(f.runDir, "default", "bg"); err == nil {
		t.Error("still there")
	}

	// A failed start is the caller's to report, with its exit code.
	_, code, err := Detach(t.Context(), f.job(Spec{Command: []string{"no-such-command"}, Dir: "/"}), func(string) {})
	if code != 127 || err == nil || !strings.Contains(err.Error(), "no such command") {
		t.Errorf("code %d, %v", code, err)
	}
	// One that ends by itself keeps its log until it is stopped.
	e = f.detach(t, Spec{Name: "bg", Command: shell("echo done; exit 4")})
	eventually(t, "its end", func() bool { e, err = Find(f.runDir, "default", "bg"); return err == nil && e.Ended() && !e.Live })
	var log strings.Builder
	if err := Logs(t.Context(), &log, e, true); err != nil || log.String() != "done\n" || e.ExitCode != 4 {
		t.Errorf("log %q, %v, exit code %d", log.String(), err, e.ExitCode)
	}
	if err := f.stop(t, "bg", 0); err != nil {
		t.Fatal(err)
	}
}

func testExec(t *testing.T, f *fixture) {
	e := f.detach(t, Spec{Name: "x", Command: []string{"sleep", "1000"}, Env: []string{"A=pod"}})
	do := func(signals <-chan os.Signal, input string, c Command) (int, string, error) {
		inR, inW, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		outR, outW, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(inW, input)
		_ = inW.Close()
		c.Files = [3]*os.File{inR, outW, outW}
		code, err := Exec(t.Context(), e, c, signals)
		_ = inR.Close()
		_ = outW.Close()
		text, _ := io.ReadAll(outR)
		_ = outR.Close()
		return code, string(text), err
	}
	for _, c := range []struct {
		input string
		c     Command
		code  int
		out   string
		err   string
	}{
		{"hello", Command{Argv: shell("hostname; cat; exit 9")}, 9, "x\nhello", ""},
		{"", Command{Argv: shell(`echo $A $B; pwd`), Env: []string{"B=exec"}, Dir: "/tmp"}, 0, "pod exec\n/tmp\n", ""},
		{"", Command{Argv: shell(`echo $A; pwd`), Env: []string{"A=exec"}}, 0, "exec\n/\n", ""},
		{"", Command{Argv: shell("kill -9 $$")}, 137, "", ""},
		{"", Command{Argv: []string{"no-such-command"}}, 127, "", "no such command"},
		{"", Command{Argv: []string{"echo", strings.Repeat("x", 200<<10)}}, 1, "", "the command line has more than"},
	} {
		code, out, err := do(nil, c.input, c.c)
		if code != c.code || out != c.out || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%.80v: code %d, %.80q, %v; want %d, %q, %q", c.c.Argv, code, out, err, c.code, c.out, c.err)
		}
	}

	// Several at once, each with its own.
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			if code, out, err := do(nil, "", Command{Argv: shell(fmt.Sprintf("echo %d; exit %d", i, i))}); code != i || out != fmt.Sprintln(i) || err != nil {
				t.Errorf("%d: %d, %q, %v", i, code, out, err)
			}
		})
	}
	wg.Wait()

	// Signals pass; a client that goes away takes its command along.
	signals := make(chan os.Signal, 1)
	marker := filepath.Join(t.TempDir(), "armed")
	go func() {
		for {
			if _, err := os.Stat(marker); err == nil {
				signals <- unix.SIGINT
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	if code, _, err := do(signals, "", Command{Argv: shell(`trap 'exit 3' INT; touch ` + marker + `; while :; do sleep 0.05; done`)}); code != 3 || err != nil {
		t.Errorf("interrupted: %d, %v", code, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan int, 1)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	go func() {
		code, _ := Exec(ctx, e, Command{Argv: []string{"sleep", "777"}, Files: [3]*os.File{null, null, null}}, nil)
		gone <- code
	}()
	running := func() bool {
		_, out, err := do(nil, "", Command{Argv: []string{"ps", "ax", "-o", "args="}})
		return err == nil && strings.Contains(out, "sleep 777")
	}
	eventually(t, "the command runs", running)
	cancel()
	if code := <-gone; code != 137 {
		t.Errorf("killed with its client: %d", code)
	}
	eventually(t, "the command is gone", func() bool { return !running() })

	if err := f.stop(t, "x", 0); err != nil {
		t.Fatal(err)
	}
	if _, err := Exec(t.Context(), sandbox.Entry{}, Command{}, nil); err == nil {
		t.Error("ran a command in a pod that does not run")
	}
}

func testSupervisorKilled(t *testing.T, f *fixture) {
	kill := func(name string) sandbox.Entry {
		e := f.detach(t, Spec{Name: name, Command: []string{"sleep", "1000"}})
		found := nodetest.Processes(t, "rutter "+SuperviseCommand+" default/"+name)
		if len(found) != 1 {
			t.Fatalf("its supervisor: %v", found)
		}
		for pid := range found {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "the supervisor is dead", func() bool { return !sandbox.Alive(e) })
		return e
	}
	kill("dead-1")
	if e, err := Find(f.runDir, "default", "dead-1"); err != nil || Status(e) != "Dead" {
		t.Errorf("%+v, %v", e, err)
	}
	if n, err := f.sweep(t, false); n != 1 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	if _, err := f.pods().Get(t.Context(), "dead-1"); !apierrors.IsNotFound(err) {
		t.Errorf("still in the API: %v", err)
	}
	// Without a sweep between, a pod of the same name takes its place; on the
	// host the dead one's namespace is in the way until it is swept.
	kill("dead-2")
	if _, err := sandbox.Sweep(t.Context(), f.runDir, false); err != nil {
		t.Fatal(err)
	}
	r := f.start(t, t.Context(), Spec{Name: "dead-2", Command: []string{"true"}, Remove: true})
	<-r.done
	if r.err != nil {
		t.Errorf("the same name again: %v", r.err)
	}
	// Stop on a dead one cleans up too.
	kill("dead-3")
	if err := f.stop(t, "dead-3", 0); err != nil {
		t.Error(err)
	}
}

// While the API is away, pods run on; what happened meanwhile is told after.
func testOutage(t *testing.T, f *fixture) {
	flag := filepath.Join(t.TempDir(), "ready")
	if err := os.WriteFile(flag, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	probe := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"test", "-e", flag}}}, PeriodSeconds: 1, FailureThreshold: 1}
	a := f.start(t, t.Context(), Spec{Name: "a", Command: []string{"sleep", "1000"}, Readiness: probe})
	f.start(t, t.Context(), Spec{Name: "b", Command: []string{"sleep", "1000"}})
	c := f.detach(t, Spec{Name: "c", Command: []string{"sleep", "1000"}})
	eventually(t, "a is ready", func() bool { return a.pod.status.isReady() })

	f.reg.Kill()
	if err := os.Remove(flag); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a is not", func() bool { return !a.pod.status.isReady() })
	// c ends meanwhile; the API cannot be told.
	if err := Stop(t.Context(), nil, f.runDir, c, 0); err != nil {
		t.Fatal(err)
	}
	f.reg.Restart(t)

	eventually(t, "the API knows that a is not ready", func() bool {
		pod, err := f.pods().Get(t.Context(), "a")
		return err == nil && ready(pod) == corev1.ConditionFalse
	})
	pod, err := f.pods().Get(t.Context(), "b")
	if err != nil || ready(pod) != corev1.ConditionTrue {
		t.Errorf("b: %v, %v", pod, err)
	}
	if _, err := f.pods().Get(t.Context(), "c"); err != nil {
		t.Fatalf("c was told to the API after all? %v", err)
	}
	if _, err := f.sweep(t, false); err != nil {
		t.Fatal(err)
	}
	if _, err := f.pods().Get(t.Context(), "c"); !apierrors.IsNotFound(err) {
		t.Errorf("c is still in the API: %v", err)
	}
	for _, name := range []string{"a", "b"} {
		if err := f.stop(t, name, 0); err != nil {
			t.Error(err)
		}
	}
	<-a.done
	if !errors.Is(a.err, nil) {
		t.Error(a.err)
	}
}
