package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"
)

var (
	names = Names{DNS: []string{"localhost", "kubernetes.default.svc.cluster.local"}, IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}}
	start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

const day = 24 * time.Hour

func open(t *testing.T, dir string, n Names) *Authority {
	t.Helper()
	a, err := Open(dir, n)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func ensure(t *testing.T, a *Authority, now time.Time) map[string]string {
	t.Helper()
	changes, err := a.Ensure(now)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]string{}
	for _, c := range changes {
		m[c.Name] = c.Why
	}
	return m
}

func load(t *testing.T, a *Authority, name string) *x509.Certificate {
	t.Helper()
	c, err := a.cert(name)
	if err != nil || c == nil {
		t.Fatalf("%s: %v, %v", name, c, err)
	}
	return c
}

// verify checks a leaf the way its user does.
func verify(t *testing.T, a *Authority, name, dns string, usage x509.ExtKeyUsage, now time.Time) {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(load(t, a, "ca"))
	if _, err := load(t, a, name).Verify(x509.VerifyOptions{Roots: pool, DNSName: dns, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	cert, key, _, err := a.Pair(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.X509KeyPair(cert, key); err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

func TestFirstStart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	a := open(t, dir, names)
	got := ensure(t, a, start)
	for _, name := range []string{"ca", "serving", "admin", "agent", "sa"} {
		if got[name] != whyMissing {
			t.Errorf("%s: made because %q", name, got[name])
		}
	}
	for _, host := range []string{"localhost", "kubernetes.default.svc.cluster.local", "127.0.0.1", "::1"} {
		verify(t, a, "serving", host, x509.ExtKeyUsageServerAuth, start)
	}
	verify(t, a, "admin", "", x509.ExtKeyUsageClientAuth, start)
	verify(t, a, "agent", "", x509.ExtKeyUsageClientAuth, start)
	if s := load(t, a, "admin").Subject; s.CommonName != AdminUser || s.Organization[0] != AdminGroup {
		t.Errorf("admin is %v", s)
	}
	if s := load(t, a, "agent").Subject; s.CommonName != AgentUser || len(s.Organization) != 1 || s.Organization[0] != AgentGroup {
		t.Errorf("agent is %v", s)
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, "ca.key": 0o600, "serving.key": 0o600, "admin.key": 0o600, "agent.key": 0o600, "sa.key": 0o600, "ca.crt": 0o644} {
		if path != dir {
			path = filepath.Join(dir, path)
		}
		st, err := os.Stat(path)
		if err != nil {
			t.Error(err)
		} else if st.Mode().Perm() != want {
			t.Errorf("%s has mode %o, want %o", path, st.Mode().Perm(), want)
		}
	}
	if again := ensure(t, a, start.Add(day)); len(again) != 0 {
		t.Errorf("second start changed %v", again)
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 10 {
		t.Errorf("files: %v", entries)
	}
}

// TestRenewal walks the clock: nothing before two thirds of the life, renewal
// after, at the latest moment too, always with the same key.
func TestRenewal(t *testing.T) {
	for _, tc := range []struct {
		after time.Duration
		want  []string
	}{
		{240 * day, nil},
		{245 * day, []string{"serving", "admin", "agent"}},
		{400 * day, []string{"serving", "admin", "agent"}},            // was off for a year
		{2500 * day, []string{"ca", "serving", "admin", "agent"}},     // the CA's last third
		{11 * 365 * day, []string{"ca", "serving", "admin", "agent"}}, // even the CA expired
	} {
		a := open(t, filepath.Join(t.TempDir(), "pki"), names)
		ensure(t, a, start)
		before := map[string]*x509.Certificate{}
		for _, n := range []string{"ca", "serving", "admin", "agent"} {
			before[n] = load(t, a, n)
		}
		now := start.Add(tc.after)
		got := ensure(t, a, now)
		if len(got) != len(tc.want) {
			t.Errorf("after %v: %v, want %v", tc.after, got, tc.want)
		}
		for _, n := range tc.want {
			if got[n] == "" {
				t.Errorf("after %v: %s not renewed", tc.after, n)
			}
			c := load(t, a, n)
			if !bytes.Equal(c.RawSubjectPublicKeyInfo, before[n].RawSubjectPublicKeyInfo) {
				t.Errorf("after %v: %s has another key", tc.after, n)
			}
			if n != "ca" && c.NotAfter.After(load(t, a, "ca").NotAfter) {
				t.Errorf("after %v: %s outlives its CA", tc.after, n)
			}
		}
		verify(t, a, "serving", "localhost", x509.ExtKeyUsageServerAuth, now)
		verify(t, a, "agent", "", x509.ExtKeyUsageClientAuth, now)
		if due, err := a.Due(); err != nil || !due.After(now) {
			t.Errorf("after %v: due again at %v, %v", tc.after, due, err)
		}
	}
}

// TestCARenewalKeepsTrust: who trusts the old CA certificate accepts what the
// renewed one issues, and the other way round.
func TestCARenewalKeepsTrust(t *testing.T) {
	a := open(t, filepath.Join(t.TempDir(), "pki"), names)
	ensure(t, a, start)
	oldCA, oldLeaf := load(t, a, "ca"), load(t, a, "agent")
	now := start.Add(2500 * day)
	ensure(t, a, now)
	newCA, newLeaf := load(t, a, "ca"), load(t, a, "agent")
	if oldCA.Equal(newCA) {
		t.Fatal("the CA was not renewed")
	}
	for _, tc := range []struct {
		ca, leaf *x509.Certificate
		at       time.Time
	}{{oldCA, newLeaf, now}, {newCA, oldLeaf, newCA.NotBefore}} {
		pool := x509.NewCertPool()
		pool.AddCert(tc.ca)
		leaf := *tc.leaf
		if tc.leaf == oldLeaf {
			leaf.NotAfter = now.Add(day) // expired by then; trust is what is asked
		}
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: tc.at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Error(err)
		}
	}
}

func TestReissue(t *testing.T) {
	more := Names{DNS: names.DNS, IPs: append([]netip.Addr{netip.MustParseAddr("10.0.0.5")}, names.IPs...)}
	domain := Names{DNS: append([]string{"kubernetes.default.svc.other"}, names.DNS...), IPs: names.IPs}
	for _, tc := range []struct {
		name   string
		damage func(t *testing.T, dir string)
		names  Names
		want   []string
	}{
		{"another address", nil, more, []string{"serving"}},
		{"another domain", nil, domain, []string{"serving"}},
		{"fewer names", nil, Names{DNS: names.DNS}, nil},
		{"lost certificate", remove("admin.crt"), names, []string{"admin"}},
		{"lost key", remove("agent.key"), names, []string{"agent"}},
		{"lost CA certificate", remove("ca.crt"), names, []string{"ca"}},
		{"lost CA", remove("ca.crt", "ca.key"), names, []string{"ca", "serving", "admin", "agent"}},
		{"lost SA public key", remove("sa.pub"), names, []string{"sa"}},
		{"swapped", func(t *testing.T, dir string) {
			if err := os.Rename(filepath.Join(dir, "admin.crt"), filepath.Join(dir, "agent.crt")); err != nil {
				t.Fatal(err)
			}
		}, names, []string{"admin", "agent"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "pki")
			ensure(t, open(t, dir, names), start)
			if tc.damage != nil {
				tc.damage(t, dir)
			}
			a := open(t, dir, tc.names)
			got := ensure(t, a, start.Add(day))
			if len(got) != len(tc.want) {
				t.Errorf("%v, want %v", got, tc.want)
			}
			for _, n := range tc.want {
				if got[n] == "" {
					t.Errorf("%s not reissued: %v", n, got)
				}
			}
			verify(t, a, "serving", "localhost", x509.ExtKeyUsageServerAuth, start.Add(day))
			verify(t, a, "agent", "", x509.ExtKeyUsageClientAuth, start.Add(day))
		})
	}
}

func remove(names ...string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		for _, n := range names {
			if err := os.Remove(filepath.Join(dir, n)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestDamagedIsNotReplaced: a file that cannot be read may be somebody's only
// copy; it is reported, with its name.
func TestDamagedIsNotReplaced(t *testing.T) {
	for _, name := range []string{"ca.key", "ca.crt", "serving.crt", "sa.key"} {
		dir := filepath.Join(t.TempDir(), "pki")
		a := open(t, dir, names)
		ensure(t, a, start)
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("junk"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := a.Ensure(start)
		if err == nil || !bytes.Contains([]byte(err.Error()), []byte(path)) {
			t.Errorf("%s: %v", name, err)
		}
		if b, _ := os.ReadFile(path); string(b) != "junk" {
			t.Errorf("%s was replaced", name)
		}
	}
}

// TestCopiedDirectoryIsProtected: modes that were lost in copying are restored.
func TestCopiedDirectoryIsProtected(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	ensure(t, open(t, dir, names), start)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "ca.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	ensure(t, open(t, dir, names), start)
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, "ca.key"): 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v %v", path, st.Mode(), err)
		}
	}
}
