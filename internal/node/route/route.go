// Package route prepares a node, outside any pod, for pods and for cluster
// addresses: forwarding, masquerading of what leaves the cluster, the addresses
// that the node itself answers on, and the node's own way to service addresses.
package route

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Config is what a node shall have. All lists may be empty.
type Config struct {
	RunDir string
	// PodCIDRs are this node's. Without them nothing is forwarded or
	// masqueraded: somebody else cares for the node's pods.
	PodCIDRs []netip.Prefix
	// ClusterCIDRs are those of all pods of the cluster: what goes there
	// keeps its source address.
	ClusterCIDRs []netip.Prefix
	// ServiceCIDRs get a route, so that the node itself reaches services.
	ServiceCIDRs []netip.Prefix
	// LocalAddrs become local to the node, such as those of its DNS.
	LocalAddrs []netip.Addr
}

// state is what has been, or was about to be, changed. It is written before
// the change, so that Teardown after a crash misses nothing.
type state struct {
	Sysctls  []setting      `json:"sysctls"`
	Gateways []netip.Addr   `json:"gateways"`
	Services []netip.Prefix `json:"services"`
	Locals   []netip.Addr   `json:"locals"`
	Table    bool           `json:"table"`
}

// setting is a sysctl as it was found and as it was set.
type setting struct {
	Name   string `json:"name"`
	Before string `json:"before"`
	Set    string `json:"set"`
}

const stateFile = "route.json"

// gatewayLabel marks the gateway's IPv4 address on lo; a label begins with the
// interface's name.
const gatewayLabel = "lo:rut"

// Setup makes the node as cfg says, whatever an earlier one left. It may be
// repeated. The notes are for people: what on this host may stand in the way.
// On error, what this call added stays for Teardown.
func Setup(ctx context.Context, cfg Config) (notes []string, err error) {
	if err := CheckCollision("pod CIDR", "--pod-cidr", cfg.PodCIDRs...); err != nil {
		return nil, err
	}
	if err := CheckCollision("service CIDR", "--service-cidr", cfg.ServiceCIDRs...); err != nil {
		return nil, err
	}
	old, err := load(cfg.RunDir)
	if err != nil {
		return nil, err
	}
	want := state{Sysctls: old.Sysctls, Services: cfg.ServiceCIDRs, Locals: cfg.LocalAddrs, Table: len(cfg.PodCIDRs) > 0}
	for _, p := range cfg.PodCIDRs {
		want.Gateways = append(want.Gateways, p.Masked().Addr().Next())
	}
	forwarding, err := forwardingSettings(cfg.PodCIDRs)
	if err != nil {
		return nil, err
	}
	for _, s := range forwarding {
		if !slices.ContainsFunc(want.Sysctls, func(have setting) bool { return have.Name == s.Name }) {
			want.Sysctls = append(want.Sysctls, s)
		}
	}
	if err := save(cfg.RunDir, want); err != nil {
		return nil, err
	}
	if err := errors.Join(old.without(want).remove(), ctx.Err()); err != nil {
		return nil, err
	}
	for _, s := range forwarding {
		if err := SetSysctl(s.Name, s.Set); err != nil {
			return nil, err
		}
	}
	if err := want.add(); err != nil {
		return nil, err
	}
	if want.Table {
		if err := writeTable(cfg.PodCIDRs, cfg.ClusterCIDRs); err != nil {
			return nil, err
		}
		notes = forwardingBlocked()
	}
	return notes, nil
}

