package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Mode userspace beside a proxy of a dozen lines, with io.Copy in two
// goroutines per connection, and beside HAProxy: small requests on connections
// that stay open, and one connection that pours. All of it on the loopback of a
// network namespace: clients, proxy and server share the CPUs, so the figures
// are for comparison, with "direct" for the limit.

const (
	relayClients = 64  // connections
	relayMessage = 128 // bytes, of request and answer
)

// relays are the contenders in the order of the table. run starts one between
// two addresses.
var relays = []struct {
	name string
	run  func(b *bench, dir, listen, server string) *exec.Cmd
}{
	{"direct", nil},
	{"io.Copy", func(_ *bench, _, listen, server string) *exec.Cmd {
		return exec.Command("/proc/self/exe", "iocopy", listen, server)
	}},
	{"HAProxy", func(_ *bench, dir, listen, server string) *exec.Cmd {
		path := filepath.Join(dir, "haproxy.cfg")
		config := fmt.Sprintf("global\n  nbthread %d\n  maxconn 1000\ndefaults\n  mode tcp\n  option splice-auto\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\nlisten l\n  bind %s\n  server s %s\n",
			runtime.NumCPU(), listen, server)
		if os.WriteFile(path, []byte(config), 0o644) != nil {
			return nil
		}
		return exec.Command("haproxy", "-db", "-f", path)
	}},
	{"Rutter userspace", func(b *bench, _, listen, server string) *exec.Cmd {
		return exec.Command(b.program("rutter"), "relay", listen, server)
	}},
}

// userspace measures in a namespace of its own. What is started from its thread
// is in it too.
func (b *bench) userspace(ctx context.Context) error {
	if os.Geteuid() != 0 {
		b.say("userspace: left out: a network namespace needs root")
		return nil
	}
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with its namespace
		failed <- b.userspaceHere(ctx)
	}()
	return <-failed
}

func (b *bench) userspaceHere(ctx context.Context) error {
	dir, err := b.subdir("userspace")
	if err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set up the loopback device: %w", err)
	}
	server := exec.Command("/proc/self/exe", "pong", "127.0.0.1:7000")
	if err := server.Start(); err != nil {
		return err
	}
	defer stop(server)
	rounds, d := 5, 2*time.Second
	if b.short {
		rounds, d = 1, 300*time.Millisecond
	}
	small, pour, cost := make(map[string][]float64), make(map[string][]float64), make(map[string][]float64)
	var missing []string
	for round := range rounds {
		for i, r := range relays {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			addr := "127.0.0.1:7000"
			var proxy *exec.Cmd
			if r.run != nil {
				addr = fmt.Sprintf("127.0.0.1:%d", 7001+i)
				if proxy = r.run(b, dir, addr, "127.0.0.1:7000"); proxy == nil || proxy.Start() != nil {
					if round == 0 {
						missing = append(missing, r.name)
					}
					continue
				}
			}
			n, err := ping(ctx, addr, relayClients, d)
			if proxy != nil && err == nil {
				// Since its start, which costs little.
				cost[r.name] = append(cost[r.name], float64(cpuOf(proxy.Process.Pid).Microseconds())/(n*d.Seconds()))
			}
			var bytes float64
			if err == nil {
				bytes, err = ping(ctx, addr, -1, d)
			}
			if proxy != nil {
				stop(proxy)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
			small[r.name] = append(small[r.name], n)
			pour[r.name] = append(pour[r.name], bytes)
		}
	}
	t := &table{title: fmt.Sprintf("Relaying in user space, on loopback: %d connections, %d bytes there and back; one connection that pours", relayClients, relayMessage)}
	t.add("", "requests/s", "of HAProxy", "of io.Copy", "CPU µs/request", "of HAProxy", "Gbit/s")
	for _, r := range relays {
		if len(small[r.name]) == 0 {
			continue
		}
		n := median(small[r.name])
		cpu, cpuRatio := "", ""
		if c := median(cost[r.name]); c > 0 {
			cpu, cpuRatio = fmt.Sprintf("%.1f", c), ratio(c, median(cost["HAProxy"]))
		}
		t.add(r.name, count(n), ratio(n, median(small["HAProxy"])), ratio(n, median(small["io.Copy"])), cpu, cpuRatio, fmt.Sprintf("%.1f", median(pour[r.name])*8/1e9))
	}
	if len(missing) > 0 {
		t.notes = append(t.notes, "not installed: "+strings.Join(missing, ", "))
	}
	t.notes = append(t.notes, fmt.Sprintf("medians of %d rounds of %s each; clients and server share the CPUs", rounds, d))
	b.out.print(t)
	return nil
}

// cpuOf is the user and system time of a process so far.
func cpuOf(pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), ") ") // the name may have anything in it
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100
}

func stop(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// ping runs the load generator in a process of its own: requests a second, or
// bytes a second with a negative number of connections.
func ping(ctx context.Context, addr string, connections int, d time.Duration) (float64, error) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "ping", addr, strconv.Itoa(connections), d.String())
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("load generator: %w", err)
	}
	return strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
}

