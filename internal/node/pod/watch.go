package pod

import (
	"context"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/rutter-project/rutter/internal/kubeapi"
)

// watcher follows the pod's own object, for what others do to it.
type watcher struct {
	pods   kubeapi.Resource[corev1.Pod, corev1.PodList]
	name   string
	uid    types.UID
	status *status
	log    *slog.Logger
}

// run calls deleted with the grace that whoever deleted the object granted, as
// often as that is seen, and with gone set when the object is no more or
// another one has its name. It returns then, or when ctx ends. While the API
// does not answer, nothing is concluded.
func (w *watcher) run(ctx context.Context, deleted func(grace time.Duration, gone bool)) {
	backoff := firstBackoff
	for ctx.Err() == nil {
		pod, err := w.get(ctx)
		switch {
		case apierrors.IsNotFound(err):
			deleted(0, true)
			return
		case err != nil:
			w.log.Debug("reading the pod's object", "pod", w.name, "error", err)
			sleep(ctx, backoff)
			backoff = min(2*backoff, maxBackoff)
			continue
		}
		if w.seen(pod, deleted) {
			return
		}
		if w.follow(ctx, pod.ResourceVersion, deleted) {
			return
		}
		sleep(ctx, firstBackoff)
		backoff = firstBackoff
	}
}

func (w *watcher) get(ctx context.Context) (*corev1.Pod, error) {
	attempt, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return w.pods.Get(attempt, w.name)
}

// follow watches until the stream ends; it tells whether the pod is over.
func (w *watcher) follow(ctx context.Context, version string, deleted func(time.Duration, bool)) bool {
	stream, err := w.pods.Watch(ctx, metav1.ListOptions{
		FieldSelector:       fields.OneTermEqualSelector(metav1.ObjectNameField, w.name).String(),
		ResourceVersion:     version,
		AllowWatchBookmarks: true,
	})
	if err != nil {
		return false
	}
	defer stream.Stop()
	for event := range stream.ResultChan() {
		pod, ok := event.Object.(*corev1.Pod)
		if !ok {
			return false // an error, such as a version too old: read anew
		}
		switch event.Type {
		case watch.Deleted:
			if pod.UID == w.uid {
				deleted(0, true)
				return true
			}
		case watch.Added, watch.Modified:
			if w.seen(pod, deleted) {
				return true
			}
		}
	}
	return false
}

// seen looks at one state of the object and tells whether the pod is over.
func (w *watcher) seen(pod *corev1.Pod, deleted func(time.Duration, bool)) bool {
	if pod.UID != w.uid {
		deleted(0, true)
		return true
	}
	if pod.DeletionTimestamp != nil {
		grace := time.Duration(0)
		if s := pod.DeletionGracePeriodSeconds; s != nil {
			grace = time.Duration(*s) * time.Second
		}
		deleted(grace, false)
		return false
	}
	// The node-lifecycle controller marks pods unready when their node's
	// agent was silent; the pod itself knows better.
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady && pod.Status.Phase == corev1.PodRunning && (c.Status == corev1.ConditionTrue) != w.status.isReady() {
			w.status.wake()
		}
	}
	return false
}
