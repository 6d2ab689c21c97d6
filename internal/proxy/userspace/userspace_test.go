package userspace

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// The tests relay on addresses of 127.0.0.0/8, without privilege. What the
// kernel does with tables is tested by the conformance table and by package
// proxy's changes of mode.

const bound = time.Minute // for anything that is waited for

type world struct {
	t *testing.T
	*Dataplane
	front netip.AddrPort
}

// fronts gives each test a service address of its own.
var fronts struct {
	sync.Mutex
	n byte
}

func newWorld(t *testing.T) *world {
	t.Helper()
	d, err := Open(dataplane.Config{IPv4: true, Counters: true, CountBytes: true, Logger: slog.New(slog.DiscardHandler)}, true)
	if err != nil {
		t.Fatal(err)
	}
	fronts.Lock()
	fronts.n++
	w := &world{t, d, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 77, byte(unix.Getpid()), fronts.n}), 28080)}
	fronts.Unlock()
	t.Cleanup(func() { d.Close() })
	return w
}

// apply makes the service lead to endpoints, by TCP and UDP.
func (w *world) apply(change func(*plan.Port), endpoints ...netip.AddrPort) {
	w.t.Helper()
	s := plan.Service{Name: catalog.ServiceName{Namespace: "default", Name: "web"}}
	for _, proto := range []catalog.Protocol{catalog.TCP, catalog.UDP} {
		p := plan.Port{Protocol: proto, ClusterIP: w.front, Cluster: endpoints, Serving: endpoints, Usable: len(endpoints) > 0}
		if change != nil {
			change(&p)
		}
		s.Ports = append(s.Ports, p)
	}
	refused, err := w.Apply(w.t.Context(), []plan.Service{s})
	if err != nil || len(refused) > 0 {
		w.t.Fatal(refused, err)
	}
}

// server serves TCP connections with f until the test ends.
func server(t *testing.T, f func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go f(c.(*net.TCPConn))
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

// named answers each line with a name.
func named(t *testing.T, name string) netip.AddrPort {
	return server(t, func(c *net.TCPConn) {
		defer c.Close()
		buf := make([]byte, 100)
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
			if _, err := io.WriteString(c, name); err != nil {
				return
			}
		}
	})
}

// closedPort is an address that refuses connections. Its port is none of those
// that the kernel gives to clients: one that connects from there would have
// itself as its peer.
func closedPort(t *testing.T) netip.AddrPort {
	for range 100 {
		l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", 20000+mathrand.IntN(8000)))
		if err == nil {
			defer l.Close()
			return netip.MustParseAddrPort(l.Addr().String())
		}
	}
	t.Fatal("no port is free")
	return netip.AddrPort{}
}

func (w *world) dial(network string) net.Conn {
	w.t.Helper()
	c, err := net.Dial(network, w.front.String())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(bound))
	return c
}

