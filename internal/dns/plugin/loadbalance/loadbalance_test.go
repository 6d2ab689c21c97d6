package loadbalance

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

func records(t *testing.T, lines ...string) []dns.RR {
	t.Helper()
	var list []dns.RR
	for _, l := range lines {
		rr, err := dns.NewRR(l)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, rr)
	}
	return list
}

func short(list []dns.RR) string {
	var out []string
	for _, rr := range list {
		f := strings.Fields(rr.String())
		out = append(out, f[3]+" "+strings.Join(f[4:], " "))
	}
	return strings.Join(out, ", ")
}

func TestRoundRobin(t *testing.T) {
	in := records(t, "a. MX 1 m1.", "a. A 10.0.0.1", "a. TXT x", "a. A 10.0.0.2", "a. CNAME b.", "a. AAAA fd00::1", "b. CNAME c.", "a. MX 2 m2.")
	before := short(in)
	seen := make(map[string]bool)
	for range 500 {
		out := roundRobin(in)
		kinds := make([]string, len(out))
		for i, rr := range out {
			kinds[i] = dns.Type(rr.Header().Rrtype).String()
		}
		slices.Sort(kinds[3:6])
		if got := strings.Join(kinds, " "); got != "CNAME CNAME TXT A A AAAA MX MX" {
			t.Fatal(got)
		}
		seen[short(out)] = true
	}
	if len(seen) != 12 { // three addresses and two exchangers: 3! x 2! orders
		t.Errorf("%d orders in 500 tries", len(seen))
	}
	if short(in) != before {
		t.Error("the input was changed")
	}
}

func TestPrefer(t *testing.T) {
	env, _ := plugintest.NewEnv()
	b, err := plugintest.Build(env, ". {\n loadbalance round_robin {\n prefer 10.2.0.0/16 fd00::/8\n prefer 10.1.0.0/16\n}\n}", entries())
	if err != nil {
		t.Fatal(err)
	}
	h := b.Handlers()[0].(*handler)
	for range 50 {
		in := roundRobin(records(t, "a. A 10.1.0.1", "a. A 10.3.0.1", "a. TXT x", "a. AAAA fd00::1", "a. A 10.2.0.1", "a. CNAME b."))
		if got := short(preferred(in, h.prefer)); got != `CNAME b., A 10.2.0.1, AAAA fd00::1, A 10.1.0.1, A 10.3.0.1, TXT "x"` {
			t.Fatal(got)
		}
	}
}

func entries() []plugin.Entry {
	return []plugin.Entry{{Name: "loadbalance", Setup: Setup, Effect: plugin.Changes}}
}

func TestWeights(t *testing.T) {
	table, err := parseWeights([]byte("# heading\nA.test\n10.0.0.1 3 # three of four\n 10.0.0.2   1\n\nb.test.\nfd00::1 255\n"))
	if err != nil {
		t.Fatal(err)
	}
	first := make(map[string]int)
	for range 4000 {
		first[moveFirst(records(t, "a.test. A 10.0.0.2", "a.test. A 10.0.0.1"), table)[0].(*dns.A).A.String()]++
	}
	if n := first["10.0.0.1"]; n < 2700 || n > 3300 { // 3000 expected, eleven sigma
		t.Errorf("%v", first)
	}
	// A name that the file does not have stays as it is.
	if got := short(moveFirst(records(t, "c.test. A 10.0.0.2", "c.test. A 10.0.0.1"), table)); got != "A 10.0.0.2, A 10.0.0.1" {
		t.Error(got)
	}
	for text, want := range map[string]string{
		"10.0.0.1 1":           "1: an address before the first name",
		"a.test\n10.0.0.1 0":   `2: weight "0" is not a number from 1 to 255`,
		"a.test\n10.0.0.1 256": `2: weight "256" is not a number from 1 to 255`,
		"a.test\nten 1":        `2: "ten" is not an address`,
		"a..test":              `1: "a..test" is not a domain name`,
		"a.test\na b c":        "2: want a name, or an address and its weight",
	} {
		if _, err := parseWeights([]byte(text)); err == nil || err.Error() != want {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzWeights(f *testing.F) {
	f.Add([]byte("a.test\n10.0.0.1 3 # x\nfd00::1 255"))
	f.Fuzz(func(t *testing.T, src []byte) {
		table, err := parseWeights(src)
		if err != nil {
			return
		}
		for name, of := range table {
			if name != strings.ToLower(name) || !strings.HasSuffix(name, ".") {
				t.Errorf("name %q", name)
			}
			for a, w := range of {
				if w == 0 || !a.IsValid() {
					t.Errorf("%v %d", a, w)
				}
			}
		}
	})
}

func TestWeightFileIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "weights")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w := &weights{path: path}
	if err := w.load(); err == nil {
		t.Error("a missing file was loaded")
	}
	write("a.test\n10.0.0.1 3")
	if err := w.load(); err != nil {
		t.Fatal(err)
	}
	old := w.table.Load()
	write("a.test\n10.0.0.1 x")
	if err := w.load(); err == nil || err.Error() != path+`:2: weight "x" is not a number from 1 to 255` {
		t.Error(err)
	}
	if w.table.Load() != old {
		t.Error("a broken file replaced the weights")
	}
	write("a.test\n10.0.0.1 4")
	if err := w.load(); err != nil || w.table.Load() == old {
		t.Errorf("not loaded again: %v", err)
	}
}

func TestSetup(t *testing.T) {
	for text, want := range map[string]string{
		"loadbalance":                             "",
		"loadbalance round_robin":                 "",
		"loadbalance\nloadbalance":                "",
		"loadbalance weighted f {\n reload 0s\n}": "",
		"loadbalance fair":                        `Corefile:2: unknown policy of loadbalance "fair"; expected one of round_robin, weighted`,
		"loadbalance round_robin x":               `Corefile:2: wrong arguments for "loadbalance": got 2; expected nothing after round_robin`,
		"loadbalance weighted":                    `Corefile:2: wrong arguments for "loadbalance": got 1; expected a file after weighted`,
		"loadbalance weighted f {\n reload x\n}":  `Corefile:3: reload "x" is not a duration such as 30s, or 0 for never`,
		"loadbalance {\n prefer\n}":               `Corefile:3: wrong arguments for "prefer": got none; expected networks in CIDR notation`,
		"loadbalance {\n prefer 10.0.0.1\n}":      `Corefile:3: prefer "10.0.0.1" is not a network in CIDR notation`,
		"loadbalance {\n reload 1s\n}":            `Corefile:3: unknown property of loadbalance "reload"; expected prefer`,
	} {
		env, _ := plugintest.NewEnv()
		_, err := plugintest.Build(env, ". {\n"+text+"\n}", entries())
		if got := fmt.Sprint(err); err == nil && want != "" || err != nil && got != want {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}
