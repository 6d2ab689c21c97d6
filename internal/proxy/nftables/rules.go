package nftables

import (
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/proxy/nfnetlink"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// registers: where rules keep what they compute, the same in all of them.
type registers struct {
	src, proto, addr, port, slot, endpoint, endpointPort uint32
}

func registersOf(v6 bool) registers {
	a := uint32(1)
	if v6 {
		a = 4
	}
	const first = unix.NFT_REG32_00
	return registers{first, first + a, first + a + 1, first + 2*a + 1, first + 2*a + 2, first + 2*a + 3, first + 3*a + 3}
}

// rules builds rules of one family.
type rules struct {
	v6   bool
	r    registers
	sets [setCount]setSpec
	plan plan.Rules
	mark uint32
	// counters counts connections, bytes the bytes of each packet.
	counters, bytes bool
	// relayed: see OpenRelayed.
	relayed bool
}

// rule is the expressions of a rule: expr.Any, or ctOf.
type rule []any

// ctOf loads a key of the connection in one direction. (expr.Ct writes the
// direction in four bytes, of which the kernel reads the first.)
type ctOf struct {
	key, register uint32
	direction     byte
}

// Directions of a connection, and keys that x/sys lacks: addresses whose length
// is known, without which nft could not print a key that contains them.
const (
	ctOriginal = 0
	ctReply    = 1
	ctSrcIP    = 19 // NFT_CT_SRC_IP
	ctDstIP    = 20
	ctSrcIP6   = 21
	ctDstIP6   = 22
)

func (e ctOf) append(b []byte) []byte {
	b = nfnetlink.AppendString(b, unix.NFTA_EXPR_NAME, "ct")
	at := len(b)
	b = nfnetlink.AppendNest(b, unix.NFTA_EXPR_DATA)
	b = nfnetlink.AppendUint32(b, unix.NFTA_CT_DREG, e.register)
	b = nfnetlink.AppendUint32(b, unix.NFTA_CT_KEY, e.key)
	b = nfnetlink.AppendAttr(b, unix.NFTA_CT_DIRECTION, []byte{e.direction})
	nfnetlink.EndNest(b, at)
	return b
}

func join(parts ...rule) rule {
	var out rule
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func (l *rules) nfproto() byte {
	if l.v6 {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

func (l *rules) addrLen() uint32 {
	if l.v6 {
		return 16
	}
	return 4
}

func (l *rules) loadSrc(reg uint32) rule {
	off := uint32(12)
	if l.v6 {
		off = 8
	}
	return rule{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: off, Len: l.addrLen()}}
}

func (l *rules) loadDst(reg uint32) rule {
	off := uint32(16)
	if l.v6 {
		off = 24
	}
	return rule{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: off, Len: l.addrLen()}}
}

func loadProto(reg uint32) rule { return rule{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}} }

// loadPort loads the source (offset 0) or destination (2) port.
func loadPort(reg, offset uint32) rule {
	return rule{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2}}
}

// front loads the front end that the packet was sent to.
func (l *rules) front() rule { return l.frontAt(l.r.proto, false) }

// nodePortFront loads the front end of a node port.
func (l *rules) nodePortFront() rule { return l.frontAt(l.r.proto, true) }

// frontAt loads a front end into the registers from reg on.
func (l *rules) frontAt(reg uint32, nodePort bool) rule {
	addr := l.loadDst(reg + 1)
	if nodePort {
		// The zero address. A constant would do, but nft has no words for one
		// in the middle of a key.
		none := make([]byte, l.addrLen())
		addr = append(addr, &expr.Bitwise{SourceRegister: reg + 1, DestRegister: reg + 1, Len: l.addrLen(), Mask: none, Xor: none})
	}
	return join(loadProto(reg), addr, loadPort(reg+1+l.addrLen()/4, 2))
}

func (l *rules) lookup(s setID, reg uint32) rule {
	return rule{&expr.Lookup{SourceRegister: reg, SetName: l.sets[s].name}}
}

func (l *rules) lookupNot(s setID, reg uint32) rule {
	return rule{&expr.Lookup{SourceRegister: reg, SetName: l.sets[s].name, Invert: true}}
}

// find looks up reg in a map and leaves what it finds at dst.
func (l *rules) find(s setID, reg, dst uint32) rule {
	return rule{&expr.Lookup{SourceRegister: reg, DestRegister: dst, IsDestRegSet: true, SetName: l.sets[s].name}}
}

// follow looks up the front end in a verdict map and does what it says.
func (l *rules) follow(s setID) rule { return l.find(s, l.r.proto, unix.NFT_REG_VERDICT) }

func jump(chain string) rule {
	return rule{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

func drop() rule { return rule{&expr.Verdict{Kind: expr.VerdictDrop}} }

func ctNew(reg uint32) rule {
	return join(rule{&expr.Ct{Key: expr.CtKeySTATE, Register: reg}}, maskNotZero(reg, expr.CtStateBitNEW))
}

func maskNotZero(reg, bits uint32) rule { return maskCompare(reg, bits, expr.CmpOpNeq) }

func maskZero(reg, bits uint32) rule { return maskCompare(reg, bits, expr.CmpOpEq) }

// maskCompare compares some bits of a register with zero.
func maskCompare(reg, bits uint32, op expr.CmpOp) rule {
	mask := nfnetlink.Native.AppendUint32(nil, bits)
	zero := make([]byte, 4)
	return rule{
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: mask, Xor: zero},
		&expr.Cmp{Op: op, Register: reg, Data: zero},
	}
}

// setMark marks the packet for masquerading in postrouting.
func (l *rules) setMark() rule { return l.changeMark(^l.mark, l.mark) }

func (l *rules) changeMark(mask, xor uint32) rule {
	reg := l.r.src
	return rule{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: nfnetlink.Native.AppendUint32(nil, mask), Xor: nfnetlink.Native.AppendUint32(nil, xor)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg, SourceRegister: true},
	}
}

func (l *rules) isLocalType(source bool) rule {
	return rule{
		&expr.Fib{Register: l.r.src, ResultADDRTYPE: true, FlagSADDR: source, FlagDADDR: !source},
		&expr.Cmp{Op: expr.CmpOpEq, Register: l.r.src, Data: nfnetlink.Native.AppendUint32(nil, unix.RTN_LOCAL)},
	}
}

func (l *rules) inPrefix(reg uint32, p netip.Prefix, op expr.CmpOp) rule {
	n := l.addrLen()
	mask := make([]byte, n)
	for i := 0; i < p.Bits(); i++ {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return rule{
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: n, Mask: mask, Xor: make([]byte, n)},
		&expr.Cmp{Op: op, Register: reg, Data: p.Masked().Addr().AsSlice()},
	}
}

// fromPod matches sources that are, or are not, local pods.
func (l *rules) fromPod(yes bool) rule {
	op := expr.CmpOpNeq
	if yes {
		op = expr.CmpOpEq
	}
	d := &l.plan.Detect
	switch d.Mode {
	case plan.DetectCIDR:
		return join(l.loadSrc(l.r.src), l.inPrefix(l.r.src, d.CIDR(l.v6), op))
	case plan.DetectInterface:
		name := make([]byte, unix.IFNAMSIZ)
		copy(name, d.Interface)
		return rule{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: l.r.src}, &expr.Cmp{Op: op, Register: l.r.src, Data: name}}
	default:
		return rule{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: l.r.src}, &expr.Cmp{Op: op, Register: l.r.src, Data: []byte(d.Interface)}}
	}
}
