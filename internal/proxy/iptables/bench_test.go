package iptables

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/plan"
	"github.com/rutter-project/rutter/internal/proxy/testnet"
	"github.com/rutter-project/rutter/internal/proxy/xtables"
)

// manyServices are n services of m endpoints each, IPv4.
func manyServices(n, m int) []plan.Service {
	list := make([]plan.Service, n)
	for i := range list {
		p := plan.Port{Name: "http", Protocol: catalog.TCP, Usable: true,
			ClusterIP: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(96 + i>>16), byte(i >> 8), byte(i)}), 80)}
		for j := range m {
			k := i*m + j
			p.Cluster = append(p.Cluster, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(128 + k>>16), byte(k >> 8), byte(k)}), 8080))
		}
		list[i] = plan.Service{Name: catalog.ServiceName{Namespace: "ns", Name: fmt.Sprintf("svc%d", i)}, Ports: []plan.Port{p}}
	}
	return list
}

func benchmark(b *testing.B, backend xtables.Backend, f func(b *testing.B, open func() *Dataplane, services []plan.Service)) {
	for _, size := range [][2]int{{1000, 10}, {10000, 10}} {
		b.Run(fmt.Sprintf("%s/%dx%d", backend, size[0], size[1]), func(b *testing.B) {
			if _, err := exec.LookPath("iptables-" + string(backend)); err != nil {
				b.Skip(err)
			}
			usePath(b, backend)
			b.Setenv("XTABLES_LOCKFILE", b.TempDir()+"/lock")
			open := func() (d *Dataplane) {
				n := testnet.New(b, "iptables")
				n.Do(func() {
					var err error
					if d, err = Open(dataplane.Config{Rules: testRules, MasqueradeBit: 14, IPv4: true, Logger: slog.New(slog.DiscardHandler)}); err != nil {
						panic(err)
					}
				})
				b.Cleanup(func() { d.Close() })
				return d
			}
			f(b, open, manyServices(size[0], size[1]))
		})
	}
}

func benchAdopt(b *testing.B, open func() *Dataplane, services []plan.Service) {
	for b.Loop() {
		d := open()
		if refused, err := d.Adopt(b.Context(), services); err != nil || len(refused) > 0 {
			b.Fatal(err, refused)
		}
	}
}

func benchChange(b *testing.B, open func() *Dataplane, services []plan.Service) {
	d := open()
	start := time.Now()
	if refused, err := d.Adopt(b.Context(), services); err != nil || len(refused) > 0 {
		b.Fatal(err, refused)
	}
	programmed := time.Since(start)
	start = time.Now()
	if refused, err := d.Adopt(b.Context(), services); err != nil || len(refused) > 0 {
		b.Fatal(err, refused)
	}
	b.Logf("everything programmed in %s, gone through again in %s", programmed.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
	s := services[len(services)/2]
	port := s.Ports[0]
	for i := 0; b.Loop(); i++ {
		p := port
		p.Cluster = append([]netip.AddrPort(nil), port.Cluster...)
		p.Cluster[len(p.Cluster)-1] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 200, 0, byte(1 + i%200)}), 8080)
		s.Ports = []plan.Port{p}
		if refused, err := d.Apply(b.Context(), []plan.Service{s}); err != nil || len(refused) > 0 {
			b.Fatal(err, refused)
		}
	}
}

// BenchmarkAdopt is the first programming of everything.
func BenchmarkAdopt(b *testing.B) {
	benchmark(b, xtables.NFT, benchAdopt)
	benchmark(b, xtables.Legacy, benchAdopt)
}

// BenchmarkChange is one endpoint in the place of another.
func BenchmarkChange(b *testing.B) {
	benchmark(b, xtables.NFT, benchChange)
	benchmark(b, xtables.Legacy, benchChange)
}
