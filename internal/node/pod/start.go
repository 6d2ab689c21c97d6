package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/kubeapi"
	"github.com/rutter-project/rutter/internal/node/probe"
	"github.com/rutter-project/rutter/internal/node/resolvconf"
	"github.com/rutter-project/rutter/internal/node/sandbox"
	"github.com/rutter-project/rutter/internal/node/serviceenv"
	"github.com/rutter-project/rutter/internal/proxy/userspace"
)

// What the agent writes on its Node for the pods there, and what is assumed
// without it.
const (
	ClusterDNSAnnotation    = "rutter.io/cluster-dns" // addresses, comma-separated
	ClusterDomainAnnotation = "rutter.io/cluster-domain"

	// SharedAnnotation says that pods are plain processes with the node's
	// addresses: its agent has no privilege.
	SharedAnnotation = "rutter.io/shared-network"

	DefaultClusterDNS    = "169.254.20.10"
	DefaultClusterDomain = "cluster.local"
)

// start does everything up to the running process, in this order: wait for the
// node, claim a sandbox, register the object, read the services, build the
// sandbox, start. If a step fails, those before it are taken back.
func (p *Pod) start(ctx context.Context, stdio Stdio) (err error) {
	var undo []func()
	defer func() {
		if err != nil {
			for i := len(undo) - 1; i >= 0; i-- {
				undo[i]()
			}
		}
	}()
	waiting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	// An ordinary user may only run pods where they are plain processes.
	privileged := sandbox.CheckPrivilege()
	if privileged != nil && os.Geteuid() == 0 {
		return privileged
	}
	node, err := p.node(waiting)
	if err != nil {
		return err
	}
	box := sandbox.Config{RunDir: p.cfg.RunDir, Namespace: p.spec.Namespace, Pod: p.spec.Name, Command: p.spec.Command}
	if p.shared = node.Annotations[SharedAnnotation] != ""; p.shared {
		box.Shared = append([]netip.Addr{}, addrsOf(hostIPs(node))...)
	} else if privileged != nil {
		return privileged
	} else if box.PodCIDRs, err = p.podCIDRs(node); err != nil {
		return err
	}
	p.box, err = sandbox.Claim(box)
	if err != nil {
		return err
	}
	undo = append(undo, func() { err = errors.Join(err, p.box.Remove()) })
	if p.spec.Readiness != nil {
		if _, err := probe.New(p.spec.Readiness, p.box.Record.Addrs[0].String(), p.spec.Ports, p); err != nil {
			return err
		}
	}

	object, err := p.register(waiting)
	if err != nil {
		return err
	}
	undo = append(undo, func() {
		farewell, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewellTimeout)
		defer cancel()
		if left := p.deregister(farewell); left != nil {
			err = errors.Join(err, fmt.Errorf("taking the pod out of the API again: %w", left))
		}
	})
	p.uid, p.box.Record.UID = object.UID, string(object.UID)
	p.events = newEvents(p.cfg.Client, object, p.cfg.NodeName, p.log)
	if p.env, err = p.environment(waiting); err != nil {
		return err
	}
	var files sandbox.Files
	if !p.shared { // else it sees the host's
		if files, err = p.files(node); err != nil {
			return err
		}
	}
	if err := p.box.Build(ctx, files); err != nil {
		return err
	}
	if p.control, err = listenControl(p); err != nil {
		return fmt.Errorf("listening for `rutter exec` and `rutter stop`: %w", err)
	}
	undo = append(undo, func() { err = errors.Join(err, p.control.Close()) })
	p.status = newStatus("rutter://"+p.box.Record.ID, hostIPs(node), addrStrings(p.box.Record.Addrs))
	if err := p.startProcess(stdio); err != nil {
		return err
	}
	p.status.update(func(s *status) {
		s.sandboxReady, s.phase, s.started = true, corev1.PodRunning, time.Now()
		s.ready = p.spec.Readiness == nil
		if !s.ready {
			s.unready = "not probed yet"
		}
	})
	p.events.add(corev1.EventTypeNormal, reasonStarted, "Started process "+p.spec.Command[0])
	p.record(func(r *sandbox.Record) { r.Phase, r.Ready = string(corev1.PodRunning), p.status.isReady() })
	// A first attempt here, so that a pod that runs is usually known to run;
	// the sender repeats it.
	if err := sendStatus(ctx, p.pods, p.spec.Name, p.uid, p.status.object()); err != nil {
		p.log.Warn("sending the pod's first status; trying on", "pod", p.spec.Name, "error", err)
	}
	return nil
}

