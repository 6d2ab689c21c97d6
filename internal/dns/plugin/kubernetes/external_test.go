package kubernetes_test

import (
	"testing"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/kubernetes"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

func TestOwns(t *testing.T) {
	s := plugintest.Start(t, "cluster.local {\nkubernetes cluster.local\n}\n",
		plugin.Entry{Name: "kubernetes", Setup: kubernetes.Setup(published().ForAll), Effect: plugin.Local})
	k := s.Block.First().(*kubernetes.Kubernetes)
	for name, want := range map[string]bool{
		"\x03web\x04test\x03svc\x07cluster\x05local\x00":                  true,
		"\x05_http\x04_tcp\x03web\x04test\x03svc\x07cluster\x05local\x00": true,
		"\x04nope\x04test\x03svc\x07cluster\x05local\x00":                 false,
		"\x03web\x04test\x03pod\x07cluster\x05local\x00":                  false,
		"\x04test\x03svc\x07cluster\x05local\x00":                         false,
		"\x07cluster\x05local\x00":                                        false,
		"\x03web\x04test\x03svc\x07example\x03org\x00":                    false,
		"\x011\x011\x0297\x0210\x07in-addr\x04arpa\x00":                   true,
		"\x019\x019\x0297\x0210\x07in-addr\x04arpa\x00":                   false,
		"\x0297\x0210\x07in-addr\x04arpa\x00":                             false,
		"\x00":                                                            false,
	} {
		if got := k.Owns([]byte(name)); got != want {
			t.Errorf("%q: got %t", name, got)
		}
	}
}
