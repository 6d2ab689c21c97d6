// Package sandbox makes the place a pod's process runs in: a network namespace
// joined to the host by a veth pair, an address from the node's pod CIDRs, and
// mount, PID, UTS and IPC namespaces with the pod's own resolv.conf, hosts file
// and host name over the host's files.
//
// Everything it makes is named so that Sweep finds it again after a crash: the
// directory in the run directory, the interface (prefix and alias), the network
// namespace (rutter-NAMESPACE-POD below /run/netns).
package sandbox

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/node/route"
)

const (
	resolvConf = "/etc/resolv.conf"
	// selfPath is this program, also after its file was replaced.
	selfPath = "/proc/self/exe"
)

// Config is what a sandbox is made from.
type Config struct {
	RunDir    string
	Namespace string
	Pod       string
	Command   []string // for the record only
	// PodCIDRs is one prefix per family; the pod gets an address of each.
	PodCIDRs []netip.Prefix
	// Shared are the host's own addresses. If set, the pod is a plain process of
	// the host that uses them: no privilege is needed, and nothing is its own.
	Shared []netip.Addr
}

// Files are the texts a pod sees in place of the host's files.
type Files struct {
	Hostname   string // also the kernel's node name
	Hosts      string
	ResolvConf string
	NSSwitch   string // empty leaves the host's
}

// Sandbox is one pod's. It is used in steps: Claim, Build, any number of Start,
// then Remove, which may follow any of them and be repeated.
type Sandbox struct {
	Record Record
	Dir    *Dir

	cfg      Config
	pause    *os.Process
	pidfd    int
	lifeline *os.File
	undo     undo
	shared   shared
}

// Claim takes a directory and addresses for a pod. From here on the pod is
// known to List, and a sweep takes it away should this process die.
func Claim(cfg Config) (*Sandbox, error) {
	if cfg.Shared == nil {
		if err := CheckPrivilege(); err != nil {
			return nil, err
		}
	}
	// Paths are given to processes that are elsewhere.
	runDir, err := filepath.Abs(cfg.RunDir)
	if err != nil {
		return nil, fmt.Errorf("finding the run directory: %w", err)
	}
	cfg.RunDir = runDir
	if cfg.Shared != nil {
		return claimShared(cfg)
	}
	if len(cfg.PodCIDRs) == 0 {
		return nil, errors.New("the node has no pod CIDR: the agent sets it (--pod-cidr)")
	}
	for _, cidr := range cfg.PodCIDRs {
		if cidr.Addr().BitLen()-cidr.Bits() < 2 {
			return nil, fmt.Errorf("pod CIDR %s has no room for pods: give the node a larger one (--pod-cidr of the agent)", cidr)
		}
	}
	if err := route.CheckCollision("pod CIDR", "--pod-cidr", cfg.PodCIDRs...); err != nil {
		return nil, err
	}
	unlock, err := lockRunDir(cfg.RunDir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	used, err := usedAddresses(cfg.RunDir)
	if err != nil {
		return nil, err
	}
	addrs, err := allocate(cfg.RunDir, cfg.PodCIDRs, used)
	if err != nil {
		return nil, err
	}
	id := newID()
	dir, err := makeDir(cfg.RunDir, id)
	if err != nil {
		return nil, err
	}
	s := &Sandbox{Dir: dir, cfg: cfg, pidfd: -1, Record: Record{
		ID: id, Namespace: cfg.Namespace, Name: cfg.Pod, NetNS: netnsName(cfg.Namespace, cfg.Pod),
		Link: linkPrefix + id, Addrs: addrs, Command: cfg.Command, Created: time.Now(), Phase: "Pending",
	}}
	if err := s.Save(); err != nil {
		return nil, errors.Join(err, dir.Remove())
	}
	return s, nil
}

// netnsName is what `ip netns` shows for a pod, cut to what a file name holds
// with a sandbox's ID behind it.
func netnsName(namespace, pod string) string {
	const room = 255 - 1 - idLength
	name := "rutter-" + namespace + "-" + pod
	return name[:min(len(name), room)]
}

// usedAddresses are those of all pods whose sandbox is still there, and those
// the kernel still routes to a pod, in case the run directory was lost.
func usedAddresses(runDir string) (map[netip.Addr]bool, error) {
	pods, err := List(runDir)
	if err != nil {
		return nil, err
	}
	used := make(map[netip.Addr]bool)
	for _, p := range pods {
		if p.Ended() {
			continue
		}
		for _, a := range p.Addrs {
			used[a] = true
		}
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: route.Protocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return nil, fmt.Errorf("listing routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		if a, ok := netip.AddrFromSlice(r.Dst.IP); ok {
			used[a.Unmap()] = true
		}
	}
	return used, nil
}

// Save writes the record to disk.
func (s *Sandbox) Save() error {
	if err := s.Dir.Save(&s.Record); err != nil {
		return fmt.Errorf("saving the pod's record: %w", err)
	}
	return nil
}

// Build makes namespaces, links, addresses, routes and mounts. On error it has
// taken back what it made; the claim stays until Remove.
func (s *Sandbox) Build(ctx context.Context, files Files) (err error) {
	if s.Record.Shared {
		return nil
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.undo.run())
		}
	}()
	err = makeNetNS(s.Record.NetNS)
	if errors.Is(err, fs.ErrExist) {
		// A pod of that name is still ending, or the name reads the same as
		// another's: namespace a-b, pod c and namespace a, pod b-c.
		s.Record.NetNS += "-" + s.Record.ID
		if err := s.Save(); err != nil {
			return err
		}
		err = makeNetNS(s.Record.NetNS)
	}
	if err != nil {
		return err
	}
	s.undo.push(func() error { return removeNetNS(s.Record.NetNS) })

	n := network{alias: alias(s.cfg.RunDir, s.Record.ID), link: s.Record.Link, netns: s.Record.NetNS, addrs: s.Record.Addrs, mtu: route.MTU()}
	for _, cidr := range s.cfg.PodCIDRs {
		n.gates = append(n.gates, Gateway(cidr))
	}
	if err := n.add(); err != nil {
		return err
	}
	s.undo.push(func() error { return removeLink(s.Record.Link) })

	bound, err := s.write(files)
	if err != nil {
		return fmt.Errorf("writing the pod's files: %w", err)
	}
	s.undo.push(s.stopPause)
	return s.startPause(ctx, pauseConfig{Hostname: files.Hostname, Files: bound, Scratch: s.Dir.File("mnt")})
}

