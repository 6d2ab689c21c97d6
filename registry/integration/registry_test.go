package integration

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// patience bounds every wait. It is a timeout for a hung machine, not an
// expectation; nothing passes or fails by how fast it is.
const patience = 2 * time.Minute

var binary string

func TestMain(m *testing.M) {
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
	if binary = os.Getenv("RUTTER_REGISTRY_BIN"); binary == "" {
		dir, err := os.MkdirTemp("", "rutter-registry")
		if err != nil {
			panic(err)
		}
		binary = filepath.Join(dir, "rutter-registry")
		build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", binary, "..")
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "building rutter-registry:", err)
			os.Exit(1)
		}
		code := m.Run()
		os.RemoveAll(dir)
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// registry is a running one.
type registry struct {
	t    *testing.T
	dir  string
	url  string
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended

	mu  sync.Mutex
	log bytes.Buffer
}

var readyLine = regexp.MustCompile(`API server ready on (https://[^ "]+)`)

// start runs a registry on a free loopback port and waits until it is ready.
func start(t *testing.T, dir string, args ...string) *registry {
	t.Helper()
	r := launch(t, dir, args...)
	r.waitReady()
	return r
}

// launch runs a registry and does not wait.
func launch(t *testing.T, dir string, args ...string) *registry {
	t.Helper()
	r := &registry{t: t, dir: dir, done: make(chan struct{})}
	r.cmd = exec.Command(binary, append([]string{"--data-dir", dir, "--secure-port", "0"}, args...)...)
	stderr, err := r.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(r.done)
		lines := bufio.NewScanner(stderr)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			r.mu.Lock()
			fmt.Fprintln(&r.log, lines.Text())
			r.mu.Unlock()
		}
		io.Copy(io.Discard, stderr) // if a line was too long; a full pipe would stop the process
		r.cmd.Wait()
	}()
	t.Cleanup(func() {
		r.cmd.Process.Kill()
		<-r.done
		if t.Failed() {
			t.Logf("log of %v:\n%s", r.cmd.Args, r.output())
		}
	})
	return r
}

func (r *registry) output() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.String()
}

func (r *registry) waitReady() {
	r.t.Helper()
	eventually(r.t, "the registry is ready", func() error {
		if m := readyLine.FindStringSubmatch(r.output()); m != nil {
			r.url = m[1]
			return nil
		}
		select {
		case <-r.done:
			r.t.Fatalf("it ended: %v\n%s", r.cmd.ProcessState, r.output())
		default:
		}
		return fmt.Errorf("no such line in the log")
	})
}

// signal sends s and waits for the end.
func (r *registry) signal(s syscall.Signal) *os.ProcessState {
	r.t.Helper()
	if err := r.cmd.Process.Signal(s); err != nil {
		r.t.Fatal(err)
	}
	select {
	case <-r.done:
	case <-time.After(patience):
		r.t.Fatalf("still running %v after %v", patience, s)
	}
	return r.cmd.ProcessState
}

// config is a client configuration from one of the kubeconfigs.
func (r *registry) config(name string) *rest.Config {
	r.t.Helper()
	c, err := clientcmd.BuildConfigFromFlags("", filepath.Join(r.dir, name+".kubeconfig"))
	if err != nil {
		r.t.Fatal(err)
	}
	c.QPS = -1
	return c
}

func (r *registry) admin() *kubernetes.Clientset { return r.client("admin") }
func (r *registry) agent() *kubernetes.Clientset { return r.client("agent") }

func (r *registry) client(name string) *kubernetes.Clientset {
	r.t.Helper()
	c, err := kubernetes.NewForConfig(r.config(name))
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// refuse runs the binary, expects it to end by itself, and returns its exit
// code and its standard error.
func refuse(t *testing.T, args ...string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Run(); err == nil {
		t.Fatalf("%v: ended without an error", args)
	}
	if ctx.Err() != nil {
		t.Fatalf("%v: did not end\n%s", args, &stderr)
	}
	return cmd.ProcessState.ExitCode(), stderr.String()
}

// eventually asks f until it has no complaint.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not so within %v: %s: %v", patience, what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
