package proxy_test

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/rutter-project/rutter/internal/proxy/testnet"
)

// keepsServing makes connections to 10.96.0.1:80 while f runs, and keeps one
// open: none may fail. f may wait until some more were made.
func (w *world) keepsServing(f func(more func())) {
	t := w.t
	t.Helper()
	long, err := w.client.Dial("tcp", "10.96.0.1:80", "")
	if err != nil {
		t.Fatal(err)
	}
	defer long.Close()
	greeting := testnet.Answer(long)
	stop := make(chan struct{})
	var load sync.WaitGroup
	var asked atomic.Int64
	load.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if got := w.client.Ask("tcp", "10.96.0.1:80", ""); got == testnet.Refused || got == testnet.Silence {
				t.Errorf("a new connection: %q", got)
			}
			asked.Add(1)
		}
	})
	more := func() {
		for n := asked.Load(); asked.Load() < n+20; {
			time.Sleep(time.Millisecond)
		}
	}
	more()
	f(more)
	more()
	close(stop)
	load.Wait()
	if _, err := long.Write([]byte(greeting)); err != nil {
		t.Fatal(err)
	}
	if got := testnet.Answer(long); got != greeting {
		t.Errorf("the connection that stood: %q, before %q", got, greeting)
	}
}