// node waits for the Node object: endpoints on a node that does not exist are
// left out by the endpoint controllers.
func (p *Pod) node(ctx context.Context) (*corev1.Node, error) {
	told := ""
	for {
		attempt, cancel := context.WithTimeout(ctx, requestTimeout)
		node, err := p.cfg.Client.Nodes().Get(attempt, p.cfg.NodeName)
		cancel()
		var why string
		switch {
		case err == nil:
			return node, nil
		case apierrors.IsNotFound(err):
			why = fmt.Sprintf("node %s is not registered: is `rutter up` or `rutter agent` running here, under this name (--node-name)?", p.cfg.NodeName)
		case kubeapi.Unreachable(err):
			why = p.cfg.Client.Explain(err).Error()
		case ctx.Err() == nil || told == "":
			return nil, p.cfg.Client.Explain(err)
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("gave up: %s", cmp.Or(told, why))
		}
		if why != told {
			p.cfg.Progress("waiting: " + why)
			told = why
		}
		sleep(ctx, 500*time.Millisecond)
	}
}

func (p *Pod) podCIDRs(node *corev1.Node) ([]netip.Prefix, error) {
	if len(p.cfg.PodCIDRs) > 0 {
		return p.cfg.PodCIDRs, nil
	}
	list := node.Spec.PodCIDRs
	if len(list) == 0 && node.Spec.PodCIDR != "" {
		list = []string{node.Spec.PodCIDR}
	}
	var out []netip.Prefix
	for _, s := range list {
		cidr, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("pod CIDR of node %s: %w", node.Name, err)
		}
		out = append(out, cidr)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("node %s has no pod CIDR: start its agent with --pod-cidr, or name one here with --pod-cidr", node.Name)
	}
	return out, nil
}

// register creates the Pod object. If a pod of this name is left from a
// supervisor that died on this node, it is removed first.
func (p *Pod) register(ctx context.Context) (*corev1.Pod, error) {
	want := p.spec.object(p.cfg.NodeName, p.cfg.RunDir, p.box.Record.ID)
	if p.shared {
		want.Spec.HostNetwork = true
		for i := range want.Spec.Containers[0].Ports {
			port := &want.Spec.Containers[0].Ports[i]
			port.HostPort = port.ContainerPort // the API wants it so
		}
	}
	object, err := p.pods.Create(ctx, want)
	if apierrors.IsAlreadyExists(err) && p.removeDead(ctx) {
		object, err = p.pods.Create(ctx, want)
	}
	switch {
	case err == nil:
		return object, nil
	case apierrors.IsAlreadyExists(err):
		return nil, fmt.Errorf("pod %s/%s exists already: choose another --name, or `rutter stop -n %s %s` (kubectl delete pod) ends it", p.spec.Namespace, p.spec.Name, p.spec.Namespace, p.spec.Name)
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("namespace %s does not exist: `kubectl create namespace %s` makes it", p.spec.Namespace, p.spec.Namespace)
	}
	return nil, fmt.Errorf("registering pod %s/%s: %w", p.spec.Namespace, p.spec.Name, p.cfg.Client.Explain(err))
}

func (p *Pod) removeDead(ctx context.Context) bool {
	have, err := p.pods.Get(ctx, p.spec.Name)
	if err != nil {
		return apierrors.IsNotFound(err)
	}
	id := have.Annotations[SandboxAnnotation]
	if id == "" || have.Spec.NodeName != p.cfg.NodeName || have.Annotations[RunDirAnnotation] != p.cfg.RunDir || finished(have) || sandboxLives(p.cfg.RunDir, id) {
		return false
	}
	return deletePod(ctx, p.pods, have.Name, have.UID) == nil
}

// environment is what the process finds: a few of the caller's variables, the
// services' variables, and its own, each above the one before.
func (p *Pod) environment(ctx context.Context) ([]string, error) {
	services, err := p.services(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the services for the environment: %w", p.cfg.Client.Explain(err))
	}
	services = serviceenv.Visible(services, p.spec.Namespace, !p.spec.NoServiceLinks)
	if p.shared {
		offered(services)
	}
	env := append(inherited(), "HOSTNAME="+p.hostname())
	env = serviceenv.Merge(env, serviceenv.Variables(services))
	env = serviceenv.Merge(env, p.spec.Env)

	var stack unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_STACK, &stack); err != nil {
		return nil, fmt.Errorf("reading the stack limit: %w", err)
	}
	return env, serviceenv.Fits(p.spec.Command, env, stack.Cur, len(services))
}

func (p *Pod) services(ctx context.Context) ([]corev1.Service, error) {
	var out []corev1.Service
	if !p.spec.NoServiceLinks {
		list, err := p.cfg.Client.Services(p.spec.Namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, err
		}
		out = list.Items
	}
	if p.spec.NoServiceLinks || p.spec.Namespace != metav1.NamespaceDefault {
		master, err := p.cfg.Client.Services(metav1.NamespaceDefault).Get(ctx, "kubernetes")
		switch {
		case err == nil:
			out = append(out, *master)
		case !apierrors.IsNotFound(err):
			return nil, err
		}
	}
	return out, nil
}

