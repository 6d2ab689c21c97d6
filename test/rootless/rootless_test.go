// Package rootless runs `rutter up --rootless` as an ordinary user, in both of
// its modes, in a network, mount and process namespace of its own.
package rootless

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	inside = "RUTTER_ROOTLESS_TEST"   // set in the process that runs in the namespaces
	forbid = "RUTTER_ROOTLESS_FORBID" // set in the process that forbids namespaces and becomes `rutter up`
	user   = 54321                    // who is nobody on any host
	home   = "/run/home"
	rutter = "/run/bin/rutter"
	bound  = 3 * time.Minute // for anything that is waited for
)

// TestMain runs the tests in a child with namespaces of its own, with which the
// kernel ends all that is left.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv(forbid) != "":
		fmt.Fprintln(os.Stderr, "rootless:", becomeForbidden(os.Args[1:]))
		os.Exit(1)
	case os.Getenv(inside) != "":
		if err := enter(); err != nil {
			fmt.Fprintln(os.Stderr, "rootless: set up the namespaces:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	case os.Geteuid() != 0 || os.Getenv("RUTTER_BIN") == "" || os.Getenv("RUTTER_REGISTRY_BIN") == "":
		fmt.Println("skipped: tests of an ordinary user need root, to become one, and RUTTER_BIN and RUTTER_REGISTRY_BIN (`make test` sets them)")
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "rootless:", err)
		os.Exit(1)
	}
}

// enter makes a small host: an address besides loopback, a home, and the
// programs where anybody may run them.
func enter() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	if err := errors.Join(os.Mkdir(home, 0o700), os.Chown(home, user, user), os.Mkdir("/run/bin", 0o755)); err != nil {
		return err
	}
	for name, env := range map[string]string{"rutter": "RUTTER_BIN", "rutter-registry": "RUTTER_REGISTRY_BIN"} {
		to := filepath.Join("/run/bin", name)
		if err := os.WriteFile(to, nil, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(os.Getenv(env), to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", os.Getenv(env), err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr("192.0.2.10/32")
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetUp(lo), netlink.AddrAdd(lo, addr))
}

// asUser makes a command of the user's.
func asUser(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, rutter, args...)
	cmd.Dir = home
	cmd.Env = []string{"HOME=" + home, "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	return cmd
}

// withoutNamespaces makes a command of the user's where user namespaces are
// forbidden: in one of root's, with a limit of 0.
func withoutNamespaces(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Dir = home
	cmd.Env = []string{forbid + "=1", "HOME=" + home, "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
	all := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: all, GidMappings: all, GidMappingsEnableSetgroups: true}
	return cmd
}

func becomeForbidden(args []string) error {
	if err := os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0); err != nil {
		return err
	}
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(user), syscall.Setuid(user)); err != nil {
		return err
	}
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, forbid+"=") {
			env = append(env, v)
		}
	}
	return syscall.Exec(rutter, append([]string{rutter}, args...), env)
}

// up is a running `rutter up --rootless`.
type up struct {
	t    *testing.T
	cmd  *exec.Cmd
	done chan struct{}
	err  error

	mu  sync.Mutex
	out bytes.Buffer
}

// start starts it and waits until it says how to use it. It skips the test if
// the system forbids what the mode needs.
func start(t *testing.T, args ...string) *up {
	t.Helper()
	needInside(t)
	return startCommand(t, asUser(context.Background(), append([]string{"up"}, args...)...))
}

func needInside(t *testing.T) {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("needs root, RUTTER_BIN and RUTTER_REGISTRY_BIN")
	}
}