// userspaceTool is one of the programs above, if args ask for one.
func userspaceTool(args []string) (ok bool, err error) {
	switch {
	case len(args) == 3 && args[0] == "iocopy":
		return true, ioCopy(args[1], args[2])
	case len(args) == 2 && args[0] == "pong":
		return true, pong(args[1])
	case len(args) == 4 && args[0] == "ping":
		n, err := strconv.Atoi(args[2])
		if err != nil {
			return true, err
		}
		d, err := time.ParseDuration(args[3])
		if err != nil {
			return true, err
		}
		var result float64
		if n < 0 {
			result, err = pourInto(args[1], d)
		} else {
			result, err = pingPong(args[1], n, d)
		}
		fmt.Println(result)
		return true, err
	}
	return false, nil
}

// ioCopy is the proxy that everybody writes first.
func ioCopy(listen, server string) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			s, err := net.Dial("tcp", server)
			if err != nil {
				return
			}
			defer s.Close()
			go func() {
				_, _ = io.Copy(s, c)
				_ = s.(*net.TCPConn).CloseWrite()
			}()
			_, _ = io.Copy(c, s)
		}()
	}
}

// pong is a server that says back what it is told, but for large reads, which
// it drops: those pour.
func pong(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	fd, err := descriptor(l.(*net.TCPListener))
	if err != nil {
		return err
	}
	return eachReady(fd, func(fd int, buf []byte) bool {
		n, err := unix.Read(fd, buf)
		if n <= 0 {
			return errors.Is(err, unix.EAGAIN)
		}
		if n == relayMessage {
			_, _ = unix.Write(fd, buf[:n])
		}
		return true
	}, time.Time{})
}

// eachReady serves the connections that a listener accepts: f is called with
// one that can be read, and tells whether it goes on.
func eachReady(listener int, f func(fd int, buf []byte) bool, until time.Time, fds ...int) error {
	ep, err := unix.EpollCreate1(0)
	if err != nil {
		return err
	}
	defer unix.Close(ep)
	if listener >= 0 {
		fds = append(fds, listener)
	}
	for _, fd := range fds {
		if err := errors.Join(unix.SetNonblock(fd, true), unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})); err != nil {
			return err
		}
	}
	events, buf := make([]unix.EpollEvent, 256), make([]byte, 256<<10)
	for until.IsZero() || time.Now().Before(until) {
		n, err := unix.EpollWait(ep, events, 100)
		if err != nil && err != unix.EINTR {
			return err
		}
		for _, e := range events[:max(n, 0)] {
			fd := int(e.Fd)
			if fd == listener {
				if c, _, err := unix.Accept4(fd, unix.SOCK_NONBLOCK); err == nil {
					_ = unix.SetsockoptInt(c, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
					_ = unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, c, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(c)})
				}
				continue
			}
			if !f(fd, buf) {
				unix.Close(fd)
			}
		}
	}
	return nil
}

// descriptor is a copy of a socket's, which nobody closes.
func descriptor(c syscall.Conn) (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := raw.Control(func(of uintptr) { fd, err = unix.Dup(int(of)) })
	return fd, errors.Join(cerr, err)
}

// connect waits for whoever listens there.
func connect(addr string) (fd int, err error) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err != nil && time.Now().Before(deadline) {
			continue
		}
		if err != nil {
			return 0, err
		}
		fd, err := descriptor(c.(*net.TCPConn))
		return fd, errors.Join(err, c.Close())
	}
}

// pingPong sends a message on each of n connections and the next whenever one
// comes back.
func pingPong(addr string, n int, d time.Duration) (float64, error) {
	message := make([]byte, relayMessage)
	var fds []int
	for range n {
		fd, err := connect(addr)
		if err != nil {
			return 0, err
		}
		if _, err := unix.Write(fd, message); err != nil {
			return 0, err
		}
		fds = append(fds, fd)
	}
	answers := 0
	start := time.Now()
	var lost error
	err := eachReady(-1, func(fd int, buf []byte) bool {
		n, err := unix.Read(fd, buf)
		if n <= 0 {
			if errors.Is(err, unix.EAGAIN) {
				return true
			}
			lost = fmt.Errorf("a connection ended: %w", err)
			return false
		}
		answers++
		_, _ = unix.Write(fd, message)
		return true
	}, start.Add(d), fds...)
	return float64(answers) / time.Since(start).Seconds(), errors.Join(err, lost)
}

// pourInto writes as fast as it is taken.
func pourInto(addr string, d time.Duration) (float64, error) {
	fd, err := connect(addr)
	if err != nil {
		return 0, err
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		return 0, err
	}
	block := make([]byte, 256<<10)
	var sent float64
	start := time.Now()
	for time.Since(start) < d {
		n, err := unix.Write(fd, block)
		if err != nil {
			return 0, err
		}
		sent += float64(n)
	}
	return sent / time.Since(start).Seconds(), nil
}
