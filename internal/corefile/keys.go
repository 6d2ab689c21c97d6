package corefile

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
)

// schemes and their default ports.
var schemes = [...]struct{ name, port string }{
	{"dns", "53"},
	{"tls", "853"},
	{"quic", "853"},
	{"grpc", "443"},
	{"https", "443"},
	{"https3", "443"},
}

// resolve turns [scheme://]zone[:port] into its zones. A scheme that is not
// known is part of the zone, as it is in CoreDNS.
func resolve(t Token, dnsPort string) ([]Key, error) {
	scheme, port := "dns", dnsPort
	if port == "" {
		port = schemes[0].port
	}
	rest := t.Text
	for _, s := range schemes {
		if after, ok := strings.CutPrefix(rest, s.name+"://"); ok {
			rest = after
			if scheme = s.name; scheme != "dns" {
				port = s.port
			}
			break
		}
	}
	if colon := strings.LastIndexByte(rest, ':'); colon >= 0 {
		number := rest[colon+1:]
		if number == "" {
			e := Errorf(t, "key %q ends in a colon", t.Text)
			e.Expected = "a port number after it"
			return nil, e
		}
		if n, err := strconv.ParseUint(number, 10, 32); err == nil {
			if n > 65535 {
				e := Errorf(t, "port %s of key %q does not exist", number, t.Text)
				e.Expected = "a number up to 65535"
				return nil, e
			}
			rest, port = rest[:colon], strconv.FormatUint(n, 10)
		}
	}
	if rest == "" {
		e := Errorf(t, "key %q has no zone", t.Text)
		e.Expected = "a name before the port; the root zone is written ."
		return nil, e
	}
	zones, err := Zones(rest)
	if err != nil {
		return nil, Errorf(t, "key %q: %w", t.Text, err)
	}
	keys := make([]Key, len(zones))
	for i, z := range zones {
		keys[i] = Key{Token: t, Scheme: scheme, Zone: z, Port: port}
	}
	return keys, nil
}

// Zones returns the zones that a word stands for: itself, lower case and fully
// qualified, or the reverse zones that cover a network in CIDR notation.
func Zones(word string) ([]string, error) {
	if p, err := netip.ParsePrefix(word); err == nil && p.Addr().Zone() == "" {
		if p.Addr().Is6() && (word[0] == ':' || word[0] == '0') {
			return nil, errors.New("an IPv6 network that begins with 0 is not taken; write its ip6.arpa name")
		}
		return reverseZones(p.Masked()), nil
	}
	zone := strings.ToLower(word)
	if !qualified(zone) {
		zone += "."
	}
	if err := validName(zone); err != nil {
		return nil, err
	}
	return []string{zone}, nil
}

// qualified tells whether name ends in a dot that is not escaped.
func qualified(name string) bool {
	rest, ok := strings.CutSuffix(name, ".")
	return ok && (len(rest)-len(strings.TrimRight(rest, `\`)))%2 == 0
}

// validName checks a fully qualified name in presentation form: RFC 1035 §2.3.4
// sizes, and the escapes of §5.1.
func validName(name string) error {
	if name == "." {
		return nil
	}
	total, label := 1, 0 // the root label has one octet
	for i := 0; i < len(name); i++ {
		c := name[i]
		if c == '.' {
			if label == 0 {
				return errors.New("the name has an empty label")
			}
			total, label = total+label+1, 0
			continue
		}
		if c == '\\' {
			switch {
			case i+3 < len(name) && digit(name[i+1]) && digit(name[i+2]) && digit(name[i+3]):
				if n, _ := strconv.Atoi(name[i+1 : i+4]); n > 255 {
					return errors.New("the name has an escape over \\255")
				}
				i += 3
			case i+1 < len(name) && !digit(name[i+1]):
				i++
			default:
				return errors.New("the name has a broken escape")
			}
		}
		if label++; label > 63 {
			return errors.New("the name has a label of more than 63 octets")
		}
	}
	if label > 0 {
		return errors.New("the name ends in a backslash")
	}
	if total > 255 {
		return errors.New("the name is longer than 255 octets")
	}
	return nil
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

// reverseZones lists the zones that together are exactly p: delegation happens
// at whole octets (RFC 1035 §3.5) and nibbles (RFC 3596 §2.5), so a mask in
// between needs several.
func reverseZones(p netip.Prefix) []string {
	unit, suffix := 8, "in-addr.arpa."
	if p.Addr().Is6() {
		unit, suffix = 4, "ip6.arpa."
	}
	units := (p.Bits() + unit - 1) / unit
	n := 1 << (units*unit - p.Bits())
	zones := make([]string, 0, n)
	for i := range n {
		b := p.Addr().AsSlice()
		if units > 0 {
			// The bits between the mask and the unit's end count the zones.
			last := (units - 1) * unit / 8
			if unit == 4 && units%2 == 1 {
				b[last] |= byte(i << 4)
			} else {
				b[last] |= byte(i)
			}
		}
		var name strings.Builder
		for u := units - 1; u >= 0; u-- {
			switch {
			case unit == 8:
				name.WriteString(strconv.Itoa(int(b[u])))
			case u%2 == 0:
				name.WriteString(strconv.FormatUint(uint64(b[u/2]>>4), 16))
			default:
				name.WriteString(strconv.FormatUint(uint64(b[u/2]&15), 16))
			}
			name.WriteByte('.')
		}
		zones = append(zones, name.String()+suffix)
	}
	return zones
}