// ask says something and returns what is answered.
func ask(c net.Conn) (string, error) {
	if _, err := io.WriteString(c, "who?"); err != nil {
		return "", err
	}
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

func (w *world) expect(c net.Conn, want string) {
	w.t.Helper()
	if got, err := ask(c); err != nil || got != want {
		w.t.Fatalf("answer %q, error %v, want %q", got, err, want)
	}
}

// TestHalfClose: either side may end first and still hear the other.
func TestHalfClose(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789"), 1<<17)
	w := newWorld(t)
	w.apply(nil, server(t, func(c *net.TCPConn) { // hears all, then says how much
		defer c.Close()
		n, _ := io.Copy(io.Discard, c)
		fmt.Fprint(c, n)
	}))
	c := w.dial("tcp").(*net.TCPConn)
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != fmt.Sprint(len(data)) {
		t.Errorf("after the client's end: %q, %v", got, err)
	}

	heard := make(chan int64, 1)
	w.apply(nil, server(t, func(c *net.TCPConn) { // says its last word first
		defer c.Close()
		_, _ = io.WriteString(c, "bye")
		_ = c.CloseWrite()
		n, _ := io.Copy(io.Discard, c)
		heard <- n
	}))
	c = w.dial("tcp").(*net.TCPConn)
	if got, err := io.ReadAll(c); err != nil || string(got) != "bye" {
		t.Errorf("the server's word: %q, %v", got, err)
	}
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	c.Close()
	select {
	case n := <-heard:
		if n != int64(len(data)) {
			t.Errorf("after its end the server heard %d of %d bytes", n, len(data))
		}
	case <-time.After(bound):
		t.Error("the server hears no end")
	}
}

// TestTransfer pours both ways at once: what is read, written and spliced is
// what was sent.
func TestTransfer(t *testing.T) {
	w := newWorld(t)
	there, back := make([]byte, 24<<20), make([]byte, 17<<20+13)
	_, _ = rand.Read(there)
	_, _ = rand.Read(back)
	heard := make(chan [32]byte, 1)
	w.apply(nil, server(t, func(c *net.TCPConn) {
		defer c.Close()
		var said sync.WaitGroup
		defer said.Wait()
		said.Go(func() {
			_, _ = c.Write(back)
			_ = c.CloseWrite()
		})
		h := sha256.New()
		_, _ = io.Copy(h, c)
		heard <- [32]byte(h.Sum(nil))
	}))
	c := w.dial("tcp").(*net.TCPConn)
	go func() {
		_, _ = c.Write(there)
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, back) {
		t.Errorf("of %d bytes back came %d, %v", len(back), len(got), err)
	}
	if <-heard != sha256.Sum256(there) {
		t.Error("what was sent there came otherwise")
	}
	counts, err := w.Counters()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range counts {
		if n.Connections != 1 || n.Bytes != uint64(len(there)+len(back)) {
			t.Errorf("counted %+v", n)
		}
	}
}

// TestReset: a reset of either side is one for the other.
func TestReset(t *testing.T) {
	w := newWorld(t)
	got := make(chan error, 1)
	w.apply(nil, server(t, func(c *net.TCPConn) {
		defer c.Close()
		buf := make([]byte, 10)
		n, _ := c.Read(buf)
		if string(buf[:n]) == "reset" {
			_ = c.SetLinger(0)
			return
		}
		_, err := io.ReadAll(c)
		got <- err
	}))
	c := w.dial("tcp")
	if _, err := io.WriteString(c, "reset"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the client sees %v", err)
	}
	c = w.dial("tcp")
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	// The endpoint is there when its connection is counted.
	w.eventually("two connections", func() bool {
		counts, _ := w.Counters()
		for _, n := range counts {
			return n.Connections == 2 && n.Bytes == 10
		}
		return false
	})
	_ = c.(*net.TCPConn).SetLinger(0)
	c.Close()
	select {
	case err := <-got:
		if !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the endpoint sees %v", err)
		}
	case <-time.After(bound):
		t.Error("the endpoint sees nothing")
	}
}

func (w *world) eventually(what string, f func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(bound); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatal("never: " + what)
		}
	}
}

func TestRoundRobinAndAffinity(t *testing.T) {
	w := newWorld(t)
	a, b, c := named(t, "a"), named(t, "b"), named(t, "c")
	w.apply(nil, a, b, c)
	counts := make(map[string]int)
	for range 30 {
		conn := w.dial("tcp")
		name, err := ask(conn)
		if err != nil {
			t.Fatal(err)
		}
		counts[name]++
		conn.Close()
	}
	if counts["a"] != 10 || counts["b"] != 10 || counts["c"] != 10 {
		t.Errorf("spread as %v", counts)
	}
	sticky := func(p *plan.Port) { p.Affinity = time.Hour }
	w.apply(sticky, a, b, c)
	first, err := ask(w.dial("tcp"))
	if err != nil {
		t.Fatal(err)
	}
	for range 6 {
		w.expect(w.dial("tcp"), first)
	}
	// Its endpoint goes; the client has another, and keeps that.
	left := []netip.AddrPort{a, b, c}
	left = slices.Delete(left, int(first[0]-'a'), int(first[0]-'a')+1)
	w.apply(sticky, left...)
	second, err := ask(w.dial("tcp"))
	if err != nil || second == first {
		t.Fatal(second, err)
	}
	w.apply(sticky, a, b, c)
	for range 6 {
		w.expect(w.dial("tcp"), second)
	}
}

