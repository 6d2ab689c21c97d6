package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/nfnetlink"
)

// Monitor tells of changes of our tables that are not ours.
type Monitor struct {
	conn  *nfnetlink.Conn
	table string
}

// Monitor begins to listen. What happens from now on is not missed.
func (d *Dataplane) Monitor() (dataplane.Monitor, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c, err := nfnetlink.Dial()
	if err != nil {
		return nil, fmt.Errorf("nftables: watch for changes by others: %w", err)
	}
	// The kernel tells every change of every table, ours by the thousand. A
	// filter drops those that came through our own socket before they are
	// queued. It compares nlmsg_pid, which the filter machine reads in network
	// order, with our port.
	port := binary.BigEndian.Uint32(nfnetlink.Native.AppendUint32(nil, d.conn.Port))
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 12},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: port, Jt: 0, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
	}
	if err := c.Listen(unix.NFNLGRP_NFTABLES, program); err != nil {
		c.Close()
		return nil, fmt.Errorf("nftables: watch for changes by others: %w", err)
	}
	return &Monitor{c, d.name}, nil
}

// Run calls notify for each transaction of others that touched our tables,
// until Close.
func (m *Monitor) Run(notify func(dataplane.Intrusion)) error {
	touched := false
	for {
		err := m.conn.Receive(func(typ uint16, _ uint32, p []byte) error {
			if typ>>8 != unix.NFNL_SUBSYS_NFTABLES || len(p) < 4 {
				return nil
			}
			family, attrs := p[0], p[4:]
			if typ&0xff != unix.NFT_MSG_NEWGEN {
				ours := family == unix.NFPROTO_IPV4 || family == unix.NFPROTO_IPV6
				touched = touched || ours && tableOf(attrs) == m.table
				return nil
			}
			// The end of a transaction, which names who made it.
			if touched {
				notify(parseGeneration(attrs))
			}
			touched = false
			return nil
		})
		switch {
		case errors.Is(err, nfnetlink.ErrClosed):
			return nil
		case errors.Is(err, nfnetlink.ErrUnknown):
			notify(dataplane.Intrusion{}) // notices were lost
		case err != nil:
			return fmt.Errorf("nftables: watch for changes by others: %w", err)
		}
	}
}

// Close ends Run.
func (m *Monitor) Close() { m.conn.Shutdown() }

// tableOf is the table that an object is in: in messages about tables, chains,
// rules, sets and elements it is the first attribute type.
func tableOf(attrs []byte) (name string) {
	nfnetlink.Attributes(attrs, func(typ uint16, v []byte) {
		if typ == unix.NFTA_TABLE_NAME {
			name = cString(v)
		}
	})
	return name
}

func parseGeneration(attrs []byte) (i dataplane.Intrusion) {
	nfnetlink.Attributes(attrs, func(typ uint16, v []byte) {
		switch {
		case typ == nftaGenProcPID && len(v) == 4:
			i.PID = int(binary.BigEndian.Uint32(v))
		case typ == nftaGenProcName:
			i.Process = cString(v)
		}
	})
	return i
}
