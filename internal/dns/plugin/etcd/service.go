package etcd

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// service is the value of a key, in SkyDNS's form.
type service struct {
	Host        string `json:"host,omitempty"`
	Port        int    `json:"port,omitempty"` // -1: not in SRV answers
	Priority    int    `json:"priority,omitempty"`
	Weight      int    `json:"weight,omitempty"`
	Text        string `json:"text,omitempty"`
	Mail        bool   `json:"mail,omitempty"`
	TTL         uint32 `json:"ttl,omitempty"`
	TargetStrip int    `json:"targetstrip,omitempty"` // labels to leave out of a target made of the key
	Group       string `json:"group,omitempty"`

	Key string `json:"-"`
}

const (
	defaultPriority = 10
	defaultTTL      = 300
)

// parse reads the value of a key.
func parse(key string, value []byte) (service, error) {
	var s service
	if err := json.Unmarshal(value, &s); err != nil {
		return s, fmt.Errorf("%s: %w", key, err)
	}
	s.Key = key
	if s.Priority == 0 {
		s.Priority = defaultPriority
	}
	return s, nil
}

// kind is what a service is an answer for: the type of its address, TXT for a
// text without one, and CNAME for a name.
func (s *service) kind() (uint16, netip.Addr) {
	a, err := netip.ParseAddr(s.Host)
	switch {
	case err != nil && s.Text != "":
		return dns.TypeTXT, a
	case err != nil || a.Zone() != "":
		return dns.TypeCNAME, a
	case a.Unmap().Is4():
		return dns.TypeA, a.Unmap()
	}
	return dns.TypeAAAA, a
}

// target is the name of the service's host: the host itself, or for an address
// the name of its key.
func (s *service) target() string {
	name := dns.Fqdn(s.Host)
	if k, _ := s.kind(); k == dns.TypeA || k == dns.TypeAAAA {
		name = domainOf(s.Key)
	}
	if s.TargetStrip <= 0 {
		return name
	}
	offset, end := 0, false
	for range min(s.TargetStrip, 128) {
		if offset, end = dns.NextLabel(name, offset); end {
			return name // nothing would be left
		}
	}
	return name[offset:]
}

func (s *service) header(owner string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: owner, Rrtype: rrtype, Class: dns.ClassINET, Ttl: s.TTL}
}

// address is the A or AAAA record of a service that has one.
func (s *service) address(owner string) dns.RR {
	k, a := s.kind()
	if k == dns.TypeA {
		return &dns.A{Hdr: s.header(owner, k), A: a.AsSlice()}
	}
	return &dns.AAAA{Hdr: s.header(owner, k), AAAA: a.AsSlice()}
}

// texts cuts a text into character strings (RFC 1035 §3.3).
func (s *service) texts() []string {
	var list []string
	rest := s.Text
	for len(rest) > 255 {
		list = append(list, rest[:255])
		rest = rest[255:]
	}
	return append(list, rest)
}

// keyOf is the key of a name: its labels in reverse below the prefix. With a
// label * or any it is the key above that label, and star is true.
func keyOf(prefix, name string) (key string, star bool) {
	labels := dns.SplitDomainName(name)
	slices.Reverse(labels)
	for i, l := range labels {
		if l == "*" || l == "any" {
			return path.Join(append([]string{"/" + prefix}, labels[:i]...)...), true
		}
	}
	return path.Join(append([]string{"/" + prefix}, labels...)...), false
}

// domainOf is the name of a key, without the first element of its path.
func domainOf(key string) string {
	parts := strings.Split(strings.Trim(key, "/"), "/")
	labels := parts[1:]
	slices.Reverse(labels)
	return dns.Fqdn(strings.Join(labels, "."))
}

// fits tells whether a key has the labels of a name with * or any in it.
func fits(key, prefix, name string) bool {
	labels := dns.SplitDomainName(name)
	slices.Reverse(labels)
	parts := strings.Split(strings.TrimPrefix(key, path.Join("/"+prefix)+"/"), "/")
	if len(parts) < len(labels) {
		return false
	}
	for i, l := range labels {
		if l != "*" && l != "any" && l != parts[i] {
			return false
		}
	}
	return true
}

// grouped leaves out services that are of another group than the one of the
// shortest key, unless those with the shortest keys disagree.
func grouped(list []service) []service {
	if len(list) == 0 {
		return list
	}
	depth := func(s *service) int { return strings.Count(s.Key, "/") }
	group, shortest := list[0].Group, depth(&list[0])
	for i := range list {
		if n := depth(&list[i]); n < shortest {
			if list[i].Group == "" {
				break
			}
			group, shortest = list[i].Group, n
		}
	}
	if group == "" {
		return list
	}
	var kept []service
	for i := range list {
		s := &list[i]
		if s.Group != "" && s.Group != group && depth(s) == shortest {
			return list
		}
		if s.Group == "" || s.Group == group {
			kept = append(kept, *s)
		}
	}
	return kept
}
