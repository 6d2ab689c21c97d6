// Package up brings the whole system up on one host: the registry, the agent
// and, on request, a demo. It keeps the programs running, and takes everything
// down when it is told to end.
package up

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/rutter-project/rutter/internal/agent"
	"github.com/rutter-project/rutter/internal/kubeapi"
	"github.com/rutter-project/rutter/internal/node/pod"
	"github.com/rutter-project/rutter/internal/node/sandbox"
	"github.com/rutter-project/rutter/internal/rootless"
)

// Config says what to bring up. All fields are set; the command line has the
// defaults.
type Config struct {
	RunDir, DataDir string
	NodeName        string
	NodeIP          []netip.Addr // empty: found by the agent
	ServiceCIDR     string       // one range, or two separated by a comma
	PodCIDR         string
	ClusterDomain   string
	ClusterDNS      []netip.Addr
	NodeLocalDNS    netip.Addr
	APIPort         int
	Corefile        string
	LogLevel        string
	LogFormat       string
	Registry        string   // path of rutter-registry; empty: beside rutter, or in PATH
	RegistryFlags   []string // passed on: the external etcd
	Demo            bool
	Rootless        rootless.Mode // empty: as root
	Out             io.Writer     // progress and tables
	Terminal        bool          // Out is a terminal
	Log             *slog.Logger
}

// readyBound is how long the registry and the agent may take to start. Two busy
// cores with a slow disk have needed half a minute.
const readyBound = 3 * time.Minute

// Up is one running system.
type Up struct {
	cfg      Config
	self     string
	progress *progress
	held     *os.File // the lock
	killed   bool     // an earlier up was, whose children may have only just ended
}

// Run brings the system up, keeps it up until ctx ends, and takes it down.
func Run(ctx context.Context, cfg Config) (err error) {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program's own path: %w", err)
	}
	// What is printed is used in other terminals, which are elsewhere.
	for _, dir := range []*string{&cfg.RunDir, &cfg.DataDir} {
		if *dir, err = filepath.Abs(*dir); err != nil {
			return err
		}
	}
	u := &Up{cfg: cfg, self: self, progress: &progress{w: cfg.Out, tty: cfg.Terminal}}
	unlock, err := u.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := u.settled(ctx, agent.Alone); err != nil && cfg.Rootless != rootless.Userspace {
		// What lock made goes again; a directory that is in use is not empty.
		for _, path := range []string{u.held.Name(), cfg.RunDir, cfg.DataDir} {
			_ = os.Remove(path)
		}
		return err
	}
	registryBin, err := u.findRegistry()
	if err != nil {
		return err
	}
	if err := u.settled(ctx, u.portFree); err != nil {
		return err
	}
	fmt.Fprintf(cfg.Out, "rutter up: data in %s, runtime files and logs in %s\n", cfg.DataDir, cfg.RunDir)

	// What was started is taken down in the opposite order, whatever ctx says
	// by then.
	var undo []func()
	defer func() {
		u.progress.abort()
		if ctx.Err() != nil { // what failed then failed because of it
			err = nil
			fmt.Fprintln(cfg.Out, "\ntaking everything down (a second Ctrl-C leaves the rest to the next `rutter up`) …")
		}
		for i := len(undo) - 1; i >= 0; i-- {
			undo[i]()
		}
		u.cleanup(err != nil)
		if err == nil {
			fmt.Fprintln(cfg.Out, "  everything is down")
		}
	}()

	u.progress.begin("registry", "starting the API server and its store")
	registry := u.child("registry", registryBin, u.registryArgs()...)
	stopRegistry, registryEnded := u.start(registry)
	undo = append(undo, stopRegistry)
	api, err := u.awaitAPI(ctx, registryEnded)
	if err != nil {
		return err
	}
	close(registry.ready)
	if err := u.publishKubeconfig(); err != nil {
		return err
	}
	u.progress.end(fmt.Sprintf("ready on https://127.0.0.1:%d", cfg.APIPort))
	if err := u.removeOldPods(ctx, api); err != nil {
		return err
	}

	if err := u.ensureDNSService(ctx, api); err != nil {
		return err
	}

	u.progress.begin("agent", "starting")
	ag := u.child("agent", u.self, u.agentArgs()...)
	stopAgent, agentEnded := u.start(ag)
	undo = append(undo, stopAgent)
	if err := u.awaitAgent(ctx, agentEnded); err != nil {
		return err
	}
	close(ag.ready)
	u.progress.end("ready, DNS on " + u.dnsAddresses())

	undo = append(undo, u.stopPods)
	if cfg.Demo {
		u.progress.begin("demo", "starting five pods")
		if err := u.startDemo(ctx, api); err != nil {
			return err
		}
		u.progress.end("five pods ready")
	}
	if err := u.printServices(ctx, api); err != nil {
		return err
	}
	u.printHints()

	select {
	case <-ctx.Done():
		return nil
	case err := <-registryEnded:
		return err
	case err := <-agentEnded:
		return err
	}
}

