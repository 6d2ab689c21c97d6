package iptables

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/plan"
	"github.com/rutter-project/rutter/internal/proxy/xtables"
)

// run runs a program of the back end as another program would, in the
// namespace.
func (n *node) run(args ...string) {
	n.t.Helper()
	n.Do(func() {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			n.t.Errorf("%s: %v: %s", strings.Join(args, " "), err, out)
		}
	})
}

// TestIntrusion: what another program does to our chains is noticed, and what
// it does to its own, and what we do ourselves, is not.
func TestIntrusion(t *testing.T) {
	eachBackend(t, func(t *testing.T, b xtables.Backend) {
		n := newNode(t, b, dataplane.Config{Rules: testRules})
		m, err := n.plane.Monitor()
		if err != nil {
			t.Fatal(err)
		}
		notices := make(chan dataplane.Intrusion, 100)
		done := make(chan error, 1)
		go func() { done <- m.Run(func(i dataplane.Intrusion) { notices <- i }) }()
		defer func() {
			m.Close()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}()
		services := testServices()
		n.adopt(services)
		want := n.save()
		for i, c := range []struct {
			what string
			args []string
		}{
			{"a jump is removed", []string{"iptables", "-w", "-t", "nat", "-D", "PREROUTING", "1"}},
			{"a service's chain is emptied", []string{"iptables", "-w", "-t", "nat", "-F", clusterPrefix + hash("default/web:httptcp")}},
			{"a rule is added to a chain of ours", []string{"ip6tables", "-w", "-t", "filter", "-A", forwardChain, "-j", "DROP"}},
			{"everything is removed", []string{"sh", "-ec", "iptables -w -t nat -F; iptables -w -t nat -X"}},
		} {
			// First what does not concern us, and changes of our own.
			n.run("iptables", "-w", "-t", "nat", "-N", "OTHERS")
			n.run("iptables", "-w", "-t", "nat", "-A", "OTHERS", "-j", "RETURN")
			n.apply(plan.Service{Name: services[0].Name})
			n.apply(services[0])
			n.run("iptables", "-w", "-t", "nat", "-F", "OTHERS")
			n.run("iptables", "-w", "-t", "nat", "-X", "OTHERS")
			for len(notices) > 0 {
				// Later, one of the intrusion before may have come twice.
				if notice := <-notices; i == 0 {
					t.Fatalf("%s: before that a notice came: %+v", c.what, notice)
				}
			}
			n.run(c.args...)
			select {
			case notice := <-notices:
				if i == 0 && b == xtables.NFT && !strings.HasPrefix(notice.Process, "ip") {
					t.Errorf("%s: by %q (pid %d)", c.what, notice.Process, notice.PID)
				}
			case <-time.After(time.Minute):
				t.Fatalf("%s: no notice came", c.what)
			}
			n.adopt(services)
			if got := n.save(); got != want {
				t.Fatalf("%s: not repaired:\n%s", c.what, diff(want, got))
			}
		}
	})
}

// TestRefusal: what the kernel will not take keeps nothing else out, and is
// named.
func TestRefusal(t *testing.T) {
	eachBackend(t, func(t *testing.T, b xtables.Backend) {
		services := testServices()
		// Its seconds do not fit into the kernel's 32 bits.
		bad := plan.Service{Name: catalog.ServiceName{Namespace: "default", Name: "bad"}, Ports: []plan.Port{{
			Protocol: catalog.TCP, ClusterIP: addrPort("10.96.0.99:80"), Cluster: addrPorts("10.244.0.99:80"), Usable: true, Affinity: 250 * 365 * 24 * time.Hour,
		}}}
		good := newNode(t, b, dataplane.Config{Rules: testRules})
		good.adopt(services)
		want := good.save()

		n := newNode(t, b, dataplane.Config{Rules: testRules})
		all := slices.Insert(slices.Clone(services), 2, bad)
		check := func(refused []dataplane.Refusal, err error) {
			t.Helper()
			if err != nil || len(refused) != 1 || refused[0].Service != bad.Name || strings.Contains(refused[0].Err.Error(), "\n") {
				t.Fatalf("refused %v, %v", refused, err)
			}
			if got := n.save(); got != want {
				t.Fatalf("the others are not in place:\n%s", diff(want, got))
			}
		}
		check(n.plane.Adopt(t.Context(), all))
		n.apply(plan.Service{Name: services[0].Name})
		check(n.plane.Apply(t.Context(), []plan.Service{bad, services[0]}))
	})
}

