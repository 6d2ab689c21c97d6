package forward

import (
	"crypto/tls"
	"net/netip"
)

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
