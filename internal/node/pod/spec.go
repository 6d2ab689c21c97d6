package pod

import (
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/rutter-project/rutter/internal/node/sandbox"
)

const (
	// SandboxAnnotation ties a Pod object to the sandbox that was made for it,
	// so that neither is ever matched by name.
	SandboxAnnotation = "rutter.io/sandbox"
	// RunDirAnnotation says whose sandbox it is: two run directories on one
	// node do not sweep each other's pods.
	RunDirAnnotation = "rutter.io/run-dir"
	// ContainerName is the name of a pod's only container.
	ContainerName = "main"
	// image stands where the API demands one; nothing is ever pulled.
	image = "none"
)

// Spec is what the pod is to be. It is passed between processes as JSON.
type Spec struct {
	Namespace string
	Name      string // empty: made from the command
	Labels    map[string]string
	Hostname  string
	Subdomain string

	Command []string
	Env     []string // NAME=value; above the services' variables
	Dir     string   // working directory
	User    *sandbox.User

	Ports     []corev1.ContainerPort
	Readiness *corev1.Probe

	DNSPolicy      corev1.DNSPolicy // empty: ClusterFirst
	DNSConfig      *corev1.PodDNSConfig
	NoServiceLinks bool

	// Grace is how long the process has between TERM and KILL.
	Grace time.Duration
	// Remove takes the Pod object away when the process ends by itself.
	// Without it the object stays, Succeeded or Failed, until it is stopped.
	Remove bool
}

// DefaultGrace is the API's default for spec.terminationGracePeriodSeconds.
const DefaultGrace = 30 * time.Second

// Complete checks the spec and fills in what was left out.
func (s *Spec) Complete() error {
	if len(s.Command) == 0 || s.Command[0] == "" {
		return errors.New("no command given")
	}
	if s.Namespace == "" {
		s.Namespace = metav1.NamespaceDefault
	}
	if s.Name == "" {
		s.Name = generateName(s.Command[0])
	}
	if s.DNSPolicy == "" {
		s.DNSPolicy = corev1.DNSClusterFirst
	}
	for _, f := range []struct{ flag, value string }{{"name", s.Name}, {"namespace", s.Namespace}} {
		if bad := validation.IsDNS1123Subdomain(f.value); len(bad) > 0 {
			return fmt.Errorf("--%s %q: want lower case letters, digits, - and ., letters or digits at both ends, at most 253", f.flag, f.value)
		}
	}
	if strings.Contains(s.Namespace, ".") {
		return fmt.Errorf("--namespace %q: no dots", s.Namespace)
	}
	if s.Grace < 0 {
		return fmt.Errorf("grace period %s is negative", s.Grace)
	}
	return nil
}

// generateName makes a pod's name from its command's.
func generateName(command string) string {
	base := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, filepath.Base(command))
	base = strings.Trim(base[:min(len(base), 40)], "-")
	if base == "" {
		base = "pod"
	}
	return base + "-" + strings.ToLower(rand.Text()[:5])
}

// object is the Pod object for the API.
func (s *Spec) object(node, runDir, sandbox string) *corev1.Pod {
	no := false
	links := !s.NoServiceLinks
	grace := int64((s.Grace + time.Second - 1) / time.Second)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:   s.Namespace,
			Name:        s.Name,
			Labels:      maps.Clone(s.Labels),
			Annotations: map[string]string{SandboxAnnotation: sandbox, RunDirAnnotation: runDir},
		},
		Spec: corev1.PodSpec{
			NodeName:                      node,
			Hostname:                      s.Hostname,
			Subdomain:                     s.Subdomain,
			RestartPolicy:                 corev1.RestartPolicyNever,
			DNSPolicy:                     s.DNSPolicy,
			DNSConfig:                     s.DNSConfig,
			EnableServiceLinks:            &links,
			AutomountServiceAccountToken:  &no,
			TerminationGracePeriodSeconds: &grace,
			// The process does not depend on its agent, so it is not evicted
			// while that is being restarted.
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			Containers: []corev1.Container{{
				Name:           ContainerName,
				Image:          image,
				Command:        s.Command,
				WorkingDir:     s.Dir,
				Ports:          s.Ports,
				ReadinessProbe: s.Readiness,
			}},
		},
	}
	if s.User != nil {
		uid, gid := int64(s.User.UID), int64(s.User.GID)
		p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &uid, RunAsGroup: &gid}
		for _, g := range s.User.Groups {
			p.Spec.SecurityContext.SupplementalGroups = append(p.Spec.SecurityContext.SupplementalGroups, int64(g))
		}
	}
	for _, v := range s.Env {
		name, value, _ := strings.Cut(v, "=")
		// $(NAME) is the API's way to refer to variables; here values are
		// literal.
		p.Spec.Containers[0].Env = append(p.Spec.Containers[0].Env, corev1.EnvVar{Name: name, Value: strings.ReplaceAll(value, "$(", "$$(")})
	}
	return p
}