// write puts the texts into the pod's directory and tells what goes where.
func (s *Sandbox) write(f Files) (map[string]string, error) {
	bound := make(map[string]string)
	for target, text := range map[string]string{
		resolvConf:           f.ResolvConf,
		"/etc/hosts":         f.Hosts,
		"/etc/hostname":      f.Hostname + "\n",
		"/etc/nsswitch.conf": f.NSSwitch,
	} {
		if text == "" && target != resolvConf {
			continue
		}
		source := s.Dir.File(target[strings.LastIndexByte(target, '/')+1:])
		if err := os.WriteFile(source, []byte(text), 0o644); err != nil {
			return nil, err
		}
		bound[target] = source
	}
	return bound, os.Mkdir(s.Dir.File("mnt"), 0o700)
}

// startPause starts the pause process in new namespaces and waits until it has
// laid them out.
func (s *Sandbox) startPause(ctx context.Context, c pauseConfig) error {
	settings, err := json.Marshal(c)
	if err != nil {
		return err
	}
	lifelineIn, lifeline, err := os.Pipe()
	if err != nil {
		return err
	}
	defer lifelineIn.Close()
	s.lifeline = lifeline
	report, reportIn, err := os.Pipe()
	if err != nil {
		return err
	}
	defer report.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return errors.Join(err, reportIn.Close())
	}
	defer null.Close()

	// The last word is for people who read ps.
	argv := []string{"rutter", PauseCommand, s.Record.Namespace + "/" + s.Record.Name}
	err = onThread(func() (err error) {
		if err := s.enterNetNS(); err != nil {
			return err
		}
		s.pause, err = os.StartProcess(selfPath, argv, &os.ProcAttr{
			Env:   append(os.Environ(), "GOMAXPROCS=1"),
			Files: []*os.File{null, reportIn, null, lifelineIn},
			Sys: &syscall.SysProcAttr{
				Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
				Setsid:     true,
			},
		})
		return err
	})
	err = errors.Join(err, reportIn.Close())
	if err != nil {
		return fmt.Errorf("starting the pod's first process: %w", err)
	}
	if s.pidfd, err = unix.PidfdOpen(s.pause.Pid, 0); err != nil {
		return fmt.Errorf("holding the pod's first process: %w", err)
	}
	if _, err := lifeline.Write(append(settings, '\n')); err != nil {
		return fmt.Errorf("starting the pod's first process: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = report.SetReadDeadline(time.Now()) })
	defer stop()
	answer, err := bufio.NewReader(report).ReadString('\n')
	switch answer = strings.TrimSpace(answer); {
	case answer == "ok":
		return nil
	case answer != "":
		return errors.New(answer)
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return fmt.Errorf("the pod's first process ended at once: %w", err)
}

func (s *Sandbox) enterNetNS() error {
	ns, err := os.Open(netnsDir + "/" + s.Record.NetNS)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering network namespace %s: %w", s.Record.NetNS, err)
	}
	return nil
}

// stopPause kills the pause process, and with it everything in the pod, and
// waits until it is gone.
func (s *Sandbox) stopPause() error {
	var errs []error
	if s.lifeline != nil {
		errs = append(errs, s.lifeline.Close())
		s.lifeline = nil
	}
	if s.pause != nil {
		if err := s.pause.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, fmt.Errorf("killing the pod: %w", err))
		}
		_, err := s.pause.Wait()
		errs = append(errs, err)
		s.pause = nil
	}
	if s.pidfd >= 0 {
		errs = append(errs, unix.Close(s.pidfd))
		s.pidfd = -1
	}
	return errors.Join(errs...)
}

// Stop ends every process of the pod and takes its network away; the directory
// with its record and log stays.
func (s *Sandbox) Stop() error {
	s.killShared()
	return s.undo.run()
}

// Remove takes away all there is of the sandbox.
func (s *Sandbox) Remove() error {
	return errors.Join(s.Stop(), s.Dir.Remove())
}

// Kill ends every process of the pod at once. The sandbox stays.
func (s *Sandbox) Kill() error {
	s.killShared()
	if s.pause == nil {
		return nil
	}
	return s.pause.Kill()
}
