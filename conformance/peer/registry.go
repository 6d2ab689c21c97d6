package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/retry"
)

// Registry is the API server that both sides of a comparison watch.
type Registry struct {
	*Process
	Kubeconfig string // of an administrator
	Client     kubernetes.Interface
	Config     *rest.Config
	// Ready is the time from the start of the process to a first 200 on
	// /readyz.
	Ready time.Duration
}

// Port finds a port that is free on loopback for TCP and UDP. Somebody else
// may take it before it is used; whoever starts a server then sees it fail.
func Port() (int, error) {
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 0, fmt.Errorf("finding a free port: %w", err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		u, err := net.ListenPacket("udp", l.Addr().String())
		_ = l.Close()
		if err != nil {
			continue
		}
		return port, u.Close()
	}
	return 0, errors.New("finding a free port: none is free for both TCP and UDP")
}

// StartRegistry starts rutter-registry with its data in dir/registry and waits
// until it is ready. Further arguments are added to its command line.
func StartRegistry(program, dir string, args ...string) (*Registry, error) {
	port, err := Port()
	if err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "registry")
	p, err := Start(Command{Name: "rutter-registry", Dir: dir, Args: append([]string{
		program, "--data-dir", data, "--secure-port", strconv.Itoa(port)}, args...)})
	if err != nil {
		return nil, err
	}
	r := &Registry{Process: p, Kubeconfig: filepath.Join(data, "admin.kubeconfig")}
	if err := p.WaitFor("ready", 2*time.Minute, r.ready); err != nil {
		p.Stop()
		return nil, err
	}
	return r, nil
}

// UseRegistry uses a registry that runs already, and is another's to stop.
func UseRegistry(kubeconfig string) (*Registry, error) {
	r := &Registry{Kubeconfig: kubeconfig, Process: &Process{Name: "rutter-registry", Started: time.Now()}}
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		err := r.ready()
		if err == nil || time.Now().After(deadline) {
			return r, err
		}
	}
}

// Stop stops the registry if it was started here.
func (r *Registry) Stop() {
	if r.Process.cmd != nil {
		r.Process.Stop()
	}
}

func (r *Registry) ready() error {
	if r.Client == nil {
		// The file is written before the server listens, by rename.
		if _, err := os.Stat(r.Kubeconfig); err != nil {
			return err
		}
		cfg, err := clientcmd.BuildConfigFromFlags("", r.Kubeconfig)
		if err != nil {
			return err
		}
		cfg.QPS = -1 // no limit on this side
		cfg.WarningHandler = rest.NoWarnings{}
		cfg.ContentType = "application/vnd.kubernetes.protobuf"
		client, err := kubernetes.NewForConfig(cfg)
		if err != nil {
			return err
		}
		r.Config, r.Client = cfg, client
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err := r.Client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
	if err == nil && r.Ready == 0 {
		r.Ready = time.Since(r.Started)
	}
	return err
}

// Address is where the API listens, host and port.
func (r *Registry) Address() string {
	u, err := url.Parse(r.Config.Host)
	if err != nil {
		return r.Config.Host
	}
	return u.Host
}

// AddNode registers a node. kube-proxy takes its addresses from there, and
// waits for them for half a minute otherwise.
func (r *Registry) AddNode(ctx context.Context, name, podCIDR string, addrs ...string) error {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}}
	if podCIDR != "" {
		node.Spec.PodCIDR, node.Spec.PodCIDRs = podCIDR, []string{podCIDR}
	}
	nodes := r.Client.CoreV1().Nodes()
	if _, err := nodes.Create(ctx, node, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("creating node %s: %w", name, err)
	}
	// The registry's controllers write to a new node too.
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		node, err := nodes.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		node.Status.Addresses = nil
		for _, a := range addrs {
			node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
		}
		node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue,
			LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now(), Reason: "Test"}}
		_, err = nodes.UpdateStatus(ctx, node, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("giving node %s its addresses: %w", name, err)
	}
	return nil
}
