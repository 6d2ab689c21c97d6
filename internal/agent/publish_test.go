package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rutter-project/rutter/internal/catalog"
)

// recorder is a dataplane and a DNS that write down what they are asked, in
// one list.
type recorder struct {
	mu   sync.Mutex
	log  []string
	fail func(call int) error
	n    int
}

func (r *recorder) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log = append(r.log, fmt.Sprintf(format, args...))
}

func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.log
	r.log = nil
	return out
}

func sorted(ch catalog.Changes) []string {
	var out []string
	for _, n := range ch.Services {
		out = append(out, n.Name)
	}
	slices.Sort(out)
	return out
}

func (r *recorder) Apply(ctx context.Context, ch catalog.Changes) error {
	r.n++
	r.note("apply %v", sorted(ch))
	if r.fail != nil {
		return r.fail(r.n)
	}
	return nil
}
func (r *recorder) Withdraw(_ *catalog.Catalog, ch catalog.Changes) {
	r.note("withdraw %v", sorted(ch))
}
func (r *recorder) Publish(_ *catalog.Catalog, ch catalog.Changes) { r.note("publish %v", sorted(ch)) }

func service(name string) *catalog.Service {
	return &catalog.Service{Name: catalog.ServiceName{Namespace: "default", Name: name}, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")}}
}

func start(t *testing.T, cat *catalog.Catalog, r *recorder) *publisher {
	ctx, cancel := context.WithCancel(t.Context())
	p := &publisher{cat: cat, dataplane: r, names: r,
		log: slog.New(slog.DiscardHandler), observe: func(int, time.Duration, error) {}}
	done := make(chan struct{})
	go func() { defer close(done); p.run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return p
}

func TestPublishOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cat := catalog.New(catalog.Services)
		cat.ApplyService(service("early"))
		r := &recorder{}
		start(t, cat, r)
		synctest.Wait()
		if got := r.take(); got != nil {
			t.Fatalf("before the catalogue was complete: %v", got)
		}
		cat.ReplaceServices([]*catalog.Service{service("web"), service("db")})
		synctest.Wait()
		want := []string{"withdraw [db web]", "apply [db web]", "publish [db web]"}
		if got := r.take(); !slices.Equal(got, want) {
			t.Errorf("first picture: %v, want %v", got, want)
		}
		cat.RemoveService(catalog.ServiceName{Namespace: "default", Name: "db"})
		synctest.Wait()
		want = []string{"withdraw [db]", "apply [db]", "publish [db]"}
		if got := r.take(); !slices.Equal(got, want) {
			t.Errorf("a removed service: %v, want %v", got, want)
		}
	})
}

func TestNamesArePublishedWithoutADataplaneThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cat := catalog.New(catalog.Services)
		r := &recorder{fail: func(call int) error {
			if call <= 2 {
				return errors.New("no")
			}
			return nil
		}}
		p := start(t, cat, r)
		cat.ReplaceServices([]*catalog.Service{service("web")})
		synctest.Wait()
		want := []string{"withdraw [web]", "apply [web]", "publish [web]"}
		if got := r.take(); !slices.Equal(got, want) {
			t.Errorf("the failing batch: %v, want %v", got, want)
		}
		if s := p.status(); s.Unconfirmed != 1 || s.Error != "no" {
			t.Errorf("status %+v does not tell of the failure", s)
		}
		cat.ApplyService(service("db")) // joins the retry, and fails with it
		synctest.Wait()
		time.Sleep(retryDelay)
		synctest.Wait()
		if got := r.take(); !slices.Contains(got, "apply [db web]") {
			t.Errorf("retried: %v, want both services in it", got)
		}
		if s := p.status(); s.Unconfirmed != 0 || s.Error != "" {
			t.Errorf("status %+v after it worked", s)
		}
	})
}

func TestANewNameWaitsForItsFirstSlice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cat := catalog.New(catalog.Services)
		r := &recorder{}
		start(t, cat, r)
		cat.ReplaceServices(nil)
		synctest.Wait()
		r.take()
		selected := func(name string) *catalog.Service {
			s := service(name)
			s.Selected = true
			return s
		}
		cat.ApplyService(selected("web"))
		synctest.Wait()
		want := []string{"withdraw [web]", "apply [web]", "publish []"}
		if got := r.take(); !slices.Equal(got, want) {
			t.Errorf("before the slice: %v, want %v", got, want)
		}
		cat.ApplySlice(&catalog.EndpointSlice{Namespace: "default", Name: "web-x", Service: "web"})
		synctest.Wait()
		want = []string{"withdraw [web]", "apply [web]", "publish [web]"}
		if got := r.take(); !slices.Equal(got, want) {
			t.Errorf("with the slice: %v, want %v", got, want)
		}
		// Nobody writes slices for this one: it is not held for ever.
		cat.ApplyService(selected("lonely"))
		synctest.Wait()
		r.take()
		time.Sleep(sliceBound)
		synctest.Wait()
		if got := r.take(); !slices.Equal(got, []string{"publish [lonely]"}) {
			t.Errorf("after the bound: %v, want the name published", got)
		}
		time.Sleep(10 * sliceBound)
		synctest.Wait()
		if got := r.take(); got != nil {
			t.Errorf("later: %v, want nothing more", got)
		}
	})
}
