package iptables

import (
	"errors"
	"log/slog"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/proxy/nfnetlink"
)

// The kernel's named counters (nfacct) that kube-proxy's rules count into.
const (
	invalidAccount   = "ct_state_invalid_dropped_pkts"
	localhostAccount = "localhost_nps_accepted_pkts"
)

// Numbers of linux/netfilter/nfnetlink_acct.h.
const (
	acctNew     = unix.NFNL_SUBSYS_ACCT << 8 // NFNL_MSG_ACCT_NEW is 0
	acctGet     = unix.NFNL_SUBSYS_ACCT<<8 | 1
	acctName    = 1
	acctPackets = 2
)

// ensureAccounts makes the counters and tells which are there: rules name only
// those, because a kernel may have none.
func ensureAccounts(log *slog.Logger) map[string]bool {
	there := make(map[string]bool)
	c, err := nfnetlink.Dial()
	if err != nil {
		return there
	}
	defer c.Close()
	for _, name := range []string{invalidAccount, localhostAccount} {
		err := c.Request(unix.AF_UNSPEC, acctNew, unix.NLM_F_CREATE|unix.NLM_F_EXCL, nfnetlink.AppendString(nil, acctName, name))
		if there[name] = err == nil || errors.Is(err, unix.EEXIST); !there[name] {
			log.Debug("this kernel has no nfacct counters: rules do without", "counter", name, "err", err)
		}
	}
	return there
}
