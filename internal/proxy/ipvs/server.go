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

// IPVS's generic netlink messages (include/uapi/linux/ip_vs.h).
const (
	cmdNewService = 1
	cmdSetService = 2
	cmdDelService = 3
	cmdGetService = 4
	cmdNewDest    = 5
	cmdSetDest    = 6
	cmdDelDest    = 7
	cmdGetDest    = 8
	cmdSetConfig  = 12

	attrService    = 1
	attrDest       = 2
	attrTCPTimeout = 4
	attrFinTimeout = 5
	attrUDPTimeout = 6

	svcFamily    = 1
	svcProtocol  = 2
	svcAddr      = 3
	svcPort      = 4
	svcFwmark    = 5
	svcScheduler = 6
	svcFlags     = 7
	svcTimeout   = 8
	svcNetmask   = 9

	destAddr        = 1
	destPort        = 2
	destForward     = 3
	destWeight      = 4
	destUpper       = 5
	destLower       = 6
	destActive      = 7
	destInactive    = 8
	destStats64     = 12
	destFamily      = 11
	statConnections = 1
	statPacketsIn   = 2
	statPacketsOut  = 3
	statBytesIn     = 4
	statBytesOut    = 5

	flagPersistent = 0x1
	flagHashed     = 0x2  // the kernel's own
	flagSourcePort = 0x10 // scheduler mh: hash the source port, too
)

// front is what a virtual server is known by.
type front struct {
	addr  netip.Addr
	port  uint16
	proto catalog.Protocol
}

func (f front) is6() bool { return f.addr.Is6() }

func (f front) String() string {
	return fmt.Sprintf("%s %s", protocolName(f.proto), netip.AddrPortFrom(f.addr, f.port))
}

func protocolName(p catalog.Protocol) string {
	switch p {
	case catalog.UDP:
		return "UDP"
	case catalog.SCTP:
		return "SCTP"
	}
	return "TCP"
}

// settings are the properties of a virtual server.
type settings struct {
	scheduler string
	flags     uint32
	timeout   uint32 // of persistence, in seconds; 0 without
}

// destination is where a virtual server sends connections, with the kernel's
// counts.
type destination struct {
	addr             netip.AddrPort
	weight           uint32
	active, inactive uint32
	stats            stats
}

type stats struct{ connections, packets, bytes uint64 }

// kernel speaks with the kernel's IPVS.
type kernel struct {
	*conn
	family uint16 // of generic netlink
}

func dialIPVS() (*kernel, error) {
	c, err := dial(unix.NETLINK_GENERIC)
	if err != nil {
		return nil, err
	}
	k := &kernel{conn: c}
	if err := k.resolve(); err != nil {
		c.close()
		return nil, err
	}
	return k, nil
}

// errNoIPVS tells that the kernel has no IPVS.
var errNoIPVS = errors.New("this kernel has no IPVS: load module ip_vs (modprobe ip_vs; Debian's package linux-image-amd64 or linux-image-cloud-amd64 has it)")

// resolve finds the number of IPVS's family. To ask for it makes a kernel that
// has IPVS as a module load it.
func (k *kernel) resolve() error {
	var b batch
	b.begin(unix.GENL_ID_CTRL, 0)
	b.buf = append(b.buf, unix.CTRL_CMD_GETFAMILY, 1, 0, 0)
	b.buf = nfnetlink.AppendString(b.buf, unix.CTRL_ATTR_FAMILY_NAME, "IPVS")
	b.end()
	nfnetlink.Native.PutUint32(b.buf[8:], k.seq)
	k.seq++
	if err := k.send(b.buf); err != nil {
		return err
	}
	var refused error
	err := k.receive(func(typ, _ uint16, _ uint32, p []byte) {
		if typ == unix.NLMSG_ERROR && len(p) >= 4 {
			refused = unix.Errno(-int32(nfnetlink.Native.Uint32(p)))
			return
		}
		if len(p) < 4 {
			return
		}
		nfnetlink.Attributes(p[4:], func(t uint16, v []byte) {
			if t == unix.CTRL_ATTR_FAMILY_ID && len(v) >= 2 {
				k.family = nfnetlink.Native.Uint16(v)
			}
		})
	})
	switch {
	case err != nil:
		return err
	case errors.Is(refused, unix.ENOENT), refused == nil && k.family == 0:
		return errNoIPVS
	}
	return refused
}

