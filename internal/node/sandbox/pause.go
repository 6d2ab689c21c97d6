package sandbox

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// The pause process is the first of a pod's PID namespace and what keeps its
// namespaces. Everything else in the pod is started by the supervisor from
// outside (see Sandbox.Start), so this one has three duties:
//
//  1. lay out the mounts, the host name and the network settings,
//  2. inherit orphans, which the kernel reaps for it,
//  3. end when its supervisor does, however that ends: the supervisor holds
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
	lifeline := bufio.NewReader(os.NewFile(lifelineFD, "lifeline"))
	line, err := lifeline.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("reading the sandbox's settings: %w", err)
	}
	var c pauseConfig
	if err := json.Unmarshal(line, &c); err != nil {
		return fmt.Errorf("reading the sandbox's settings: %w", err)
	}
	if err := c.apply(); err != nil {
		fmt.Println(err)
		return err
	}
	fmt.Println("ok")
	if err := os.Stdout.Close(); err != nil {
		return err
	}
	debug.FreeOSMemory()
	_, err = io.Copy(io.Discard, lifeline)
	return err
}

func (c *pauseConfig) apply() error {
	// From the host mounts still come in, none goes out.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("detaching the mount namespace: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting /proc for the pod: %w", err)
	}
	// Names of other pods' namespaces, which this one must not keep alive.
	if err := unix.Unmount(netnsDir, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("unmounting %s in the pod: %w", netnsDir, err)
	}
	if err := c.mountSys(); err != nil {
		return err
	}
	for target, source := range c.Files {
		if err := bind(source, target); err != nil {
			return err
		}
	}
	if err := hideNSCD(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(c.Hostname)); err != nil {
		return fmt.Errorf("setting the pod's host name: %w", err)
	}
	return nil
}

// bind puts the file source over target, behind symbolic links: a host that
// runs systemd-resolved has one at /etc/resolv.conf. A target the host lacks is
// passed over, except for resolv.conf: without it there is no DNS in the pod.
func bind(source, target string) error {
	real, err := filepath.EvalSymlinks(target)
	if errors.Is(err, fs.ErrNotExist) {
		if target == resolvConf {
			return fmt.Errorf("the host has no %s to put the pod's over: create an empty one", target)
		}
		return nil
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

// hideNSCD hides the socket of the host's name service cache, which glibc asks
// before anything else and which looks names up in the host's network.
func hideNSCD() error {
	for _, dir := range []string{"/run/nscd", "/var/run/nscd"} {
		info, err := os.Stat(dir)
		if err != nil || !info.IsDir() {
			continue
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=4k,mode=755"); err != nil {
			return fmt.Errorf("hiding %s from the pod: %w", dir, err)
		}
		return nil // the second is a link to the first
	}
	return nil
}
