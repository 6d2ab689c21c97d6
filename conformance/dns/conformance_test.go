package dns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/tools/txtar"

	"github.com/rutter-project/rutter/conformance/peer"
)

// fullReports is how many differing answers of a case are shown whole; of the
// others a line is shown.
const fullReports = 3

func TestConformance(t *testing.T) {
	files, err := filepath.Glob("testdata/corefiles/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no cases in testdata/corefiles", err)
	}
	env := newEnvironment(t)
	compared := 0
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".txtar")
		t.Run(name, func(t *testing.T) {
			c := env.start(t, name, f)
			for _, q := range c.queries {
				c.compareQuery(t, q)
			}
			if c.odd {
				for _, m := range oddMessages() {
					c.compareMessage(t, m)
				}
			}
			c.finish(t)
			compared += c.compared
		})
	}
	t.Logf("%d answers compared", compared)
	for _, k := range known {
		if k.seen == 0 && len(env.ran) == len(files) {
			t.Errorf("%q is no difference any more: remove it from known_test.go and docs/compatibility.md", k.reason)
		}
	}
}

// environment is what all cases share.
type environment struct {
	programs programs
	registry *peer.Registry
	upstream *upstream
	ran      map[string]bool
}

type programs struct{ rutter, registry, coredns string }

// findPrograms skips the test when nothing has been built, and fails it when
// the environment says that something should have been.
func findPrograms(t *testing.T) programs {
	find := func(env, path string) string {
		p := os.Getenv(env)
		if p == "" {
			p = filepath.Join("..", "..", "bin", path)
		}
		if _, err := os.Stat(p); err != nil {
			if os.Getenv("RUTTER_BIN") != "" {
				t.Fatalf("%v (make build builds Rutter's programs, scripts/build-peers.sh the peers)", err)
			}
			t.Skipf("%v (make build builds Rutter's programs, scripts/build-peers.sh the peers)", err)
		}
		abs, err := filepath.Abs(p)
		if err != nil {
			t.Fatal(err)
		}
		return abs
	}
	return programs{find("RUTTER_BIN", "rutter"), find("RUTTER_REGISTRY_BIN", "rutter-registry"), find("COREDNS_BIN", "peers/coredns")}
}

func newEnvironment(t *testing.T) *environment {
	e := &environment{programs: findPrograms(t), ran: map[string]bool{}}
	var err error
	if e.upstream, err = startUpstream(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.upstream.close)
	e.registry, err = peer.StartRegistry(e.programs.registry, t.TempDir(), "--service-cidr", "10.96.0.0/16,fd00:10:96::/108")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.registry.Stop)
	ctx := context.Background()
	if err := errors.Join(loadCluster(ctx, e.registry), waitForKubernetesService(ctx, e.registry)); err != nil {
		t.Fatal(err)
	}
	return e
}

// comparison is a case while it runs.
type comparison struct {
	name         string
	queries      []query
	odd          bool // malformed messages too
	core, rutter *client
	servers      [2]*peer.Nameserver
	compared     int
	positive     int // answers with records in the answer section
	slowest      [2]time.Duration
	differ       []string // a line each
}