// TestLocked: who holds the lock is waited for, and told.
func TestLocked(t *testing.T) {
	n := newNode(t, xtables.Legacy, dataplane.Config{Rules: testRules})
	// A lock of our own, not that of this host.
	path := t.TempDir() + "/lock"
	t.Setenv("XTABLES_LOCKFILE", path)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	_, err = n.plane.Adopt(t.Context(), testServices())
	var locked *xtables.LockedError
	if err == nil {
		t.Skip("these iptables programs know no XTABLES_LOCKFILE")
	}
	if !errors.As(err, &locked) || !strings.Contains(err.Error(), "holds the lock") {
		t.Errorf("while the lock is held: %v", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	n.adopt(testServices())
}

// TestNodeDNS: queries to the node's DNS server stay on the node for as long as
// somebody says so, and go to the endpoints of the service then.
func TestNodeDNS(t *testing.T) {
	eachBackend(t, func(t *testing.T, b xtables.Backend) {
		rules := testRules
		rules.NodeDNS = addrPorts("10.96.0.10:53", "169.254.20.10:53", "[fd00:10:96::a]:53")
		n := newNode(t, b, dataplane.Config{Rules: rules})
		n.AddAddr("lo", "10.96.0.10/32")
		n.AddAddr("lo", "169.254.20.10/32")
		n.AddAddr("lo", "10.244.0.3/32")
		answer := func(address, text string) {
			n.Do(func() {
				c, err := net.ListenPacket("udp", address)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				go func() {
					b := make([]byte, 512)
					for {
						_, from, err := c.ReadFrom(b)
						if err != nil {
							return
						}
						_, _ = c.WriteTo([]byte(text), from)
					}
				}()
			})
		}
		answer("10.96.0.10:53", "node")
		answer("169.254.20.10:53", "node")
		answer("10.244.0.3:53", "endpoint")
		ask := func(server string) (text string) {
			n.Do(func() {
				c, err := net.Dial("udp", server)
				if err != nil {
					text = err.Error()
					return
				}
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(time.Minute))
				b := make([]byte, 512)
				_, _ = c.Write([]byte("?"))
				k, err := c.Read(b)
				if text = string(b[:k]); err != nil {
					text = err.Error()
				}
			})
			return text
		}
		services := testServices()
		services[1].Ports[0].External = []plan.External{{Addr: addr("169.254.20.10")}}
		services[1].Ports[0].Affinity = 0
		n.adopt(services)
		check := func(when, want string) {
			t.Helper()
			for _, server := range []string{"10.96.0.10:53", "169.254.20.10:53"} {
				if got := ask(server); got != want {
					t.Fatalf("%s: %s: %s answers, want %s\n%s", when, server, got, want, n.save())
				}
			}
		}
		keep := func(d time.Duration) {
			t.Helper()
			if err := n.plane.KeepNodeDNS(d); err != nil {
				t.Fatal(err)
			}
		}
		check("before", "endpoint")
		keep(time.Minute)
		check("kept", "node")
		keep(0)
		check("let go", "endpoint")
		keep(time.Second)
		for deadline := time.Now().Add(time.Minute); ask("10.96.0.10:53") != "endpoint"; {
			if time.Now().After(deadline) {
				t.Fatal("nobody keeps it any more, and yet queries stay")
			}
			time.Sleep(50 * time.Millisecond)
		}
		keep(time.Minute)
		n.adopt(services)
		check("kept, after everything was gone through", "node")
	})
}

// TestRivals: what another proxy has in the kernel besides is named.
func TestRivals(t *testing.T) {
	n := newNode(t, xtables.Legacy, dataplane.Config{Rules: testRules})
	n.Do(func() { usePrograms(t, xtables.NFT, false) })
	if t.Skipped() {
		t.SkipNow()
	}
	n.adopt(testServices())
	if found, err := n.plane.Rivals(); err != nil || len(found) > 0 {
		t.Fatalf("nobody else is here: %q, %v", found, err)
	}
	n.run("iptables-nft", "-t", "nat", "-N", servicesChain)
	if out, err := exec.LookPath("nft"); err == nil {
		n.run(out, "add table ip6 kube-proxy; add chain ip6 kube-proxy services")
	}
	found, err := n.plane.Rivals()
	if s := strings.Join(found, ", "); err != nil || !strings.Contains(s, "(nft) table nat") || !strings.Contains(s, "ip6 kube-proxy") {
		t.Errorf("found %q, %v", found, err)
	}
}

// TestMissing: a host without iptables says what to install.
func TestMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if err := Probe(); err == nil || !strings.Contains(err.Error(), "install the package iptables") || strings.Contains(err.Error(), "\n") {
		t.Errorf("without programs: %v", err)
	}
	if _, err := Open(dataplane.Config{IPv4: true, Logger: slog.New(slog.DiscardHandler)}); err == nil || !errors.Is(err, xtables.ErrMissing) {
		t.Errorf("Open: %v", err)
	}
	if err := Cleanup(); err != nil {
		t.Errorf("there is nothing to clean: %v", err)
	}
}

// TestConcurrent: changes, repairs and questions at the same time.
func TestConcurrent(t *testing.T) {
	n := newNode(t, xtables.NFT, dataplane.Config{Rules: testRules})
	services := testServices()
	m, err := n.plane.Monitor()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- m.Run(func(i dataplane.Intrusion) { t.Errorf("our own change was taken for that of %+v", i) })
	}()
	n.adopt(services)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for range 5 {
				if _, err := n.plane.Apply(context.Background(), services[i:i+1]); err != nil {
					t.Error(err)
				}
				if _, err := n.plane.Adopt(context.Background(), services); err != nil {
					t.Error(err)
				}
				if _, err := n.plane.Rivals(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	m.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
