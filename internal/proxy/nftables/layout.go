package nftables

import "golang.org/x/sys/unix"

// The layout, the same in `table ip rutter` and `table ip6 rutter`:
//
//	prerouting, output ─▶ services ─┬─▶ cluster-ip-N   ─▶ dnat
//	                                ├─▶ external-N     ─▶ dnat
//	                                ├─▶ nodeport-N     ─▶ dnat
//	                                └─▶ *-policy-local ─▶ …
//
// A front end is `protocol . address . port` (a node port's address is zero).
// The map services leads from it to the chain for its kind and number of
// endpoints; that chain draws a slot number and finds the endpoint in the map
// endpoints under `front end . slot`. Two hash lookups, however many services
// there are; and the elements of a service are all that a change of it touches.
//
// A lookup's key never contains what another lookup found, although the kernel
// would allow it: nft (1.0.6 at least) aborts when it lists such a rule, and
// with it whatever the administrator's tools do. So the endpoints stand under
// each front end of a service.

// layoutVersion is raised when a table of the older layout cannot be adopted.
const layoutVersion = "rutter layout 1"

const tableName = "rutter"

type setID uint8

const (
	setServices         setID = iota // front end : verdict
	setEndpoints                     // front end . slot : address . port
	setShortcuts                     // front end : verdict, for sources that policy Local does not bind
	setLocals                        // front end : verdict, for sources that it does
	setNoEndpoints                   // front end : drop, or goto reject
	setFirewall                      // front ends with source ranges
	setSources                       // front end . source range
	setClusterIPs                    // address
	setNodePortIPs                   // address
	setHairpins                      // endpoint . endpoint
	setNodeDNS                       // front end, with timeout
	setAffinityServices              // front end : number of the service port
	setAffinitySlots                 // front end . slot : number of the endpoint
	setAffinity                      // source . service port : endpoint, with timeout; written by packets
	setConnections                   // front end . endpoint . port, with timeout and counter; written by packets
	setTraffic                       // the same
	setCount
)

// Type numbers of the nft program, so that it can print our sets.
const (
	typeIPv4    = 7
	typeIPv6    = 8
	typeProto   = 12
	typePort    = 13
	typeMark    = 19
	typeVerdict = unix.NFT_DATA_VERDICT
)

// What x/sys lacks of linux/netfilter/nf_tables.h.
const (
	nftSetConcat      = 0x80 // NFT_SET_CONCAT
	nftaSetDescConcat = 2    // NFTA_SET_DESC_CONCAT
	nftaSetFieldLen   = 1    // NFTA_SET_FIELD_LEN
	nftaSetElemKeyEnd = 10   // NFTA_SET_ELEM_KEY_END
	nftaTableUserdata = 6    // NFTA_TABLE_USERDATA
	nftaGenProcPID    = 2    // NFTA_GEN_PROC_PID
	nftaGenProcName   = 3    // NFTA_GEN_PROC_NAME
)

type setSpec struct {
	name  string
	flags uint32
	key   []field
	data  []field
	size  uint32
}

type field struct {
	typ uint32
	len uint32
}

// affinityLimit bounds the clients remembered per family. The kernel sizes the
// hash by it, 16 bytes each, so the map is made when the first service needs it.
const affinityLimit = 1 << 18

// counterLimit bounds the pairs of front end and endpoint that are counted.
const counterLimit = 1 << 16

// made tells whether a set is made with the table. Of those that packets write
// the kernel takes memory for all that may come: they are made when needed.
func (l *rules) made(id setID) bool {
	switch id {
	case setAffinity:
		return false
	case setConnections:
		return l.counters
	case setTraffic:
		return l.bytes
	}
	return true
}

// planned tells whether a set's elements follow from the plan.
func planned(id setID) bool {
	return id < setNodeDNS || id == setAffinityServices || id == setAffinitySlots
}

func setSpecs(v6 bool) [setCount]setSpec {
	addr := field{typeIPv4, 4}
	if v6 {
		addr = field{typeIPv6, 16}
	}
	proto, port, slot := field{typeProto, 1}, field{typePort, 2}, field{typeMark, 4}
	verdict := []field{{typeVerdict, 0}}
	front := []field{proto, addr, port}
	with := func(a []field, b ...field) []field { return append(append([]field(nil), a...), b...) }
	return [setCount]setSpec{
		setServices:    {name: "services", key: front, data: verdict},
		setEndpoints:   {name: "endpoints", key: with(front, slot), data: []field{addr, port}},
		setShortcuts:   {name: "shortcuts", key: front, data: verdict},
		setLocals:      {name: "locals", key: front, data: verdict},
		setNoEndpoints: {name: "no-endpoints", key: front, data: verdict},
		setFirewall:    {name: "firewall", key: front},
		setSources:     {name: "firewall-sources", key: with(front, addr), flags: unix.NFT_SET_INTERVAL},
		setClusterIPs:  {name: "cluster-ips", key: []field{addr}},
		setNodePortIPs: {name: "nodeport-ips", key: []field{addr}},
		setHairpins:    {name: "hairpins", key: []field{addr, addr}},
		setNodeDNS:     {name: "node-dns", key: front, flags: unix.NFT_SET_TIMEOUT},

		setAffinityServices: {name: "affinity-services", key: front, data: []field{slot}},
		setAffinitySlots:    {name: "affinity-slots", key: with(front, slot), data: []field{slot}},
		setConnections:      {name: "connections", key: with(front, addr, port), flags: unix.NFT_SET_TIMEOUT | unix.NFT_SET_EVAL, size: counterLimit},
		setTraffic:          {name: "traffic", key: with(front, addr, port), flags: unix.NFT_SET_TIMEOUT | unix.NFT_SET_EVAL, size: counterLimit},
		setAffinity: {name: "affinity", key: []field{addr, slot}, data: []field{slot},
			flags: unix.NFT_SET_TIMEOUT | unix.NFT_SET_EVAL, size: affinityLimit},
	}
}

func isVerdictMap(s setID) bool {
	return s == setServices || s == setShortcuts || s == setLocals || s == setNoEndpoints
}

// concat is the number by which the nft program knows a concatenation, and the
// bytes it takes in registers.
func concat(fields []field) (typ, length uint32) {
	for _, f := range fields {
		typ = typ<<6 | f.typ
		length += (f.len + 3) &^ 3
	}
	if len(fields) == 1 {
		length = fields[0].len
	}
	return typ, length
}
