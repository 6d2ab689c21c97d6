package loop_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/bind"
	"github.com/rutter-project/rutter/internal/dns/plugin/forward"
	"github.com/rutter-project/rutter/internal/dns/plugin/loop"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
	"github.com/rutter-project/rutter/internal/dns/server"
)

// TestServerThatAsksItself: a real server that forwards to its own address ends.
func TestServerThatAsksItself(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := pc.LocalAddr().String()
	_, port, _ := net.SplitHostPort(addr)
	pc.Close()
	order := []plugin.Entry{
		{Name: "bind", Setup: bind.Setup},
		{Name: "loop", Setup: loop.Setup},
		{Name: "forward", Setup: forward.Setup, Effect: plugin.Answers},
	}
	text := fmt.Sprintf(".:%s {\nbind 127.0.0.1\nloop\nforward . %s\n}\n", port, addr)
	blocks, err := corefile.Parse("Corefile", []byte(text), corefile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	env, _ := plugintest.NewEnv()
	fatal := make(chan error, 16)
	s, err := server.New(server.Config{Blocks: blocks, Plugins: order, Log: env.Log, Fatal: func(err error) {
		select {
		case fatal <- err:
		default:
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := s.Start(ctx); err != nil {
		t.Skipf("the port was taken meanwhile: %v", err)
	}
	t.Cleanup(func() { _ = s.Shutdown(context.WithoutCancel(ctx)) })
	select {
	case err := <-fatal:
		if !strings.Contains(err.Error(), "Loop (") {
			t.Error(err)
		}
	case <-ctx.Done():
		t.Error("the loop was not detected within 30 s")
	}
}
