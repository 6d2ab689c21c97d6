package integration

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestKill: what was acknowledged survives kill -9, many times over.
func TestKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	var want []string
	for round := range 3 {
		r := start(t, dir)
		c := r.admin()
		for _, name := range want {
			if _, err := c.CoreV1().Services("default").Get(t.Context(), name, get); err != nil {
				t.Errorf("after kill %d: %v", round, err)
			}
		}
		for i := range 20 {
			name := fmt.Sprintf("s-%d-%d", round, i)
			service(t, c, "default", name, corev1.ServiceSpec{})
			want = append(want, name)
		}
		r.signal(syscall.SIGKILL)
	}
	r := start(t, dir)
	l, err := r.admin().CoreV1().Services("default").List(t.Context(), list)
	if err != nil || len(l.Items) < len(want) {
		t.Fatalf("%d services of %d, %v", len(l.Items), len(want), err)
	}
	seen := map[string]string{}
	for _, s := range l.Items {
		if other := seen[s.Spec.ClusterIP]; other != "" {
			t.Errorf("%s and %s have one address", s.Name, other)
		}
		seen[s.Spec.ClusterIP] = s.Name
	}
}

// TestKillWhileStarting: a start that is killed at any point can be repeated.
func TestKillWhileStarting(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	for _, after := range []time.Duration{5, 20, 60, 120, 250, 500, 900} {
		r := launch(t, dir)
		time.Sleep(after * time.Millisecond) // where in the start this falls does not matter; any point must do
		r.signal(syscall.SIGKILL)
	}
	start(t, dir)
}

// TestStop: SIGTERM ends it cleanly, with watches open, and the data is there
// again.
func TestStop(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		r := start(t, dir)
		c := r.admin()
		service(t, c, "default", fmt.Sprintf("s-%d", s), corev1.ServiceSpec{})
		w, err := c.CoreV1().Services("").Watch(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		state := r.signal(s)
		if !state.Success() {
			t.Errorf("%v: %v", s, state)
		}
		log := r.output()
		if strings.Contains(log, "level=ERROR") || !strings.Contains(log, "msg=stopped") {
			t.Errorf("%v: log\n%s", s, log)
		}
		for range w.ResultChan() { // it ends
		}
	}
	l, err := start(t, dir).admin().CoreV1().Services("default").List(t.Context(), list)
	if err != nil || len(l.Items) != 3 { // and kubernetes
		t.Errorf("%d services, %v", len(l.Items), err)
	}
}

// TestSecondSignal: signals that keep coming end it at once, or find it
// stopped already; never a crash. Which of the two is a matter of timing.
func TestSecondSignal(t *testing.T) {
	r := start(t, filepath.Join(t.TempDir(), "data"))
	for r.cmd.Process.Signal(syscall.SIGTERM) == nil {
		time.Sleep(time.Millisecond)
	}
	<-r.done
	if code := r.cmd.ProcessState.ExitCode(); code != 128+int(syscall.SIGTERM) && code != 0 {
		t.Errorf("%v\n%s", r.cmd.ProcessState, r.output())
	}
}

// TestSameDirectoryOtherFlags: a restart with another port or address gives
// the clients' files and the certificate what they need.
func TestSameDirectoryOtherFlags(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	start(t, dir).signal(syscall.SIGTERM)
	r := start(t, dir, "--bind-address", "127.0.0.2")
	if !strings.HasPrefix(r.url, "https://127.0.0.2:") {
		t.Errorf("URL %s", r.url)
	}
	if _, err := r.agent().CoreV1().Services("").List(t.Context(), list); err != nil {
		t.Error(err)
	}
	for _, f := range []string{"admin.kubeconfig", "agent.kubeconfig"} {
		if st, err := os.Stat(filepath.Join(dir, f)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, st.Mode(), err)
		}
	}
}

