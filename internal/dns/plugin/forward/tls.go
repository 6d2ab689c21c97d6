package forward

import (
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"os"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
)

// setTLS reads: tls [CERT KEY] [CA]
func (h *handler) setTLS(b *plugin.Block, p corefile.Directive) error {
	const want = "nothing, CA, CERT KEY or CERT KEY CA"
	if err := p.Want(0, 3, want); err != nil {
		return err
	}
	h.tls = &tls.Config{MinVersion: tls.VersionTLS12}
	args := p.Args
	if len(args) >= 2 {
		cert, err := tls.LoadX509KeyPair(b.File(args[0].Text), b.File(args[1].Text))
		if err != nil {
			return corefile.Errorf(args[0], "client certificate: %w", err)
		}
		h.tls.Certificates = []tls.Certificate{cert}
		args = args[2:]
	}
	if len(args) == 1 {
		pem, err := os.ReadFile(b.File(args[0].Text))
		if err != nil {
			return corefile.Errorf(args[0], "certificate authorities: %w", err)
		}
		h.tls.RootCAs = x509.NewCertPool()
		if !h.tls.RootCAs.AppendCertsFromPEM(pem) {
			return corefile.Errorf(args[0], "file %s has no certificate in PEM form", args[0].Text)
		}
	}
	return nil
}

// tlsConfig returns the configuration for an upstream: the name its certificate
// must have is the upstream's own, the line's, or else its address.
func (h *handler) tlsConfig(addr, tlsName string) *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if h.tls != nil {
		c = h.tls.Clone()
	}
	c.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	switch {
	case tlsName != "":
		c.ServerName = tlsName
	case h.tlsName != "":
		c.ServerName = h.tlsName
	default:
		if ap, err := netip.ParseAddrPort(addr); err == nil {
			c.ServerName = ap.Addr().String()
		}
	}
	return c
}
