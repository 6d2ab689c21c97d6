package peer

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Nameserver is a DNS server on a port of 127.0.0.1.
type Nameserver struct {
	*Process
	Addr string // host and port
}

// Corefile fills the places that differ from server to server: {PORT} and, for
// plugins that listen themselves, {PORT1} to {PORT9}, free ports; and {DIR}, a
// directory for files.
func Corefile(text, dir string, port int) (string, error) {
	repl := []string{"{PORT}", strconv.Itoa(port), "{DIR}", dir}
	for i := 1; i <= 9; i++ {
		place := fmt.Sprintf("{PORT%d}", i)
		if !strings.Contains(text, place) {
			continue
		}
		p, err := Port()
		if err != nil {
			return "", err
		}
		repl = append(repl, place, strconv.Itoa(p))
	}
	return strings.NewReplacer(repl...).Replace(text), nil
}

// StartCoreDNS starts CoreDNS with a Corefile (see [Corefile]) and waits until
// it answers.
func StartCoreDNS(program, name, dir, corefile string) (*Nameserver, error) {
	return startNameserver(name, dir, corefile, func(conf, port string) []string {
		return []string{program, "-conf", conf, "-dns.port", port}
	})
}

// StartRutterDNS is StartCoreDNS for `rutter dns`, which has CoreDNS's flags.
func StartRutterDNS(program, name, dir, corefile string) (*Nameserver, error) {
	return startNameserver(name, dir, corefile, func(conf, port string) []string {
		return []string{program, "dns", "-conf", conf, "-dns.port", port}
	})
}

func startNameserver(name, dir, corefile string, args func(conf, port string) []string) (*Nameserver, error) {
	port, err := Port()
	if err != nil {
		return nil, err
	}
	text, err := Corefile(corefile, dir, port)
	if err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, name+".Corefile")
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return nil, fmt.Errorf("writing a Corefile for %s: %w", name, err)
	}
	p, err := Start(Command{Name: name, Dir: dir, Args: args(conf, strconv.Itoa(port))})
	if err != nil {
		return nil, err
	}
	s := &Nameserver{Process: p, Addr: fmt.Sprintf("127.0.0.1:%d", port)}
	if err := s.WaitFor("answering", 30*time.Second, func() error { return answers(s.Addr) }); err != nil {
		s.Stop()
		return nil, err
	}
	return s, nil
}

// answers tells whether a server answers at all, whatever it says.
func answers(addr string) error {
	m := new(dns.Msg)
	m.SetQuestion("ready.invalid.", dns.TypeA)
	c := dns.Client{Timeout: time.Second}
	_, _, err := c.Exchange(m, addr)
	return err
}

// WaitForAnswer waits until a name has at least n records of a type.
func (s *Nameserver) WaitForAnswer(name string, qtype uint16, n int) error {
	return s.WaitFor("answering "+name, time.Minute, func() error {
		m := new(dns.Msg)
		m.SetQuestion(name, qtype)
		m.SetEdns0(4096, false)
		c := dns.Client{Timeout: time.Second}
		r, _, err := c.Exchange(m, s.Addr)
		if err != nil {
			return err
		}
		if len(r.Answer) < n {
			return fmt.Errorf("%s has %d records (%s), want %d", name, len(r.Answer), dns.RcodeToString[r.Rcode], n)
		}
		return nil
	})
}
