package proxy

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTakeover changes what serves a node, from kube-proxy through Rutter's
// modes and back, under a load of new connections; each kind of connection that
// was made before a change is still there after it, and of what served before
// nothing is left in the kernel.
func TestTakeover(t *testing.T) {
	r := newRunner(t)
	svc := &service{namespace: "default", name: "plain", index: 1, options: "lb external", endpoints: "a1 b1"}
	r.cluster.services["plain"] = svc
	r.each(1, func(int) error { return r.cluster.put(r.ctx, svc) })
	c, err := newColumn(r.env, kind{proxy: "kube-proxy", mode: "iptables"}, "takeover", nil, "n1")
	if err != nil {
		t.Fatal(err)
	}
	r.columns = []*column{c}
	t.Cleanup(r.stop)
	r.barrier(1)

	// Not from kube-proxy to kube-proxy, which has gaps.
	route := []kind{{proxy: "rutter", mode: "nftables"}, {proxy: "kube-proxy", mode: "nftables"}, {proxy: "rutter", mode: "nftables"}}
	// From each of Rutter's modes to each other once, by the process that runs.
	modes := rutterModes()
	for _, from := range modes {
		for _, to := range modes {
			if from != to {
				route = append(route, kind{proxy: "rutter", mode: from}, kind{proxy: "rutter", mode: to})
			}
		}
	}
	route = append(route, kind{proxy: "kube-proxy", mode: "iptables"})
	for _, next := range route {
		if next == c.kind {
			continue
		}
		before := c.kind
		step := fmt.Sprintf("%s to %s", before, next)
		r.each(1, func(int) error { return underLoad("plain")(c) })
		if o := c.load.outcome(); o != "none failed" {
			t.Errorf("%s: before: %s", step, o)
		}
		r.each(1, func(int) error { return c.become(r, next) })
		r.barrier(1)
		if o := c.load.outcome(); o != "none failed" {
			t.Errorf("%s: %s", step, o)
		}
		c.load.end()
		if err := c.free(before); err != nil {
			t.Errorf("%s: %v\n%s", step, err, c.proxies["n1"].Log())
		}
	}
}

// rutterModes are the modes of Rutter that are compared.
func rutterModes() (modes []string) {
	for _, k := range kinds {
		if k.proxy == "rutter" && k.mode != "ipvs" && !slices.Contains(modes, k.mode) {
			modes = append(modes, k.mode)
		}
	}
	return modes
}

// become puts another proxy, or mode, in the place of n1's. Rutter changes its
// mode when its file changes; else one process ends and another starts. What
// Rutter leaves is removed when kube-proxy serves.
func (c *column) become(r *runner, next kind) error {
	before := c.kind
	c.kind = next
	if before.proxy == "rutter" && next.proxy == "rutter" {
		path := filepath.Join(c.dir, "rutter-n1.yaml")
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		changed := strings.Replace(string(text), "mode: "+before.mode, "mode: "+next.mode, 1)
		told := strings.Count(c.proxies["n1"].Log(), "to="+next.mode)
		if err := os.WriteFile(path, []byte(changed), 0o644); err != nil {
			return err
		}
		return c.proxies["n1"].WaitFor("the mode "+next.mode, time.Minute, func() error {
			if strings.Count(c.proxies["n1"].Log(), "to="+next.mode) == told {
				return errors.New("the log does not say so")
			}
			return nil
		})
	}
	if err := errors.Join(stopProxy(unix.SIGTERM)(c), c.start("n1")); err != nil {
		return err
	}
	if before.proxy == "rutter" && before.mode == "iptables" && next.mode == "iptables" {
		return nil // kube-proxy takes over the chains, which have its names
	}
	if before.proxy == "rutter" {
		port, answer, err := r.cluster.mark(r.ctx)
		if err := errors.Join(err, c.caughtUp(r.cluster.services["marker"], port, answer)); err != nil {
			return err
		}
		return c.run("n1", c.env.rutter, "proxy", "--cleanup", "--proxy-mode", before.mode)
	}
	return nil
}

// free waits until the kernel holds nothing that has the names of what served
// before, but for those of what serves now.
func (c *column) free(before kind) error {
	if before.mode == c.mode && (c.mode == "iptables" || before.proxy == c.proxy) {
		return nil // the same names
	}
	if before.mode == "iptables" && !slices.Contains(rutterModes(), "iptables") {
		return nil
	}
	word := map[kind]string{
		{"kube-proxy", "iptables", ""}: "KUBE-SVC", {"rutter", "iptables", ""}: "KUBE-SVC",
		{"kube-proxy", "nftables", ""}: "kube-proxy {", {"rutter", "nftables", ""}: "rutter {",
		{"rutter", "userspace", ""}: "userspace",
	}[before]
	return c.proxies["n1"].WaitFor("nothing left of "+before.String(), time.Minute, func() error {
		var left []string
		for _, p := range [][]string{{"iptables-save"}, {"iptables-legacy-save"}, {"nft", "list", "tables"}} {
			_ = c.world.spaces["n1"].Do(func() error {
				out, _ := exec.Command(p[0], p[1:]...).CombinedOutput()
				for line := range strings.Lines(string(out)) {
					if strings.Contains(strings.TrimSpace(line)+" {", word) {
						left = append(left, line)
					}
				}
				return nil
			})
		}
		if len(left) > 0 {
			return fmt.Errorf("%d lines with %q, such as %s", len(left), word, left[0])
		}
		return nil
	})
}
