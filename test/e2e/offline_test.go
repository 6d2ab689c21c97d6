package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rutter-project/rutter/internal/kubeapi"
	"github.com/rutter-project/rutter/test/registry"
)

// TestAgentWithoutTheAPI starts an agent while the API server is gone: it
// serves what was known, says so, and catches up when the API is back.
func TestAgentWithoutTheAPI(t *testing.T) {
	if os.Getenv(inside) == "" {
		t.Skip("needs root, RUTTER_BIN and RUTTER_REGISTRY_BIN (`make test` sets them)")
	}
	reg := registry.Start(t)
	api, err := kubeapi.New(reg.Config(t))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run, data := filepath.Join(dir, "run"), filepath.Join(dir, "data")
	rutter := func(args ...string) (string, error) {
		out, err := exec.Command(os.Getenv("RUTTER_BIN"), args...).CombinedOutput()
		return string(out), err
	}
	flags := []string{"agent", "--node-name", "host", "--run-dir", run, "--data-dir", data, "--kubeconfig", reg.Agent()}
	startAgent := func() (stop func()) {
		var log strings.Builder
		cmd := exec.Command(os.Getenv("RUTTER_BIN"), flags...)
		cmd.Stderr = &log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		stopped := false
		stop = func() {
			if stopped {
				return
			}
			stopped = true
			cmd.Process.Signal(os.Interrupt)
			if err := cmd.Wait(); err != nil {
				t.Errorf("the agent ended with %v:\n%s", err, log.String())
			}
		}
		t.Cleanup(stop)
		return stop
	}
	t.Cleanup(func() {
		if out, err := rutter(append(flags, "--cleanup")...); err != nil {
			t.Errorf("--cleanup: %v\n%s", err, out)
		}
	})
	await := func(what string, check func() error) {
		t.Helper()
		deadline := time.Now().Add(time.Minute)
		for {
			err := check()
			if err == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("waited a minute for %s: %v", what, err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	answers := func(name, want string) func() error {
		return func() error {
			out, err := exec.Command("dig", "+time=1", "+tries=1", "@169.254.20.10", name+".default.svc.cluster.local").CombinedOutput()
			if err != nil || !strings.Contains(string(out), want) {
				return fmt.Errorf("%v, want %s in\n%s", err, want, out)
			}
			return nil
		}
	}
	create := func(name string) string {
		t.Helper()
		s, err := api.Services("default").Create(t.Context(), &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		return s.Spec.ClusterIP
	}

	stop := startAgent()
	kept := create("kept")
	await("the service to be answered", answers("kept", kept))
	stop() // saves what it knows
	reg.Kill()

	startAgent()
	await("the saved service to be answered", answers("kept", kept))
	await("status to say so", func() error {
		out, err := rutter("status", "--run-dir", run)
		if exitCode(err) != 1 || !strings.Contains(out, "saved at") {
			return fmt.Errorf("%v, want exit code 1 and when it was saved in\n%s", err, out)
		}
		return nil
	})

	reg.Restart(t)
	fresh := create("fresh")
	await("a new service to be answered", answers("fresh", fresh))
	await("status to be well again", func() error {
		out, err := rutter("status", "--run-dir", run)
		if err != nil {
			return fmt.Errorf("%w:\n%s", err, out)
		}
		return nil
	})
	if err := api.Services("default").Delete(t.Context(), "kept", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await("the deleted service to leave", answers("kept", "NXDOMAIN"))
}
