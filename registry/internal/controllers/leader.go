package controllers

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// The controller manager's election times (component-base/config/v1alpha1).
const (
	leaseName     = "rutter-registry-controllers"
	leaseDuration = 15 * time.Second
	renewDeadline = 10 * time.Second
	retryPeriod   = 2 * time.Second
)

// RunElected runs the controllers in one of the registries that share an
// etcd: two deployment controllers would each make their pods. run is called
// for each term that this registry leads, with a context that ends with the
// term. elsewhere is called once when another registry is found to lead.
func RunElected(ctx context.Context, loopback *rest.Config, log *slog.Logger, run func(context.Context) error, elsewhere func()) error {
	client, err := kubernetes.NewForConfig(loopback)
	if err != nil {
		return fmt.Errorf("building the election's client: %w", err)
	}
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("naming this registry for the election of the controllers' leader: %w", err)
	}
	me := host + "_" + string(uuid.NewUUID())
	var told atomic.Bool
	for ctx.Err() == nil {
		var failed error
		// RunOrDie's callback runs in its own goroutine; done says when it
		// has ended, so that two terms never overlap.
		done := make(chan struct{})
		var began atomic.Bool
		le, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: &resourcelock.LeaseLock{
				LeaseMeta:  metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: leaseName},
				Client:     client.CoordinationV1(),
				LockConfig: resourcelock.ResourceLockConfig{Identity: me},
			},
			LeaseDuration: leaseDuration, RenewDeadline: renewDeadline, RetryPeriod: retryPeriod,
			ReleaseOnCancel: true,
			Name:            leaseName,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(term context.Context) {
					began.Store(true)
					defer close(done)
					failed = run(term)
				},
				OnStoppedLeading: func() {},
				OnNewLeader: func(id string) {
					if id != me && told.CompareAndSwap(false, true) {
						log.Info("another registry runs the controllers", "leader", id)
						elsewhere()
					}
				},
			},
		})
		if err != nil {
			return fmt.Errorf("preparing the election of the controllers' leader: %w", err)
		}
		le.Run(ctx)
		if began.Load() {
			<-done
			if failed != nil {
				return failed
			}
			if ctx.Err() == nil {
				log.Warn("another registry took over the controllers, or etcd was away for too long; standing by")
			}
		}
	}
	return nil
}
