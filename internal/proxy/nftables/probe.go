package nftables

import (
	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/proxy/nfnetlink"
)

// Probe tells what this host lacks for nf_tables. It changes nothing.
func Probe() error {
	c, err := nfnetlink.Dial()
	if err != nil {
		return explain(err)
	}
	defer c.Close()
	// Also a kernel that loads nf_tables when it is asked for does so now.
	if err := c.Dump(unix.NFPROTO_IPV4, subsystem|unix.NFT_MSG_GETTABLE, nil, func() {}, func([]byte) {}); err != nil {
		return explain(err)
	}
	return nil
}
