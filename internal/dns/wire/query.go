// Package wire reads queries from, and writes answers to, the bytes of a DNS
// message without allocating.
package wire

import (
	"encoding/binary"
	"net/netip"
	"time"
)

const (
	headerLen = 12
	maxName   = 255 // octets of a name, root included (RFC 1035 §2.3.4)
	maxLabel  = 63
)

// Query is a parsed query. It is reused: nothing of it may be kept after the
// query is answered.
type Query struct {
	Raw []byte // the whole message

	ID         uint16
	RD, AD, CD bool // header bits that an answer may depend on

	// Question is the question as it came: name in the asker's spelling, type,
	// class. It starts at byte 12 of Raw, so a compression pointer to the name
	// is 0xC00C in every answer.
	Question []byte
	Name     []byte // the name in lower case, wire form, root included
	Type     uint16
	Class    uint16

	EDNS    bool
	Size    uint16 // of the client's buffer, as its OPT record says
	DO      bool
	Options []byte // data of the OPT record: only options that an answer repeats

	TCP      bool
	Remote   netip.AddrPort
	Local    netip.AddrPort
	Received time.Time
	Worker   int // a small number to spread counters by: the reading goroutines of one address differ in it

	labels  [128]uint8 // where the labels of Name begin
	nlabels int
	name    [maxName]byte
}

// Verdict is what to do with a message.
type Verdict uint8

const (
	// Plain: the query was parsed completely.
	Plain Verdict = iota
	// Unusual: an acceptable header, but something in the message that Parse
	// leaves to a full parser: other classes, opcode NOTIFY, records in the
	// query besides a usual OPT, or an error in the body.
	Unusual
	// Drop: not a query; answering could make two servers talk forever.
	Drop
	// FormErr: the header alone makes it a format error.
	FormErr
	// NotImp: an opcode that is not served.
	NotImp
)

// Parse reads the message b into q. Fields about the transport are left alone;
// the others are complete only for Plain.
//
// The counts accepted are those that CoreDNS accepts: a NOTIFY may carry a SOA
// (RFC 1996 §3.7), an IXFR one in the authority section (RFC 1995 §3), OPT and
// TSIG stand in the additional section.
func (q *Query) Parse(b []byte) Verdict {
	if len(b) < headerLen || b[2]&0x80 != 0 {
		return Drop
	}
	q.Raw = b
	q.ID = binary.BigEndian.Uint16(b)
	q.RD = b[2]&0x01 != 0
	q.AD = b[3]&0x20 != 0
	q.CD = b[3]&0x10 != 0
	q.EDNS, q.DO, q.Size, q.Options = false, false, 0, nil

	opcode := b[2] >> 3 & 0x0f
	if opcode != 0 && opcode != 4 {
		return NotImp
	}
	counts := binary.BigEndian.Uint64(b[4:])
	qd, an, ns, ar := uint16(counts>>48), uint16(counts>>32), uint16(counts>>16), uint16(counts)
	if qd != 1 || an > 1 || ns > 1 || ar > 2 {
		return FormErr
	}
	if opcode != 0 || an|ns != 0 || ar > 1 || !q.parseQuestion() {
		return Unusual
	}
	if ar == 1 && !q.parseOPT(b[headerLen+len(q.Question):]) {
		return Unusual
	}
	return Plain
}

// parseQuestion reads an uncompressed name, a type and class IN.
func (q *Query) parseQuestion() bool {
	b := q.Raw
	p, n := headerLen, 0
	q.nlabels = 0
	for {
		if p >= len(b) {
			return false
		}
		l := int(b[p])
		if l == 0 {
			break
		}
		if l > maxLabel || n+1+l >= maxName || p+1+l > len(b) {
			return false
		}
		q.labels[q.nlabels] = uint8(n)
		q.nlabels++
		q.name[n] = byte(l)
		for i, c := range b[p+1 : p+1+l] {
			if 'A' <= c && c <= 'Z' {
				c += 'a' - 'A'
			}
			q.name[n+1+i] = c
		}
		n += 1 + l
		p += 1 + l
	}
	if p+5 > len(b) {
		return false
	}
	q.name[n] = 0
	q.Name = q.name[:n+1]
	q.Type = binary.BigEndian.Uint16(b[p+1:])
	q.Class = binary.BigEndian.Uint16(b[p+3:])
	q.Question = b[headerLen : p+5]
	return q.Class == 1
}

// Option codes that answers repeat (the IANA registry of EDNS0 option codes).
const (
	optionNSID      = 3
	optionExpire    = 9
	optionCookie    = 10
	optionKeepalive = 11
	optionPadding   = 12
)

// parseOPT reads an OPT record (RFC 6891 §6.1.2) of version 0, as a query has it
// (no extended rcode), in b, which may go on after it.
func (q *Query) parseOPT(b []byte) bool {
	if len(b) < 11 || b[0] != 0 || b[1] != 0 || b[2] != 41 || b[5] != 0 || b[6] != 0 {
		return false
	}
	size := int(binary.BigEndian.Uint16(b[9:]))
	if 11+size > len(b) {
		return false
	}
	q.EDNS = true
	q.Size = binary.BigEndian.Uint16(b[3:])
	q.DO = b[7]&0x80 != 0
	q.Options = b[11 : 11+size]
	for o := q.Options; len(o) > 0; {
		if len(o) < 4 {
			return false
		}
		code, l := binary.BigEndian.Uint16(o), int(binary.BigEndian.Uint16(o[2:]))
		if 4+l > len(o) {
			return false
		}
		switch code {
		case optionNSID, optionCookie, optionPadding:
		case optionExpire, optionKeepalive:
			if l != 0 {
				return false
			}
		default:
			return false
		}
		o = o[4+l:]
	}
	return true
}

// Labels is the number of labels of the name, the root not counted.
func (q *Query) Labels() int { return q.nlabels }

// Label returns the i-th label of Name, the leftmost being 0.
func (q *Query) Label(i int) []byte {
	at := int(q.labels[i])
	return q.Name[at+1 : at+1+int(q.Name[at])]
}

// Suffix returns Name from the i-th label on, root included.
func (q *Query) Suffix(i int) []byte { return q.Name[q.Offset(i):] }

// Offset is where the i-th label begins in Name; for i = Labels() the root's.
// In Raw it begins 12 bytes further on.
func (q *Query) Offset(i int) int {
	if i >= q.nlabels {
		return len(q.Name) - 1
	}
	return int(q.labels[i])
}

// Under returns the number of labels in front of the zone (lower case wire
// form, root included), or -1 if the name is not in it.
func (q *Query) Under(zone []byte) int {
	at := len(q.Name) - len(zone)
	if at < 0 || string(q.Name[at:]) != string(zone) {
		return -1
	}
	// The suffix must begin where a label does: counting from the right end is
	// short for zones of few labels.
	for i := q.nlabels; i >= 0; i-- {
		if o := q.Offset(i); o <= at {
			if o == at {
				return i
			}
			return -1
		}
	}
	return -1
}

// IPv6 tells the family of the transport.
func (q *Query) IPv6() bool { return !q.Remote.Addr().Unmap().Is4() }

// Limit is the largest answer the client can take: 65535 over TCP; over UDP
// what its OPT record says, never under 512 (RFC 6891 §6.2.3).
func (q *Query) Limit() int {
	switch {
	case q.TCP:
		return 65535
	case q.EDNS && q.Size > 512:
		return int(q.Size)
	}
	return 512
}
