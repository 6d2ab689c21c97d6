package demo

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
)

func TestServe(t *testing.T) {
	ctx, term := context.WithCancel(context.Background())
	defer term()
	logR, logW := io.Pipe()
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, "127.0.0.1:0", logW) }()
	log := bufio.NewScanner(logR)
	log.Scan()
	_, address, ok := strings.Cut(log.Text(), " listens on ")
	if !ok {
		t.Fatalf("log %q", log.Text())
	}
	go func() { // the rest of the log
		for log.Scan() {
		}
	}()
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + address
	ask := func(method, path, body string) string {
		t.Helper()
		req, err := http.NewRequest(method, url+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(res.StatusCode, " ", string(text))
	}
	who := "200 " + name + " 127.0.0.1 (you are 127.0.0.1)\n"
	for _, c := range []struct{ method, path, body, want string }{
		{"GET", "/", "", who},
		{"GET", "/any/thing", "", who},
		{"GET", "/readyz", "", "200 ok\n"},
		{"POST", "/", "readyz=err", "200 " + name + " 127.0.0.1 ready: false\n"},
		{"GET", "/readyz", "", "503 err\n"},
		{"GET", "/", "", who},
		{"POST", "/readyz", "ok\n", "200 " + name + " 127.0.0.1 ready: true\n"},
		{"GET", "/readyz", "", "200 ok\n"},
		{"POST", "/", "readyz=maybe", "400 want readyz=ok or readyz=err\n"},
		{"POST", "/", strings.Repeat("x", 10_000), "400 want readyz=ok or readyz=err\n"},
	} {
		if got := ask(c.method, c.path, c.body); got != c.want {
			t.Errorf("%s %s %.20s: %q, want %q", c.method, c.path, c.body, got, c.want)
		}
	}

	// A request that is being sent when TERM comes is answered.
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nreadyz")
	term()
	if got := ask("GET", "/readyz", ""); got != "503 err\n" { // still accepts, and says it ends
		t.Logf("readiness just after TERM: %q", got) // the server may not have seen it yet
	}
	fmt.Fprintf(conn, "=ok")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(res.Body); err != nil || !strings.HasPrefix(string(text), name) {
		t.Errorf("the open request got %q, %v", text, err)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp", address); err == nil {
		_ = c.Close()
		t.Error("still listens")
	}
}

func TestServeAddressTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := Serve(context.Background(), l.Addr().String(), io.Discard); err == nil || !strings.Contains(err.Error(), "listening on "+l.Addr().String()) {
		t.Errorf("%v", err)
	}
}
