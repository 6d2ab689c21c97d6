package pod

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/rutter-project/rutter/internal/kubeapi"
	"github.com/rutter-project/rutter/internal/node/sandbox"
)

// status is what is true of the pod now. The API is told by the sender; while
// that cannot, only the newest status is kept.
//
//	Pending ──process started──▶ Running ──process ended──▶ Succeeded | Failed
type status struct {
	mu    sync.Mutex
	dirty chan struct{} // capacity 1

	sandboxReady bool
	phase        corev1.PodPhase
	ready        bool
	unready      string // why it is not
	started      time.Time
	finished     time.Time
	exit         Exit
	conditions   map[corev1.PodConditionType]corev1.PodCondition

	containerID string
	hostIPs     []string
	podIPs      []string
	created     metav1.Time
}

// Exit is how a pod's process ended.
type Exit = sandbox.Exit

func newStatus(containerID string, hostIPs, podIPs []string) *status {
	return &status{
		dirty: make(chan struct{}, 1), phase: corev1.PodPending, containerID: containerID,
		hostIPs: hostIPs, podIPs: podIPs, created: now(),
		conditions: make(map[corev1.PodConditionType]corev1.PodCondition),
	}
}

// update changes the status and wakes the sender.
func (s *status) update(change func(*status)) {
	s.mu.Lock()
	change(s)
	s.mu.Unlock()
	s.wake()
}

func (s *status) wake() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

func (s *status) isReady() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready
}

// object is the status as the API has it.
func (s *status) object() corev1.PodStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := corev1.PodStatus{Phase: s.phase, StartTime: &s.created}
	for _, ip := range s.hostIPs {
		out.HostIPs = append(out.HostIPs, corev1.HostIP{IP: ip})
	}
	if len(s.hostIPs) > 0 {
		out.HostIP = s.hostIPs[0]
	}
	if s.sandboxReady {
		for _, ip := range s.podIPs {
			out.PodIPs = append(out.PodIPs, corev1.PodIP{IP: ip})
		}
		out.PodIP = s.podIPs[0]
	}
	out.Conditions = s.conditionList()
	out.ContainerStatuses = []corev1.ContainerStatus{s.container()}
	return out
}

func (s *status) container() corev1.ContainerStatus {
	running := s.phase == corev1.PodRunning
	c := corev1.ContainerStatus{Name: ContainerName, Image: image, ContainerID: s.containerID, Ready: s.ready, Started: &running}
	switch s.phase {
	case corev1.PodPending:
		c.ContainerID = ""
		c.State.Waiting = &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}
	case corev1.PodRunning:
		c.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.Time{Time: s.started}}
	default:
		reason := "Completed"
		if s.phase == corev1.PodFailed {
			reason = "Error"
		}
		c.State.Terminated = &corev1.ContainerStateTerminated{
			ExitCode: int32(s.exit.Code), Signal: int32(s.exit.Signal), Reason: reason, ContainerID: s.containerID,
			StartedAt: metav1.Time{Time: s.started}, FinishedAt: metav1.Time{Time: s.finished},
		}
	}
	return c
}

func (s *status) conditionList() []corev1.PodCondition {
	notReady, message := "ContainersNotReady", "containers with unready status: ["+ContainerName+"]"
	switch s.phase {
	case corev1.PodSucceeded:
		notReady, message = "PodCompleted", ""
	case corev1.PodFailed:
		notReady, message = "PodFailed", ""
	default:
		if s.unready != "" {
			message += ": " + s.unready
		}
	}
	reason, text := notReady, message
	if s.ready {
		reason, text = "", ""
	}
	var out []corev1.PodCondition
	for _, c := range []struct {
		kind            corev1.PodConditionType
		is              bool
		reason, message string
	}{
		{corev1.PodScheduled, true, "", ""},
		{corev1.PodReadyToStartContainers, s.sandboxReady, "", ""},
		{corev1.PodInitialized, true, "", ""},
		{corev1.ContainersReady, s.ready, reason, text},
		{corev1.PodReady, s.ready, reason, text},
	} {
		value := corev1.ConditionFalse
		if c.is {
			value = corev1.ConditionTrue
		}
		have, ok := s.conditions[c.kind]
		if !ok || have.Status != value {
			have = corev1.PodCondition{Type: c.kind, Status: value, LastTransitionTime: now()}
		}
		have.Reason, have.Message = c.reason, c.message
		s.conditions[c.kind] = have
		out = append(out, have)
	}
	return out
}

func now() metav1.Time { return metav1.Time{Time: time.Now()} }

const (
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = 5 * time.Second
)

// sender keeps the API's idea of the status the true one.
type sender struct {
	pods   kubeapi.Resource[corev1.Pod, corev1.PodList]
	name   string
	uid    types.UID
	status *status
	log    *slog.Logger
}

// run sends the status each time it changes, until ctx ends or the object is
// gone. An API that does not answer is tried again for ever.
func (s *sender) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.status.dirty:
		}
		if gone := s.deliver(ctx); gone {
			return
		}
	}
}

// deliver sends the present status until it has arrived.
func (s *sender) deliver(ctx context.Context) (gone bool) {
	lost := false
	for backoff := firstBackoff; ctx.Err() == nil; backoff = min(2*backoff, maxBackoff) {
		err := sendStatus(ctx, s.pods, s.name, s.uid, s.status.object())
		if err == nil {
			if lost {
				s.log.Info("the API answers again; status sent", "pod", s.name)
			}
			return false
		}
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return true // the watcher sees it too and acts
		}
		if !lost && ctx.Err() == nil {
			s.log.Warn("sending the pod's status; trying on", "pod", s.name, "error", err)
			lost = true
		}
		sleep(ctx, backoff)
	}
	return false
}

// sendStatus patches the status of exactly the pod with this UID. A strategic
// merge leaves conditions that others keep there alone.
func sendStatus(ctx context.Context, pods kubeapi.Resource[corev1.Pod, corev1.PodList], name string, uid types.UID, st corev1.PodStatus) error {
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": uid}, "status": st})
	if err != nil {
		return fmt.Errorf("writing the pod's status: %w", err)
	}
	// What is under way is let through: breaking it off saves nothing.
	attempt, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
	defer cancel()
	_, err = pods.Patch(attempt, name, types.StrategicMergePatchType, body, "status")
	return err
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
