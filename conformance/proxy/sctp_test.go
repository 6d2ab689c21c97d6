package proxy

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"
)

// SCTP without the kernel's SCTP: the first two packets of its handshake over
// raw sockets (RFC 9260 §3). That is all that a service proxy looks at, and it
// works on kernels that were built without the protocol.
const (
	sctpInit    = 1
	sctpInitAck = 2
	// The server's word travels as a parameter of the INIT ACK: 0x8000 means
	// "skip if unknown" (RFC 9260 §3.2.1).
	sctpWord = 0x8000 | 42
)

// serveSCTP answers each INIT to the server's port.
func (s *space) serveSCTP(name string) error {
	for _, network := range []string{"ip4:132", "ip6:132"} {
		var c net.PacketConn
		err := s.Do(func() (err error) {
			c, err = net.ListenPacket(network, "")
			return err
		})
		if err != nil {
			return fmt.Errorf("starting an SCTP server in %s: %w", s.name, err)
		}
		s.servers = append(s.servers, c)
		go func() {
			buf := make([]byte, 2048)
			for {
				n, from, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				p := buf[:n]
				if n < 32 || binary.BigEndian.Uint16(p[2:]) != serverPort || p[12] != sctpInit {
					continue
				}
				port, tag := binary.BigEndian.Uint16(p), binary.BigEndian.Uint32(p[16:])
				addr, _ := netip.ParseAddr(from.String())
				word := fmt.Sprintf("%s %s\n", name, netip.AddrPortFrom(addr, port))
				_, _ = c.WriteTo(sctpPacket(serverPort, port, tag, sctpInitAck, word), from)
			}
		}()
	}
	return nil
}

// sctpPacket makes an INIT or INIT ACK.
func sctpPacket(src, dst uint16, tag uint32, kind byte, word string) []byte {
	p := make([]byte, 12, 128)
	binary.BigEndian.PutUint16(p, src)
	binary.BigEndian.PutUint16(p[2:], dst)
	binary.BigEndian.PutUint32(p[4:], tag)
	p = append(p, kind, 0, 0, 0)
	p = binary.BigEndian.AppendUint32(p, rand.Uint32()|1) // initiate tag, never 0
	p = binary.BigEndian.AppendUint32(p, 64<<10)          // window
	p = binary.BigEndian.AppendUint16(p, 1)               // streams out
	p = binary.BigEndian.AppendUint16(p, 1)               // streams in
	p = binary.BigEndian.AppendUint32(p, 1)               // first TSN
	if word != "" {
		p = binary.BigEndian.AppendUint16(p, sctpWord)
		p = binary.BigEndian.AppendUint16(p, uint16(4+len(word)))
		p = append(p, word...)
	}
	binary.BigEndian.PutUint16(p[14:], uint16(len(p)-12))
	for len(p)%4 != 0 {
		p = append(p, 0)
	}
	// The checksum is CRC32c, least significant byte first (RFC 9260 App. A).
	binary.LittleEndian.PutUint32(p[8:], crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)))
	return p
}

// sctpConn is an association that is being opened, again and again.
type sctpConn struct {
	*net.IPConn
	src, dst uint16
	wait     time.Duration
}

func dialSCTP(q question) (flow, error) {
	network := "ip4:132"
	if q.to.Addr().Is6() {
		network = "ip6:132"
	}
	d := net.Dialer{}
	if q.local.IsValid() {
		d.LocalAddr = &net.IPAddr{IP: q.local.AsSlice()}
	}
	c, err := d.Dial(network, q.to.Addr().String())
	if err != nil {
		return nil, err
	}
	return &sctpConn{c.(*net.IPConn), uint16(20000 + rand.IntN(10000)), q.to.Port(), q.wait}, nil
}

// ask sends an INIT and returns the word in the INIT ACK.
func (c *sctpConn) ask() (string, error) {
	if _, err := c.Write(sctpPacket(c.src, c.dst, 0, sctpInit, "")); err != nil {
		return "", err
	}
	_ = c.SetReadDeadline(time.Now().Add(c.wait))
	buf := make([]byte, 2048)
	for {
		n, _, err := c.ReadFrom(buf) // without the IP header, which Read leaves in
		if err != nil {
			return "", err
		}
		p := buf[:n]
		if n < 36 || binary.BigEndian.Uint16(p[2:]) != c.src || p[12] != sctpInitAck {
			continue // of another association
		}
		if l := int(binary.BigEndian.Uint16(p[34:])); binary.BigEndian.Uint16(p[32:]) == sctpWord && l >= 4 && 32+l <= n {
			return string(p[36 : 32+l]), nil
		}
	}
}
