package route

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// TableName is the nftables table, family inet, that Setup owns.
const TableName = "rutter_node"

// writeTable replaces the table, in one transaction:
//
//	chain postrouting {
//		type nat hook postrouting priority srcnat
//		oifname "rut*" return                        # to a pod of this node
//		ip daddr 10.244.0.0/16 return                # to a pod of the cluster
//		ip saddr 10.244.7.0/24 masquerade fully-random
//	}
func writeTable(pods, cluster []netip.Prefix) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: TableName}
	c.AddTable(t)
	c.DelTable(t)
	c.AddTable(t)
	chain := c.AddChain(&nftables.Chain{
		Table: t, Name: "postrouting", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	rule := func(comment string, exprs ...expr.Any) {
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: exprs, UserData: userdata.AppendString(nil, userdata.TypeComment, comment)})
	}
	ret := &expr.Verdict{Kind: expr.VerdictReturn}
	rule("to a pod of this node",
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(LinkPrefix)}, // no NUL: a prefix
		ret)
	for _, p := range cluster {
		rule("to a pod of the cluster", append(match(p, destination), ret)...)
	}
	for _, p := range pods {
		rule("from a pod, out of the cluster", append(match(p, source), &expr.Masq{FullyRandom: true})...)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("writing nftables table %s: %w%s", TableName, err, lacking(err))
	}
	return nil
}

func removeTable() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: TableName}
	c.AddTable(t) // so that deleting it cannot fail for its absence
	c.DelTable(t)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("removing nftables table %s: %w", TableName, err)
	}
	return nil
}

func lacking(err error) string {
	switch {
	case errors.Is(err, unix.EPERM):
		return " (CAP_NET_ADMIN is missing: run it as root)"
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.ENOENT):
		return " (this kernel lacks nf_tables with NAT for inet: Linux 5.2 with CONFIG_NF_TABLES_INET, CONFIG_NFT_NAT and CONFIG_NFT_MASQ has it)"
	}
	return ""
}

type side int

const (
	source side = iota
	destination
)

// match compares one side's address with a prefix.
func match(p netip.Prefix, s side) []expr.Any {
	p = p.Masked()
	family, offset, size := byte(unix.NFPROTO_IPV4), uint32(12), uint32(4) // RFC 791 §3.1
	if p.Addr().Is6() {
		family, offset, size = unix.NFPROTO_IPV6, 8, 16 // RFC 8200 §3
	}
	if s == destination {
		offset += size
	}
	mask := make([]byte, size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Addr().AsSlice()},
	}
}

// forwardingBlocked finds chains of others that drop what they do not know,
// on the way that packets between pods and the outside take. Such a chain has
// the last word and is not ours to change.
func forwardingBlocked() []string {
	c, err := nftables.New()
	if err != nil {
		return nil
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil // only a hint is lost
	}
	var notes []string
	for _, ch := range chains {
		if ch.Hooknum == nil || *ch.Hooknum != *nftables.ChainHookForward || ch.Policy == nil || *ch.Policy != nftables.ChainPolicyDrop {
			continue
		}
		if strings.HasPrefix(ch.Table.Name, "rutter") {
			continue
		}
		mend := "let it accept interfaces rut*"
		if ch.Table.Name == "filter" && ch.Name == "FORWARD" {
			mend = "`iptables -I FORWARD -i rut+ -j ACCEPT; iptables -I FORWARD -o rut+ -j ACCEPT` lets them pass (ip6tables for IPv6)"
		}
		notes = append(notes, fmt.Sprintf("chain %s of table %s drops forwarded packets by default, pods' too: %s", ch.Name, ch.Table.Name, mend))
	}
	return notes
}
