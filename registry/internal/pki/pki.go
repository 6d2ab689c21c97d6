// Package pki is the registry's own certificate authority: one CA, the API
// server's serving certificate, client certificates for the administrator and
// for agents, and the key that signs service account tokens.
//
//	ca.crt ca.key            10 years
//	serving.crt serving.key   1 year   names and addresses from the flags
//	admin.crt admin.key       1 year   O=system:masters
//	agent.crt agent.key       1 year   O=rutter:agents
//	sa.key sa.pub             no expiry
//
// A certificate is renewed when less than a third of its life remains, with
// the same key: then only the .crt file changes, by one rename, and a reader
// never finds a certificate that does not fit its key. The same holds for the
// CA: a renewed CA certificate has the old subject and key, so certificates
// issued before it verify against it and the other way round. To change a
// key, delete both files and restart.
package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/rutter-project/rutter/registry/internal/atomicfile"
)

// Lifetimes. A year for leaves is what kubeadm uses.
const (
	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 365 * 24 * time.Hour
	// backdate tolerates clients whose clock is a little behind.
	backdate = time.Hour
)

// Identities. The API server takes the user from the common name and the
// groups from the organisations (k8s.io/apiserver/pkg/authentication/request/x509).
const (
	AdminUser  = "rutter:admin"
	AdminGroup = "system:masters" // always allowed, before RBAC is asked
	AgentUser  = "rutter:agent:local"
	AgentGroup = "rutter:agents"
)

// Names are what the serving certificate must cover.
type Names struct {
	DNS []string
	IPs []netip.Addr
}

// Authority is the opened directory.
type Authority struct {
	dir   string
	names Names
}

// Change is a file that Ensure wrote, and why.
type Change struct{ Name, Why string }

// Open makes the directory if need be. Nothing else is written before Ensure.
func Open(dir string, names Names) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the certificate directory: %w", err)
	}
	// The directory may have been copied from another host with other modes.
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("protecting the certificate directory: %w", err)
	}
	return &Authority{dir: dir, names: names}, nil
}

// File is the path of one of the files listed in the package comment.
func (a *Authority) File(name string) string { return filepath.Join(a.dir, name) }

// Pair returns a client's certificate and key and the CA, all PEM.
func (a *Authority) Pair(name string) (cert, key, ca []byte, err error) {
	if cert, err = os.ReadFile(a.File(name + ".crt")); err != nil {
		return nil, nil, nil, fmt.Errorf("reading a certificate: %w", err)
	}
	if key, err = os.ReadFile(a.File(name + ".key")); err != nil {
		return nil, nil, nil, fmt.Errorf("reading a key: %w", err)
	}
	if ca, err = os.ReadFile(a.File("ca.crt")); err != nil {
		return nil, nil, nil, fmt.Errorf("reading the CA certificate: %w", err)
	}
	return cert, key, ca, nil
}

// Ensure makes what is missing and renews what is due at now. Files that are
// in order are not touched.
func (a *Authority) Ensure(now time.Time) ([]Change, error) {
	var changes []Change
	caKey, why, err := a.key("ca")
	if err != nil {
		return nil, err
	}
	caTemplate := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "rutter-registry-ca"},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	ca, err := a.cert("ca")
	if err != nil {
		return nil, err
	}
	if why == "" {
		why = stale(ca, caKey, now)
	}
	if why != "" {
		if ca, err = a.issue("ca", caTemplate, caTemplate, caKey, caKey); err != nil {
			return nil, err
		}
		changes = append(changes, Change{"ca", why})
	}

	for _, l := range []struct {
		name    string
		subject pkix.Name
		usage   x509.ExtKeyUsage
		names   Names
	}{
		{"serving", pkix.Name{CommonName: "rutter-registry"}, x509.ExtKeyUsageServerAuth, a.names},
		{"admin", pkix.Name{CommonName: AdminUser, Organization: []string{AdminGroup}}, x509.ExtKeyUsageClientAuth, Names{}},
		{"agent", pkix.Name{CommonName: AgentUser, Organization: []string{AgentGroup}}, x509.ExtKeyUsageClientAuth, Names{}},
	} {
		key, why, err := a.key(l.name)
		if err != nil {
			return changes, err
		}
		have, err := a.cert(l.name)
		if err != nil {
			return changes, err
		}
		if why == "" {
			why = stale(have, key, now)
		}
		if why == "" && have.CheckSignatureFrom(ca) != nil {
			why = "it was issued by another CA"
		}
		if why == "" {
			why = l.names.missingIn(have)
		}
		if why == "" && have.Subject.String() != l.subject.String() {
			why = "its subject differs"
		}
		if why == "" {
			continue
		}
		t := &x509.Certificate{
			Subject:     l.subject,
			NotBefore:   now.Add(-backdate),
			NotAfter:    earlier(now.Add(leafLife), ca.NotAfter),
			KeyUsage:    x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{l.usage},
			DNSNames:    l.names.DNS,
		}
		for _, ip := range l.names.IPs {
			t.IPAddresses = append(t.IPAddresses, ip.AsSlice())
		}
		if _, err := a.issue(l.name, t, ca, key, caKey); err != nil {
			return changes, err
		}
		changes = append(changes, Change{l.name, why})
	}

	saKey, why, err := a.key("sa")
	if err != nil {
		return changes, err
	}
	pub, err := x509.MarshalPKIXPublicKey(saKey.Public())
	if err != nil {
		return changes, fmt.Errorf("encoding sa.pub: %w", err)
	}
	want := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub})
	if have, err := os.ReadFile(a.File("sa.pub")); err != nil || !bytes.Equal(have, want) {
		if err := atomicfile.Write(a.File("sa.pub"), want, 0o644); err != nil {
			return changes, err
		}
		if why == "" {
			why = "sa.pub did not fit"
		}
		changes = append(changes, Change{"sa", why})
	}
	return changes, nil
}

