package main

import (
	"bufio"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine is an emulated machine.
type machine struct {
	kernel, initrd string
	memory         int
}

// What the guest prints before the program's output, and after it with the
// exit status.
const (
	beginMark = "==== rutter-qemu begins"
	endMark   = "==== rutter-qemu ends: "
)

// build makes the initial RAM file system.
func (m *machine) build(j job, files []string) error {
	out, err := os.Create(m.initrd)
	if err != nil {
		return err
	}
	defer out.Close()
	a := newArchive(out)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, d := range []string{"proc", "sys", "dev", "run", "tmp", "root", "var", "usr/sbin", "usr/bin", "usr/lib", "usr/lib64"} {
		a.dir("/" + d)
	}
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		a.symlink("/"+d, "usr/"+d)
	}
	a.file("/init", self)
	a.symlink("/usr/sbin/modprobe", "/init")
	text, err := json.Marshal(j)
	if err != nil {
		return err
	}
	a.text(jobFile, 0o644, text)
	a.dir(j.Dir)
	index, err := findModules(m.kernel)
	if err != nil {
		return err
	}
	for _, mod := range index {
		b, err := mod.read()
		if err != nil {
			return err
		}
		a.text(mod.path(), 0o644, b)
	}
	if text, err = json.Marshal(index); err != nil {
		return err
	}
	a.text(indexFile, 0o644, text)
	for _, f := range files {
		if err := addAll(a, f); err != nil {
			return err
		}
	}
	return a.close()
}

// addAll adds a file and what it needs: the target of a symbolic link, what is
// in a directory, the libraries of a program.
func addAll(a *archive, path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	if a.has(path) {
		return nil
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		a.symlink(path, target)
		if !filepath.IsAbs(target) {
			// Where the link's own directory is a link, too.
			dir, err := filepath.EvalSymlinks(filepath.Dir(path))
			if err != nil {
				return err
			}
			target = filepath.Join(dir, target)
		}
		return addAll(a, target)
	case info.IsDir():
		entries, err := os.ReadDir(path)
		if err != nil {
			return err
		}
		a.dir(path)
		for _, e := range entries {
			if err := addAll(a, filepath.Join(path, e.Name())); err != nil {
				return err
			}
		}
		return nil
	}
	a.file(path, path)
	for _, lib := range libraries(path) {
		if err := addAll(a, lib); err != nil {
			return err
		}
	}
	return nil
}

// libraries are those that a program or library is linked with.
func libraries(path string) (libs []string) {
	f, err := elf.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	if needed, err := f.ImportedLibraries(); err != nil || len(needed) == 0 {
		return nil
	}
	out, err := exec.Command("ldd", path).Output()
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(out)) {
		for _, w := range strings.Fields(line) {
			if strings.HasPrefix(w, "/") {
				libs = append(libs, w)
			}
		}
	}
	return libs
}

// run boots the machine and prints what the program prints. Some hosts have a
// /dev/kvm under which nothing gets anywhere (virtual machines without nested
// paging): who has not begun soon is started again without, and that is
// remembered beside the kernel.
func (m *machine) run(ctx context.Context) (status int, err error) {
	program, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return 0, errors.New("qemu-system-x86_64 is missing: install Debian's package qemu-system-x86")
	}
	verdict := filepath.Join(m.kernel, "accel")
	accel := os.Getenv("RUTTER_VM_ACCEL")
	if accel == "" {
		accel = "tcg"
		known, err := os.ReadFile(verdict)
		if kvm, err2 := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err2 == nil && (err != nil || string(known) == "kvm") {
			kvm.Close()
			status, err := m.boot(ctx, program, "kvm", kvmPatience)
			if !errors.Is(err, errNotBegun) {
				_ = os.WriteFile(verdict, []byte("kvm"), 0o644)
				return status, err
			}
			fmt.Fprintln(os.Stderr, "qemu: KVM does not work here, which takes longer")
		}
		_ = os.WriteFile(verdict, []byte("tcg"), 0o644)
	}
	return m.boot(ctx, program, accel, 0)
}

const kvmPatience = 15 * time.Second

var errNotBegun = errors.New("the machine did not get so far as to run the program")

func (m *machine) boot(ctx context.Context, program, accel string, patience time.Duration) (status int, err error) {
	kernels, _ := filepath.Glob(filepath.Join(m.kernel, "boot/vmlinuz-*"))
	if len(kernels) != 1 {
		return 0, fmt.Errorf("%s has %d kernels, need one (scripts/qemu.sh fetches it)", filepath.Join(m.kernel, "boot"), len(kernels))
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	cmd := exec.CommandContext(ctx, program, "-machine", "q35", "-cpu", "max", "-smp", "2", "-m", strconv.Itoa(m.memory), "-accel", accel,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", kernels[0], "-initrd", m.initrd,
		"-append", "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off random.trust_cpu=on",
		"-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile=")
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	if patience > 0 {
		t := time.AfterFunc(patience, func() { cancel(errNotBegun) })
		defer t.Stop()
		status, err = watch(out, func() { t.Stop() })
	} else {
		status, err = watch(out, func() {})
	}
	waited := cmd.Wait()
	switch {
	case status >= 0:
		return status, nil
	case ctx.Err() != nil:
		return 0, fmt.Errorf("stopped: %w", context.Cause(ctx))
	}
	return 0, errors.Join(err, waited)
}

// watch prints what the program prints and returns its exit status, or -1 with
// what the machine said.
func watch(out io.Reader, begun func()) (int, error) {
	var boot strings.Builder
	running, status := false, -1
	in := bufio.NewReader(out)
	for {
		line, err := in.ReadString('\n')
		line = strings.TrimRight(line, "\r\n")
		code, end := strings.CutPrefix(line, endMark)
		switch {
		case running && end:
			status, _ = strconv.Atoi(code)
		case strings.HasSuffix(line, beginMark):
			running = true
			begun()
		case !running:
			boot.WriteString(line + "\n")
		case status < 0 && (err == nil || line != ""):
			fmt.Println(line)
		}
		if err != nil {
			return status, fmt.Errorf("the machine ended before the program did\n%s", boot.String())
		}
	}
}
