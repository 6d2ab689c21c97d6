package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rutter-project/rutter/internal/kubeapi"
)

// system is a running `rutter up --demo`.
type system struct {
	t      *testing.T
	bin    string
	data   string
	out    *lockedBuffer
	cmd    *exec.Cmd
	exited chan error
	gone   chan struct{}
	api    *kubeapi.Client
}

const runDir = "/run/rutter" // the default: /run is the test's own

func start(t *testing.T, data string, flags ...string) *system {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("needs root, RUTTER_BIN and RUTTER_REGISTRY_BIN (`make test` sets them)")
	}
	s := &system{t: t, bin: os.Getenv("RUTTER_BIN"), data: data, out: &lockedBuffer{}, exited: make(chan error, 1), gone: make(chan struct{})}
	s.cmd = exec.Command(s.bin, append([]string{"up", "--data-dir", data, "--registry", os.Getenv("RUTTER_REGISTRY_BIN"), "--node-name", "host"}, flags...)...)
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { s.exited <- s.cmd.Wait(); close(s.gone) }()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("rutter up said:\n%s", s.out)
			for _, name := range []string{"agent", "registry"} {
				log, _ := os.ReadFile(filepath.Join(runDir, "log", name+".log"))
				t.Logf("%s.log:\n%s", name, tail(string(log), 60))
			}
		}
		s.cmd.Process.Kill()
		<-s.gone
	})
	s.await("rutter up to be ready", func() error {
		select {
		case err := <-s.exited:
			t.Fatalf("rutter up ended: %v", err)
		default:
		}
		if !strings.Contains(s.out.String(), "Try in a second terminal") {
			return fmt.Errorf("it said so far:\n%s", s.out)
		}
		return nil
	})
	api, err := kubeapi.Open(s.kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	s.api = api
	return s
}

// in is the same system, whose failures are t's.
func (s *system) in(t *testing.T) *system {
	c := *s
	c.t = t
	return &c
}

func (s *system) kubeconfig() string { return filepath.Join(s.data, "registry", "admin.kubeconfig") }

// stop does what Ctrl-C does, and waits.
func (s *system) stop() {
	s.t.Helper()
	s.cmd.Process.Signal(os.Interrupt)
	select {
	case err := <-s.exited:
		if err != nil {
			s.t.Errorf("rutter up ended with %v", err)
		}
	case <-time.After(2 * time.Minute):
		s.t.Fatalf("rutter up did not end within two minutes of Ctrl-C; it said:\n%s", s.out)
	}
}

// await waits until check returns nil; two minutes are far beyond what is normal.
func (s *system) await(what string, check func() error) {
	s.t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("waited in vain for %s: %v", what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// run runs a command on the host and returns its output and error.
func (s *system) run(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+s.kubeconfig(), "HOME=/root")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// must is run for commands that cannot fail.
func (s *system) must(name string, args ...string) string {
	s.t.Helper()
	out, err := s.run(name, args...)
	if err != nil {
		s.t.Fatalf("%s %s: %v\n%s", filepath.Base(name), strings.Join(args, " "), err, out)
	}
	return out
}

func (s *system) rutter(args ...string) string {
	s.t.Helper()
	return s.must(s.bin, args...)
}

// inPod runs a command in the pod of that name.
func (s *system) inPod(pod string, command ...string) (string, error) {
	return s.run(s.bin, append([]string{"exec", pod, "--"}, command...)...)
}

func (s *system) clusterIP(service string) string {
	s.t.Helper()
	svc, err := s.api.Services("default").Get(s.t.Context(), service)
	if err != nil {
		s.t.Fatal(err)
	}
	return svc.Spec.ClusterIP
}

func (s *system) podIP(pod string) string {
	s.t.Helper()
	p, err := s.api.Pods("default").Get(s.t.Context(), pod)
	if err != nil {
		s.t.Fatal(err)
	}
	return p.Status.PodIP
}

// backends asks the service n times and counts the pods that answered.
func (s *system) backends(pod, url string, n int) (map[string]int, error) {
	out, err := s.inPod(pod, "sh", "-c", fmt.Sprintf("for i in $(seq %d); do curl -sS --max-time 5 %s | head -n 1; done", n, url))
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	count := map[string]int{}
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		count[strings.Fields(line + " ?")[0]]++
	}
	return count, nil
}

// pidOf finds the process of a program that up started, by its command line.
func (s *system) pidOf(pattern string) int {
	s.t.Helper()
	pid := findProcess(pattern)
	if pid == 0 {
		s.t.Fatalf("no process matches %s", pattern)
	}
	return pid
}

// findProcess returns 0 if no process has such a command line.
func findProcess(pattern string) int {
	re := regexp.MustCompile(pattern)
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		b, err := os.ReadFile(filepath.Join(d, "cmdline"))
		if err == nil && re.Match(bytes.ReplaceAll(b, []byte{0}, []byte{' '})) {
			pid, _ := strconv.Atoi(filepath.Base(d))
			return pid
		}
	}
	return 0
}

func (s *system) killed(pattern string) {
	s.t.Helper()
	if err := syscall.Kill(s.pidOf(pattern), syscall.SIGKILL); err != nil {
		s.t.Fatal(err)
	}
}

// status is `rutter status -o json`.
func (s *system) status() (status map[string]any, err error) {
	out, err := s.run(s.bin, "status", "-o", "json")
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	return status, json.Unmarshal([]byte(out), &status)
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func tail(s string, n int) string {
	lines := strings.Split(s, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
