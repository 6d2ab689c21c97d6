package iptables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/nfnetlink"
	"github.com/rutter-project/rutter/internal/proxy/xtables"
)

// How often the legacy back end is asked whether a table is another: two
// system calls, which copy nothing.
const lookEvery = 500 * time.Millisecond

// watch tells our changes of a family's tables from those of others.
//
// Of the nft back end the kernel tells every change, with who made it. Those of
// the program that we run are not let through: its process is known before it
// is given anything to do.
//
// Of the legacy back end the kernel tells nothing, but how many rules a table
// has and how many bytes they take. If that is not as we left it, somebody
// else was there.
type watch struct {
	family  *family
	notices *notices           // nft
	legacy  *legacy            // legacy
	left    map[string]summary // by table, how we left it
	pid     int
}

// notices is the socket on which the kernel tells changes.
type notices struct {
	conn *nfnetlink.Conn
	mu   sync.Mutex
	own  map[uint32]bool // processes whose changes are ours
}

// ours is called with a process of ours before it changes anything.
func (w *watch) ours(pid int) {
	if w != nil && w.notices != nil {
		w.pid = pid
		w.notices.ignore(uint32(pid), true)
	}
}

func (w *watch) end() {
	if w == nil {
		return
	}
	if w.notices != nil {
		w.notices.ignore(uint32(w.pid), false)
		return
	}
	w.left = w.look()
}

// ignore puts the processes that are ours into the filter of the socket, which
// drops their changes before they are queued: one of ours may be many more than
// a socket can hold. The filter compares nlmsg_pid, which it reads in network
// order.
func (n *notices) ignore(pid uint32, yes bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if yes {
		n.own[pid] = true
	} else {
		delete(n.own, pid)
	}
	_ = n.conn.Filter(n.filter()) // without it we look once more than needed
}

func (n *notices) filter() []unix.SockFilter {
	program := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 12}}
	for pid := range n.own {
		port := binary.BigEndian.Uint32(nfnetlink.Native.AppendUint32(nil, pid))
		program = append(program,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: port, Jt: 0, Jf: 1},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0})
	}
	return append(program, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff})
}

// Monitor tells of changes of our chains that are not ours.
type Monitor struct {
	d       *Dataplane
	notices *notices
	legacy  bool
	ctx     context.Context
	stop    context.CancelFunc
}

// Monitor begins to listen. What happens from now on is not missed.
func (d *Dataplane) Monitor() (dataplane.Monitor, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := &Monitor{d: d}
	m.ctx, m.stop = context.WithCancel(context.Background())
	for _, f := range d.families {
		w := &watch{family: f}
		err := f.progs.Do(func() (err error) {
			if f.progs.Backend == xtables.Legacy {
				m.legacy = true
				w.legacy, err = openLegacy(f.style.v6)
				return err
			}
			if m.notices == nil {
				m.notices, err = listen()
			}
			w.notices = m.notices
			return err
		})
		if err != nil {
			m.Close()
			return nil, fmt.Errorf("iptables: watch for changes by others: %w", err)
		}
		f.watch = w
	}
	return m, nil
}

func listen() (*notices, error) {
	c, err := nfnetlink.Dial()
	if err != nil {
		return nil, err
	}
	n := &notices{conn: c, own: make(map[uint32]bool)}
	if err := c.Listen(unix.NFNLGRP_NFTABLES, n.filter()); err != nil {
		c.Close()
		return nil, err
	}
	return n, nil
}

// event is a change of tables that may be of ours.
type event struct {
	v6, all bool // all: which family is not known
	by      dataplane.Intrusion
}

