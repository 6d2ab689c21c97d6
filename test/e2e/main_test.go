// Package e2e runs the whole system as a user would, in a network, mount and
// process namespace of its own: `rutter up` is the host's, pods are real
// processes, the API is the real one, and the tools are dig, nslookup, curl
// and kubectl.
package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	inside = "RUTTER_E2E_INSIDE" // set in the process that runs in the namespaces
	client = "RUTTER_E2E_CLIENT" // set in the process that connects from a pod, name by name
	load   = "RUTTER_E2E_LOAD"   // set, to an address, in the process that connects from a pod all the time
)

// TestMain runs the tests in a child that has namespaces of its own. When it
// ends, the kernel ends every process in them: nothing can be left behind.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv(client) != "":
		connectLoop()
	case os.Getenv(load) != "":
		fmt.Println(connectAllTheTime(os.Getenv(load)))
	case os.Getenv(inside) != "":
		if err := enter(); err != nil {
			fmt.Fprintln(os.Stderr, "e2e: set up the namespaces:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	case os.Geteuid() != 0 || os.Getenv("RUTTER_BIN") == "" || os.Getenv("RUTTER_REGISTRY_BIN") == "":
		fmt.Println("skipped: end-to-end tests need root, and RUTTER_BIN and RUTTER_REGISTRY_BIN (`make test` sets them)")
		os.Exit(m.Run()) // each test skips itself and says so
	default:
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
			Pdeathsig:  syscall.SIGKILL,
		}
		if err := cmd.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			os.Exit(1)
		}
	}
}

// enter makes the namespaces look like a small host: its own /proc and /run,
// one network card with an address and a default route.
func enter() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	// The host's resolver is its own address, where nobody answers: what is not
	// of the cluster fails at once, whatever network the tests run on.
	if err := os.WriteFile("/run/resolv.conf", []byte("nameserver 192.0.2.10\n"), 0o644); err != nil {
		return err
	}
	if err := unix.Mount("/run/resolv.conf", "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount resolv.conf: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	// A cable to nowhere: a veth pair is what every kernel has.
	card := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "uplink"}
	if err := netlink.LinkAdd(card); err != nil {
		return fmt.Errorf("add eth0: %w", err)
	}
	peer, err := netlink.LinkByName("uplink")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(peer); err != nil {
		return fmt.Errorf("bring uplink up: %w", err)
	}
	for _, a := range []string{"192.0.2.10/24", "2001:db8::10/64"} {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(card, addr); err != nil {
			return fmt.Errorf("add %s: %w", a, err)
		}
	}
	if err := netlink.LinkSetUp(card); err != nil {
		return fmt.Errorf("bring eth0 up: %w", err)
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: card.Attrs().Index, Gw: net.ParseIP("192.0.2.1")})
}

// connectLoop is a client in a pod: for each name on standard input it
// resolves it as the pod's resolv.conf says, connects at once, and writes what
// answered, or what failed.
func connectLoop() {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		fmt.Println(connect(in.Text()))
	}
}

// connectAllTheTime makes new connections to the address, and requests over one
// that stays open, until standard input ends. It returns how many requests of
// each kind succeeded, and what failed.
func connectAllTheTime(address string) string {
	var stop atomic.Bool
	go func() { io.Copy(io.Discard, os.Stdin); stop.Store(true) }()
	var mu sync.Mutex
	var failed []string
	get := func(c *http.Client) bool {
		resp, err := c.Get("http://" + address + "/")
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		if err != nil {
			mu.Lock()
			defer mu.Unlock()
			failed = append(failed, err.Error())
		}
		return err == nil
	}
	var fresh, kept atomic.Int64
	var workers sync.WaitGroup
	for range 2 {
		workers.Go(func() {
			c := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
			for !stop.Load() {
				if get(c) {
					fresh.Add(1)
				}
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	workers.Go(func() {
		dials := 0
		c := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 1, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if dials++; dials > 1 {
				return nil, errors.New("the long connection was lost")
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		}}}
		for !stop.Load() {
			if get(c) {
				kept.Add(1)
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	workers.Wait()
	return fmt.Sprintf("fresh=%d kept=%d failed=%d %.300q", fresh.Load(), kept.Load(), len(failed), failed)
}

func connect(name string) string {
	// A bound for each: a slow answer must not look like an address that does
	// not work.
	const patience = 10 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	resolver := &net.Resolver{PreferGo: true}
	addrs, err := resolver.LookupHost(ctx, name)
	if err != nil {
		return "resolve: " + err.Error()
	}
	ctx, cancel = context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(addrs[0], "80")+"/", nil)
	if err != nil {
		return err.Error()
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return "connect: " + err.Error()
	}
	defer resp.Body.Close()
	line, err := bufio.NewReader(resp.Body).ReadString('\n')
	if err != nil && line == "" {
		return "read: " + err.Error()
	}
	return "ok " + strings.TrimSpace(line)
}
