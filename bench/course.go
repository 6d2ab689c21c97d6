package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/rutter-project/rutter/conformance/peer"
)

// Services that are not of the cluster's shape: one whose endpoint moves, one
// to send much to, some that are added one by one, and those of the churn.
const (
	marker    service = 60000
	bulk      service = 60001
	single    service = 60100
	churned   service = 61000
	churns            = 1000
	rolls             = 1000 // pods of the rolling update
	maxSize           = 59000
	bulkPod           = 1 // numbers for pod
	markerPod         = 1 << 16
	rolledPod         = 2 << 16
)

// course is what every contender goes through with a cluster of one size.
type course struct {
	*bench
	ctx  context.Context
	reg  *peer.Registry
	size shape

	pods   uint32 // addresses given out
	rolled bool
}

// proxyResult is what was seen of one contender.
type proxyResult struct {
	proxyContender
	err      error // that ended the course
	over     bool  // the first programming took longer than the bound
	first    time.Duration
	synced   time.Duration // the part of it that was not reading from the API
	firstCPU time.Duration

	changed, added operation // one endpoint; one service
	partial        time.Duration
	churn, roll    mass

	memory peer.Memory

	connections connections
	throughput  float64
}

// operation is a change done several times.
type operation struct {
	fromWrite, fromEvent []time.Duration // until a connection shows it
	cpu                  []time.Duration
	over                 bool
}

// mass is many changes at once.
type mass struct {
	took  time.Duration // first write → all in force
	after time.Duration // last write → all in force
	cpu   time.Duration
	over  bool
}

const directName = "no proxy"

// direct measures what there is without a proxy.
func (c *course) direct() (*proxyResult, error) {
	r := &proxyResult{proxyContender: proxyContender{name: directName}}
	g, err := newGround(c.reg.Address())
	if err != nil {
		return r, err
	}
	to := make([]netip.Addr, 16)
	for i := range to {
		to[i] = service(0).endpoint(i, 16)
	}
	if r.connections, err = g.connect(to, c.count()); err == nil && c.size.services == 1 {
		r.throughput, err = g.throughput(netip.AddrPortFrom(pod(bulkPod), sinkPort), c.sending())
	}
	return r, errors.Join(err, g.close())
}

func (c *course) count() int {
	if c.short {
		return 2000
	}
	return 20000
}

func (c *course) sending() time.Duration {
	if c.short {
		return 300 * time.Millisecond
	}
	return 3 * time.Second
}

// run runs a contender over the course.
func (c *course) run(dir string, r *proxyResult) (err error) {
	g, err := newGround(c.reg.Address())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.close()) }()
	p, err := r.start(c.bench, dir, c.reg, g.node)
	if err != nil {
		return err
	}
	defer p.Stop()
	r.first, err = g.firstProgramming(c.ctx, p.Process, c.size, c.patience)
	if errors.Is(err, errBound) {
		r.over = true
		return nil
	}
	if err != nil {
		return err
	}
	if err := p.Idle(quietPeriod, c.patience); err != nil {
		return err
	}
	if r.firstCPU, err = p.CPUWithChildren(); err != nil {
		return err
	}
	if r.synced, _, err = p.counter(fullSync); err != nil {
		return err
	}
	if r.connections, err = g.connect(c.vips(), c.count()); err != nil {
		return err
	}
	if c.size.services == 1 {
		r.throughput, err = g.throughput(netip.AddrPortFrom(bulk.clusterIP(), servicePort), c.sending())
		return err
	}
	before, n, err := p.counter(partialSync)
	if err != nil {
		return err
	}
	if err := c.several(&r.changed, 7, p, func(i int) error { return c.moveMarker(g, &r.changed) }); err != nil {
		return fmt.Errorf("changing one endpoint: %w", err)
	}
	after, m, err := p.counter(partialSync)
	if err != nil {
		return err
	}
	if m > n {
		r.partial = (after - before) / time.Duration(m-n)
	}
	if err := c.several(&r.added, 3, p, func(i int) error { return c.addOne(g, &r.added, i) }); err != nil {
		return fmt.Errorf("adding one service: %w", err)
	}
	if err := c.inMass(&r.churn, p, g, c.churn); err != nil {
		return fmt.Errorf("adding and removing services: %w", err)
	}
	if err := c.inMass(&r.roll, p, g, c.roll); err != nil {
		return fmt.Errorf("rolling update: %w", err)
	}
	r.memory, err = p.Memory()
	return err
}

// vips are the addresses of all services.
func (c *course) vips() []netip.Addr {
	list := make([]netip.Addr, c.size.services)
	for i := range list {
		list[i] = service(i).clusterIP()
	}
	return list
}

