package main

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"

	"github.com/spf13/cobra"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/plan"
	"github.com/rutter-project/rutter/internal/proxy/userspace"
)

// newRelayCommand relays one address to others, as mode userspace does a
// service: for benchmarks.
func newRelayCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "relay ADDRESS:PORT ENDPOINT:PORT...",
		Hidden: true,
		Args:   cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var addrs []netip.AddrPort
			for _, a := range args {
				p, err := netip.ParseAddrPort(a)
				if err != nil {
					return usageError{fmt.Errorf("%q is no address and port", a)}
				}
				addrs = append(addrs, p)
			}
			d, err := userspace.Open(dataplane.Config{IPv4: true, IPv6: true, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))}, true)
			if err != nil {
				return err
			}
			defer d.Close()
			s := plan.Service{Name: catalog.ServiceName{Namespace: "default", Name: "relay"}}
			for _, proto := range []catalog.Protocol{catalog.TCP, catalog.UDP} {
				s.Ports = append(s.Ports, plan.Port{Protocol: proto, ClusterIP: addrs[0], Cluster: addrs[1:], Usable: true})
			}
			refused, err := d.Adopt(cmd.Context(), []plan.Service{s})
			if err == nil && len(refused) > 0 {
				err = refused[0].Err
			}
			if err != nil {
				return err
			}
			<-cmd.Context().Done()
			return nil
		},
	}
}