func startCommand(t *testing.T, cmd *exec.Cmd) *up {
	t.Helper()
	u := &up{t: t, cmd: cmd, done: make(chan struct{})}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	u.cmd.Stdout, u.cmd.Stderr = w, w
	if err := u.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	ready := make(chan struct{})
	go func() {
		defer r.Close()
		for lines := bufio.NewScanner(r); lines.Scan(); {
			u.mu.Lock()
			fmt.Fprintln(&u.out, lines.Text())
			u.mu.Unlock()
			if strings.HasPrefix(lines.Text(), "Ctrl-C takes everything down") {
				close(ready)
			}
		}
	}()
	go func() {
		u.err = u.cmd.Wait()
		close(u.done)
	}()
	t.Cleanup(func() {
		_ = u.cmd.Process.Kill()
		<-u.done
		if t.Failed() {
			t.Logf("rutter up:\n%s", u.text())
		}
	})
	select {
	case <-ready:
	case <-u.done:
		if strings.Contains(u.text(), "does not let an ordinary user make namespaces") {
			t.Skip(strings.TrimSpace(u.text()))
		}
		t.Fatalf("ended: %v", u.err)
	case <-time.After(bound):
		t.Fatal("not ready in time")
	}
	return u
}

func (u *up) text() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.out.String()
}

// end ends it as Ctrl-C does, and looks what is left.
func (u *up) end() {
	u.t.Helper()
	if err := u.cmd.Process.Signal(unix.SIGINT); err != nil {
		u.t.Fatal(err)
	}
	select {
	case <-u.done:
	case <-time.After(bound):
		u.t.Fatal("it does not end")
	}
	if u.err != nil {
		u.t.Errorf("it ended with %v", u.err)
	}
	u.eventually("no process of the user's", func() error {
		if left := processes(); len(left) > 0 {
			return fmt.Errorf("left: %q", left)
		}
		return nil
	})
	left, err := os.ReadDir(home + "/.local/state/rutter")
	if err != nil || len(left) != 1 || left[0].Name() != "lock" {
		u.t.Errorf("the state directory has %v, %v", left, err)
	}
}

// processes are those of the user.
func processes() (found []string) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		info, err := os.Stat(d)
		if err != nil {
			continue
		}
		if st := info.Sys().(*syscall.Stat_t); st.Uid == user {
			if line, _ := os.ReadFile(d + "/cmdline"); len(line) > 0 { // a zombie has none
				found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
			}
		}
	}
	return found
}

func (u *up) eventually(what string, f func() error) {
	u.t.Helper()
	var err error
	for deadline := time.Now().Add(bound); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	u.t.Fatalf("%s: %v", what, err)
}

