package etcd

import (
	"bufio"
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// childDir makes this test binary an etcd on the directory that it names.
const childDir = "RUTTER_TEST_ETCD_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		e, err := StartEmbedded(context.Background(), dir, filepath.Join(dir, "..", "socket"), slog.New(slog.DiscardHandler), func(err error) { panic(err) })
		if err != nil {
			panic(err)
		}
		os.Stdout.WriteString("ready\n")
		<-e.Err()
	}
	os.Exit(m.Run())
}

// TestKilledAtAnyPoint: a first start that was killed, at whatever point of it,
// can be repeated.
func TestKilledAtAnyPoint(t *testing.T) {
	// A whole start tells how far the points go.
	began := time.Now()
	child, ready := startChild(t, filepath.Join(t.TempDir(), "etcd"))
	<-ready
	whole := time.Since(began)
	child.Process.Kill()
	child.Wait()
	const points = 25
	for i := range points {
		dir := filepath.Join(t.TempDir(), "etcd")
		child, _ := startChild(t, dir)
		time.Sleep(whole * time.Duration(i) / points) // where exactly this falls does not matter: any point must do
		child.Process.Kill()
		child.Wait()
		started(t, dir).Close()
	}
}

// startChild starts an etcd in a process of its own; ready is closed when it
// is, or has ended.
func startChild(t *testing.T, dir string) (child *exec.Cmd, ready <-chan struct{}) {
	t.Helper()
	child = exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childDir+"="+dir)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = bufio.NewReader(out).ReadString('\n')
	}()
	return child, done
}
