// Package xtables runs the iptables programs: it finds those of a host, tells
// their two back ends apart and chooses one, lists tables and restores rules,
// waits for the lock of all who change rules, and says who holds it.
//
// The same programs come twice, for the two places in the kernel that hold
// rules: nft, for nf_tables, and legacy, for ip_tables. Packets see the rules of
// both, so all programs of a host should use one.
package xtables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/proxy/netns"
)

// Backend is the part of the kernel that a program writes to.
type Backend string

// The back ends.
const (
	NFT    Backend = "nft"
	Legacy Backend = "legacy"
)

// Programs are the programs of one address family and back end, for the network
// namespace of the thread that found them. Its methods may be called by several
// goroutines, from any thread.
type Programs struct {
	V6      bool
	Backend Backend
	Version Version

	name  string // iptables, ip6tables-legacy, …
	space *netns.Namespace
}

// Version is that of the programs, as in 1.8.9.
type Version [3]int

// AtLeast compares versions.
func (v Version) AtLeast(major, minor, patch int) bool {
	for i, n := range [3]int{major, minor, patch} {
		if v[i] != n {
			return v[i] > n
		}
	}
	return true
}

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

// RandomFully tells whether MASQUERADE knows --random-fully.
func (p *Programs) RandomFully() bool { return p.Version.AtLeast(1, 6, 2) }

func (p *Programs) String() string {
	return fmt.Sprintf("%s v%s (%s)", p.name, p.Version, p.Backend)
}

// Name is that of the plain program: "iptables", "ip6tables-legacy".
func (p *Programs) Name() string { return p.name }

// Close lets go of the network namespace.
func (p *Programs) Close() error { return p.space.Close() }

// ErrMissing tells that a host has no iptables programs.
var ErrMissing = errors.New("not found in PATH: install the package iptables")

// All returns the programs of a family: those that are simply called iptables
// first, then those of the other back end, if the host has them.
func All(v6 bool) ([]*Programs, error) {
	base := "iptables"
	if v6 {
		base = "ip6tables"
	}
	var found []*Programs
	var errs []error
	for _, name := range []string{base, base + "-nft", base + "-legacy"} {
		p, err := look(name, v6)
		switch {
		case errors.Is(err, exec.ErrNotFound):
		case err != nil:
			errs = append(errs, err)
		case len(found) == 0 || found[0].Backend != p.Backend:
			found = append(found, p)
		default:
			p.Close()
		}
	}
	if len(found) > 0 {
		return found, nil
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return nil, fmt.Errorf("%s: %w", base, ErrMissing)
}

var versionLine = regexp.MustCompile(`v(\d+)\.(\d+)(?:\.(\d+))?(?:.*\((nf_tables|legacy)\))?`)

func look(name string, v6 bool) (*Programs, error) {
	for _, suffix := range []string{"", "-save", "-restore"} {
		if _, err := exec.LookPath(name + suffix); err != nil {
			return nil, err
		}
	}
	out, err := exec.Command(name, "--version").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%s --version: %w: %s", name, err, firstLine(out))
	}
	p := &Programs{name: name, V6: v6}
	if p.Version, p.Backend, err = parseVersion(string(out)); err != nil {
		return nil, fmt.Errorf("%s --version: %w", name, err)
	}
	if p.space, err = netns.Present(); err != nil {
		return nil, err
	}
	return p, nil
}

// parseVersion reads what --version says. Before 1.8 there was one back end,
// and it had no name.
func parseVersion(s string) (v Version, b Backend, err error) {
	m := versionLine.FindStringSubmatch(s)
	if m == nil {
		return v, "", fmt.Errorf("no version in %q", firstLine([]byte(s)))
	}
	for i := range v {
		v[i], _ = strconv.Atoi(m[i+1])
	}
	b = Legacy
	if m[4] == "nf_tables" {
		b = NFT
	}
	return v, b, nil
}

