package proxy_test

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/proxy"
	"github.com/rutter-project/rutter/internal/proxy/testnet"
)

func TestLock(t *testing.T) {
	testnet.New(t, "n").Do(func() {
		// What any user can do keeps nobody out.
		f, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			t.Fatal(err)
		}
		first, err := proxy.Lock()
		if err != nil {
			t.Fatal(err)
		}
		if second, err := proxy.Lock(); err == nil {
			second.Close()
			t.Error("two have the lock")
		}
		first.Close()
		again, err := proxy.Lock()
		if err != nil {
			t.Fatalf("after it was let go: %v", err)
		}
		again.Close()
	})
}