// begin begins a request about a virtual server.
func (k *kernel) begin(b *batch, cmd byte) {
	b.begin(k.family, 0)
	b.buf = append(b.buf, cmd, 1, 0, 0)
}

// service appends the virtual server: its identity, with s its properties, too.
func appendService(b []byte, f front, s *settings) []byte {
	at := len(b)
	b = nfnetlink.AppendNest(b, attrService)
	fam := uint16(unix.AF_INET)
	if f.is6() {
		fam = unix.AF_INET6
	}
	b = appendUint16(b, svcFamily, fam)
	b = appendUint16(b, svcProtocol, uint16(f.proto))
	b = appendAddr(b, svcAddr, f.addr)
	b = nfnetlink.AppendAttr(b, svcPort, binary.BigEndian.AppendUint16(nil, f.port))
	if s != nil {
		b = nfnetlink.AppendString(b, svcScheduler, s.scheduler)
		b = nfnetlink.AppendAttr(b, svcFlags, append(nfnetlink.Native.AppendUint32(nil, s.flags), 0xff, 0xff, 0xff, 0xff))
		b = appendUint32(b, svcTimeout, s.timeout)
		mask := uint32(0xffffffff)
		if f.is6() {
			mask = 128
		}
		b = appendUint32(b, svcNetmask, mask)
	}
	nfnetlink.EndNest(b, at)
	return b
}

func (k *kernel) service(b *batch, cmd byte, f front, s *settings) {
	k.begin(b, cmd)
	b.buf = appendService(b.buf, f, s)
	b.end()
}

// dest appends a request about a destination of a virtual server.
func (k *kernel) dest(b *batch, cmd byte, f front, to netip.AddrPort, weight uint32) {
	k.begin(b, cmd)
	b.buf = appendService(b.buf, f, nil)
	at := len(b.buf)
	b.buf = nfnetlink.AppendNest(b.buf, attrDest)
	b.buf = appendAddr(b.buf, destAddr, to.Addr())
	b.buf = nfnetlink.AppendAttr(b.buf, destPort, binary.BigEndian.AppendUint16(nil, to.Port()))
	if cmd != cmdDelDest {
		b.buf = appendUint32(b.buf, destForward, 0) // masquerade
		b.buf = appendUint32(b.buf, destWeight, weight)
		b.buf = appendUint32(b.buf, destUpper, 0)
		b.buf = appendUint32(b.buf, destLower, 0)
	}
	nfnetlink.EndNest(b.buf, at)
	b.end()
}

func appendUint16(b []byte, typ, v uint16) []byte {
	return nfnetlink.AppendAttr(b, typ, nfnetlink.Native.AppendUint16(nil, v))
}

func appendUint32(b []byte, typ uint16, v uint32) []byte {
	return nfnetlink.AppendAttr(b, typ, nfnetlink.Native.AppendUint32(nil, v))
}

// appendAddr appends an address as union nf_inet_addr.
func appendAddr(b []byte, typ uint16, a netip.Addr) []byte {
	var v [16]byte
	copy(v[:], a.AsSlice())
	return nfnetlink.AppendAttr(b, typ, v[:])
}

// listed is a virtual server in a listing.
type listed struct {
	front
	settings
}