// Teardown takes back what Setup did, also that of a process that died.
func Teardown(runDir string) error {
	s, err := load(runDir)
	if err != nil {
		return err
	}
	err = s.remove()
	for i := len(s.Sysctls) - 1; i >= 0; i-- {
		v := s.Sysctls[i]
		have, rerr := Sysctl(v.Name)
		if rerr != nil || have != v.Set {
			continue // gone, or somebody else's by now
		}
		err = errors.Join(err, SetSysctl(v.Name, v.Before))
	}
	if err != nil {
		return err // keep the state, for another try
	}
	if err := os.Remove(filepath.Join(runDir, stateFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the state of the node's routes: %w", err)
	}
	return nil
}

// forwardingSettings lists what has to be set so that pods are forwarded, and
// is not so yet, in order.
//
// A host that forwards IPv6 does not take its own default route from router
// advertisements any more, unless accept_ra is 2 (ip-sysctl.rst); interfaces
// that do so now must go on.
func forwardingSettings(pods []netip.Prefix) ([]setting, error) {
	var out []setting
	add := func(name, value string) error {
		have, err := Sysctl(name)
		if err != nil {
			return fmt.Errorf("reading sysctl %s: %w", name, err)
		}
		if have != value {
			out = append(out, setting{name, have, value})
		}
		return nil
	}
	for _, p := range pods {
		if p.Addr().Is4() {
			if err := add("net/ipv4/ip_forward", "1"); err != nil {
				return nil, err
			}
			continue
		}
		links, err := netlink.LinkList()
		if err != nil {
			return nil, fmt.Errorf("listing interfaces: %w", err)
		}
		for _, l := range links {
			name := "net/ipv6/conf/" + l.Attrs().Name + "/accept_ra"
			if strings.HasPrefix(l.Attrs().Name, LinkPrefix) || l.Attrs().Flags&net.FlagLoopback != 0 {
				continue
			}
			if have, err := Sysctl(name); err == nil && have == "1" {
				out = append(out, setting{name, have, "2"})
			}
		}
		if err := add("net/ipv6/conf/all/forwarding", "1"); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// without is the part of s that other does not want.
func (s state) without(other state) state {
	return state{
		Gateways: missing(s.Gateways, other.Gateways),
		Services: missing(s.Services, other.Services),
		Locals:   missing(s.Locals, other.Locals),
		Table:    s.Table && !other.Table,
	}
}

func missing[T comparable](list, from []T) []T {
	var out []T
	for _, v := range list {
		if !slices.Contains(from, v) {
			out = append(out, v)
		}
	}
	return out
}

// add puts addresses and routes into the kernel.
//
// The gateway's address stands on lo besides the pods' links, so that there is
// a source address for the service routes before there is a pod.
//
// The service route leads to lo only because it must lead somewhere: the
// dataplane's output hook gives a packet another destination, and the kernel
// routes it anew. Without it a host that has no default route, or has lost it,
// could not reach its own services; a packet to an address that no service has
// is dropped on lo.
func (s state) add() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bringing up lo: %w", err)
	}
	for _, gate := range s.Gateways {
		a := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(gate, gate.BitLen()))}
		if gate.Is4() {
			a.Label = gatewayLabel
		} else {
			a.Flags = unix.IFA_F_NODAD // usable at once, also as a route's source
		}
		if err := netlink.AddrReplace(lo, a); err != nil {
			return fmt.Errorf("adding the gateway %s to lo: %w", gate, err)
		}
	}
	for _, p := range s.Services {
		if err := netlink.RouteReplace(s.serviceRoute(lo, p)); err != nil {
			return fmt.Errorf("adding the route to service CIDR %s: %w", p, err)
		}
	}
	for _, a := range s.Locals {
		var err error
		if a.Is4() {
			err = netlink.RouteAdd(localRoute(lo, a))
		} else {
			// A local route is not enough for bind(2) in IPv6.
			err = netlink.AddrReplace(lo, localAddr(a))
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("making %s a local address: %w", a, err)
		}
	}
	return nil
}

// remove is the reverse of add; what is not there any more is no error.
func (s state) remove() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range s.Locals {
		var err error
		if a.Is4() {
			err = netlink.RouteDel(localRoute(lo, a))
		} else {
			err = netlink.AddrDel(lo, localAddr(a))
		}
		if !absent(err) {
			errs = append(errs, fmt.Errorf("removing the local address %s: %w", a, err))
		}
	}
	for _, p := range s.Services {
		if err := netlink.RouteDel(s.serviceRoute(lo, p)); !absent(err) {
			errs = append(errs, fmt.Errorf("removing the route to %s: %w", p, err))
		}
	}
	for _, gate := range s.Gateways {
		if err := netlink.AddrDel(lo, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(gate, gate.BitLen()))}); !absent(err) {
			errs = append(errs, fmt.Errorf("removing the gateway %s from lo: %w", gate, err))
		}
	}
	if s.Table {
		if err := removeTable(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func localAddr(a netip.Addr) *netlink.Addr {
	return &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, a.BitLen())), Flags: unix.IFA_F_NODAD}
}

func absent(err error) bool {
	return err == nil || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EADDRNOTAVAIL)
}

func (s state) serviceRoute(lo netlink.Link, p netip.Prefix) *netlink.Route {
	r := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: ipNet(p.Masked()), Protocol: Protocol, Scope: netlink.SCOPE_LINK}
	if p.Addr().Is6() {
		r.Scope = netlink.SCOPE_UNIVERSE // IPv6 routes have no other
	}
	for _, gate := range s.Gateways {
		if gate.Is4() == p.Addr().Is4() {
			r.Src = gate.AsSlice()
		}
	}
	return r
}

func localRoute(lo netlink.Link, a netip.Addr) *netlink.Route {
	r := &netlink.Route{
		LinkIndex: lo.Attrs().Index, Dst: ipNet(netip.PrefixFrom(a, a.BitLen())), Protocol: Protocol,
		Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST,
	}
	if a.Is6() {
		r.Scope = netlink.SCOPE_UNIVERSE
	}
	return r
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func load(runDir string) (state, error) {
	var s state
	text, err := os.ReadFile(filepath.Join(runDir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	if err != nil {
		return s, fmt.Errorf("reading the state of the node's routes: %w", err)
	}
	return s, nil
}

func save(runDir string, s state) error {
	text, err := json.Marshal(s)
	if err == nil {
		err = os.MkdirAll(runDir, 0o755)
	}
	path := filepath.Join(runDir, stateFile)
	if err == nil {
		err = os.WriteFile(path+".new", text, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return fmt.Errorf("writing the state of the node's routes: %w (another run directory: --run-dir)", err)
	}
	return nil
}
