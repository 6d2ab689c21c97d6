package ipvs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/nfnetlink"
)

// ipset's netlink messages (include/uapi/linux/netfilter/ipset/ip_set.h).
const (
	ipsetSubsystem = unix.NFNL_SUBSYS_IPSET << 8
	ipsetCreate    = ipsetSubsystem | 2
	ipsetDestroy   = ipsetSubsystem | 3
	ipsetList      = ipsetSubsystem | 7
	ipsetAdd       = ipsetSubsystem | 9
	ipsetDel       = ipsetSubsystem | 10

	ipsetProtocol = 6

	ipsetAttrProtocol = 1
	ipsetAttrName     = 2
	ipsetAttrType     = 3
	ipsetAttrRevision = 4
	ipsetAttrFamily   = 5
	ipsetAttrData     = 7
	ipsetAttrADT      = 8

	dataIP      = 1
	dataPort    = 4
	dataPortTo  = 5
	dataProto   = 7
	dataMaxElem = 19
	dataIP2     = 20
	dataCIDR2   = 21

	// The kernel's error numbers for sets begin at 4096.
	ipsetErrTypeMismatch = unix.Errno(4096 + 6)
	ipsetErrExist        = unix.Errno(4096 + 7)
	ipsetErrFull         = unix.Errno(4096 + 256)
)

// setID is one of the sets that rules look into.
type setID uint8

// The sets, with kube-proxy's names; the last two are ours.
const (
	setLoopBack setID = iota
	setClusterIP
	setExternalIP
	setExternalIPLocal
	setLoadBalancer
	setLoadBalancerLocal
	setLoadBalancerFW
	setLoadBalancerSourceIP
	setLoadBalancerSourceCIDR
	setNodePortTCP
	setNodePortLocalTCP
	setNodePortUDP
	setNodePortLocalUDP
	setNodePortSCTP
	setNodePortLocalSCTP
	setHealthCheckNodePort
	setIPVSIPs
	setAwayInternal
	setAwayExternal
	setCount
)

const (
	hashIP        = "hash:ip"
	hashIPPort    = "hash:ip,port"
	hashIPPortIP  = "hash:ip,port,ip"
	hashIPPortNet = "hash:ip,port,net"
	bitmapPort    = "bitmap:port"
)

// sets tells of each its name without "KUBE-" or "KUBE-6-", and its type.
var sets = [setCount]struct{ name, typ string }{
	setLoopBack:               {"LOOP-BACK", hashIPPortIP},
	setClusterIP:              {"CLUSTER-IP", hashIPPort},
	setExternalIP:             {"EXTERNAL-IP", hashIPPort},
	setExternalIPLocal:        {"EXTERNAL-IP-LOCAL", hashIPPort},
	setLoadBalancer:           {"LOAD-BALANCER", hashIPPort},
	setLoadBalancerLocal:      {"LOAD-BALANCER-LOCAL", hashIPPort},
	setLoadBalancerFW:         {"LOAD-BALANCER-FW", hashIPPort},
	setLoadBalancerSourceIP:   {"LOAD-BALANCER-SOURCE-IP", hashIPPortIP},
	setLoadBalancerSourceCIDR: {"LOAD-BALANCER-SOURCE-CIDR", hashIPPortNet},
	setNodePortTCP:            {"NODE-PORT-TCP", bitmapPort},
	setNodePortLocalTCP:       {"NODE-PORT-LOCAL-TCP", bitmapPort},
	setNodePortUDP:            {"NODE-PORT-UDP", bitmapPort},
	setNodePortLocalUDP:       {"NODE-PORT-LOCAL-UDP", bitmapPort},
	setNodePortSCTP:           {"NODE-PORT-SCTP-HASH", hashIPPort},
	setNodePortLocalSCTP:      {"NODE-PORT-LOCAL-SCTP-HASH", hashIPPort},
	setHealthCheckNodePort:    {"HEALTH-CHECK-NODE-PORT", bitmapPort},
	setIPVSIPs:                {"IPVS-IPS", hashIP},
	setAwayInternal:           {"AWAY-INTERNAL", hashIPPort},
	setAwayExternal:           {"AWAY-EXTERNAL", hashIPPort},
}

