package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/node/nodetest"
	"github.com/rutter-project/rutter/internal/node/route"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		var err error
		switch os.Args[1] {
		case PauseCommand:
			err = Pause()
		case "test-supervisor":
			err = supervise(os.Args[2])
		default:
			os.Exit(nodetest.Main(m))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(nodetest.Main(m))
}

var dual = []netip.Prefix{netip.MustParsePrefix("10.244.7.0/24"), netip.MustParsePrefix("fd00:10:244:7::/64")}

func claim(t *testing.T, runDir, name string) *Sandbox {
	t.Helper()
	s, err := Claim(Config{RunDir: runDir, Namespace: "default", Pod: name, Command: []string{"test"}, PodCIDRs: dual})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := os.Stat(s.Dir.Path()); err == nil {
			if err := s.Remove(); err != nil {
				t.Error(err)
			}
		}
	})
	return s
}

func build(t *testing.T, runDir, name string) *Sandbox {
	t.Helper()
	s := claim(t, runDir, name)
	if err := s.Build(context.Background(), files(name)); err != nil {
		t.Fatal(err)
	}
	return s
}

func files(name string) Files {
	return Files{Hostname: name, Hosts: "127.0.0.1 localhost\n", ResolvConf: "nameserver 169.254.20.10\n", NSSwitch: "hosts: files dns\n"}
}

// output runs a shell command in the pod.
func output(t *testing.T, s *Sandbox, script string) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := s.Start(Process{Argv: []string{"sh", "-c", script}, Env: os.Environ(), Dir: "/", Files: [3]*os.File{nil, w, w}})
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if exit := p.Wait(); exit.Code != 0 {
		t.Fatalf("%s: %+v\n%s", script, exit, text)
	}
	return string(text)
}

