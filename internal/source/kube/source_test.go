package kube_test

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/kubeapi"
	"github.com/rutter-project/rutter/internal/source/kube"
	"github.com/rutter-project/rutter/test/registry"
)

// TestAgainstTheRealAPI follows a real API server through changes, a crash and
// a restart.
func TestAgainstTheRealAPI(t *testing.T) {
	reg := registry.Start(t)
	api, err := kubeapi.New(reg.Config(t))
	if err != nil {
		t.Fatal(err)
	}
	kinds := catalog.Services | catalog.EndpointSlices | catalog.Namespaces | catalog.Nodes | catalog.Pods
	cat := catalog.New(kinds)
	// The agent's identity, so that its rights are tested with it.
	src, err := kube.New(kube.Config{REST: reg.AgentConfig(t), Kinds: kinds, OnNode: "n1", Log: slog.New(slog.DiscardHandler)}, cat)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); src.Run(ctx) }()
	defer func() { cancel(); <-ended }()

	await := func(what string, ok func() bool) {
		t.Helper()
		deadline := time.After(time.Minute)
		for !ok() {
			select {
			case <-deadline:
				t.Fatalf("waited a minute for %s; catalogue: %+v; watches: %+v", what, cat.Counts(), src.Status())
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	await("the first lists", cat.HasSynced)
	// The API server makes these by itself; they must not come in the middle.
	await("the service kubernetes and the system's namespaces", func() bool {
		_, ok := cat.Service(catalog.ServiceName{Namespace: "default", Name: "kubernetes"})
		return ok && cat.Counts().Namespaces == len([]string{"default", "kube-node-lease", "kube-public", "kube-system"})
	})

	web := catalog.ServiceName{Namespace: "default", Name: "web"}
	service := func() *catalog.Service { e, _ := cat.Service(web); return e.Service }
	created, err := api.Services("default").Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	await("the service", func() bool { return service() != nil })
	if got, want := service().ClusterIPs, netip.MustParseAddr(created.Spec.ClusterIP); len(got) != 1 || got[0] != want {
		t.Errorf("cluster IPs %v, want %v", got, want)
	}
	await("its slice", func() bool { e, _ := cat.Service(web); return len(e.Slices) == 1 })

	// A crash of the API server forgets nothing.
	sub := cat.Subscribe()
	defer sub.Close()
	sub.Take()
	before := cat.Counts()
	reg.Kill()
	await("the loss to be seen", func() bool {
		for _, s := range src.Status() {
			if s.Connected {
				return false
			}
		}
		return true
	})
	if got := cat.Counts(); got != before {
		t.Errorf("without the API the catalogue holds %+v, want %+v as before", got, before)
	}
	reg.Restart(t)
	if err := api.Services("default").Delete(ctx, "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await("the deletion, seen after the restart", func() bool { return service() == nil })
	await("all watches to be back", func() bool {
		for _, s := range src.Status() {
			if !s.Connected {
				return false
			}
		}
		return true
	})
	for _, n := range sub.Take().Services {
		if n != web {
			t.Errorf("%v is reported as changed by the restart", n)
		}
	}
}
