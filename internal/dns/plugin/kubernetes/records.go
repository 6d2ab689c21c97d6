package kubernetes

import (
	"encoding/binary"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

const (
	owner     = 0xc00c // the question's name
	maxTarget = 256
	whole     = 65535 // the longest message
)

// addresses answers with all addresses; none is NODATA.
func (l *lookup) addresses(packed []byte, size int) plugin.Outcome {
	if len(packed) == 0 {
		return l.noData()
	}
	l.a.Authoritative = true
	l.a.Addresses(packed, size, l.k.ttl)
	return l.answered()
}

// zoneLabels returns the zone in the asker's spelling, in wire form.
func (l *lookup) zoneLabels() []byte {
	return l.q.Question[l.q.Offset(l.n):len(l.q.Name)]
}

// record adds a record of the asked name with room for its data.
func (l *lookup) record(qtype uint16, ttl uint32, size int) []byte {
	b := l.a.Extend(wire.AnswerSection, 12+size, 1)
	if b == nil {
		return nil
	}
	putHead(b, owner, qtype, ttl, size)
	return b[12:]
}

func putHead(b []byte, pointer, qtype uint16, ttl uint32, size int) {
	binary.BigEndian.PutUint16(b, pointer)
	putFields(b[2:], qtype, ttl, size)
}

// putFields writes what stands between a record's name and its data.
func putFields(b []byte, qtype uint16, ttl uint32, size int) {
	binary.BigEndian.PutUint16(b, qtype)
	binary.BigEndian.PutUint16(b[2:], dns.ClassINET)
	binary.BigEndian.PutUint32(b[4:], ttl)
	binary.BigEndian.PutUint16(b[8:], uint16(size))
}

// tooLong ends an answer that the client has no more room for: records are
// left out from the end.
func (l *lookup) tooLong() plugin.Outcome {
	l.a.Truncate()
	l.a.Authoritative = true
	return l.answered()
}

func (l *lookup) answered() plugin.Outcome {
	if l.a.Overflow() {
		return plugin.Chain
	}
	return plugin.Answered
}

// clusterSRV writes a record per matching port. The weights share 100 among
// the records of all addresses, also where two ports make the same record.
func (l *lookup) clusterSRV(s *slot, svc *service, port, proto []byte, matching int) plugin.Outcome {
	n := matching * len(svc.obj.ClusterIPs)
	if n == 0 {
		return l.noData()
	}
	var buf [maxTarget + 64]byte
	target := append(l.k.appendEndpoint(buf[:0], s, nil), l.zoneLabels()...)
	at := l.a.Len() + 12 + 6 // of the first target
	for i := range svc.obj.Ports {
		p := &svc.obj.Ports[i]
		if !matches(p, port, proto) || servedBefore(svc.obj.Ports[:i], p.Port, port, proto) {
			continue
		}
		if !l.srv(n, p.Port, target) {
			return l.tooLong()
		}
	}
	for _, ip := range svc.obj.ClusterIPs {
		if ip.Is4() {
			b := ip.As4()
			if !l.additional(at, target, dns.TypeA, b[:]) {
				return l.tooLong()
			}
		} else {
			b := ip.As16()
			if !l.additional(at, target, dns.TypeAAAA, b[:]) {
				return l.tooLong()
			}
		}
	}
	l.a.Authoritative = true
	return plugin.Answered
}

func servedBefore(ports []catalog.ServicePort, number uint16, port, proto []byte) bool {
	for i := range ports {
		if ports[i].Port == number && matches(&ports[i], port, proto) {
			return true
		}
	}
	return false
}

// srv adds a record; n is how many share the weight.
func (l *lookup) srv(n int, port uint16, target []byte) bool {
	b := l.record(dns.TypeSRV, l.k.ttl, 6+len(target))
	if b == nil {
		return false
	}
	binary.BigEndian.PutUint16(b, 0)
	binary.BigEndian.PutUint16(b[2:], uint16(max(1, 100/n)))
	binary.BigEndian.PutUint16(b[4:], port)
	copy(b[6:], target) // RFC 2782: not compressed
	return true
}

// additional adds an address of a target, which was written at the offset at.
func (l *lookup) additional(at int, target []byte, qtype uint16, addr []byte) bool {
	if at >= 0x4000 { // beyond the reach of a pointer (RFC 1035 §4.1.4)
		b := l.a.Extend(wire.AdditionalSection, len(target)+10+len(addr), 1)
		if b == nil {
			return false
		}
		b = b[copy(b, target):]
		putFields(b, qtype, l.k.ttl, len(addr))
		copy(b[10:], addr)
		return true
	}
	b := l.a.Extend(wire.AdditionalSection, 12+len(addr), 1)
	if b == nil {
		return false
	}
	putHead(b, 0xc000|uint16(at), qtype, l.k.ttl, len(addr))
	copy(b[12:], addr)
	return true
}

// endpointSRV writes a record per endpoint name and port, then the addresses
// of the names.
func (l *lookup) endpointSRV(s *slot, svc *service, endpoint, port, proto []byte) plugin.Outcome {
	n := 0 // records before duplicates are left out; a slice without ports counts as one with a port
	for _, sl := range svc.slices {
		ports := l.portCount(sl, port, proto)
		for i := range sl.Endpoints {
			if ep := &sl.Endpoints[i]; ep.Ready() && (endpoint == nil || l.k.named(ep, endpoint)) {
				n += ports
			}
		}
	}
	if n == 0 {
		return l.nameError()
	}
	// Only names that are not addresses, or addresses in several slices, can
	// make the same record twice.
	first := l.a.Len()
	var buf [maxTarget + 64]byte
	for _, sl := range svc.slices {
		for i := range sl.Endpoints {
			ep := &sl.Endpoints[i]
			if !ep.Ready() || endpoint != nil && !l.k.named(ep, endpoint) {
				continue
			}
			target := append(l.k.appendEndpoint(buf[:0], s, ep), l.zoneLabels()...)
			for j := range sl.Ports {
				p := &sl.Ports[j]
				if !matchesEndpoint(p, port, proto) || l.mayRepeat(svc, sl, ep) && l.findTarget(first, target, int(p.Port)) > 0 {
					continue
				}
				if !l.srv(n, p.Port, target) {
					return l.tooLong()
				}
			}
		}
	}
	if l.a.Count(wire.AnswerSection) == 0 {
		return l.noData()
	}
	end := l.a.Len()
	last := first
	for _, sl := range svc.slices {
		if !l.writesPort(sl, port, proto) {
			continue
		}
		for i := range sl.Endpoints {
			ep := &sl.Endpoints[i]
			if !ep.Ready() || endpoint != nil && !l.k.named(ep, endpoint) {
				continue
			}
			target := append(l.k.appendEndpoint(buf[:0], s, ep), l.zoneLabels()...)
			// Targets stand in the order of this loop, so the search is short.
			at := l.findTargetFrom(first, last, end, target)
			last = at - 18
			var addr [16]byte
			b, qtype := addr[:], dns.TypeAAAA
			if ep.Addr.Is4() {
				four := ep.Addr.As4()
				b, qtype = append(addr[:0], four[:]...), dns.TypeA
			} else {
				addr = ep.Addr.As16()
			}
			if len(svc.slices) > 1 && l.hasAdditional(end, at, b) {
				continue
			}
			if !l.additional(at, target, qtype, b) {
				return l.tooLong()
			}
		}
	}
	l.a.Authoritative = true
	return plugin.Answered
}

// portCount is the number of ports of a slice that match; one without ports
// has one, which no record is made of.
func (l *lookup) portCount(sl *catalog.EndpointSlice, port, proto []byte) int {
	if len(sl.Ports) == 0 && len(port) == 0 && len(proto) == 0 {
		return 1
	}
	n := 0
	for i := range sl.Ports {
		if matchesEndpoint(&sl.Ports[i], port, proto) {
			n++
		}
	}
	return n
}

func (l *lookup) writesPort(sl *catalog.EndpointSlice, port, proto []byte) bool {
	for i := range sl.Ports {
		if matchesEndpoint(&sl.Ports[i], port, proto) {
			return true
		}
	}
	return false
}

// mayRepeat tells whether an earlier record can have the same target and port.
func (l *lookup) mayRepeat(svc *service, sl *catalog.EndpointSlice, ep *catalog.Endpoint) bool {
	return len(svc.slices) > 1 || len(sl.Ports) > 1 || ep.Hostname != ""
}

// findTarget returns the offset of the target in an SRV record with the port,
// among the records written from first on; 0 if there is none.
func (l *lookup) findTarget(first int, target []byte, port int) int {
	b := l.a.Written()
	for at := first; at < len(b); {
		data := at + 12
		next := data + int(binary.BigEndian.Uint16(b[at+10:]))
		if next-data-6 == len(target) && int(binary.BigEndian.Uint16(b[data+4:])) == port && string(b[data+6:next]) == string(target) {
			return data + 6
		}
		at = next
	}
	return 0
}

// findTargetFrom returns the offset of the target in any SRV record between
// first and end, looking from the record at last on and then from the first.
func (l *lookup) findTargetFrom(first, last, end int, target []byte) int {
	b := l.a.Written()
	for range 2 {
		for at := last; at < end; {
			data := at + 12
			next := data + int(binary.BigEndian.Uint16(b[at+10:]))
			if string(b[data+6:next]) == string(target) {
				return data + 6
			}
			at = next
		}
		last = first
	}
	return 0x4000 // cannot happen; written out in full it is still right
}

// hasAdditional tells whether the address of the target at an offset stands in
// the additional section, which begins at end, already.
func (l *lookup) hasAdditional(end, at int, addr []byte) bool {
	b := l.a.Written()
	for r := end; r < len(b); {
		if b[r] < 0xc0 {
			return false // long names: duplicates are not looked for
		}
		data := r + 12
		next := data + int(binary.BigEndian.Uint16(b[r+10:]))
		if binary.BigEndian.Uint16(b[r:]) == 0xc000|uint16(at) && string(b[data:next]) == string(addr) {
			return true
		}
		r = next
	}
	return false
}

// pointer adds a PTR record to the service, or to one of its endpoints.
func (l *lookup) pointer(s *slot, ep *catalog.Endpoint) plugin.Outcome {
	var buf [maxTarget + 64]byte
	target := append(l.k.appendEndpoint(buf[:0], s, ep), l.k.primary.wire...)
	b := l.record(dns.TypePTR, l.k.ttl, len(target))
	if b == nil {
		return l.tooLong()
	}
	copy(b, target)
	l.a.Authoritative = true
	return plugin.Answered
}

// version answers dns-version.ZONE TXT. The TTL is the specification's.
func (l *lookup) version() plugin.Outcome {
	b := l.record(dns.TypeTXT, 28800, 1+len(schemaVersion))
	if b == nil {
		return plugin.Chain
	}
	b[0] = byte(len(schemaVersion))
	copy(b[1:], schemaVersion)
	l.a.Authoritative = true
	return plugin.Answered
}

// The timers of the zone's SOA, as CoreDNS has them.
const (
	soaRefresh = 7200
	soaRetry   = 1800
	soaExpire  = 86400
)

func (l *lookup) soa() plugin.Outcome {
	if !l.putSOA(wire.AnswerSection) {
		return plugin.Chain
	}
	l.a.Authoritative = true
	return plugin.Answered
}

// putSOA adds ZONE SOA ns.dns.ZONE hostmaster.ZONE with pointers to the zone
// in the question.
func (l *lookup) putSOA(s wire.Section) bool {
	var zone [2]byte
	zoneLen := 2
	if at := l.q.Offset(l.n); at < len(l.q.Name)-1 {
		binary.BigEndian.PutUint16(zone[:], 0xc000|uint16(12+at))
	} else {
		zoneLen = 1 // the root has no pointer
	}
	const mname, rname = "\x02ns\x03dns", "\x0ahostmaster"
	size := len(mname) + len(rname) + 2*zoneLen + 20
	b := l.a.Extend(s, zoneLen+10+size, 1)
	if b == nil {
		return false
	}
	b = b[copy(b, zone[:zoneLen]):]
	putFields(b, dns.TypeSOA, min(l.k.ttl, 300), size)
	b = b[10:]
	b = b[copy(b, mname):]
	b = b[copy(b, zone[:zoneLen]):]
	b = b[copy(b, rname):]
	b = b[copy(b, zone[:zoneLen]):]
	for i, v := range [5]uint32{l.k.serial(), soaRefresh, soaRetry, soaExpire, l.k.ttl} {
		binary.BigEndian.PutUint32(b[4*i:], v)
	}
	return true
}

// serial is 0 until the picture is complete.
func (k *Kubernetes) serial() uint32 {
	if !k.store.Synced() {
		return 0
	}
	return k.view.serial.Load()
}

// noData says that the name exists without such records (RFC 2308 §2.2).
func (l *lookup) noData() plugin.Outcome { return l.negative(dns.RcodeSuccess) }

// nameError says that the name does not exist, hands it on where fallthrough
// says so, or admits that nobody knows yet.
func (l *lookup) nameError() plugin.Outcome {
	for _, z := range l.k.fallthroughs {
		if l.q.Under(z) >= 0 {
			return plugin.Next
		}
	}
	if !l.k.store.Synced() {
		return l.negative(dns.RcodeServerFailure)
	}
	return l.negative(dns.RcodeNameError)
}

func (l *lookup) negative(rcode uint8) plugin.Outcome {
	if !l.putSOA(wire.AuthoritySection) {
		return plugin.Chain
	}
	l.a.Rcode = rcode
	l.a.Authoritative = true
	return plugin.Answered
}
