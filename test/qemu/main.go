// Command qemu runs a program on Debian's kernel, in an emulated machine: for
// what the kernel of this host does not have, IPVS above all.
//
//	qemu -kernel DIR [-file PATH]... [-forward PORT]... [-env NAME]... PROGRAM [ARGUMENT]...
//
// DIR holds an unpacked kernel package (scripts/qemu.sh fetches one). The
// machine has no disk: everything is in its initial RAM file system, which is
// made here of the kernel's network modules, the program, the files, and the
// libraries that these need, each under the path that it has on the host.
// There this same program is /init and /sbin/modprobe. What PROGRAM prints is
// printed, its exit status is ours. It runs as root. A TCP port of the host's
// loopback can be forwarded: it is reached at the same port of the guest's.
//
// With KVM it takes two seconds more than the program itself; without (or with
// RUTTER_VM_ACCEL=tcg) ten, and everything is several times slower.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	switch {
	case os.Getpid() == 1:
		initialize()
	case filepath.Base(os.Args[0]) == "modprobe":
		if err := modprobe(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "modprobe:", err)
			os.Exit(1)
		}
	default:
		status, err := host()
		if err != nil {
			fmt.Fprintln(os.Stderr, "qemu:", err)
			os.Exit(125)
		}
		os.Exit(status)
	}
}

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return fmt.Sprint([]string(*l)) }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// job is what the guest gets to do; it finds it in the file jobFile.
type job struct {
	Args    []string
	Env     []string
	Dir     string
	Forward []string // ports
}

const jobFile = "/job.json"

func host() (status int, err error) {
	var files, env, forward list
	kernel := flag.String("kernel", "", "`directory` with an unpacked kernel package")
	flag.Var(&files, "file", "`path` of a file, or of a directory with all that is in it, that the program needs")
	flag.Var(&env, "env", "`name` of an environment variable that the program gets, or NAME=VALUE")
	flag.Var(&forward, "forward", "TCP `port` of the host's loopback to forward")
	memory := flag.Int("memory", 2048, "MiB of memory")
	timeout := flag.Duration("timeout", 20*time.Minute, "how long it may take")
	flag.Parse()
	if *kernel == "" || flag.NArg() == 0 {
		flag.Usage()
		return 0, errors.New("need -kernel and a program")
	}
	j := job{Args: flag.Args(), Forward: forward}
	if j.Args[0], err = filepath.Abs(j.Args[0]); err != nil {
		return 0, err
	}
	if j.Dir, err = os.Getwd(); err != nil {
		return 0, err
	}
	for _, e := range env {
		j.Env = append(j.Env, assignment(e))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	dir, err := os.MkdirTemp("", "rutter-qemu-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	m := machine{kernel: *kernel, initrd: filepath.Join(dir, "initrd"), memory: *memory}
	if err := m.build(j, append(files, j.Args[0])); err != nil {
		return 0, fmt.Errorf("make the guest's file system: %w", err)
	}
	return m.run(ctx)
}

func assignment(e string) string {
	for i := range e {
		if e[i] == '=' {
			return e
		}
	}
	return e + "=" + os.Getenv(e)
}