// TestAddFamily: a second service range may be added later; nothing else may
// be changed.
func TestAddFamily(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	start(t, dir).signal(syscall.SIGTERM)
	r := start(t, dir, "--service-cidr", "10.96.0.0/16,fd00:96::/108")
	policy := corev1.IPFamilyPolicyRequireDualStack
	if s := service(t, r.admin(), "default", "both", corev1.ServiceSpec{IPFamilyPolicy: &policy}); len(s.Spec.ClusterIPs) != 2 {
		t.Errorf("cluster IPs %v", s.Spec.ClusterIPs)
	}
	r.signal(syscall.SIGTERM)
	for _, cidr := range []string{"10.96.0.0/16", "10.97.0.0/16", "10.96.0.0/16,fd00:97::/108"} {
		code, out := refuse(t, "--data-dir", dir, "--secure-port", "0", "--service-cidr", cidr)
		if code != 1 || !strings.Contains(out, "start with --service-cidr 10.96.0.0/16,fd00:96::/108") {
			t.Errorf("%s: %d %s", cidr, code, out)
		}
	}
}

// TestRefused: each wrong thing gets one line that says what, where and how
// to mend it, and leaves nothing behind.
func TestRefused(t *testing.T) {
	inUse := start(t, filepath.Join(t.TempDir(), "data"))
	port := inUse.url[strings.LastIndex(inUse.url, ":")+1:]
	parent := t.TempDir()
	file := filepath.Join(parent, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fresh := filepath.Join(parent, "fresh")
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	deaf := free.Addr().String()
	free.Close()

	for _, tc := range []struct {
		args string
		code int
		want []string
	}{
		{"--no-such-flag", 2, []string{"unknown flag: --no-such-flag", "--help"}},
		{"--service-cidr 10.96.0.1/16", 2, []string{"--service-cidr", "10.96.0.0/16"}},
		{"--service-cidr 10.244.0.0/24", 2, []string{"overlap"}},
		{"--secure-port " + port, 1, []string{"port " + port, "in use", "--secure-port"}},
		{"--bind-address 192.0.2.1 --secure-port 0", 1, []string{"192.0.2.1", "not an address of this host"}},
		{"--data-dir " + inUse.dir + " --secure-port 0", 1, []string{inUse.dir, "in use by another", strconv.Itoa(inUse.cmd.Process.Pid)}},
		{"--data-dir " + file + " --secure-port 0", 1, []string{file, "not a directory"}},
		{"--data-dir " + file + "/below --secure-port 0", 1, []string{file, "--data-dir"}},
		{"--data-dir /" + strings.Repeat("d", 120) + " --secure-port 0", 1, []string{"too long"}},
		{"--secure-port 0 --etcd-endpoints http://" + deaf, 1, []string{"no etcd answered", deaf, "connection refused", "--etcd-endpoints"}},
		{"--secure-port 0 --etcd-cafile " + file + " --etcd-endpoints https://" + deaf, 1, []string{"certificates", "--etcd-cafile"}},
	} {
		args := strings.Fields(tc.args)
		if !strings.Contains(tc.args, "--data-dir") {
			args = append(args, "--data-dir", fresh)
		}
		code, out := refuse(t, args...)
		complaint := ""
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "rutter-registry: ") {
				complaint += line
			} else if !strings.Contains(line, "level=INFO") {
				t.Errorf("%s: also said %q", tc.args, line)
			}
		}
		if code != tc.code || strings.Count(complaint, "\n") != 1 {
			t.Errorf("%s: exit code %d, want %d; said %q", tc.args, code, tc.code, out)
		}
		for _, w := range tc.want {
			if !strings.Contains(complaint, w) {
				t.Errorf("%s: %q lacks %q", tc.args, complaint, w)
			}
		}
		if _, err := os.Stat(fresh); err == nil {
			t.Errorf("%s: made %s", tc.args, fresh)
			os.RemoveAll(fresh)
		}
	}
}

