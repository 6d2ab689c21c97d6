package dns

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

// query is a line of a corpus, in dig's manner:
//
//	[+tcp] [+nord] [+edns=SIZE] [+do] … NAME [TYPE]
type query struct {
	line  string // as shown in failures: options, name and type
	name  string
	qtype uint16
	opts  []string // without "+"
}

// readCorpus reads lines of queries. A line without a type stands for one
// query of each type in the last @types line. @include NAME reads another
// corpus; @replace OLD NEW applies to names in lines and inclusions below it;
// @options +… are added to the lines below.
func readCorpus(text string) ([]query, error) {
	return corpusReader{}.read(text)
}

type corpusReader struct {
	types   []string
	replace []string
	options []string
}

func (r corpusReader) read(text string) ([]query, error) {
	var all []query
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		switch f[0] {
		case "@types":
			r.types = f[1:]
			continue
		case "@options":
			r.options = f[1:]
			continue
		case "@replace":
			r.replace = append(slices.Clone(r.replace), f[1], f[2])
			continue
		case "@include":
			sub, err := os.ReadFile(filepath.Join("testdata", "corpus", f[1]+".txt"))
			if err != nil {
				return nil, err
			}
			more, err := r.read(string(sub))
			if err != nil {
				return nil, err
			}
			all = append(all, more...)
			continue
		}
		f = append(slices.Clone(r.options), f...)
		var q query
		for len(f) > 0 && strings.HasPrefix(f[0], "+") {
			q.opts = append(q.opts, f[0][1:])
			f = f[1:]
		}
		if len(f) == 0 || len(f) > 2 {
			return nil, fmt.Errorf("corpus line %q: want [+option…] NAME [TYPE]", line)
		}
		q.name = strings.NewReplacer(r.replace...).Replace(f[0])
		types := r.types
		if len(f) == 2 {
			types = f[1:]
		}
		for _, t := range types {
			q := q
			if q.qtype = dns.StringToType[t]; q.qtype == 0 && t != "TYPE0" {
				n, err := strconv.ParseUint(strings.TrimPrefix(t, "TYPE"), 10, 16)
				if err != nil {
					return nil, fmt.Errorf("corpus line %q: type %s is not known", line, t)
				}
				q.qtype = uint16(n)
			}
			q.line = q.name + " " + t
			if len(q.opts) > 0 {
				q.line = "+" + strings.Join(q.opts, " +") + " " + q.line
			}
			all = append(all, q)
		}
	}
	return all, nil
}

// message makes the query's message.
func (q query) message() (m *dns.Msg, tcp bool, err error) {
	m = &dns.Msg{
		MsgHdr:   dns.MsgHdr{Id: dns.Id(), RecursionDesired: true},
		Question: []dns.Question{{Name: q.name, Qtype: q.qtype, Qclass: dns.ClassINET}},
	}
	if q.qtype == dns.TypeIXFR { // wants the client's SOA
		m.Ns = []dns.RR{&dns.SOA{Hdr: dns.RR_Header{Name: q.name, Rrtype: dns.TypeSOA, Class: dns.ClassINET}, Ns: ".", Mbox: ".", Serial: 1}}
	}
	opt := func() *dns.OPT {
		if m.IsEdns0() == nil {
			m.Extra = append(m.Extra, &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}})
		}
		return m.IsEdns0()
	}
	option := func(o dns.EDNS0) { opt().Option = append(opt().Option, o) }
	for _, o := range q.opts {
		key, value, _ := strings.Cut(o, "=")
		n, _ := strconv.Atoi(value)
		switch key {
		case "tcp":
			tcp = true
		case "nord":
			m.RecursionDesired = false
		case "cd":
			m.CheckingDisabled = true
		case "ad":
			m.AuthenticatedData = true
		case "aa":
			m.Authoritative = true
		case "z":
			m.Zero = true
		case "class":
			m.Question[0].Qclass = dns.StringToClass[value]
		case "opcode":
			if code, ok := dns.StringToOpcode[value]; ok {
				n = code
			}
			m.Opcode = n
		case "edns":
			opt().SetUDPSize(uint16(n))
		case "do":
			opt().SetDo()
		case "ednsversion":
			opt().SetVersion(uint8(n))
		case "ednsflags":
			opt().Hdr.Ttl |= uint32(n)
		case "nsid":
			option(&dns.EDNS0_NSID{Code: dns.EDNS0NSID})
		case "cookie":
			option(&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"})
		case "ecs":
			option(&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: net.IPv4(198, 51, 100, 0)})
		case "padding":
			option(&dns.EDNS0_PADDING{Padding: make([]byte, 16)})
		case "keepalive":
			option(&dns.EDNS0_TCP_KEEPALIVE{Code: dns.EDNS0TCPKEEPALIVE})
		case "expire":
			option(&dns.EDNS0_EXPIRE{Code: dns.EDNS0EXPIRE, Empty: true})
		case "local":
			option(&dns.EDNS0_LOCAL{Code: 65001, Data: []byte("local")})
		default:
			return nil, false, fmt.Errorf("query %q: option +%s is not known", q.line, key)
		}
	}
	return m, tcp, nil
}

// client talks to one server; a TCP connection is kept for the next query.
type client struct {
	addr string
	udp  net.Conn
	tcp  net.Conn
}

var errNoReply = errors.New("no reply")

// ask sends a message as it is and returns the reply's bytes.
func (c *client) ask(msg []byte, tcp bool, timeout time.Duration) ([]byte, error) {
	if tcp {
		reply, err := c.askTCP(msg, timeout)
		if err != nil && !errors.Is(err, errNoReply) { // the server closed it meanwhile
			c.close()
			reply, err = c.askTCP(msg, timeout)
		}
		return reply, err
	}
	// CoreDNS opens the sockets of a Corefile one after the other: that one
	// answers does not mean that this one does.
	for attempt := 0; ; attempt++ {
		reply, err := c.askUDP(msg, timeout)
		if !errors.Is(err, syscall.ECONNREFUSED) || attempt == 50 {
			return reply, err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (c *client) askUDP(msg []byte, timeout time.Duration) ([]byte, error) {
	if c.udp == nil {
		conn, err := net.Dial("udp", c.addr)
		if err != nil {
			return nil, err
		}
		c.udp = conn
	}
	if _, err := c.udp.Write(msg); err != nil {
		return nil, err
	}
	_ = c.udp.SetReadDeadline(time.Now().Add(timeout))
	buf := make([]byte, dns.MaxMsgSize)
	for {
		n, err := c.udp.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, errNoReply
		}
		if err != nil {
			return nil, err
		}
		// A late reply to an earlier message has another ID.
		if n >= 2 && len(msg) >= 2 && [2]byte(buf) == [2]byte(msg) {
			return buf[:n], nil
		}
	}
}

func (c *client) askTCP(msg []byte, timeout time.Duration) ([]byte, error) {
	if c.tcp == nil {
		conn, err := net.DialTimeout("tcp", c.addr, timeout)
		if err != nil {
			return nil, err
		}
		c.tcp = conn
	}
	if _, err := c.tcp.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...)); err != nil {
		return nil, err
	}
	_ = c.tcp.SetReadDeadline(time.Now().Add(timeout))
	r := bufio.NewReader(c.tcp)
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.close()
			return nil, errNoReply
		}
		return nil, err
	}
	reply := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(r, reply)
	return reply, err
}

func (c *client) close() {
	if c.udp != nil {
		_ = c.udp.Close()
	}
	if c.tcp != nil {
		_ = c.tcp.Close()
	}
	c.udp, c.tcp = nil, nil
}
