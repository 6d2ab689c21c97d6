// Package kube fills the catalogue from the Kubernetes API.
//
// Each kind has a reflector of client-go (streaming list, watch, bookmarks,
// reconnect with backoff) that feeds a store of ours. The store converts each
// API object at the edge and drops it, so nothing keeps a second copy. What is
// known stays known while the API is away, and a relist replaces it only once
// the new list is complete.
package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/rutter-project/rutter/internal/catalog"
)

// Config says what to watch.
type Config struct {
	REST *rest.Config
	// Kinds are the kinds to watch; the catalogue should require the same.
	Kinds catalog.Kind
	// OnNode restricts nodes to the one of that name and pods to those on it,
	// so that what a node's agent costs does not grow with the other nodes;
	// empty means all.
	OnNode string
	// KeepLabels keeps the labels of services, slices, namespaces and pods,
	// for DNS servers that select by label.
	KeepLabels bool
	Log        *slog.Logger
}

// Source watches the API on behalf of one catalogue.
type Source struct {
	cfg   Config
	cat   *catalog.Catalog
	kinds []*kind
}

// kind is one watched resource.
type kind struct {
	of       catalog.Kind
	resource string
	object   runtime.Object
	list     func() runtime.Object
	client   rest.Interface
	selector fields.Selector
	store    *store

	mu      sync.Mutex
	status  Status
	watches int // opened so far: an old one that ends late says nothing of the present
}

// nodeField is what names the node in objects of which there are some per node.
var nodeField = map[catalog.Kind]string{catalog.Nodes: "metadata.name", catalog.Pods: "spec.nodeName"}

// Status tells how one kind's watch is doing.
type Status struct {
	Kind      catalog.Kind
	Connected bool      // a watch is open
	Since     time.Time // since when Connected is what it is
	LastEvent time.Time // last event or bookmark
	Error     string    // why the last list or watch failed; empty while connected
}

// New prepares a source; nothing is contacted before Run.
func New(cfg Config, cat *catalog.Catalog) (*Source, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, discoveryv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("register API types: %w", err)
		}
	}
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	codecs := serializer.NewCodecFactory(scheme)
	client := func(gv schema.GroupVersion, path string) (rest.Interface, error) {
		c := rest.CopyConfig(cfg.REST)
		c.GroupVersion = &gv
		c.APIPath = path
		c.NegotiatedSerializer = codecs.WithoutConversion()
		if c.ContentType == "" {
			c.ContentType = runtime.ContentTypeProtobuf
			c.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
		}
		return rest.RESTClientFor(c)
	}
	core, err := client(corev1.SchemeGroupVersion, "/api")
	if err != nil {
		return nil, fmt.Errorf("make API client: %w", err)
	}
	discovery, err := client(discoveryv1.SchemeGroupVersion, "/apis")
	if err != nil {
		return nil, fmt.Errorf("make API client: %w", err)
	}
	s := &Source{cfg: cfg, cat: cat}
	add := func(of catalog.Kind, client rest.Interface, object runtime.Object, list func() runtime.Object, st func(*converter) *store) {
		if cfg.Kinds&of == 0 {
			return
		}
		k := &kind{of: of, resource: of.String(), object: object, list: list, client: client, selector: fields.Everything(), store: st(newConverter(cfg.KeepLabels))}
		k.status = Status{Kind: of, Since: time.Now()}
		if field, ok := nodeField[of]; ok && cfg.OnNode != "" {
			k.selector = fields.OneTermEqualSelector(field, cfg.OnNode)
		}
		s.kinds = append(s.kinds, k)
	}
	// Namespaces and nodes come first in the list because they are few and what
	// follows refers to them; nothing depends on the order.
	add(catalog.Namespaces, core, &corev1.Namespace{}, func() runtime.Object { return &corev1.NamespaceList{} }, s.namespaces)
	add(catalog.Nodes, core, &corev1.Node{}, func() runtime.Object { return &corev1.NodeList{} }, s.nodes)
	add(catalog.Services, core, &corev1.Service{}, func() runtime.Object { return &corev1.ServiceList{} }, s.services)
	add(catalog.EndpointSlices, discovery, &discoveryv1.EndpointSlice{}, func() runtime.Object { return &discoveryv1.EndpointSliceList{} }, s.endpointSlices)
	add(catalog.Pods, core, &corev1.Pod{}, func() runtime.Object { return &corev1.PodList{} }, s.pods)
	return s, nil
}

