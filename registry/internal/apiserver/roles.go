package apiserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rutter-project/rutter/registry/internal/pki"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-helpers/auth/rbac/reconciliation"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"
)

// AgentRole is the name of the ClusterRole, the Role in kube-node-lease and
// their bindings that agents work under.
const AgentRole = "rutter:agent"

var (
	read  = []string{"get", "list", "watch"}
	roles = rbacv1.GroupName
)

// agentRules is all that an agent may do in the whole cluster.
var agentRules = []rbacv1.PolicyRule{
	// What the catalogue is made of.
	{APIGroups: []string{""}, Resources: []string{"services", "namespaces", "nodes", "pods"}, Verbs: read},
	{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: read},
	{APIGroups: []string{"networking.k8s.io"}, Resources: []string{"servicecidrs"}, Verbs: read},
	// It registers its node.
	{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"create", "update", "patch"}},
	{APIGroups: []string{""}, Resources: []string{"nodes/status"}, Verbs: []string{"update", "patch"}},
	// It registers processes as Pods and reports their readiness.
	{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"create", "delete", "patch"}},
	{APIGroups: []string{""}, Resources: []string{"pods/status"}, Verbs: []string{"update", "patch"}},
	{APIGroups: []string{"", "events.k8s.io"}, Resources: []string{"events"}, Verbs: []string{"create", "patch"}},
}

// agentNamespaced is what an agent may do in one namespace only.
var agentNamespaced = map[string][]rbacv1.PolicyRule{
	// Its node's heartbeat.
	corev1.NamespaceNodeLease: {{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, Verbs: []string{"create", "get", "update", "patch"}}},
	// The cluster's DNS configuration.
	metav1.NamespaceSystem: {{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: read}},
}

// parallelRoles is how many roles are written at once: each write waits for
// the disk, not for a processor, and etcd commits waiting writes together.
const parallelRoles = 16

// bootstrapRoles creates or repairs Kubernetes' default roles and the agent's.
// Kubernetes' are only completed, as its own bootstrap does it; the agent's
// are made exactly what they are here, so that an upgrade can also take
// something away. An administrator opts out, for either, with the annotation
// rbac.authorization.kubernetes.io/autoupdate=false.
func bootstrapRoles(ctx context.Context, client kubernetes.Interface) error {
	r := roleWriter{client: client}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelRoles)
	do := func(what string, f func() error) {
		g.Go(func() error {
			if err := retry(ctx, f); err != nil {
				return fmt.Errorf("writing %s: %w", what, err)
			}
			return nil
		})
	}
	for _, o := range append(bootstrappolicy.ClusterRoles(), bootstrappolicy.ControllerRoles()...) {
		do("ClusterRole "+o.Name, func() error { return r.clusterRole(&o, false) })
	}
	for _, o := range append(bootstrappolicy.ClusterRoleBindings(), bootstrappolicy.ControllerRoleBindings()...) {
		do("ClusterRoleBinding "+o.Name, func() error { return r.clusterRoleBinding(&o, false) })
	}
	for _, list := range bootstrappolicy.NamespaceRoles() {
		for _, o := range list {
			do("Role "+o.Name, func() error { return r.role(&o, false) })
		}
	}
	for _, list := range bootstrappolicy.NamespaceRoleBindings() {
		for _, o := range list {
			do("RoleBinding "+o.Name, func() error { return r.roleBinding(&o, false) })
		}
	}

	meta := func(namespace string) metav1.ObjectMeta {
		return metav1.ObjectMeta{
			Name: AgentRole, Namespace: namespace,
			Annotations: map[string]string{rbacv1.AutoUpdateAnnotationKey: "true"},
		}
	}
	agents := []rbacv1.Subject{{Kind: rbacv1.GroupKind, APIGroup: roles, Name: pki.AgentGroup}}
	do("ClusterRole "+AgentRole, func() error {
		return r.clusterRole(&rbacv1.ClusterRole{ObjectMeta: meta(""), Rules: agentRules}, true)
	})
	do("ClusterRoleBinding "+AgentRole, func() error {
		return r.clusterRoleBinding(&rbacv1.ClusterRoleBinding{
			ObjectMeta: meta(""), Subjects: agents,
			RoleRef: rbacv1.RoleRef{APIGroup: roles, Kind: "ClusterRole", Name: AgentRole},
		}, true)
	})
	for namespace, rules := range agentNamespaced {
		do("Role "+AgentRole, func() error {
			return r.role(&rbacv1.Role{ObjectMeta: meta(namespace), Rules: rules}, true)
		})
		do("RoleBinding "+AgentRole, func() error {
			return r.roleBinding(&rbacv1.RoleBinding{
				ObjectMeta: meta(namespace), Subjects: agents,
				RoleRef: rbacv1.RoleRef{APIGroup: roles, Kind: "Role", Name: AgentRole},
			}, true)
		})
	}
	return g.Wait()
}

// roleWriter wraps the reconciliation that kubectl auth reconcile uses.
// exact also removes what is too much.
type roleWriter struct{ client kubernetes.Interface }

func (r roleWriter) clusterRole(o *rbacv1.ClusterRole, exact bool) error {
	_, err := (&reconciliation.ReconcileRoleOptions{
		Role:    reconciliation.ClusterRoleRuleOwner{ClusterRole: o},
		Client:  reconciliation.ClusterRoleModifier{Client: r.client.RbacV1().ClusterRoles()},
		Confirm: true, RemoveExtraPermissions: exact,
	}).Run()
	return err
}

func (r roleWriter) role(o *rbacv1.Role, exact bool) error {
	_, err := (&reconciliation.ReconcileRoleOptions{
		Role:    reconciliation.RoleRuleOwner{Role: o},
		Client:  reconciliation.RoleModifier{Client: r.client.RbacV1(), NamespaceClient: r.client.CoreV1().Namespaces()},
		Confirm: true, RemoveExtraPermissions: exact,
	}).Run()
	return err
}

func (r roleWriter) clusterRoleBinding(o *rbacv1.ClusterRoleBinding, exact bool) error {
	_, err := (&reconciliation.ReconcileRoleBindingOptions{
		RoleBinding: reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: o},
		Client:      reconciliation.ClusterRoleBindingClientAdapter{Client: r.client.RbacV1().ClusterRoleBindings()},
		Confirm:     true, RemoveExtraSubjects: exact,
	}).Run()
	return err
}

func (r roleWriter) roleBinding(o *rbacv1.RoleBinding, exact bool) error {
	_, err := (&reconciliation.ReconcileRoleBindingOptions{
		RoleBinding: reconciliation.RoleBindingAdapter{RoleBinding: o},
		Client:      reconciliation.RoleBindingClientAdapter{Client: r.client.RbacV1(), NamespaceClient: r.client.CoreV1().Namespaces()},
		Confirm:     true, RemoveExtraSubjects: exact,
	}).Run()
	return err
}

// roleTime is how long bootstrapRoles goes on trying one object; the API
// server's own bootstrap gives 30 s for all.
const roleTime = 30 * time.Second

// retry repeats f until it succeeds. Two registries that start on one etcd
// write the same objects, and a namespace may be made by somebody else in
// between; the next look at the object settles both.
func retry(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, roleTime, errors.New("gave up after "+roleTime.String()))
	defer cancel()
	return poll(ctx, func() error {
		err := f()
		if apierrors.IsAlreadyExists(err) {
			return f()
		}
		return err
	})
}
