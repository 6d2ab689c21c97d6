package pod

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"

	"github.com/rutter-project/rutter/internal/kubeapi"
	"github.com/rutter-project/rutter/internal/node/sandbox"
)

// SweepConfig says where to sweep.
type SweepConfig struct {
	RunDir   string
	NodeName string
	// Client is for the objects in the API; nil sweeps the host only.
	Client *kubeapi.Client
	// Ended also removes what pods left that ended in order and whose record,
	// log and object were kept to be looked at.
	Ended bool
}

// Sweep removes what pods of this node left whose supervisor died, on the host
// and in the API, and makes up for last words the API did not hear. It is to be
// called when an agent starts, from time to time while it runs, and at the end
// of `rutter up`. It tells how many pods' sandboxes it removed.
func Sweep(ctx context.Context, c SweepConfig) (int, error) {
	swept, err := sandbox.Sweep(ctx, c.RunDir, c.Ended)
	if c.Client == nil {
		return len(swept), err
	}
	return len(swept), errors.Join(err, sweepObjects(ctx, c, swept))
}

func sweepObjects(ctx context.Context, c SweepConfig, swept []sandbox.Record) error {
	// Objects first: a pod that starts now has its sandbox before its object.
	list, err := c.Client.Pods("").List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("spec.nodeName", c.NodeName).String(),
	})
	if err != nil {
		return fmt.Errorf("listing this node's pods: %w", c.Client.Explain(err))
	}
	entries, err := sandbox.List(c.RunDir)
	if err != nil {
		return err
	}
	known := make(map[string]sandbox.Entry, len(entries))
	for _, e := range entries {
		known[e.ID] = e
	}
	gone := make(map[string]bool, len(swept))
	for _, r := range swept {
		gone[r.ID] = true
	}
	runDir, err := filepath.Abs(c.RunDir)
	if err != nil {
		return fmt.Errorf("finding the run directory: %w", err)
	}
	var errs []error
	objects := make(map[string]bool, len(list.Items))
	for i := range list.Items {
		object := &list.Items[i]
		id := object.Annotations[SandboxAnnotation]
		objects[id] = true
		e, ok := known[id]
		pods := c.Client.Pods(object.Namespace)
		switch {
		case id == "", object.Annotations[RunDirAnnotation] != runDir, ok && e.Live:
		case ok && e.Ended():
			if !finished(object) {
				errs = append(errs, ignoreGone(sendStatus(ctx, pods, object.Name, object.UID, lastStatus(object, e))))
			}
		case gone[id], !finished(object):
			errs = append(errs, deletePod(ctx, pods, object.Name, object.UID))
		}
	}
	for _, e := range entries {
		if e.Ended() && !e.Live && !objects[e.ID] {
			errs = append(errs, sandbox.Forget(c.RunDir, e.ID))
		}
	}
	return errors.Join(errs...)
}

// lastStatus is the final status of a pod whose supervisor could not send it.
func lastStatus(object *corev1.Pod, e sandbox.Entry) corev1.PodStatus {
	s := newStatus("rutter://"+e.ID, nil, addrStrings(e.Addrs))
	s.sandboxReady, s.started = true, e.Created
	if t := object.Status.StartTime; t != nil {
		s.created = *t
	}
	s.end(Exit{Code: e.ExitCode})
	s.finished = e.Finished
	return s.object()
}

func ignoreGone(err error) error {
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

func uid(e sandbox.Entry) types.UID { return types.UID(e.UID) }
