// Command bench measures Rutter beside the programs it replaces, in one run on
// one machine: CoreDNS and a bare UDP echo for DNS, kube-proxy for the service
// proxy. scripts/bench.sh builds what it needs and runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// options are the command line's.
type options struct {
	bin      string  // directory of rutter, rutter-registry and peers/
	services numbers // for dns, from small to large
	sizes    shapes  // for proxy
	patience time.Duration
	short    bool
	markdown bool
	keep     bool
	only     string
	queries  string // part of the names of the query sets
	corefile string // file; empty: kubeadm's
}

// parts are the parts of the benchmark in the order in which they run. They
// share nothing but the machine.
var parts = []struct {
	name string
	run  func(*bench, context.Context) error
}{
	{"size", (*bench).size},
	{"dns", (*bench).dns},
	{"proxy", (*bench).proxy},
	{"userspace", (*bench).userspace},
}

// bench is one run.
type bench struct {
	options
	dir      string // for everything that the programs write
	out      *report
	progress io.Writer
}

func main() {
	if len(os.Args) == 3 {
		switch os.Args[1] {
		case "echo":
			fatal(echo(os.Args[2], replyEcho))
		case "upstream":
			fatal(echo(os.Args[2], replyA))
		}
	}
	if ok, err := userspaceTool(os.Args[1:]); ok {
		fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(2)
	}
	fatal(err)
}

func fatal(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(ctx context.Context, args []string) (err error) {
	b := &bench{progress: os.Stderr}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.StringVar(&b.bin, "bin", "bin", "directory of rutter, rutter-registry and peers/")
	b.services = numbers{1000, 10000}
	fs.Var(&b.services, "services", "services in the DNS part, each with 10 endpoints; several numbers, comma separated, are measured one after the other")
	b.sizes = shapes{{services: 1, endpoints: 10}, {services: 1000, endpoints: 10}, {services: 10000, endpoints: 10}, {services: 50000, endpoints: 5}}
	fs.Var(&b.sizes, "sizes", "clusters in the proxy part, as services x endpoints of each, comma separated; throughput is measured in that with one service")
	fs.DurationVar(&b.patience, "patience", time.Minute, "the longest that a proxy is waited for; what takes longer is said to")
	fs.BoolVar(&b.short, "short", false, "one short round of everything: shows that it works, not how fast")
	fs.BoolVar(&b.markdown, "markdown", false, "print the tables as Markdown")
	fs.BoolVar(&b.keep, "keep", false, "keep the programs' logs and configurations, and say where they are")
	fs.StringVar(&b.only, "only", "", "run only these, comma separated, such as Rutter,CoreDNS,echo or \"Rutter nftables,kube-proxy nftables\" (ratios need CoreDNS, echo and kube-proxy)")
	fs.StringVar(&b.queries, "queries", "", "only the query sets of the DNS part with this in their names, such as headless")
	fs.StringVar(&b.corefile, "corefile", "", "Corefile for the DNS part instead of kubeadm's; {PORT}, {PORT1}…, KUBECONFIG and UPSTREAM are filled")
	fs.Usage = func() {
		fmt.Fprintln(fs.Output(), "Usage: bench [flags] [size] [dns] [proxy] [userspace]   (no part named: all)")
		fs.PrintDefaults()
	}
	if err := fs.Parse(args); err != nil {
		return err
	}
	for _, a := range fs.Args() {
		if !slices.ContainsFunc(parts, func(p struct {
			name string
			run  func(*bench, context.Context) error
		}) bool {
			return p.name == a
		}) {
			return fmt.Errorf("there is no part %q (parts are size, dns, proxy and userspace; flags stand before them)", a)
		}
	}
	if b.bin, err = filepath.Abs(b.bin); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "rutter-bench-"); err != nil {
		return err
	}
	defer func() {
		if b.keep {
			fmt.Fprintln(b.progress, "kept", b.dir)
			return
		}
		err = errors.Join(err, os.RemoveAll(b.dir))
	}()
	b.out = &report{w: os.Stdout, markdown: b.markdown}
	b.out.machine()
	for _, p := range parts {
		if fs.NArg() > 0 && !slices.Contains(fs.Args(), p.name) {
			continue
		}
		start := time.Now()
		if err := p.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		b.say("%s took %s", p.name, time.Since(start).Round(time.Second))
	}
	return nil
}

// say reports progress.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.progress, "bench: "+format+"\n", args...)
}

// wanted tells whether a contender takes part.
func (b *bench) wanted(name string) bool {
	return b.only == "" || slices.Contains(strings.Split(b.only, ","), name)
}

// program is the path of a program in the bin directory.
func (b *bench) program(name string) string { return filepath.Join(b.bin, name) }

// subdir makes a directory for one part.
func (b *bench) subdir(name string) (string, error) {
	dir := filepath.Join(b.dir, name)
	return dir, os.Mkdir(dir, 0o755)
}
