package pod

import (
	"context"
	"fmt"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rutter-project/rutter/internal/kubeapi"
)

// Reasons of events, the kubelet's words (pkg/kubelet/events).
const (
	reasonStarted      = "Started"
	reasonUnhealthy    = "Unhealthy"
	reasonKilling      = "Killing"
	reasonDNSConfig    = "DNSConfigForming"
	eventComponent     = "rutter"
	maxPendingEvents   = 16
	maxEventMessageLen = 1024 // core/v1 validation
)

// events tells the API what `kubectl describe pod` shows. They are for people
// and never waited for: while the API is away, the oldest few are kept and
// later ones dropped.
type events struct {
	client  kubeapi.Resource[corev1.Event, corev1.EventList]
	about   corev1.ObjectReference
	node    string
	pending chan corev1.Event
	log     *slog.Logger
}

func newEvents(c *kubeapi.Client, pod *corev1.Pod, node string, log *slog.Logger) *events {
	return &events{
		client: c.Events(pod.Namespace), node: node, log: log, pending: make(chan corev1.Event, maxPendingEvents),
		about: corev1.ObjectReference{
			APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
			FieldPath: "spec.containers{" + ContainerName + "}",
		},
	}
}

// add queues an event. kind is Normal or Warning.
func (e *events) add(kind, reason, message string) {
	t := metav1.Now()
	if len(message) > maxEventMessageLen {
		message = message[:maxEventMessageLen]
	}
	event := corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: e.about.Namespace, Name: fmt.Sprintf("%s.%x", e.about.Name, t.UnixNano())},
		InvolvedObject: e.about,
		Type:           kind, Reason: reason, Message: message,
		Source:         corev1.EventSource{Component: eventComponent, Host: e.node},
		FirstTimestamp: t, LastTimestamp: t, Count: 1,
	}
	select {
	case e.pending <- event:
	default:
	}
}

// run sends events until ctx ends.
func (e *events) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case event := <-e.pending:
			e.send(ctx, &event)
		}
	}
}

func (e *events) send(ctx context.Context, event *corev1.Event) {
	for backoff := firstBackoff; ctx.Err() == nil; backoff = min(2*backoff, maxBackoff) {
		attempt, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
		_, err := e.client.Create(attempt, event)
		cancel()
		if !kubeapi.Unreachable(err) {
			if err != nil {
				e.log.Debug("sending an event", "reason", event.Reason, "error", err)
			}
			return
		}
		sleep(ctx, backoff)
	}
}
