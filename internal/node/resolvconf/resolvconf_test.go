package resolvconf

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

// TestCases runs testdata/*.txtar: the host's file, the pod's settings, and the
// file and notes that come of them.
func TestCases(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no cases", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			parts := make(map[string]string)
			for _, f := range archive.Files {
				parts[f.Name] = string(f.Data)
			}
			dir := t.TempDir()
			host, resolved := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "resolved.conf")
			if err := os.WriteFile(host, []byte(parts["host"]), 0o644); err != nil {
				t.Fatal(err)
			}
			if text, ok := parts["resolved"]; ok {
				if err := os.WriteFile(resolved, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			names := strings.NewReplacer(host, "HOST", resolved, "RESOLVED")

			req := parsePod(t, parts["pod"])
			var notes []string
			req.Host, notes, err = ReadHost(host, resolved)
			if err != nil {
				if got := names.Replace(err.Error()) + "\n"; got != parts["error"] {
					t.Errorf("error %q, want %q", got, parts["error"])
				}
				return
			}
			if parts["error"] != "" {
				t.Fatalf("no error, want %q", parts["error"])
			}
			got, more := Build(req)
			if diff := cmp.Diff(parts["want"], got.String()); diff != "" {
				t.Errorf("resolv.conf (-want +got):\n%s", diff)
			}
			var text strings.Builder
			for _, n := range append(notes, more...) {
				fmt.Fprintln(&text, names.Replace(n))
			}
			if diff := cmp.Diff(parts["notes"], text.String()); diff != "" {
				t.Errorf("notes (-want +got):\n%s", diff)
			}
		})
	}
}

func parsePod(t *testing.T, text string) Request {
	t.Helper()
	r := Request{Namespace: "default", Zone: "cluster.local", ClusterDNS: []string{"169.254.20.10"}}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		switch key, rest := f[0], f[1:]; key {
		case "policy":
			r.Policy = Policy(rest[0])
		case "namespace":
			r.Namespace = rest[0]
		case "zone":
			r.Zone = strings.Join(rest, "")
		case "dns":
			r.ClusterDNS = rest
		case "nameservers":
			r.Extra.Nameservers = rest
		case "searches":
			r.Extra.Searches = rest
		case "options":
			r.Extra.Options = rest
		default:
			t.Fatalf("what is %q?", key)
		}
	}
	return r
}

// The limits in the order they apply: count, then entries that are too long,
// then the joined length.
func TestSearchLimits(t *testing.T) {
	numbered := func(n, length int) (out []string) {
		for i := range n {
			s := fmt.Sprintf("s%03d.", i)
			out = append(out, s+strings.Repeat("x", length-len(s)))
		}
		return out
	}
	long := strings.Repeat("y", MaxSearchLength+1)
	for _, c := range []struct {
		name     string
		searches []string
		kept     int
		notes    []string // beginnings
	}{
		{"all fit", numbered(32, 5), 32, nil},
		{"one more", numbered(33, 5), 32, []string{"33 search domains are more than 32: the last 1 were left out"}},
		{"longest entry", []string{strings.Repeat("y", MaxSearchLength)}, 1, []string{"the search line has 260 characters"}},
		{"too long an entry", []string{"a", long, "b"}, 2, []string{"search domain yyyyyyyyyyyyyyyyyyyy… has more than 253"}},
		{"a long one counts before it is dropped", append(numbered(31, 5), long, "last"), 31, []string{"33 search domains", "search domain yyyy"}},
		// 8 × 253 + 7 blanks = 2031; 16 more make 2048 with the blank before.
		{"exactly full", append(numbered(8, 253), strings.Repeat("z", 16)), 9, []string{"the search line has"}},
		{"one over", append(numbered(8, 253), strings.Repeat("z", 17), "a"), 8, []string{"search domain zzzzzzzzzzzzzzzzz does not fit", "search domain a does not fit", "the search line has"}},
		{"musl's line", numbered(1, 249), 1, []string{"the search line has 256 characters"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, notes := Build(Request{Policy: None, Extra: Config{Searches: c.searches}})
			if len(got.Searches) != c.kept {
				t.Errorf("kept %d, want %d", len(got.Searches), c.kept)
			}
			if n := len(strings.Join(got.Searches, " ")); n > MaxSearchListSize {
				t.Errorf("%d characters", n)
			}
			if !slices.EqualFunc(notes, c.notes, strings.HasPrefix) {
				t.Errorf("notes %q, want %q", notes, c.notes)
			}
		})
	}
}

