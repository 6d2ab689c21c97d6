package nftables

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/nfnetlink"
)

// Counters returns what was counted, by flow. A flow's count begins anew when
// nothing came for a day.
func (d *Dataplane) Counters() (map[dataplane.Flow]dataplane.Count, error) {
	counts := make(map[dataplane.Flow]dataplane.Count)
	_, err := d.each(func(t *table) ([]dataplane.Refusal, error) {
		for _, set := range []setID{setConnections, setTraffic} {
			if !t.rules.made(set) {
				continue
			}
			err := t.counters(set, func(f dataplane.Flow, packets, bytes uint64) {
				c := counts[f]
				if set == setConnections {
					c.Connections = packets
				} else {
					c.Packets, c.Bytes = packets, bytes
				}
				counts[f] = c
			})
			if err != nil {
				return nil, fmt.Errorf("list set %s: %w", t.rules.sets[set].name, err)
			}
		}
		return nil, nil
	})
	return counts, err
}

func (t *table) counters(set setID, yield func(f dataplane.Flow, packets, bytes uint64)) error {
	attrs := nfnetlink.AppendString(nil, unix.NFTA_SET_ELEM_LIST_TABLE, t.name)
	attrs = nfnetlink.AppendString(attrs, unix.NFTA_SET_ELEM_LIST_SET, t.rules.sets[set].name)
	// A listing that is repeated sets the same flows again.
	return t.conn.Dump(t.fam, subsystem|unix.NFT_MSG_GETSETELEM, attrs, func() {}, func(b []byte) {
		nfnetlink.Attributes(b, func(typ uint16, list []byte) {
			if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				return
			}
			nfnetlink.Attributes(list, func(_ uint16, elem []byte) {
				key, _ := parseElement(elem)
				if f, ok := parseFlow(key, t.rules.v6); ok {
					packets, bytes := parseCounter(elem)
					yield(f, packets, bytes)
				}
			})
		})
	})
}

func parseFlow(key string, v6 bool) (f dataplane.Flow, ok bool) {
	a := 4
	if v6 {
		a = 16
	}
	if len(key) != 4+2*(a+4) {
		return f, false
	}
	f.Protocol = catalog.Protocol(key[0])
	f.Front = parseAddrPort(key[4 : 4+a+4])
	f.Endpoint = parseAddrPort(key[4+a+4:])
	return f, true
}

func parseCounter(elem []byte) (packets, bytes uint64) {
	nfnetlink.Attributes(elem, func(typ uint16, v []byte) {
		if typ != unix.NFTA_SET_ELEM_EXPR {
			return
		}
		nfnetlink.Attributes(v, func(typ uint16, v []byte) {
			if typ != unix.NFTA_EXPR_DATA {
				return
			}
			nfnetlink.Attributes(v, func(typ uint16, v []byte) {
				switch {
				case typ == unix.NFTA_COUNTER_PACKETS && len(v) == 8:
					packets = binary.BigEndian.Uint64(v)
				case typ == unix.NFTA_COUNTER_BYTES && len(v) == 8:
					bytes = binary.BigEndian.Uint64(v)
				}
			})
		})
	})
	return packets, bytes
}
