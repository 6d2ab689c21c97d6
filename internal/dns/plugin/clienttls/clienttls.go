// Package clienttls reads the tls property of plugins that are clients of
// others: forward and etcd.
package clienttls

import (
	"crypto/tls"
	"crypto/x509"
	"os"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
)

// Parse reads: tls [CERT KEY] [CA]
//
// A certificate with its key is shown to servers; of servers it is wanted that
// an authority in the file CA, or else one of the system's, vouches for them.
func Parse(b *plugin.Block, p corefile.Directive) (*tls.Config, error) {
	if err := p.Want(0, 3, "nothing, CA, CERT KEY or CERT KEY CA"); err != nil {
		return nil, err
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	args := p.Args
	if len(args) >= 2 {
		cert, err := tls.LoadX509KeyPair(b.File(args[0].Text), b.File(args[1].Text))
		if err != nil {
			return nil, corefile.Errorf(args[0], "client certificate: %w", err)
		}
		c.Certificates = []tls.Certificate{cert}
		args = args[2:]
	}
	if len(args) == 0 {
		return c, nil
	}
	pem, err := os.ReadFile(b.File(args[0].Text))
	if err != nil {
		return nil, corefile.Errorf(args[0], "certificate authorities: %w", err)
	}
	c.RootCAs = x509.NewCertPool()
	if !c.RootCAs.AppendCertsFromPEM(pem) {
		return nil, corefile.Errorf(args[0], "file %s has no certificate in PEM form", args[0].Text)
	}
	return c, nil
}
