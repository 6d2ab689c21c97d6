package nftables

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/nfnetlink"
)

// Rivals names what another service proxy left in the kernel, or keeps there:
// its rules see packets too, and where both know a service the first wins. They
// are not ours to remove.
func (d *Dataplane) Rivals() ([]string, error) {
	var found []string
	_, err := d.each(func(t *table) ([]dataplane.Refusal, error) {
		var names []string
		err := t.conn.Dump(t.fam, subsystem|unix.NFT_MSG_GETCHAIN, nil, func() { names = nil }, func(b []byte) {
			var table, chain string
			nfnetlink.Attributes(b, func(typ uint16, v []byte) {
				switch typ {
				case unix.NFTA_CHAIN_TABLE:
					table = cString(v)
				case unix.NFTA_CHAIN_NAME:
					chain = cString(v)
				}
			})
			// kube-proxy's own table, and its chains by iptables-nft.
			if table == kubeProxyTable || chain == "KUBE-SERVICES" {
				names = append(names, fmt.Sprintf("table %s %s", map[bool]string{false: "ip", true: "ip6"}[t.rules.v6], table))
			}
		})
		if err != nil {
			return nil, fmt.Errorf("list chains: %w", err)
		}
		slices.Sort(names)
		found = append(found, slices.Compact(names)...)
		return nil, nil
	})
	return found, err
}

// kubeProxyTable is the table of kube-proxy's nftables mode, in both families.
const kubeProxyTable = "kube-proxy"

// CleanupKubeProxy removes the tables of kube-proxy's nftables mode.
func CleanupKubeProxy() error { return deleteTables(kubeProxyTable) }
