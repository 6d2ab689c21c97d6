package ipvs

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/plan"
	"github.com/rutter-project/rutter/internal/proxy/testnet"
)

// fleet plans n services of m endpoints.
func fleet(n, m int) []plan.Service {
	services := make([]plan.Service, n)
	for i := range services {
		list := make([]netip.AddrPort, m)
		for k := range list {
			e := i*m + k
			list[k] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{11, byte(e >> 16), byte(e >> 8), byte(e)}), 8080)
		}
		slices.SortFunc(list, netip.AddrPort.Compare)
		services[i] = plan.Service{
			Name: catalog.ServiceName{Namespace: "bench", Name: fmt.Sprint("s", i)},
			Ports: []plan.Port{{
				Protocol:  catalog.TCP,
				ClusterIP: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), 80),
				Cluster:   list, Usable: m > 0,
			}},
		}
	}
	return services
}

// BenchmarkChange is one endpoint replaced among others. It tells, besides, how
// long the first programming took, and the look at everything of a restart.
func BenchmarkChange(b *testing.B) {
	needIPVS(b)
	for _, size := range []struct{ services, endpoints int }{{1000, 10}, {10000, 10}} {
		b.Run(fmt.Sprintf("%dx%d", size.services, size.endpoints), func(b *testing.B) {
			space := testnet.New(b, "bench")
			var d *Dataplane
			var err error
			space.Do(func() {
				d, err = Open(dataplane.Config{IPv4: true, MasqueradeBit: 14, Logger: discard}, Options{})
			})
			if err != nil {
				b.Fatal(err)
			}
			defer d.Close()
			services := fleet(size.services, size.endpoints)
			ctx := context.Background()
			start := time.Now()
			must(b)(d.Adopt(ctx, services))
			first := time.Since(start)
			start = time.Now()
			must(b)(d.Adopt(ctx, services))
			again := time.Since(start)
			i := 0
			for b.Loop() {
				s := services[i%len(services)]
				p := s.Ports[0]
				p.Cluster = slices.Clone(p.Cluster)
				p.Cluster[len(p.Cluster)-1] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{12, byte(i >> 16), byte(i >> 8), byte(i)}), 8080)
				s.Ports = []plan.Port{p}
				must(b)(d.Apply(ctx, []plan.Service{s}))
				i++
			}
			b.ReportMetric(float64(first.Milliseconds()), "ms/first")
			b.ReportMetric(float64(again.Milliseconds()), "ms/restart")
		})
	}
}
