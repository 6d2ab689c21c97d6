package etcd

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/tools/txtar"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

var order = []plugin.Entry{{Name: name, Setup: Setup, Effect: plugin.Answers}, plugintest.Records(plugin.Answers)}

// startEtcd runs a real etcd until the test ends and returns its URL.
func startEtcd(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("etcd")
	if err != nil {
		t.Skip("etcd is not installed (Debian: etcd-server)")
	}
	var urls [2]string
	for i := range urls {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		urls[i] = "http://" + l.Addr().String()
		l.Close()
	}
	var out bytes.Buffer
	cmd := exec.Command(path, "--data-dir", t.TempDir(), "--listen-client-urls", urls[0], "--advertise-client-urls", urls[0],
		"--listen-peer-urls", urls[1], "--initial-advertise-peer-urls", urls[1], "--initial-cluster", "default="+urls[1])
	cmd.Env = append(cmd.Environ(), "ETCD_UNSUPPORTED_ARCH=arm64")
	cmd.Stderr = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(out.String())
		}
	})
	return urls[0]
}

func client(t *testing.T, url string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{url}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func put(t *testing.T, c *clientv3.Client, key, value string, opts ...clientv3.OpOption) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // etcd may be starting
	defer cancel()
	if _, err := c.Put(ctx, key, value, opts...); err != nil {
		t.Fatal(err)
	}
}

// TestScripts puts the keys of each case into etcd, asks, and compares. Serials
// are the time.
func TestScripts(t *testing.T) {
	url := startEtcd(t)
	c := client(t, url)
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	serial := regexp.MustCompile(`(SOA \S+ \S+) [0-9]+`)
	for i, p := range paths {
		ar, err := txtar.ParseFile(p)
		if err != nil {
			t.Fatal(err)
		}
		prefix := fmt.Sprintf("case%d", i)
		parts := make(map[string]string)
		for _, f := range ar.Files {
			parts[f.Name] = string(f.Data)
		}
		for line := range strings.Lines(parts["keys"]) {
			if key, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
				put(t, c, "/"+prefix+key, value)
			}
		}
		text := strings.NewReplacer("$URL", url, "$PATH", prefix).Replace(parts["Corefile"])
		s := plugintest.Start(t, text, order...)
		var got strings.Builder
		for line := range strings.Lines(parts["script"]) {
			question, ok := strings.CutPrefix(line, "? ")
			if !ok {
				if strings.HasPrefix(line, "#") {
					got.WriteString(line)
				}
				continue
			}
			m, err := s.Ask(question)
			if err != nil {
				t.Fatal(err)
			}
			got.WriteString(line + serial.ReplaceAllString(plugintest.Text(m), "$1 NOW"))
		}
		if diff := cmp.Diff(parts["script"], got.String()); diff != "" {
			t.Errorf("%s: -want +got:\n%s", p, diff)
		}
	}
}

// TestLease: what is left of a lease counts as TTL, within limits.
func TestLease(t *testing.T) {
	url := startEtcd(t)
	c := client(t, url)
	put(t, c, "/warm/up", "x")
	lease, err := c.Grant(t.Context(), 600)
	if err != nil {
		t.Fatal(err)
	}
	put(t, c, "/skydns/test/own", `{"host":"192.0.2.1","ttl":50}`, clientv3.WithLease(lease.ID))
	put(t, c, "/skydns/test/none", `{"host":"192.0.2.1"}`, clientv3.WithLease(lease.ID))
	for block, want := range map[string]map[string][2]uint32{
		"":                      {"own.test.": {50, 50}, "none.test.": {500, 600}},
		"\nmax-lease-ttl 1m":    {"own.test.": {50, 50}, "none.test.": {60, 60}},
		"\nmin-lease-ttl 5000s": {"none.test.": {5000, 5000}},
	} {
		s := plugintest.Start(t, "test {\netcd {\nendpoint "+url+block+"\n}\n}\n", order...)
		for name, bounds := range want {
			m, err := s.Ask(name + " A")
			if err != nil || len(m.Answer) != 1 {
				t.Fatalf("%s: %v %v", name, m, err)
			}
			if ttl := m.Answer[0].Header().Ttl; ttl < bounds[0] || ttl > bounds[1] {
				t.Errorf("%q, %s: TTL %d, want %v", block, name, ttl, bounds)
			}
		}
	}
}

