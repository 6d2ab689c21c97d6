package wire

import "encoding/binary"

// Reply is what must be known of another server's reply to pass it on without
// unpacking it.
type Reply struct {
	Rcode     uint8
	Truncated bool
	Answers   int    // records in the answer section
	Name      []byte // of the question, as the reply spells it

	qtype, qclass uint16
	opt           int // where the OPT record begins, the last record; 0 without
}

// Parse reads b and tells whether it is a reply of the usual kind: one
// question, only records of types whose data it knows, complete, with nothing
// left over, an OPT record only at the end. What is not usual need not be
// wrong; it is a full parser's to judge.
func (r *Reply) Parse(b []byte) bool {
	*r = Reply{}
	if len(b) < headerLen || b[2]&0xf8 != 0x80 || binary.BigEndian.Uint16(b[4:]) != 1 {
		return false
	}
	r.Rcode = b[3] & 0x0f
	r.Truncated = b[2]&0x02 != 0
	r.Answers = int(binary.BigEndian.Uint16(b[6:]))
	records := r.Answers + int(binary.BigEndian.Uint16(b[8:])) + int(binary.BigEndian.Uint16(b[10:]))
	at, ok := nameEnd(b, headerLen)
	if !ok || at+4 > len(b) {
		return false
	}
	r.Name = b[headerLen:at]
	r.qtype, r.qclass = binary.BigEndian.Uint16(b[at:]), binary.BigEndian.Uint16(b[at+2:])
	at += 4
	for ; records > 0; records-- {
		begin := at
		if at, ok = nameEnd(b, at); !ok || at+10 > len(b) {
			return false
		}
		kind := binary.BigEndian.Uint16(b[at:])
		data := at + 10
		end := data + int(binary.BigEndian.Uint16(b[at+8:]))
		if end > len(b) {
			return false
		}
		if kind == typeOPT {
			// An extended rcode or another version is not usual.
			if records != 1 || at != begin+1 || b[at+4] != 0 || b[at+5] != 0 || !usualOptions(b[data:end]) {
				return false
			}
			r.opt = begin
		} else if !usualData(b[:end], kind, data) {
			return false
		}
		at = end
	}
	return at == len(b)
}

// Answering tells whether the question is q's.
func (r *Reply) Answering(q *Query) bool {
	if r.qtype != q.Type || r.qclass != q.Class || len(r.Name) != len(q.Name) {
		return false
	}
	for i, c := range r.Name {
		if 'A' <= c && c <= 'Z' { // label lengths end at 63, before 'A'
			c += 'a' - 'A'
		}
		if c != q.Name[i] {
			return false
		}
	}
	return true
}

// Address turns the reply b, which was parsed into r and has room behind it,
// into the one that q's client gets: with its ID, and the OPT record that
// Answer.Finish would write but for options, which stay the other server's if it
// sent any OPT record. It returns nil, and leaves b alone,
// when the client cannot take so much.
func (r *Reply) Address(q *Query, b []byte) []byte {
	if !q.EDNS {
		if r.opt != 0 || len(b) > q.Limit() {
			return nil
		}
		binary.BigEndian.PutUint16(b, q.ID)
		return b
	}
	opt, size := r.opt, len(b)
	if opt == 0 {
		opt, size = len(b), len(b)+optLen+len(q.Options)
	}
	if size > q.Limit() || size > cap(b) {
		return nil
	}
	if b = b[:size]; r.opt == 0 {
		binary.BigEndian.PutUint16(b[10:], binary.BigEndian.Uint16(b[10:])+1)
		binary.BigEndian.PutUint16(b[opt+9:], uint16(len(q.Options)))
		copy(b[opt+optLen:], q.Options)
	}
	b[opt], b[opt+1], b[opt+2] = 0, 0, typeOPT
	binary.BigEndian.PutUint16(b[opt+3:], q.Size)
	b[opt+5], b[opt+6], b[opt+7], b[opt+8] = 0, 0, bit(q.DO, 0x80), 0
	binary.BigEndian.PutUint16(b, q.ID)
	return b
}

// End is where a plain query ends in Raw; what follows does not belong to it.
func (q *Query) End() int {
	n := headerLen + len(q.Question)
	if q.EDNS {
		n += optLen + len(q.Options)
	}
	return n
}

const (
	typeNS    = 2
	typeCNAME = 5
	typeSOA   = 6
	typePTR   = 12
	typeMX    = 15
	typeTXT   = 16
	typeSRV   = 33
	typeOPT   = 41
)

// usualData tells whether the data of a record, from at to the end of b, are
// what its type says.
func usualData(b []byte, kind uint16, at int) bool {
	ok := false
	switch kind {
	case typeA:
		return len(b)-at == 4
	case typeAAAA:
		return len(b)-at == 16
	case typeNS, typeCNAME, typePTR:
		at, ok = nameEnd(b, at)
	case typeMX:
		at, ok = nameEnd(b, at+2)
	case typeSRV:
		at, ok = nameEnd(b, at+6)
	case typeSOA:
		if at, ok = nameEnd(b, at); ok {
			at, ok = nameEnd(b, at)
			at += 20
		}
	case typeTXT:
		ok = at < len(b)
		for at < len(b) {
			at += 1 + int(b[at])
		}
	}
	return ok && at == len(b)
}

// usualOptions tells whether the data of an OPT record are options that any
// reply may have, NSID, cookie, padding and extended errors, and complete.
func usualOptions(o []byte) bool {
	const extendedError = 15
	for len(o) > 0 {
		if len(o) < 4 {
			return false
		}
		code, l := binary.BigEndian.Uint16(o), int(binary.BigEndian.Uint16(o[2:]))
		if 4+l > len(o) || code != optionNSID && code != optionCookie && code != optionPadding && (code != extendedError || l < 2) {
			return false
		}
		o = o[4+l:]
	}
	return true
}

// nameEnd returns the offset after the name at off. The name must be valid;
// its pointers must point to a label further ahead.
func nameEnd(b []byte, off int) (end int, ok bool) {
	if off+1 < len(b) && b[off] == pointer && b[off+1] == headerLen && off > headerLen {
		return off + 2, true // to the question, which was read first
	}
	size := 0
	for lowest := off; ; {
		if off >= len(b) {
			return 0, false
		}
		l := int(b[off])
		switch {
		case l == 0:
			if end == 0 {
				end = off + 1
			}
			return end, size < maxName
		case l <= maxLabel:
			size += 1 + l
			off += 1 + l
			if size >= maxName {
				return 0, false
			}
		case l >= pointer && off+1 < len(b):
			if end == 0 {
				end = off + 2
			}
			to := int(binary.BigEndian.Uint16(b[off:])) &^ (pointer << 8)
			if to >= lowest || to < headerLen || b[to] >= pointer {
				return 0, false
			}
			off, lowest = to, to
		default:
			return 0, false
		}
	}
}
