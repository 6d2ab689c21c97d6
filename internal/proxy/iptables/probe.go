package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/proxy/xtables"
)

// Probe tells in one line what this host lacks for the mode. It changes nothing.
func Probe() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := allowed(); err != nil {
		return err
	}
	p, err := xtables.Find(ctx, slog.New(slog.DiscardHandler), false)
	if err != nil {
		return fmt.Errorf("iptables: %w", err)
	}
	defer p.Close()
	// Everything that rules are made of, understood but not carried out.
	var in input
	in.line("*nat")
	in.declare("RUTTER-PROBE")
	for _, rule := range []string{
		"-p tcp -m comment --comment probe -m tcp --dport 1 -m addrtype --dst-type LOCAL -j RETURN",
		"-m statistic --mode random --probability 0.5 -j RETURN",
		"-m mark --mark 0x4000/0x4000 -j MARK --set-xmark 0x4000/0x0",
		"-p udp -m udp -j DNAT --to-destination 192.0.2.1:1",
		"-j MASQUERADE",
	} {
		in.line("-A", "RUTTER-PROBE", rule)
	}
	in.line("COMMIT")
	err = p.Check(ctx, in.Bytes())
	var locked *xtables.LockedError
	if err == nil || errors.As(err, &locked) {
		return nil // who has the lock lets go of it
	}
	return explain(p, err)
}

// allowed tells whether this process may change rules.
func allowed() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err == nil && data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return fmt.Errorf("iptables: %w: programming services needs CAP_NET_ADMIN in this network namespace: run as root, or grant the capability", unix.EPERM)
	}
	return nil
}

// explain names what is missing on this host when the programs say no.
func explain(p *xtables.Programs, err error) error {
	var refusal *xtables.RestoreError
	if !errors.As(err, &refusal) {
		return fmt.Errorf("iptables: %w", err)
	}
	mend := "use a kernel with CONFIG_NETFILTER_XTABLES_LEGACY, or load modules ip_tables, iptable_nat, iptable_filter, xt_comment, xt_statistic, xt_addrtype, xt_nat, xt_MASQUERADE"
	if p.Backend == xtables.NFT {
		mend = "load modules nf_tables, nft_compat, nft_chain_nat, xt_comment, xt_statistic, xt_addrtype, xt_nat, xt_MASQUERADE"
	}
	return fmt.Errorf("iptables: %s cannot make its rules (%s): %s", p, strings.TrimSpace(refusal.Text), mend)
}