// Run watches until ctx ends. Failures are logged, retried and visible in
// Status; it never gives up.
func (s *Source) Run(ctx context.Context) {
	var wg sync.WaitGroup
	logger := klog.Logger(logr.FromSlogHandler(quiet{s.cfg.Log.Handler()}))
	for _, k := range s.kinds {
		r := cache.NewReflectorWithOptions(s.listWatch(k), k.object, k.store, cache.ReflectorOptions{
			Logger:          &logger,
			Name:            "rutter",
			TypeDescription: k.resource,
			// The default waits up to 30 s: a registry that comes back after a
			// restart should be noticed sooner. Jitter keeps a fleet apart.
			Backoff: &wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 6, Cap: 5 * time.Second},
		})
		wg.Go(func() { r.RunWithContext(klog.NewContext(ctx, logger)) })
	}
	wg.Wait()
}

// Status returns how the watches are doing, in a fixed order.
func (s *Source) Status() []Status {
	out := make([]Status, len(s.kinds))
	for i, k := range s.kinds {
		k.mu.Lock()
		out[i] = k.status
		k.mu.Unlock()
	}
	return out
}

func (s *Source) listWatch(k *kind) *cache.ListWatch {
	failed := func(ctx context.Context, doing string, err error) error {
		if ctx.Err() != nil {
			return err
		}
		k.mu.Lock()
		first := k.status.Error == "" // say it once, not on each retry
		if k.status.Connected {
			k.status.Connected, k.status.Since = false, time.Now()
		}
		k.status.Error = err.Error()
		k.mu.Unlock()
		if first {
			s.cfg.Log.Warn("API "+doing+" failed; what is known is kept and it is tried again", "resource", k.resource, "error", err)
		}
		return err
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = k.selector.String()
			list := k.list()
			err := k.client.Get().Resource(k.resource).VersionedParams(&o, metav1.ParameterCodec).Do(ctx).Into(list)
			if err != nil {
				return nil, failed(ctx, "list", err)
			}
			return list, nil
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.Watch = true
			o.FieldSelector = k.selector.String()
			w, err := k.client.Get().Resource(k.resource).VersionedParams(&o, metav1.ParameterCodec).Watch(ctx)
			if err != nil {
				return nil, failed(ctx, "watch", err)
			}
			k.mu.Lock()
			again := k.status.Error != ""
			now := time.Now()
			if !k.status.Connected {
				k.status.Connected, k.status.Since = true, now
			}
			k.status.Error, k.status.LastEvent = "", now
			k.watches++
			number := k.watches
			k.mu.Unlock()
			if again {
				s.cfg.Log.Info("API watch is back", "resource", k.resource)
			}
			return &observed{Interface: w, kind: k, number: number, done: make(chan struct{}), out: make(chan watch.Event)}, nil
		},
	}
}

// observed is a watch that keeps its kind's status.
type observed struct {
	watch.Interface
	kind   *kind
	number int
	start  sync.Once
	stop   sync.Once
	done   chan struct{}
	out    chan watch.Event
}

func (o *observed) Stop() {
	o.stop.Do(func() { close(o.done) })
	o.Interface.Stop()
}

func (o *observed) ResultChan() <-chan watch.Event {
	o.start.Do(func() { go o.pump() })
	return o.out
}

