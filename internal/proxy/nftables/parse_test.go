package nftables

import (
	"net/netip"
	"testing"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/nfnetlink"
)

// What is written about elements reads back the same; and whatever comes,
// reading it ends.
func FuzzParse(f *testing.F) {
	web := front{netip.MustParseAddr("10.96.0.1"), 80, catalog.TCP}
	ep := netip.MustParseAddrPort("10.0.0.1:8080")
	read := func(entry []byte) (key, data string) {
		nfnetlink.Attributes(entry, func(_ uint16, elem []byte) { key, data = parseElement(elem) })
		return key, data
	}
	slot := appendSlot(nil, web, 7, ep, true)
	if key, data := read(slot); key != string(nfnetlink.Native.AppendUint32(appendFront(nil, web), 7)) || parseAddrPort(data) != ep {
		f.Fatalf("slot: %q %q", key, data)
	}
	e := element{set: setServices, front: web, value: gotoChain("cluster-ip-1")}
	if key, data := read(e.append(nil, true)); key != string(appendFront(nil, web)) || data != "\xff\xff\xff\xfccluster-ip-1\x00" {
		f.Fatalf("verdict: %q %q", key, data)
	}
	source := element{set: setSources, front: web, extra: netip.MustParsePrefix("10.1.0.0/16")}
	if key, _ := read(source.append(nil, true)); key[len(key)-4:] != "\x0a\x01\xff\xff" {
		f.Fatalf("range: %q", key)
	}
	if key, data := read(appendKeyOnly(nil, slot)); data != "" || key == "" {
		f.Fatalf("key only: %q %q", key, data)
	}
	f.Add(slot)
	f.Add(e.append(nil, true))
	f.Fuzz(func(t *testing.T, b []byte) {
		key, data := parseElement(b)
		parseAddrPort(data)
		parseNumber(data)
		parseCounter(b)
		parseFlow(key, false)
		parseFlow(key, true)
		parseGeneration(b)
		tableOf(b)
	})
}