// servers lists the virtual servers. Those that are chosen by a mark are left
// out: they are never ours.
func (k *kernel) servers() (list []listed, err error) {
	var b batch
	k.begin(&b, cmdGetService)
	b.end()
	err = k.dump(&b, func() { list = nil }, func(p []byte) {
		if l, ok := parseService(p); ok {
			list = append(list, l)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list virtual servers: %w", err)
	}
	return list, nil
}

func parseService(p []byte) (l listed, ok bool) {
	if len(p) < 4 {
		return l, false
	}
	var fam uint16
	var addr []byte
	marked := false
	nfnetlink.Attributes(p[4:], func(t uint16, v []byte) {
		if t != attrService {
			return
		}
		nfnetlink.Attributes(v, func(t uint16, v []byte) {
			switch {
			case t == svcFamily && len(v) >= 2:
				fam = nfnetlink.Native.Uint16(v)
			case t == svcProtocol && len(v) >= 2:
				l.proto = catalog.Protocol(nfnetlink.Native.Uint16(v))
			case t == svcAddr:
				addr = v
			case t == svcPort && len(v) >= 2:
				l.port = binary.BigEndian.Uint16(v)
			case t == svcFwmark:
				marked = true
			case t == svcScheduler:
				l.scheduler = strings.TrimRight(string(v), "\x00")
			case t == svcFlags && len(v) >= 4:
				l.flags = nfnetlink.Native.Uint32(v) &^ flagHashed
			case t == svcTimeout && len(v) >= 4:
				l.timeout = nfnetlink.Native.Uint32(v)
			}
		})
	})
	if l.flags&flagPersistent == 0 {
		l.timeout = 0 // the kernel tells a default
	}
	l.addr, ok = parseAddr(addr, fam)
	return l, ok && !marked
}

func parseAddr(b []byte, fam uint16) (netip.Addr, bool) {
	switch {
	case fam == unix.AF_INET && len(b) >= 4:
		return netip.AddrFrom4([4]byte(b)), true
	case fam == unix.AF_INET6 && len(b) >= 16:
		return netip.AddrFrom16([16]byte(b)), true
	}
	return netip.Addr{}, false
}

// dests lists the destinations of a virtual server.
func (k *kernel) dests(f front) (list []destination, err error) {
	var b batch
	k.begin(&b, cmdGetDest)
	b.buf = appendService(b.buf, f, nil)
	b.end()
	err = k.dump(&b, func() { list = list[:0] }, func(p []byte) {
		if d, ok := parseDest(p, f.is6()); ok {
			list = append(list, d)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list the destinations of %s: %w", f, err)
	}
	return list, nil
}

func parseDest(p []byte, v6 bool) (d destination, ok bool) {
	if len(p) < 4 {
		return d, false
	}
	fam := uint16(unix.AF_INET)
	if v6 {
		fam = unix.AF_INET6
	}
	var addr []byte
	var port uint16
	nfnetlink.Attributes(p[4:], func(t uint16, v []byte) {
		if t != attrDest {
			return
		}
		nfnetlink.Attributes(v, func(t uint16, v []byte) {
			switch {
			case t == destAddr:
				addr = v
			case t == destPort && len(v) >= 2:
				port = binary.BigEndian.Uint16(v)
			case t == destWeight && len(v) >= 4:
				d.weight = nfnetlink.Native.Uint32(v)
			case t == destActive && len(v) >= 4:
				d.active = nfnetlink.Native.Uint32(v)
			case t == destInactive && len(v) >= 4:
				d.inactive = nfnetlink.Native.Uint32(v)
			case t == destFamily && len(v) >= 2:
				fam = nfnetlink.Native.Uint16(v)
			case t == destStats64:
				nfnetlink.Attributes(v, func(t uint16, v []byte) {
					if len(v) < 8 {
						return
					}
					n := nfnetlink.Native.Uint64(v)
					switch t {
					case statConnections:
						d.stats.connections = n
					case statPacketsIn, statPacketsOut:
						d.stats.packets += n
					case statBytesIn, statBytesOut:
						d.stats.bytes += n
					}
				})
			}
		})
	})
	a, ok := parseAddr(addr, fam)
	d.addr = netip.AddrPortFrom(a, port)
	return d, ok
}

// setTimeouts sets how long IPVS remembers connections, in seconds; 0 leaves a
// value as it is.
func (k *kernel) setTimeouts(tcp, fin, udp uint32) error {
	var b batch
	k.begin(&b, cmdSetConfig)
	b.buf = appendUint32(b.buf, attrTCPTimeout, tcp)
	b.buf = appendUint32(b.buf, attrFinTimeout, fin)
	b.buf = appendUint32(b.buf, attrUDPTimeout, udp)
	b.end()
	return k.one(&b)
}