// hostState is everything a sandbox may leave on the host.
func hostState(t *testing.T, runDir string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", `
		ip -o -br link; (ip -o addr; ip route show table all; ip -6 route show table all) | grep -v fe80
		ls /run/netns 2>/dev/null; grep -c nsfs /proc/self/mountinfo
		ls -A "$0/pods" 2>/dev/null | grep -v -e lock -e last.json; true`, runDir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

func TestInside(t *testing.T) {
	nodetest.Need(t)
	s := build(t, t.TempDir(), "web-0")
	for _, c := range []struct{ script, want string }{
		{"hostname", "web-0\n"},
		{"cat /etc/resolv.conf", "nameserver 169.254.20.10\n"},
		{"cat /etc/hosts", "127.0.0.1 localhost\n"},
		{"cat /etc/nsswitch.conf", "hosts: files dns\n"},
		{"ls /sys/class/net", "eth0\nlo\n"},
		{"cat /sys/class/net/eth0/ifindex >/dev/null && echo yes", "yes\n"},
		{"ip -4 -o addr show dev eth0 | awk '{print $4}'", s.Record.Addrs[0].String() + "/32\n"},
		{"ip -6 -o addr show dev eth0 scope global | awk '{print $4, $5, $6, $7}'", s.Record.Addrs[1].String() + "/128 scope global nodad\n"},
		{"ip route", "default via 10.244.7.1 dev eth0 onlink \n"},
		{"ip -6 route show default", "default via fd00:10:244:7::1 dev eth0 metric 1024 onlink pref medium\n"},
		{"ip -o link show dev lo | grep -o LOWER_UP", "LOWER_UP\n"},
		{"ps -o pid= -p 1 | tr -d ' '; ps ax -o pid= | wc -l", "1\n4\n"}, // the first, sh, ps, wc
		{"ls /run/netns", ""},
		{"ip addr 2>&1 >/dev/null", ""},
		{"ps -o sid= -p $$ | tr -d ' '; echo $$", "SAME"}, // a session of its own
	} {
		got := output(t, s, c.script)
		if c.want == "SAME" {
			if f := strings.Fields(got); len(f) != 2 || f[0] != f[1] {
				t.Errorf("%s: %q", c.script, got)
			}
			continue
		}
		if got != c.want {
			t.Errorf("%s:\ngot  %q\nwant %q", c.script, got, c.want)
		}
	}
}

// The supervisor's own view of the host must not have moved: a thread that
// enters a pod never runs anything else.
func TestOutsideIsUnchanged(t *testing.T) {
	nodetest.Need(t)
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	s := build(t, t.TempDir(), "a")
	for range 20 {
		output(t, s, "true")
	}
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if ns, err := os.Readlink(task); err == nil && ns != before {
			t.Errorf("%s is %s, not %s", task, ns, before)
		}
	}
}

func TestUser(t *testing.T) {
	nodetest.Need(t)
	s := build(t, t.TempDir(), "a")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	script := `id -u; id -g; id -G; cat /etc/resolv.conf; python3 -c "import socket; socket.create_server(('', 80)); print('port 80')"; kill -0 1 2>&1 | tail -c 24`
	_, err = s.Start(Process{Argv: []string{"sh", "-c", script}, Env: os.Environ(), Dir: "/", Files: [3]*os.File{nil, w, w}, User: &User{UID: 1234, GID: 2345, Groups: []uint32{2345, 3456}}})
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	want := "1234\n2345\n2345 3456\nnameserver 169.254.20.10\nport 80\n"
	if !strings.HasPrefix(string(got), want) || !strings.Contains(string(got[len(want):]), "not permitted") {
		t.Errorf("got  %q\nwant %q and no right to signal the first process", got, want)
	}
}

func TestExitAndStartErrors(t *testing.T) {
	nodetest.Need(t)
	dir := t.TempDir()
	s := build(t, dir, "a")
	script := filepath.Join(dir, "not-executable")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		argv []string
		code int
	}{
		{[]string{"no-such-command"}, ExitNotFound},
		{[]string{"/no/such/command"}, ExitNotFound},
		{[]string{script}, ExitNotExecutable},
		{[]string{"/"}, ExitNotExecutable},
	} {
		_, err := s.Start(Process{Argv: c.argv, Env: []string{"PATH=/usr/bin:/bin"}, Dir: "/"})
		var start *StartError
		if !errors.As(err, &start) || start.Code != c.code {
			t.Errorf("%v: %v, want exit code %d", c.argv, err, c.code)
		}
	}
}

// Pods reach each other and the host by the host's routes, in both families.
func TestNetwork(t *testing.T) {
	nodetest.Need(t)
	dir := t.TempDir()
	before := hostState(t, dir)
	for _, s := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if err := route.SetSysctl(s, "1"); err != nil {
			t.Fatal(err)
		}
	}
	a, b := build(t, dir, "a"), build(t, dir, "b")
	listener := "import socket,sys\n" +
		"s=socket.create_server(('::',8080),family=socket.AF_INET6,dualstack_ipv6=True)\n" +
		"print('up',flush=True)\n" +
		"while True:\n c,p=s.accept(); c.sendall(p[0].encode()); c.close()\n"
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Start(Process{Argv: []string{"python3", "-c", listener}, Env: os.Environ(), Dir: "/", Files: [3]*os.File{nil, w, os.Stderr}}); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	if _, err := io.ReadFull(r, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	for i, addr := range b.Record.Addrs {
		conn, err := net.DialTimeout("tcp", net.JoinHostPort(addr.String(), "8080"), 5*time.Second)
		if err != nil {
			t.Fatalf("from the host: %v", err)
		}
		text, _ := io.ReadAll(conn)
		_ = conn.Close()
		if got, want := strings.TrimPrefix(string(text), "::ffff:"), Gateway(dual[i]).String(); got != want {
			t.Errorf("the pod sees the host as %s, want its gateway %s", got, want)
		}
		got := output(t, a, fmt.Sprintf("python3 -c \"import socket;print(socket.create_connection(('%s',8080),5).recv(99).decode())\"", addr))
		if got := strings.TrimPrefix(strings.TrimSpace(got), "::ffff:"); got != a.Record.Addrs[i].String() {
			t.Errorf("b sees a as %s, want %s", got, a.Record.Addrs[i])
		}
	}
	for _, s := range []*Sandbox{a, b} {
		if err := s.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(before, hostState(t, dir)); diff != "" {
		t.Errorf("left behind (-before +after):\n%s", diff)
	}
}

// Orphans go to the pause process, which leaves no zombies.
func TestOrphansAreReaped(t *testing.T) {
	nodetest.Need(t)
	s := build(t, t.TempDir(), "a")
	output(t, s, "for i in 1 2 3; do (sh -c 'exit 0' &) ; done; (sleep 0.05 &)")
	eventually(t, "no process but the first and ps", func() bool {
		return strings.TrimSpace(output(t, s, "ps ax -o stat= | grep -c Z || true")) == "0" &&
			!strings.Contains(output(t, s, "ps ax -o args="), "sleep 0.05")
	})
}

// A pod's files stay in place when the host's are replaced under them.
func TestFilesStay(t *testing.T) {
	nodetest.Need(t)
	upper := t.TempDir()
	for _, d := range []string{"up", "work"} {
		if err := os.Mkdir(filepath.Join(upper, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("overlay", "/etc", "overlay", 0, fmt.Sprintf("lowerdir=/etc,upperdir=%s/up,workdir=%s/work", upper, upper)); err != nil {
		t.Skipf("an overlay over /etc, to keep the real one safe: %v", err)
	}
	defer func() {
		if err := unix.Unmount("/etc", unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	s := build(t, t.TempDir(), "a")
	const ours, theirs = "nameserver 169.254.20.10\n", "nameserver 192.0.2.1\n"
	if err := os.WriteFile("/etc/resolv.conf.new", []byte(theirs), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename("/etc/resolv.conf.new", "/etc/resolv.conf"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pod's resolv.conf after a rename", func() bool { return output(t, s, "cat /etc/resolv.conf") == ours })
	if err := os.Remove("/etc/resolv.conf"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/etc/resolv.conf", []byte(theirs), 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pod's resolv.conf after a removal", func() bool { return output(t, s, "cat /etc/resolv.conf 2>&1 || true") == ours })
	if text, err := os.ReadFile("/etc/resolv.conf"); err != nil || string(text) != theirs {
		t.Errorf("the host's own file: %q, %v", text, err)
	}

	// A link, as systemd-resolved has it, becomes another link, then a file.
	for _, text := range []string{"one", "two"} {
		if err := os.WriteFile("/run/"+text, []byte(theirs), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	replace := func(with func(path string) error) {
		t.Helper()
		if err := errors.Join(with("/etc/resolv.conf.new"), os.Rename("/etc/resolv.conf.new", "/etc/resolv.conf")); err != nil {
			t.Fatal(err)
		}
	}
	replace(func(path string) error { return os.Symlink("/run/one", path) })
	linked := build(t, t.TempDir(), "b")
	is := func(what string) {
		t.Helper()
		eventually(t, what, func() bool { return output(t, linked, "cat /etc/resolv.conf 2>&1 || true") == ours })
	}
	is("the pod's resolv.conf behind a link")
	replace(func(path string) error { return os.Symlink("/run/two", path) })
	is("the pod's resolv.conf behind another link")
	replace(func(path string) error { return os.WriteFile(path, []byte(theirs), 0o644) })
	is("the pod's resolv.conf where a link was")
}

// A record cut short by a crash does not hide what is left, or hold up others.
func TestTornRecord(t *testing.T) {
	nodetest.Need(t)
	dir := t.TempDir()
	before := hostState(t, dir)
	whole := claim(t, dir, "whole")
	for i, text := range []string{"", "{", `{"id":"x","addrs":["nonsense"]}`} {
		torn := filepath.Join(dir, podsDir, fmt.Sprintf("torn%d", i))
		if err := os.Mkdir(torn, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(torn, recordFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		run(t, "ip", "link", "add", fmt.Sprint("ruttorn", i), "type", "veth", "peer", "name", fmt.Sprint("peer", i))
	}
	pods, err := List(dir)
	if err != nil || len(pods) != 4 {
		t.Fatalf("%d pods, %v", len(pods), err)
	}
	if _, err := Sweep(context.Background(), dir, false); err != nil {
		t.Fatal(err)
	}
	if err := whole.Remove(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, hostState(t, dir)); diff != "" {
		t.Errorf("left behind (-before +after):\n%s", diff)
	}
}

func TestNSCDIsHidden(t *testing.T) {
	nodetest.Need(t)
	if err := os.MkdirAll("/run/nscd", 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll("/run/nscd")
	if err := os.WriteFile("/run/nscd/socket", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s := build(t, t.TempDir(), "a")
	if got := output(t, s, "ls /run/nscd"); got != "" {
		t.Errorf("the pod sees %q", got)
	}
}

// Each step's failure takes back what was done before it.
func TestFailedBuildLeavesNothing(t *testing.T) {
	nodetest.Need(t)
	for _, c := range []struct {
		name string
		arm  func(*testing.T, *Sandbox)
		want string
	}{
		{"interface taken", func(t *testing.T, s *Sandbox) {
			run(t, "ip", "link", "add", s.Record.Link, "type", "veth", "peer", "name", "x")
			t.Cleanup(func() { run(t, "ip", "link", "delete", s.Record.Link) })
		}, "exists already"},
		{"route taken", func(t *testing.T, s *Sandbox) {
			run(t, "ip", "route", "add", s.Record.Addrs[0].String()+"/32", "dev", "lo")
			t.Cleanup(func() { run(t, "ip", "route", "delete", s.Record.Addrs[0].String()+"/32", "dev", "lo") })
		}, "adding the route"},
		{"file that cannot be written", func(t *testing.T, s *Sandbox) {
			if err := os.Mkdir(s.Dir.File("hosts"), 0o755); err != nil {
				t.Fatal(err)
			}
		}, "writing the pod's files"},
		{"host name too long", func(t *testing.T, s *Sandbox) { s.Record.Name = "long" }, "setting the pod's host name"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			s := claim(t, dir, "a")
			c.arm(t, s)
			f := files("a")
			if s.Record.Name == "long" {
				f.Hostname = strings.Repeat("x", 65)
			}
			before := hostState(t, dir)
			err := s.Build(context.Background(), f)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if diff := cmp.Diff(before, hostState(t, dir)); diff != "" {
				t.Errorf("left behind (-before +after):\n%s", diff)
			}
		})
	}
}

// Two pods whose names read the same, or one that is still ending.
func TestNetNSNameTaken(t *testing.T) {
	nodetest.Need(t)
	dir := t.TempDir()
	var made []*Sandbox
	for _, c := range []struct{ namespace, pod string }{{"a-b", "c"}, {"a", "b-c"}, {"a", "b-c"}, {"n", strings.Repeat("x", 253)}, {"n", strings.Repeat("x", 253)}} {
		s, err := Claim(Config{RunDir: dir, Namespace: c.namespace, Pod: c.pod, PodCIDRs: dual})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Build(context.Background(), files("p")); err != nil {
			t.Fatal(err)
		}
		made = append(made, s)
	}
	if made[0].Record.NetNS != "rutter-a-b-c" || made[1].Record.NetNS != "rutter-a-b-c-"+made[1].Record.ID {
		t.Errorf("%s, %s", made[0].Record.NetNS, made[1].Record.NetNS)
	}
	for _, s := range made {
		if err := s.Remove(); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(netnsDir); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

// A run directory may be given relative to the caller's.
func TestRelativeRunDir(t *testing.T) {
	nodetest.Need(t)
	t.Chdir(t.TempDir())
	s := build(t, "run", "a")
	if got := output(t, s, "cat /etc/resolv.conf"); got != "nameserver 169.254.20.10\n" {
		t.Errorf("%q", got)
	}
}

// supervise is a supervisor that gets killed: a sandbox with a sleeping
// process, told to the test by a line.
func supervise(runDir string) error {
	s, err := Claim(Config{RunDir: runDir, Namespace: "default", Pod: "victim", PodCIDRs: dual})
	if err != nil {
		return err
	}
	if err := s.Build(context.Background(), files("victim")); err != nil {
		return err
	}
	p, err := s.Start(Process{Argv: []string{"sleep", "1000"}, Env: os.Environ(), Dir: "/"})
	if err != nil {
		return err
	}
	fmt.Println(p.Pid())
	select {}
}

func TestSweepAfterKill(t *testing.T) {
	nodetest.Need(t)
	dir := t.TempDir()
	other := build(t, dir, "survivor")
	// What another run directory has is none of this one's business.
	stranger := build(t, t.TempDir(), "stranger")
	before := hostState(t, dir)

	cmd := exec.Command("/proc/self/exe", "test-supervisor", dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	victim, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(victim)
	if swept, err := Sweep(context.Background(), dir, true); err != nil || len(swept) != 0 {
		t.Fatalf("swept the living: %v, %v", swept, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()

	// The process dies with its supervisor.
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(victim), Events: unix.POLLIN}}, 10_000); n != 1 {
		t.Fatalf("the pod's process survived: %v", err)
	}
	pods, err := List(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(pods) != 2 || !pods[0].Live || pods[1].Live || pods[1].Name != "victim" {
		t.Errorf("listed %+v", pods)
	}
	swept, err := Sweep(context.Background(), dir, false)
	if err != nil {
		t.Fatal(err)
	}
	if len(swept) != 1 || swept[0].Name != "victim" {
		t.Errorf("swept %+v", swept)
	}
	if diff := cmp.Diff(before, hostState(t, dir)); diff != "" {
		t.Errorf("left behind (-before +after):\n%s", diff)
	}
	for _, s := range []*Sandbox{other, stranger} {
		if got := output(t, s, "hostname"); got != s.Record.Name+"\n" {
			t.Errorf("%s: %q", s.Record.Name, got)
		}
	}
}

// A link whose directory was lost is found by its alias.
func TestSweepFindsLinksWithoutRecord(t *testing.T) {
	nodetest.Need(t)
	dir := t.TempDir()
	unlock, err := lockRunDir(dir) // makes it
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	s := build(t, t.TempDir(), "keep")
	run(t, "ip", "link", "add", "rutlost", "type", "veth", "peer", "name", "x")
	run(t, "ip", "link", "set", "rutlost", "alias", alias(dir, "lost"))
	run(t, "ip", "link", "add", "rutforeign", "type", "veth", "peer", "name", "y")
	defer run(t, "ip", "link", "delete", "rutforeign")
	if _, err := Sweep(context.Background(), dir, false); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("ip", "-o", "-br", "link").Output()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"rutlost": false, "rutforeign": true, s.Record.Link: true} {
		if got := strings.Contains(string(out), name); got != want {
			t.Errorf("%s there: %t, want %t", name, got, want)
		}
	}
}

func TestRemoveTwice(t *testing.T) {
	nodetest.Need(t)
	s := build(t, t.TempDir(), "a")
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Start(Process{Argv: []string{"true"}}); err == nil {
		t.Error("started a process in a pod that is over")
	}
}

func TestCheckPrivilege(t *testing.T) {
	nodetest.Need(t)
	if err := CheckPrivilege(); err != nil {
		t.Fatal(err)
	}
	err := onThread(func() error {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capget(&header, &data[0]); err != nil {
			return err
		}
		data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		if err := unix.Capset(&header, &data[0]); err != nil {
			return err
		}
		return CheckPrivilege()
	})
	if want := "missing privilege: CAP_NET_ADMIN (interfaces and routes); run it as root"; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}
