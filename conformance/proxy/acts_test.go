package proxy

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// stopProxy ends the proxy of n1, at once or not.
func stopProxy(with unix.Signal) func(*column) error {
	return func(c *column) error {
		p := c.proxies["n1"]
		err := p.Signal(with)
		<-p.Done()
		return err
	}
}

func startProxy(c *column) error { return c.start("n1") }

// zone moves a node into another zone.
func zone(node, zone string) func(*runner) error {
	return func(r *runner) error {
		patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%q}}}`, corev1.LabelTopologyZone, zone)
		_, err := r.cluster.client.CoreV1().Nodes().Patch(r.ctx, node, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
		return err
	}
}

// fullSync makes proxies go through everything: a new zone does.
func fullSync(r *runner) error {
	var errs []error
	for _, n := range []string{"n1", "n2"} {
		errs = append(errs, zone(n, "z9")(r), zone(n, strings.Replace(n, "n", "z", 1))(r))
	}
	return errors.Join(errs...)
}

// reuse deletes a service and gives its addresses to a new one.
func reuse(name, endpoints string) func(*runner) error {
	return func(r *runner) error {
		old := r.cluster.services[name]
		next := &service{namespace: old.namespace, name: name + "-next", index: old.index, options: old.options, endpoints: endpoints}
		return errors.Join(r.cluster.remove(r.ctx, old), r.cluster.put(r.ctx, next))
	}
}

// taint gives a node a taint, or takes it away.
func taint(node, key string, on bool) func(*runner) error {
	return func(r *runner) error {
		patch := `{"spec":{"taints":[]}}`
		if on {
			patch = fmt.Sprintf(`{"spec":{"taints":[{"key":%q,"effect":"NoSchedule"}]}}`, key)
		}
		_, err := r.cluster.client.CoreV1().Nodes().Patch(r.ctx, node, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		return err
	}
}

// removeTable removes the table that a proxy keeps its IPv4 translation in.
func removeTable(c *column) error {
	if c.backend == "legacy" { // whose tables cannot be removed
		return c.run("n1", "sh", "-c", "iptables-legacy -w -t nat -F && iptables-legacy -w -t nat -X")
	}
	table := map[string]string{
		"kube-proxy iptables": "nat", "kube-proxy nftables": "kube-proxy",
		"rutter nftables": "rutter", "rutter iptables": "nat", "rutter ipvs": "nat", "kube-proxy ipvs": "nat", "rutter userspace": "rutter-userspace",
	}[c.proxy+" "+c.mode]
	return c.run("n1", "nft", "delete", "table", "ip", table)
}

// cleanUp removes what a stopped proxy left.
func cleanUp(c *column) error {
	if err := stopProxy(unix.SIGTERM)(c); err != nil {
		return err
	}
	if c.proxy == "rutter" {
		err := c.run("n1", c.env.rutter, "proxy", "--cleanup")
		left := strings.TrimSpace(c.tables("n1"))
		if c.mode == "iptables" || c.mode == "ipvs" { // where the built-in chains stay
			left = excerpt(left, []string{"KUBE-", "RUTTER-", "kube-ipvs0: <", "TCP  ", "UDP  ", "SCTP "})
		}
		if err == nil && left != "" {
			err = fmt.Errorf("rutter proxy --cleanup left:\n%s", left)
		}
		return err
	}
	return c.run("n1", c.env.kubeProxy, "--cleanup")
}

// flush removes everything in n1's nftables, which is also where iptables keeps
// its rules, or in what its other back end has.
func flush(c *column) error {
	if c.backend != "legacy" {
		return c.run("n1", "nft", "flush", "ruleset")
	}
	return c.run("n1", "sh", "-ec", "for p in iptables-legacy ip6tables-legacy; do for t in nat filter mangle; do $p -w -t $t -F; $p -w -t $t -X; done; done")
}

// createLong makes the service whose names are all as long as they may be.
func createLong(r *runner) error {
	s := r.cluster.services["long"]
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.namespace}}
	if _, err := r.cluster.client.CoreV1().Namespaces().Create(r.ctx, ns, metav1.CreateOptions{}); err != nil {
		return err
	}
	return r.cluster.put(r.ctx, s)
}

func removeLong(r *runner) error { return r.cluster.remove(r.ctx, r.cluster.services["long"]) }
