package rewrite

import (
	"bytes"
	"regexp"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

// kinds are the ways in which a name can fit.
var kinds = []string{"exact", "prefix", "suffix", "substring", "regex"}

// match tells which names a rule is for, and what to make of them. Names are
// in lower case.
type match struct {
	kind     string
	from, to string
	re       *regexp.Regexp
	tail     wireTail // of exact and suffix
}

// newMatch reads FROM, and TO if there is one. Names get a dot at the end, but
// for the regular expression.
func newMatch(kind string, from corefile.Token, to string) (*match, error) {
	m := &match{kind: kind, from: strings.ToLower(dns.Fqdn(from.Text)), to: to}
	switch kind {
	case "regex":
		var err error
		if m.re, err = from.Regexp(); err != nil {
			return nil, err
		}
	case "exact", "suffix":
		m.tail = newWireTail(m.from)
	}
	return m, nil
}

func (m *match) fits(name string) bool {
	switch m.kind {
	case "exact":
		return name == m.from
	case "prefix":
		return strings.HasPrefix(name, m.from)
	case "suffix":
		return strings.HasSuffix(name, m.from)
	case "substring":
		return strings.Contains(name, m.from)
	}
	return m.re.MatchString(name)
}

// replace returns what becomes of a name that fits.
func (m *match) replace(name string) string {
	switch m.kind {
	case "exact":
		return m.to
	case "prefix":
		return m.to + name[len(m.from):]
	case "suffix":
		return name[:len(name)-len(m.from)] + m.to
	case "substring":
		return strings.ReplaceAll(name, m.from, m.to)
	}
	return expand(m.to, m.re.FindStringSubmatch(name))
}

func (m *match) mayFit(q *wire.Query) bool {
	return m.kind != "exact" && m.kind != "suffix" || m.tail.of(q)
}

// expand puts groups into a text: {0} is the whole match.
func expand(text string, groups []string) string {
	for i, g := range groups {
		text = strings.ReplaceAll(text, "{"+strconv.Itoa(i)+"}", g)
	}
	return text
}

// checkGroups refuses a text that uses more groups than the expression has.
func checkGroups(re *regexp.Regexp, to corefile.Token) error {
	used := 0
	for i := range 101 {
		if strings.Contains(to.Text, "{"+strconv.Itoa(i)+"}") {
			used++
		}
	}
	if used > re.NumSubexp() {
		return corefile.Errorf(to, "%q uses %d groups, but the expression %q has %d", to.Text, used, re, re.NumSubexp())
	}
	return nil
}

// wireTail is the end of a name in wire form. The first of its labels may be
// the end of a label, as with text.
type wireTail struct {
	first  []byte
	rest   []byte
	labels int
	valid  bool
}

func newWireTail(name string) wireTail {
	t := wireTail{}
	name, bare := strings.CutPrefix(name, ".")
	var buf [256]byte
	n, err := dns.PackDomainName(name, buf[:], 0, nil, false)
	if err != nil || n < 1 {
		return t
	}
	t.valid, t.labels = true, dns.CountLabel(name)
	t.rest = bytes.Clone(buf[:n])
	if !bare && t.labels > 0 {
		t.first = t.rest[1 : 1+int(t.rest[0])]
		t.rest = t.rest[1+int(t.rest[0]):]
		t.labels--
	}
	return t
}

// of tells whether q's name ends so; when in doubt, it does.
func (t *wireTail) of(q *wire.Query) bool {
	if !t.valid {
		return true
	}
	i := q.Labels() - t.labels
	if i < 0 || !bytes.Equal(q.Suffix(i), t.rest) {
		return false
	}
	return t.first == nil || i > 0 && bytes.HasSuffix(q.Label(i-1), t.first)
}
