package kubeapi

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
)

// Client talks to one API server about core/v1. It is safe for concurrent use.
type Client struct {
	rest   *rest.RESTClient
	params runtime.ParameterCodec
	host   string
}

// New makes a client from cfg, which is not changed.
func New(cfg *rest.Config) (*Client, error) {
	return newClient(cfg, "/api", corev1.SchemeGroupVersion, corev1.AddToScheme)
}

// newClient makes a client for one API group, of which add knows the types.
func newClient(cfg *rest.Config, path string, gv schema.GroupVersion, add func(*runtime.Scheme) error) (*Client, error) {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, gv)
	utilruntime.Must(add(scheme))

	c := rest.CopyConfig(cfg)
	c.APIPath = path
	c.GroupVersion = &gv
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	c.ContentType = runtime.ContentTypeProtobuf
	c.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("making a client for %s: %w", cfg.Host, err)
	}
	return &Client{rest: client, params: runtime.NewParameterCodec(scheme), host: cfg.Host}, nil
}

// Open loads the kubeconfig at path and makes a client from it.
func Open(path string) (*Client, error) {
	cfg, err := Load(path)
	if err != nil {
		return nil, err
	}
	return New(cfg)
}

// The kinds a node deals with. An empty namespace means all of them, which
// only List and Watch accept.

func (c *Client) Nodes() Resource[corev1.Node, corev1.NodeList] {
	return Resource[corev1.Node, corev1.NodeList]{c, "nodes", ""}
}

func (c *Client) Namespaces() Resource[corev1.Namespace, corev1.NamespaceList] {
	return Resource[corev1.Namespace, corev1.NamespaceList]{c, "namespaces", ""}
}

func (c *Client) Pods(namespace string) Resource[corev1.Pod, corev1.PodList] {
	return Resource[corev1.Pod, corev1.PodList]{c, "pods", namespace}
}

func (c *Client) Services(namespace string) Resource[corev1.Service, corev1.ServiceList] {
	return Resource[corev1.Service, corev1.ServiceList]{c, "services", namespace}
}

func (c *Client) Events(namespace string) Resource[corev1.Event, corev1.EventList] {
	return Resource[corev1.Event, corev1.EventList]{c, "events", namespace}
}

// Ready asks the server's /readyz.
func (c *Client) Ready(ctx context.Context) error {
	return c.Explain(c.rest.Get().AbsPath("/readyz").Do(ctx).Error())
}

// Resource is the verbs on one kind. Errors carry the API's status, so
// apierrors.IsNotFound and its like work on them; Explain words them for a
// person.
type Resource[T, L any] struct {
	c         *Client
	name      string
	namespace string
}

func (r Resource[T, L]) Get(ctx context.Context, name string) (*T, error) {
	return into[T](ctx, r.scope(r.c.rest.Get()).Name(name))
}

func (r Resource[T, L]) List(ctx context.Context, opts metav1.ListOptions) (*L, error) {
	return into[L](ctx, r.scope(r.c.rest.Get()).VersionedParams(&opts, r.c.params))
}

func (r Resource[T, L]) Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	opts.Watch = true
	req := r.scope(r.c.rest.Get()).VersionedParams(&opts, r.c.params)
	if opts.TimeoutSeconds != nil {
		req = req.Timeout(time.Duration(*opts.TimeoutSeconds) * time.Second)
	}
	return req.Watch(ctx)
}

func (r Resource[T, L]) Create(ctx context.Context, obj *T) (*T, error) {
	return into[T](ctx, r.scope(r.c.rest.Post()).Body(any(obj)))
}

func (r Resource[T, L]) Update(ctx context.Context, name string, obj *T, subresources ...string) (*T, error) {
	return into[T](ctx, r.scope(r.c.rest.Put()).Name(name).SubResource(subresources...).Body(any(obj)))
}

// Patch sends body as a patch of the given type. To bind it to one incarnation
// of the object, put metadata.uid into the body: the server answers Conflict
// if another object has taken the name.
func (r Resource[T, L]) Patch(ctx context.Context, name string, kind types.PatchType, body []byte, subresources ...string) (*T, error) {
	return into[T](ctx, r.scope(r.c.rest.Patch(kind)).Name(name).SubResource(subresources...).Body(body))
}

func (r Resource[T, L]) Delete(ctx context.Context, name string, opts metav1.DeleteOptions) error {
	return r.scope(r.c.rest.Delete()).Name(name).Body(&opts).Do(ctx).Error()
}

func (r Resource[T, L]) scope(req *rest.Request) *rest.Request {
	// The callers know what to wait for and how long; ten tries of a second each
	// are not it.
	return req.MaxRetries(0).NamespaceIfScoped(r.namespace, r.namespace != "").Resource(r.name)
}

// into sends the request and decodes the answer; T's pointer is an API object
// by construction of the resources above.
func into[T any](ctx context.Context, req *rest.Request) (*T, error) {
	out := new(T)
	if err := req.Do(ctx).Into(any(out).(runtime.Object)); err != nil {
		return nil, err
	}
	return out, nil
}
