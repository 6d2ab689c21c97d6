package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/cluster"
	"github.com/rutter-project/rutter/internal/dns/corelog"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/order"
	"github.com/rutter-project/rutter/internal/dns/server"
	"github.com/rutter-project/rutter/internal/heap"
	"github.com/rutter-project/rutter/internal/version"
)

// dnsFlags are CoreDNS's flags.
type dnsFlags struct {
	conf    string
	port    string
	pidfile string
	plugins bool
	quiet   bool
	version bool
}

func newDNSCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "dns [-conf FILE] [-dns.port N] [-pidfile FILE] [-plugins] [-quiet] [-version]",
		Short: "Serve DNS by a Corefile, in the place of CoreDNS",
		Long: `Serve DNS by a Corefile, with CoreDNS's flags: a pod or unit file that starts
coredns works with the binary replaced.

Without -conf the file Corefile in the working directory is used, and without
that one a Corefile that answers whoami on every name. SIGTERM and SIGINT stop,
SIGUSR1 reads the Corefile again.`,
		DisableFlagParsing: true, // CoreDNS's flags have one dash, or two
		RunE: func(cmd *cobra.Command, args []string) error {
			var f dnsFlags
			fs := flag.NewFlagSet("rutter dns", flag.ContinueOnError)
			fs.SetOutput(io.Discard)
			fs.StringVar(&f.conf, "conf", "", "`file` to load; stdin reads the Corefile from standard input")
			fs.StringVar(&f.port, "dns.port", "53", "default `port` of server blocks")
			fs.StringVar(&f.port, "p", "53", "the same")
			fs.StringVar(&f.pidfile, "pidfile", "", "`file` to write the process number to")
			fs.BoolVar(&f.plugins, "plugins", false, "list the plugins and exit")
			fs.BoolVar(&f.quiet, "quiet", false, "print nothing at start")
			fs.BoolVar(&f.version, "version", false, "print the version and exit")
			switch err := fs.Parse(args); {
			case errors.Is(err, flag.ErrHelp):
				fs.SetOutput(cmd.OutOrStdout())
				fmt.Fprintf(cmd.OutOrStdout(), "%s\n\nFlags:\n", cmd.Long)
				fs.PrintDefaults()
				return nil
			case err != nil:
				return usageError{fmt.Errorf("%w (see rutter dns -help)", err)}
			case fs.NArg() > 0:
				return usageError{fmt.Errorf("rutter dns takes no words besides flags, got %q; a Corefile is named with -conf", strings.Join(fs.Args(), " "))}
			}
			return f.run(cmd.Context(), cmd.OutOrStdout())
		},
	}
}

func (f *dnsFlags) run(ctx context.Context, out io.Writer) error {
	v := version.Get()
	banner := fmt.Sprintf("Rutter-%s\n%s/%s, %s, %s\n", v.Version, runtime.GOOS, runtime.GOARCH, runtime.Version(), v.Commit)
	if f.version {
		_, err := io.WriteString(out, banner)
		return err
	}
	if n, err := strconv.ParseUint(f.port, 10, 16); err != nil || n == 0 {
		return usageError{fmt.Errorf("-dns.port %q: want a number from 1 to 65535", f.port)}
	}
	level := new(slog.LevelVar)
	log := slog.New(corelog.New(out, level))
	registry := prometheus.NewRegistry()
	cluster.RegisterClientMetrics(registry)
	clusters := cluster.New(context.WithoutCancel(ctx), log, registry, "rutter/"+v.Version)
	plugins := order.List(clusters.Store)
	if f.plugins {
		return listPlugins(out, plugins)
	}
	load, err := f.loader(plugins, log)
	if err != nil {
		return err
	}
	blocks, err := load()
	if err != nil {
		return err
	}
	for _, b := range blocks {
		for _, d := range b.Directives {
			if d.Name.Text == "debug" {
				level.Set(slog.LevelDebug)
			}
		}
	}
	fatal := make(chan error, 1)
	srv, err := server.New(server.Config{
		Blocks: blocks, Plugins: plugins, Log: log, Registry: registry, Version: v.Version, Load: load,
		Fatal: func(err error) {
			select {
			case fatal <- err:
			default:
			}
		},
	})
	if err != nil {
		return err
	}
	tuned, stop := context.WithCancel(context.Background())
	defer stop()
	go heap.Tune(tuned, 32<<20)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGINT, unix.SIGUSR1, unix.SIGQUIT, unix.SIGHUP)
	defer signal.Stop(signals)
	if err := srv.Start(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // told to stop while starting
		}
		return err
	}
	if f.pidfile != "" {
		if err := os.WriteFile(f.pidfile, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
			return fmt.Errorf("-pidfile: %w", err)
		}
		defer os.Remove(f.pidfile)
	}
	if !f.quiet {
		fmt.Fprintln(out, strings.Join(append(srv.Addrs(), strings.TrimSuffix(banner, "\n")), "\n"))
	}
	return serveUntilTold(ctx, srv, signals, fatal, log)
}

