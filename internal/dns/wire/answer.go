package wire

import (
	"encoding/binary"
)

// Section of a message.
type Section uint8

// The sections that hold records. They are filled in this order.
const (
	AnswerSection Section = iota
	AuthoritySection
	AdditionalSection
)

// Answer is an answer in the making, in a buffer of the caller's. One Answer
// serves one goroutine, query after query.
type Answer struct {
	Rcode              uint8
	Authoritative      bool
	RecursionAvailable bool
	AuthenticData      bool
	// Shuffle asks for the address records in random order.
	Shuffle bool
	// SetFlags and ClearFlags change header flags at the end, whatever the
	// handlers made of them (the header plugin): bits of the header's second
	// 16-bit word, such as 0x0080 for RA.
	SetFlags, ClearFlags uint16
	// Keeper is a handler that wants to see the answer if it comes from
	// elsewhere (a plugin.Keeper); nil for none.
	Keeper any

	q         *Query
	buf       []byte
	n         int // bytes written
	max       int // n must not exceed it: the client's limit less the OPT record
	counts    [3]uint16
	truncated bool
	overflow  bool // something was left out for want of buf, not of the client's room
	short     bool // buf is less than what the client can take
	mixed     bool // Append put records into the answer section: Finish looks for addresses
	addrs     run
	rng       uint64
}

// run is a row of records of one size.
type run struct{ at, count, size int }

// NewAnswer returns an Answer whose random numbers begin with seed.
func NewAnswer(seed uint64) *Answer { return &Answer{rng: seed} }

// Begin starts the answer to q in buf, with the question copied. It returns
// false when buf or the client's limit is too small even for that.
func (a *Answer) Begin(q *Query, buf []byte) bool {
	rng := a.rng
	*a = Answer{q: q, buf: buf, rng: rng}
	a.max = q.Limit()
	if len(buf) < a.max {
		a.max, a.short = len(buf), true
	}
	if q.EDNS {
		a.max -= optLen + len(q.Options)
	}
	a.n = headerLen + len(q.Question)
	if a.n > a.max {
		return false
	}
	copy(buf[headerLen:], q.Question)
	return true
}

// Adopt makes a the answer to q that b is, complete, for those who look at
// answers; its addresses are put in random order if shuffle says so.
func (a *Answer) Adopt(q *Query, b []byte, shuffle bool) {
	*a = Answer{q: q, buf: b, n: len(b), rng: a.rng, Rcode: b[3] & 0x0f, Shuffle: shuffle}
	for s := range a.counts {
		a.counts[s] = binary.BigEndian.Uint16(b[6+2*s:])
	}
	if shuffle {
		a.findAddresses()
		a.shuffle(a.addrs)
	}
}

// Append adds packed records to a section. Owner names that are compression
// pointers must be valid at this place of this message: 0xC00C is the name of
// the question. It returns false, having added nothing, when they do not fit.
func (a *Answer) Append(s Section, records []byte, count int) bool {
	to := a.Extend(s, len(records), count)
	if to == nil {
		return false
	}
	copy(to, records)
	a.mixed = a.mixed || s == AnswerSection
	return true
}

// Extend adds size bytes, to be filled by the caller with count records, to a
// section; nil when they do not fit.
func (a *Answer) Extend(s Section, size, count int) []byte {
	if a.n+size > a.max {
		a.overflow = a.short
		return nil
	}
	to := a.buf[a.n : a.n+size : a.n+size]
	a.n += size
	a.counts[s] += uint16(count)
	return to
}

// Len is the number of bytes written so far: where the next record will begin.
func (a *Answer) Len() int { return a.n }

// Count is the number of records in a section.
func (a *Answer) Count(s Section) int { return int(a.counts[s]) }

// Overflow tells that the buffer was too small for what the client could have
// taken: the answer must be made again in a larger one.
func (a *Answer) Overflow() bool { return a.overflow }

const (
	typeA     = 1
	typeAAAA  = 28
	optLen    = 11
	rrLen     = 12 // of a record with a pointer for its owner, without data
	pointer   = 0xc0
	ptrToName = 0xc00c
)

// Addresses adds one A (size 4) or AAAA (size 16) record with the asked name
// for each address in packed. When not all fit, some at random are taken and
// the answer is marked truncated.
func (a *Answer) Addresses(packed []byte, size int, ttl uint32) {
	total := len(packed) / size
	fit := min(total, (a.max-a.n)/(rrLen+size))
	if fit < total {
		a.truncated, a.overflow = true, a.short
	}
	from := 0
	if fit < total && a.Shuffle {
		from = int(a.below(uint32(total)))
	}
	head := uint64(ptrToName)<<48 | uint64(typeA)<<32 | 1<<16 | uint64(ttl>>16)
	if size == 16 {
		head = uint64(ptrToName)<<48 | uint64(typeAAAA)<<32 | 1<<16 | uint64(ttl>>16)
	}
	tail := ttl<<16 | uint32(size)
	a.addrs = run{at: a.n, count: fit, size: rrLen + size}
	to := a.Extend(AnswerSection, fit*(rrLen+size), fit)
	for i := range fit {
		j := from + i
		if j >= total {
			j -= total
		}
		rr := to[i*(rrLen+size):]
		binary.BigEndian.PutUint64(rr, head)
		binary.BigEndian.PutUint32(rr[8:], tail)
		if size == 4 {
			*(*[4]byte)(rr[rrLen:]) = [4]byte(packed[j*4:])
		} else {
			*(*[16]byte)(rr[rrLen:]) = [16]byte(packed[j*16:])
		}
	}
}