// TestGone: without etcd the answer is SERVFAIL with an SOA, and the error says
// why.
func TestGone(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for a time-out of five seconds")
	}
	s := plugintest.Start(t, "test {\netcd {\nendpoint http://127.0.0.1:1\n}\n}\n", order...)
	r, _, _ := plugintest.ParseQuestion("a.test. A")
	w := &plugintest.Writer{}
	rcode, err := s.Block.First().ServeDNS(t.Context(), w, r)
	if rcode != dns.RcodeSuccess || err == nil || w.Msg.Rcode != dns.RcodeServerFailure || len(w.Msg.Ns) != 1 {
		t.Errorf("got %d, %v, %v", rcode, err, w.Msg)
	}
}

func TestRefuses(t *testing.T) {
	dir := plugintest.WriteFiles(t, map[string]string{"junk": "junk"})
	block := func(property string) string { return "etcd {\n" + property + "\n}" }
	plugintest.Refuses(t, order, [][2]string{
		{"etcd a..b", "empty label"},
		{block("path"), "wrong arguments"},
		{block("endpoint"), "wrong arguments"},
		{block("credentials a"), "wrong arguments"},
		{block("tls a b c d"), "wrong arguments"},
		{block("tls a b"), "client certificate"},
		{block("tls " + dir + "/none"), "no such file"},
		{block("tls " + dir + "/junk"), "no certificate"},
		{block("min-lease-ttl x"), "not a duration"},
		{block("max-lease-ttl -1s"), "too short"},
		{block("max-lease-ttl 5000000000"), "too long"},
		{block("endpoints x"), `did you mean "endpoint"?`},
	})
	plugintest.Accepts(t, order, "etcd", "etcd a.test 10.0.0.0/8 {\npath a/b\nendpoint http://127.0.0.1:1 http://127.0.0.1:2\ntls\ncredentials a b\nfallthrough\nmin-lease-ttl 5\nmax-lease-ttl 1h\nstubzones\ndebug\nupstream\n}")
}

func TestKeys(t *testing.T) {
	for name, want := range map[string]string{
		"x.web.sky.test.": "/skydns/test/sky/web/x", ".": "/skydns", "*.web.test.": "/skydns/test/web*", "a.any.test.": "/skydns/test*",
	} {
		key, star := keyOf("skydns", name)
		if star {
			key += "*"
		}
		if key != want {
			t.Errorf("%s: got %s, want %s", name, key, want)
		}
	}
	for key, want := range map[string]string{"/skydns/test/sky/web/x": "x.web.sky.test.", "/skydns/": ".", "/skydns/test/": "test."} {
		if got := domainOf(key); got != want {
			t.Errorf("%s: got %s, want %s", key, got, want)
		}
	}
}

// FuzzValue: any value is refused or makes records that can be packed.
func FuzzValue(f *testing.F) {
	f.Add("/skydns/test/a", []byte(`{"host":"192.0.2.1","port":80,"priority":1,"weight":2,"ttl":3,"group":"g","targetstrip":1}`))
	f.Add("/skydns/test/a/b", []byte(`{"host":"fe80::1%eth0","text":"t","mail":true}`))
	f.Add("/", []byte(`{"text":"`+strings.Repeat("x", 600)+`"}`))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		s, err := parse(key, value)
		if err != nil || !strings.HasPrefix(key, "/") || len(s.Text) > 60000 {
			return
		}
		kind, _ := s.kind()
		if _, ok := dns.IsDomainName(s.target()); !ok {
			return // packing refuses it, and the server says SERVFAIL
		}
		var rr dns.RR
		switch kind {
		case dns.TypeA, dns.TypeAAAA:
			rr = s.address("a.test.")
		case dns.TypeTXT:
			rr = &dns.TXT{Hdr: s.header("a.test.", kind), Txt: s.texts()}
			if joined := strings.Join(s.texts(), ""); joined != s.Text {
				t.Fatalf("text %q became %q", s.Text, joined)
			}
		default:
			rr = &dns.CNAME{Hdr: s.header("a.test.", kind), Target: s.target()}
		}
		m := new(dns.Msg)
		m.SetQuestion("a.test.", kind)
		m.Answer = []dns.RR{rr}
		if _, err := m.Pack(); err != nil && kind != dns.TypeTXT {
			t.Fatalf("%s %s: %v", key, value, err)
		}
		if got := grouped([]service{s, s}); len(got) != 2 {
			t.Fatalf("%d of two equal services are left", len(got))
		}
	})
}