// setName is the name of a set in a family: at most 31 characters, as
// kube-proxy cuts it.
func setName(id setID, v6 bool) string {
	prefix := "KUBE-"
	if id == setAwayInternal || id == setAwayExternal {
		prefix = "RUTTER-"
	}
	if v6 {
		prefix += "6-"
	}
	name := prefix + sets[id].name
	return name[:min(len(name), 31)]
}

// element is an entry of a set.
type element struct {
	set   setID
	v6    bool
	addr  netip.Addr // invalid in a set of ports
	port  uint16
	proto catalog.Protocol // 0 in sets without
	with  netip.Prefix     // the second address, or network
}

// ipsets speaks with the kernel's ipset.
type ipsets struct{ *conn }

func dialIPSet() (*ipsets, error) {
	c, err := dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	return &ipsets{c}, nil
}

func (s *ipsets) begin(b *batch, typ, flags uint16, name string) {
	b.begin(typ, flags)
	b.buf = append(b.buf, unix.AF_INET, 0, 0, 0) // struct nfgenmsg
	b.buf = nfnetlink.AppendAttr(b.buf, ipsetAttrProtocol, []byte{ipsetProtocol})
	b.buf = nfnetlink.AppendString(b.buf, ipsetAttrName, name)
}

// maxElements is for all types of hash: kube-proxy's, the default 65536, is too
// few for what a node of a big cluster may have. A set that exists keeps its
// own.
const maxElements = 1 << 20

// create makes the sets of a family that do not exist.
func (s *ipsets) create(v6 bool) error {
	for id := range setCount {
		var b batch
		name, typ := setName(id, v6), sets[id].typ
		s.begin(&b, ipsetCreate, unix.NLM_F_CREATE|unix.NLM_F_EXCL, name)
		b.buf = nfnetlink.AppendString(b.buf, ipsetAttrType, typ)
		// The least revision that knows SCTP, and so every kernel's.
		revision, fam := byte(1), byte(unix.AF_INET)
		switch {
		case typ == bitmapPort:
			revision, fam = 0, unix.AF_UNSPEC
		case typ == hashIP:
			revision = 0
		}
		if v6 && typ != bitmapPort {
			fam = unix.AF_INET6
		}
		b.buf = nfnetlink.AppendAttr(b.buf, ipsetAttrRevision, []byte{revision})
		b.buf = nfnetlink.AppendAttr(b.buf, ipsetAttrFamily, []byte{fam})
		at := len(b.buf)
		b.buf = nfnetlink.AppendNest(b.buf, ipsetAttrData)
		if typ == bitmapPort {
			b.buf = appendNet(b.buf, dataPort, []byte{0, 0})
			b.buf = appendNet(b.buf, dataPortTo, []byte{0xff, 0xff})
		} else {
			b.buf = appendNet(b.buf, dataMaxElem, binary.BigEndian.AppendUint32(nil, maxElements))
		}
		nfnetlink.EndNest(b.buf, at)
		b.end()
		err := s.one(&b)
		if errors.Is(err, unix.EEXIST) {
			// Perhaps of another kind: adding to it would fail.
			var found string
			if found, err = s.typeOf(name); err == nil && found != typ {
				err = fmt.Errorf("it exists with type %s, need %s: remove it (ipset destroy %s)", found, typ, name)
			}
		}
		if err != nil {
			return fmt.Errorf("make ipset %s: %w", name, explainSet(err, typ))
		}
	}
	return nil
}

func explainSet(err error, typ string) error {
	var no unix.Errno
	if !errors.As(err, &no) {
		return err
	}
	switch no {
	case unix.EINVAL, unix.EPROTONOSUPPORT, unix.EOPNOTSUPP:
		return fmt.Errorf("%w: this kernel has no ipset: load module ip_set", err)
	case unix.Errno(4096 + 2):
		return fmt.Errorf("this kernel has no sets of type %s: load module ip_set_%s", typ, strings.NewReplacer(":", "_", ",", "").Replace(typ))
	case ipsetErrFull:
		return errors.New("the set is full")
	}
	if no >= 4096 {
		return fmt.Errorf("ipset error %d", int(no)-4096)
	}
	return err
}

// appendNet appends an attribute in network order.
func appendNet(b []byte, typ uint16, v []byte) []byte {
	return nfnetlink.AppendAttr(b, typ|unix.NLA_F_NET_BYTEORDER, v)
}

