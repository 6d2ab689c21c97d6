package apiserver

import (
	"context"
	"errors"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/kubernetes/pkg/serviceaccount"
)

// boundObjects looks up what a service account token is bound to: a token of
// a deleted account or pod is refused. It asks the API (the watch cache, in
// this process). kube-apiserver's own keeps informers of all Pods, Secrets,
// ServiceAccounts and Nodes for this; here tokens are rare and the copies
// would be most of the server's memory.
type boundObjects struct {
	client atomic.Pointer[kubernetes.Clientset] // set when the server is built, before it serves
}

func (b *boundObjects) getter(informers.SharedInformerFactory) serviceaccount.ServiceAccountTokenGetter {
	return b
}

func (b *boundObjects) GetServiceAccount(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error) {
	c, err := b.get()
	if err != nil {
		return nil, err
	}
	return c.CoreV1().ServiceAccounts(namespace).Get(ctx, name, metav1.GetOptions{})
}

func (b *boundObjects) GetPod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	c, err := b.get()
	if err != nil {
		return nil, err
	}
	return c.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
}

func (b *boundObjects) GetSecret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	c, err := b.get()
	if err != nil {
		return nil, err
	}
	return c.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
}

func (b *boundObjects) GetNode(ctx context.Context, name string) (*corev1.Node, error) {
	c, err := b.get()
	if err != nil {
		return nil, err
	}
	return c.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
}

func (b *boundObjects) get() (*kubernetes.Clientset, error) {
	if c := b.client.Load(); c != nil {
		return c, nil
	}
	return nil, errors.New("the API server is still being built")
}
