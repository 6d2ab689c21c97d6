package forward

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// health is what is known of an upstream. Nothing is asked while all is well:
// an error of a real query starts a check, which goes on until one succeeds.
//
//	up ──error of a query──▶ checking ──more than max_fails failed──▶ down
//	▲                            │                                   │
//	└────────a check succeeds────┴──────────────────────────────────────┘
type health struct {
	fails    atomic.Int32 // failed checks in a row
	mu       sync.Mutex
	checking bool
}

// down tells whether the upstream should be passed over: when more than
// maxFails checks failed in a row (CoreDNS counts so).
func (u *upstream) down(maxFails int) bool {
	return maxFails > 0 && int(u.health.fails.Load()) > maxFails
}

// check is what the health checks ask.
type check struct {
	interval time.Duration
	recurse  bool
	domain   string
	tcp      bool
}

const checkTimeout = 1 * time.Second

// suspect starts the checks unless they are running. They end with ctx; wg
// tells when.
func (u *upstream) suspect(ctx context.Context, wg *sync.WaitGroup, c check) {
	u.health.mu.Lock()
	defer u.health.mu.Unlock()
	if u.health.checking || ctx.Err() != nil {
		return
	}
	u.health.checking = true
	wg.Go(func() {
		for !u.probe(ctx, c) && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(c.interval):
			}
		}
		u.health.mu.Lock()
		u.health.checking = false
		u.health.mu.Unlock()
	})
}

// probe asks once and keeps count. Any reply at all is a sign of life.
func (u *upstream) probe(ctx context.Context, c check) bool {
	m := new(dns.Msg)
	m.SetQuestion(c.domain, dns.TypeNS)
	m.RecursionDesired = c.recurse
	query, err := pack(m, dns.MaxMsgSize)
	if err == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, checkTimeout)
		defer cancel()
		_, err = u.roundTrip(ctx, query, c.tcp, nil)
	}
	if err == nil {
		u.health.fails.Store(0)
		return true
	}
	if ctx.Err() == context.Canceled {
		return false // shutting down: says nothing of the upstream
	}
	u.health.fails.Add(1)
	u.metrics.checkFailed(u.addr)
	return false
}
