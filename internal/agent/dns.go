package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/kubernetes"
	"github.com/rutter-project/rutter/internal/dns/plugin/order"
	"github.com/rutter-project/rutter/internal/dns/server"
	"github.com/rutter-project/rutter/internal/version"
)

// DefaultCorefile is what DNS serves by without --corefile: the cluster's names
// from the catalogue, everything else by the host's resolvers. Every answer says
// that recursion is available, as it is; CoreDNS's own answers do not, and
// nslookup complains of that.
func DefaultCorefile(cfg Config) string {
	var bind []string
	for _, a := range cfg.localDNS() {
		bind = append(bind, a.String())
	}
	return fmt.Sprintf(`.:%d {
    bind %s
    errors
    kubernetes %s in-addr.arpa ip6.arpa {
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    forward . /etc/resolv.conf {
        max_concurrent 1000
    }
    cache 30
    reload
    loadbalance
    header {
        response set ra
    }
}
`, cfg.DNSPort(), strings.Join(bind, " "), cfg.ClusterDomain)
}

// newDNS prepares the server; nothing is opened yet.
func newDNS(cfg Config, store *kubernetes.Store, registry *prometheus.Registry, fatal func(error)) (*server.Server, error) {
	plugins := order.List(store.ForAll)
	opts := corefile.OS()
	opts.Directives, opts.Missing = plugin.Names(plugins)
	opts.Warn = func(err error) { cfg.Log.Warn(err.Error()) }
	load := func() ([]corefile.ServerBlock, error) {
		if cfg.Corefile == "" {
			return corefile.Parse("(built in)", []byte(DefaultCorefile(cfg)), opts)
		}
		src, err := os.ReadFile(cfg.Corefile)
		if err != nil {
			return nil, fmt.Errorf("reading the Corefile: %w; name another one with --corefile", err)
		}
		return corefile.Parse(cfg.Corefile, src, opts)
	}
	blocks, err := load()
	if err != nil {
		return nil, err
	}
	return server.New(server.Config{
		Blocks: blocks, Plugins: plugins, Log: cfg.Log, Registry: registry,
		Version: version.Get().Version, Load: load, Fatal: fatal,
		Elsewhere: "serve other addresses (--cluster-dns, --node-local-dns, or the bind plugin in --corefile)",
	})
}

// reloadWhenTold reads the Corefile again on SIGUSR1, as `rutter dns` and
// CoreDNS do, until ctx ends.
func reloadWhenTold(ctx context.Context, dns *server.Server, log *slog.Logger) {
	told := make(chan os.Signal, 1)
	signal.Notify(told, unix.SIGUSR1)
	defer signal.Stop(told)
	for {
		select {
		case <-ctx.Done():
			return
		case <-told:
		}
		if err := dns.ReloadFile(); err != nil {
			log.Error("SIGUSR1: the old Corefile keeps serving", "error", err)
		} else {
			log.Info("SIGUSR1: the Corefile is loaded")
		}
	}
}

// awaitSync waits until the store is complete, but no longer than the server
// may delay its start: then it serves what it has, as CoreDNS does.
func awaitSync(ctx context.Context, store *kubernetes.Store) error {
	bounded, cancel := context.WithTimeout(ctx, startupBound)
	defer cancel()
	if err := store.WaitSynced(bounded); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return ctx.Err()
}

// defaultRouteIPs are the addresses from which this host reaches the world, one
// per family, without sending anything.
func defaultRouteIPs() []string {
	var out []string
	for _, probe := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} {
		c, err := net.Dial("udp", probe) // connect(2) on UDP only looks up the route
		if err != nil {
			continue
		}
		host, _, err := net.SplitHostPort(c.LocalAddr().String())
		c.Close()
		if err == nil && !net.ParseIP(host).IsLoopback() && !net.ParseIP(host).IsLinkLocalUnicast() {
			out = append(out, host)
		}
	}
	return out
}
