package dns64

import (
	"net"
	"net/netip"
	"testing"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

var order = []plugin.Entry{{Name: name, Setup: Setup}, plugintest.Records(plugin.Answers)}

func TestScripts(t *testing.T) { plugintest.Scripts(t, order...) }

func TestEmbed(t *testing.T) {
	// The table of RFC 6052 §2.4.
	for prefix, want := range map[string]string{
		"2001:db8::/32":         "2001:db8:c000:221::",
		"2001:db8:100::/40":     "2001:db8:1c0:2:21::",
		"2001:db8:122::/48":     "2001:db8:122:c000:2:2100::",
		"2001:db8:122:300::/56": "2001:db8:122:3c0:0:221::",
		"2001:db8:122:344::/64": "2001:db8:122:344:c0:2:2100::",
		"2001:db8:122:344::/96": "2001:db8:122:344::192.0.2.33",
		"64:ff9b::/96":          "64:ff9b::192.0.2.33",
	} {
		if got := embed(netip.MustParsePrefix(prefix), net.IPv4(192, 0, 2, 33).To4()); !got.Equal(net.ParseIP(want)) {
			t.Errorf("%s: got %s, want %s", prefix, got, want)
		}
	}
}

func TestRefuses(t *testing.T) {
	plugintest.Refuses(t, order, [][2]string{
		{"dns64 64:ff9b::/97", "no prefix"},
		{"dns64 64:ff9b::/24", "no prefix"},
		{"dns64 64:ff9b::/33", "no prefix"},
		{"dns64 10.0.0.0/8", "no prefix"},
		{"dns64 x", "no prefix"},
		{"dns64 a b", "wrong arguments"},
		{"dns64 {\nprefix\n}", "wrong arguments"},
		{"dns64 {\ntranslate_al\n}", `did you mean "translate_all"?`},
		{"dns64 {\nallow_ipv4 yes\n}", "no argument"},
	})
	plugintest.Accepts(t, order, "dns64", "dns64 2001:db8::/32", "dns64 {\nprefix 2001:db8::/64\ntranslate_all\nallow_ipv4\n}")
}
