package dns

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/conformance/peer"
)

const reloadCorefile = `.:{PORT} {
    errors
    %s
    hosts {
        192.0.2.%d www.example.org
    }
}
`

// Corefiles that parse and cannot be used, or do not parse.
var badCorefiles = map[string]string{
	"unknown plugin": ".:{PORT} {\n    errors\n    %s\n    nonsense\n}\n",
	"bad argument":   ".:{PORT} {\n    errors\n    %s\n    health 127.0.0.1 1 2\n}\n",
	"open brace":     ".:{PORT} {\n    errors\n    %s\n    hosts {\n",
	"port in use":    ".:{PORT} {\n    errors\n    %s\n    health 127.0.0.1:{BUSY}\n}\n",
}

// TestReload: a changed Corefile is put into service, by the reload plugin or
// told with SIGUSR1; one that is bad is not, the old one serves on, and the next
// good one is taken again.
func TestReload(t *testing.T) {
	t.Parallel() // waits, as TestRandomBytes does
	p := findPrograms(t)
	busy, err := peer.Port()
	if err != nil {
		t.Fatal(err)
	}
	other, err := peer.StartRutterDNS(p.rutter, "other", t.TempDir(), fmt.Sprintf(".:{PORT} {\n    health 127.0.0.1:%d\n}\n", busy))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(other.Kill) // after the parallel tests
	for name, start := range map[string]func(dir, corefile string) (*peer.Nameserver, error){
		"CoreDNS": func(dir, c string) (*peer.Nameserver, error) { return peer.StartCoreDNS(p.coredns, "server", dir, c) },
		"Rutter":  func(dir, c string) (*peer.Nameserver, error) { return peer.StartRutterDNS(p.rutter, "server", dir, c) },
	} {
		for _, plugin := range []string{"", "reload 2s 0s"} {
			t.Run(name+" "+plugin, func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				s, err := start(dir, fmt.Sprintf(reloadCorefile, plugin, 1))
				if err != nil {
					t.Fatal(err)
				}
				defer s.Kill()
				_, port, _ := strings.Cut(s.Addr, ":")
				load := func(text string) {
					t.Helper()
					file := filepath.Join(dir, "server.Corefile")
					text = strings.NewReplacer("{PORT}", port, "{BUSY}", fmt.Sprint(busy)).Replace(text)
					if err := os.WriteFile(file+".new", []byte(text), 0o644); err != nil {
						t.Fatal(err)
					}
					if err := os.Rename(file+".new", file); err != nil {
						t.Fatal(err)
					}
					if plugin == "" {
						if err := s.Signal(unix.SIGUSR1); err != nil {
							t.Fatal(err)
						}
					}
				}
				address := func() (string, error) {
					m := new(dns.Msg).SetQuestion("www.example.org.", dns.TypeA)
					c := dns.Client{Timeout: time.Second}
					r, _, err := c.Exchange(m, s.Addr)
					if err != nil || len(r.Answer) != 1 {
						return "", fmt.Errorf("reply %v, %w", r, err)
					}
					return r.Answer[0].(*dns.A).A.String(), nil
				}
				serves := func(want string) {
					t.Helper()
					if err := s.WaitFor("answering "+want, time.Minute, func() error {
						if got, err := address(); err != nil || got != want {
							return fmt.Errorf("%s, %w", got, err)
						}
						return nil
					}); err != nil {
						t.Fatal(err)
					}
				}
				serves("192.0.2.1")
				last := 1
				for what, bad := range badCorefiles {
					if plugin != "" && what != "unknown plugin" && what != "port in use" {
						continue // it takes its seconds; the rest is the same code
					}
					last++
					load(fmt.Sprintf(reloadCorefile, plugin, last))
					serves(fmt.Sprintf("192.0.2.%d", last))
					said := len(log(t, dir))
					load(fmt.Sprintf(bad, plugin))
					// What they say differs; that they say something about it does not.
					if err := s.WaitFor("refusing "+what, time.Minute, func() error {
						for line := range strings.Lines(log(t, dir)[said:]) {
							l := strings.ToLower(line)
							if strings.Contains(l, "error") || strings.Contains(l, "warn") {
								return nil
							}
						}
						return fmt.Errorf("no word about it")
					}); err != nil {
						t.Fatal(err)
					}
					if got, err := address(); err != nil || got != fmt.Sprintf("192.0.2.%d", last) {
						t.Errorf("%s: afterwards %s (%v), want the old answer", what, got, err)
					}
				}
				load(fmt.Sprintf(reloadCorefile, plugin, last+1))
				serves(fmt.Sprintf("192.0.2.%d", last+1))
			})
		}
	}
}

// log is all that the server has written.
func log(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "server.log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
