package nftables

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/proxy/nfnetlink"
)

// batch is a transaction of one family.
type batch struct {
	nfnetlink.Batch
	family byte
	table  string
}

const subsystem = unix.NFNL_SUBSYS_NFTABLES << 8

func (b *batch) start(typ, flags uint16) { b.Start(subsystem|typ, flags) }

func (b *batch) addTable() {
	b.start(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE)
	b.String(unix.NFTA_TABLE_NAME, b.table)
	b.Attr(nftaTableUserdata, tableComment())
	b.End()
}

func (b *batch) deleteTable() {
	b.start(unix.NFT_MSG_DELTABLE, 0)
	b.String(unix.NFTA_TABLE_NAME, b.table)
	b.End()
}

// tableComment is the comment in libnftnl's encoding, so that nft prints it.
func tableComment() []byte {
	const udataTableComment = 0
	return append([]byte{udataTableComment, byte(len(layoutVersion) + 1)}, layoutVersion+"\x00"...)
}

func (b *batch) addChain(c *chain) {
	b.start(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE)
	b.String(unix.NFTA_CHAIN_TABLE, b.table)
	b.String(unix.NFTA_CHAIN_NAME, c.name)
	if c.hook >= 0 {
		hook := b.Nest(unix.NFTA_CHAIN_HOOK)
		b.Uint32(unix.NFTA_HOOK_HOOKNUM, uint32(c.hook))
		b.Uint32(unix.NFTA_HOOK_PRIORITY, uint32(c.priority))
		b.EndNest(hook)
		b.String(unix.NFTA_CHAIN_TYPE, c.typ)
	}
	b.End()
}

// setRules replaces the chain's rules.
func (b *batch) setRules(c *chain) error {
	b.start(unix.NFT_MSG_DELRULE, 0)
	b.String(unix.NFTA_RULE_TABLE, b.table)
	b.String(unix.NFTA_RULE_CHAIN, c.name)
	b.End()
	for _, r := range c.rules {
		b.start(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND)
		b.String(unix.NFTA_RULE_TABLE, b.table)
		b.String(unix.NFTA_RULE_CHAIN, c.name)
		list := b.Nest(unix.NFTA_RULE_EXPRESSIONS)
		for _, e := range r {
			var data []byte
			switch e := e.(type) {
			case ctOf:
				data = e.append(nil)
			case expr.Any:
				var err error
				if data, err = expr.Marshal(b.family, e); err != nil {
					return fmt.Errorf("encode a rule of chain %s: %w", c.name, err)
				}
			}
			b.Attr(unix.NFTA_LIST_ELEM|nfnetlink.Nested, data)
		}
		b.EndNest(list)
		b.End()
	}
	return nil
}

func (b *batch) deleteChain(name string) {
	b.start(unix.NFT_MSG_DELCHAIN, 0)
	b.String(unix.NFTA_CHAIN_TABLE, b.table)
	b.String(unix.NFTA_CHAIN_NAME, name)
	b.End()
}

func (b *batch) addSet(id uint32, s *setSpec) {
	flags := s.flags
	keyType, keyLen := concat(s.key)
	if s.data != nil {
		flags |= unix.NFT_SET_MAP
	}
	if len(s.key) > 1 {
		flags |= 0x80 // NFT_SET_CONCAT, not in x/sys
	}
	b.start(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE)
	b.String(unix.NFTA_SET_TABLE, b.table)
	b.String(unix.NFTA_SET_NAME, s.name)
	b.Uint32(unix.NFTA_SET_ID, id)
	b.Uint32(unix.NFTA_SET_FLAGS, flags)
	b.Uint32(unix.NFTA_SET_KEY_TYPE, keyType)
	b.Uint32(unix.NFTA_SET_KEY_LEN, keyLen)
	switch {
	case len(s.data) == 1 && s.data[0].typ == typeVerdict:
		b.Uint32(unix.NFTA_SET_DATA_TYPE, typeVerdict)
		b.Uint32(unix.NFTA_SET_DATA_LEN, 0)
	case s.data != nil:
		t, l := concat(s.data)
		b.Uint32(unix.NFTA_SET_DATA_TYPE, t)
		b.Uint32(unix.NFTA_SET_DATA_LEN, l)
	}
	if len(s.key) > 1 || s.size > 0 {
		desc := b.Nest(unix.NFTA_SET_DESC)
		if s.size > 0 {
			b.Uint32(unix.NFTA_SET_DESC_SIZE, s.size)
		}
		if len(s.key) > 1 {
			fields := b.Nest(nftaSetDescConcat)
			for _, f := range s.key {
				elem := b.Nest(unix.NFTA_LIST_ELEM)
				b.Uint32(nftaSetFieldLen, f.len)
				b.EndNest(elem)
			}
			b.EndNest(fields)
		}
		b.EndNest(desc)
	}
	b.End()
}

// elementList is a message that adds to a set or deletes from it; it becomes
// several when it gets too long.
type elementList struct {
	w    *batch
	set  setID
	name string
	add  bool
	nest int // 0 when no message is open
}

func (t *table) list(w *batch, set setID, add bool) elementList {
	return elementList{w: w, set: set, name: t.rules.sets[set].name, add: add}
}

// The length of an attribute has 16 bits.
const maxElementList = 60000

func (l *elementList) open(more int) {
	if l.nest != 0 && len(l.w.Buf)-l.nest+more > maxElementList {
		l.close()
	}
	if l.nest != 0 {
		return
	}
	if l.add {
		l.w.start(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE)
	} else {
		l.w.start(unix.NFT_MSG_DELSETELEM, 0)
	}
	l.w.String(unix.NFTA_SET_ELEM_LIST_TABLE, l.w.table)
	l.w.String(unix.NFTA_SET_ELEM_LIST_SET, l.name)
	l.nest = l.w.Nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
}

func (l *elementList) close() {
	if l.nest != 0 {
		l.w.EndNest(l.nest)
		l.w.End()
		l.nest = 0
	}
}

func (l *elementList) put(arena []byte, o *op) {
	if o.set != l.set || o.add != l.add {
		return
	}
	l.open(int(o.to - o.from))
	l.w.Buf = append(l.w.Buf, arena[o.from:o.to]...)
}

func (l *elementList) addrs(a ...netip.Addr) {
	l.open(128)
	l.w.Buf = appendAddrs(l.w.Buf, a...)
}
