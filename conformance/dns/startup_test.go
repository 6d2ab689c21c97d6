package dns

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/conformance/peer"
)

// knownStartup lists the Corefiles that Rutter treats in another way, with the
// reason.
var knownStartup = map[string]string{
	"extra closing brace": `CoreDNS serves a zone called "}."`,
}

// TestStartup: what one server refuses to start with, the other refuses too.
func TestStartup(t *testing.T) {
	text, err := os.ReadFile("testdata/startup.txt")
	if err != nil {
		t.Fatal(err)
	}
	env := newEnvironment(t)
	for _, c := range strings.Split(string(text), "\n== ")[1:] {
		name, corefile, _ := strings.Cut(c, "\n")
		corefile = strings.TrimSpace(corefile) + "\n"
		if !opensBlock.MatchString(corefile) {
			corefile = ".:{PORT} {\n" + corefile + "}\n"
		}
		corefile = strings.ReplaceAll(corefile, "{KUBECONFIG}", env.registry.Kubeconfig)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			core, coreLog := starts(t, env.programs.coredns, nil, corefile)
			rutter, rutterLog := starts(t, env.programs.rutter, []string{"dns"}, corefile)
			if !rutter && strings.Contains(rutterLog, "that Rutter does not have") {
				t.Skip(rutterLog)
			}
			reason, isKnown := knownStartup[name]
			if (core == rutter) == isKnown {
				t.Errorf("CoreDNS starts: %t, Rutter starts: %t (known: %q)\n%s\nCoreDNS: %s\nRutter:  %s", core, rutter, reason, corefile, coreLog, rutterLog)
			}
			if !rutter && strings.Count(rutterLog, "\n") > 0 {
				t.Errorf("Rutter says it in more than a line: %s", rutterLog)
			}
		})
	}
}

var opensBlock = regexp.MustCompile(`(?m)^(import .*\n|\(.*|\S*:\S* ?(,|\{|$|.* \{))`)

// starts tells whether a server starts with a Corefile, and what it says.
func starts(t *testing.T, program string, args []string, corefile string) (bool, string) {
	t.Helper()
	port, err := peer.Port()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	text, err := peer.Corefile(corefile, dir, port)
	if err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "Corefile")
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := peer.Start(peer.Command{Name: "server", Dir: dir, Args: append(append([]string{program}, args...), "-conf", conf, "-dns.port", fmt.Sprint(port))})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	m := new(dns.Msg).SetQuestion("ready.invalid.", dns.TypeA)
	addrs := []string{"127.0.0.1", "[::1]"}
	client := dns.Client{Timeout: 2 * time.Second, Net: "tcp"}
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		select {
		case <-p.Done():
			return false, p.Log()
		case <-time.After(10 * time.Millisecond):
		}
		for _, a := range addrs {
			conn, err := client.Dial(fmt.Sprintf("%s:%d", a, port))
			if err != nil {
				continue
			}
			_ = conn.SetDeadline(time.Now().Add(time.Second))
			_ = conn.WriteMsg(m)
			_ = conn.Close()
			// A server may open its sockets and end all the same.
			select {
			case <-p.Done():
				return false, p.Log()
			case <-time.After(50 * time.Millisecond):
				return true, p.Log()
			}
		}
	}
	t.Fatalf("%s neither ends nor listens after 30 s: %s", program, p.Log())
	return false, ""
}