// TestRetry: endpoints that refuse, or do not answer, are passed by.
func TestRetry(t *testing.T) {
	w := newWorld(t)
	w.apply(nil, closedPort(t), deaf(t), named(t, "alive"), closedPort(t))
	for range 8 {
		w.expect(w.dial("tcp"), "alive")
	}
}

// deaf is an address at which SYNs are dropped: a listener whose queue is full.
func deaf(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*unix.SockaddrInet4).Port))
	for range 4 { // more than fit; the last ones hang
		c, err := net.DialTimeout("tcp", addr.String(), 50*time.Millisecond)
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
	}
	return addr
}

// TestHold: a connection waits for the first endpoint to come, and for an
// endpoint to begin to listen; a bounded number do, for a bounded time.
func TestHold(t *testing.T) {
	w := newWorld(t)
	w.apply(nil) // no endpoint yet
	c := w.dial("tcp")
	w.eventually("the connection is held", func() bool { return w.held() == 1 })
	w.apply(nil, named(t, "first"))
	w.expect(c, "first")

	w = newWorld(t)
	late := closedPort(t)
	w.apply(nil, late)
	c = w.dial("tcp")
	w.eventually("the connection is held", func() bool { return w.held() == 1 })
	l, err := net.Listen("tcp4", late.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = io.WriteString(c, "late")
			c.Close()
		}
	}()
	if got, err := io.ReadAll(c); err != nil || string(got) != "late" {
		t.Errorf("%q, %v", got, err)
	}

	w = newWorld(t)
	w.apply(nil, closedPort(t))
	var all []net.Conn
	for range holdLimit + 20 {
		c, err := net.Dial("tcp", w.front.String())
		if errors.Is(err, unix.ECONNRESET) {
			continue // before it was looked at
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(bound))
		all = append(all, c)
	}
	for _, c := range all {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Fatalf("nobody to answer: %v", err)
		}
	}
	w.eventually("none is held", func() bool { return w.held() == 0 })
}

// held counts the connections that wait.
func (w *world) held() (n int32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, portals := range w.services {
		for _, p := range portals {
			n += p.held.Load()
		}
	}
	return n
}

// TestEndpointGone: its connections finish, new ones go elsewhere; without any
// endpoint they are refused.
func TestEndpointGone(t *testing.T) {
	w := newWorld(t)
	a, b := named(t, "a"), named(t, "b")
	w.apply(nil, a)
	old := w.dial("tcp")
	w.expect(old, "a")
	w.apply(nil, b)
	w.expect(old, "a")
	w.expect(w.dial("tcp"), "b")
	w.apply(nil)
	w.expect(old, "a")
	if _, err := net.Dial("tcp", w.front.String()); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("without endpoints: %v", err)
	}
	if _, err := w.Apply(t.Context(), []plan.Service{{Name: catalog.ServiceName{Namespace: "default", Name: "web"}}}); err != nil {
		t.Fatal(err)
	}
	w.expect(old, "a")
}

// TestSources: who is in none of the ranges is turned away.
func TestSources(t *testing.T) {
	w := newWorld(t)
	vip := netip.AddrFrom4([4]byte{127, 78, w.front.Addr().As4()[2], w.front.Addr().As4()[3]})
	w.apply(func(p *plan.Port) {
		p.External = []plan.External{{Addr: vip, Sources: []netip.Prefix{netip.MustParsePrefix("127.99.0.0/16")}}}
	}, named(t, "a"))
	at := netip.AddrPortFrom(vip, w.front.Port()).String()
	for local, want := range map[string]string{"127.99.1.1": "a", "127.98.1.1": ""} {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
		c, err := d.Dial("tcp", at)
		got := ""
		if err == nil {
			_ = c.SetDeadline(time.Now().Add(bound))
			got, err = ask(c)
			c.Close()
		}
		if got != want || (err == nil) != (want != "") {
			t.Errorf("from %s: %q, %v", local, got, err)
		}
	}
}

// datagrams answers each datagram with a name and its length.
func datagrams(t *testing.T, name string) netip.AddrPort {
	t.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(append([]byte(name), buf[:n]...), from)
		}
	}()
	return netip.MustParseAddrPort(c.LocalAddr().String())
}

