package proxy_test

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/rutter-project/rutter/internal/proxy"
)

// TestSwitch: from each mode to each other that this kernel can hold, under a
// load of new connections, none of which fails; one that stands goes on; and
// nothing of the former mode stays.
func TestSwitch(t *testing.T) {
	for _, from := range proxy.Modes() {
		for _, to := range proxy.Modes() {
			if from == to {
				continue
			}
			t.Run(from+" to "+to, func(t *testing.T) {
				w := newSwitchWorld(t, from)
				if err := w.probe(to); err != nil {
					t.Skip(err)
				}
				w.keepsServing(func(func()) {
					w.node.Do(func() {
						if err := w.proxy.Switch(t.Context(), proxy.Config{Mode: to, NodePortAddresses: []string{"primary"}}); err != nil {
							t.Fatal(err)
						}
					})
				})
				if m := w.proxy.Status().Mode; m != to {
					t.Errorf("the mode is %s", m)
				}
				w.expectGone(from)
				w.cat.ApplySlice(slice("web", "10.244.0.3"))
				w.sync()
				w.expect(w.client, "tcp", "10.96.0.1:80", w.answer("b"))
			})
		}
	}
}

// TestSwitchRefused: a mode that is unknown, or cannot work, leaves the present
// one as it is.
func TestSwitchRefused(t *testing.T) {
	w := newSwitchWorld(t, proxy.ModeNFTables)
	w.node.Do(func() {
		err := w.proxy.Switch(t.Context(), proxy.Config{Mode: "carrier-pigeon"})
		if err == nil || !strings.Contains(err.Error(), proxy.ModeNFTables) {
			t.Errorf("%v does not name the modes", err)
		}
	})
	w.cat.ApplySlice(slice("web", "10.244.0.3"))
	w.sync()
	w.expect(w.client, "tcp", "10.96.0.1:80", "b 10.244.0.9")
}

// switchWorld is a world with a service and a connection through it.
type switchWorld struct{ *world }

func newSwitchWorld(t *testing.T, mode string) switchWorld {
	w := switchWorld{newWorld(t, func(c *proxy.Config) {
		c.Mode, c.ReplacesKubeProxy = proxy.ModeNFTables, true
	})}
	if err := w.probe(mode); err != nil {
		t.Skip(err)
	}
	if mode != proxy.ModeNFTables {
		w.node.Do(func() {
			if err := w.proxy.Switch(t.Context(), proxy.Config{Mode: mode, NodePortAddresses: []string{"primary"}}); err != nil {
				t.Fatal(err)
			}
		})
	}
	w.cat.ApplyService(service("web", "10.96.0.1"))
	w.cat.ApplySlice(slice("web", "10.244.0.2", "10.244.0.3"))
	w.markSynced()
	w.sync()
	return w
}

func (w switchWorld) probe(mode string) (err error) {
	w.node.Do(func() { err = proxy.Probe(mode) })
	return err
}

// answer is what a pod says to the client: in mode userspace the node asks for
// it.
func (w switchWorld) answer(pod string) string {
	if w.proxy.Status().Mode == proxy.ModeUserspace {
		return pod + " 169.254.1.1" // the node's side of the link
	}
	return pod + " 10.244.0.9"
}

// expectGone waits until the kernel holds nothing of a mode.
func (w switchWorld) expectGone(mode string) {
	w.t.Helper()
	left := ""
	for range 600 {
		w.node.Do(func() { left = leftovers(mode) })
		if left == "" {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	w.t.Errorf("of mode %s is left:\n%s", mode, left)
}

// leftovers is what the kernel holds of a mode, by the stock tools' words.
func leftovers(mode string) string {
	list := func(word string, commands ...[]string) (found string) {
		for _, c := range commands {
			out, _ := exec.Command(c[0], c[1:]...).CombinedOutput()
			for line := range strings.Lines(string(out)) {
				if strings.Contains(line, word) {
					found += line
				}
			}
		}
		return found
	}
	switch mode {
	case proxy.ModeNFTables:
		return list("table ip rutter {", []string{"nft", "list", "ruleset"}) + list("table ip6 rutter {", []string{"nft", "list", "ruleset"})
	case proxy.ModeIPTables:
		return list("KUBE-SVC", []string{"iptables-save"}, []string{"ip6tables-save"})
	case proxy.ModeIPVS:
		return list("kube-ipvs0", []string{"ip", "link"})
	}
	return list("userspace", []string{"nft", "list", "ruleset"})
}