// start starts both servers for a case.
func (e *environment) start(t *testing.T, name, file string) *comparison {
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	e.ran[name] = true
	c := &comparison{name: name}
	var corefile string
	dirs := [2]string{t.TempDir(), t.TempDir()}
	for _, f := range archive.Files {
		switch f.Name {
		case "Corefile":
			corefile = strings.NewReplacer("{KUBECONFIG}", e.registry.Kubeconfig, "{UPSTREAM}", e.upstream.addr).Replace(string(f.Data))
		case "queries":
			if c.queries, err = readCorpus(string(f.Data)); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
		case "odd":
			c.odd = true
		case "etcd": // what is in the etcd at {ETCD}
			etcd := startEtcd(t)
			if err := etcd.load(string(f.Data)); err != nil {
				t.Fatal(err)
			}
			corefile = strings.ReplaceAll(corefile, "{ETCD}", etcd.url)
		default:
			for _, d := range dirs {
				path := filepath.Join(d, f.Name)
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, f.Data, 0o644)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	started := make(chan error)
	go func() {
		var err error
		c.servers[0], err = peer.StartCoreDNS(e.programs.coredns, "coredns", dirs[0], corefile)
		started <- err
	}()
	go func() {
		var err error
		c.servers[1], err = peer.StartRutterDNS(e.programs.rutter, "rutter", dirs[1], corefile)
		started <- err
	}()
	err = errors.Join(<-started, <-started)
	if err != nil && c.servers[0] != nil && strings.Contains(err.Error(), "that Rutter does not have") {
		defer t.Skipf("Rutter lacks a plugin of this case: %v", err)
		err = nil
	}
	t.Cleanup(func() {
		for _, s := range c.servers {
			if s != nil {
				s.Kill() // health's lameduck would only delay the end
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	c.core, c.rutter = &client{addr: c.servers[0].Addr}, &client{addr: c.servers[1].Addr}
	t.Cleanup(func() { c.core.close(); c.rutter.close() })
	return c
}

// compareQuery asks both and compares. A difference must show three times in a
// row: a cache may count a TTL down between the two questions.
func (c *comparison) compareQuery(t *testing.T, q query) {
	c.compared++
	var diffs []difference
	var report string
	for range 3 {
		m, tcp, err := q.message()
		if err != nil {
			t.Fatal(err)
		}
		wire, err := m.Pack()
		if err != nil {
			t.Fatalf("%s: %v", q.line, err)
		}
		if diffs, report, err = c.exchange(wire, tcp, 6*time.Second); err != nil {
			t.Fatalf("%s: %v\n%s\n%s", q.line, err, c.servers[0].Log(), c.servers[1].Log())
		}
		if len(diffs) == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	c.record(t, q.line, diffs, report)
}

// compareMessage sends both the same bytes.
func (c *comparison) compareMessage(t *testing.T, o oddMessage) {
	for _, tcp := range []bool{false, true} {
		c.compared++
		what := "odd message: " + o.name
		if tcp {
			what = "+tcp " + what
		}
		var diffs []difference
		var report string
		for _, timeout := range []time.Duration{200 * time.Millisecond, 2 * time.Second} {
			var err error
			diffs, report, err = c.exchange(o.wire, tcp, timeout)
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if len(diffs) == 0 {
				break
			}
		}
		if len(diffs) > 0 {
			c.record(t, what, diffs, report)
		}
	}
}

// exchange asks both servers and returns in what their replies differ, with
// both replies for a reader.
func (c *comparison) exchange(wire []byte, tcp bool, timeout time.Duration) ([]difference, string, error) {
	type result struct {
		reply []byte
		err   error
	}
	other := make(chan result, 1)
	start := time.Now()
	go func() {
		reply, err := c.rutter.ask(wire, tcp, timeout)
		c.slowest[1] = max(c.slowest[1], time.Since(start))
		other <- result{reply, err}
	}()
	coreReply, coreErr := c.core.ask(wire, tcp, timeout)
	c.slowest[0] = max(c.slowest[0], time.Since(start))
	r := <-other
	// No reply and a closed connection are outcomes like others.
	if coreErr != nil || r.err != nil {
		if (coreErr == nil) != (r.err == nil) {
			core, rutter := outcome(coreReply, coreErr), outcome(r.reply, r.err)
			return []difference{{part: "reply", text: fmt.Sprintf("%s, not %s", firstLine(rutter), firstLine(core))}}, both(core, rutter), nil
		}
		if errors.Is(coreErr, errNoReply) != errors.Is(r.err, errNoReply) {
			return []difference{{part: "reply", text: fmt.Sprintf("%v, not %v", r.err, coreErr)}}, "", nil
		}
		return nil, "", nil
	}
	var core, rutter dns.Msg
	if err := errors.Join(core.Unpack(coreReply), rutter.Unpack(r.reply)); err != nil {
		if string(coreReply) == string(r.reply) {
			return nil, "", nil
		}
		return []difference{{part: "reply", text: fmt.Sprintf("%x, not %x (%v)", r.reply, coreReply, err)}}, "", nil
	}
	if len(core.Answer) > 0 {
		c.positive++
	}
	diffs := compare(&core, &rutter)
	if len(diffs) == 0 {
		return nil, "", nil
	}
	return diffs, both(core.String(), rutter.String()), nil
}

func outcome(reply []byte, err error) string {
	if err != nil {
		return err.Error()
	}
	var m dns.Msg
	if err := m.Unpack(reply); err != nil {
		return fmt.Sprintf("%x (%v)", reply, err)
	}
	return m.String()
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

func both(core, rutter string) string {
	indent := func(s string) string { return "    " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n    ") }
	return "  CoreDNS:\n" + indent(core) + "\n  Rutter:\n" + indent(rutter)
}

// record takes note of a difference that is not known.
func (c *comparison) record(t *testing.T, what string, diffs []difference, report string) {
	var lines []string
	for _, d := range diffs {
		if !isKnown(c.name, what, d) {
			lines = append(lines, d.part+": "+d.text)
		}
	}
	if len(lines) == 0 {
		return
	}
	c.differ = append(c.differ, what+"  "+strings.Join(lines, "; "))
	if len(c.differ) <= fullReports {
		t.Errorf("%s\n  %s\n%s", what, strings.Join(lines, "\n  "), report)
	}
}

func (c *comparison) finish(t *testing.T) {
	if n := len(c.differ); n > 0 {
		t.Errorf("%d of %d answers differ:\n%s", n, c.compared, strings.Join(c.differ, "\n"))
	}
	if c.positive == 0 {
		t.Error("no answer had a record: does the case ask what it means to?")
	}
	t.Logf("%d answers compared, %d with records; the slowest took CoreDNS %s and Rutter %s", c.compared, c.positive, c.slowest[0].Round(time.Millisecond), c.slowest[1].Round(time.Millisecond))
	for _, s := range c.servers {
		select {
		case <-s.Done():
			t.Errorf("%s ended:\n%s", s.Name, s.Log())
		default:
		}
	}
}
