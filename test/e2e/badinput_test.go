package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/rutter-project/rutter/internal/proxy"
	"github.com/rutter-project/rutter/test/registry"
)

// TestBadInput shows that each mistake is answered by one line that says what,
// where and the mend, by a non-zero exit, and that nothing stays behind.
func TestBadInput(t *testing.T) {
	if os.Getenv(inside) == "" {
		t.Skip("needs root, RUTTER_BIN and RUTTER_REGISTRY_BIN (`make test` sets them)")
	}
	reg := registry.Start(t)
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} { // for the case without root
		if err := os.Chmod(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	agent := func(flags ...string) []string {
		return append([]string{"agent", "--node-name", "host", "--run-dir", filepath.Join(dir, "run"), "--data-dir", filepath.Join(dir, "data"), "--kubeconfig", reg.Agent()}, flags...)
	}
	up := func(flags ...string) []string {
		return append([]string{"up", "--registry", os.Getenv("RUTTER_REGISTRY_BIN"), "--node-name", "host", "--run-dir", filepath.Join(dir, "run"), "--data-dir", filepath.Join(dir, "data")}, flags...)
	}
	corefile := filepath.Join(dir, "Corefile")
	write(t, corefile, ".:53 {\n    forwrad . 192.0.2.1\n}\n")
	proxyConfig := filepath.Join(dir, "kube-proxy.yaml")
	write(t, proxyConfig, "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftable\n")
	kubeconfig, err := os.ReadFile(reg.Agent())
	if err != nil {
		t.Fatal(err)
	}
	unreachable := filepath.Join(dir, "unreachable.kubeconfig")
	write(t, unreachable, regexp.MustCompile(`127\.0\.0\.1:\d+`).ReplaceAllString(string(kubeconfig), "127.0.0.1:1"))
	stranger := filepath.Join(dir, "stranger.kubeconfig")
	write(t, stranger, withStrangersCertificate(t, string(kubeconfig)))

	for _, tc := range []struct {
		name  string
		args  []string
		setup func(t *testing.T)
		code  int
		want  []string // all must be in the line
	}{
		{name: "unknown flag", args: agent("--clusterdns", "10.96.0.10"), code: 2, want: []string{"unknown flag: --clusterdns", "--help"}},
		{name: "unknown command", args: []string{"agnet"}, code: 2, want: []string{`unknown command "agnet"`, "agent"}},
		{name: "an address that is none", args: agent("--cluster-dns", "10.96.0"), code: 2, want: []string{"--cluster-dns", `"10.96.0" is not an IP address`}},
		{name: "a range with host bits", args: agent("--cluster-cidr", "10.244.0.1/16"), code: 2, want: []string{"10.244.0.1/16", "did you mean 10.244.0.0/16"}},
		{name: "overlapping ranges", args: agent("--service-cidr", "10.244.128.0/17"), code: 2, want: []string{"--service-cidr 10.244.128.0/17 overlaps", "10.244.0.0/16"}},
		{name: "log level", args: agent("--log-level", "loud"), code: 2, want: []string{`--log-level "loud"`, "debug, info, warn or error"}},
		{name: "no kubeconfig", args: agent("--kubeconfig", "/nonexistent"), code: 1, want: []string{"/nonexistent", "--kubeconfig"}},
		{name: "API unreachable", args: agent("--kubeconfig", unreachable), code: 1, want: []string{"https://127.0.0.1:1", "refused", "--kubeconfig"}},
		{name: "API says no", args: agent("--kubeconfig", stranger), code: 1, want: []string{"credentials", "--kubeconfig"}},
		{name: "Corefile", args: agent("--corefile", corefile), code: 1, want: []string{corefile + ":2", "forwrad", "forward"}},
		{name: "no Corefile", args: agent("--corefile", "/nonexistent"), code: 1, want: []string{"/nonexistent", "--corefile"}},
		{name: "KubeProxyConfiguration", args: agent("--proxy-config", proxyConfig), code: 1, want: []string{proxyConfig, "mode", "nftable", "nftables"}},
		{name: "port 53 taken", args: agent(), code: 1, want: []string{"53", "address already in use", "ss -"},
			setup: func(t *testing.T) {
				c, err := net.ListenPacket("udp", "0.0.0.0:53")
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
			}},
		{name: "pod range taken by the host", args: agent(), code: 1, want: []string{"10.244.", "eth0", "--pod-cidr"},
			setup: func(t *testing.T) {
				card, err := netlink.LinkByName("eth0")
				if err != nil {
					t.Fatal(err)
				}
				addr, err := netlink.ParseAddr("10.244.0.77/20")
				if err != nil {
					t.Fatal(err)
				}
				if err := netlink.AddrAdd(card, addr); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { netlink.AddrDel(card, addr) })
			}},
		{name: "up: service and pod ranges overlap", args: up("--service-cidr", "10.244.0.0/20"), code: 2, want: []string{"10.244.0.0/20", "overlaps --pod-cidr 10.244.0.0/16"}},
		{name: "up: no such port", args: up("--api-port", "65536"), code: 2, want: []string{"--api-port 65536", "1-65535"}},
		{name: "up: no such registry", args: up("--registry", "/nonexistent"), code: 1, want: []string{"/nonexistent", "--registry", "make build"}},
		{name: "up: API port taken", args: up("--api-port", "7443"), code: 1, want: []string{"port 7443", "--api-port"},
			setup: func(t *testing.T) {
				l, err := net.Listen("tcp", "127.0.0.1:7443")
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { l.Close() })
			}},
		{name: "agent: another one works here", args: agent(), code: 1, want: []string{"another agent", "stop it first"}, setup: lockNetwork},
		{name: "up: an agent works here", args: up(), code: 1, want: []string{"another agent", "stop it first"}, setup: lockNetwork},
		{name: "up: a service range too small for DNS", args: up("--service-cidr", "10.96.0.0/29"), code: 2, want: []string{"10.96.0.0/29", "too small"}},
		{name: "run without a command", args: []string{"run"}, code: 2, want: []string{"no command"}},
		{name: "status without an agent", args: []string{"status", "--run-dir", filepath.Join(dir, "nothing")}, code: 1, want: []string{"does not answer", "--run-dir"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := hostState(t)
			if tc.setup != nil {
				tc.setup(t)
				before = hostState(t)
			}
			out, code := rutterOnce(t, nil, tc.args...)
			expectOneLine(t, out, code, tc.code, tc.want)
			if after := hostState(t); !slices.Equal(before, after) {
				t.Errorf("before:\n%s\nafter:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
			}
		})
	}

	t.Run("without privilege", func(t *testing.T) {
		nobody := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		kc := filepath.Join(dir, "readable.kubeconfig")
		write(t, kc, string(kubeconfig))
		bin := filepath.Join(dir, "rutter")
		copyFile(t, os.Getenv("RUTTER_BIN"), bin)
		t.Setenv("RUTTER_BIN", bin)
		out, code := rutterOnce(t, nobody, "agent", "--node-name", "host", "--run-dir", filepath.Join(dir, "r2"), "--data-dir", filepath.Join(dir, "d2"), "--kubeconfig", kc)
		expectOneLine(t, out, code, 1, []string{"CAP_NET_ADMIN"})
		out, code = rutterOnce(t, nobody, "up", "--run-dir", filepath.Join(dir, "r2"), "--data-dir", filepath.Join(dir, "d2"))
		expectOneLine(t, out, code, 1, []string{"root", "CAP_NET_ADMIN"})
	})
}

