// Command rutter-registry serves the Kubernetes API that Services need: the
// real kube-apiserver, an etcd and the endpoint controllers in one process.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/rutter-project/rutter/registry/internal/config"
	"github.com/rutter-project/rutter/registry/internal/lifecycle"
	"github.com/rutter-project/rutter/registry/internal/logging"
	etcdversion "go.etcd.io/etcd/api/v3/version"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
)

// version is set by the release build: -ldflags "-X main.version=v1.2.3".
var version = "dev"

// Exit codes.
const (
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	v := versions()
	c, usage, err := config.Parse(os.Args[1:], outbound)
	switch {
	case errors.Is(err, config.ErrHelp):
		fmt.Print(usage)
		return
	case errors.Is(err, config.ErrVersion):
		fmt.Printf("rutter-registry %s (Kubernetes %s, etcd %s, %s)\n", v.Registry, v.Kubernetes, v.Etcd, runtime.Version())
		return
	case err != nil:
		fail(exitUsage, err)
	}

	log := logging.New(os.Stderr, c.LogLevel, c.LogFormat)
	stopping := logging.Adopt(log)
	rest.SetDefaultWarningHandler(rest.NoWarnings{}) // Endpoints is deprecated; its controller is ours
	klog.OsExit = func(int) { os.Exit(exitFailure) }
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}

	// The first signal stops the registry, a second one ends it at once.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		stopping()
		cancel()
		s := <-signals
		os.Exit(128 + int(s.(syscall.Signal)))
	}()

	if err := lifecycle.Run(ctx, c, v, log, func(err error) { fail(exitFailure, err) }); err != nil {
		fail(exitFailure, err)
	}
}

// gcPercent trades processor time for memory. The heap is mostly caches that
// do not change, so collecting at half of its size again costs little.
const gcPercent = 50

// fail tells what is wrong in one line and ends the process.
func fail(code int, err error) {
	fmt.Fprintln(os.Stderr, "rutter-registry: "+strings.Join(strings.Fields(err.Error()), " "))
	os.Exit(code)
}

// versions takes the version of Kubernetes from the build: it is the version
// of the module, so the two cannot differ.
func versions() lifecycle.Version {
	v := lifecycle.Version{Registry: version, Kubernetes: "unknown", Etcd: etcdversion.Version}
	if b, ok := debug.ReadBuildInfo(); ok {
		for _, d := range b.Deps {
			if d.Path == "k8s.io/kubernetes" {
				v.Kubernetes = d.Version
			}
		}
	}
	return v
}

// outbound is the address this host would use to reach others. Connecting a
// UDP socket sends nothing; the addresses are those set aside for
// documentation (RFC 5737, RFC 3849).
func outbound(ipv6 bool) (netip.Addr, error) {
	network, to := "udp4", "192.0.2.1:9"
	if ipv6 {
		network, to = "udp6", "[2001:db8::1]:9"
	}
	c, err := net.Dial(network, to)
	if err != nil {
		return netip.Addr{}, errors.New("there is no default route")
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}