func (o *observed) pump() {
	defer close(o.out)
	for e := range o.Interface.ResultChan() {
		o.kind.mu.Lock()
		o.kind.status.LastEvent = time.Now()
		o.kind.mu.Unlock()
		select {
		case o.out <- e:
		case <-o.done:
			return
		}
	}
	// The server ends watches after some minutes; the reflector opens the next
	// at once. If it cannot, failed says why.
	o.kind.mu.Lock()
	defer o.kind.mu.Unlock()
	if o.kind.watches == o.number {
		o.kind.status.Connected, o.kind.status.Since = false, time.Now()
	}
}

// store is the cache.ReflectorStore of one kind: convert, apply, forget.
type store struct {
	mu      sync.Mutex // the converter's tables
	convert func(any) (any, error)
	apply   func(any)
	remove  func(any)
	replace func([]any)
}

var errUnexpected = errors.New("unexpected object")

// Transformer lets the reflector's temporary list, too, hold converted values.
func (s *store) Transformer() cache.TransformFunc {
	return func(o any) (any, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.convert(o)
	}
}

func (s *store) Add(o any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.convert(o)
	if err != nil {
		return err
	}
	s.apply(v)
	return nil
}

func (s *store) Update(o any) error { return s.Add(o) }

func (s *store) Delete(o any) error {
	if d, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = d.Obj
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.convert(o)
	if err != nil {
		return err
	}
	s.remove(v)
	return nil
}

func (s *store) Replace(list []any, _ string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, o := range list {
		v, err := s.convert(o)
		if err != nil {
			return err
		}
		list[i] = v
	}
	s.replace(list)
	return nil
}

func (s *store) Resync() error { return nil }

// newStore builds a store from functions on the kind's own types. A value that
// is converted already (the streamed list's) passes through convert unchanged.
func newStore[API runtime.Object, V any](convert func(API) V, apply, remove func(V), replace func([]V)) *store {
	return &store{
		convert: func(o any) (any, error) {
			switch o := o.(type) {
			case API:
				return convert(o), nil
			case V:
				return o, nil
			}
			return nil, fmt.Errorf("%w of type %T", errUnexpected, o)
		},
		apply:  func(v any) { apply(v.(V)) },
		remove: func(v any) { remove(v.(V)) },
		replace: func(list []any) {
			typed := make([]V, len(list))
			for i, v := range list {
				typed[i] = v.(V)
			}
			replace(typed)
		},
	}
}

func (s *Source) services(c *converter) *store {
	return newStore(c.service, s.cat.ApplyService, func(v *catalog.Service) { s.cat.RemoveService(v.Name) }, s.cat.ReplaceServices)
}

func (s *Source) endpointSlices(c *converter) *store {
	return newStore(c.endpointSlice, s.cat.ApplySlice, func(v *catalog.EndpointSlice) { s.cat.RemoveSlice(v.Namespace, v.Name) }, s.cat.ReplaceSlices)
}

func (s *Source) namespaces(c *converter) *store {
	return newStore(c.namespace, s.cat.ApplyNamespace, func(v *catalog.Namespace) { s.cat.RemoveNamespace(v.Name) }, s.cat.ReplaceNamespaces)
}

func (s *Source) nodes(c *converter) *store {
	return newStore(c.node, s.cat.ApplyNode, func(v *catalog.Node) { s.cat.RemoveNode(v.Name) }, s.cat.ReplaceNodes)
}

func (s *Source) pods(c *converter) *store {
	return newStore(c.pod, s.cat.ApplyPod, func(v *catalog.Pod) { s.cat.RemovePod(v.Namespace, v.Name) }, s.cat.ReplacePods)
}

// quiet lowers the reflectors' own messages to debug: what matters of them is
// said by listWatch, in our words and once.
type quiet struct{ slog.Handler }

func (q quiet) Enabled(ctx context.Context, _ slog.Level) bool {
	return q.Handler.Enabled(ctx, slog.LevelDebug)
}

func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	if !q.Enabled(ctx, r.Level) {
		return nil // klog hands over errors without asking
	}
	return q.Handler.Handle(ctx, r)
}

func (q quiet) WithAttrs(a []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(a)} }
func (q quiet) WithGroup(n string) slog.Handler      { return quiet{q.Handler.WithGroup(n)} }
