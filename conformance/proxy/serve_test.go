package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// Ports that servers listen on. Those of the marker tell which of its two
// states a proxy has seen (see cluster.barrier).
const (
	serverPort  = 8080
	serverPort2 = 8081
	markerPort  = 9000 // and the next
)

// serve starts the servers of a world: one in every pod but the clients, one on
// each node's own address, and those of r, which answer for everything that no
// proxy captured. Each answers a line or a datagram with its name and the
// address that it was asked from: "a1 10.244.1.20:41234".
func (w *world) serve() error {
	var errs []error
	for _, pod := range []string{"a1", "a2", "b1", "b2"} {
		errs = append(errs, w.spaces[pod].serve(pod, netip.IPv6Unspecified(), serverPort))
		errs = append(errs, w.spaces[pod].serve(pod+":2", netip.IPv6Unspecified(), serverPort2))
		errs = append(errs, w.spaces[pod].serveSCTP(pod))
	}
	for _, node := range []string{"n1", "n2"} {
		for _, v6 := range []bool{false, true} {
			errs = append(errs, w.spaces[node].serve(node, address(node, v6), serverPort))
		}
	}
	for _, port := range []int{80, 81} {
		errs = append(errs, w.spaces["r"].serve("r", netip.IPv6Unspecified(), port))
	}
	for i := range 2 {
		errs = append(errs, w.spaces["a1"].serve(fmt.Sprintf("marker%d", i), netip.IPv6Unspecified(), markerPort+i))
	}
	return errors.Join(errs...)
}

// serve serves TCP and UDP until the space closes.
func (s *space) serve(name string, addr netip.Addr, port int) error {
	at := netip.AddrPortFrom(addr, uint16(port))
	var tcp net.Listener
	var udp *net.UDPConn
	err := s.Do(func() (err error) {
		config := net.ListenConfig{KeepAlive: -1} // as the clients
		if tcp, err = config.Listen(context.Background(), "tcp", at.String()); err != nil {
			return err
		}
		config.Control = packetInfo
		c, err := config.ListenPacket(context.Background(), "udp", at.String())
		if err != nil {
			return err
		}
		udp = c.(*net.UDPConn)
		return nil
	})
	if err != nil {
		return fmt.Errorf("starting a server in %s: %w", s.name, err)
	}
	s.servers = append(s.servers, tcp, udp)
	go serveTCP(tcp, name)
	go serveUDP(udp, name)
	return nil
}

func serveTCP(l net.Listener, name string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			for in := bufio.NewReader(c); ; {
				if _, err := in.ReadString('\n'); err != nil {
					return
				}
				if _, err := fmt.Fprintf(c, "%s %s\n", name, c.RemoteAddr()); err != nil {
					return
				}
			}
		}()
	}
}

// packetInfo asks for the address that a datagram was sent to: the answer must
// come from there, which may be any of a range (AnyIP). IPv6 wants leave for
// that.
func packetInfo(_, _ string, c syscall.RawConn) error {
	var err error
	return errors.Join(c.Control(func(fd uintptr) {
		if err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1); err != nil {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
			return
		}
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1)
	}), err)
}

func serveUDP(c *net.UDPConn, name string) {
	buf, oob := make([]byte, 2048), make([]byte, 128)
	for {
		_, n, _, from, err := c.ReadMsgUDPAddrPort(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error for an earlier answer
		}
		_, _, _ = c.WriteMsgUDPAddrPort(fmt.Appendf(nil, "%s %s\n", name, from), answerFrom(oob[:n]), from)
	}
}

// answerFrom turns the packet information of a datagram into that of its
// answer: the destination becomes the source, the interface is left open.
func answerFrom(oob []byte) []byte {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			p := unix.Inet6Pktinfo{Addr: [16]byte(m.Data[:16])}
			return unix.PktInfo6(&p)
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			p := unix.Inet4Pktinfo{Spec_dst: [4]byte(m.Data[8:12])}
			return unix.PktInfo4(&p)
		}
	}
	return nil
}