// lockNetwork does what an agent does that works in this network namespace.
func lockNetwork(t *testing.T) {
	f, err := proxy.Lock()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
}

// expectOneLine checks the last line, which is the error; log lines of the
// programs may stand before it.
func expectOneLine(t *testing.T, out string, code, wantCode int, want []string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(out), "\n")
	last := lines[len(lines)-1]
	if code != wantCode || !strings.HasPrefix(last, "rutter: ") {
		t.Errorf("exit code %d, want %d; output:\n%s", code, wantCode, out)
	}
	for _, w := range want {
		if !strings.Contains(last, w) {
			t.Errorf("%q is missing in: %s", w, last)
		}
	}
	if strings.Contains(out, "goroutine ") {
		t.Errorf("a stack trace:\n%s", out)
	}
}

func rutterOnce(t *testing.T, attr *syscall.SysProcAttr, args ...string) (string, int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Getenv("RUTTER_BIN"), args...)
	cmd.SysProcAttr = attr
	cmd.WaitDelay = 10 * time.Second
	timer := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer timer.Stop()
	out, err := cmd.CombinedOutput()
	if err != nil && exitCode(err) < 0 {
		t.Fatalf("rutter %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), max(0, exitCode(err))
}

// withStrangersCertificate replaces the client certificate by one that the
// registry's CA did not sign.
func withStrangersCertificate(t *testing.T, kubeconfig string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "stranger"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(kind string, der []byte) string {
		return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	kubeconfig = regexp.MustCompile(`client-certificate-data: *\S+`).ReplaceAllString(kubeconfig, "client-certificate-data: "+encode("CERTIFICATE", der))
	return regexp.MustCompile(`client-key-data: *\S+`).ReplaceAllString(kubeconfig, "client-key-data: "+encode("EC PRIVATE KEY", keyDER))
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o755); err != nil {
		t.Fatal(err)
	}
}
