// Package nodetest lets the tests of a package work on a host of their own:
// the whole test program runs in fresh network and mount namespaces, with an
// empty /run, so that nothing it does can be seen outside, or stay.
package nodetest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
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
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", marker, os.Getpid()))
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

// Processes lists the processes of this test program whose command line begins
// with prefix, by ID. They are known by the marker they inherit: other tests, or
// a real rutter, may run on the same host.
func Processes(t testing.TB, prefix string) map[int]string {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	mine := marker + "=" + os.Getenv(marker)
	out := make(map[int]string)
	for _, dir := range dirs {
		env, err1 := os.ReadFile(filepath.Join(dir, "environ"))
		line, err2 := os.ReadFile(filepath.Join(dir, "cmdline"))
		pid, err3 := strconv.Atoi(filepath.Base(dir))
		if errors.Join(err1, err2, err3) != nil || !slices.Contains(strings.Split(string(env), "\x00"), mine) {
			continue // gone meanwhile, or another's
		}
		command := strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " "))
		if strings.HasPrefix(command, prefix) {
			out[pid] = command
		}
	}
	return out
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