// Run calls notify when our chains are no longer as we left them, until Close.
func (m *Monitor) Run(notify func(dataplane.Intrusion)) error {
	events := make(chan event, 1)
	failed := make(chan error, 1)
	if m.notices != nil {
		go func() { failed <- m.receive(events) }()
	}
	var tick <-chan time.Time
	if m.legacy {
		t := time.NewTicker(lookEvery)
		defer t.Stop()
		tick = t.C
	}
	for {
		select {
		case <-m.ctx.Done():
			if m.notices != nil {
				<-failed
			}
			return nil
		case err := <-failed:
			if m.ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("iptables: watch for changes by others: %w", err)
		case e := <-events:
			if m.changed(func(f *family) bool { return f.watch.notices != nil && (e.all || e.v6 == f.style.v6) }) {
				notify(e.by)
			}
		case <-tick:
			if m.changed(func(f *family) bool { return f.watch.legacy != nil && f.watch.differs() }) {
				notify(dataplane.Intrusion{})
			}
		}
	}
}

// changed looks at the families that something may have happened to.
func (m *Monitor) changed(suspect func(*family) bool) bool {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	changed := false
	for _, f := range m.d.families {
		if !f.adopted || f.watch == nil || !suspect(f) {
			continue
		}
		left := f.watch.look()
		ok, err := f.verify(m.ctx)
		switch {
		case m.ctx.Err() != nil:
			return false
		case err != nil:
			f.log.Warn("cannot see what another program did to the tables", "err", err)
		case ok:
			f.watch.left = left // the change was not of ours
		default:
			changed = true
		}
	}
	return changed
}

// receive reads what the kernel tells and passes on what may concern us.
func (m *Monitor) receive(events chan<- event) error {
	var e event
	touched := false
	send := func(e event) {
		select {
		case events <- e:
		case <-m.ctx.Done():
		}
	}
	for {
		err := m.notices.conn.Receive(func(typ uint16, _ uint32, p []byte) error {
			if typ>>8 != unix.NFNL_SUBSYS_NFTABLES || len(p) < 4 {
				return nil
			}
			if typ&0xff != unix.NFT_MSG_NEWGEN {
				if (p[0] == unix.NFPROTO_IPV4 || p[0] == unix.NFPROTO_IPV6) && ours(tableOf(p[4:])) {
					v6 := p[0] == unix.NFPROTO_IPV6
					e.all = e.all || touched && e.v6 != v6
					e.v6, touched = v6, true
				}
				return nil
			}
			// The end of a transaction, which names who made it.
			if touched {
				e.by = maker(p[4:])
				send(e)
			}
			e, touched = event{}, false
			return nil
		})
		switch {
		case errors.Is(err, nfnetlink.ErrClosed):
			return nil
		case errors.Is(err, nfnetlink.ErrUnknown):
			send(event{all: true}) // notices were lost
		case err != nil:
			return err
		}
	}
}

// Close ends Run.
func (m *Monitor) Close() {
	m.stop()
	if m.notices != nil {
		m.notices.conn.Shutdown()
	}
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	for _, f := range m.d.families {
		if f.watch != nil && f.watch.legacy != nil {
			f.watch.legacy.close()
		}
		f.watch = nil
	}
}

func ours(table string) bool {
	return table == "nat" || table == "filter" || table == "mangle" || table == "raw"
}

// tableOf is the table that an object is in: in messages about tables, chains,
// rules, sets and elements it is the first attribute type.
func tableOf(attrs []byte) (name string) {
	nfnetlink.Attributes(attrs, func(typ uint16, v []byte) {
		if typ == unix.NFTA_TABLE_NAME && len(v) > 0 {
			name = string(v[:len(v)-1])
		}
	})
	return name
}

// Attributes of NFT_MSG_NEWGEN.
const (
	genProcPID  = 2
	genProcName = 3
)

func maker(attrs []byte) (i dataplane.Intrusion) {
	nfnetlink.Attributes(attrs, func(typ uint16, v []byte) {
		switch {
		case typ == genProcPID && len(v) == 4:
			i.PID = int(binary.BigEndian.Uint32(v))
		case typ == genProcName && len(v) > 0:
			i.Process = string(v[:len(v)-1])
		}
	})
	return i
}
