package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/iptables"
	"github.com/rutter-project/rutter/internal/proxy/ipvs"
	"github.com/rutter-project/rutter/internal/proxy/nftables"
	"github.com/rutter-project/rutter/internal/proxy/userspace"
)

// The modes: the parts of the kernel, or of this process, that can hold a plan.
const (
	ModeNFTables  = "nftables"
	ModeIPTables  = "iptables"
	ModeIPVS      = "ipvs"
	ModeUserspace = "userspace"
	// ModeLoopback is userspace mode without privilege: it listens on service
	// addresses, which must be this host's own, as those of 127.0.0.0/8 are.
	ModeLoopback = "loopback"
)

// mode is one of them.
type mode struct {
	name string
	// shared tells that the mode's names in the kernel are kube-proxy's too.
	shared bool
	// kernelless tells that the mode leaves the kernel alone, and does not need
	// to be allowed anything. It is only taken by its name.
	kernelless bool
	// probe tells in one line what this host lacks for the mode: a kernel
	// module, a program. It changes nothing.
	probe func() error
	open  func(dataplane.Config, *Config) (dataplane.Dataplane, error)
	// retire removes what the mode left in the kernel, once another mode holds
	// everything. It may go on for as long as connections need what is left,
	// until ctx is done.
	retire func(ctx context.Context, log *slog.Logger) error
	// cleanup removes everything at once.
	cleanup func() error
}

// modes lists them, the best first.
func modes() []mode {
	return []mode{
		{
			name:    ModeNFTables,
			probe:   nftables.Probe,
			open:    func(c dataplane.Config, _ *Config) (dataplane.Dataplane, error) { return nftables.Open(c) },
			retire:  func(context.Context, *slog.Logger) error { return nftables.Cleanup() },
			cleanup: nftables.Cleanup,
		},
		{
			name:    ModeIPTables,
			shared:  true,
			probe:   iptables.Probe,
			open:    func(c dataplane.Config, _ *Config) (dataplane.Dataplane, error) { return iptables.Open(c) },
			retire:  func(context.Context, *slog.Logger) error { return iptables.Cleanup() },
			cleanup: iptables.Cleanup,
		},
		{
			name:   ModeIPVS,
			shared: true,
			probe:  ipvs.Probe,
			open:   func(c dataplane.Config, p *Config) (dataplane.Dataplane, error) { return ipvs.Open(c, p.IPVS) },
			retire: ipvs.Retire, cleanup: ipvs.Cleanup,
		},
		{
			name:    ModeUserspace,
			probe:   userspace.Probe,
			open:    func(c dataplane.Config, _ *Config) (dataplane.Dataplane, error) { return userspace.Open(c, false) },
			retire:  userspace.Retire,
			cleanup: userspace.Cleanup,
		},
		{
			name:       ModeLoopback,
			kernelless: true,
			probe:      func() error { return nil },
			open:       func(c dataplane.Config, _ *Config) (dataplane.Dataplane, error) { return userspace.Open(c, true) },
			retire:     func(context.Context, *slog.Logger) error { return nil },
			cleanup:    func() error { return nil },
		},
	}
}

// Modes names the modes, the best first.
func Modes() (names []string) {
	for _, m := range modes() {
		if !m.kernelless {
			names = append(names, m.name)
		}
	}
	return names
}

// selectMode finds the mode by its name. Without a name it takes the best that
// this host can do.
func selectMode(name string, log *slog.Logger) (mode, error) {
	all := modes()
	var lacks []string
	for _, m := range all {
		if name != "" && m.name != name || name == "" && m.kernelless {
			continue
		}
		err := m.probe()
		if err == nil {
			if len(lacks) > 0 {
				log.Info("the proxy's mode is the best that this host can do", "mode", m.name, "not", lacks)
			}
			return m, nil
		}
		if name == "" {
			lacks = append(lacks, fmt.Sprintf("%s: %v", m.name, err))
			continue
		}
		var works []string
		for _, other := range all {
			if other.name != name && !other.kernelless && other.probe() == nil {
				works = append(works, other.name)
			}
		}
		if len(works) == 0 {
			return mode{}, fmt.Errorf("proxy: mode %s cannot work here: %w", name, err)
		}
		return mode{}, fmt.Errorf("proxy: mode %s cannot work here: %w; modes that would: %s", name, err, strings.Join(works, ", "))
	}
	if name == "" {
		return mode{}, fmt.Errorf("proxy: no mode works here: %s", strings.Join(lacks, "; "))
	}
	return mode{}, fmt.Errorf("proxy: unknown mode %q: must be one of %s", name, strings.Join(Modes(), ", "))
}

// Cleanup removes at once everything that a Proxy in one of these modes put
// into the present network namespace, or might have: what has names of our own
// in any case. Without modes, everything in all modes, and what kube-proxy left.
func Cleanup(names ...string) error {
	var errs []error
	for _, m := range slices.Backward(modes()) {
		if m.shared && len(names) > 0 && !slices.Contains(names, m.name) {
			continue
		}
		if err := m.cleanup(); err != nil {
			errs = append(errs, fmt.Errorf("mode %s: %w", m.name, err))
		}
	}
	if len(names) == 0 {
		errs = append(errs, nftables.CleanupKubeProxy())
	}
	return errors.Join(errs...)
}

// Probe tells in one line what this host lacks for a mode; nil when it can do
// it. It changes nothing.
func Probe(name string) error {
	for _, m := range modes() {
		if m.name == name {
			return m.probe()
		}
	}
	return fmt.Errorf("proxy: unknown mode %q: must be one of %s", name, strings.Join(Modes(), ", "))
}
