// Package registry starts a real rutter-registry for tests.
package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/rutter-project/rutter/internal/kubeapi"
)

// Registry is one running rutter-registry on a loopback port.
type Registry struct {
	DataDir string
	Port    int

	args []string
	bin  string
	cmd  *exec.Cmd
	log  *bytes.Buffer
}

// Start runs the registry with the given extra flags and waits until it is
// ready. It is stopped when the test ends. The test is skipped if there is no
// binary: RUTTER_REGISTRY_BIN names it, `make test` builds and sets it.
func Start(t testing.TB, flags ...string) *Registry {
	t.Helper()
	bin := os.Getenv("RUTTER_REGISTRY_BIN")
	if bin == "" {
		t.Skip("RUTTER_REGISTRY_BIN is not set (`make test` builds the registry and sets it)")
	}
	port := freePort(t)
	r := &Registry{DataDir: t.TempDir(), Port: port, bin: bin}
	r.args = append([]string{"--data-dir", r.DataDir, "--secure-port", fmt.Sprint(port)}, flags...)
	t.Cleanup(func() {
		r.stop(syscall.SIGTERM)
		if t.Failed() {
			t.Logf("the registry's log:\n%s", r.log)
		}
	})
	r.Restart(t)
	return r
}

// freePort finds a port below those that the kernel gives to connections
// (ip_local_port_range): it must still be free when the registry opens it,
// seconds later.
func freePort(t testing.TB) int {
	t.Helper()
	for {
		port := 20000 + rand.IntN(10000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		return port
	}
}

// Kill ends the registry at once, as a crash would.
func (r *Registry) Kill() { r.stop(syscall.SIGKILL) }

// Restart starts the registry again on the same data and port, and waits until
// it is ready.
func (r *Registry) Restart(t testing.TB) {
	t.Helper()
	r.log = &bytes.Buffer{}
	r.cmd = exec.Command(r.bin, r.args...)
	r.cmd.Stdout, r.cmd.Stderr = r.log, r.log
	// The registry must not outlive a test that is killed.
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	exited := make(chan struct{})
	started := make(chan error)
	cmd := r.cmd
	go func() {
		// The parent of Pdeathsig is the thread that started the child, and a
		// test may end threads (golang/go#27505).
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
		}
		close(exited)
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for {
		if cfg, err := kubeapi.Load(r.Admin()); err == nil {
			if c, err := kubeapi.New(cfg); err == nil && c.Ready(ctx) == nil {
				return
			}
		}
		select {
		case <-exited:
			t.Fatalf("the registry ended instead of becoming ready:\n%s", r.log)
		case <-ctx.Done():
			t.Fatalf("the registry is not ready after two minutes:\n%s", r.log)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Admin is the path of a kubeconfig that may do everything.
func (r *Registry) Admin() string { return filepath.Join(r.DataDir, "admin.kubeconfig") }

// Agent is the path of the agents' kubeconfig.
func (r *Registry) Agent() string { return filepath.Join(r.DataDir, "agent.kubeconfig") }

// Config is the administrator's client configuration.
func (r *Registry) Config(t testing.TB) *rest.Config {
	t.Helper()
	cfg, err := kubeapi.Load(r.Admin())
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// AgentConfig is an agent's client configuration.
func (r *Registry) AgentConfig(t testing.TB) *rest.Config {
	t.Helper()
	cfg, err := kubeapi.Load(r.Agent())
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func (r *Registry) stop(sig syscall.Signal) {
	if r.cmd == nil || r.cmd.Process == nil {
		return
	}
	r.cmd.Process.Signal(sig)
	for range 600 {
		if r.cmd.Process.Signal(syscall.Signal(0)) != nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	r.cmd.Process.Kill()
}
