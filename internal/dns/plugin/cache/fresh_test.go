package cache_test

import (
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/cache"
	"github.com/rutter-project/rutter/internal/dns/plugin/forward"
	"github.com/rutter-project/rutter/internal/dns/plugin/hosts"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

// TestDenialOfNewName: an upstream denied a name, which is cached; then the name
// stands in the hosts file, and is answered from there at once.
func TestDenialOfNewName(t *testing.T) {
	var asked atomic.Int32
	upstream := plugintest.Upstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
		asked.Add(1)
		_ = w.WriteMsg(plugintest.Reply(r, dns.RcodeNameError, "test. 600 IN SOA ns.test. h.test. 1 2 3 4 600"))
	})
	path := plugintest.WriteFiles(t, map[string]string{"hosts": ""}) + "/hosts"
	s := plugintest.Start(t, ". {\ncache\nhosts "+path+" {\nreload 5ms\nfallthrough\n}\nforward . "+upstream+"\n}\n",
		plugin.Entry{Name: "cache", Setup: cache.Setup, Effect: plugin.Answers},
		plugin.Entry{Name: "hosts", Setup: hosts.Setup, Effect: plugin.Local},
		plugin.Entry{Name: "forward", Setup: forward.Setup, Effect: plugin.Answers})
	for range 3 {
		m, err := s.Ask("new.test. A")
		if err != nil || m.Rcode != dns.RcodeNameError {
			t.Fatalf("%v %v", m, err)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("the upstream was asked %d times, want once", n)
	}
	if err := os.WriteFile(path, []byte("192.0.2.1 new.test\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		m, err := s.Ask("new.test. A")
		if err != nil {
			t.Fatal(err)
		}
		if text := plugintest.Text(m); strings.Contains(text, "192.0.2.1") {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Error("the denial is still answered 5 s after the name appeared")
}
