package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestSystem does what the README says, in its order, on one system.
func TestSystem(t *testing.T) {
	before := hostState(t)
	data := t.TempDir()
	s := start(t, data, "--demo")

	t.Run("up prints the services and how to use them", func(t *testing.T) {
		for _, want := range []string{"web.default", "db.default", "headless", "kubernetes.default", "(web-1)", "(web-2)", "(web-3)", "(db-0)", "KUBECONFIG=" + s.kubeconfig()} {
			if !strings.Contains(s.out.String(), want) {
				t.Errorf("%q is missing in:\n%s", want, s.out)
			}
		}
	})

	s.rutter("run", "-d", "--name", "curl", "--", "sleep", "1000000")

	t.Run("status", func(t *testing.T) {
		status, err := s.in(t).status()
		if err != nil || status["Ready"] != true || status["Node"] != "host" || status["Degraded"] != nil {
			t.Errorf("rutter status -o json: %v %v, want a node named host, ready and not degraded", err, status)
		}
	})

	t.Run("names", func(t *testing.T) {
		s := s.in(t)
		web, db0 := s.clusterIP("web"), s.podIP("db-0")
		for _, tc := range []struct{ name, want string }{
			{"web", web},
			{"web.default", web},
			{"web.default.svc", web},
			{"web.default.svc.cluster.local", web},
			{"web.default.svc.cluster.local.", web},
			{"db-0.db", db0},
			{"db-0.db.default.svc.cluster.local", db0},
			{"db", db0},
		} {
			out, err := s.inPod("curl", "nslookup", tc.name)
			if err != nil || !strings.Contains(out, "Address: "+tc.want+"\n") {
				t.Errorf("nslookup %s: %v, want %s in\n%s", tc.name, err, tc.want, out)
			}
		}
		for _, name := range []string{"nosuch.default", "web.nosuch", "db-7.db.default"} {
			// In full, as the last search step would go to an upstream.
			if out, err := s.inPod("curl", "nslookup", name+".svc.cluster.local."); err == nil || !strings.Contains(out, "NXDOMAIN") {
				t.Errorf("nslookup %s: %v, want NXDOMAIN in\n%s", name, err, out)
			}
		}
		// dig shows what a resolver library does not: status and section counts.
		for _, tc := range []struct{ query, want string }{
			{"web.default.svc.cluster.local AAAA", "status: NOERROR"}, // NODATA
			{"web.default.svc.cluster.local AAAA", "ANSWER: 0, AUTHORITY: 1"},
			{"_http._tcp.web.default.svc.cluster.local SRV", "80 web.default.svc.cluster.local."},
			{"-x " + web, "web.default.svc.cluster.local."},
			{"-x " + db0, "db-0.db.default.svc.cluster.local."},
			{"+tcp web.default.svc.cluster.local A", web},
		} {
			out, err := s.inPod("curl", append([]string{"dig"}, strings.Fields(tc.query)...)...)
			if err != nil || !strings.Contains(out, tc.want) {
				t.Errorf("dig %s: %v, want %q in\n%s", tc.query, err, tc.want, out)
			}
		}
		// The host asks the agent by its addresses.
		for _, server := range []string{"10.96.0.10", "169.254.20.10"} {
			if out, err := s.run("dig", "+short", "@"+server, "web.default.svc.cluster.local"); err != nil || strings.TrimSpace(out) != web {
				t.Errorf("dig @%s on the host: %v %q, want %s", server, err, out, web)
			}
		}
	})

	t.Run("balancing", func(t *testing.T) {
		s := s.in(t)
		got, err := s.backends("curl", "http://web/", 60)
		if err != nil {
			t.Fatal(err)
		}
		// Each of three is missed by 60 draws with probability 3·(2/3)^60 < 1e-10.
		if len(got) != 3 || got["web-1"] == 0 || got["web-2"] == 0 || got["web-3"] == 0 {
			t.Errorf("answers from %v, want all three web pods and nobody else", got)
		}
		if out, err := s.run("curl", "-sS", "--max-time", "5", "http://"+s.clusterIP("web")+"/"); err != nil || !strings.Contains(out, "web-") {
			t.Errorf("from the host: %v\n%s", err, out)
		}
		// Hairpin: a pod reaches itself through its own service.
		if got, err := s.backends("web-1", "http://web/", 60); err != nil || got["web-1"] == 0 || len(got) != 3 {
			t.Errorf("from web-1 itself: %v %v, want itself among three", got, err)
		}
		if out, err := s.inPod("curl", "curl", "-sS", "--max-time", "10", "http://web:81/"); exitCode(err) != curlRefused {
			t.Errorf("a port that the service lacks: %v, want refused at once\n%s", err, out)
		}
	})

	t.Run("connections are counted", func(t *testing.T) {
		s := s.in(t)
		if out, err := s.inPod("curl", "curl", "-sS", "--max-time", "60", "http://web/"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		// The counters are read every few seconds.
		s.await("default/web in rutter status --services", func() error {
			if out, err := s.run(s.bin, "status", "--services"); err != nil || !strings.Contains(out, "default/web ") {
				return fmt.Errorf("%v\n%s", err, out)
			}
			return nil
		})
		var list []struct {
			Service     struct{ Name string }
			Connections int
			Endpoints   []struct {
				Endpoint, Protocol string
				Connections        int
			}
		}
		out, err := s.run(s.bin, "status", "--services", "-o", "json")
		if err != nil || json.Unmarshal([]byte(out), &list) != nil || len(list) == 0 || list[0].Connections < 1 ||
			len(list[0].Endpoints) == 0 || list[0].Endpoints[0].Endpoint == "" {
			t.Errorf("rutter status --services -o json: %v\n%s", err, out)
		}
	})

	t.Run("environment", func(t *testing.T) {
		s := s.in(t)
		out, err := s.inPod("curl", "env")
		if want := "WEB_SERVICE_HOST=" + s.clusterIP("web"); err != nil || !strings.Contains(out, want) || !strings.Contains(out, "WEB_SERVICE_PORT=80") {
			t.Errorf("%v, want %s and WEB_SERVICE_PORT=80 in\n%s", err, want, out)
		}
	})

	t.Run("kubectl", func(t *testing.T) {
		s := s.in(t)
		if _, err := exec.LookPath("kubectl"); err != nil {
			t.Skip("no kubectl on this machine")
		}
		out := s.must("kubectl", "get", "services,endpointslices,pods")
		for _, want := range []string{"service/web", "service/db", "endpointslice", "pod/web-1", "pod/db-0", "Running", "1/1"} {
			if !strings.Contains(out, want) {
				t.Errorf("kubectl get lacks %q:\n%s", want, out)
			}
		}
		file := filepath.Join(t.TempDir(), "my-service.yaml")
		if err := os.WriteFile(file, []byte("apiVersion: v1\nkind: Service\nmetadata: {name: my-service}\nspec:\n  selector: {app: web}\n  ports: [{port: 80}]\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		s.must("kubectl", "apply", "-f", file)
		s.await("my-service to answer", func() error {
			out, err := s.inPod("curl", "curl", "-sS", "--max-time", "5", "http://my-service/")
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
		s.must("kubectl", "delete", "-f", file)
	})

	t.Run("exit code and cleaning of a pod", func(t *testing.T) {
		s := s.in(t)
		out, err := s.run(s.bin, "run", "--rm", "--name", "seven", "--", "sh", "-c", "hostname; exit 7")
		if exitCode(err) != 7 || !strings.Contains(out, "seven") {
			t.Errorf("rutter run: %v, want exit status 7 and the pod's host name\n%s", err, out)
		}
		if _, err := s.api.Pods("default").Get(t.Context(), "seven"); !apierrors.IsNotFound(err) {
			t.Errorf("the pod is still registered after --rm: %v", err)
		}
		if out := s.rutter("ps"); strings.Contains(out, "seven") || !strings.Contains(out, "web-1") {
			t.Errorf("rutter ps:\n%s", out)
		}
	})

	t.Run("readiness", func(t *testing.T) {
		s := s.in(t)
		set := func(v string) {
			t.Helper()
			s.must("curl", "-sS", "-X", "POST", "-d", "readyz="+v, "http://"+s.podIP("web-1")+"/readyz")
		}
		set("err")
		s.await("web-1 to leave the service", func() error { return s.answers(map[string]bool{"web-1": false, "web-2": true, "web-3": true}) })
		set("ok")
		s.await("web-1 to come back", func() error { return s.answers(map[string]bool{"web-1": true, "web-2": true, "web-3": true}) })
	})

	t.Run("no endpoints, then deleted", func(t *testing.T) {
		s := s.in(t)
		ctx := t.Context()
		svc, err := s.api.Services("default").Create(ctx, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: "empty"},
			Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "nobody"}, Ports: []corev1.ServicePort{{Port: 80}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		s.await("the service without endpoints to refuse", func() error {
			out, err := s.inPod("curl", "curl", "-sS", "--max-time", "10", "http://empty/")
			if exitCode(err) != curlRefused {
				return fmt.Errorf("%v: %s", err, out)
			}
			return nil
		})
		if err := s.api.Services("default").Delete(ctx, "empty", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		s.await("the deleted service to leave DNS", func() error {
			out, err := s.inPod("curl", "dig", "empty.default.svc.cluster.local")
			if err != nil || !strings.Contains(out, "NXDOMAIN") {
				return fmt.Errorf("%v: %s", err, out)
			}
			return nil
		})
		s.await("the deleted service to leave the kernel", func() error {
			if out := s.must("nft", "list", "ruleset"); strings.Contains(out, svc.Spec.ClusterIP+" ") {
				return fmt.Errorf("%s is still in the ruleset", svc.Spec.ClusterIP)
			}
			return nil
		})
	})

	t.Run("a name is never answered before its address works", func(t *testing.T) {
		s.in(t).createResolveConnect(t, 200)
	})

	t.Run("kill -9 of a pod's supervisor", func(t *testing.T) {
		s := s.in(t)
		s.rutter("run", "-d", "--name", "victim", "-l", "app=victim", "--", s.bin, "demo-server", "--listen", ":8099")
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pidOf(`demo-server --listen :8099`)))
		if err != nil {
			t.Fatal(err)
		}
		var supervisor int
		if _, err := fmt.Sscanf(regexp.MustCompile(`PPid:\s*\d+`).FindString(string(status)), "PPid: %d", &supervisor); err != nil {
			t.Fatalf("no parent in\n%s", status)
		}
		if err := syscall.Kill(supervisor, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		s.await("the pod's object to go", func() error {
			_, err := s.api.Pods("default").Get(t.Context(), "victim")
			if apierrors.IsNotFound(err) {
				return nil
			}
			return fmt.Errorf("it is there still (%v)", err)
		})
		s.await("the pod's process and network to go", func() error {
			state := strings.Join(hostState(t), "\n")
			if strings.Contains(state, "netns rutter-default-victim") || strings.Contains(s.rutter("ps"), "victim") {
				return fmt.Errorf("left:\n%s", state)
			}
			return nil
		})
	})

	t.Run("no connection fails while the agent is restarted", func(t *testing.T) {
		s := s.in(t)
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(s.bin, "run", "-i", "--rm", "--name", "load", "--env", load+"="+s.clusterIP("web")+":80", "--", self)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		var out lockedBuffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		s.await("the load to run", func() error {
			if p, err := s.api.Pods("default").Get(t.Context(), "load"); err != nil || p.Status.Phase != corev1.PodRunning {
				return fmt.Errorf("the pod does not run yet (%v)", err)
			}
			return nil
		})
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL, syscall.SIGTERM} {
			old := s.pidOf(`rutter agent `)
			if err := syscall.Kill(old, sig); err != nil {
				t.Fatal(err)
			}
			s.await("the next agent to be ready", func() error {
				status, err := s.status()
				if err == nil && status["Ready"] == true && findProcess(`rutter agent `) != old {
					return nil
				}
				return fmt.Errorf("%v %v", status, err)
			})
		}
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Fatalf("the load: %v\n%s", err, out.String())
		}
		var fresh, kept, failed int
		if _, err := fmt.Sscanf(out.String(), "fresh=%d kept=%d failed=%d", &fresh, &kept, &failed); err != nil || fresh == 0 || kept == 0 || failed != 0 {
			t.Errorf("the load says %s; want requests of both kinds and no failure", out.String())
		}
	})

	t.Run("kill -9 of the agent", func(t *testing.T) {
		s := s.in(t)
		s.killed(`rutter agent `)
		// The dataplane works on without it.
		if out, err := s.run("curl", "-sS", "--max-time", "5", "http://"+s.clusterIP("web")+"/"); err != nil {
			t.Errorf("a service address without the agent: %v\n%s", err, out)
		}
		s.works()
	})

	t.Run("kill -9 of the registry", func(t *testing.T) {
		s := s.in(t)
		s.killed(`rutter-registry --data-dir`)
		if got, err := s.backends("curl", "http://web/", 10); err != nil || len(got) == 0 || got["?"] > 0 {
			t.Errorf("names and addresses without the registry: %v %v", got, err)
		}
		s.works()
	})

	t.Run("Ctrl-C leaves nothing behind", func(t *testing.T) {
		s := s.in(t)
		s.stop()
		if after := hostState(t); !slices.Equal(before, after) {
			t.Errorf("before:\n%s\nafter:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
		}
	})

	t.Run("up again after kill -9 of up", func(t *testing.T) {
		s := start(t, data, "--demo")
		s.cmd.Process.Signal(syscall.SIGKILL)
		<-s.exited
		s = start(t, data, "--demo")
		s.rutter("run", "-d", "--name", "curl", "--", "sleep", "1000000")
		s.works()
		s.stop()
		if after := hostState(t); !slices.Equal(before, after) {
			t.Errorf("before:\n%s\nafter:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
		}
	})
}

// curlRefused is curl's exit code for a connection that was refused; a timeout
// is 28.
const curlRefused = 7

func exitCode(err error) int {
	if exit, ok := err.(*exec.ExitError); ok {
		return exit.ExitCode()
	}
	return -1
}

// answers tells whether, of 30 requests, the web pods answer that should and
// those do not that should not.
func (s *system) answers(want map[string]bool) error {
	got, err := s.backends("curl", "http://web/", 30)
	if err != nil {
		return err
	}
	for pod, should := range want {
		if (got[pod] > 0) != should {
			return fmt.Errorf("answers from %v", got)
		}
	}
	return nil
}

// works shows that everything works: old names, balancing, and a change.
func (s *system) works() {
	s.t.Helper()
	s.await("old services to answer", func() error {
		return s.answers(map[string]bool{"web-1": true, "web-2": true, "web-3": true})
	})
	name := fmt.Sprintf("again-%d", os.Getpid())
	ctx := s.t.Context()
	s.await("a new service to be accepted", func() error {
		_, err := s.api.Services("default").Create(ctx, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Port: 80}}},
		})
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	})
	s.await("a new service to answer", func() error {
		out, err := s.inPod("curl", "curl", "-sS", "--max-time", "5", "http://"+name+"/")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	s.await("the new service to be deleted", func() error {
		return s.api.Services("default").Delete(ctx, name, metav1.DeleteOptions{})
	})
}

// createResolveConnect creates services one after the other; from a pod, each
// name is asked for until it is answered, and then must connect at once.
func (s *system) createResolveConnect(t *testing.T, n int) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(s.bin, "run", "-i", "--rm", "--name", "loop", "--env", client+"=1", "--", self)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); cmd.Wait() }()
	answers := bufio.NewScanner(out)
	ask := func(name string) string {
		fmt.Fprintln(in, name)
		if !answers.Scan() {
			t.Fatalf("the client pod ended: %v", answers.Err())
		}
		return answers.Text()
	}
	for i := range n {
		name := fmt.Sprintf("fresh-%d", i)
		_, err := s.api.Services("default").Create(t.Context(), &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Port: 80}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		// The name may take its moment; but once it is there, it works.
		answer := ""
		s.await(name+" to be answered", func() error {
			answer = ask(name)
			if strings.HasPrefix(answer, "resolve:") {
				return fmt.Errorf("%s", answer)
			}
			return nil
		})
		if !strings.HasPrefix(answer, "ok web-") {
			t.Errorf("%s resolved, but: %s", name, answer)
		}
		if err := s.api.Services("default").Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// hostState lists what rutter could leave behind: links, addresses, routes,
// tables, network namespaces, processes.
func hostState(t *testing.T) []string {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("needs root, RUTTER_BIN and RUTTER_REGISTRY_BIN (`make test` sets them)")
	}
	var state []string
	ifs, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range ifs {
		addrs, _ := i.Addrs()
		addrs = slices.DeleteFunc(addrs, func(a net.Addr) bool { return strings.HasPrefix(a.String(), "fe80:") })
		state = append(state, fmt.Sprint("link ", i.Name, addrs))
	}
	for _, args := range [][]string{{"-4", "route", "show", "table", "all"}, {"-6", "route", "show", "table", "all"}, {"rule"}} {
		out, err := exec.Command("ip", args...).Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
			if strings.Contains(line, "fe80:") {
				continue // the kernel adds them when it likes
			}
			state = append(state, "route "+strings.Join(strings.Fields(line), " "))
		}
	}
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := c.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		state = append(state, "table "+table.Name)
	}
	names, _ := os.ReadDir("/run/netns")
	for _, n := range names {
		state = append(state, "netns "+n.Name())
	}
	forward, _ := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	state = append(state, "ip_forward "+strings.TrimSpace(string(forward)))
	procs, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, p := range procs {
		if exe, err := os.Readlink(p); err == nil && strings.Contains(filepath.Base(exe), "rutter") {
			state = append(state, "process "+exe)
		}
	}
	slices.Sort(state)
	return state
}
