package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// The pause process is the first of a pod's PID namespace and what keeps its
// namespaces. Everything else in the pod is started by the supervisor from
// outside (see Sandbox.Start), so this one has few duties:
//
//  1. lay out the mounts, the host name and the network settings,
//  2. keep the mounts there (see keepFiles),
//  3. inherit orphans, which the kernel reaps for it,
//  4. end when its supervisor does, however that ends: the supervisor holds
//     the other end of its lifeline, a pipe. With the first process the kernel
//     ends all others of the namespace.
const lifelineFD = 3

// PauseCommand is the first argument with which a sandbox executes this very
// program; it must call Pause then.
const PauseCommand = "pause"

// pauseConfig is the first line on the lifeline.
type pauseConfig struct {
	Hostname string
	// Files are bound over the pod's view of the host's files: target → source.
	Files map[string]string
	// Scratch is an empty directory for mounting things on in passing.
	Scratch string
}

// Pause is the pause process. It returns when the supervisor is gone.
func Pause() error {
	signal.Ignore(unix.SIGCHLD) // children of an ignorer leave no zombies, wait(2)
	lifeline := os.NewFile(lifelineFD, "lifeline")
	var c pauseConfig
	if err := json.NewDecoder(lifeline).Decode(&c); err != nil {
		return fmt.Errorf("reading the sandbox's settings: %w", err)
	}
	err := c.apply()
	var mounts int
	if err == nil {
		// Not by os.Open: the runtime's poller would take the events.
		mounts, err = unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		fmt.Println(err)
		return err
	}
	fmt.Println("ok")
	if err := os.Stdout.Close(); err != nil {
		return err
	}
	debug.FreeOSMemory()
	defer runtime.KeepAlive(lifeline) // else its descriptor is closed one day
	return c.keepFiles(int(lifeline.Fd()), mounts, watchNames("/etc"))
}

// keepFiles puts the pod's files back over the host's whenever they are gone,
// until the lifeline ends. The kernel takes a mount away when its mount point
// is replaced or removed in another mount namespace (rename(2) since Linux
// 3.18), and that is how DHCP clients and the like write resolv.conf. Where it is
// a symbolic link that is replaced, no mount goes, but a name in /etc changes.
func (c *pauseConfig) keepFiles(lifeline, mounts, names int) error {
	// The event comes while the kernel still takes the mount away, and a file
	// may be missing for a while: looked at again until all is well a few times
	// in a row, ever more seldom.
	const first, last, enough = 50, 1600, 4 // ms, ms, times
	again, well := first, 0
	idle := -1
	if names < 0 {
		idle = 10_000 // ms; then a replaced link is only seen by looking
	}
	fds := []unix.PollFd{
		{Fd: int32(lifeline), Events: unix.POLLIN},
		{Fd: int32(mounts), Events: unix.POLLPRI}, // the mounts changed, proc(5)
		{Fd: int32(names), Events: unix.POLLIN},   // passed over if negative, poll(2)
	}
	events := make([]byte, 4096)
	for {
		timeout := again
		if well >= enough {
			timeout = idle
		}
		if _, err := unix.Poll(fds, timeout); err != nil && err != unix.EINTR {
			return fmt.Errorf("watching the mounts: %w", err)
		}
		if fds[0].Revents != 0 {
			return nil
		}
		well, again = well+1, min(2*again, last)
		if fds[1].Revents|fds[2].Revents != 0 {
			well, again = 0, first
		}
		if fds[2].Revents != 0 {
			_, _ = unix.Read(names, events) // which ones does not matter
		}
		for target, source := range c.Files {
			if !sameFile(target, source) {
				_ = bind(source, target) // next time, if not now
				well = 0
			}
		}
	}
}

// watchNames makes an inotify instance that tells of names that come or go in
// dir. It is -1 if there are no more to be had (fs.inotify.max_user_instances).
func watchNames(dir string) int {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return -1
	}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MOVED_TO|unix.IN_CREATE|unix.IN_DELETE); err != nil {
		_ = unix.Close(fd)
		return -1
	}
	return fd
}

func sameFile(a, b string) bool {
	x, err1 := os.Stat(a)
	y, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

func (c *pauseConfig) apply() error {
	// From the host mounts still come in, none goes out.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("detaching the mount namespace: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting /proc for the pod: %w", err)
	}
	// Other pods' namespaces, which this one must not keep alive; what is under
	// their mounts are plain files that iproute2 stumbles over.
	if err := unix.Unmount(netnsDir, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("unmounting %s in the pod: %w", netnsDir, err)
	}
	if err := hide(netnsDir); err != nil {
		return err
	}
	if err := c.mountSys(); err != nil {
		return err
	}
	for target, source := range c.Files {
		err := bind(source, target)
		if errors.Is(err, fs.ErrNotExist) && target != resolvConf {
			delete(c.Files, target) // the host has none to be mistaken for the pod's
			continue
		}
		if err != nil {
			return err
		}
	}
	// The socket of the host's name service cache: glibc asks it before
	// anything else, and it looks names up in the host's network.
	if err := hide("/run/nscd"); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(c.Hostname)); err != nil {
		return fmt.Errorf("setting the pod's host name: %w", err)
	}
	return nil
}

// bind puts the file source over target, behind symbolic links: a host that
// runs systemd-resolved has one at /etc/resolv.conf.
func bind(source, target string) error {
	real, err := filepath.EvalSymlinks(target)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the host has no %s to put the pod's over: create an empty one: %w", target, err)
	}
	if err == nil {
		err = unix.Mount(source, real, "", unix.MS_BIND, "")
	}
	if err != nil {
		return fmt.Errorf("putting the pod's %s in place: %w", target, err)
	}
	return nil
}

// mountSys shows the pod's own interfaces in /sys, and leaves the rest of it,
// such as the control groups mounted below, as it is. sysfs fixes the network
// namespace when it is mounted, so a fresh one is needed to take the two
// directories from.
func (c *pauseConfig) mountSys() error {
	if err := unix.Mount("sysfs", c.Scratch, "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting sysfs for the pod: %w", err)
	}
	for _, dir := range []string{"class/net", "devices/virtual/net"} {
		target := filepath.Join("/sys", dir)
		if err := unix.Mount(filepath.Join(c.Scratch, dir), target, "", unix.MS_BIND, ""); err != nil && err != unix.ENOENT {
			return fmt.Errorf("mounting the pod's %s: %w", target, err)
		}
	}
	return unix.Unmount(c.Scratch, unix.MNT_DETACH)
}

// hide puts an empty directory over one of the host's, if that exists.
func hide(dir string) error {
	err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=4k,mode=755")
	if err != nil && err != unix.ENOENT {
		return fmt.Errorf("hiding %s from the pod: %w", dir, err)
	}
	return nil
}
