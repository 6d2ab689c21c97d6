package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// initialize is the guest's first process: it makes the machine ready, runs
// the program, tells its exit status and switches the machine off.
func initialize() {
	status, err := guest()
	if err != nil {
		fmt.Println("qemu: in the guest:", err)
		status = 125
	}
	fmt.Printf("\n%s%d\n", endMark, status)
	// What was printed must be out before the power is.
	time.Sleep(50 * time.Millisecond)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

func guest() (int, error) {
	for _, m := range []struct{ what, where string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := unix.Mount(m.what, m.where, m.what, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return 0, fmt.Errorf("mount %s: %w", m.where, err)
		}
	}
	fmt.Printf("\n%s\n", beginMark)
	os.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
	os.Setenv("HOME", "/root")
	text, err := os.ReadFile(jobFile)
	if err != nil {
		return 0, err
	}
	var j job
	if err := json.Unmarshal(text, &j); err != nil {
		return 0, err
	}
	if err := network(); err != nil {
		return 0, fmt.Errorf("set up the network: %w", err)
	}
	for _, port := range j.Forward {
		if err := forward(port); err != nil {
			return 0, err
		}
	}
	cmd := exec.Command(j.Args[0], j.Args[1:]...)
	cmd.Env = append(os.Environ(), j.Env...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = j.Dir, os.Stdout, os.Stdout
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.Exited():
		return exit.ExitCode(), nil
	case exit != nil:
		fmt.Println("qemu:", err)
		return 1, nil
	}
	return 0, err
}

// network brings up loopback and the interface to the host: qemu's user
// network, where the guest is 10.0.2.15 and the host 10.0.2.2.
func network() error {
	for _, m := range []string{"virtio_pci", "virtio_net"} {
		// Some kernels have them built in.
		if err := modprobe([]string{m}); err != nil && !errors.Is(err, errNoModule) {
			return err
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	// The device appears a moment after its driver.
	var eth netlink.Link
	for range 500 {
		if eth, err = netlink.LinkByName("eth0"); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr("10.0.2.15/24")
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrAdd(eth, addr), netlink.LinkSetUp(eth),
		netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: net.IPv4(10, 0, 2, 2)}))
}

// forward makes a port of the host's loopback reachable at the guest's.
func forward(port string) error {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		return err
	}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go relay(in, net.JoinHostPort("10.0.2.2", port))
		}
	}()
	return nil
}

func relay(in net.Conn, addr string) {
	defer in.Close()
	out, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer out.Close()
	go func() {
		_, _ = io.Copy(out, in)
		_ = out.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(in, out)
}
