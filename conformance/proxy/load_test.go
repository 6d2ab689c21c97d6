package proxy

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// load tells what came of the connections made since underLoad: "none failed"
// or what did.
func load(want string, but ...exception) path {
	return path{how: "load", protos: "tcp4", to: "everywhere", want: want, but: but}
}

// traffic is new connections, and requests over connections that stay open, to
// several front ends of a service all the time.
type traffic struct {
	stop        atomic.Bool
	workers     sync.WaitGroup
	fresh, kept []*atomic.Int64 // requests answered, by worker

	mu     sync.Mutex
	failed []string
}

// underLoad starts the traffic of a scenario's service. It goes on until
// endLoad, or the end of the column.
func underLoad(scenario string) func(*column) error {
	return func(c *column) error {
		svc := c.env.cluster.services[scenario]
		t := &traffic{}
		c.load = t
		for _, v6 := range []bool{false, true} {
			cluster, vip := netip.AddrPortFrom(svc.front("cluster", v6), 80), netip.AddrPortFrom(svc.front("vip", v6), 80)
			for from, to := range map[string]netip.AddrPort{
				"ca": cluster, "n1": cluster, "out": vip, "a1": netip.AddrPortFrom(address("n1", v6), svc.nodePort()),
			} {
				// A lost packet costs a second; a lost connection never comes.
				q := question{from: c.world.spaces[from], proto: "tcp", to: to, wait: 20 * time.Second}
				if from == "out" {
					q.local = address("out", v6)
				}
				t.newConnections(q)
				t.longConnection(q)
			}
		}
		return nil
	}
}

func endLoad(c *column) error {
	c.load.end()
	return nil
}

func (t *traffic) end() {
	t.stop.Store(true)
	t.workers.Wait()
}

func (t *traffic) fail(q question, what, outcome string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failed = append(t.failed, fmt.Sprintf("%s from %s to %s: %s", what, q.from.name, q.to, outcome))
}

func (t *traffic) newConnections(q question) {
	n := new(atomic.Int64)
	t.fresh = append(t.fresh, n)
	t.workers.Go(func() {
		for !t.stop.Load() {
			if o := q.ask(1); strings.HasSuffix(o, ")") {
				n.Add(1)
			} else {
				t.fail(q, "a new connection", o)
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
}

func (t *traffic) longConnection(q question) {
	n := new(atomic.Int64)
	t.kept = append(t.kept, n)
	t.workers.Go(func() {
		f, err := q.from.dial(q)
		if err != nil {
			t.fail(q, "the long connection", outcomeOf(err))
			return
		}
		defer f.Close()
		for !t.stop.Load() {
			o := answer(f)
			if !strings.HasSuffix(o, ")") {
				t.fail(q, "the long connection", o)
				return
			}
			n.Add(1)
			time.Sleep(20 * time.Millisecond)
		}
	})
}

// outcome waits until each worker had some more answers, or has failed.
func (t *traffic) outcome() string {
	workers := append(append([]*atomic.Int64(nil), t.fresh...), t.kept...)
	want := make([]int64, len(workers))
	for i, n := range workers {
		want[i] = n.Load() + 5
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		t.mu.Lock()
		failed := t.failed
		t.mu.Unlock()
		if len(failed) > 0 {
			return fmt.Sprintf("%d failed: %s", len(failed), strings.Join(failed[:min(3, len(failed))], "; "))
		}
		more := 0
		for i, n := range workers {
			if n.Load() >= want[i] {
				more++
			}
		}
		if more == len(workers) {
			return "none failed"
		}
		if time.Now().After(deadline) {
			return fmt.Sprintf("only %d of %d clients are answered", more, len(workers))
		}
	}
}

// replaceProgram stops the proxy of n1 and starts a copy of its program, as an
// upgrade does.
func replaceProgram(c *column) error {
	from := c.env.rutter
	if c.proxy == "kube-proxy" {
		from = c.env.kubeProxy
	}
	to := filepath.Join(c.dir, "upgraded")
	if err := copyProgram(from, to); err != nil {
		return err
	}
	c.program = to
	return errors.Join(stopProxy(unix.SIGTERM)(c), c.start("n1"))
}

func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
