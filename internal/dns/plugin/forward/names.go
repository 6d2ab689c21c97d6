package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
)

// hostName is an upstream written as a name; its addresses are looked up once,
// at start.
type hostName struct {
	token     corefile.Token
	transport transport
	host      string
	port      uint16
	tlsName   string
}

type hostPort struct {
	name string
	port uint16
}

// parseHost reads NAME or NAME:port.
func parseHost(s string, port uint16) (hostPort, error) {
	name, number, ok := strings.Cut(s, ":")
	if ok {
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil || n == 0 {
			return hostPort{}, fmt.Errorf("port %q is no number from 1 to 65535", number)
		}
		port = uint16(n)
	}
	if _, valid := dns.IsDomainName(name); !valid || strings.ContainsAny(name, "/%[] ") {
		return hostPort{}, errors.New("it is neither an address nor a host name, and no such file exists")
	}
	return hostPort{name, port}, nil
}

// resolveNames adds the addresses of the upstreams that are names.
func (h *handler) resolveNames(ctx context.Context) error {
	for _, n := range h.names {
		addrs, err := h.resolver().LookupNetIP(ctx, "ip", n.host)
		if err != nil {
			return corefile.Errorf(n.token, "upstream %s: %w", n.token.Text, err)
		}
		tlsName := n.tlsName
		if tlsName == "" && h.tlsName == "" {
			tlsName = strings.TrimSuffix(n.host, ".")
		}
		for _, a := range addrs {
			h.add(n.transport, netip.AddrPortFrom(a.Unmap(), n.port).String(), tlsName)
		}
		if len(h.upstreams) > maxUpstreams {
			return corefile.Errorf(n.token, "upstream %s and those before it have %d addresses; at most %d are possible", n.token.Text, len(h.upstreams), maxUpstreams)
		}
	}
	return nil
}

// resolver is the system's, or one that asks the servers of the resolver
// property in turn.
func (h *handler) resolver() *net.Resolver {
	if len(h.resolvers) == 0 {
		return net.DefaultResolver
	}
	next := 0 // the resolver is used by one goroutine at a time, but dials from two
	turn := make(chan struct{}, 1)
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		turn <- struct{}{}
		addr := h.resolvers[next%len(h.resolvers)]
		next++
		<-turn
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}}
}

// fileServers reads a file like resolv.conf. The stub of systemd-resolved is
// replaced by the servers that it uses itself.
func (h *handler) fileServers(path string) ([]netip.Addr, error) {
	file, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	list := nameservers(file)
	if !systemdStub(list) {
		return list, nil
	}
	file, err = os.ReadFile(systemdServers)
	real := nameservers(file)
	if err != nil || len(real) == 0 || systemdStub(real) {
		h.warn(context.Background(), "%s names only the stub resolver of systemd-resolved, %s; if that asks this server, queries go in a circle", path, list[0])
		return list, nil
	}
	h.log.Info(fmt.Sprintf("%s names only the stub resolver of systemd-resolved; using the servers in %s instead", path, systemdServers))
	return real, nil
}
