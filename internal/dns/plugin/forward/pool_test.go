package forward

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

// TestSlowUpstream: a query that waits for one upstream holds up no query to
// another, or to the same.
func TestSlowUpstream(t *testing.T) {
	release := make(chan struct{})
	slow := plugintest.Upstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
		if r.Question[0].Name == "slow." {
			<-release
		}
		_ = w.WriteMsg(plugintest.Reply(r, dns.RcodeSuccess))
	})
	s := plugintest.Start(t, ". {\nforward . "+slow+" {\nread_timeout 4s\n}\n}\n", order...)
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = s.Ask("slow. A") })
	for range 20 {
		want(t, s, "fast. A", "NOERROR ra\n")
	}
	close(release)
	wg.Wait()
}

// TestTidy: idle connections are closed after expire, all but max_idle_conns
// at once, and old ones after max_age.
func TestTidy(t *testing.T) {
	addr := plugintest.Upstream(t, answer("192.0.2.1"))
	newPool := func() *pool {
		return &pool{
			dial:   func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "tcp", addr) },
			stream: true, expire: time.Minute,
		}
	}
	open := func(p *pool, n int) {
		t.Helper()
		var done []func()
		for range n {
			k, id, _, err := p.get(t.Context(), make(chan result, 1))
			if err != nil {
				t.Fatal(err)
			}
			done = append(done, func() { k.remove(id) })
		}
		for _, f := range done {
			f()
		}
	}
	count := func(p *pool, want int) {
		t.Helper()
		p.mu.Lock()
		n := len(p.conns)
		p.mu.Unlock()
		if n != want {
			t.Errorf("%d connections are open, want %d", n, want)
		}
	}
	now := time.Now()

	p := newPool()
	open(p, 3)
	count(p, 3)
	p.tidy(now)
	count(p, 3)
	p.tidy(now.Add(2 * time.Minute))
	count(p, 0)

	p = newPool()
	p.maxIdle = 1
	open(p, 3)
	p.tidy(now)
	count(p, 1)
	p.close()

	p = newPool()
	p.maxAge = time.Minute
	open(p, 2)
	p.tidy(now.Add(30 * time.Second))
	count(p, 2)
	p.tidy(now.Add(2 * time.Minute))
	count(p, 0)

	p.close()
	if _, _, _, err := p.get(t.Context(), make(chan result, 1)); err == nil {
		t.Error("a closed pool gives connections")
	}
}

// TestDialsAreShared: many queries to a dead upstream learn from a few dials
// that it is dead.
func TestDialsAreShared(t *testing.T) {
	var mu sync.Mutex
	dials := 0
	release := make(chan struct{})
	p := &pool{stream: true, expire: time.Minute, dial: func(context.Context) (net.Conn, error) {
		mu.Lock()
		dials++
		mu.Unlock()
		<-release
		return nil, fmt.Errorf("nobody is there")
	}}
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			if _, _, _, err := p.get(t.Context(), make(chan result, 1)); err == nil {
				t.Error("a connection to nobody")
			}
		})
	}
	waitFor(t, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.waiting) == 200-streams.dials
	})
	close(release)
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	if dials > 2*streams.dials {
		t.Errorf("%d dials for 200 queries", dials)
	}
}

func TestSourceAddress(t *testing.T) {
	var mu sync.Mutex
	var from string
	addr := plugintest.Upstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
		mu.Lock()
		from, _, _ = net.SplitHostPort(w.RemoteAddr().String())
		mu.Unlock()
		_ = w.WriteMsg(plugintest.Reply(r, dns.RcodeSuccess))
	})
	s := plugintest.Start(t, ". {\nforward . "+addr+" {\nsource_address 127.0.0.9\n}\n}\n", order...)
	for _, question := range []string{"a. A", "a. A tcp"} {
		want(t, s, question, "NOERROR ra\n")
		mu.Lock()
		if from != "127.0.0.9" {
			t.Errorf("%s: asked from %s", question, from)
		}
		from = ""
		mu.Unlock()
	}
}

func TestPolicies(t *testing.T) {
	all := []*upstream{{addr: "a"}, {addr: "b"}, {addr: "c"}}
	names := func(list []*upstream) (s string) {
		for _, u := range list {
			s += u.addr
		}
		return s
	}
	rr := &roundRobin{}
	for _, want := range []string{"abc", "bca", "cab", "abc"} {
		if got := names(rr.order(all)); got != want {
			t.Errorf("round_robin: got %s, want %s", got, want)
		}
	}
	if got := names(sequential{}.order(all)); got != "abc" {
		t.Errorf("sequential: got %s", got)
	}
	firsts := map[string]bool{}
	for range 200 {
		list := random{}.order(all)
		firsts[list[0].addr] = true
		if len(list) != 3 {
			t.Fatalf("random: got %s", names(list))
		}
	}
	if len(firsts) != 3 {
		t.Errorf("random: only %v were first in 200 turns", firsts)
	}
}
