// Package nodetest lets the tests of a package work on a host of their own:
// the whole test program runs in fresh network and mount namespaces, with an
// empty /run, so that nothing it does can be seen outside, or stay.
package nodetest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const marker = "RUTTER_TEST_NAMESPACE"

// Main is for TestMain: os.Exit(nodetest.Main(m)).
func Main(m *testing.M) int {
	if os.Geteuid() != 0 || os.Getenv(marker) != "" {
		if os.Getenv(marker) != "" {
			if err := prepare(); err != nil {
				fmt.Fprintln(os.Stderr, "preparing the tests' namespaces:", err)
				return 1
			}
		}
		return m.Run()
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), marker+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return exit.ExitCode()
	case errors.Is(err, unix.EPERM):
		// Root without the right to make namespaces: the tests say so one by
		// one.
		return m.Run()
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

func prepare() error {
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mounting /run: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// Need skips a test that needs the namespaces where there are none.
func Need(t testing.TB) {
	t.Helper()
	if os.Getenv(marker) == "" {
		t.Skip("needs root, or CAP_SYS_ADMIN and CAP_NET_ADMIN, to make namespaces")
	}
}
