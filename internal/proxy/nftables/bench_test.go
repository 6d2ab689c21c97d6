package nftables

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"testing"

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

func openBench(b *testing.B, s *testnet.Space) (d *Dataplane) {
	b.Helper()
	s.Do(func() {
		var err error
		d, err = Open(dataplane.Config{IPv4: true, MasqueradeBit: 14, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			b.Fatal(err)
		}
	})
	return d
}

var sizes = []struct{ services, endpoints int }{{1000, 10}, {10000, 10}, {50000, 5}}

// BenchmarkFirst is the programming of everything into an empty kernel.
func BenchmarkFirst(b *testing.B) {
	for _, size := range sizes {
		b.Run(fmt.Sprintf("%dx%d", size.services, size.endpoints), func(b *testing.B) {
			services := fleet(size.services, size.endpoints)
			for b.Loop() {
				b.StopTimer()
				d := openBench(b, testnet.New(b, "bench"))
				b.StartTimer()
				if _, err := d.Adopt(context.Background(), services); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				d.Close()
				b.StartTimer()
			}
		})
	}
}

// BenchmarkAdopt is a start that finds everything in place.
func BenchmarkAdopt(b *testing.B) {
	services := fleet(10000, 10)
	d := openBench(b, testnet.New(b, "bench"))
	defer d.Close()
	for b.Loop() {
		if _, err := d.Adopt(context.Background(), services); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkChange is one endpoint replaced by another, at each size.
func BenchmarkChange(b *testing.B) {
	for _, size := range sizes {
		b.Run(fmt.Sprintf("%dx%d", size.services, size.endpoints), func(b *testing.B) {
			services := fleet(size.services, size.endpoints)
			d := openBench(b, testnet.New(b, "bench"))
			defer d.Close()
			if _, err := d.Adopt(context.Background(), services); err != nil {
				b.Fatal(err)
			}
			var sent int
			i := 0
			for b.Loop() {
				s := services[i%len(services)]
				p := s.Ports[0]
				p.Cluster = slices.Clone(p.Cluster)
				p.Cluster[0] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 200, byte(i >> 8), byte(i)}), 8080)
				s.Ports = []plan.Port{p}
				if _, err := d.Apply(context.Background(), []plan.Service{s}); err != nil {
					b.Fatal(err)
				}
				sent += len(d.tables[0].w.Buf)
				i++
			}
			b.ReportMetric(float64(sent)/float64(i), "netlink-B/op")
			b.ReportAllocs()
		})
	}
}

// BenchmarkConnection is a new TCP connection through a cluster IP, from one
// namespace to another, among so many services: the cost must be flat.
func BenchmarkConnection(b *testing.B) {
	for _, n := range []int{1, 1000, 50000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			node := testnet.New(b, "node")
			node.Forward()
			client := node.Pod("client", "10.244.0.9")
			server := node.Pod("server", "10.244.0.2")
			server.Serve("10.244.0.2:8080")
			services := fleet(n, 2)
			services[n/2].Ports[0].Cluster = []netip.AddrPort{netip.MustParseAddrPort("10.244.0.2:8080")}
			to := services[n/2].Ports[0].ClusterIP.String()
			d := openBench(b, node)
			defer d.Close()
			if _, err := d.Adopt(context.Background(), services); err != nil {
				b.Fatal(err)
			}
			client.Do(func() {
				for b.Loop() {
					c, err := net.Dial("tcp", to)
					if err != nil {
						b.Fatal(err)
					}
					// A reset leaves no TIME_WAIT, of which there would soon be
					// one for each port.
					_ = c.(*net.TCPConn).SetLinger(0)
					c.Close()
				}
			})
		})
	}
}
