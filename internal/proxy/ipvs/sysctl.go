package ipvs

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// setSysctls sets what kube-proxy sets in this mode.
func (d *Dataplane) setSysctls() error {
	list := []struct{ key, value string }{
		// Connections are in connection tracking too: without that they cannot
		// be masqueraded.
		{"net/ipv4/vs/conntrack", "1"},
		// Connections to a destination that was removed end at once.
		{"net/ipv4/vs/expire_nodest_conn", "1"},
		// Session affinity does not lead to a destination that drains.
		{"net/ipv4/vs/expire_quiescent_template", "1"},
		{"net/ipv4/ip_forward", "1"},
	}
	if old, err := connReuseIsBroken(); err != nil {
		return err
	} else if old {
		list = append(list, struct{ key, value string }{"net/ipv4/vs/conn_reuse_mode", "0"})
	}
	if d.opts.StrictARP {
		list = append(list, []struct{ key, value string }{
			{"net/ipv4/conf/all/arp_ignore", "1"},
			{"net/ipv4/conf/all/arp_announce", "2"},
		}...)
	}
	for _, s := range list {
		path := "/proc/sys/" + s.key
		have, err := os.ReadFile(path)
		if err == nil && strings.TrimSpace(string(have)) == s.value {
			continue
		}
		if err == nil {
			err = os.WriteFile(path, []byte(s.value), 0)
		}
		if err != nil {
			return fmt.Errorf("set sysctl %s to %s: %w", strings.ReplaceAll(s.key, "/", "."), s.value, err)
		}
	}
	return nil
}

// connReuseIsBroken tells whether this kernel delays a new connection from the
// port of an old one by a second: Linux 4.1 to 5.8 (kubernetes #81775, #93297).
func connReuseIsBroken() (bool, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return false, fmt.Errorf("find the kernel's version: %w", err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		return false, nil
	}
	return major == 4 && minor >= 1 || major == 5 && minor < 9, nil
}
