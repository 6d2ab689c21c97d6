package rootless

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// InitCommand is the first argument with which Run executes this very program;
// it must call Init with the others then.
const InitCommand = "rootless-init"

// Choose returns the mode to use for one that was asked for, and for Auto why
// it is not Namespaces.
func Choose(ctx context.Context, asked Mode) (m Mode, why error, err error) {
	if asked == Userspace {
		return Userspace, nil, nil
	}
	err = probe(ctx)
	switch {
	case err == nil:
		return Namespaces, nil, nil
	case asked == Namespaces:
		return "", nil, err
	}
	return Userspace, err, nil
}

// probe makes namespaces, and in them what Init makes, and lets go of them.
func probe(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", InitCommand)
	cmd.SysProcAttr = namespaces()
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	text := strings.TrimSpace(string(out))
	if text != "" {
		err = errors.New(strings.TrimPrefix(text, "rutter: "))
	}
	return fmt.Errorf("this system does not let an ordinary user make namespaces: %w%s", err, hint())
}

// hint names the setting that forbids it, if one of the usual ones does.
func hint() string {
	for _, s := range []struct{ path, forbids string }{
		{"/proc/sys/user/max_user_namespaces", "0"},
		{"/proc/sys/user/max_net_namespaces", "0"},
		{"/proc/sys/kernel/unprivileged_userns_clone", "0"},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"},
	} {
		if text, err := os.ReadFile(s.path); err == nil && strings.TrimSpace(string(text)) == s.forbids {
			return fmt.Sprintf(" (%s is %s)", strings.ReplaceAll(strings.TrimPrefix(s.path, "/proc/sys/"), "/", "."), s.forbids)
		}
	}
	return ""
}

// namespaces are those of an instance. The user is root in them, and nobody
// else is anybody.
func namespaces() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		// Ctrl-C in the terminal is for this process, which passes it on.
		Setpgid: true,
		// If this process is killed, the instance is told to end.
		Pdeathsig: syscall.SIGTERM,
	}
}

// Run runs `rutter` with these arguments in namespaces of its own until it
// ends, and returns its exit code. i describes the instance; its RunDir, in the
// namespaces, is where the run directory is to be seen.
func Run(ctx context.Context, i Instance, args []string) (code int, err error) {
	state, err := StateDir()
	if err != nil {
		return 0, err
	}
	held, err := lock(state)
	if err != nil {
		return 0, err
	}
	defer held.Close()
	// With the lock, whatever an instance left that was killed is nobody's.
	outside := filepath.Join(state, runDir)
	if err := os.RemoveAll(outside); err != nil {
		return 0, fmt.Errorf("rootless: remove what an earlier run left: %w", err)
	}
	if err := os.Mkdir(outside, 0o700); err != nil {
		return 0, fmt.Errorf("rootless: make the run directory: %w", err)
	}
	// The kernel tells of the end of the thread that started a child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", append([]string{InitCommand, outside, i.RunDir}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{held}
	cmd.Env = append(os.Environ(), env+"="+envInit)
	cmd.SysProcAttr = namespaces()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("rootless: start in namespaces: %w", err)
	}
	i.Mode, i.PID = Namespaces, cmd.Process.Pid
	failed := i.write(state)
	defer os.Remove(filepath.Join(state, instanceFile))
	if failed != nil {
		_ = cmd.Process.Signal(unix.SIGTERM)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case <-signals:
			_ = cmd.Process.Signal(unix.SIGTERM)
		case err := <-ended:
			var exit *exec.ExitError
			switch {
			case failed != nil:
				return 0, failed
			case errors.As(err, &exit):
				if _, err := os.Stat(filepath.Join(outside, "log")); err == nil {
					fmt.Fprintf(os.Stderr, "rutter: %s of the namespaces is kept as %s\n", i.RunDir, outside)
				}
				return max(exit.ExitCode(), 1), nil
			case err != nil:
				return 0, fmt.Errorf("rootless: %w", err)
			}
			_ = os.RemoveAll(outside)
			return 0, nil
		}
	}
}

// Here records this process as the user's instance, without namespaces, until
// done is called.
func Here(i Instance) (done func(), err error) {
	state, err := StateDir()
	if err != nil {
		return nil, err
	}
	held, err := lock(state)
	if err != nil {
		return nil, err
	}
	i.Mode, i.PID = Userspace, os.Getpid()
	if err := i.write(state); err != nil {
		held.Close()
		return nil, err
	}
	return func() {
		_ = os.Remove(filepath.Join(state, instanceFile))
		held.Close()
	}, nil
}

// HostIP is an address of this host that pods can have as theirs: that of the
// default route, or the first that is not loopback's.
func HostIP() ([]netip.Addr, error) {
	if c, err := net.Dial("udp4", "192.0.2.1:9"); err == nil { // sends nothing
		defer c.Close()
		if a, err := netip.ParseAddrPort(c.LocalAddr().String()); err == nil && !a.Addr().IsLoopback() {
			return []netip.Addr{a.Addr()}, nil
		}
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("rootless: list the addresses of this host: %w", err)
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			return []netip.Addr{p.Addr()}, nil
		}
	}
	return nil, errors.New("rootless: this host has no address but loopback, which no endpoint may have: connect it to a network, or name an address of its own with --node-ip")
}
