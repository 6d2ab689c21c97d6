package proxy_test

import (
	"encoding/binary"
	"hash/crc32"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/testnet"
)

// initChunk is an SCTP packet that opens an association (RFC 9260 §3.3.2). Few
// kernels here have SCTP sockets, but connection tracking knows the protocol.
func initChunk(src, dst uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, src)
	b = binary.BigEndian.AppendUint16(b, dst)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0) // verification tag 0; checksum
	b = append(b, 1, 0, 0, 20)            // INIT, its length
	b = append(b, 0, 0, 0, 1)             // initiate tag
	b = append(b, 0, 1, 0, 0)             // receiver window
	b = append(b, 0, 1, 0, 1)             // streams
	b = append(b, 0, 0, 0, 1)             // first TSN
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func rawSCTP(t *testing.T, s *testnet.Space) (fd int) {
	t.Helper()
	s.Do(func() {
		var err error
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// The first packet of an association reaches the endpoint's address and port.
func TestSCTP(t *testing.T) {
	w := newWorld(t, nil)
	s := service("sctp", "10.96.0.1")
	s.Ports = []catalog.ServicePort{{Name: "s", Protocol: catalog.SCTP, Port: 3868, NodePort: 30868}}
	eps := slice("sctp", "10.244.0.2")
	eps.Ports = []catalog.EndpointPort{{Name: "s", Protocol: catalog.SCTP, Port: 9999}}
	w.cat.ApplyService(s)
	w.cat.ApplySlice(eps)
	w.markSynced()
	w.sync()
	server, client := rawSCTP(t, w.a), rawSCTP(t, w.client)
	tv := unix.NsecToTimeval(int64(2 * time.Second))
	if err := unix.SetsockoptTimeval(server, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		t.Fatal(err)
	}
	for i, to := range []struct {
		addr [4]byte
		port uint16
		seen string // as the source
	}{{[4]byte{10, 96, 0, 1}, 3868, "10.244.0.9"}, {[4]byte{192, 0, 2, 1}, 30868, nodeIP}} {
		if err := unix.Sendto(client, initChunk(uint16(5000+i), to.port), 0, &unix.SockaddrInet4{Addr: to.addr}); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 2048)
		n, from, err := unix.Recvfrom(server, buf, 0)
		if err != nil {
			t.Fatalf("INIT to %v:%d did not arrive: %v", to.addr, to.port, err)
		}
		p := buf[int(buf[0]&15)*4 : n]
		if port := binary.BigEndian.Uint16(p[2:]); port != 9999 {
			t.Errorf("INIT to %v:%d came to port %d", to.addr, to.port, port)
		}
		src := from.(*unix.SockaddrInet4).Addr
		if got := addr(to.seen).As4(); got != src {
			t.Errorf("INIT to %v:%d came from %v", to.addr, to.port, src)
		}
	}
}