// rutter runs a command of the user's and returns what it says.
func (u *up) rutter(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	out, err := asUser(ctx, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("rutter %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// expect is rutter for what must work.
func (u *up) expect(args ...string) string {
	u.t.Helper()
	out, err := u.rutter(args...)
	if err != nil {
		u.t.Fatal(err)
	}
	return out
}

// servers are the names of who answered, each line beginning with one.
func servers(out string) (names []string) {
	for line := range strings.Lines(out) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

var webs = []string{"web-1", "web-2", "web-3"}

// TestNamespaces: everything is as for root, in the user's own namespaces.
func TestNamespaces(t *testing.T) {
	u := start(t, "--rootless=namespaces", "--demo")
	const ask = "for i in $(seq 40); do curl -s -m 20 http://web/; done"
	if got := servers(u.expect("shell", "--", "sh", "-c", ask)); !slices.Equal(got, webs) {
		t.Errorf("in the shell %q answer", got)
	}
	if got := servers(u.expect("run", "--rm", "--name", "client", "--", "sh", "-c", ask)); !slices.Equal(got, webs) {
		t.Errorf("in a pod %q answer", got)
	}
	if out := u.expect("shell", "--", "getent", "hosts", "db-0.db"); !strings.Contains(out, "10.244.") {
		t.Errorf("db-0.db is %q", out)
	}
	if out := u.expect("ps"); !strings.Contains(out, "web-1") {
		t.Errorf("rutter ps: %s", out)
	}
	if out := u.expect("status"); !strings.Contains(out, "nftables") {
		t.Errorf("rutter status: %s", out)
	}
	if out, err := u.rutter("up", "--rootless"); err == nil || !strings.Contains(out, "another") {
		t.Errorf("a second one: %v: %s", err, out)
	}
	u.expect("exec", "web-1", "--", "curl", "-s", "-X", "POST", "-d", "readyz=err", "http://127.0.0.1/readyz")
	u.eventually("web-1 is out of the service", func() error {
		if got := servers(u.expect("shell", "--", "sh", "-c", ask)); !slices.Equal(got, webs[1:]) {
			return fmt.Errorf("%q answer", got)
		}
		return nil
	})
	u.killedAndBack("--rootless=namespaces")
}

// TestUserspace: where namespaces are forbidden, nothing but sockets.
func TestUserspace(t *testing.T) {
	needInside(t)
	cmd, forbidden := withoutNamespaces("up", "--rootless", "--demo"), true
	if err := exec.Command("unshare", "-U", "true").Run(); err != nil {
		cmd, forbidden = asUser(context.Background(), "up", "--rootless=userspace", "--demo"), false
	}
	u := startCommand(t, cmd)
	if text := u.text(); forbidden && !strings.Contains(text, "user.max_user_namespaces is 0") {
		t.Errorf("it does not say why:\n%s", text)
	}
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, "127.0.0.1:1053")
	}}
	lookup := func(name string) string {
		t.Helper()
		addrs, err := resolver.LookupHost(t.Context(), name+".default.svc.cluster.local.")
		if err != nil || len(addrs) == 0 {
			t.Fatalf("%s: %v, %v", name, addrs, err)
		}
		return addrs[0]
	}
	web := lookup("web")
	if !strings.HasPrefix(web, "127.96.") {
		t.Errorf("web is %s", web)
	}
	if db := lookup("db-0.db"); db != "192.0.2.10" {
		t.Errorf("db-0.db is %s", db)
	}
	ask := func() []string {
		t.Helper()
		var out strings.Builder
		for range 12 {
			text, err := get(web + ":8080")
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(&out, text)
		}
		return servers(out.String())
	}
	if got := ask(); !slices.Equal(got, webs) {
		t.Errorf("%q answer", got)
	}
	out := u.expect("run", "--rm", "--name", "client", "--", "sh", "-c", "for i in $(seq 12); do curl -s -m 20 http://$WEB_SERVICE_HOST:$WEB_SERVICE_PORT/; done")
	if got := servers(out); !slices.Equal(got, webs) {
		t.Errorf("in a pod %q answer", got)
	}
	if out := u.expect("status"); !strings.Contains(out, "loopback") {
		t.Errorf("rutter status: %s", out)
	}
	u.expect("exec", "web-1", "--", "curl", "-s", "-X", "POST", "-d", "readyz=err", "http://192.0.2.10:18080/readyz")
	u.eventually("web-1 is out of the service", func() error {
		if got := ask(); !slices.Equal(got, webs[1:]) {
			return fmt.Errorf("%q answer", got)
		}
		return nil
	})
	u.killedAndBack("--rootless=userspace")
}

// killedAndBack kills the first process. Another can be started, which ends the
// pods that live on, if any, and in the end nothing is left.
func (u *up) killedAndBack(flag string) {
	u.t.Helper()
	if err := u.cmd.Process.Kill(); err != nil {
		u.t.Fatal(err)
	}
	<-u.done
	u.eventually("registry and agent have ended", func() error {
		for _, p := range processes() {
			if strings.Contains(p, "rutter-registry") || strings.Contains(p, "rutter agent") {
				return errors.New("left: " + p)
			}
		}
		return nil
	})
	start(u.t, flag).end()
}

// get asks a demo server.
func get(addr string) (string, error) {
	c, err := net.DialTimeout("tcp", addr, time.Minute)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return "", err
	}
	text, err := io.ReadAll(c)
	if err != nil {
		return "", err
	}
	_, body, ok := strings.Cut(string(text), "\r\n\r\n")
	if !ok {
		return "", fmt.Errorf("%s answers %q", addr, text)
	}
	return strings.TrimSpace(body), nil
}