// several does an operation n times, or three times if it is slow, and notes
// the CPU time that the proxy spends on each.
func (c *course) several(op *operation, n int, p *proxyProcess, once func(i int) error) error {
	if c.short {
		n = min(n, 3)
	}
	for i := range n {
		before, err := p.CPUWithChildren()
		if err != nil {
			return err
		}
		err = once(i)
		if errors.Is(err, errBound) {
			op.over = true
			return nil
		}
		if err != nil {
			return err
		}
		if err := p.Idle(quietPeriod, c.patience); err != nil {
			return err
		}
		after, err := p.CPUWithChildren()
		if err != nil {
			return err
		}
		op.cpu = append(op.cpu, after-before)
		if i == 2 && op.fromWrite[i] > time.Second {
			break
		}
	}
	return nil
}

// inMass does many changes, moves the marker after the last, and waits for that:
// both kinds of objects come in the order in which they were written, so what
// was written before is in force too.
func (c *course) inMass(m *mass, p *proxyProcess, g *ground, changes func() error) error {
	before, err := p.CPUWithChildren()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := changes(); err != nil {
		return err
	}
	last := time.Now()
	inForce, err := c.mark(g)
	if errors.Is(err, errBound) {
		m.over = true
		return nil
	}
	if err != nil {
		return err
	}
	m.took, m.after = inForce.Sub(start), max(0, inForce.Sub(last))
	if err := p.Idle(quietPeriod, c.patience); err != nil {
		return err
	}
	after, err := p.CPUWithChildren()
	m.cpu = after - before
	return err
}

// pod is an address of podRange beyond those of the cluster's shape.
func pod(i uint32) netip.Addr { return ipv4(10<<24 | 160<<16 + i) }

// newPod is an address that was not there before.
func (c *course) newPod() netip.Addr {
	c.pods++
	return pod(markerPod + c.pods)
}

// addBulk makes the service that much is sent to, and the marker.
func (c *course) addBulk() error {
	b, m := bulk.object(false), marker.slice(1)
	b.Spec.Ports[0].TargetPort = intstr.FromInt32(sinkPort)
	s := bulk.slice(1)
	s.Endpoints[0].Addresses = []string{pod(bulkPod).String()}
	port := int32(sinkPort)
	s.Ports[0].Port = &port
	m.Endpoints[0].Addresses = []string{c.newPod().String()}
	return errors.Join(c.make(b, s), c.make(marker.object(false), m))
}

func (c *course) make(s *corev1.Service, slice *discoveryv1.EndpointSlice) error {
	return errors.Join(
		makeOne(func() error {
			_, err := c.reg.Client.DiscoveryV1().EndpointSlices(slice.Namespace).Create(c.ctx, slice, metav1.CreateOptions{})
			return err
		}),
		makeOne(func() error { return createService(c.ctx, c.reg.Client, s) }))
}

func (c *course) unmake(i service) error {
	gone := func(err error) error {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	}
	return errors.Join(
		makeOne(func() error {
			return gone(c.reg.Client.CoreV1().Services(i.namespace()).Delete(c.ctx, i.name(), metav1.DeleteOptions{}))
		}),
		makeOne(func() error {
			return gone(c.reg.Client.DiscoveryV1().EndpointSlices(i.namespace()).Delete(c.ctx, i.name()+"-1", metav1.DeleteOptions{}))
		}))
}

// mark moves the marker's endpoint and waits until a connection shows it.
func (c *course) mark(g *ground) (time.Time, error) {
	addr := c.newPod()
	if err := c.update(marker, func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Addresses = []string{addr.String()} }); err != nil {
		return time.Time{}, err
	}
	return g.awaitOne(c.ctx, marker.clusterIP(), addr, c.patience)
}

// update changes the slice of a service.
func (c *course) update(i service, change func(*discoveryv1.EndpointSlice)) error {
	api := c.reg.Client.DiscoveryV1().EndpointSlices(i.namespace())
	s, err := api.Get(c.ctx, i.name()+"-1", metav1.GetOptions{})
	if err != nil {
		return err
	}
	change(s)
	_, err = api.Update(c.ctx, s, metav1.UpdateOptions{})
	return err
}

// moveMarker changes one endpoint. Its service has no other, so that the next
// connection shows the change.
func (c *course) moveMarker(g *ground, op *operation) error {
	api := c.reg.Client.DiscoveryV1().EndpointSlices(marker.namespace())
	old, err := api.Get(c.ctx, marker.name()+"-1", metav1.GetOptions{})
	if err != nil {
		return err
	}
	// This process's own watch sees the event when the proxy's does. It begins
	// now: the slice's own version may be older than the server's memory.
	now, err := api.List(c.ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return err
	}
	w, err := api.Watch(c.ctx, metav1.ListOptions{ResourceVersion: now.ResourceVersion,
		FieldSelector: fields.OneTermEqualSelector("metadata.name", old.Name).String()})
	if err != nil {
		return err
	}
	defer w.Stop()
	events := make(chan time.Time, 1)
	go func() {
		defer close(events)
		for e := range w.ResultChan() {
			if s, ok := e.Object.(*discoveryv1.EndpointSlice); ok && e.Type == watch.Modified && s.ResourceVersion != old.ResourceVersion {
				events <- time.Now()
				return
			}
		}
	}()
	addr := c.newPod()
	old.Endpoints[0].Addresses = []string{addr.String()}
	return c.time(g, op, marker.clusterIP(), addr, events, func() error {
		_, err := api.Update(c.ctx, old, metav1.UpdateOptions{})
		return err
	})
}

