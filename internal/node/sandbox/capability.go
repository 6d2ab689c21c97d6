package sandbox

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// What a sandbox needs and what for.
var needed = []struct {
	bit  int
	name string
	use  string
}{
	{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", "interfaces and routes"},
	{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN", "namespaces and mounts"},
	{unix.CAP_SYS_CHROOT, "CAP_SYS_CHROOT", "entering a mount namespace"},
}

// CheckPrivilege tells which capabilities the calling process lacks for making
// sandboxes.
func CheckPrivilege() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("reading this process's capabilities: %w", err)
	}
	var missing []string
	for _, n := range needed {
		if data[n.bit/32].Effective&(1<<(n.bit%32)) == 0 {
			missing = append(missing, fmt.Sprintf("%s (%s)", n.name, n.use))
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("missing privilege: %s; run it as root", strings.Join(missing, ", "))
	}
	return nil
}
