package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"

	"github.com/spf13/pflag"
	"k8s.io/klog/v2"
)

// logFlags are --log-level and --log-format.
type logFlags struct{ level, format string }

func (l *logFlags) register(f *pflag.FlagSet) {
	f.StringVar(&l.level, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&l.format, "log-format", "text", "text or json")
}

// logger makes the logger, and lets client-go's messages go the same way.
func (l *logFlags) logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.level)); err != nil {
		return nil, usageError{fmt.Errorf("--log-level %q: want debug, info, warn or error", l.level)}
	}
	opts := &slog.HandlerOptions{Level: level}
	var h slog.Handler
	switch l.format {
	case "text":
		h = slog.NewTextHandler(w, opts)
	case "json":
		h = slog.NewJSONHandler(w, opts)
	default:
		return nil, usageError{fmt.Errorf("--log-format %q: want text or json", l.format)}
	}
	log := slog.New(h)
	klog.SetSlogLogger(log)
	return log, nil
}

// addrsValue is a list of addresses: repeated, or separated by commas.
type addrsValue struct{ list *[]netip.Addr }

func (v addrsValue) Type() string { return "addresses" }

func (v addrsValue) String() string {
	if v.list == nil {
		return ""
	}
	return join(*v.list)
}

func (v addrsValue) Set(s string) error {
	for _, part := range strings.Split(s, ",") {
		a, err := netip.ParseAddr(strings.TrimSpace(part))
		if err != nil {
			return fmt.Errorf("%q is not an IP address", part)
		}
		*v.list = append(*v.list, a.Unmap())
	}
	return nil
}

// addrValue is one address.
type addrValue struct{ addr *netip.Addr }

func (v addrValue) Type() string { return "address" }

func (v addrValue) String() string {
	if v.addr == nil || !v.addr.IsValid() {
		return ""
	}
	return v.addr.String()
}

func (v addrValue) Set(s string) error {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return fmt.Errorf("%q is not an IP address", s)
	}
	*v.addr = a.Unmap()
	return nil
}

// prefixesValue is a list of ranges: repeated, or separated by commas. The
// first use replaces the default.
type prefixesValue struct {
	list *[]netip.Prefix
	used bool
}

func (v *prefixesValue) Type() string { return "CIDRs" }

func (v *prefixesValue) String() string {
	if v == nil || v.list == nil {
		return ""
	}
	return join(*v.list)
}

func (v *prefixesValue) Set(s string) error {
	var list []netip.Prefix
	if v.used {
		list = *v.list
	}
	for _, part := range strings.Split(s, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(part))
		if err != nil {
			return fmt.Errorf("%q is not a range of addresses such as 10.244.0.0/16", part)
		}
		if p != p.Masked() {
			return fmt.Errorf("%q has bits set beyond its length; did you mean %s?", part, p.Masked())
		}
		list = append(list, p)
	}
	*v.list, v.used = list, true
	return nil
}

func join[T fmt.Stringer](list []T) string {
	var out []string
	for _, v := range list {
		out = append(out, v.String())
	}
	return strings.Join(out, ",")
}

// countersValue is --counters: what is counted of the traffic through services.
type countersValue struct{ off, bytes *bool }

func registerCounters(f *pflag.FlagSet, off, bytes *bool) {
	f.Var(countersValue{off, bytes}, "counters", "what to count by service and endpoint: connections, bytes (connections and bytes; costs a lookup per packet), or off")
}

func (v countersValue) Type() string { return "what" }

func (v countersValue) String() string {
	switch {
	case v.off == nil:
		return ""
	case *v.off:
		return "off"
	case *v.bytes:
		return "bytes"
	}
	return "connections"
}

func (v countersValue) Set(s string) error {
	if s != "connections" && s != "bytes" && s != "off" {
		return errors.New("want connections, bytes or off")
	}
	*v.off, *v.bytes = s == "off", s == "bytes"
	return nil
}
