package cancel

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

var order = []plugin.Entry{{Name: name, Setup: Setup}}

func TestRefuses(t *testing.T) {
	plugintest.Refuses(t, order, [][2]string{
		{"cancel 0s", "too short"},
		{"cancel -1s", "too short"},
		{"cancel 5", "not a duration"},
		{"cancel 1s 1s", "wrong arguments"},
	})
	plugintest.Accepts(t, order, "cancel", "cancel 1s")
}

// waiter waits for the end of the query.
type waiter struct{}

func (waiter) Name() string { return "waiter" }

func (waiter) ServeDNS(ctx context.Context, _ dns.ResponseWriter, _ *dns.Msg) (int, error) {
	<-ctx.Done()
	return dns.RcodeServerFailure, ctx.Err()
}

func TestDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &handler{next: waiter{}, timeout: 3 * time.Second}
		start := time.Now()
		_, err := h.ServeDNS(t.Context(), &plugintest.Writer{}, new(dns.Msg))
		if took := time.Since(start); took != h.timeout || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ended after %s with %v", took, err)
		}
	})
}
