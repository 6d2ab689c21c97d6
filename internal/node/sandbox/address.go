package sandbox

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
)

// Gateway is the address by which the pods of a CIDR see their node: its
// first usable one.
func Gateway(cidr netip.Prefix) netip.Addr { return cidr.Masked().Addr().Next() }

// allocate gives out one address per pod CIDR. The run directory is locked.
//
// An address goes out again as late as the CIDR's size allows, because clients
// and connection tracking remember the pod that had it: the search begins
// behind the address given out last.
func allocate(runDir string, cidrs []netip.Prefix, used map[netip.Addr]bool) ([]netip.Addr, error) {
	path := filepath.Join(runDir, podsDir, lastFile)
	last := make(map[netip.Prefix]netip.Addr)
	if text, err := os.ReadFile(path); err == nil {
		// A torn file costs only the memory of what went out last.
		_ = json.Unmarshal(text, &last)
	}
	var out []netip.Addr
	for _, cidr := range cidrs {
		cidr = cidr.Masked()
		addr, ok := nextFree(cidr, last[cidr], used)
		if !ok {
			return nil, fmt.Errorf("no free address in pod CIDR %s: %d are in use; stop a pod (rutter ps) or give the node a larger CIDR (--pod-cidr of the agent)", cidr, len(used))
		}
		last[cidr] = addr
		out = append(out, addr)
	}
	text, err := json.Marshal(last)
	if err != nil {
		return nil, err
	}
	if err := replaceFile(path, text); err != nil {
		return nil, fmt.Errorf("remembering the address given out: %w", err)
	}
	return out, nil
}

// nextFree walks once round the CIDR, from behind last. Network address,
// gateway and, in IPv4, broadcast address are never given out.
func nextFree(cidr netip.Prefix, last netip.Addr, used map[netip.Addr]bool) (netip.Addr, bool) {
	first := Gateway(cidr).Next()
	if last.IsValid() && first.Compare(last) <= 0 {
		if a, ok := freeFrom(last.Next(), cidr, used); ok {
			return a, true
		}
	}
	return freeFrom(first, cidr, used)
}

func freeFrom(a netip.Addr, cidr netip.Prefix, used map[netip.Addr]bool) (netip.Addr, bool) {
	for cidr.Contains(a) && (a.Is6() || cidr.Contains(a.Next())) {
		if !used[a] {
			return a, true
		}
		a = a.Next()
	}
	return netip.Addr{}, false
}

func sortByAge(list []Entry) {
	slices.SortFunc(list, func(a, b Entry) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
}
