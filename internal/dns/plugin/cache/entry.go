package cache

import (
	"encoding/binary"
	"math"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/wire"
)

// entry is a reply in wire form. It never changes but for its counters.
type entry struct {
	question
	rcode  uint8
	ad, ra bool
	ttl    uint32
	stored time.Time

	// records is everything after the question: compression pointers in it
	// are valid where it stands behind a question of the same name.
	records []byte
	ends    [2]int    // where the answer and the authority section end
	counts  [3]uint16 // records per section
	ttls    []uint16  // where the TTLs are

	answers  bool   // the records answer the question
	lastGood *entry // serve_stale_policy prefer_positive: what did, if these do not

	hits       atomic.Int32 // in a row, without a long gap
	lastHit    atomic.Int64 // ns after stored
	refreshing atomic.Bool
	retryAfter atomic.Int64 // ns after stored: no refresh before
}

// question is what a reply is for. The name is in wire form and lower case.
type question struct {
	name   string
	qtype  uint16
	qclass uint16
	do, cd bool
}

const headerLen = 12

// overhead is about what an entry costs besides its records and name.
const overhead = 320

func (e *entry) size() int {
	n := overhead + len(e.records) + len(e.name) + 2*len(e.ttls)
	if e.lastGood != nil {
		n += e.lastGood.size()
	}
	return n
}

// newEntry packs m, a reply to q without OPT record whose TTLs are ttl
// already. It returns nil when m cannot be packed.
func newEntry(q question, m *dns.Msg, ttl uint32, now time.Time) *entry {
	packed := dns.Msg{Compress: true, Question: m.Question, Answer: m.Answer, Ns: m.Ns, Extra: m.Extra}
	raw, err := packed.Pack()
	if err != nil || len(raw) > math.MaxUint16 {
		return nil
	}
	body := headerLen + len(q.name) + 4
	if len(raw) < body {
		return nil
	}
	e := &entry{
		question: q,
		rcode:    uint8(m.Rcode),
		ad:       m.AuthenticatedData,
		ra:       m.RecursionAvailable,
		ttl:      ttl,
		stored:   now,
		records:  append([]byte(nil), raw[body:]...),
		counts:   [3]uint16{uint16(len(m.Answer)), uint16(len(m.Ns)), uint16(len(m.Extra))},
		answers:  answersQuestion(m),
	}
	at := 0
	for section, n := range e.counts {
		for range n {
			at = skipName(e.records, at)
			if at+10 > len(e.records) {
				return nil
			}
			e.ttls = append(e.ttls, uint16(at+4))
			at += 10 + int(binary.BigEndian.Uint16(e.records[at+8:]))
		}
		if section < len(e.ends) {
			e.ends[section] = at
		}
	}
	if at != len(e.records) {
		return nil
	}
	return e
}

// skipName returns the offset after the name at off.
func skipName(b []byte, off int) int {
	for off < len(b) {
		switch l := int(b[off]); {
		case l == 0:
			return off + 1
		case l >= 0xc0:
			return off + 2
		default:
			off += 1 + l
		}
	}
	return len(b)
}

// remaining is the TTL in whole seconds that is left at now; not positive when
// the entry has expired.
func (e *entry) remaining(now time.Time) int {
	return int(e.ttl) - int(now.Sub(e.stored)/time.Second)
}

// append writes the records with ttl to an answer that holds only its question
// yet. It returns false when they do not fit.
func (e *entry) append(a *wire.Answer, ttl uint32) bool {
	from := a.Len()
	if !a.Append(wire.AnswerSection, e.records[:e.ends[0]], int(e.counts[0])) ||
		!a.Append(wire.AuthoritySection, e.records[e.ends[0]:e.ends[1]], int(e.counts[1])) ||
		!a.Append(wire.AdditionalSection, e.records[e.ends[1]:], int(e.counts[2])) {
		return false
	}
	e.setTTL(a.Written()[from:], ttl)
	a.Rcode = e.rcode
	a.RecursionAvailable = e.ra
	a.Authoritative = true // see message
	return true
}

func (e *entry) setTTL(records []byte, ttl uint32) {
	for _, at := range e.ttls {
		binary.BigEndian.PutUint32(records[at:], ttl)
	}
}

// message returns the reply to r with ttl. AA is always set: some resolver
// libraries drop replies without it (CoreDNS does the same).
func (e *entry) message(r *dns.Msg, ttl uint32) (*dns.Msg, error) {
	buf := make([]byte, headerLen, headerLen+len(e.name)+4+len(e.records))
	binary.BigEndian.PutUint16(buf[4:], 1)
	for i, n := range e.counts {
		binary.BigEndian.PutUint16(buf[6+2*i:], n)
	}
	buf = append(buf, e.name...)
	buf = binary.BigEndian.AppendUint16(buf, e.qtype)
	buf = binary.BigEndian.AppendUint16(buf, e.qclass)
	// The records' owner is the name as the asker spells it, as on the direct
	// path, where it is a pointer to the question.
	if _, err := dns.PackDomainName(r.Question[0].Name, buf[headerLen:headerLen+len(e.name)], 0, nil, false); err != nil {
		return nil, err
	}
	at := len(buf)
	buf = append(buf, e.records...)
	e.setTTL(buf[at:], ttl)
	m := new(dns.Msg)
	if err := m.Unpack(buf); err != nil {
		return nil, err
	}
	reply := new(dns.Msg)
	reply.SetReply(r)
	reply.Answer, reply.Ns, reply.Extra = m.Answer, m.Ns, m.Extra
	reply.Rcode = int(e.rcode)
	reply.Authoritative = true
	reply.RecursionAvailable = e.ra
	return reply, nil
}

// hit counts a hit and returns how many came in a row without a gap over gap.
func (e *entry) hit(now time.Time, gap time.Duration) int {
	at := int64(now.Sub(e.stored))
	last := e.lastHit.Swap(at)
	if time.Duration(at-last) > gap {
		e.hits.Store(1)
		return 1
	}
	return int(e.hits.Add(1))
}

// beginRefresh tells whether the caller is the one to refresh the entry now.
func (e *entry) beginRefresh(now time.Time) bool {
	if int64(now.Sub(e.stored)) < e.retryAfter.Load() {
		return false
	}
	return e.refreshing.CompareAndSwap(false, true)
}

// endRefresh allows the next refresh, after recheck if this one failed.
func (e *entry) endRefresh(now time.Time, recheck time.Duration, ok bool) {
	if !ok && recheck > 0 {
		e.retryAfter.Store(int64(now.Add(recheck).Sub(e.stored)))
	} else {
		e.retryAfter.Store(0)
	}
	e.refreshing.Store(false)
}
