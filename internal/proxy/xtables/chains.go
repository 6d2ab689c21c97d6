package xtables

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/proxy/nfnetlink"
)

// Chain is a chain of the nft back end.
type Chain struct {
	Table, Name string
	// Uses is how often it is used: once by each of its rules, and by each jump
	// to it.
	Uses uint32
}

// Chains lists the chains of the nft back end's tables. The kernel is asked,
// not the program, which looks at each chain alone and takes minutes for a
// hundred thousand.
func (p *Programs) Chains() (list []Chain, err error) {
	family := byte(unix.NFPROTO_IPV4)
	if p.V6 {
		family = unix.NFPROTO_IPV6
	}
	err = p.space.Do(func() error {
		c, err := nfnetlink.Dial()
		if err != nil {
			return err
		}
		defer c.Close()
		return c.Dump(family, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETCHAIN, nil, func() { list = nil }, func(attrs []byte) {
			if chain := parseChain(attrs); slices.Contains(tableNames, chain.Table) {
				list = append(list, chain)
			}
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list the chains of nf_tables: %w", err)
	}
	return list, nil
}

func parseChain(attrs []byte) (c Chain) {
	nfnetlink.Attributes(attrs, func(typ uint16, v []byte) {
		switch {
		case typ == unix.NFTA_CHAIN_TABLE:
			c.Table = strings.TrimRight(string(v), "\x00")
		case typ == unix.NFTA_CHAIN_NAME:
			c.Name = strings.TrimRight(string(v), "\x00")
		case typ == unix.NFTA_CHAIN_USE && len(v) == 4:
			c.Uses = binary.BigEndian.Uint32(v)
		}
	})
	return c
}
