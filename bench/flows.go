package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// connections is what new connections cost.
type connections struct {
	rate     float64 // a second, with as many clients as CPUs
	p50, p99 time.Duration
}

// connect opens new connections to the addresses in turn: one after the other,
// each timed, then from two clients at once.
func (g *ground) connect(to []netip.Addr, n int) (connections, error) {
	var c connections
	// Every seventh address: neighbours may share more than strangers.
	pick := func(i int) netip.Addr { return to[i*7919%len(to)] }
	took := make([]time.Duration, 0, n/4)
	failed := 0
	err := g.client.Do(func() error {
		for i := range n / 4 {
			if failed > 10 {
				return fmt.Errorf("%d of %d connections failed", failed, i)
			}
			start := time.Now()
			if dial(i, pick(i), time.Second) {
				took = append(took, time.Since(start))
			} else {
				failed++
			}
		}
		return nil
	})
	if err != nil {
		return c, err
	}
	var mu sync.Mutex
	var clients sync.WaitGroup
	start := time.Now()
	const at = 2
	for k := range at {
		clients.Go(func() {
			e := g.client.Do(func() error {
				lost := 0
				for i := range n / at {
					if !dial(i, pick(k*n/at+i), time.Second) {
						lost++
					}
				}
				mu.Lock()
				failed += lost
				mu.Unlock()
				return nil
			})
			mu.Lock()
			err = errors.Join(err, e)
			mu.Unlock()
		})
	}
	clients.Wait()
	c.rate = float64(n) / time.Since(start).Seconds()
	if failed > n/1000 {
		return c, errors.Join(err, fmt.Errorf("%d of %d connections failed", failed, n+n/4))
	}
	slices.Sort(took)
	c.p50, c.p99 = percentile(took, 50), percentile(took, 99)
	return c, err
}

// throughput sends for a while over one connection; the result is bits a second.
func (g *ground) throughput(to netip.AddrPort, during time.Duration) (float64, error) {
	var c net.Conn
	err := g.client.Do(func() (err error) {
		c, err = net.DialTimeout("tcp4", to.String(), 5*time.Second)
		return err
	})
	if err != nil {
		return 0, err
	}
	defer c.Close()
	data := make([]byte, 256<<10)
	start, sent := time.Now(), 0
	for time.Since(start) < during {
		k, err := c.Write(data)
		sent += k
		if err != nil {
			return 0, err
		}
	}
	// What the kernel still holds was not sent.
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	queued := 0
	err = raw.Control(func(fd uintptr) { queued, _ = unix.IoctlGetInt(int(fd), unix.TIOCOUTQ) })
	return float64(sent-queued) * 8 / time.Since(start).Seconds(), err
}
