package userspace

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/nftables"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// With privilege traffic is directed here by tables like those of nftables mode
// in which the only endpoints of a service port are its sockets. These have
// addresses of their own: redirecting to the address of the interface that a
// packet came in by, as kube-proxy's userspace mode did, fails where the
// interface has none.

// tableName is the name of the tables, one per family.
const tableName = "rutter-userspace"

// relayAddrs are local to each node by a route, without being any interface's.
var relayAddrs = [2]netip.Addr{netip.MustParseAddr("169.254.20.11"), netip.MustParseAddr("fd72:7574:7465:7200::b")}

type capture struct {
	d     *Dataplane
	table *nftables.Dataplane
}

func newCapture(d *Dataplane) (*capture, error) {
	for i, on := range [2]bool{d.cfg.IPv4, d.cfg.IPv6} {
		if !on {
			continue
		}
		if err := netlink.RouteReplace(relayRoute(relayAddrs[i])); err != nil {
			return nil, fmt.Errorf("userspace: make %s local: %w", relayAddrs[i], explain(err))
		}
	}
	cfg := d.cfg
	cfg.Counters, cfg.CountBytes = false, false // counted here
	t, err := nftables.OpenRelayed(cfg, tableName)
	if err != nil {
		return nil, fmt.Errorf("userspace: %w", err)
	}
	return &capture{d, t}, nil
}

func explain(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: directing traffic to services needs CAP_NET_ADMIN in this network namespace: run as root", err)
	}
	return err
}

// relayRoute makes an address local.
func relayRoute(a netip.Addr) *netlink.Route {
	return &netlink.Route{
		LinkIndex: 1, // lo, in every namespace
		Dst:       &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())},
		Type:      unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST, Protocol: unix.RTPROT_STATIC,
	}
}

// fronts: a socket for each list that the kernel directs to. They stay when the
// list is not used for a while: flows that were directed to one go on.
func (c *capture) fronts(p *portal, port *plan.Port) []listener {
	var out []listener
	for list, endpoints := range [2][]netip.AddrPort{port.Cluster, port.Local} {
		f := front{netip.AddrPortFrom(relayAddrs[familyIndex(port.ClusterIP.Addr())], 0), list}
		if _, has := p.socks[f]; has || len(endpoints) > 0 {
			out = append(out, listener{front: f})
		}
	}
	return out
}

// relayed is the service with its sockets in the place of its endpoints.
func (c *capture) relayed(s plan.Service) plan.Service {
	portals := c.d.services[s.Name]
	ports := make([]plan.Port, 0, len(s.Ports))
	for _, port := range s.Ports {
		if port.Protocol == catalog.SCTP {
			ports = append(ports, port)
			continue
		}
		if p := portals[portKey{port.ClusterIP, port.Protocol}]; p != nil {
			port.Cluster = p.instead(port.Cluster, clusterList)
			port.Local = p.instead(port.Local, localList)
			port.Affinity, port.Serving = 0, nil
			ports = append(ports, port)
		}
	}
	s.Ports = ports
	return s
}

// instead returns the socket of a list, if it has any endpoints.
func (p *portal) instead(endpoints []netip.AddrPort, which int) []netip.AddrPort {
	if len(endpoints) == 0 {
		return nil
	}
	for f, s := range p.socks {
		if f.list == which {
			return []netip.AddrPort{s.addr}
		}
	}
	return nil
}

func (c *capture) all(services []plan.Service) []plan.Service {
	out := make([]plan.Service, len(services))
	for i := range services {
		out[i] = c.relayed(services[i])
	}
	return out
}

func (c *capture) adopt(ctx context.Context, s []plan.Service) ([]dataplane.Refusal, error) {
	return c.table.Adopt(ctx, c.all(s))
}

func (c *capture) apply(ctx context.Context, s []plan.Service) ([]dataplane.Refusal, error) {
	return c.table.Apply(ctx, c.all(s))
}

func (c *capture) setRules(r plan.Rules) error         { return c.table.SetRules(r) }
func (c *capture) sweep() error                        { return c.table.Sweep() }
func (c *capture) keepNodeDNS(t time.Duration) error   { return c.table.KeepNodeDNS(t) }
func (c *capture) monitor() (dataplane.Monitor, error) { return c.table.Monitor() }
func (c *capture) rivals() ([]string, error)           { return c.table.Rivals() }
func (c *capture) withdraw() error                     { return nftables.CleanupRelayed(tableName) }
func (c *capture) close() error                        { return c.table.Close() }
func familyIndex(a netip.Addr) int {
	if a.Is6() {
		return 1
	}
	return 0
}

// Probe tells what this host lacks for directing traffic here. It changes
// nothing.
func Probe() error { return nftables.Probe() }

// Cleanup removes the tables and the routes.
func Cleanup() error {
	errs := []error{nftables.CleanupRelayed(tableName)}
	for _, a := range relayAddrs {
		if err := netlink.RouteDel(relayRoute(a)); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENOENT) &&
			!errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
			errs = append(errs, fmt.Errorf("userspace: remove the local route to %s: %w", a, explain(err)))
		}
	}
	return errors.Join(errs...)
}

// Retire removes the tables, which another mode has taken over from; and the
// routes when the last connection of this process that needs them has ended,
// unless ctx is done before.
func Retire(ctx context.Context, _ *slog.Logger) error {
	if err := nftables.CleanupRelayed(tableName); err != nil {
		return err
	}
	for relaying() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
	return Cleanup()
}

// relaying tells whether a TCP connection in this network namespace ends at one
// of our addresses.
func relaying() bool {
	for name, addr := range map[string]string{
		// As the kernel prints them: 32-bit words in the host's byte order.
		"tcp": hexAddr(relayAddrs[0]), "tcp6": hexAddr(relayAddrs[1]),
	} {
		text, err := os.ReadFile("/proc/thread-self/net/" + name)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			const timeWait, listening = "06", "0A"
			if len(f) > 3 && strings.HasPrefix(f[1], addr+":") && f[3] != timeWait && f[3] != listening {
				return true
			}
		}
	}
	return false
}

// hexAddr is an address as /proc/net/tcp has it.
func hexAddr(a netip.Addr) string {
	var b strings.Builder
	bytes := a.AsSlice()
	for i := 0; i < len(bytes); i += 4 {
		fmt.Fprintf(&b, "%08X", binary.NativeEndian.Uint32(bytes[i:]))
	}
	return b.String()
}
