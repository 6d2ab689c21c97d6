package dns

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/conformance/peer"
)

const floodCorefile = `.:{PORT} {
    errors
    file {DIR}/db.example.org example.org
    cache 30
    loadbalance
}
`

const floodZone = `@ 300 IN SOA ns hostmaster 1 7200 3600 1209600 60
@ 300 IN NS ns
ns 300 IN A 192.0.2.53
www 300 IN A 192.0.2.1
`

// TestRandomBytes: after a million queries of random bytes Rutter answers and
// is as large as before. After each few hundred a normal query is sent on the
// same socket, so that the kernel drops none of them: its reply means that
// those before it have been read.
func TestRandomBytes(t *testing.T) {
	t.Parallel() // waits, as TestReload does
	const total, burst, warm = 1_000_000, 250, 50_000
	const slack = 8 << 20 // bytes: a heap is never twice the same
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "db.example.org"), []byte(floodZone), 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := peer.StartRutterDNS(findPrograms(t).rutter, "rutter", dir, floodCorefile)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Kill()
	conn, err := net.Dial("udp", s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	m := new(dns.Msg).SetQuestion("www.example.org.", dns.TypeA)
	m.SetEdns0(1232, true)
	normal, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	buf := make([]byte, 4096)
	flood := func(n int) {
		for i := range n {
			// All random, or a query with a few bytes changed.
			b := append(buf[:0], normal...)
			if i%2 == 0 {
				b = buf[:rng.IntN(80)]
				for j := range b {
					b[j] = byte(rng.Uint32())
				}
			}
			for range 1 + rng.IntN(3) {
				if len(b) > 2 {
					b[2+rng.IntN(len(b)-2)] = byte(rng.Uint32())
				}
			}
			if len(b) > 1 && b[0] == normal[0] && b[1] == normal[1] {
				b[0]++ // only the normal query has its ID
			}
			if _, err := conn.Write(b); err != nil {
				t.Fatal(err)
			}
			if i%burst == burst-1 {
				answered(t, conn, normal)
			}
		}
	}
	flood(warm)
	before, err := s.Memory()
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	flood(total)
	took := time.Since(start)
	cpu, err := s.CPU()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d random messages in %s, %s of Rutter's CPU time", total, took.Round(time.Millisecond), cpu.Round(time.Millisecond))
	// A server without work gives back what the garbage of the flood took.
	if err := s.WaitFor("as small as before", time.Minute, func() error {
		after, err := s.Memory()
		if err == nil && after.Resident > before.Resident+slack {
			err = fmt.Errorf("resident memory is %d KiB, was %d KiB", after.Resident>>10, before.Resident>>10)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	c := dns.Client{Timeout: 10 * time.Second}
	r, _, err := c.Exchange(m, s.Addr)
	if err != nil || len(r.Answer) != 1 {
		t.Errorf("after the flood: %v, %v", r, err)
	}
}

// answered sends the normal query and waits for its reply; a socket buffer that
// was full asks for another try.
func answered(t *testing.T, conn net.Conn, normal []byte) {
	t.Helper()
	buf := make([]byte, 4096)
	for range 60 {
		if _, err := conn.Write(normal); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		for {
			n, err := conn.Read(buf)
			if err != nil {
				break
			}
			if n > 12 && buf[0] == normal[0] && buf[1] == normal[1] {
				return
			}
		}
	}
	t.Fatal(fmt.Errorf("no answer to a normal query for a minute"))
}