// inherited picks the variables that any program may count on. The rest of the
// caller's environment (credentials, KUBECONFIG) is not the pod's.
func inherited() []string {
	var env []string
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		switch name {
		case "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TERM", "TZ":
			env = append(env, v)
		default:
			if strings.HasPrefix(name, "LC_") {
				env = append(env, v)
			}
		}
	}
	return env
}

func (p *Pod) hostname() string { return resolvconf.Hostname(p.spec.Hostname, p.spec.Name) }

// files writes what the pod sees in place of the host's files.
func (p *Pod) files(node *corev1.Node) (sandbox.Files, error) {
	zone, dns := p.cfg.Zone, p.cfg.ClusterDNS
	if zone == "" {
		zone = node.Annotations[ClusterDomainAnnotation]
	}
	if zone == "" {
		zone = DefaultClusterDomain
	}
	if len(dns) == 0 {
		if list := node.Annotations[ClusterDNSAnnotation]; list != "" {
			dns = strings.Split(list, ",")
		} else {
			dns = []string{DefaultClusterDNS}
		}
	}
	hostFile, notes, err := resolvconf.ReadHost(resolvconf.HostPath, resolvconf.ResolvedPath)
	if err != nil {
		return sandbox.Files{}, err
	}
	conf, more := resolvconf.Build(resolvconf.Request{
		Policy: resolvconf.Policy(p.spec.DNSPolicy), Namespace: p.spec.Namespace, Zone: zone, ClusterDNS: dns, Host: hostFile, Extra: extraDNS(p.spec.DNSConfig),
	})
	if p.spec.DNSPolicy == corev1.DNSDefault {
		more = append(notes, more...) // only then are the host's servers used
	}
	for _, note := range more {
		p.cfg.Progress("DNS: " + note)
		p.events.add(corev1.EventTypeWarning, reasonDNSConfig, note)
	}
	nsswitch, err := os.ReadFile("/etc/nsswitch.conf")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return sandbox.Files{}, fmt.Errorf("reading the host's nsswitch.conf: %w", err)
	}
	host := p.hostname()
	return sandbox.Files{
		Hostname:   host,
		Hosts:      resolvconf.Hosts(p.box.Record.Addrs, host, resolvconf.Domain(p.spec.Subdomain, p.spec.Namespace, zone)),
		ResolvConf: conf.String(),
		NSSwitch:   resolvconf.NSSwitch(string(nsswitch)),
	}, nil
}

func extraDNS(c *corev1.PodDNSConfig) resolvconf.Config {
	if c == nil {
		return resolvconf.Config{}
	}
	out := resolvconf.Config{Nameservers: c.Nameservers, Searches: c.Searches}
	for _, o := range c.Options {
		if o.Value != nil && *o.Value != "" {
			out.Options = append(out.Options, o.Name+":"+*o.Value)
			continue
		}
		out.Options = append(out.Options, o.Name)
	}
	return out
}

// startProcess starts the process, with its output into the log if there is to
// be one.
func (p *Pod) startProcess(stdio Stdio) (err error) {
	if stdio.Log != nil {
		r, w, err := os.Pipe()
		if err != nil {
			return fmt.Errorf("starting the log: %w", err)
		}
		defer w.Close()
		log, err := stdio.Log(p.box.Dir.Path())
		if err != nil {
			return errors.Join(fmt.Errorf("starting the log: %w", err), r.Close())
		}
		stdio.Files[1], stdio.Files[2] = w, w
		p.logDone = make(chan error, 1)
		go func() { p.logDone <- pump(log, r) }()
	}
	p.process, err = p.box.Start(sandbox.Process{Argv: p.spec.Command, Env: p.env, Dir: p.spec.Dir, User: p.spec.User, Files: stdio.Files, TTY: stdio.TTY})
	return err
}

func hostIPs(node *corev1.Node) []string {
	var out []string
	for _, a := range node.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			out = append(out, a.Address)
		}
	}
	return out
}

func addrsOf(list []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// offered gives services the ports at which they are found without privilege.
func offered(services []corev1.Service) {
	lowest := userspace.LowestPort()
	for i := range services {
		for j := range services[i].Spec.Ports {
			p := &services[i].Spec.Ports[j]
			p.Port = int32(userspace.Offered(uint16(p.Port), lowest))
		}
	}
}

func addrStrings(addrs []netip.Addr) []string {
	out := make([]string, len(addrs))
	for i, a := range addrs {
		out[i] = a.String()
	}
	return out
}

func finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// sandboxLives tells whether the sandbox with this ID has a supervisor.
func sandboxLives(runDir, id string) bool {
	if id != filepath.Base(id) {
		return false
	}
	pods, err := sandbox.List(runDir)
	if err != nil {
		return true // not known to be dead
	}
	for _, e := range pods {
		if e.ID == id {
			return e.Live
		}
	}
	return false
}