// lock makes the directories and sees to it that one up at a time uses them.
// The children inherit the lock: if an earlier up was killed, it is free when
// the last of its children has ended.
func (u *Up) lock(ctx context.Context) (unlock func(), err error) {
	for _, dir := range []string{u.cfg.RunDir, u.cfg.DataDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make directory: %w; choose others with --run-dir and --data-dir", err)
		}
	}
	f, err := os.OpenFile(filepath.Join(u.cfg.RunDir, "up.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	deadline := time.Now().Add(stopGrace)
	for syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		owner, _ := io.ReadAll(io.NewSectionReader(f, 0, 16))
		_, alive := os.Stat("/proc/" + string(owner))
		if len(owner) == 0 || alive == nil || time.Now().After(deadline) {
			f.Close()
			return nil, fmt.Errorf("another `rutter up` (process %s) uses %s: stop it first, a host has one", owner, u.cfg.RunDir)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	if owner, err := f.Stat(); err == nil {
		u.killed = owner.Size() > 0 // else it would have removed the file
	}
	if err := errors.Join(f.Truncate(0), writeAt(f, strconv.Itoa(os.Getpid()))); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock: %w", err)
	}
	u.held = f
	return func() { f.Close() }, nil
}

func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

func (u *Up) findRegistry() (string, error) {
	if u.cfg.Registry != "" {
		path, err := exec.LookPath(u.cfg.Registry)
		if err != nil {
			return "", fmt.Errorf("--registry: %w; `make build` makes bin/rutter-registry", err)
		}
		return path, nil
	}
	beside := filepath.Join(filepath.Dir(u.self), "rutter-registry")
	if _, err := os.Stat(beside); err == nil {
		return beside, nil
	}
	path, err := exec.LookPath("rutter-registry")
	if err != nil {
		return "", fmt.Errorf("rutter-registry is neither beside %s nor in PATH; build it with `make build`, or name it with --registry", u.self)
	}
	return path, nil
}

// settleTime bounds the end of a process, from its first closed file, the lock
// perhaps, to the last, such as a socket that listens.
const settleTime = 5 * time.Second

// settled is what check says once nothing of an earlier up is left that was
// killed.
func (u *Up) settled(ctx context.Context, check func() error) error {
	deadline := time.Now().Add(settleTime)
	for {
		err := check()
		if err == nil || !u.killed || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// portFree looks before anything is changed; the registry looks again.
func (u *Up) portFree() error {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", u.cfg.APIPort))
	if err != nil {
		return fmt.Errorf("port %d on 127.0.0.1 is taken (%w): stop what has it (ss -ltnp 'sport = :%[1]d' shows it), or choose another with --api-port", u.cfg.APIPort, err)
	}
	return l.Close()
}

// removeOldPods ends and removes what an earlier up left that was killed: pods
// that live on, what dead ones left on the host, and their objects.
func (u *Up) removeOldPods(ctx context.Context, api *kubeapi.Client) error {
	old, err := sandbox.List(u.cfg.RunDir)
	if err != nil {
		return err
	}
	if len(old) > 0 {
		u.stopPods()
	}
	if _, err := pod.Sweep(ctx, pod.SweepConfig{RunDir: u.cfg.RunDir, NodeName: u.cfg.NodeName, Client: api, Ended: true}); err != nil {
		return fmt.Errorf("remove what an earlier run left: %w", err)
	}
	return nil
}

// logDir is the directory in the run directory that has the children's logs.
const logDir = "log"

func (u *Up) logFile(program string) string {
	return filepath.Join(u.cfg.RunDir, logDir, program+".log")
}

func (u *Up) child(name, path string, args ...string) *child {
	return &child{name: name, path: path, args: args, log: u.logFile(name), slog: u.cfg.Log, lock: u.held, ready: make(chan struct{})}
}

// start runs the child; ended gets the reason if it ends before it was ready.
// stop says what it does, as it may take its time.
func (u *Up) start(c *child) (stop func(), ended chan error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended = make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := c.run(ctx); err != nil {
			ended <- err
		}
	}()
	return func() {
		u.progress.begin(c.name, "stopping")
		cancel()
		<-done
		u.progress.end("stopped")
	}, ended
}

func (u *Up) registryArgs() []string {
	return append([]string{
		"--data-dir", filepath.Join(u.cfg.DataDir, "registry"),
		"--secure-port", fmt.Sprint(u.cfg.APIPort),
		"--service-cidr", u.cfg.ServiceCIDR,
		"--pod-cidr", u.cfg.PodCIDR,
		"--cluster-domain", u.cfg.ClusterDomain,
		"--log-level", u.cfg.LogLevel,
		"--log-format", u.cfg.LogFormat,
	}, u.cfg.RegistryFlags...)
}

func (u *Up) agentArgs() []string {
	args := []string{"agent",
		"--kubeconfig", u.agentKubeconfig(),
		"--run-dir", u.cfg.RunDir,
		"--data-dir", u.cfg.DataDir,
		"--node-name", u.cfg.NodeName,
		"--cluster-domain", u.cfg.ClusterDomain,
		"--cluster-cidr", u.cfg.PodCIDR,
		"--service-cidr", u.cfg.ServiceCIDR,
		"--node-local-dns", u.cfg.NodeLocalDNS.String(),
		"--log-level", u.cfg.LogLevel,
		"--log-format", u.cfg.LogFormat,
	}
	for _, a := range u.cfg.ClusterDNS {
		args = append(args, "--cluster-dns", a.String())
	}
	for _, a := range u.cfg.NodeIP {
		args = append(args, "--node-ip", a.String())
	}
	if u.cfg.Rootless == rootless.Userspace {
		args = append(args, "--loopback")
	}
	if u.cfg.Corefile != "" {
		args = append(args, "--corefile", u.cfg.Corefile)
	}
	return args
}

func (u *Up) agentKubeconfig() string { return filepath.Join(u.cfg.RunDir, kubeapi.AgentKubeconfig) }
func (u *Up) adminKubeconfig() string {
	return filepath.Join(u.cfg.DataDir, "registry", "admin.kubeconfig")
}

func (u *Up) awaitAPI(ctx context.Context, ended <-chan error) (*kubeapi.Client, error) {
	var last error
	deadline := time.After(readyBound)
	for {
		cfg, err := kubeapi.Load(u.adminKubeconfig())
		if err == nil {
			// An earlier registry may have left its file: what counts is
			// whether this one answers to it.
			var api *kubeapi.Client
			if api, err = kubeapi.New(cfg); err == nil {
				if err = api.Ready(ctx); err == nil {
					return api, nil
				}
			}
		}
		last = err
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case err := <-ended:
			return nil, err
		case <-deadline:
			return nil, fmt.Errorf("the registry is not ready after %s: %w (log: %s)", readyBound, last, u.logFile("registry"))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// publishKubeconfig puts the agent's identity where the agent and `rutter run`
// look for it.
func (u *Up) publishKubeconfig() error {
	b, err := os.ReadFile(filepath.Join(u.cfg.DataDir, "registry", "agent.kubeconfig"))
	if err != nil {
		return fmt.Errorf("read the agent's kubeconfig: %w", err)
	}
	tmp := u.agentKubeconfig() + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("write the agent's kubeconfig: %w", err)
	}
	if err := os.Rename(tmp, u.agentKubeconfig()); err != nil {
		return fmt.Errorf("write the agent's kubeconfig: %w", err)
	}
	return nil
}

// ensureDNSService registers the cluster's DNS address under the name that
// clusters have for it, so that it is allocated to nothing else.
func (u *Up) ensureDNSService(ctx context.Context, api *kubeapi.Client) error {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Name: "kube-dns", Namespace: metav1.NamespaceSystem,
			Labels: map[string]string{"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "Rutter"},
		},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{
			{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53, TargetPort: intstr.FromInt32(53)},
			{Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: 53, TargetPort: intstr.FromInt32(53)},
		}},
	}
	for _, a := range u.cfg.ClusterDNS {
		s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, a.String())
	}
	s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	if len(s.Spec.ClusterIPs) > 1 {
		policy := corev1.IPFamilyPolicyRequireDualStack
		s.Spec.IPFamilyPolicy = &policy
	}
	old, err := api.Services(s.Namespace).Get(ctx, s.Name)
	switch {
	case apierrors.IsNotFound(err):
		_, err = api.Services(s.Namespace).Create(ctx, s)
		if err != nil {
			return fmt.Errorf("register the cluster DNS address %s: %w; it must lie in --service-cidr", s.Spec.ClusterIP, api.Explain(err))
		}
		return nil
	case err != nil:
		return fmt.Errorf("register the cluster DNS address: %w", api.Explain(err))
	case old.Spec.ClusterIP != s.Spec.ClusterIP:
		return fmt.Errorf("the stored data in %s has cluster DNS on %s, --cluster-dns says %s; use that address, or another --data-dir", u.cfg.DataDir, old.Spec.ClusterIP, s.Spec.ClusterIP)
	}
	return nil
}

