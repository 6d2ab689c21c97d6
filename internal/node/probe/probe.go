// Package probe finds out whether a pod's process is ready, by the rules of
// the kubelet's prober (pkg/probe, pkg/kubelet/prober of Kubernetes v1.36).
package probe

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Result is what one look at the process said.
type Result int

const (
	Failure Result = iota
	Success
	// Unknown is a look that could not be made; it changes nothing.
	Unknown
)

// Handler looks once. The text says what was seen, in one line; ctx carries
// the probe's timeout, and running into it is a Failure.
type Handler interface {
	Probe(ctx context.Context) (Result, string)
}

// Runner runs a command inside the pod, with the pod's environment, and kills
// it and its children when ctx ends. The error is for commands that could not
// be run at all; output is cut to a few KiB.
type Runner interface {
	RunProbe(ctx context.Context, argv []string) (exitCode int, output string, err error)
}

// New makes the handler that p asks for against a pod at addr. Named ports are
// looked up in ports.
func New(p *corev1.Probe, addr string, ports []corev1.ContainerPort, run Runner) (Handler, error) {
	switch {
	case p.HTTPGet != nil:
		port, err := resolvePort(p.HTTPGet.Port, ports)
		if err != nil {
			return nil, err
		}
		return newHTTPGet(p.HTTPGet, addr, port)
	case p.TCPSocket != nil:
		port, err := resolvePort(p.TCPSocket.Port, ports)
		if err != nil {
			return nil, err
		}
		if p.TCPSocket.Host != "" {
			addr = p.TCPSocket.Host
		}
		return tcpSocket{net.JoinHostPort(addr, strconv.Itoa(port))}, nil
	case p.Exec != nil:
		return execCommand{p.Exec.Command, run}, nil
	}
	return nil, fmt.Errorf("a readiness probe needs one of http-get, tcp and exec")
}

func resolvePort(p intstr.IntOrString, ports []corev1.ContainerPort) (int, error) {
	if p.Type == intstr.String {
		for _, c := range ports {
			if c.Name == p.StrVal {
				return int(c.ContainerPort), nil
			}
		}
		if n, err := strconv.Atoi(p.StrVal); err == nil {
			p.IntVal = int32(n)
		} else {
			return 0, fmt.Errorf("readiness probe: the pod has no port named %q: add --port %s=NUMBER", p.StrVal, p.StrVal)
		}
	}
	if p.IntVal < 1 || p.IntVal > 65535 {
		return 0, fmt.Errorf("readiness probe: port %d is not within 1-65535", p.IntVal)
	}
	return int(p.IntVal), nil
}

type execCommand struct {
	argv []string
	run  Runner
}

func (e execCommand) Probe(ctx context.Context) (Result, string) {
	code, output, err := e.run.RunProbe(ctx, e.argv)
	switch {
	case ctx.Err() != nil:
		return Failure, "command timed out"
	case err != nil:
		return Unknown, err.Error()
	case code != 0:
		return Failure, fmt.Sprintf("command exited with %d: %s", code, oneLine(output))
	}
	return Success, oneLine(output)
}

type tcpSocket struct{ address string }

func (t tcpSocket) Probe(ctx context.Context) (Result, string) {
	conn, err := dialer().DialContext(ctx, "tcp", t.address)
	if err != nil {
		return Failure, err.Error()
	}
	_ = conn.Close()
	return Success, ""
}

// seconds reads a probe's number of seconds, of which zero means the default.
func seconds(n int32, otherwise time.Duration) time.Duration {
	if n <= 0 {
		return otherwise
	}
	return time.Duration(n) * time.Second
}
