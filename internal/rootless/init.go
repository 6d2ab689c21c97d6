package rootless

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NodeIP is the address of the node in its namespaces.
var NodeIP = netip.MustParseAddr("10.0.2.15")

// Init is the first process of an instance's namespaces. It lays them out,
// starts `rutter` with args, takes care of orphans, and ends when that has
// ended: with it the kernel ends everything in the namespaces. Without arguments
// it only tries whether they can be laid out.
func Init(args []string) (code int, err error) {
	if err := mounts(); err != nil {
		return 0, err
	}
	if err := network(); err != nil {
		return 0, err
	}
	if len(args) == 0 {
		return 0, nil
	}
	if len(args) < 3 {
		return 0, errors.New("rootless: init wants two directories and a command")
	}
	if err := bindDir(args[0], args[1]); err != nil {
		return 0, err
	}
	if err := os.Setenv(env, envInside); err != nil {
		return 0, err
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	child, err := os.StartProcess("/proc/self/exe", append([]string{"rutter"}, args[2:]...), &os.ProcAttr{
		Env: os.Environ(), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr, os.NewFile(3, "lock")},
	})
	if err != nil {
		return 0, fmt.Errorf("rootless: %w", err)
	}
	pid := child.Pid
	go func() {
		for range signals {
			_ = unix.Kill(pid, unix.SIGTERM)
		}
	}()
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, fmt.Errorf("rootless: wait for %s: %w", args[2], err)
		case got == pid && status.Exited():
			return status.ExitStatus(), nil
		case got == pid && status.Signaled():
			return 128 + int(status.Signal()), nil
		}
	}
}

// mounts makes /proc that of the new PID namespace, and /run a directory that
// can be written to, with all that was in it.
func mounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("rootless: detach the mount namespace: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("rootless: mount /proc: %w", err)
	}
	const run = "/run"
	old, err := unix.Open(run, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("rootless: open %s: %w", run, err)
	}
	defer unix.Close(old)
	entries, err := os.ReadDir(run)
	if err != nil {
		return fmt.Errorf("rootless: %w", err)
	}
	if err := unix.Mount("tmpfs", run, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("rootless: mount %s: %w", run, err)
	}
	for _, e := range entries {
		from, to := fmt.Sprintf("/proc/self/fd/%d/%s", old, e.Name()), filepath.Join(run, e.Name())
		switch {
		case e.Name() == "netns" || e.Name() == "rutter":
			continue // ours here
		case e.Type()&os.ModeSymlink != 0:
			if target, err := os.Readlink(from); err == nil {
				_ = os.Symlink(target, to)
			}
			continue
		case e.IsDir():
			_ = os.Mkdir(to, 0o755)
		default:
			_ = os.WriteFile(to, nil, 0o600)
		}
		// What cannot be seen by its user is not missed.
		_ = unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, "")
	}
	return nil
}

func bindDir(from, to string) error {
	if err := os.MkdirAll(to, 0o700); err != nil {
		return fmt.Errorf("rootless: %w", err)
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("rootless: bind %s to %s: %w", from, to, err)
	}
	return nil
}

// network sets the loopback device up and gives the node its address. There is
// no other interface: whatever is not in the cluster is unreachable at once.
func network() error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err == nil {
		err = netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: NodeIP.AsSlice(), Mask: net.CIDRMask(32, 32)}})
	}
	if err != nil {
		return fmt.Errorf("rootless: set up the loopback device: %w", err)
	}
	return nil
}
