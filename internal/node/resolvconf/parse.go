package resolvconf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
)

const (
	// HostPath is where a host keeps its resolver configuration.
	HostPath = "/etc/resolv.conf"
	// ResolvedPath is what systemd-resolved keeps beside its stub: the
	// servers the stub itself asks. systemd-resolved.service(8).
	ResolvedPath = "/run/systemd/resolve/resolv.conf"

	resolvedStub = "127.0.0.53"
	maxFileSize  = 10 << 20
)

// Parse reads a resolv.conf as the kubelet does: `search` and not `domain`,
// the last search line wins, options of all lines are merged, other keywords
// and lines that begin with # are passed over. Search entries lose a trailing
// dot and a lone dot is dropped: `search .` means no search, and old glibc and
// musl trip over it.
func Parse(r io.Reader) (Config, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxFileSize+1))
	if err != nil {
		return Config{}, err
	}
	if len(text) > maxFileSize {
		return Config{}, fmt.Errorf("more than %d MiB", maxFileSize>>20)
	}
	var c Config
	number := 0
	for line := range bytes.Lines(text) {
		number++
		fields := strings.Fields(string(line))
		if len(fields) == 0 {
			continue
		}
		switch keyword, rest := fields[0], fields[1:]; keyword {
		case "nameserver":
			if len(rest) == 0 {
				return Config{}, fmt.Errorf("line %d: nameserver without an address", number)
			}
			c.Nameservers = append(c.Nameservers, rest[0])
		case "search":
			c.Searches = nil
			for _, s := range rest {
				if s = strings.TrimSuffix(s, "."); s != "" {
					c.Searches = append(c.Searches, s)
				}
			}
		case "options":
			for _, o := range rest {
				c.setOption(o)
			}
		}
	}
	return c, nil
}

// ReadHost reads the host's file. Where that names systemd-resolved's stub,
// which only listens on the host's own loopback, the file behind it is read
// instead; other loopback servers are dropped for the same reason. Each such
// step is told in the notes.
func ReadHost(path, resolvedPath string) (c Config, notes []string, err error) {
	c, err = readFile(path)
	if err != nil {
		return Config{}, nil, err
	}
	if slices.Contains(c.Nameservers, resolvedStub) {
		if _, err := os.Stat(resolvedPath); err == nil {
			if c, err = readFile(resolvedPath); err != nil {
				return Config{}, nil, err
			}
			notes = append(notes, fmt.Sprintf("%s names systemd-resolved's stub %s, which a pod cannot reach: using %s", path, resolvedStub, resolvedPath))
		}
	}
	kept := c.Nameservers[:0:0]
	for _, s := range c.Nameservers {
		if loopback(s) {
			notes = append(notes, fmt.Sprintf("nameserver %s in %s is a loopback address, which a pod cannot reach: left out", s, path))
			continue
		}
		kept = append(kept, s)
	}
	c.Nameservers = kept
	return c, notes, nil
}

func readFile(path string) (Config, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return Config{}, fmt.Errorf("this host has no %s: create it, if need be empty", path)
	}
	if err != nil {
		return Config{}, fmt.Errorf("reading the host's resolver configuration: %w", err)
	}
	defer f.Close()
	c, err := Parse(f)
	if err != nil {
		return Config{}, fmt.Errorf("reading %s: %w", path, err)
	}
	return c, nil
}

func loopback(server string) bool {
	a, err := netip.ParseAddr(server)
	return err == nil && a.Unmap().IsLoopback()
}
