package proxy

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long silence must last to be called so. Answers come within
// milliseconds; an outcome that is not the expected one is looked at again
// before it counts, so that a busy machine does not fail a row.
//
// longPatience is for answers on a busy machine, and for TCP over IPv6: Linux
// notes an ICMPv6 error that comes while connect(2) still holds the socket, as
// it does between namespaces, and acts on the next one, a second later.
var (
	patience     = 400 * time.Millisecond * slowness
	longPatience = 1500 * time.Millisecond * slowness
)

// Outcomes of asking, besides answers. An answer is told as "a1(ca)": a1
// answered and saw ca's address; several as "a1(ca) b1(n1)".
const (
	refused = "refused" // ICMP port unreachable, or a reset
	silence = "silence"
	// What a node's own output hook drops or rejects fails in the system call.
	forbidden = "forbidden"
)

// flow is a connection, or as much of one as the protocol has.
type flow interface {
	ask() (string, error) // the server's word
	Close() error
}

// dial opens a flow from inside the namespace.
func (s *space) dial(q question) (f flow, err error) {
	err = s.Do(func() error {
		f, err = q.dial()
		return err
	})
	return f, err
}

func (q question) dial() (flow, error) {
	switch q.proto {
	case "sctp":
		return dialSCTP(q)
	case "icmp":
		return dialICMP(q)
	}
	// No keep-alive probes: a held flow is silent unless a row asks on it.
	d := net.Dialer{Timeout: q.wait, KeepAlive: -1}
	if q.local.IsValid() && q.proto == "tcp" {
		d.LocalAddr = &net.TCPAddr{IP: q.local.AsSlice()}
	} else if q.local.IsValid() {
		d.LocalAddr = &net.UDPAddr{IP: q.local.AsSlice()}
	}
	c, err := d.Dial(q.proto, q.to.String())
	if err != nil {
		return nil, err
	}
	return &streamConn{c, bufio.NewReader(c), q.wait}, nil
}

// streamConn is a TCP connection or a connected UDP socket.
type streamConn struct {
	net.Conn
	in   *bufio.Reader
	wait time.Duration
}

func (c *streamConn) ask() (string, error) {
	_ = c.SetDeadline(time.Now().Add(c.wait))
	if _, err := io.WriteString(c, "who?\n"); err != nil {
		return "", err
	}
	return c.in.ReadString('\n')
}

// answer asks and tells the outcome.
func answer(f flow) string {
	word, err := f.ask()
	if err != nil {
		return outcomeOf(err)
	}
	server, from, _ := strings.Cut(strings.TrimSpace(word), " ")
	at, err := netip.ParseAddrPort(from)
	if err != nil {
		return word
	}
	return fmt.Sprintf("%s(%s)", server, nameOf(at.Addr()))
}

func outcomeOf(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return refused
	case errors.Is(err, unix.EPERM):
		return forbidden
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE), errors.Is(err, io.EOF):
		return "closed"
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH),
		errors.Is(err, unix.ENOPROTOOPT), errors.Is(err, unix.EPROTO): // ICMP protocol unreachable
		return "unreachable"
	case errors.As(err, &timeout) && timeout.Timeout():
		return silence
	}
	return err.Error()
}

// question is who asks whom how.
type question struct {
	from  *space
	proto string     // tcp, udp, sctp or icmp
	local netip.Addr // invalid: what the kernel chooses
	to    netip.AddrPort
	wait  time.Duration // for an answer
}

// once opens a flow, asks once and closes it.
func (q question) once() string {
	f, err := q.dial()
	if err != nil {
		return outcomeOf(err)
	}
	defer f.Close()
	return answer(f)
}

// ask asks n times with a new flow each, and tells everybody who answered. It
// ends when nobody does.
func (q question) ask(n int) string {
	var seen []string
	_ = q.from.Do(func() error {
		for range n {
			o := q.once()
			if !slices.Contains(seen, o) {
				seen = append(seen, o)
			}
			if !strings.HasSuffix(o, ")") {
				return nil
			}
		}
		return nil
	})
	slices.Sort(seen)
	return strings.Join(seen, " ")
}

// stick asks n times and tells whether it was always the same who answered.
func (q question) stick(n int) string {
	o := q.ask(n)
	switch {
	case strings.Count(o, "(") > 1:
		return "several"
	case strings.HasSuffix(o, ")"):
		return "one"
	}
	return o
}

// spread asks n times and tells whether the endpoints took equal parts.
func (q question) spread(n int) string {
	counts := make(map[string]int)
	_ = q.from.Do(func() error {
		for range n {
			counts[q.once()]++
		}
		return nil
	})
	var names []string
	for o := range counts {
		names = append(names, o)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(a, b) })
	// Pearson's test against a uniform distribution. The limits let a fair
	// proxy fail once in a million runs: χ² with 1, 2, 3 and 7 degrees of freedom.
	limit := map[int]float64{2: 23.9, 3: 27.6, 4: 30.7, 8: 40.5}[len(counts)]
	expected, chi2 := float64(n)/float64(len(counts)), 0.0
	for _, c := range counts {
		chi2 += (float64(c) - expected) * (float64(c) - expected) / expected
	}
	if chi2 > limit {
		return fmt.Sprintf("uneven: %v", counts)
	}
	return "even: " + strings.Join(names, " ")
}

// clients asks once as each of out's further addresses.
func (q question) clients() string {
	var seen []string
	for i := 1; i <= 8; i++ {
		q.local = address(fmt.Sprintf("out.%d", i), q.to.Addr().Is6())
		if o := q.ask(1); !slices.Contains(seen, o) {
			seen = append(seen, o)
		}
	}
	slices.Sort(seen)
	return strings.Join(seen, " ")
}

// status asks a health check node port: the code, and the endpoints that it
// says are here.
func (q question) status() string {
	res, body := q.get("/")
	if res == nil {
		return body
	}
	return fmt.Sprintf("%d, weight %s", res.StatusCode, res.Header.Get("X-Load-Balancing-Endpoint-Weight"))
}

// get gets a page. Without a response the text is the outcome.
func (q question) get(path string) (res *http.Response, text string) {
	err := q.from.Do(func() error {
		c, err := net.DialTimeout("tcp", q.to.String(), q.wait)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(4 * q.wait))
		if _, err := fmt.Fprintf(c, "GET %s HTTP/1.0\r\n\r\n", path); err != nil {
			return err
		}
		if res, err = http.ReadResponse(bufio.NewReader(c), nil); err != nil {
			return err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		text = string(body)
		return err
	})
	if err != nil {
		return nil, outcomeOf(err)
	}
	return res, text
}
