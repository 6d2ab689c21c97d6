package proxy

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// row looks until the outcome is the expected one, or for a few seconds.
func (r *runner) row(c *column, row row) {
	want, _ := row.expected(c.kind)
	if want == notLookedAt {
		return
	}
	deadline := time.Now().Add(3 * time.Second * slowness)
	var seen string
	looks := 0
	for {
		looks++
		var err error
		if seen, err = r.observe(c, row); err != nil {
			seen = "error: " + err.Error()
		}
		if seen == want || time.Now().After(deadline) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	res := result{row: row, kind: c.kind, seen: seen, looks: looks}
	if seen != want {
		res.detail = r.describe(c, row)
		if inVM { // where it is long until the report
			r.t.Logf("%s: seen %q, want %q", row, seen, want)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.results = append(r.results, res)
}

// target finds the service, the address and the port that a row asks.
func (r *runner) target(c *column, row row) (*service, netip.AddrPort, error) {
	name, to := row.scenario, row.to
	if other, rest, ok := strings.Cut(to, "/"); ok {
		name, to = other, rest
	}
	svc := r.cluster.services[name]
	if svc == nil {
		return nil, netip.AddrPort{}, fmt.Errorf("no scenario is called %s", name)
	}
	port := uint16(80)
	if before, p, ok := strings.Cut(to, ":"); ok {
		n, err := strconv.Atoi(p)
		if err != nil {
			return nil, netip.AddrPort{}, fmt.Errorf("%s: %w", row.to, err)
		}
		to, port = before, uint16(n)
	}
	kind, at, _ := strings.Cut(to, "@")
	switch kind {
	case "cluster", "external", "vip":
		return svc, netip.AddrPortFrom(svc.front(kind, row.v6), port), nil
	case "unallocated":
		return svc, netip.AddrPortFrom((&service{index: 251}).front("cluster", row.v6), port), nil
	case "address":
		return svc, netip.AddrPortFrom(address(at, row.v6), port), nil
	case "nodeport", "health":
		var addr netip.Addr
		switch {
		case at == "lo" && row.v6:
			addr = netip.IPv6Loopback()
		case at == "lo":
			addr = netip.MustParseAddr("127.0.0.1")
		default:
			addr = address(at, row.v6)
		}
		if kind == "health" {
			return svc, netip.AddrPortFrom(addr, svc.healthPort()), nil
		}
		n := svc.nodePort()
		if port == 81 {
			n += 500
		}
		return svc, netip.AddrPortFrom(addr, n), nil
	}
	return nil, netip.AddrPort{}, fmt.Errorf("%q is no address of a service", row.to)
}

// asks is how often a service with k endpoints must be asked, for all of them
// to answer but once in ten million times: k((k-1)/k)^n < 10^-7.
func asks(k int) int {
	if k < 2 {
		return 3
	}
	return int(math.Ceil(math.Log(1e7*float64(k)) / math.Log(float64(k)/float64(k-1))))
}

// observe asks a row's question.
func (r *runner) observe(c *column, row row) (string, error) {
	key := fmt.Sprint(row.scenario, row.flow, row.proto, row.v6)
	if row.how == "again" || row.how == "same" {
		r.mu.Lock()
		f := c.flows[key]
		r.mu.Unlock()
		if f == nil {
			return "no such flow", nil
		}
		seen := answer(f.flow)
		if row.how == "same" && seen == f.first {
			seen = "same"
		}
		return seen, nil
	}
	switch row.how {
	case "http":
		return r.http(c, row), nil
	case "load":
		return c.load.outcome(), nil
	}
	svc, to, err := r.target(c, row)
	if err != nil {
		return "", err
	}
	from, _, _ := strings.Cut(row.from, ".")
	want, _ := row.expected(c.kind)
	q := question{from: c.world.spaces[from], proto: row.proto, to: to, wait: patience}
	if want != silence || row.proto == "tcp" && row.v6 {
		q.wait = longPatience
	}
	if from == "out" {
		q.local = address(row.from, row.v6)
	}
	switch row.how {
	case "ask":
		return q.ask(asks(len(strings.Fields(svc.endpoints)))), nil
	case "stick":
		return q.stick(10), nil
	case "spread":
		return q.spread(400 / int(slowness)), nil
	case "health":
		return q.status(), nil
	case "open":
		f, err := q.from.dial(q)
		if err != nil {
			return outcomeOf(err), nil
		}
		seen := answer(f)
		r.mu.Lock()
		if old := c.flows[key]; old != nil {
			defer old.Close()
		}
		c.flows[key] = &heldFlow{f, seen}
		r.mu.Unlock()
		if row.want == "answer" && strings.HasSuffix(seen, ")") {
			seen = "answer"
		}
		return seen, nil
	case "clients after a pause":
		time.Sleep(1300 * time.Millisecond) // longer than the timeout of the affinity
		fallthrough
	case "clients":
		return q.clients(), nil
	}
	return "", fmt.Errorf("a row cannot %q", row.how)
}

// http gets a page of the proxy itself: to is PORT/PATH@PLACE.
func (r *runner) http(c *column, row row) string {
	page, at, _ := strings.Cut(row.to, "@")
	port, path, _ := strings.Cut(page, "/")
	n, _ := strconv.Atoi(port)
	addr := netip.MustParseAddr("127.0.0.1")
	if at != "lo" {
		addr = address(at, row.v6)
	}
	q := question{from: c.world.spaces[row.from], to: netip.AddrPortFrom(addr, uint16(n)), wait: longPatience}
	res, body := q.get("/" + path)
	if res == nil {
		return body
	}
	if path == "proxyMode" {
		return fmt.Sprint(res.StatusCode, " ", body)
	}
	return strconv.Itoa(res.StatusCode)
}

// compareMetrics holds the names of kube-proxy's metrics against those of
// Rutter in the same mode, with their labels: dashboards and alerts are written
// with them.
func (r *runner) compareMetrics() {
	series := func(c *column) map[string]bool {
		q := question{from: c.world.spaces["n1"], to: netip.MustParseAddrPort("127.0.0.1:10249"), wait: longPatience}
		_, text := q.get("/metrics")
		found := make(map[string]bool)
		for _, m := range regexp.MustCompile(`(?m)^(kubeproxy_\w+)({[^}]*})? `).FindAllStringSubmatch(text, -1) {
			// Buckets' limits and results may come in another spelling or number.
			labels := regexp.MustCompile(`,?\ble="[^"]*"`).ReplaceAllString(m[2], "")
			found[m[1]+labels] = true
		}
		return found
	}
	for _, own := range r.columns {
		for _, peer := range r.columns {
			if own.proxy != "rutter" || peer.proxy != "kube-proxy" || own.mode != peer.mode {
				continue
			}
			has, wanted := series(own), series(peer)
			if len(wanted) == 0 {
				r.t.Errorf("%s has no metrics", peer.kind)
			}
			r.t.Logf("%s is held against %d series of %s", own.kind, len(wanted), peer.kind)
			for _, name := range slices.Sorted(maps.Keys(wanted)) {
				if !has[name] {
					r.t.Errorf("%s has no metric %s, which %s has", own.kind, name, peer.kind)
				}
			}
		}
	}
}

// describe is what to know of a row that differs: the objects, and the tables
// of the node that sees the packet first.
func (r *runner) describe(c *column, row row) string {
	r.mu.Lock()
	r.details[c.String()]++
	many := r.details[c.String()] > 5
	r.mu.Unlock()
	if many {
		return ""
	}
	if row.how == "http" || row.how == "load" {
		return c.proxies["n1"].Log()
	}
	svc, to, err := r.target(c, row)
	if err != nil {
		return err.Error()
	}
	node := nodeOf(strings.Split(row.from, ".")[0])
	about := []string{svc.namespace + "/" + svc.name, svc.front("cluster", row.v6).String(), to.Addr().String(), strconv.Itoa(int(svc.nodePort()))}
	return fmt.Sprintf("asked %s\n%s\ntables of %s:\n%s", to, svc.text(), node, c.tables(node, about...))
}
