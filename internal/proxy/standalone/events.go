package standalone

import (
	"context"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rutter-project/rutter/internal/kubeapi"
	"github.com/rutter-project/rutter/internal/proxy"
)

// Events posts Event objects. One that cannot be posted is only logged: nothing
// may wait for it.
type Events struct {
	client *kubeapi.Client
	node   string
	log    *slog.Logger
	queue  chan proxy.Event
	last   map[proxy.Event]time.Time
}

// NewEvents makes a queue of events of a node; Run posts them.
func NewEvents(client *kubeapi.Client, node string, log *slog.Logger) *Events {
	return &Events{client: client, node: node, log: log, queue: make(chan proxy.Event, 64), last: make(map[proxy.Event]time.Time)}
}

// Post queues an event, or forgets it if too many wait.
func (e *Events) Post(ev proxy.Event) {
	select {
	case e.queue <- ev:
	default:
	}
}

// Run posts what is queued until ctx is done.
func (e *Events) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case ev := <-e.queue:
			e.send(ctx, ev)
		}
	}
}

// flush posts what is queued.
func (e *Events) flush(ctx context.Context) {
	for len(e.queue) > 0 {
		e.send(ctx, <-e.queue)
	}
}

// The same event is told once in this time.
const eventEvery = 10 * time.Minute

func (e *Events) send(ctx context.Context, ev proxy.Event) {
	now := time.Now()
	if now.Sub(e.last[ev]) < eventEvery {
		return
	}
	if len(e.last) > 1000 {
		clear(e.last)
	}
	e.last[ev] = now
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	about := corev1.ObjectReference{Kind: "Node", Name: e.node, UID: "", APIVersion: "v1"}
	namespace := metav1.NamespaceDefault
	if ev.Service.Name != "" {
		about = corev1.ObjectReference{Kind: "Service", Namespace: ev.Service.Namespace, Name: ev.Service.Name, APIVersion: "v1"}
		namespace = ev.Service.Namespace
	}
	typ := corev1.EventTypeNormal
	if ev.Warning {
		typ = corev1.EventTypeWarning
	}
	_, err := e.client.Events(namespace).Create(ctx, &corev1.Event{
		ObjectMeta:          metav1.ObjectMeta{GenerateName: "rutter-proxy.", Namespace: namespace},
		InvolvedObject:      about,
		Reason:              ev.Reason,
		Action:              ev.Action,
		Message:             ev.Note,
		Type:                typ,
		Source:              corev1.EventSource{Component: "kube-proxy", Host: e.node},
		ReportingController: "kube-proxy",
		ReportingInstance:   "kube-proxy-" + e.node,
		FirstTimestamp:      metav1.NewTime(now),
		LastTimestamp:       metav1.NewTime(now),
		EventTime:           metav1.NewMicroTime(now),
		Count:               1,
	})
	if err != nil && ctx.Err() == nil {
		e.log.Debug("an event was not posted", "reason", ev.Reason, "err", err)
	}
}
