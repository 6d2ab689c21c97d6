package rootless

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Enter puts this program, with the same arguments, into the namespaces of an
// instance. It returns only if that fails.
//
// A process of several threads, as every Go program is from its start, cannot
// enter a user namespace (setns(2)): nsenter, of util-linux, does it.
func (i Instance) Enter() error {
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return errors.New("rootless: nsenter is not in PATH: install util-linux to enter the running instance")
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("rootless: find this program's own path: %w", err)
	}
	wd, err := os.Getwd()
	if err != nil {
		wd = "/"
	}
	argv := append([]string{nsenter, "--target", strconv.Itoa(i.PID), "--user", "--preserve-credentials", "--mount", "--net", "--pid", "--", self}, os.Args[1:]...)
	vars := append(os.Environ(), env+"="+envInside, wdEnv+"="+wd)
	if err := unix.Exec(nsenter, argv, vars); err != nil {
		return fmt.Errorf("rootless: %s: %w", nsenter, err)
	}
	return nil
}

// Entered is called by a process that Enter started: it ends when nsenter, its
// parent, is ended.
func Entered() {
	wd, entered := os.LookupEnv(wdEnv)
	if !entered {
		return
	}
	_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0)
	// The directory is there in this mount namespace too; the one that came with
	// the process is of another.
	if os.Chdir(wd) != nil {
		_ = os.Chdir("/")
	}
	_ = os.Unsetenv(wdEnv)
}

// wdEnv is the working directory of who enters.
const wdEnv = "RUTTER_ROOTLESS_WD"

// Shell replaces this process by a shell of the user's with KUBECONFIG set; in
// an instance's namespaces the cluster's DNS is its resolver. It returns only if
// that fails.
func (i Instance) Shell(args []string) error {
	runtime.LockOSThread() // whose mount namespace it is
	if Inside() {
		if err := i.resolver(); err != nil {
			return err
		}
	}
	if len(args) == 0 {
		shell := os.Getenv("SHELL")
		if shell == "" {
			shell = "/bin/sh"
		}
		args = []string{shell}
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return fmt.Errorf("rootless: %w", err)
	}
	vars := append(os.Environ(), "KUBECONFIG="+i.Kubeconfig)
	if err := unix.Exec(path, args, vars); err != nil {
		return fmt.Errorf("rootless: %s: %w", path, err)
	}
	return nil
}

// resolver puts a resolv.conf over the host's, for this process only.
func (i Instance) resolver() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("rootless: make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("rootless: detach the mount namespace: %w", err)
	}
	var b strings.Builder
	for _, a := range i.ClusterDNS {
		fmt.Fprintln(&b, "nameserver", a)
	}
	fmt.Fprintf(&b, "search default.svc.%[1]s svc.%[1]s %[1]s\noptions ndots:5\n", i.Domain)
	f, err := os.CreateTemp("/run", "resolv.conf-")
	if err != nil {
		return fmt.Errorf("rootless: write resolv.conf: %w", err)
	}
	defer os.Remove(f.Name())
	if _, err := f.WriteString(b.String()); err != nil {
		return fmt.Errorf("rootless: write resolv.conf: %w", err)
	}
	if err := errors.Join(f.Chmod(0o644), f.Close()); err != nil {
		return fmt.Errorf("rootless: write resolv.conf: %w", err)
	}
	real, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		return nil // the host has none
	}
	if err := unix.Mount(f.Name(), real, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("rootless: put resolv.conf in place: %w", err)
	}
	return nil
}
