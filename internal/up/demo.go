package up

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/rutter-project/rutter/internal/kubeapi"
	"github.com/rutter-project/rutter/internal/rootless"
)

// demoLabel marks what the demo made, so that it can be told from the user's.
const demoLabel = "rutter.io/demo"

// demoServices are a service with a virtual IP and a headless one whose pods
// have names of their own.
func demoServices() []*corev1.Service {
	port := corev1.ServicePort{Name: "http", Port: 80, TargetPort: intstr.FromString("http")}
	meta := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Name: name, Namespace: metav1.NamespaceDefault, Labels: map[string]string{demoLabel: "true"}}
	}
	return []*corev1.Service{
		{ObjectMeta: meta("web"), Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{port}}},
		{ObjectMeta: meta("db"), Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Selector: map[string]string{"app": "db"}, Ports: []corev1.ServicePort{port}}},
	}
}

// demoPods are the arguments of `rutter run` for each pod of the demo. Pods that
// share the host's addresses each have a port of their own.
func demoPods(self string, shared bool) (pods [][]string) {
	for i := 1; i <= 3; i++ {
		pods = append(pods, []string{"--name", fmt.Sprintf("web-%d", i), "--label", "app=web"})
	}
	for i := range 2 {
		name := fmt.Sprintf("db-%d", i)
		pods = append(pods, []string{"--name", name, "--hostname", name, "--subdomain", "db", "--label", "app=db"})
	}
	for i := range pods {
		port := 80
		if shared {
			port = 18080 + i
		}
		pods[i] = append(pods[i], "--label", demoLabel+"=true", "--port", fmt.Sprintf("http=%d", port),
			"--readiness", "http-get=/readyz:http", "--readiness-period", "1s", "--", self, "demo-server", "--listen", fmt.Sprintf(":%d", port))
	}
	return pods
}

// startDemo creates the services and starts the pods, and waits until every
// pod is ready.
func (u *Up) startDemo(ctx context.Context, api *kubeapi.Client) error {
	for _, s := range demoServices() {
		_, err := api.Services(s.Namespace).Create(ctx, s)
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("create demo service %s: %w", s.Name, api.Explain(err))
		}
	}
	pods := demoPods(u.self, u.cfg.Rootless == rootless.Userspace)
	for _, args := range pods {
		args = append([]string{"run", "--detach", "--rm", "--namespace", metav1.NamespaceDefault, "--run-dir", u.cfg.RunDir, "--kubeconfig", u.agentKubeconfig(), "--node-name", u.cfg.NodeName}, args...)
		cmd := exec.CommandContext(ctx, u.self, args...)
		// Ctrl-C in the terminal is for up, which then asks; a pod that is half
		// made is taken back.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.WaitDelay = stopGrace
		out, err := cmd.CombinedOutput()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && len(out) == 0:
			return fmt.Errorf("start demo pod: %w", err)
		case err != nil:
			return fmt.Errorf("start demo pod: %s", strings.TrimPrefix(strings.TrimSpace(string(out)), "rutter: "))
		}
	}
	for {
		list, err := api.Pods(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{LabelSelector: demoLabel})
		if err != nil {
			return fmt.Errorf("wait for the demo's pods: %w", api.Explain(err))
		}
		ready := 0
		for _, p := range list.Items {
			for _, c := range p.Status.Conditions {
				if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue && p.DeletionTimestamp == nil {
					ready++
				}
			}
		}
		if ready >= len(pods) {
			return nil
		}
		u.progress.waiting(fmt.Sprintf("%d of %d pods ready", ready, len(pods)))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}
