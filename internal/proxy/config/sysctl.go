package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Setting is a kernel setting: a file below /proc/sys, or /sys for a path that
// begins so, and the value it is to have.
type Setting struct {
	Key, Value string
	// AtLeast leaves a value that is larger as it is.
	AtLeast bool
}

// maxConntrack caps the limit of tracked connections, as kube-proxy does.
const maxConntrack = 1 << 20

// Settings are the kernel settings that the configuration asks for, on a host
// with so many CPUs.
func (c *Config) Settings(cpus int) []Setting {
	var s []Setting
	ct := &c.Conntrack
	const prefix = "net/netfilter/nf_conntrack_"
	if perCore := int(*ct.MaxPerCore); perCore > 0 {
		limit := min(max(int(*ct.Min), perCore*cpus), maxConntrack)
		s = append(s,
			Setting{prefix + "max", strconv.Itoa(limit), false},
			Setting{"/sys/module/nf_conntrack/parameters/hashsize", strconv.Itoa(limit / 4), true})
	}
	for _, t := range []struct {
		name  string
		value time.Duration
	}{
		{"tcp_timeout_established", ct.TCPEstablishedTimeout.Value()},
		{"tcp_timeout_close_wait", ct.TCPCloseWaitTimeout.Value()},
		{"udp_timeout", ct.UDPTimeout.Value()},
		{"udp_timeout_stream", ct.UDPStreamTimeout.Value()},
	} {
		if t.value > 0 {
			s = append(s, Setting{prefix + t.name, strconv.Itoa(int(t.value / time.Second)), false})
		}
	}
	if ct.TCPBeLiberal {
		s = append(s, Setting{prefix + "tcp_be_liberal", "1", false})
	}
	return s
}

// Apply writes the setting unless the kernel has it already.
func (s Setting) Apply() error {
	path := s.Key
	if !strings.HasPrefix(path, "/") {
		path = filepath.Join("/proc/sys", path)
	}
	now, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("kernel setting %s: %w", s.Key, err)
	}
	have := strings.TrimSpace(string(now))
	if have == s.Value {
		return nil
	}
	if s.AtLeast {
		h, err1 := strconv.Atoi(have)
		w, err2 := strconv.Atoi(s.Value)
		if err1 == nil && err2 == nil && h >= w {
			return nil
		}
	}
	if err := os.WriteFile(path, []byte(s.Value), 0o644); err != nil {
		return fmt.Errorf("kernel setting %s cannot be made %s (it is %s): %w", s.Key, s.Value, have, err)
	}
	return nil
}

// CPUs is the number of this host's CPUs, whatever share of them this process
// has.
func CPUs() int {
	text, err := os.ReadFile("/sys/devices/system/cpu/present")
	if err != nil {
		return 1
	}
	return max(1, countRanges(strings.TrimSpace(string(text))))
}

// countRanges counts the numbers of a list such as 0-3,8.
func countRanges(list string) int {
	n := 0
	for _, part := range strings.Split(list, ",") {
		from, to, isRange := strings.Cut(part, "-")
		a, err := strconv.Atoi(from)
		if err != nil {
			continue
		}
		b := a
		if isRange {
			if b, err = strconv.Atoi(to); err != nil {
				continue
			}
		}
		n += max(0, b-a+1)
	}
	return n
}