// AddressOnce adds an A or AAAA record with the asked name unless it is there
// already. When it does not fit the answer is marked truncated.
func (a *Answer) AddressOnce(addr []byte, ttl uint32) {
	r := a.addrs
	for i := range r.count {
		rr := a.buf[r.at+i*r.size : r.at+(i+1)*r.size]
		if string(rr[rrLen:]) == string(addr) {
			return
		}
	}
	a.Addresses(addr, len(addr), ttl)
	if r.count > 0 {
		r.count += a.addrs.count
		a.addrs = r
	}
}

// Truncate marks the answer as cut short.
func (a *Answer) Truncate() { a.truncated = true }

// Written is the message so far, its header not yet filled in.
func (a *Answer) Written() []byte { return a.buf[:a.n] }

// Finish completes the message and returns it: header, OPT, order.
func (a *Answer) Finish() []byte {
	if a.Shuffle {
		if a.mixed {
			a.findAddresses()
		}
		a.shuffle(a.addrs)
	}
	q, b := a.q, a.buf
	ar := a.counts[AdditionalSection]
	if q.EDNS {
		// The client's own size and DO bit (CoreDNS does so), version 0.
		o := b[a.n : a.n+optLen+len(q.Options)]
		o[0], o[1], o[2] = 0, 0, 41
		binary.BigEndian.PutUint16(o[3:], q.Size)
		o[5], o[6], o[7], o[8] = 0, 0, 0, 0
		if q.DO {
			o[7] = 0x80
		}
		binary.BigEndian.PutUint16(o[9:], uint16(len(q.Options)))
		copy(o[optLen:], q.Options)
		a.n += len(o)
		ar++
	}
	binary.BigEndian.PutUint16(b, q.ID)
	b[2] = 0x80 | bit(a.Authoritative, 0x04) | bit(a.truncated, 0x02) | bit(q.RD, 0x01)
	b[3] = bit(a.RecursionAvailable, 0x80) | bit(a.AuthenticData, 0x20) | bit(q.CD, 0x10) | a.Rcode&0x0f
	if a.SetFlags|a.ClearFlags != 0 {
		flags := binary.BigEndian.Uint16(b[2:])
		binary.BigEndian.PutUint16(b[2:], flags&^a.ClearFlags|a.SetFlags)
	}
	binary.BigEndian.PutUint64(b[4:], 1<<48|uint64(a.counts[0])<<32|uint64(a.counts[1])<<16|uint64(ar))
	return b[:a.n]
}

func bit(set bool, b byte) byte {
	if set {
		return b
	}
	return 0
}

// shuffle puts the records of r in random order (Fisher and Yates).
func (a *Answer) shuffle(r run) {
	b := a.buf[r.at:]
	var tmp [rrLen + 16]byte
	for i := r.count - 1; i > 0; i-- {
		j := int(a.below(uint32(i + 1)))
		if i == j {
			continue
		}
		x, y := b[i*r.size:(i+1)*r.size], b[j*r.size:(j+1)*r.size]
		if r.size == rrLen+4 { // nearly always: two words, without a call
			x, y := (*[16]byte)(x), (*[16]byte)(y)
			*x, *y = *y, *x
			continue
		}
		copy(tmp[:], x)
		copy(x, y)
		copy(y, tmp[:r.size])
	}
}

// findAddresses sets addrs to the last row of address records of one size in
// the answer section, which follows the CNAMEs if there are any.
func (a *Answer) findAddresses() {
	r := run{}
	at := headerLen + len(a.q.Question)
	for range a.counts[AnswerSection] {
		begin := at
		at = skipName(a.buf[:a.n], at)
		if at+10 > a.n {
			return
		}
		kind := binary.BigEndian.Uint16(a.buf[at:])
		at += 10 + int(binary.BigEndian.Uint16(a.buf[at+8:]))
		if at > a.n {
			return
		}
		size := at - begin
		switch {
		case kind != typeA && kind != typeAAAA || size > rrLen+16:
			r = run{}
		case r.count > 0 && r.size == size:
			r.count++
		default:
			r = run{at: begin, count: 1, size: size}
		}
	}
	a.addrs = r
}

// skipName returns the offset after the name at off; len(b) if there is none.
func skipName(b []byte, off int) int {
	for off < len(b) {
		switch l := int(b[off]); {
		case l == 0:
			return off + 1
		case l >= pointer:
			return off + 2
		default:
			off += 1 + l
		}
	}
	return len(b)
}

// random is splitmix64 (Steele, Lea, Flood 2014): good enough to spread load,
// a nanosecond, and not to be used where an attacker must not guess.
func (a *Answer) random() uint64 {
	a.rng += 0x9e3779b97f4a7c15
	z := a.rng
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// below returns a random number less than n (Lemire's multiplication; the bias
// of 2^-32 per n does not matter here).
func (a *Answer) below(n uint32) uint32 { return uint32(a.random() >> 32 * uint64(n) >> 32) }
