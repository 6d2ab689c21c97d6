package controllers

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
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
	tell := sync.OnceFunc(elsewhere)
	for ctx.Err() == nil {
		failed, err := oneTerm(ctx, client, me, log, run, tell)
		if err != nil {
			return fmt.Errorf("preparing the election of the controllers' leader: %w", err)
		}
		if failed != nil {
			return failed
		}
		if ctx.Err() == nil {
			log.Warn("this registry no longer leads the controllers: another one took over, or etcd was away for too long; standing by")
		}
	}
	return nil
}

// oneTerm waits to lead, leads, and returns when the term has ended. When ctx
// ends, the controllers stop first and the lease is given back after that.
func oneTerm(ctx context.Context, client kubernetes.Interface, me string, log *slog.Logger, run func(context.Context) error, elsewhere func()) (failed, err error) {
	election, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	var t term
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
			OnStartedLeading: func(leading context.Context) {
				if !t.begin() {
					return
				}
				defer t.running.Done()
				leading, stop := context.WithCancel(leading)
				defer stop()
				defer context.AfterFunc(ctx, stop)()
				if failed = run(leading); failed != nil {
					end()
				}
			},
			OnStoppedLeading: func() {},
			OnNewLeader: func(id string) {
				if id != me {
					log.Info("another registry runs the controllers", "leader", id)
					elsewhere()
				}
			},
		},
	})
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() {
		t.close()
		end()
	})()
	le.Run(election)
	t.close()
	return failed, nil
}

// term keeps two terms from overlapping: the elector starts its callback in a
// goroutine that nothing waits for, and that may come to run after the end.
type term struct {
	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup
}

func (t *term) begin() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.running.Add(1)
	}
	return !t.closed
}

// close lets no run begin any more and waits for the one that has begun.
func (t *term) close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.running.Wait()
}
