package proxy

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"time"
)

// icmpConn asks with an ICMP echo request: services have no ports for it, yet
// people ping them.
type icmpConn struct {
	*net.IPConn
	id          uint16
	echo, reply byte
	wait        time.Duration
}

func dialICMP(q question) (flow, error) {
	c := &icmpConn{id: uint16(rand.IntN(1 << 16)), echo: 8, reply: 0, wait: q.wait}
	network := "ip4:1"
	if q.to.Addr().Is6() {
		network, c.echo, c.reply = "ip6:58", 128, 129 // RFC 4443 §4
	}
	d := net.Dialer{}
	if q.local.IsValid() {
		d.LocalAddr = &net.IPAddr{IP: q.local.AsSlice()}
	}
	conn, err := d.Dial(network, q.to.Addr().String())
	if err != nil {
		return nil, err
	}
	c.IPConn = conn.(*net.IPConn)
	return c, nil
}

// ask sends an echo request. There is no word in the reply.
func (c *icmpConn) ask() (string, error) {
	p := []byte{c.echo, 0, 0, 0, 0, 0, 0, 1}
	binary.BigEndian.PutUint16(p[4:], c.id)
	if c.echo == 8 { // the kernel does it for ICMPv6
		sum := 0
		for i := 0; i < len(p); i += 2 {
			sum += int(binary.BigEndian.Uint16(p[i:]))
		}
		sum = sum&0xffff + sum>>16
		binary.BigEndian.PutUint16(p[2:], ^uint16(sum))
	}
	if _, err := c.Write(p); err != nil {
		return "", err
	}
	_ = c.SetReadDeadline(time.Now().Add(c.wait))
	buf := make([]byte, 2048)
	for {
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			return "", err
		}
		if n >= 8 && buf[0] == c.reply && binary.BigEndian.Uint16(buf[4:]) == c.id {
			return "reply", nil
		}
	}
}