func appendIP(b []byte, typ uint16, a netip.Addr) []byte {
	at := len(b)
	b = nfnetlink.AppendNest(b, typ)
	kind := uint16(1) // IPSET_ATTR_IPADDR_IPV4
	if a.Is6() {
		kind = 2
	}
	b = appendNet(b, kind, a.AsSlice())
	nfnetlink.EndNest(b, at)
	return b
}

// put appends a request to add an element to its set, or to delete it. It is no
// error if it is there already, or gone.
func (s *ipsets) put(b *batch, e *element, add bool) {
	typ := uint16(ipsetAdd)
	if !add {
		typ = ipsetDel
	}
	s.begin(b, typ, 0, setName(e.set, e.v6))
	at := len(b.buf)
	b.buf = nfnetlink.AppendNest(b.buf, ipsetAttrData)
	if e.addr.IsValid() {
		b.buf = appendIP(b.buf, dataIP, e.addr)
	}
	if e.port != 0 {
		b.buf = appendNet(b.buf, dataPort, binary.BigEndian.AppendUint16(nil, e.port))
	}
	if e.proto != 0 {
		b.buf = nfnetlink.AppendAttr(b.buf, dataProto, []byte{byte(e.proto)})
	}
	if e.with.IsValid() {
		b.buf = appendIP(b.buf, dataIP2, e.with.Addr())
		if sets[e.set].typ == hashIPPortNet {
			b.buf = nfnetlink.AppendAttr(b.buf, dataCIDR2, []byte{byte(e.with.Bits())})
		}
	}
	nfnetlink.EndNest(b.buf, at)
	b.end()
}

// elements lists what a set holds; an absent set holds nothing.
func (s *ipsets) elements(id setID, v6 bool, yield func(element)) error {
	var list []element
	err := s.list(setName(id, v6), func() { list = nil }, func(data []byte) {
		if e, ok := parseElement(id, v6, data); ok {
			list = append(list, e)
		}
	}, nil)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("list ipset %s: %w", setName(id, v6), err)
	}
	for _, e := range list {
		yield(e)
	}
	return nil
}

// typeOf returns the type of a set.
func (s *ipsets) typeOf(name string) (typ string, err error) {
	err = s.list(name, func() {}, func([]byte) {}, func(t string) { typ = t })
	return typ, err
}

func (s *ipsets) list(name string, reset func(), yield func(data []byte), typ func(string)) error {
	var b batch
	s.begin(&b, ipsetList, 0, name)
	b.end()
	return s.dump(&b, reset, func(p []byte) {
		if len(p) < 4 {
			return
		}
		nfnetlink.Attributes(p[4:], func(t uint16, v []byte) {
			switch {
			case t == ipsetAttrType && typ != nil:
				typ(strings.TrimRight(string(v), "\x00"))
			case t == ipsetAttrADT:
				nfnetlink.Attributes(v, func(_ uint16, data []byte) { yield(data) })
			}
		})
	})
}

func parseElement(id setID, v6 bool, data []byte) (element, bool) {
	e := element{set: id, v6: v6}
	var second netip.Addr
	bits := -1
	nfnetlink.Attributes(data, func(t uint16, v []byte) {
		switch {
		case t == dataIP:
			e.addr = parseIP(v)
		case t == dataPort && len(v) >= 2:
			e.port = binary.BigEndian.Uint16(v)
		case t == dataProto && len(v) >= 1:
			e.proto = catalog.Protocol(v[0])
		case t == dataIP2:
			second = parseIP(v)
		case t == dataCIDR2 && len(v) >= 1:
			bits = int(v[0])
		}
	})
	if second.IsValid() {
		if bits < 0 {
			bits = second.BitLen()
		}
		e.with = netip.PrefixFrom(second, bits)
	}
	return e, e.addr.IsValid() || sets[id].typ == bitmapPort && e.port != 0
}

func parseIP(b []byte) (a netip.Addr) {
	nfnetlink.Attributes(b, func(_ uint16, v []byte) {
		if x, ok := netip.AddrFromSlice(v); ok {
			a = x
		}
	})
	return a
}

// destroy removes the sets of a family. Rules must not refer to them any more.
func (s *ipsets) destroy(v6 bool) error {
	var errs []error
	for id := range setCount {
		var b batch
		s.begin(&b, ipsetDestroy, 0, setName(id, v6))
		b.end()
		if err := s.one(&b); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove ipset %s: %w", setName(id, v6), explainSet(err, "")))
		}
	}
	return errors.Join(errs...)
}