// Due is when Ensure should be called next, if the clock alone decides.
func (a *Authority) Due() (time.Time, error) {
	var due time.Time
	for _, name := range []string{"ca", "serving", "admin", "agent"} {
		c, err := a.cert(name)
		if err != nil {
			return due, err
		}
		if c == nil {
			return due, fmt.Errorf("%s is missing", a.File(name+".crt"))
		}
		if d := renewAt(c); due.IsZero() || d.Before(due) {
			due = d
		}
	}
	return due, nil
}

const whyMissing = "it did not exist"

// key reads or makes a private key. why is set when it was made.
func (a *Authority) key(name string) (k *ecdsa.PrivateKey, why string, err error) {
	path := a.File(name + ".key")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if k, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, "", fmt.Errorf("making %s: %w", path, err)
		}
		der, err := x509.MarshalECPrivateKey(k)
		if err != nil {
			return nil, "", fmt.Errorf("encoding %s: %w", path, err)
		}
		return k, whyMissing, atomicfile.Write(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
	}
	if err != nil {
		return nil, "", fmt.Errorf("reading a key: %w", err)
	}
	if k, err = parseKey(b); err != nil {
		return nil, "", fmt.Errorf("%s is not an ECDSA private key (%w); restore it, or move it and %s.crt away to have new ones made", path, err, name)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, "", fmt.Errorf("protecting a key: %w", err)
	}
	return k, "", nil
}

func parseKey(b []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, errors.New("no PEM block")
	}
	if block.Type == "EC PRIVATE KEY" {
		return x509.ParseECPrivateKey(block.Bytes)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	e, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("found a %T", k)
	}
	return e, nil
}

// cert reads a certificate; nil when there is none.
func (a *Authority) cert(name string) (*x509.Certificate, error) {
	path := a.File(name + ".crt")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading a certificate: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s is not a PEM certificate; restore it, or move it away to have a new one made", path)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s is not a certificate (%w); restore it, or move it away to have a new one made", path, err)
	}
	return c, nil
}

// issue signs and writes a certificate.
func (a *Authority) issue(name string, t, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)) // RFC 5280 section 4.1.2.2: at most 20 octets
	if err != nil {
		return nil, fmt.Errorf("issuing %s.crt: %w", name, err)
	}
	t.SerialNumber = serial
	if t.IsCA {
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			return nil, fmt.Errorf("issuing %s.crt: %w", name, err)
		}
		sum := sha256.Sum256(der) // of the key only, so that it survives renewal
		t.SubjectKeyId = sum[:20]
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("issuing %s.crt: %w", name, err)
	}
	if err := atomicfile.Write(a.File(name+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// stale says why c must be replaced, whatever its names; "" if it need not.
func stale(c *x509.Certificate, key *ecdsa.PrivateKey, now time.Time) string {
	switch {
	case c == nil:
		return whyMissing
	case !key.PublicKey.Equal(c.PublicKey):
		return "it did not fit its key"
	case now.Before(c.NotBefore):
		return "it was not valid yet"
	case !now.Before(renewAt(c)):
		return fmt.Sprintf("it would have expired on %s", c.NotAfter.UTC().Format(time.DateOnly))
	}
	return ""
}

// renewAt is the moment when a third of the certificate's life remains.
func renewAt(c *x509.Certificate) time.Time {
	return c.NotAfter.Add(-c.NotAfter.Sub(c.NotBefore) / 3)
}

// missingIn names the first thing that c does not cover.
func (n Names) missingIn(c *x509.Certificate) string {
	for _, d := range n.DNS {
		if !slices.Contains(c.DNSNames, d) {
			return "it did not cover the name " + d
		}
	}
	for _, ip := range n.IPs {
		if !slices.ContainsFunc(c.IPAddresses, net.IP(ip.AsSlice()).Equal) {
			return "it did not cover the address " + ip.String()
		}
	}
	return ""
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