// TestDamaged: damaged data is reported with its place and a way on, and is
// left as it is.
func TestDamaged(t *testing.T) {
	pristine := filepath.Join(t.TempDir(), "data")
	r := start(t, pristine)
	service(t, r.admin(), "default", "s", corev1.ServiceSpec{})
	r.signal(syscall.SIGTERM)
	junk := func(path string, at, n int64) error {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteAt([]byte(strings.Repeat("junk", int(n/4))), at)
		return err
	}
	wal := func(dir string) string {
		m, err := filepath.Glob(filepath.Join(dir, "etcd/member/wal/*.wal"))
		if err != nil || len(m) == 0 {
			t.Fatal("no write-ahead log: ", err)
		}
		return m[0]
	}
	for name, damage := range map[string]func(dir string) error{
		"meta pages of the database": func(dir string) error { return junk(filepath.Join(dir, "etcd/member/snap/db"), 0, 8192) },
		"other pages":                func(dir string) error { return junk(filepath.Join(dir, "etcd/member/snap/db"), 8192, 128<<10) },
		"empty database":             func(dir string) error { return os.Truncate(filepath.Join(dir, "etcd/member/snap/db"), 100) },
		"write-ahead log":            func(dir string) error { return junk(wal(dir), 1024, 4096) },
		"lost write-ahead log":       func(dir string) error { return os.Remove(wal(dir)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			if err := os.CopyFS(dir, os.DirFS(pristine)); err != nil {
				t.Fatal(err)
			}
			if err := damage(dir); err != nil {
				t.Fatal(err)
			}
			code, out := refuse(t, "--data-dir", dir, "--secure-port", "0")
			last := out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:]
			if code != 1 || !strings.HasPrefix(last, "rutter-registry: etcd cannot use its data in "+dir+"/etcd: ") || !strings.Contains(last, "mv "+dir+"/etcd ") || strings.Contains(out, "goroutine ") {
				t.Errorf("exit code %d, said %q", code, out)
			}
		})
	}
}

// TestExternalEtcd: two registries on one etcd; one runs the controllers, and
// the other takes over.
func TestExternalEtcd(t *testing.T) {
	endpoint := etcdServer(t)
	a := start(t, filepath.Join(t.TempDir(), "a"), "--etcd-endpoints", endpoint, "--etcd-prefix", "/rutter")
	service(t, a.admin(), "default", "shared", corev1.ServiceSpec{Selector: map[string]string{"app": "x"}})
	b := start(t, filepath.Join(t.TempDir(), "b"), "--etcd-endpoints", endpoint, "--etcd-prefix", "/rutter")
	if !strings.Contains(b.output(), "another registry runs the controllers") {
		t.Errorf("both run the controllers:\n%s", b.output())
	}
	c := b.admin()
	if _, err := c.CoreV1().Services("default").Get(t.Context(), "shared", get); err != nil {
		t.Error(err)
	}
	a.signal(syscall.SIGTERM)
	service(t, c, "default", "later", corev1.ServiceSpec{Selector: map[string]string{"app": "x"}})
	eventually(t, "the other registry's controllers make slices", func() error {
		l, err := c.DiscoveryV1().EndpointSlices("default").List(t.Context(), metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=later"})
		if err == nil && len(l.Items) == 0 {
			err = fmt.Errorf("none")
		}
		return err
	})
}

// etcdServer runs an etcd of the test's own over TCP.
func etcdServer(t *testing.T) string {
	t.Helper()
	addr := func() url.URL {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		return url.URL{Scheme: "http", Host: ln.Addr().String()}
	}
	client := addr()
	c := embed.NewConfig()
	c.Dir = t.TempDir()
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	c.ListenPeerUrls, c.AdvertisePeerUrls = nil, []url.URL{{Scheme: "http", Host: "127.0.0.1:2380"}}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	e, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Server.Stop)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	select {
	case <-e.Server.ReadyNotify():
	case <-ctx.Done():
		t.Fatal("the test's etcd does not start")
	}
	return client.String()
}
