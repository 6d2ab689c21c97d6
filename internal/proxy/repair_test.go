package proxy_test

import (
	"context"
	"log/slog"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy"
	"github.com/rutter-project/rutter/internal/proxy/testnet"
)

// What another program breaks comes back without anything else changing.
func TestRepair(t *testing.T) {
	w := newWorld(t, nil)
	w.cat.ApplyService(service("web", "10.96.0.1"))
	w.cat.ApplySlice(slice("web", "10.244.0.2"))
	w.markSynced()
	w.sync()
	w.expect(w.client, "tcp", "10.96.0.1:80", "a 10.244.0.9")
	for i, command := range []string{
		"nft flush ruleset",
		"nft delete table ip rutter",
		"nft flush map ip rutter services",
		"nft flush chain ip rutter services",
		"nft delete element ip rutter endpoints { tcp . 10.96.0.1 . 80 . 0x0 }",
	} {
		w.node.Do(func() {
			if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", command, err, out)
			}
		})
		deadline := time.Now().Add(10 * time.Second)
		for w.proxy.Status().Repairs < i+1 {
			if time.Now().After(deadline) {
				t.Fatalf("%s went unnoticed", command)
			}
			time.Sleep(5 * time.Millisecond)
		}
		if got := w.client.Ask("tcp", "10.96.0.1:80", ""); got != "a 10.244.0.9" {
			t.Errorf("after %q: %q", command, got)
		}
	}
	// A table of somebody else is none of our business.
	w.node.Do(func() {
		if out, err := exec.Command("nft", "add", "table", "ip", "theirs").CombinedOutput(); err != nil {
			t.Fatal(string(out))
		}
	})
	w.sync()
	if n := w.proxy.Status().Repairs; n != 5 {
		t.Errorf("%d repairs", n)
	}
}

// A new process takes over under load: new connections, and those that were
// open, do not notice.
func TestRestart(t *testing.T) {
	// Without counters the tables must be the same to the letter.
	w := newWorld(t, func(c *proxy.Config) { c.NoCounters = true })
	w.cat.ApplyService(service("web", "10.96.0.1"))
	w.cat.ApplySlice(slice("web", "10.244.0.2", "10.244.0.3"))
	w.cat.ApplyService(service("old", "10.96.0.2"))
	w.cat.ApplySlice(slice("old", "10.244.0.2"))
	w.markSynced()
	w.sync()
	before := w.nft()
	w.keepsServing(func(more func()) {
		for range 5 {
			w.proxy.Close()
			more()
			w.sub.Close()
			w.sub = w.cat.Subscribe()
			w.start(proxy.Config{Node: "node", IPv4: true, IPv6: true, Detect: w.detect, ServiceCIDRs: w.serviceCIDRs, NoCounters: true})
			w.sync()
		}
	})
	if after := w.nft(); before != after {
		t.Errorf("restarts changed the tables:\n%s\n---\n%s", before, after)
	}

	// What was deleted while nobody looked goes at the next start.
	w.proxy.Close()
	w.cat.RemoveService(name("old"))
	w.sub.Close()
	w.sub = w.cat.Subscribe()
	w.start(proxy.Config{Node: "node", IPv4: true, IPv6: true, Detect: w.detect, ServiceCIDRs: w.serviceCIDRs, NoCounters: true})
	w.expect(w.client, "tcp", "10.96.0.2:80", "a 10.244.0.9")
	w.sync()
	if got := w.client.Brief().Ask("tcp", "10.96.0.2:80", ""); got != testnet.Silence {
		t.Errorf("a service deleted meanwhile: %q", got)
	}

	w.proxy.Close() // or it would repair
	w.node.Do(func() {
		if err := proxy.Cleanup(); err != nil {
			t.Fatal(err)
		}
		if out, _ := exec.Command("nft", "list", "ruleset").CombinedOutput(); strings.Contains(string(out), "rutter") {
			t.Errorf("cleaned up, but the kernel holds:\n%s", out)
		}
		if err := proxy.Cleanup(); err != nil {
			t.Errorf("cleaning what is clean: %v", err)
		}
	})
}

// Without the privilege the error names it, and nothing is left.
func TestNoPrivilege(t *testing.T) {
	space := testnet.New(t, "node")
	p, err := proxy.New(catalog.New(0), proxy.Config{Node: "node"})
	if err != nil {
		t.Fatal(err)
	}
	space.Do(func() {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capget(&header, &data[0]); err != nil {
			t.Fatal(err)
		}
		data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		if err := unix.Capset(&header, &data[0]); err != nil { // of this thread, which ends with it
			t.Fatal(err)
		}
		err = p.Start(context.Background())
	})
	if err == nil || !strings.Contains(err.Error(), "CAP_NET_ADMIN") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v", err)
	}
	if err := p.Apply(context.Background(), catalog.Changes{Synced: true}); err == nil {
		t.Error("Apply without a successful Start succeeded")
	}
}

// What another proxy left is named at the start, and left alone.
func TestRivals(t *testing.T) {
	w := newWorld(t, nil)
	w.proxy.Close()
	var log strings.Builder
	w.node.Do(func() {
		script := "nft add table ip kube-proxy && nft add chain ip kube-proxy services && nft add table ip6 nat && nft add chain ip6 nat KUBE-SERVICES"
		if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
			t.Fatal(string(out))
		}
	})
	w.start(proxy.Config{Node: "node", IPv4: true, IPv6: true, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if got := log.String(); !strings.Contains(got, "[table ip kube-proxy table ip6 nat]") {
		t.Errorf("logged %q", got)
	}
	w.proxy.Close()
	w.node.Do(func() {
		if err := proxy.Cleanup(proxy.ModeNFTables); err != nil {
			t.Fatal(err)
		}
		if out, _ := exec.Command("nft", "list", "tables").CombinedOutput(); string(out) != "table ip kube-proxy\ntable ip6 nat\n" {
			t.Errorf("left are %q", out)
		}
		if err := proxy.Cleanup(); err != nil { // in kube-proxy's place
			t.Fatal(err)
		}
		if out, _ := exec.Command("nft", "list", "tables", "ip").CombinedOutput(); strings.Contains(string(out), "kube-proxy") {
			t.Errorf("left are %q", out)
		}
	})
}