func TestReadHostErrors(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := ReadHost(filepath.Join(dir, "absent"), ""); err == nil {
		t.Error("an absent file was read")
	}
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, bytes.Repeat([]byte("# comment\n"), maxFileSize/10+1), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ReadHost(big, ""); err == nil || !strings.Contains(err.Error(), "more than 10 MiB") {
		t.Errorf("a huge file: %v", err)
	}
}

func TestHostname(t *testing.T) {
	x63 := strings.Repeat("x", 63)
	for _, c := range []struct{ hostname, pod, want string }{
		{"", "web-0", "web-0"},
		{"db", "web-0", "db"},
		{"", x63, x63},
		{"", x63 + "y", x63},
		{"", strings.Repeat("x", 61) + "-.yyy", strings.Repeat("x", 61)},
	} {
		if got := Hostname(c.hostname, c.pod); got != c.want {
			t.Errorf("Hostname(%q, %q) = %q, want %q", c.hostname, c.pod, got, c.want)
		}
	}
}

func TestHosts(t *testing.T) {
	addrs := []netip.Addr{netip.MustParseAddr("10.244.7.2"), netip.MustParseAddr("fd00::2")}
	for _, c := range []struct{ domain, want string }{
		{"", "10.244.7.2\tdb-0\nfd00::2\tdb-0\n"},
		{Domain("db", "default", "cluster.local"), "10.244.7.2\tdb-0.db.default.svc.cluster.local\tdb-0\nfd00::2\tdb-0.db.default.svc.cluster.local\tdb-0\n"},
		{Domain("", "default", "cluster.local"), "10.244.7.2\tdb-0\nfd00::2\tdb-0\n"},
	} {
		_, got, _ := strings.Cut(Hosts(addrs, "db-0", c.domain), "ip6-allrouters\n")
		if got != c.want {
			t.Errorf("domain %q: got %q, want %q", c.domain, got, c.want)
		}
	}
}

func TestNSSwitch(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"Debian", "passwd: files\nhosts:          files dns\nnetworks: files\n", "passwd: files\nhosts: files dns\nnetworks: files\n"},
		{"systemd", "hosts: mymachines resolve [!UNAVAIL=return] files myhostname dns\n", "hosts: files dns\n"},
		{"no hosts line", "passwd: files\n", "passwd: files\n"},
		{"indented, no newline at the end", "  hosts :resolve", "hosts: files dns\n"},
		{"a comment", "# hosts: resolve\n", "# hosts: resolve\n"},
		{"empty", "", ""},
	} {
		if got := NSSwitch(c.text); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

// Whatever the host's file holds: what is written reads back as the same, and
// the limits hold.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"nameserver 192.0.2.1\nsearch a b.\noptions ndots:2 use-vc\n",
		"search .\n", "search a\nsearch\n", "nameserver\n", "\tnameserver  fe80::1%eth0 # x\n",
		"options :\noptions a: b:: c:1:2\n", "domain x\n;nameserver 1\n#nameserver 2\n", "nameserver 1\r\nsearch \x00 \xff\n",
		"search a..b ...\n", "options ndots:5 ndots ndots:1\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		host, err := Parse(bytes.NewReader(text))
		if err != nil {
			return
		}
		for _, policy := range []Policy{ClusterFirst, Default} {
			c, _ := Build(Request{Policy: policy, Namespace: "ns", Zone: "cluster.local", ClusterDNS: []string{"10.96.0.10"}, Host: host})
			if len(c.Nameservers) > MaxNameservers || len(c.Searches) > MaxSearches || len(strings.Join(c.Searches, " ")) > MaxSearchListSize {
				t.Fatalf("limits: %+v", c)
			}
			again, err := Parse(strings.NewReader(c.String()))
			if err != nil {
				t.Fatalf("%q does not read back: %v", c, err)
			}
			second, _ := Build(Request{Policy: Default, Host: again})
			if first, second := dotless(c), dotless(second); first.String() != second.String() {
				t.Fatalf("written %q, read back %q", first, second)
			}
		}
	})
}

// dotless drops what Parse drops from search entries at each reading.
func dotless(c Config) Config {
	var kept []string
	for _, s := range c.Searches {
		if s = strings.TrimRight(s, "."); s != "" && !slices.Contains(kept, s) {
			kept = append(kept, s)
		}
	}
	c.Searches = kept
	return c
}
