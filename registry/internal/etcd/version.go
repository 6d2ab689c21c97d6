package etcd

import (
	"fmt"
	"strconv"
	"strings"
)

// checkVersion refuses an etcd whose watches cannot serve the API server's
// consistent reads from cache: they need progress requests that answer for
// each stream (etcd issue 15220), fixed in 3.4.31 and 3.5.13. With an older
// one the API server starts, and then lists time out.
func checkVersion(endpoint, version string) error {
	var v [3]int
	for i, p := range strings.SplitN(strings.SplitN(version, "-", 2)[0], ".", 3) {
		n, err := strconv.Atoi(p)
		if err != nil {
			return fmt.Errorf("etcd at %s reports the version %q, which cannot be read; use etcd 3.5.13 or later", endpoint, version)
		}
		v[i] = n
	}
	var ok bool
	switch major, minor, patch := v[0], v[1], v[2]; {
	case major != 3:
		ok = major > 3
	case minor == 4:
		ok = patch >= 31
	case minor == 5:
		ok = patch >= 13
	default:
		ok = minor > 5
	}
	if !ok {
		return fmt.Errorf("etcd at %s is version %s, too old for this API server; use etcd 3.5.13 or later (3.4.31 for 3.4)", endpoint, version)
	}
	return nil
}