// time measures from a write, and from its event if events is given, to the
// first connection that arrives at an endpoint.
func (c *course) time(g *ground, op *operation, vip, endpoint netip.Addr, events <-chan time.Time, write func() error) error {
	written, failed := make(chan time.Time, 1), make(chan error, 1)
	go func() {
		time.Sleep(5 * time.Millisecond) // the client connects already
		written <- time.Now()
		failed <- write()
	}()
	at, err := g.awaitOne(c.ctx, vip, endpoint, c.patience)
	if err := errors.Join(<-failed, err); err != nil {
		return err
	}
	op.fromWrite = append(op.fromWrite, at.Sub(<-written))
	if events == nil {
		return nil
	}
	event, ok := <-events
	if !ok {
		return errors.New("the watch of this benchmark ended before its event")
	}
	op.fromEvent = append(op.fromEvent, max(0, at.Sub(event)))
	return nil
}

// addOne adds a service whose endpoints are known already.
func (c *course) addOne(g *ground, op *operation, i int) error {
	s := single + service(i)
	slice := s.slice(1)
	addr := c.newPod()
	slice.Endpoints[0].Addresses = []string{addr.String()}
	if _, err := c.reg.Client.DiscoveryV1().EndpointSlices(s.namespace()).Create(c.ctx, slice, metav1.CreateOptions{}); err != nil {
		return err
	}
	return c.time(g, op, s.clusterIP(), addr, nil, func() error {
		return createService(c.ctx, c.reg.Client, s.object(false))
	})
}

// churn adds services and removes them.
func (c *course) churn() error {
	n := churns
	if c.short {
		n /= 10
	}
	return errors.Join(
		c.parallel(n, func(i int) error {
			s := churned + service(i)
			return c.make(s.object(false), s.slice(c.size.endpoints))
		}),
		c.parallel(n, func(i int) error { return c.unmake(churned + service(i)) }))
}

// roll replaces all pods of some services: of each service one after the other,
// which is terminating for a while beside the new one.
func (c *course) roll() error {
	c.rolled = true
	return c.parallel(c.rolling(), func(i int) error {
		no, yes := false, true
		for k := range c.size.endpoints {
			addr := c.newRolled(i, k)
			err := errors.Join(
				c.update(service(i), func(s *discoveryv1.EndpointSlice) {
					e := s.Endpoints[0]
					e.Addresses = []string{addr.String()}
					s.Endpoints[0].Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}
					s.Endpoints = append(s.Endpoints, e)
				}),
				c.update(service(i), func(s *discoveryv1.EndpointSlice) { s.Endpoints = s.Endpoints[1:] }))
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// newRolled is the address of a new pod in the place of an old one.
func (c *course) newRolled(i, k int) netip.Addr {
	return pod(rolledPod + uint32(i*c.size.endpoints+k))
}

// rolling is how many services the rolling update goes over.
func (c *course) rolling() int {
	n := rolls
	if c.short {
		n /= 10
	}
	return min(n/c.size.endpoints, c.size.services)
}

// restore makes the cluster what it was for the next contender.
func (c *course) restore() error {
	errs := []error{}
	for i := range 3 {
		errs = append(errs, c.unmake(single+service(i)))
	}
	if c.rolled {
		c.rolled = false
		errs = append(errs, c.parallel(c.rolling(), func(i int) error {
			return c.update(service(i), func(s *discoveryv1.EndpointSlice) { s.Endpoints = service(i).slice(c.size.endpoints).Endpoints })
		}))
	}
	return errors.Join(errs...)
}

// parallel calls f for 0 to n-1, many at a time, until one fails.
func (c *course) parallel(n int, f func(int) error) error {
	var next atomic.Int64
	var mu sync.Mutex
	var failed error
	var workers sync.WaitGroup
	for range parallel {
		workers.Go(func() {
			for {
				i := int(next.Add(1) - 1)
				if i >= n {
					return
				}
				if err := f(i); err != nil {
					mu.Lock()
					failed = errors.Join(failed, err)
					mu.Unlock()
					next.Store(int64(n))
					return
				}
			}
		})
	}
	workers.Wait()
	return failed
}
