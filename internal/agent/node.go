package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/kubeapi"
	"github.com/rutter-project/rutter/internal/node/pod"
	"github.com/rutter-project/rutter/internal/version"
)

// The kubelet's figures: a lease of 40 s renewed every 10 s, so the
// node-lifecycle controller (grace period 50 s) rides out three lost renewals;
// status is sent again every 5 minutes, and after a renewal failed.
const (
	leaseDuration = 40 * time.Second
	leaseRenewal  = 10 * time.Second
	statusPeriod  = 5 * time.Minute
)

// registration keeps this host's Node object and its lease, the kubelet's part
// on a host without one.
type registration struct {
	name     string
	addrs    func() ([]netip.Addr, error) // finds the InternalIPs, the primary first
	podCIDRs []netip.Prefix               // empty: the control plane allocates them
	dns      []netip.Addr                 // what pods here put into resolv.conf
	domain   string
	shared   bool // pods are plain processes
	cfg      *rest.Config
	log      *slog.Logger
}

// errKubelet says that the Node object does not carry our annotation.
var errKubelet = errors.New("the Node object belongs to a kubelet")

// run registers the node and renews its lease until ctx ends. The API may come
// and go: pods here run on, and the lease is renewed when it is back.
func (r *registration) run(ctx context.Context) error {
	api, err := kubeapi.New(r.cfg)
	if err != nil {
		return err
	}
	leases, err := kubeapi.NewLeases(r.cfg, corev1.NamespaceNodeLease)
	if err != nil {
		return err
	}
	var sent sentStatus
	failing := false
	tick := time.NewTicker(leaseRenewal)
	defer tick.Stop()
	for {
		err := r.sync(ctx, api, leases, &sent)
		switch {
		case errors.Is(err, errKubelet):
			r.log.Info("Node object is a kubelet's; leaving it alone", "node", r.name)
			return nil
		case err != nil && ctx.Err() == nil && !failing:
			r.log.Warn("node not registered; trying again", "node", r.name, "error", api.Explain(err))
			failing = true
		case err == nil && failing:
			r.log.Info("node registered again", "node", r.name)
			failing = false
		}
		wait := tick.C
		if err != nil { // sooner than the next renewal: pods wait for the Node
			wait = time.After(time.Second)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wait:
		}
	}
}

// sentStatus is what the Node object was last told.
type sentStatus struct {
	at    time.Time
	addrs []netip.Addr
}

func (r *registration) sync(ctx context.Context, api *kubeapi.Client, leases kubeapi.Leases, sent *sentStatus) error {
	ctx, cancel := context.WithTimeout(ctx, leaseRenewal)
	defer cancel()
	addrs, err := r.addrs()
	if err != nil {
		return err
	}
	if len(addrs) == 0 {
		addrs = sent.addrs // an interface that is down for a moment
	}
	moved := !slices.Equal(addrs, sent.addrs)
	if moved && !sent.at.IsZero() {
		r.log.Info("this node's addresses changed", "from", sent.addrs, "to", addrs)
	}
	if moved || time.Since(sent.at) >= statusPeriod {
		if err := r.ensureNode(ctx, api, addrs); err != nil {
			return err
		}
		*sent = sentStatus{time.Now(), addrs}
	}
	if err := r.renew(ctx, leases); err != nil {
		sent.at = time.Time{} // the Node may be gone too
		return err
	}
	return nil
}

func (r *registration) ensureNode(ctx context.Context, api *kubeapi.Client, addrs []netip.Addr) error {
	node, err := api.Nodes().Get(ctx, r.name)
	if apierrors.IsNotFound(err) {
		node, err = api.Nodes().Create(ctx, r.node())
		if err == nil {
			r.log.Info("node registered", "node", r.name)
		}
	}
	if err != nil {
		return err
	}
	if node.Annotations[catalog.RegisteredByAgent] == "" {
		return errKubelet
	}
	if want := r.annotations(); !contains(node.Annotations, want) {
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": want}})
		if err != nil {
			return fmt.Errorf("encode node annotations: %w", err)
		}
		if _, err := api.Nodes().Patch(ctx, r.name, types.MergePatchType, patch); err != nil {
			return err
		}
	}
	status, err := json.Marshal(map[string]any{"status": r.status(node.Status, addrs)})
	if err != nil {
		return fmt.Errorf("encode node status: %w", err)
	}
	_, err = api.Nodes().Patch(ctx, r.name, types.MergePatchType, status, "status")
	return err
}

func (r *registration) node() *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name:        r.name,
		Annotations: r.annotations(),
		Labels: map[string]string{
			corev1.LabelHostname:   r.name,
			corev1.LabelOSStable:   runtime.GOOS,
			corev1.LabelArchStable: runtime.GOARCH,
		},
	}}
	for _, p := range r.podCIDRs {
		n.Spec.PodCIDRs = append(n.Spec.PodCIDRs, p.String())
	}
	if len(n.Spec.PodCIDRs) > 0 {
		n.Spec.PodCIDR = n.Spec.PodCIDRs[0]
	}
	return n
}

// annotations tell `rutter run` what the kubelet's configuration would.
func (r *registration) annotations() map[string]string {
	var dns []string
	for _, a := range r.dns {
		dns = append(dns, a.String())
	}
	out := map[string]string{
		catalog.RegisteredByAgent:   "rutter",
		pod.ClusterDNSAnnotation:    strings.Join(dns, ","),
		pod.ClusterDomainAnnotation: r.domain,
	}
	if r.shared {
		out[pod.SharedAnnotation] = "true"
	}
	return out
}

func contains(have, want map[string]string) bool {
	for k, v := range want {
		if have[k] != v {
			return false
		}
	}
	return true
}

func (r *registration) status(old corev1.NodeStatus, addrs []netip.Addr) corev1.NodeStatus {
	now := metav1.Now()
	ready := corev1.NodeCondition{
		Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "AgentReady", Message: "rutter agent is running",
		LastHeartbeatTime: now, LastTransitionTime: now,
	}
	for _, c := range old.Conditions {
		if c.Type == ready.Type && c.Status == ready.Status {
			ready.LastTransitionTime = c.LastTransitionTime
		}
	}
	s := corev1.NodeStatus{
		Conditions: []corev1.NodeCondition{ready},
		Addresses:  []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: r.name}},
		NodeInfo: corev1.NodeSystemInfo{
			KubeletVersion:  "rutter " + version.Get().Version,
			OperatingSystem: runtime.GOOS,
			Architecture:    runtime.GOARCH,
			KernelVersion:   firstLine("/proc/sys/kernel/osrelease"),
			BootID:          firstLine("/proc/sys/kernel/random/boot_id"),
		},
	}
	for _, a := range addrs {
		s.Addresses = append(s.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	return s
}

func (r *registration) renew(ctx context.Context, leases kubeapi.Leases) error {
	now := metav1.NewMicroTime(time.Now())
	lease, err := leases.Get(ctx, r.name)
	if apierrors.IsNotFound(err) {
		seconds := int32(leaseDuration / time.Second)
		_, err = leases.Create(ctx, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: r.name, Namespace: corev1.NamespaceNodeLease},
			Spec:       coordinationv1.LeaseSpec{HolderIdentity: &r.name, LeaseDurationSeconds: &seconds, RenewTime: &now},
		})
		return err
	}
	if err != nil {
		return err
	}
	lease.Spec.RenewTime = &now
	_, err = leases.Update(ctx, r.name, lease)
	return err
}

func firstLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return line
}