// serveUntilTold handles signals as CoreDNS does. The first SIGINT or SIGTERM
// ends ctx.
func serveUntilTold(ctx context.Context, srv *server.Server, signals <-chan os.Signal, fatal <-chan error, log *slog.Logger) error {
	interrupts := 0
	for {
		select {
		case <-ctx.Done():
			return shutDown(ctx, srv, signals, interrupts)
		case err := <-fatal:
			_ = srv.Shutdown(context.WithoutCancel(ctx))
			return err
		case sig := <-signals:
			switch sig {
			case unix.SIGINT:
				interrupts++
			case unix.SIGQUIT:
				return nil
			case unix.SIGUSR1:
				if err := srv.ReloadFile(); err != nil {
					log.Error("SIGUSR1: the old configuration keeps serving", "error", err)
				} else {
					log.Info("Reloading complete")
				}
			}
		}
	}
}

// shutDown stops the server; a second SIGINT ends at once.
func shutDown(ctx context.Context, srv *server.Server, signals <-chan os.Signal, interrupts int) error {
	const interrupted, failed = 2, 3 // CoreDNS's exit codes
	done := make(chan error, 1)
	go func() { done <- srv.Shutdown(context.WithoutCancel(ctx)) }()
	for {
		select {
		case err := <-done:
			if err != nil {
				fmt.Fprintln(os.Stderr, "rutter:", err)
				return exitError{failed}
			}
			return nil
		case sig := <-signals:
			if sig == unix.SIGINT {
				if interrupts++; interrupts > 1 {
					return exitError{interrupted}
				}
			}
		}
	}
}

// loader returns how the Corefile is read, now and at each reload.
func (f *dnsFlags) loader(plugins []plugin.Entry, log *slog.Logger) (func() ([]corefile.ServerBlock, error), error) {
	opts := corefile.OS()
	opts.Port = f.port
	opts.Directives, opts.Missing = plugin.Names(plugins)
	opts.Warn = func(err error) { log.Warn(err.Error()) }
	if f.conf == "stdin" {
		src, err := io.ReadAll(os.Stdin)
		if err != nil {
			return nil, fmt.Errorf("reading the Corefile from standard input: %w", err)
		}
		return func() ([]corefile.ServerBlock, error) { return corefile.Parse("stdin", src, opts) }, nil
	}
	name := f.conf
	if name == "" {
		name = "Corefile"
	}
	return func() ([]corefile.ServerBlock, error) {
		src, err := os.ReadFile(name)
		if f.conf == "" && errors.Is(err, os.ErrNotExist) {
			return corefile.Parse("(built in)", []byte(".:"+f.port+" {\n whoami\n log\n}\n"), opts)
		}
		if err != nil {
			return nil, fmt.Errorf("reading the Corefile: %w; name another one with -conf", err)
		}
		return corefile.Parse(name, src, opts)
	}, nil
}

func listPlugins(out io.Writer, plugins []plugin.Entry) error {
	here, lacking := plugin.Names(plugins)
	var b strings.Builder
	b.WriteString("Plugins, in the order in which queries meet them:\n")
	for _, name := range here {
		b.WriteString("  dns." + name + "\n")
	}
	b.WriteString("Plugins of CoreDNS that Rutter lacks: " + strings.Join(lacking, " ") + "\n")
	_, err := io.WriteString(out, b.String())
	return err
}