func (u *Up) awaitAgent(ctx context.Context, ended <-chan error) error {
	deadline := time.After(readyBound)
	for {
		s, err := agent.FetchStatus(ctx, filepath.Join(u.cfg.RunDir, agent.Socket))
		if err == nil && s.Ready {
			return nil
		}
		if err == nil {
			u.progress.waiting(s.Waiting)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-ended:
			return err
		case <-deadline:
			return fmt.Errorf("the agent is not ready after %s: it waits for %s (log: %s)", readyBound, s.Waiting, u.logFile("agent"))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stopPods stops every pod on the host, the user's too: without registry and
// agent they have neither names nor addresses.
func (u *Up) stopPods() {
	u.progress.begin("pods", "stopping")
	pods, err := sandbox.List(u.cfg.RunDir)
	if err != nil {
		u.cfg.Log.Error("pods not listed", "error", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	n := 0
	for _, p := range pods {
		if !p.Live {
			continue
		}
		n++
		wg.Go(func() {
			out, err := exec.CommandContext(ctx, u.self, "stop", "--run-dir", u.cfg.RunDir, "--kubeconfig", u.agentKubeconfig(), "--namespace", p.Namespace, "--time", "2s", p.Name).CombinedOutput()
			if err != nil {
				u.cfg.Log.Error("pod not stopped", "pod", p.Namespace+"/"+p.Name, "error", err, "output", string(out))
			}
		})
	}
	wg.Wait()
	u.progress.end(fmt.Sprintf("%d stopped", n))
}

// cleanup runs last: nothing of this run stays on the host but its data and, if
// it failed, the logs that its error names.
func (u *Up) cleanup(failed bool) {
	u.progress.begin("host", "removing tables, routes and addresses")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, u.self, append(u.agentArgs(), "--cleanup")...).CombinedOutput()
	if err != nil {
		u.cfg.Log.Error("the dataplane was not removed", "error", err, "output", string(out))
	}
	if _, err := sandbox.Sweep(ctx, u.cfg.RunDir, true); err != nil {
		u.cfg.Log.Error("pods left something behind", "error", err)
	}
	if err := u.emptyRunDir(failed); err != nil {
		u.cfg.Log.Error("run directory not removed", "error", err)
	}
	u.progress.end("clean")
}

// emptyRunDir removes the run directory, or all in it but the logs. All that is
// in it is ours.
func (u *Up) emptyRunDir(keepLogs bool) error {
	if !keepLogs {
		err := os.RemoveAll(u.cfg.RunDir)
		if errors.Is(err, syscall.EBUSY) {
			return nil // a mount point, and empty now
		}
		return err
	}
	entries, err := os.ReadDir(u.cfg.RunDir)
	for _, e := range entries {
		if e.Name() != logDir {
			err = errors.Join(err, os.RemoveAll(filepath.Join(u.cfg.RunDir, e.Name())))
		}
	}
	return err
}
