package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/conformance/peer"
)

// The kernel is asked, not the proxies, when their work is done: nf_tables
// numbers its generations, tells listeners about each transaction, and lists
// what its sets hold.

const (
	nfnlgrpNFTables = 7 // include/uapi/linux/netfilter/nfnetlink.h
	nftMsg          = unix.NFNL_SUBSYS_NFTABLES << 8
)

// nftables is a view of nf_tables in one network namespace.
type nftables struct {
	conn *netlink.Conn
	ns   *peer.Netns
}

func openNFTables(ns *peer.Netns) (*nftables, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: int(ns.Handle())})
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	return &nftables{conn: conn, ns: ns}, nil
}

func (n *nftables) close() { _ = n.conn.Close() }

// nfgenmsg before the attributes of each message.
func nfgenmsg(family byte) []byte { return []byte{family, 0, 0, 0} }

func (n *nftables) request(msg int, family byte, flags netlink.HeaderFlags, attrs []netlink.Attribute) ([]netlink.Message, error) {
	data, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		return nil, err
	}
	return n.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(nftMsg | msg), Flags: netlink.Request | flags},
		Data:   append(nfgenmsg(family), data...),
	})
}

// generation is the number of the ruleset's present state.
func (n *nftables) generation() (uint32, error) {
	msgs, err := n.request(unix.NFT_MSG_GETGEN, unix.AF_UNSPEC, 0, nil)
	if err != nil {
		return 0, fmt.Errorf("asking for nf_tables' generation: %w", err)
	}
	for _, m := range msgs {
		ad, err := netlink.NewAttributeDecoder(m.Data[4:])
		if err != nil {
			return 0, err
		}
		for ad.Next() {
			if ad.Type() == unix.NFTA_GEN_ID {
				return binary.BigEndian.Uint32(ad.Bytes()), nil
			}
		}
	}
	return 0, errors.New("nf_tables told no generation")
}

// holds counts the elements of all named sets of IPv4 tables, and of the given
// addresses those that some element's key begins with: both proxies' maps of
// services have such keys.
func (n *nftables) holds(addrs []netip.Addr) (elements, found int, err error) {
	want := map[[4]byte]bool{}
	for _, a := range addrs {
		want[a.As4()] = true
	}
	sets, err := n.request(unix.NFT_MSG_GETSET, unix.NFPROTO_IPV4, netlink.Dump, nil)
	if err != nil {
		return 0, 0, fmt.Errorf("listing sets: %w", err)
	}
	for _, s := range sets {
		var table, set []byte
		var flags uint32
		for typ, data := range attributes(s.Data[4:]) {
			switch typ {
			case unix.NFTA_SET_TABLE:
				table = data
			case unix.NFTA_SET_NAME:
				set = data
			case unix.NFTA_SET_FLAGS:
				flags = binary.BigEndian.Uint32(data)
			}
		}
		if flags&unix.NFT_SET_ANONYMOUS != 0 {
			continue
		}
		msgs, err := n.request(unix.NFT_MSG_GETSETELEM, unix.NFPROTO_IPV4, netlink.Dump, []netlink.Attribute{
			{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: table}, {Type: unix.NFTA_SET_ELEM_LIST_SET, Data: set}})
		if err != nil {
			return 0, 0, fmt.Errorf("listing set %s: %w", bytes.TrimRight(set, "\x00"), err)
		}
		for _, m := range msgs {
			for key := range keys(m.Data[4:]) {
				elements++
				if len(key) >= 4 && want[[4]byte(key)] {
					delete(want, [4]byte(key))
					found++
				}
			}
		}
	}
	return elements, found, nil
}

// attributes walks netlink attributes. (netlink.AttributeDecoder allocates,
// which shows when 100,000 elements are walked beside a proxy at work.)
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= 4 {
			n := int(binary.NativeEndian.Uint16(b))
			if n < 4 || n > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[4:n]) {
				return
			}
			b = b[min((n+3)&^3, len(b)):]
		}
	}
}

// keys walks NFTA_SET_ELEM_LIST_ELEMENTS → NFTA_LIST_ELEM → NFTA_SET_ELEM_KEY
// → NFTA_DATA_VALUE.
func keys(b []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for typ, list := range attributes(b) {
			if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				continue
			}
			for _, elem := range attributes(list) {
				for typ, key := range attributes(elem) {
					if typ != unix.NFTA_SET_ELEM_KEY {
						continue
					}
					for typ, value := range attributes(key) {
						if typ == unix.NFTA_DATA_VALUE && !yield(value) {
							return
						}
					}
				}
			}
		}
	}
}

// monitor listens for transactions.
type monitor struct {
	conn  *netlink.Conn
	found chan time.Time
	want  chan netip.Addr
}

// watchTransactions tells on found when a transaction that contains the
// address last put into want has been committed.
func (n *nftables) watchTransactions() (*monitor, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: int(n.ns.Handle()), Groups: 1 << (nfnlgrpNFTables - 1)})
	if err != nil {
		return nil, fmt.Errorf("listening for nf_tables' transactions: %w", err)
	}
	if err := conn.SetReadBuffer(64 << 20); err != nil {
		return nil, errors.Join(fmt.Errorf("enlarging a netlink buffer: %w", err), conn.Close())
	}
	m := &monitor{conn: conn, found: make(chan time.Time, 1), want: make(chan netip.Addr, 1)}
	go m.run()
	return m, nil
}

func (m *monitor) close() { _ = m.conn.Close() }

func (m *monitor) run() {
	defer close(m.found)
	var want [4]byte
	seen, waiting := false, false
	for {
		msgs, err := m.conn.Receive()
		now := time.Now()
		if errors.Is(err, unix.ENOBUFS) {
			continue // a bulk load; the caller times out if it mattered
		}
		if err != nil {
			return
		}
		select {
		case a := <-m.want:
			want, seen, waiting = a.As4(), false, true
		default:
		}
		if !waiting {
			continue
		}
		for _, msg := range msgs {
			// The kernel sends a transaction's objects, then NEWGEN.
			if msg.Header.Type == nftMsg|unix.NFT_MSG_NEWGEN {
				if seen {
					m.found <- now
					seen, waiting = false, false
				}
			} else if bytes.Contains(msg.Data, want[:]) {
				seen = true
			}
		}
	}
}
