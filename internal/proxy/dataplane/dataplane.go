// Package dataplane is what the proxy asks of whatever makes the kernel hold
// its plans. Packages nftables, iptables, ipvs and userspace do it, each in its
// own way.
package dataplane

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// Config is what any dataplane is opened with.
type Config struct {
	Rules plan.Rules
	// MasqueradeBit is the bit of the packet mark that tells which packets to
	// masquerade: 0 to 31.
	MasqueradeBit uint
	IPv4, IPv6    bool // at least one
	// Counters counts connections by front end and endpoint. CountBytes counts
	// bytes too. Both cost something per connection or packet.
	Counters, CountBytes bool
	Logger               *slog.Logger
}

// Dataplane makes the kernel hold plans, in the network namespace it was opened
// in. Opening one leaves what an earlier process left working as it is, until
// Adopt. Its methods may be called by several goroutines.
type Dataplane interface {
	// Adopt makes the kernel hold these services and no others, changing only
	// what differs. Services that the kernel refuses are returned, the others
	// are in place. After an error the kernel holds what it held before, or a
	// part of the way: Adopt is to be called again.
	Adopt(ctx context.Context, services []plan.Service) ([]Refusal, error)
	// Apply makes the kernel hold these services as planned; a plan without
	// ports removes the service. Others are not touched. As to refusals and
	// errors it is like Adopt.
	Apply(ctx context.Context, services []plan.Service) ([]Refusal, error)
	// SetRules puts other rules into force: Adopt is to be called next.
	SetRules(plan.Rules) error
	// Sweep removes what past changes left unused. It is called now and then.
	Sweep() error
	// KeepNodeDNS makes queries to Rules.NodeDNS stay on this node for d more;
	// with 0 they go to the endpoints of the service at once.
	KeepNodeDNS(d time.Duration) error
	// Counters returns what was counted, by flow; nil if nothing is.
	Counters() (map[Flow]Count, error)
	// Monitor begins to listen for what others do to what is ours.
	Monitor() (Monitor, error)
	// Rivals names what another service proxy left in the kernel, or keeps
	// there: its rules see packets too. They are not ours to remove.
	Rivals() ([]string, error)
	// Close ends the upkeep. What the kernel holds stays and goes on working.
	Close() error
}

// Refusal is a service that the kernel would not take.
type Refusal struct {
	Service catalog.ServiceName
	Err     error
}

// Monitor tells of changes by others.
type Monitor interface {
	// Run calls notify for each change, until Close.
	Run(notify func(Intrusion)) error
	Close()
}

// Intrusion is a change of what is ours by somebody else.
type Intrusion struct {
	// PID and Process name who did it, as the kernel tells; 0 and empty if it
	// did not, or if notices were lost.
	PID     int
	Process string
}

// Flow is what went through a front end to an endpoint.
type Flow struct {
	// Front is what clients sent to: for a node port, the node's address.
	Front    netip.AddrPort
	Protocol catalog.Protocol
	Endpoint netip.AddrPort
}

// Count is how much it was. It may begin anew at any time.
type Count struct {
	Connections uint64
	// Packets and Bytes are of both directions, 0 unless bytes are counted.
	Packets, Bytes uint64
}