// Save lists a table in the form of iptables-save, without counters.
func (p *Programs) Save(ctx context.Context, table string) ([]byte, error) {
	if !p.hasTable(table) {
		return nil, nil
	}
	out, err := p.run(ctx, nil, nil, p.name+"-save", "-t", table)
	if err != nil {
		return nil, err
	}
	if bytes.Contains(out, []byte("is incompatible, use 'nft' tool")) {
		family := "ip"
		if p.V6 {
			family = "ip6"
		}
		return nil, fmt.Errorf("%s-save: table %s has rules that another program wrote in nftables' own form, which iptables cannot read: "+
			"move them to a table of their own (nft list table %s %s shows them)", p.name, table, family, table)
	}
	return out, nil
}

// Restore carries out input in the form of iptables-restore: chains that it
// declares are emptied first, others stay. Each table's part is carried out
// wholly or not at all. An input that is not taken gives a *RestoreError.
func (p *Programs) Restore(ctx context.Context, input []byte) error {
	return p.RestoreAs(ctx, input, nil)
}

// RestoreAs is Restore; started is called with the process that does it before
// it is given anything to do.
func (p *Programs) RestoreAs(ctx context.Context, input []byte, started func(pid int)) error {
	_, err := p.run(ctx, input, started, p.name+"-restore", p.wait("--noflush")...)
	return err
}

// Check carries out nothing, but tells whether Restore would understand input.
func (p *Programs) Check(ctx context.Context, input []byte) error {
	_, err := p.run(ctx, input, nil, p.name+"-restore", p.wait("--noflush", "--test")...)
	return err
}

// Run runs the plain program, as in Run(ctx, "-t", "nat", "-D", …).
func (p *Programs) Run(ctx context.Context, args ...string) ([]byte, error) {
	return p.run(ctx, nil, nil, p.name, p.wait(args...)...)
}

// lockWait is how long a program waits for the lock, in seconds. Who calls
// tries again; in between it can say what it waits for.
const lockWait = 5

func (p *Programs) wait(args ...string) []string {
	if p.Backend == NFT || !p.Version.AtLeast(1, 6, 2) {
		return args // no lock; or restore cannot wait for it
	}
	return append([]string{"-w", strconv.Itoa(lockWait)}, args...)
}

// RestoreError is a refusal of the input by the program or the kernel.
type RestoreError struct {
	Program string
	Line    int // of the input; 0 if not known. The kernel names that of COMMIT.
	Text    string
}

func (e *RestoreError) Error() string { return e.Program + ": " + e.Text }

// LockedError tells that another program held the lock for longer than is
// waited for it.
type LockedError struct {
	Program string
	Holder  string // "iptables (pid 7)", or empty if not known
}

func (e *LockedError) Error() string {
	who := e.Holder
	if who == "" {
		who = "another program"
	}
	return fmt.Sprintf("%s: %s holds the lock %s for more than %d s: rules cannot be changed until it lets go; tried again", e.Program, who, lockFile, lockWait)
}

var errorLine = regexp.MustCompile(`(?m)line:? (\d+)`)

// refusal tells what the program's failure was.
func (p *Programs) refusal(program string, code int, stderr string) error {
	const resourceProblem = 4
	if code == resourceProblem && strings.Contains(stderr, "xtables lock") {
		return &LockedError{Program: program, Holder: lockHolder()}
	}
	if strings.Contains(stderr, "Permission denied") || strings.Contains(stderr, "you must be root") || strings.Contains(stderr, "Operation not permitted") {
		return fmt.Errorf("%s: %w: programming services needs CAP_NET_ADMIN in this network namespace: run as root, or grant the capability", program, unix.EPERM)
	}
	e := &RestoreError{Program: program, Text: strings.Join(strings.Fields(stderr), " ")}
	if e.Text == "" {
		e.Text = fmt.Sprintf("exit status %d", code)
	}
	if m := errorLine.FindStringSubmatch(stderr); m != nil {
		e.Line, _ = strconv.Atoi(m[1])
	}
	return e
}

func firstLine(b []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	return line
}