func TestUDP(t *testing.T) {
	w := newWorld(t)
	a, b := datagrams(t, "a"), datagrams(t, "b")
	w.apply(nil, a, b)
	buf := make([]byte, 65536)
	round := func(c net.Conn, text string) string {
		t.Helper()
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if string(buf[1:n]) != text {
			t.Fatalf("%d bytes came back as %d", len(text), n-1)
		}
		return string(buf[:1])
	}
	// A client stays where it is; another has its turn.
	c1, c2 := w.dial("udp"), w.dial("udp")
	at1, at2 := round(c1, "hello"), round(c2, "hello")
	if at1 == at2 {
		t.Errorf("both clients are at %s", at1)
	}
	for range 5 {
		if got := round(c1, strings.Repeat("x", 60000)); got != at1 {
			t.Fatalf("from %s to %s", at1, got)
		}
	}
	// Many at once, for the batches.
	for i := range 100 {
		if _, err := fmt.Fprintf(c2, "%02d", i); err != nil {
			t.Fatal(err)
		}
		if i%20 == 19 {
			for range 20 {
				if n, err := c2.Read(buf); err != nil || n != 3 || string(buf[:1]) != at2 {
					t.Fatalf("%q, %v", buf[:n], err)
				}
			}
		}
	}
	// The endpoint goes: at once to the other.
	w.apply(nil, b)
	if got := round(c1, "hello"); got != "b" {
		t.Errorf("after a is gone: %s", got)
	}
	// Only its choice ends (terminating): it is kept.
	w.apply(func(p *plan.Port) { p.Serving = []netip.AddrPort{a, b} }, a)
	if got := round(c1, "hello"); got != "b" {
		t.Errorf("while b serves: %s", got)
	}
	if got := round(w.dial("udp"), "hello"); got != "a" {
		t.Errorf("a new client: %s", got)
	}
}

// TestUDPRefused: an endpoint that does not listen is left for another, with
// the datagram that tells so lost at most.
func TestUDPRefused(t *testing.T) {
	w := newWorld(t)
	w.apply(nil, closedPort(t), datagrams(t, "a"))
	for range 4 {
		c := w.dial("udp")
		buf := make([]byte, 10)
		w.eventually("an answer", func() bool {
			_, _ = io.WriteString(c, "x")
			_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			n, err := c.Read(buf)
			return err == nil && string(buf[:n]) == "ax"
		})
	}
}

// TestClose: nothing new is taken, what stands goes on; Drain returns when it
// has ended.
func TestClose(t *testing.T) {
	w := newWorld(t)
	w.apply(nil, named(t, "a"))
	c := w.dial("tcp")
	w.expect(c, "a")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w.expect(c, "a")
	if _, err := net.Dial("tcp", w.front.String()); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("after Close: %v", err)
	}
	if _, err := w.Apply(t.Context(), nil); err == nil {
		t.Error("Apply after Close")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Drain(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("with a connection: %v", err)
	}
	w.expect(c, "a")
	c.Close()
	ctx, cancel = context.WithTimeout(t.Context(), bound)
	defer cancel()
	if err := w.Drain(ctx); err != nil {
		t.Error(err)
	}
}

// TestFull: when no descriptor is left clients wait for one, and are served.
func TestFull(t *testing.T) {
	w := newWorld(t)
	w.apply(nil, named(t, "a"))
	w.limit.Store(w.fds.Load() + 4)
	var waiting sync.WaitGroup
	for range 20 {
		waiting.Go(func() {
			c, err := net.Dial("tcp", w.front.String())
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(bound))
			if got, err := ask(c); err != nil || got != "a" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	waiting.Wait()
}

// TestOffered: what only root may listen on is found elsewhere.
func TestOffered(t *testing.T) {
	for _, c := range []struct{ port, lowest, want uint16 }{
		{80, 1024, 8080}, {443, 1024, 8443}, {53, 1024, 8053}, {1024, 1024, 1024}, {8080, 1024, 8080}, {80, 80, 80}, {80, 0, 80},
	} {
		if got := Offered(c.port, c.lowest); got != c.want {
			t.Errorf("port %d where %d is the lowest: %d, want %d", c.port, c.lowest, got, c.want)
		}
	}
}
